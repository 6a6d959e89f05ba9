//! What containers have written to their roots, as their guests say: `usage-<container id>` in the run
//! directory of the sandbox. The shim writes it, the snapshotter tells containerd.
//!
//! A file holds two decimal numbers, bytes and inodes. The numbers are a guest's word and may be any.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::directory::names;

/// Before the id of a container.
const PREFIX: &str = "usage-";
/// Longest id of a container.
const LONGEST_ID: usize = 128;
/// Longest file: two numbers of 64 bits.
const LONGEST: u64 = 64;
/// Most that is believed of a guest, a pebibyte and as many inodes: whoever adds figures up does not overflow.
const MOST: u64 = 1 << 50;
/// Most entries of a run directory that are looked at.
const MOST_ENTRIES: usize = 1024;

/// What a container has written to its root.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes that are taken.
    pub bytes: u64,
    /// Files, directories and whatever else has a name.
    pub inodes: u64,
}

/// Puts down what a container uses, in place of what was there before.
///
/// # Errors
/// The id cannot be a file name, or the system refuses: for example, the directory is gone.
pub fn write(run_dir: &Path, container: &str, usage: Usage) -> io::Result<()> {
    let path = path_of(run_dir, container)?;
    let beside = run_dir.join(format!(".{PREFIX}{container}"));
    fs::write(&beside, format!("{} {}\n", usage.bytes.min(MOST), usage.inodes.min(MOST)))?;
    fs::rename(&beside, &path)
}

/// Removes what was put down for a container; it is no error if nothing was.
///
/// # Errors
/// The id cannot be a file name, or the system refuses.
pub fn remove(run_dir: &Path, container: &str) -> io::Result<()> {
    match fs::remove_file(path_of(run_dir, container)?) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// What the containers of all sandboxes use, by their ids. What cannot be read is left out: it is about to
/// go, or not a number.
#[must_use]
pub fn read_all(root: &Path) -> HashMap<String, Usage> {
    let mut found = HashMap::new();
    for sandbox in names(root).unwrap_or_default() {
        let Ok(entries) = fs::read_dir(root.join(sandbox)) else { continue };
        for entry in entries.take(MOST_ENTRIES).flatten() {
            let name = entry.file_name();
            let container = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
            if let Some(container) = container
                && let Ok(usage) = read(&entry.path())
            {
                found.insert(container.to_owned(), usage);
            }
        }
    }
    found
}

fn read(path: &Path) -> io::Result<Usage> {
    let mut text = String::new();
    File::open(path)?.take(LONGEST).read_to_string(&mut text)?;
    let numbers = text.trim_end().split_once(' ');
    let numbers = numbers.and_then(|(bytes, inodes)| {
        Some(Usage { bytes: bytes.parse().ok()?, inodes: inodes.parse().ok()? })
    });
    numbers.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn path_of(run_dir: &Path, container: &str) -> io::Result<PathBuf> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if container.is_empty() || container.len() > LONGEST_ID || !container.chars().all(plain) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(run_dir.join(format!("{PREFIX}{container}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_until_it_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let (one, two) = (root.path().join("one"), root.path().join("two"));
        fs::create_dir(&one).unwrap();
        fs::create_dir(&two).unwrap();
        let usage = |bytes, inodes| Usage { bytes, inodes };
        write(&one, "a", usage(1, 2)).unwrap();
        write(&one, "a", usage(4096, 3)).unwrap();
        write(&two, "b", usage(u64::MAX, u64::MAX)).unwrap();
        let all = read_all(root.path());
        assert_eq!(all, [("a".into(), usage(4096, 3)), ("b".into(), usage(MOST, MOST))].into());
        remove(&one, "a").unwrap();
        remove(&one, "a").unwrap();
        assert!(!read_all(root.path()).contains_key("a"));
        assert_eq!(fs::read_dir(&one).unwrap().count(), 0, "nothing is left beside");
        assert!(read_all(&root.path().join("absent")).is_empty());
    }

    #[test]
    fn what_is_no_usage_counts_for_nothing() {
        let root = tempfile::tempdir().unwrap();
        let run_dir = root.path().join("one");
        fs::create_dir(&run_dir).unwrap();
        for (name, text) in [
            ("usage-a", ""),
            ("usage-b", "1"),
            ("usage-c", "-1 2"),
            ("usage-d", "1 2 3"),
            ("usage-e", &"1".repeat(100)),
            ("other", "1 2"),
        ] {
            fs::write(run_dir.join(name), text).unwrap();
        }
        fs::create_dir(run_dir.join("usage-f")).unwrap();
        assert_eq!(read_all(root.path()), HashMap::new());
        for id in ["", "../x", "a/b", &"x".repeat(129)] {
            assert!(write(&run_dir, id, Usage::default()).is_err(), "{id}");
        }
    }
}
