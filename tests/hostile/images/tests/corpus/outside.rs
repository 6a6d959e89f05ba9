//! What lies outside a store, down to the last attribute: it must be the same after a pull.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use nacre_hostile_images::{OUTSIDE, STORE, WORLD};

/// Puts the files there that cases aim at.
pub(crate) fn plant() -> anyhow::Result<()> {
    let outside = Path::new(OUTSIDE);
    std::fs::create_dir_all(outside.join("directory"))?;
    for (name, mode) in [("file", 0o644), ("setuid", 0o4755), ("directory/inner", 0o600)] {
        let path = outside.join(name);
        std::fs::write(&path, "untouched")?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
    }
    symlink("file", outside.join("link"))?;
    // Where relative paths from a tree in the store end up, one level after the other.
    for name in ["canary", "passwd"] {
        std::fs::write(Path::new(WORLD).join(name), "untouched")?;
    }
    Ok(())
}

/// By path: everything that is known of a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Snapshot(BTreeMap<PathBuf, String>);

impl Snapshot {
    /// Everything in the world but the store, and the names at the system's root.
    pub(crate) fn take() -> anyhow::Result<Self> {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir("/")? {
            files.insert(entry?.path(), String::new());
        }
        walk(Path::new(WORLD), &mut files)?;
        Ok(Self(files))
    }

    /// What differs, in words.
    pub(crate) fn changes(&self, later: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        for (path, before) in &self.0 {
            match later.0.get(path) {
                None => changes.push(format!("{} is gone", path.display())),
                Some(after) if after != before => {
                    changes.push(format!("{} was changed: {before} -> {after}", path.display()));
                }
                Some(_) => {}
            }
        }
        let new = later.0.keys().filter(|path| !self.0.contains_key(*path));
        changes.extend(new.map(|path| format!("{} is new", path.display())));
        changes
    }
}

fn walk(directory: &Path, files: &mut BTreeMap<PathBuf, String>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path == Path::new(STORE) {
            continue;
        }
        let stat = path.symlink_metadata()?;
        let content = if stat.is_file() { std::fs::read(&path)? } else { Vec::new() };
        let mut attributes = vec![0; 4096];
        let len = rustix::fs::llistxattr(&path, &mut attributes)?;
        let described = format!(
            "mode {:o}, owner {}:{}, {} links, {} bytes, device {}, modified {}.{}, changed {}.{}, \
             content {:?}, attributes {:?}",
            stat.mode(),
            stat.uid(),
            stat.gid(),
            stat.nlink(),
            stat.size(),
            stat.rdev(),
            stat.mtime(),
            stat.mtime_nsec(),
            stat.ctime(),
            stat.ctime_nsec(),
            String::from_utf8_lossy(&content),
            String::from_utf8_lossy(&attributes[..len]),
        );
        files.insert(path.clone(), described);
        if stat.is_dir() {
            walk(&path, files)?;
        }
    }
    Ok(())
}

/// Files and trees that a failed or forgotten pull left in the store.
pub(crate) fn leftovers() -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut waiting = vec![PathBuf::from(STORE)];
    while let Some(directory) = waiting.pop() {
        // What is being removed may be gone before it is looked at.
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            let name = path.file_name().unwrap_or_default().as_bytes();
            let is_layer = name.len() >= 64 && name.iter().all(u8::is_ascii_hexdigit);
            let staged = directory.ends_with("staging");
            let Ok(stat) = path.symlink_metadata() else { continue };
            if is_layer || staged || !stat.is_dir() {
                found.push(path);
            } else {
                waiting.push(path);
            }
        }
    }
    Ok(found)
}

/// Most memory this process ever had, in KiB.
pub(crate) fn peak_kib() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    Ok(line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(u64::MAX))
}
