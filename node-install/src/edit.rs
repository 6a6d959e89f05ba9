//! Changes of a TOML file that leave the rest of its text alone, and their way back.

use serde::{Deserialize, Serialize};
use toml_edit::{DocumentMut, Item, TableLike};

use crate::handlers::HANDLERS;

/// What was set: a value, or a whole runtime or plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Edit {
    /// Keys from the outermost table on.
    path: Vec<String>,
    /// The value that it had, in TOML; none if there was none.
    before: Option<String>,
    /// What it got, in TOML; none for a table that was made for what comes into it.
    after: Option<String>,
}

/// Keys by which a file's version matters.
pub(crate) const VERSIONED: [&str; 4] =
    ["plugins", "disabled_plugins", "required_plugins", "imports"];

/// Sets everything that `lines` have; returns what was different before. An error if a table of one is
/// a value of the other.
pub(crate) fn set(document: &mut DocumentMut, lines: &DocumentMut) -> Result<Vec<Edit>, String> {
    let mut edits = Vec::new();
    merge(document.as_table_mut(), lines.as_table(), &mut Vec::new(), &mut edits)?;
    Ok(edits)
}

fn merge(
    to: &mut dyn TableLike,
    from: &dyn TableLike,
    path: &mut Vec<String>,
    edits: &mut Vec<Edit>,
) -> Result<(), String> {
    for (key, new) in from.iter() {
        path.push(key.to_owned());
        match (to.get_mut(key), new) {
            (None, Item::Table(table)) if !is_entry(path) => {
                let mut made = table.clone();
                made.clear();
                made.set_position(None);
                to.insert(key, Item::Table(made));
                edits.push(Edit { path: path.clone(), before: None, after: None });
                if let Some(made) = to.get_mut(key).and_then(Item::as_table_like_mut) {
                    merge(made, table, path, edits)?;
                }
            }
            (None, _) => {
                let mut item = new.clone();
                unplace(&mut item);
                to.insert(key, item);
                edits.push(Edit { path: path.clone(), before: None, after: value(new) });
            }
            (Some(old), _) => match (old.as_table_like_mut(), new.as_table_like()) {
                (Some(old), Some(new)) => merge(old, new, path, edits)?,
                (None, None) => {
                    let (before, after) = (value(old), value(new));
                    if before != after {
                        if !old.is_value() {
                            return Err(format!("has a list of tables at {}", path.join(".")));
                        }
                        *old = new.clone();
                        edits.push(Edit { path: path.clone(), before, after });
                    }
                }
                _ => return Err(format!("has something unexpected at {}", path.join("."))),
            },
        }
        path.pop();
    }
    Ok(())
}

/// Whether it is a runtime or a proxy plugin: makes sense as a whole only.
fn is_entry(path: &[String]) -> bool {
    matches!(path, [.., of, _] if of == "runtimes" || of == "proxy_plugins")
}

/// Takes the edits back, the last first, where the values still are those that were set. What somebody added since
/// stays, and so does what it needs: the tables that it is in, the file's version, and a runtime that containerd has by
/// default (see [`crate::handlers::default_runtimes`]), if others are named or somebody changed it.
pub(crate) fn undo(document: &mut DocumentMut, edits: &[Edit]) {
    for edit in edits.iter().rev() {
        let is_needed =
            edit.path == ["version"] && VERSIONED.iter().any(|key| document.contains_key(key));
        let Some((last, tables)) = edit.path.split_last() else { continue };
        let Some(table) = table(document, tables) else { continue };
        let Some(now) = table.get(last) else { continue };
        let is_unchanged = value(now) == edit.after;
        let goes = match (&edit.before, &edit.after) {
            (Some(before), _) => {
                if let (true, Ok(value)) = (is_unchanged, before.parse::<toml_edit::Value>()) {
                    table.insert(last, Item::Value(value));
                }
                false
            }
            (None, None) => now.as_table_like().is_some_and(TableLike::is_empty),
            (None, Some(_)) if is_entry(&edit.path) => {
                edit.is_own_entry() || is_unchanged && table.len() == 1
            }
            (None, Some(_)) => is_unchanged && !is_needed,
        };
        if goes {
            table.remove(last);
        }
    }
}

impl Edit {
    /// Whether it sets this key of the outermost table, which was not there.
    pub(crate) fn made(&self, key: &str) -> bool {
        self.path == [key] && self.before.is_none()
    }

