//! What containerd makes of its configuration, by its own word, and what has changed between two of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use toml::{Table, Value};

use crate::NodeError;
use crate::handlers::{CRI, CRI_IMAGES, CRI_RUNTIME, HANDLERS, Release, TRANSFER};

/// A configuration as `containerd config dump` prints it: with everything it imports, and all defaults.
#[derive(Debug, Clone)]
pub(crate) struct Dump(Table);

impl Dump {
    /// Asks containerd about a file as it stands on the node. Other than at its start it passes over files that are
    /// imported and are not there.
    pub(crate) fn of(program: &Path, config: &Path) -> Result<Dump, NodeError> {
        Dump::of_copy(program, config, config)
    }

    /// The same of a copy, which errors call by the name of what it is a copy of.
    pub(crate) fn of_copy(program: &Path, copy: &Path, config: &Path) -> Result<Dump, NodeError> {
        Dump::ask(program, &["--config", &copy.display().to_string(), "config", "dump"], |text| {
            text.replace(&*copy.to_string_lossy(), &config.to_string_lossy())
        })
    }

    /// What it does without a file.
    pub(crate) fn without_file(program: &Path) -> Result<Dump, NodeError> {
        Dump::ask(program, &["config", "default"], |text| text)
    }

    fn ask(
        program: &Path,
        words: &[&str],
        named: impl Fn(String) -> String,
    ) -> Result<Dump, NodeError> {
        let command = named(format!("{} {}", program.display(), words.join(" ")));
        let failed =
            |problem| NodeError::Program { command: command.clone(), problem: named(problem) };
        let output = Command::new(program).args(words).stdin(Stdio::null()).output();
        let output = output.map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(failed(said.lines().last().unwrap_or_default().to_owned()));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let table = text.parse().map_err(|error: toml::de::Error| failed(error.to_string()))?;
        Ok(Dump(table))
    }

    #[cfg(feature = "fuzzing")]
    pub(crate) fn from(table: Table) -> Dump {
        Dump(table)
    }

    pub(crate) fn get(&self, path: &[&str]) -> Option<&Value> {
        let (last, tables) = path.split_last()?;
        let mut table = &self.0;
        for key in tables {
            table = table.get(*key)?.as_table()?;
        }
        table.get(*last)
    }

    /// Whether CRI is switched off, as in Docker's packages of containerd.
    pub(crate) fn has_no_cri(&self) -> bool {
        let disabled = self.get(&["disabled_plugins"]).and_then(Value::as_array);
        let names = disabled.into_iter().flatten().filter_map(Value::as_str);
        names.into_iter().any(|name| ["cri", CRI, CRI_RUNTIME, CRI_IMAGES].contains(&name))
    }

    /// Snapshotters that images of other pods are unpacked with, where this is asked without Nacre's lines: those
    /// that are configured, and CRI's own.
    pub(crate) fn other_snapshotters(&self) -> Vec<String> {
        let own = self.get(&["plugins", CRI_IMAGES, "snapshotter"]).and_then(Value::as_str);
        let listed = self.get(&["plugins", TRANSFER, "unpack_config"]).and_then(Value::as_array);
        let listed = listed.into_iter().flatten().filter_map(|entry| entry.get("snapshotter"));
        let listed = listed.filter_map(Value::as_str);
        let mut names: Vec<String> = Vec::new();
        for name in listed.chain([own.unwrap_or("overlayfs")]) {
            if name != "nacre" && !name.is_empty() && !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        names
    }

    /// Where containerd listens.
    pub(crate) fn address(&self) -> Option<&str> {
        self.get(&["grpc", "address"]).and_then(Value::as_str)
    }

    /// Whether pods are led to Nacre, and nothing else of what `before` does has changed. `without` is what it
    /// does without Nacre's lines, where `before` has older ones.
    pub(crate) fn check_added(
        &self,
        before: &Dump,
        without: &Dump,
        release: Release,
    ) -> Result<(), NodeError> {
        for handler in &HANDLERS {
            let path = [
                "plugins",
                plugin(release),
                "containerd",
                "runtimes",
                handler.name,
                "options",
                "ConfigPath",
            ];
            if self.get(&path).and_then(Value::as_str) != Some(handler.config) {
                let problem = format!("the handler {} would be missing", handler.name);
                return Err(NodeError::Difference { problem });
            }
        }
        self.check_only_ours(before, without, release, false)
    }

    /// Whether nothing but what is Nacre's went, of what `with` does.
    pub(crate) fn check_removed(&self, with: &Dump, release: Release) -> Result<(), NodeError> {
        with.check_only_ours(self, self, release, true)
    }

    fn check_only_ours(
        &self,
        other: &Dump,
        without: &Dump,
        release: Release,
        is_removal: bool,
    ) -> Result<(), NodeError> {
        let differences = differences(&other.0, &self.0);
        let foreign: Vec<String> = differences
            .iter()
            .filter(|(path, values)| {
                let had = if is_removal { values.1 } else { values.0 };
                !is_ours(path, values, without, release)
                    && !is_left_over(path, had)
                    && !is_same(path, values)
            })
            .map(|(path, (other, with))| {
                let shown =
                    |value: &Option<&Value>| value.map_or("absent".to_owned(), ToString::to_string);
                let (before, after) = if is_removal { (with, other) } else { (other, with) };
                format!("{}: {} would be {}", path.join("."), shown(before), shown(after))
            })
            .collect();
        if foreign.is_empty() {
            return Ok(());
        }
        let mut problem = foreign[..foreign.len().min(5)].join("; ");
        if foreign.len() > 5 {
            problem = format!("{problem}; and {} more", foreign.len() - 5);
        }
        Err(NodeError::Difference { problem })
    }
}

/// CRI's plugin with the runtimes, as a release calls it.
pub(crate) fn plugin(release: Release) -> &'static str {
    if release == Release::V2 { CRI_RUNTIME } else { CRI }
}

