//! Changes of a TOML file that leave the rest of its text alone, and their way back.

use serde::{Deserialize, Serialize};
use toml_edit::{DocumentMut, Item, TableLike};

/// One value that was set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Edit {
    /// Keys from the outermost table on.
    path: Vec<String>,
    /// The value that it had, in TOML; none if there was none, nor its table.
    before: Option<String>,
    /// The value that it got; none for a table.
    after: Option<String>,
}

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
        match to.get_mut(key) {
            None => {
                let mut item = new.clone();
                unplace(&mut item);
                to.insert(key, item);
                edits.push(Edit { path: path.clone(), before: None, after: value(new) });
            }
            Some(old) => match (old.as_table_like_mut(), new.as_table_like()) {
                (Some(old), Some(new)) => merge(old, new, path, edits)?,
                (None, None) => {
                    let (before, after) = (value(old), value(new));
                    if before != after {
                        let Some(kept) = before else {
                            return Err(format!("has a list of tables at {}", path.join(".")));
                        };
                        *old = new.clone();
                        edits.push(Edit { path: path.clone(), before: Some(kept), after });
                    }
                }
                _ => return Err(format!("has something unexpected at {}", path.join("."))),
            },
        }
        path.pop();
    }
    Ok(())
}

/// Takes the edits back, the last first, where the values still are those that were set.
pub(crate) fn undo(document: &mut DocumentMut, edits: &[Edit]) {
    for edit in edits.iter().rev() {
        let Some((last, tables)) = edit.path.split_last() else { continue };
        let mut table: Option<&mut dyn TableLike> = Some(document.as_table_mut());
        for key in tables {
            table = table.and_then(|table| table.get_mut(key)).and_then(Item::as_table_like_mut);
        }
        let Some(table) = table else { continue };
        match (&edit.before, table.get(last)) {
            (None, Some(now)) if edit.after.is_none() || value(now) == edit.after => {
                table.remove(last);
            }
            (Some(before), Some(now)) if value(now) == edit.after => {
                if let Ok(value) = before.parse::<toml_edit::Value>() {
                    table.insert(last, Item::Value(value));
                }
            }
            _ => {}
        }
    }
}

/// A value without the spaces and comments around it.
fn value(item: &Item) -> Option<String> {
    let mut value = item.as_value()?.clone();
    value.decor_mut().clear();
    Some(value.to_string())
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
