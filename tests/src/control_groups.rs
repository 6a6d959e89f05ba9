//! Control groups of a world: it sees those below its own and no others, as if its own were the root.
//!
//! Its daemons are in one below that, for in the second version a group with processes of its own cannot give
//! controllers to those below it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

/// Where control groups are mounted, in either version, inside and outside.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";
/// Names of worlds' groups begin so; the process id of their maker and a number follow.
const PREFIX: &str = "nacre-world-";
/// The daemons' group within the world's.
pub(crate) const DAEMONS: &str = "daemons";
/// How long the kernel may take until killed processes are no longer in a group.
const LAST_PROCESS: Duration = Duration::from_secs(10);
/// How deep pods' groups are: slices of the kubelet's, at most.
const MOST_DEPTH: usize = 6;

/// A world's group in each hierarchy. Dropping this removes them and all below; nobody may be in them.
#[derive(Debug)]
pub(crate) struct ControlGroups(Vec<PathBuf>);

impl ControlGroups {
    /// Makes them for the world of that name, `PROCESS-NUMBER`, and removes those of worlds that were ended
    /// with their maker and could not.
    pub(crate) fn make(name: &str) -> anyhow::Result<ControlGroups> {
        let hierarchies = hierarchies().context("failed to look for control groups")?;
        ensure!(!hierarchies.is_empty(), "no control groups are mounted at {ROOT}");
        let mut groups = ControlGroups(Vec::new());
        for hierarchy in hierarchies {
            remove_abandoned(&hierarchy);
            let group = hierarchy.join(format!("{PREFIX}{name}"));
            for (parent, child) in [(&hierarchy, &group), (&group, &group.join(DAEMONS))] {
                make(parent, child)
                    .with_context(|| format!("failed to make the group {}", child.display()))?;
            }
            groups.0.push(group);
        }
        Ok(groups)
    }

    /// The world's group of each hierarchy.
    pub(crate) fn directories(&self) -> &[PathBuf] {
        &self.0
    }
}

impl Drop for ControlGroups {
    fn drop(&mut self) {
        let started = Instant::now();
        for group in &self.0 {
            while let Err(error) = remove(group) {
                if started.elapsed() > LAST_PROCESS {
                    eprintln!("the control group {} stays: {error}", group.display());
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// The mount point of each hierarchy: one in the second version.
fn hierarchies() -> io::Result<Vec<PathBuf>> {
    let root = PathBuf::from(ROOT);
    if root.join("cgroup.controllers").exists() {
        return Ok(vec![root]);
    }
    let mut found = directories(&root)?;
    found.retain(|directory| directory.join("cgroup.procs").exists());
    Ok(found)
}

fn make(parent: &Path, child: &Path) -> io::Result<()> {
    fs::create_dir(child)?;
    // In the first version a new group has no processors and no memory to run in.
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if !child.join("cgroup.controllers").exists() && child.join(file).exists() {
            fs::write(child.join(file), fs::read(parent.join(file))?)?;
        }
    }
    Ok(())
}

/// Removes a group and those below it; an error if a process is in one.
fn remove(group: &Path) -> io::Result<()> {
    let gone = |done: io::Result<()>| match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    };
    for below in directories(group).unwrap_or_default() {
        remove(&below)?;
    }
    gone(fs::remove_dir(group))
}

/// Who was killed could not remove the groups of its worlds.
fn remove_abandoned(hierarchy: &Path) {
    for group in directories(hierarchy).unwrap_or_default() {
        let name = group.file_name().unwrap_or_default().to_string_lossy();
        let maker = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        let is_left = maker.is_some_and(|maker| !Path::new("/proc").join(maker).exists());
        // A world may outlive its maker: then there are daemons.
        let daemons = fs::read(group.join(DAEMONS).join("cgroup.procs")).unwrap_or_default();
        if is_left && daemons.is_empty() {
            // Another program may be about to do the same.
            let _ = remove(&group);
        }
    }
}

/// Control groups of sandboxes, in all hierarchies that are mounted below `root`.
pub(crate) fn of_sandboxes(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![(root.to_owned(), 0)];
    while let Some((directory, depth)) = waiting.pop() {
        // One that goes away meanwhile is none.
        for below in directories(&directory).unwrap_or_default() {
            if below.file_name().is_some_and(|n| n.to_string_lossy().starts_with("nacre-")) {
                found.push(below.clone());
            }
            if depth < MOST_DEPTH {
                waiting.push((below, depth + 1));
            }
        }
    }
    found
}

/// Directories in a directory; symbolic links are other names of what comes by itself.
fn directories(parent: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}