type Values<'a> = (Option<&'a Value>, Option<&'a Value>);

/// Values that are not the same in both, by their path.
fn differences<'a>(before: &'a Table, after: &'a Table) -> BTreeMap<Vec<String>, Values<'a>> {
    let (mut old, mut new) = (BTreeMap::new(), BTreeMap::new());
    flatten(before, &mut Vec::new(), &mut old);
    flatten(after, &mut Vec::new(), &mut new);
    let mut found = BTreeMap::new();
    for path in old.keys().chain(new.keys()) {
        let values = (old.get(path).copied(), new.get(path).copied());
        if values.0 != values.1 {
            found.insert(path.clone(), values);
        }
    }
    found
}

fn flatten<'a>(
    table: &'a Table,
    path: &mut Vec<String>,
    to: &mut BTreeMap<Vec<String>, &'a Value>,
) {
    for (key, value) in table {
        path.push(key.clone());
        match value {
            Value::Table(table) => flatten(table, path, to),
            value => drop(to.insert(path.clone(), value)),
        }
        path.pop();
    }
}

/// Whether a difference is what Nacre's lines are for.
fn is_ours(path: &[String], values: &Values<'_>, without: &Dump, release: Release) -> bool {
    let words: Vec<&str> = path.iter().map(String::as_str).collect();
    let is_handler = |name: &str| HANDLERS.iter().any(|handler| handler.name == name);
    let plugin = plugin(release);
    match words.as_slice() {
        ["imports"] => true,
        ["proxy_plugins", "nacre", ..] => true,
        ["plugins", of, "containerd", "runtimes", name, ..] => *of == plugin && is_handler(name),
        ["plugins", of, "containerd", "disable_snapshot_annotations"] => {
            *of == plugin && release != Release::V2
        }
        ["plugins", of, "containerd", "snapshotter"] => *of == plugin && release == Release::V1_6,
        ["plugins", of, "runtime_platforms", name, ..] => *of == CRI_IMAGES && is_handler(name),
        ["plugins", of, "unpack_config"] => {
            let entries = |value: Option<&Value>| {
                value.and_then(Value::as_array).cloned().unwrap_or_default()
            };
            let after = entries(values.1);
            *of == TRANSFER && entries(without.get(&words)).iter().all(|one| after.contains(one))
        }
        _ => false,
    }
}

/// Whether a value that goes was set by Nacre's lines for an older release of containerd: 1.6's have its snapshotter for
/// all pods, and those of 1.x the annotations. containerd 2 reads both as its own.
fn is_left_over(path: &[String], had: Option<&Value>) -> bool {
    let words: Vec<&str> = path.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["plugins", CRI, "containerd", "snapshotter"] | ["plugins", CRI_IMAGES, "snapshotter"] => {
            had.and_then(Value::as_str) == Some("nacre")
        }
        ["plugins", CRI_IMAGES, "disable_snapshot_annotations"] => {
            had.and_then(Value::as_bool) == Some(false)
        }
        _ => false,
    }
}