    /// Whether it is a handler or the snapshotter, which is Nacre's by its name, whatever is in it.
    fn is_own_entry(&self) -> bool {
        let is_own = |name: &str| HANDLERS.iter().any(|handler| handler.name == name);
        self.before.is_none()
            && is_entry(&self.path)
            && self.path.last().is_some_and(|name| is_own(name))
    }

    /// Whether an earlier installation set it and one with these lines does not, as on a node that has another release of
    /// containerd by now. The file's version, its imports and the runtimes that containerd has by default are in no lines:
    /// what is in the file decides on them.
    pub(crate) fn is_outdated(&self, lines: &DocumentMut) -> bool {
        let is_of_file = self.path == ["version"] || self.path == ["imports"];
        let mut item = Some(lines.as_item());
        for key in &self.path {
            item = item.and_then(|item| item.get(key));
        }
        let is_default = is_entry(&self.path) && !self.is_own_entry();
        !is_of_file && !is_default && item.is_none()
    }

    /// Whether the document still has what was set. What is Nacre's by its name stands as long as it is there.
    pub(crate) fn stands(&self, document: &mut DocumentMut) -> bool {
        let Some((last, tables)) = self.path.split_last() else { return false };
        let now = table(document, tables).and_then(|table| table.get(last));
        now.is_some_and(|now| {
            self.after.is_none() || self.is_own_entry() || value(now) == self.after
        })
    }
}

fn table<'a>(document: &'a mut DocumentMut, keys: &[String]) -> Option<&'a mut dyn TableLike> {
    let mut table: Option<&mut dyn TableLike> = Some(document.as_table_mut());
    for key in keys {
        table = table.and_then(|table| table.get_mut(key)).and_then(Item::as_table_like_mut);
    }
    table
}

/// A value or table, the same text for the same meaning: however it is broken into lines, whatever is remarked.
fn value(item: &Item) -> Option<String> {
    let mut alone = DocumentMut::new();
    let mut item = item.clone();
    unplace(&mut item);
    alone.insert("value", item);
    let read: toml::Table = alone.to_string().parse().ok()?;
    read.get("value").map(ToString::to_string)
}

