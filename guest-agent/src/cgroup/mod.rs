//! Version 2 control groups: one for each container, all below `/nacre`.

mod limits;
mod stats;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

pub(crate) use limits::Limits;

/// Where the agent mounted the hierarchy.
const HIERARCHY: &str = "/sys/fs/cgroup";
/// The group of all containers.
const CONTAINERS: &str = "nacre";
/// What containers can be limited in. The kernel may lack some.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "memory", "pids", "io", "hugetlb"];

/// Longest wait for killed processes to be gone, or for a group to freeze.
const DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// Groups that a container has made within its own and that are looked at.
const MOST_WITHIN: usize = 256;

/// The control group of one container.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup {
    path: PathBuf,
}

/// Makes the group of all containers, with every controller that the kernel has.
pub(crate) fn prepare() -> io::Result<()> {
    let hierarchy = Path::new(HIERARCHY);
    let containers = hierarchy.join(CONTAINERS);
    match fs::create_dir(&containers) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    for group in [hierarchy, &containers] {
        let available = fs::read_to_string(group.join("cgroup.controllers"))?;
        let wanted = available.split_ascii_whitespace().filter(|name| CONTROLLERS.contains(name));
        for controller in wanted {
            fs::write(group.join("cgroup.subtree_control"), format!("+{controller}"))?;
        }
    }
    Ok(())
}

/// Kills every process of every container.
pub(crate) fn kill_all() -> io::Result<()> {
    fs::write(Path::new(HIERARCHY).join(CONTAINERS).join("cgroup.kill"), "1")
}

impl Cgroup {
    /// Makes the group of a container. `id` is a checked container name.
    pub(crate) fn create(id: &str) -> io::Result<Self> {
        let path = Path::new(HIERARCHY).join(CONTAINERS).join(id);
        fs::create_dir(&path)?;
        Ok(Self { path })
    }

    /// Path within the hierarchy, as the OCI specification has it.
    pub(crate) fn oci_path(id: &str) -> String {
        format!("/{CONTAINERS}/{id}")
    }

    /// Directory of the group.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this group or one within it has the identifier `id`, which is the inode of its directory.
    pub(crate) fn holds(&self, id: u64) -> bool {
        let mut budget = MOST_WITHIN;
        holds(&self.path, id, &mut budget)
    }

    /// Sets what `limits` has a value for.
    pub(crate) fn apply(&self, limits: &Limits) -> Result<(), String> {
        for (file, value) in limits.settings() {
            let path = self.path.join(file);
            fs::write(&path, value)
                .map_err(|e| format!("failed to set {file} of the container to {value:?}: {e}"))?;
        }
        Ok(())
    }

    /// When memory runs out all of a container is killed, not one process of it: Kubernetes' choice
    /// for version 2.
    pub(crate) fn kill_as_one_when_out_of_memory(&self) -> io::Result<()> {
        match self.write("memory.oom.group", "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Stops every process of the group, and waits until all have stopped.
    pub(crate) async fn freeze(&self) -> io::Result<()> {
        self.write("cgroup.freeze", "1")?;
        self.wait_for_event("frozen 1").await
    }

    /// Lets the group go on.
    pub(crate) async fn thaw(&self) -> io::Result<()> {
        self.write("cgroup.freeze", "0")?;
        self.wait_for_event("frozen 0").await
    }

    /// Kills every process of the group.
    pub(crate) fn kill(&self) -> io::Result<()> {
        self.write("cgroup.kill", "1")
    }

    /// Kills what is left, waits until it is gone, and removes the group.
    pub(crate) async fn remove(&self) -> io::Result<()> {
        match self.kill() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result?,
        }
        self.wait_for_event("populated 0").await?;
        let end = Instant::now() + DEADLINE;
        loop {
            match fs::remove_dir(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                // The last process may still be on its way out.
                Err(error)
                    if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < end =>
                {
                    sleep(POLL).await;
                }
                result => return result,
            }
        }
    }

    async fn wait_for_event(&self, line: &str) -> io::Result<()> {
        let end = Instant::now() + DEADLINE;
        loop {
            let events = fs::read_to_string(self.path.join("cgroup.events"))?;
            if events.lines().any(|event| event == line) {
                return Ok(());
            }
            if Instant::now() > end {
                let text = format!("waited {} seconds for {line:?}", DEADLINE.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            sleep(POLL).await;
        }
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        fs::write(self.path.join(file), value)
    }
}

fn holds(group: &Path, id: u64, budget: &mut usize) -> bool {
    if fs::metadata(group).is_ok_and(|group| group.ino() == id) {
        return true;
    }
    let Ok(entries) = fs::read_dir(group) else { return false };
    for entry in entries.flatten() {
        if *budget > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            *budget -= 1;
            if holds(&entry.path(), id, budget) {
                return true;
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_within_a_container_s_is_the_container_s() {
        let hierarchy = tempfile::tempdir().unwrap();
        let own = Cgroup { path: hierarchy.path().join("own") };
        let other = Cgroup { path: hierarchy.path().join("other") };
        let within = own.path.join("a/b");
        fs::create_dir_all(&within).unwrap();
        fs::create_dir(&other.path).unwrap();
        fs::write(own.path.join("file"), "").unwrap();
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        assert!(own.holds(inode(&own.path)) && own.holds(inode(&within)));
        assert!(!own.holds(inode(&other.path)) && !own.holds(inode(&own.path.join("file"))));
    }
}