/// Whether a runtime is the same with both values. Releases of containerd print different ones for what is not set: an
/// option is absent or zero (of the message that they become part of), and "podsandbox" is 1.7's name for no sandbox mode.
fn is_same(path: &[String], values: &Values<'_>) -> bool {
    let words: Vec<&str> = path.iter().map(String::as_str).collect();
    let ["plugins", CRI | CRI_RUNTIME, "containerd", "runtimes", _, rest @ ..] = words.as_slice()
    else {
        return false;
    };
    let is_nothing = |value: Option<&Value>| match value {
        None => true,
        Some(Value::String(text)) => {
            text.is_empty() || rest == ["sandbox_mode"] && text == "podsandbox"
        }
        Some(Value::Boolean(is_so)) => !is_so,
        Some(Value::Integer(number)) => *number == 0,
        Some(_) => false,
    };
    matches!(rest, ["options", _] | ["sandbox_mode"])
        && is_nothing(values.0)
        && is_nothing(values.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handlers::lines;

    fn dump(text: &str) -> Dump {
        Dump(text.parse().expect("TOML"))
    }

    #[test]
    fn handlers_may_come_and_nothing_else_may_change() {
        for release in Release::ALL {
            let base = "[plugins.'io.containerd.gc.v1.scheduler']\npause_threshold = 0.02\n";
            let ours = lines(release, release.schema(), &["overlayfs".to_owned()]);
            let before = dump(base);
            let after = dump(&format!("{base}{ours}"));
            after.check_added(&before, &before, release).expect("only ours");
            after.check_added(&after, &before, release).expect("nothing at all");
            before.check_removed(&after, release).expect("only ours");
            let error = before.check_added(&before, &before, release).expect_err("no handler");
            assert!(error.to_string().contains("the handler nacre would be missing"), "{error}");
            let hurt = dump(&format!("{}{ours}", base.replace("0.02", "0.5")));
            let error = before.check_removed(&hurt, release).expect_err("something else");
            assert!(error.to_string().contains("pause_threshold: 0.5 would be 0.02"), "{error}");
            let error = hurt.check_added(&before, &before, release).expect_err("something else");
            assert!(error.to_string().contains("pause_threshold: 0.02 would be 0.5"), "{error}");
            let gone = dump(&ours);
            let error = gone.check_added(&before, &before, release).expect_err("something went");
            assert!(error.to_string().contains("0.02 would be absent"), "{error}");
        }
    }

    #[test]
    fn what_an_older_release_needed_may_go_and_must_not_come() {
        let of = |snapshotter: &str, mode: &str, option: &str| {
            dump(&format!(
                "[plugins.'{CRI}'.containerd]\nsnapshotter = '{snapshotter}'\n\
                 runtimes.runc = {{ sandbox_mode = '{mode}', options = {{ {option} }} }}\n"
            ))
        };
        let (old, other) = (of("nacre", "", "CriuPath = ''"), of("overlayfs", "podsandbox", ""));
        let new = |other: &Dump| {
            let mut all = other.0.clone();
            let ours = dump(&lines(Release::V1_7, Release::V1_7.schema(), &[])).0;
            all.insert("proxy_plugins".to_owned(), ours["proxy_plugins"].clone());
            let [all_runtimes, runtimes] = [&mut all, &mut ours.clone()].map(|table| {
                table["plugins"][CRI]["containerd"]["runtimes"]
                    .as_table_mut()
                    .expect("some")
                    .clone()
            });
            let runtimes = all_runtimes.into_iter().chain(runtimes).collect::<Table>();
            all["plugins"][CRI]["containerd"]["runtimes"] = runtimes.into();
            Dump(all)
        };
        let release = Release::V1_7;
        new(&other).check_added(&old, &other, release).expect("it goes");
        other.check_removed(&new(&old), release).expect("it goes");
        new(&old).check_added(&other, &other, release).expect_err("other pods would get Nacre's");
        for wrong in
            [of("native", "", ""), of("overlayfs", "shim", ""), of("overlayfs", "", "a = 1")]
        {
            other.check_removed(&new(&wrong), release).expect_err("it is not Nacre's");
            new(&other).check_added(&wrong, &other, release).expect_err("it is not Nacre's");
        }
    }

    #[test]
    fn other_pods_keep_their_snapshotters() {
        let list = |names: &[&str]| {
            let mut text = String::new();
            for name in names {
                text +=
                    &format!("[[plugins.'{TRANSFER}'.unpack_config]]\nsnapshotter = '{name}'\n");
            }
            dump(&text)
        };
        assert_eq!(list(&["zfs", "nacre", "zfs"]).other_snapshotters(), ["zfs", "overlayfs"]);
        assert_eq!(list(&[]).other_snapshotters(), ["overlayfs"]);
        assert_eq!(
            dump("[plugins.'io.containerd.cri.v1.images']\nsnapshotter='native'")
                .other_snapshotters(),
            ["native"]
        );
        assert!(dump("disabled_plugins = ['cri']").has_no_cri());
    }
}
