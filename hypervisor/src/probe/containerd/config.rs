//! containerd's configuration: the file and what it imports, merged as containerd merges it.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use super::super::host::{Host, Missing, Part};

/// Largest file; the whole default configuration has some 10 KiB.
const MOST_BYTES: usize = 1024 * 1024;
/// Most files.
const MOST_FILES: usize = 64;
/// Most entries of a directory that a pattern is matched against.
const MOST_ENTRIES: usize = 1024;

/// The merged configuration.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Config {
    /// Every file that is part of it, in the order of merging.
    pub(crate) files: Vec<PathBuf>,
    /// `version`; 1 if the first file has none.
    pub(crate) version: i64,
    plugins: Table,
    proxy_plugins: Table,
}

/// Why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Problem {
    /// The first file cannot be read.
    First(Missing),
    /// Something in it, or in what it imports.
    Inside(String),
}

/// A runtime handler of CRI.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Runtime {
    pub(crate) runtime_type: String,
    pub(crate) runtime_path: String,
    pub(crate) snapshotter: String,
    pub(crate) pod_annotations: Vec<String>,
    pub(crate) options: RuntimeOptions,
}

/// Its options.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct RuntimeOptions {
    /// Configuration of the shim.
    #[serde(rename = "ConfigPath")]
    pub(crate) config_path: String,
}

/// A service outside of containerd.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct ProxyPlugin {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) address: String,
}

/// The parts of a file that matter.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Document {
    version: Option<i64>,
    imports: Vec<String>,
    plugins: Table,
    proxy_plugins: Table,
}

impl Config {
    /// Reads the file and all that it imports. containerd merges plugins' sections key by key from 2.0 on;
    /// before, the section of a later file replaces the earlier one's as a whole.
    pub(crate) fn read(host: &dyn Host, path: &Path, by_key: bool) -> Result<Config, Problem> {
        let mut config = Config::default();
        let mut pending = VecDeque::from([path.to_owned()]);
        while let Some(path) = pending.pop_front() {
            if config.files.contains(&path) {
                continue;
            }
            let shown = path.display();
            if config.files.len() == MOST_FILES {
                return Err(Problem::Inside(format!("it imports more than {MOST_FILES} files")));
            }
            let first = config.files.is_empty();
            let bytes = host.read(&path, Part::Whole(MOST_BYTES)).map_err(|error| {
                let missing = Missing::of(&error);
                if first { Problem::First(missing) } else { inside(&shown, missing) }
            })?;
            let text = std::str::from_utf8(&bytes).map_err(|_| inside(&shown, "is not UTF-8"))?;
            let document: Document = toml::from_str(text).map_err(|error| {
                let lines: Vec<String> =
                    error.to_string().lines().map(|line| line.trim().to_owned()).collect();
                inside(&shown, format!("is not valid: {}", lines.join(" ")))
            })?;
            if first {
                config.version = document.version.unwrap_or(1);
            }
            for (id, section) in document.plugins {
                merge(&mut config.plugins, id, section, by_key);
            }
            for (name, section) in document.proxy_plugins {
                config.proxy_plugins.insert(name, section);
            }
            for pattern in &document.imports {
                pending.extend(resolve(host, &path, pattern)?);
                if pending.len() > MOST_ENTRIES {
                    return Err(Problem::Inside("it imports too many files".to_owned()));
                }
            }
            config.files.push(path);
        }
        Ok(config)
    }

    /// A value of a plugin's section.
    fn value(&self, plugin: &str, keys: &[&str]) -> Option<&Value> {
        let (last, keys) = keys.split_last()?;
        let mut table = self.plugins.get(plugin)?.as_table()?;
        for key in keys {
            table = table.get(*key)?.as_table()?;
        }
        table.get(*last)
    }

    /// A text in a plugin's section; empty if there is none.
    pub(crate) fn text(&self, plugin: &str, keys: &[&str]) -> &str {
        self.value(plugin, keys).and_then(Value::as_str).unwrap_or_default()
    }

    /// A switch in a plugin's section.
    pub(crate) fn switch(&self, plugin: &str, keys: &[&str]) -> Option<bool> {
        self.value(plugin, keys).and_then(Value::as_bool)
    }

    /// The runtime handlers in a plugin's section, sorted by name.
    pub(crate) fn runtimes(&self, plugin: &str) -> Result<Vec<(String, Runtime)>, String> {
        let Some(runtimes) = self.value(plugin, &["containerd", "runtimes"]) else {
            return Ok(Vec::new());
        };
        let runtimes = runtimes.as_table().ok_or("containerd.runtimes is no table")?;
        let runtime = |(name, value): (&String, &Value)| {
            let runtime = Runtime::deserialize(value.clone());
            let wrong = |error: toml::de::Error| format!("runtime {name}: {}", error.message());
            Ok((name.clone(), runtime.map_err(wrong)?))
        };
        runtimes.iter().map(runtime).collect()
    }

    /// A service by its name.
    pub(crate) fn proxy_plugin(&self, name: &str) -> Option<ProxyPlugin> {
        ProxyPlugin::deserialize(self.proxy_plugins.get(name)?.clone()).ok()
    }
}

fn inside(shown: &dyn std::fmt::Display, problem: impl std::fmt::Display) -> Problem
where
{
    Problem::Inside(format!("{shown} {problem}"))
}

/// Tables key by key; arrays are joined; any other value is replaced.
fn merge(to: &mut Table, key: String, value: Value, by_key: bool) {
    match (to.get_mut(&key), value) {
        (Some(Value::Table(old)), Value::Table(new)) if by_key => {
            for (key, value) in new {
                merge(old, key, value, by_key);
            }
        }
        (Some(Value::Array(old)), Value::Array(new)) if by_key => {
            for value in new {
                if !old.contains(&value) {
                    old.push(value);
                }
            }
        }
        (_, value) => {
            to.insert(key, value);
        }
    }
}

/// The files of an import: relative to the file that has it, `*` for any characters of a name.
fn resolve(host: &dyn Host, parent: &Path, pattern: &str) -> Result<Vec<PathBuf>, Problem> {
    let path = parent.parent().unwrap_or(parent).join(pattern);
    if !pattern.contains('*') {
        return Ok(vec![path]);
    }
    let unknown = || Problem::Inside(format!("the import {pattern:?} is a pattern of directories"));
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str()))
    else {
        return Err(unknown());
    };
    if directory.to_string_lossy().contains('*') {
        return Err(unknown());
    }
    let names = match host.list(directory, MOST_ENTRIES) {
        Ok(names) => names,
        // A pattern that matches nothing is no mistake.
        Err(error) if Missing::of(&error) == Missing::Absent => return Ok(Vec::new()),
        Err(error) => return Err(inside(&directory.display(), Missing::of(&error))),
    };
    let matching =
        names.into_iter().filter(|found| found.to_str().is_some_and(|f| matches(name, f)));
    Ok(matching.map(|found| directory.join(found)).collect())
}

/// Whether a name is that of a pattern in which `*` stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    let mut pieces = pattern.split('*');
    let Some(mut rest) = pieces.next().and_then(|first| name.strip_prefix(first)) else {
        return false;
    };
    let mut pieces = pieces.peekable();
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            return rest.ends_with(piece);
        }
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, expected) in [
            ("*.toml", "nacre.toml", true),
            ("*.toml", ".toml", true),
            ("*.toml", "nacre.toml~", false),
            ("nacre*", "nacre.toml", true),
            ("a*b*c", "axxbxxc", true),
            ("a*b*c", "axxc", false),
            ("a*a", "a", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