/// Lets tables from another document come at the end.
fn unplace(item: &mut Item) {
    match item {
        Item::Table(table) => {
            table.set_position(None);
            for (_, item) in table.iter_mut() {
                unplace(item);
            }
        }
        Item::ArrayOfTables(tables) => {
            for table in tables.iter_mut() {
                table.set_position(None);
                for (_, item) in table.iter_mut() {
                    unplace(item);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handlers::{Release, lines};

    const NODE: &str = r#"# ours since 2019
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.example/pause:3.9" # mirrored
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    disable_snapshot_annotations = true # why?
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = true

[metrics]
address = "127.0.0.1:1338"
"#;

    #[test]
    fn what_the_administrator_wrote_stays_and_comes_back() {
        for release in [Release::V1_6, Release::V1_7] {
            let ours: DocumentMut =
                lines(release, release.schema(), &[]).parse().expect("our lines");
            let mut document: DocumentMut = NODE.parse().expect("TOML");
            let edits = set(&mut document, &ours).expect("fits");
            let text = document.to_string();
            for line in ["# ours since 2019", "# mirrored", "SystemdCgroup = true", "[metrics]"] {
                assert!(text.contains(line), "{line} in {text}");
            }
            let read: toml::Table = text.parse().expect("still TOML");
            let cri = &read["plugins"]["io.containerd.grpc.v1.cri"]["containerd"];
            assert_eq!(
                cri["runtimes"]["nacre-snp"]["options"]["ConfigPath"].as_str(),
                Some("/etc/nacre/snp.toml")
            );
            assert_eq!(cri["disable_snapshot_annotations"].as_bool(), Some(false));
            assert_eq!(set(&mut document, &ours).expect("again"), [], "twice is once");
            // Somebody adds something meanwhile.
            let later = format!("{document}\n[debug]\nlevel = \"info\"\n");
            let mut document: DocumentMut = later.parse().expect("TOML");
            undo(&mut document, &edits);
            let read: toml::Table = document.to_string().parse().expect("TOML");
            let mut expected: toml::Table = NODE.parse().expect("TOML");
            expected.extend("[debug]\nlevel = \"info\"\n".parse::<toml::Table>().expect("TOML"));
            assert_eq!(read, expected);
        }
    }

    #[test]
    fn a_value_that_was_changed_since_is_left() {
        let mut document: DocumentMut = "a = 1\nb = 2\n".parse().expect("TOML");
        let edits = set(&mut document, &"a = 5\nb = 6\n".parse().expect("TOML")).expect("fits");
        document["b"] = toml_edit::value(7);
        undo(&mut document, &edits);
        let read: toml::Table = document.to_string().parse().expect("TOML");
        assert_eq!((read["a"].as_integer(), read["b"].as_integer()), (Some(1), Some(7)));
    }

    /// Lines for 1.7 and what is in its default configuration.
    fn lines_of_1_7() -> DocumentMut {
        let text = lines(Release::V1_7, Release::V1_7.schema(), &[]);
        let runc = "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n\
                    runtime_type = \"io.containerd.runc.v2\"\noptions = {SystemdCgroup = false}\n";
        format!("version = 2\n{runc}{text}").parse().expect("TOML")
    }

    #[test]
    fn what_was_added_into_nacres_tables_stays_with_all_that_it_needs() {
        const CRI: &str = "plugins.\"io.containerd.grpc.v1.cri\"";
        let runtimes = format!("{CRI}.containerd.runtimes");
        for (added, whats_left) in [
            (String::new(), String::new()),
            (
                format!("[{CRI}.registry]\nconfig_path = \"/etc/certs.d\"\n"),
                format!("version = 2\n[{CRI}.registry]\nconfig_path = \"/etc/certs.d\"\n"),
            ),
            // Without runc beside it kata would be the only one.
            (
                format!("[{runtimes}.kata]\nruntime_type = \"x\"\n"),
                format!(
                    "version = 2\n[{runtimes}.runc]\nruntime_type = \"io.containerd.runc.v2\"\n\
                     options = {{SystemdCgroup = false}}\n[{runtimes}.kata]\nruntime_type = \"x\"\n"
                ),
            ),
        ] {
            let mut document = DocumentMut::new();
            let edits = set(&mut document, &lines_of_1_7()).expect("fits");
            let mut document: DocumentMut = format!("{document}{added}").parse().expect("TOML");
            undo(&mut document, &edits);
            let read: toml::Table = document.to_string().parse().expect("TOML");
            assert_eq!(read, whats_left.parse::<toml::Table>().expect("TOML"));
        }
        let mut document = DocumentMut::new();
        let edits = set(&mut document, &lines_of_1_7()).expect("fits");
        let changed = document.to_string().replace("SystemdCgroup = false", "SystemdCgroup = true");
        let mut document: DocumentMut = changed.parse().expect("TOML");
        undo(&mut document, &edits);
        let text = document.to_string();
        assert!(text.contains("SystemdCgroup = true") && text.contains("io.containerd.runc.v2"));
        assert!(text.contains("version = 2") && !text.contains("nacre"), "{text}");
    }

    #[test]
    fn a_list_is_the_same_however_it_is_written() {
        let mut document = DocumentMut::new();
        let edits =
            set(&mut document, &"a = [\"x\", \"y\"]\n".parse().expect("TOML")).expect("fits");
        let mut document: DocumentMut = "a = [\n  'x', # why\n  'y',\n]\n".parse().expect("TOML");
        assert!(edits[0].stands(&mut document));
        undo(&mut document, &edits);
        assert!(document.is_empty());
    }

    #[test]
    fn tables_and_values_are_not_mixed_up() {
        for node in ["proxy_plugins = 1\n", "proxy_plugins = [1]\n", "[[proxy_plugins]]\na = 1\n"] {
            let mut document: DocumentMut = node.parse().expect("TOML");
            let ours = lines(Release::V1_7, Release::V1_7.schema(), &[]);
            set(&mut document, &ours.parse().expect("TOML")).expect_err(node);
        }
    }

    #[test]
    fn inline_tables_and_dotted_keys_work() {
        for node in [
            "plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.runtime_type = \"x\"\n",
            "plugins = { \"io.containerd.grpc.v1.cri\" = { containerd = { snapshotter = \"native\" } } }\n",
        ] {
            let mut document: DocumentMut = node.parse().expect("TOML");
            let ours: DocumentMut =
                lines(Release::V1_7, Release::V1_7.schema(), &[]).parse().expect("TOML");
            let edits = set(&mut document, &ours).expect("fits");
            let read: toml::Table = document.to_string().parse().expect("TOML");
            assert!(
                read["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]["nacre"]
                    .is_table()
            );
            undo(&mut document, &edits);
            let back: toml::Table = document.to_string().parse().expect("TOML");
            assert_eq!(back, node.parse::<toml::Table>().expect("TOML"));
        }
    }
}
