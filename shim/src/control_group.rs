//! The control group of a pod's machine: `nacre-<sandbox id>` within the pod's own, beside those that a
//! runtime without machines would make for the pod's containers.
//!
//! This shim enters it before it starts anything for the pod, and so everything is in it that the pod costs the
//! node: QEMU with the guest's memory, its threads and what it reads and writes, the shim itself and the
//! emulated processor. The limits that the kubelet gives the pod hold for all of it, and statistics of the
//! pod's group count it.
//!
//! containerd says where the group belongs, by the `linux.cgroupsPath` of the pod's first container. Without
//! one (containerd's `disable_cgroup`) there is none.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use oci_spec::runtime::Spec;

use crate::error::{Code, Coded};
use crate::files::read_text;

/// Where control groups are, in either version.
pub(crate) const CONTROL_GROUPS: &str = "/sys/fs/cgroup";

/// Most processes and threads of a pod on the host. A machine has one a processor, at most 64 for its disks, and
/// few more; the shim has at most 512 that wait for files.
const MOST_TASKS: u32 = 2048;

/// How long the last process of a group may take to disappear.
const LAST_PROCESS: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(10);

/// Largest file that is read here, in bytes.
const MOST_BYTES: u64 = 64 * 1024;

/// Why a pod's machine has no control group.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlGroupError {
    #[error(
        "linux.cgroupsPath {0:?} names no control group: it is a path without \"..\", or SLICE:PREFIX:NAME"
    )]
    Path(PathBuf),
    #[error("the control group {path} cannot be {what}: {cause}")]
    Io { path: PathBuf, what: &'static str, cause: io::Error },
}

impl Coded for ControlGroupError {
    fn code(&self) -> Code {
        match self {
            ControlGroupError::Path(_) => Code::INVALID_ARGUMENT,
            ControlGroupError::Io { .. } => Code::UNAVAILABLE,
        }
    }
}

/// The group of one pod's machine: a directory in each hierarchy.
#[derive(Debug)]
pub(crate) struct ControlGroup {
    /// One, or in the first version one for each controller.
    places: Vec<Place>,
}

#[derive(Debug)]
struct Place {
    /// Where the hierarchy is mounted.
    hierarchy: PathBuf,
    /// The group's directory.
    directory: PathBuf,
    /// The group of this process before.
    origin: PathBuf,
}

/// The group of a pod by the specification of its first container; none where that has no path.
pub(crate) fn of_pod(spec: &Spec, id: &str) -> Result<Option<ControlGroup>, ControlGroupError> {
    let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
    let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else {
        tracing::info!(
            "sandbox {id} has no cgroupsPath: its machine is in no control group of its own"
        );
        return Ok(None);
    };
    ControlGroup::plan(Path::new(CONTROL_GROUPS), path, id).map(Some)
}

impl ControlGroup {
    /// Where the group of sandbox `id` will be, whose first container has the given `linux.cgroupsPath`.
    /// Nothing is made yet: [`ControlGroup::directories`] are to be recorded first.
    pub(crate) fn plan(
        root: &Path,
        container: &Path,
        id: &str,
    ) -> Result<ControlGroup, ControlGroupError> {
        let pod = pod_group(container)?;
        let name = format!("nacre-{id}");
        let own = read_text(Path::new("/proc/self/cgroup"), MOST_BYTES).unwrap_or_default();
        let mut places = Vec::new();
        for (hierarchy, controllers) in hierarchies(root)? {
            let directory = hierarchy.join(&pod).join(&name);
            let origin = hierarchy.join(path_in(&own, &controllers).unwrap_or_default());
            places.push(Place { hierarchy, directory, origin });
        }
        Ok(ControlGroup { places })
    }

    /// The directories of the group.
    pub(crate) fn directories(&self) -> Vec<PathBuf> {
        self.places.iter().map(|place| place.directory.clone()).collect()
    }

    /// Makes the group and moves this process into it. What fails leaves no group; groups above it that were missing
    /// stay, since others may have begun to use them.
    pub(crate) fn enter(&self) -> Result<(), ControlGroupError> {
        let entered = self.places.iter().try_for_each(Place::enter);
        if entered.is_err() {
            self.leave();
        } else {
            for lacking in self.lacking() {
                tracing::warn!("the control group of the pod's machine has no {lacking}");
            }
        }
        entered
    }

    /// What this host's control groups do not do for the pod, since the controller is not there for this group.
    fn lacking(&self) -> Vec<&'static str> {
        let has = |files: [&str; 2]| {
            let mut all =
                self.places.iter().flat_map(|place| files.map(|file| place.directory.join(file)));
            all.any(|file| file.exists())
        };
        let tasks = "pids controller: the number of its threads on this host is not bounded";
        let memory = "memory controller: its memory is not counted apart, and the end of a machine that \
                      ran out of it will not say so";
        let tasks = (!has(["pids.max", "pids.max"])).then_some(tasks);
        let memory = (!has(["memory.events", "memory.oom_control"])).then_some(memory);
        tasks.into_iter().chain(memory).collect()
    }

    /// Moves this process back to where it was, and removes the group. What is still in it is killed: nothing
    /// of a pod outlives its sandbox.
    pub(crate) fn leave(&self) {
        for place in &self.places {
            if let Err(error) = place.leave() {
                tracing::warn!("{error}");
            }
        }
    }

    /// Whether the kernel has killed a process of the group because memory ran out.
    pub(crate) fn was_out_of_memory(&self) -> bool {
        self.places.iter().any(|place| {
            ["memory.events", "memory.oom_control"].iter().any(|file| {
                let text = read_text(&place.directory.join(file), MOST_BYTES).unwrap_or_default();
                let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
                count.is_some_and(|count| count.trim() != "0")
            })
        })
    }
}

impl Place {
    fn enter(&self) -> Result<(), ControlGroupError> {
        self.make().map_err(|cause| self.failed("made", cause))?;
        // Absent where the hierarchy has not that controller.
        let most = self.directory.join("pids.max");
        if most.exists() {
            fs::write(most, MOST_TASKS.to_string())
                .map_err(|cause| self.failed("limited", cause))?;
        }
        join(&self.directory).map_err(|cause| self.failed("entered", cause))
    }

    /// Makes the directory, and those above it that are missing.
    fn make(&self) -> io::Result<()> {
        let below = self.directory.strip_prefix(&self.hierarchy).map_err(io::Error::other)?;
        let mut group = self.hierarchy.clone();
        for name in below {
            // Otherwise the pod's limits hold all the same, but nothing is counted for this group alone.
            for controller in ["+memory", "+cpu", "+pids", "+io"] {
                let _ = fs::write(group.join("cgroup.subtree_control"), controller);
            }
            let parent = group.clone();
            group.push(name);
            match fs::create_dir(&group) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            // In the first version a new group has no processors and no memory to run in.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                inherit(&parent.join(file), &group.join(file))?;
            }
        }
        Ok(())
    }

    fn leave(&self) -> Result<(), ControlGroupError> {
        if !self.directory.exists() {
            return Ok(());
        }
        // The group that this process came from may be gone: containerd may have been started anew.
        let left = join(&self.origin).or_else(|_| join(&self.hierarchy));
        left.map_err(|cause| self.failed("left", cause))?;
        let deadline = Instant::now() + LAST_PROCESS;
        loop {
            match fs::remove_dir(&self.directory) {
                Ok(()) => return Ok(()),
                Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(busy) if Instant::now() > deadline => return Err(self.failed("removed", busy)),
                Err(_) => self.kill_the_rest(),
            }
            sleep(POLL);
        }
    }

    fn kill_the_rest(&self) {
        let procs = self.directory.join("cgroup.procs");
        for pid in read_text(&procs, MOST_BYTES).unwrap_or_default().lines() {
            let pid = pid.parse().ok().and_then(rustix::process::Pid::from_raw);
            if let Some(pid) = pid.filter(|pid| *pid != rustix::process::getpid()) {
                tracing::warn!("process {} was left in the pod's control group", pid.as_raw_pid());
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }

    fn failed(&self, what: &'static str, cause: io::Error) -> ControlGroupError {
        ControlGroupError::Io { path: self.directory.clone(), what, cause }
    }
}

/// Moves this process, with all its threads.
fn join(group: &Path) -> io::Result<()> {
    // Not made where it is absent: there it would be a file like any other.
    let mut procs = File::options().write(true).open(group.join("cgroup.procs"))?;
    procs.write_all(b"0")
}

/// Gives a setting that is empty the parent's value.
fn inherit(parent: &Path, child: &Path) -> io::Result<()> {
    // In the second version an empty one means the parent's.
    if child.with_file_name("cgroup.controllers").exists() || !child.exists() {
        return Ok(());
    }
    match read_text(child, MOST_BYTES)?.trim() {
        "" => fs::write(child, read_text(parent, MOST_BYTES)?),
        _ => Ok(()),
    }
}

/// Each hierarchy that is mounted, and how `/proc/self/cgroup` calls it.
fn hierarchies(root: &Path) -> Result<Vec<(PathBuf, String)>, ControlGroupError> {
    let failed = |cause| ControlGroupError::Io { path: root.to_owned(), what: "listed", cause };
    if root.join("cgroup.controllers").exists() {
        return Ok(vec![(root.to_owned(), String::new())]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(root).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // A symbolic link, such as cpu, is another name of one that comes by itself, such as cpu,cpuacct.
        let is_directory = entry.file_type().map_err(failed)?.is_dir();
        if !is_directory || !entry.path().join("cgroup.procs").exists() {
            continue;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        let controllers = match name.as_str() {
            "systemd" => "name=systemd".to_owned(),
            "unified" => String::new(),
            _ => name,
        };
        found.push((entry.path(), controllers));
    }
    found.sort();
    Ok(found)
}

/// A process's group in one hierarchy, relative to it (cgroups(7), `/proc/pid/cgroup`).
fn path_in(own: &str, controllers: &str) -> Option<PathBuf> {
    let path = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        (fields.next()? == controllers).then(|| fields.next()).flatten()
    })?;
    Some(PathBuf::from(path.trim_start_matches('/')))
}

/// The pod's group, relative to the hierarchy, of the `linux.cgroupsPath` of one of its containers: a path,
/// or `SLICE:PREFIX:NAME` where systemd makes the groups. Empty where the container is in no pod's.
pub(crate) fn pod_group(container: &Path) -> Result<PathBuf, ControlGroupError> {
    let wrong = || ControlGroupError::Path(container.to_owned());
    let text = container.to_str().ok_or_else(wrong)?;
    let pod = match text.split(':').collect::<Vec<_>>()[..] {
        [path] => Path::new(path).parent().ok_or_else(wrong)?.to_owned(),
        [slice, _, _] => slice_path(slice).ok_or_else(wrong)?,
        _ => return Err(wrong()),
    };
    let mut relative = PathBuf::new();
    for component in pod.components() {
        match component {
            std::path::Component::Normal(name) => relative.push(name),
            std::path::Component::RootDir | std::path::Component::CurDir => {}
            _ => return Err(wrong()),
        }
    }
    Ok(relative)
}

/// Where a slice is: `a-b.slice` is within `a.slice` (systemd.slice(5)).
fn slice_path(slice: &str) -> Option<PathBuf> {
    let name = slice.strip_suffix(".slice").filter(|name| !name.contains('/'))?;
    let mut path = PathBuf::new();
    for (at, _) in name.match_indices('-').chain([(name.len(), "")]) {
        path.push(format!("{}.slice", &name[..at]));
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_pod_s_group_is_the_one_around_its_containers() {
        let group = |path: &str| pod_group(Path::new(path)).ok();
        let pod = "kubepods/burstable/pod12ab";
        assert_eq!(group(&format!("/{pod}/0123")), Some(pod.into()));
        let slice = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice";
        assert_eq!(group("kubepods-burstable-pod1_2.slice:cri-containerd:01"), Some(slice.into()));
        for alone in ["alone", "/alone"] {
            assert_eq!(group(alone), Some("".into()), "{alone:?}");
        }
        for odd in ["", "/", "../x/y", "/a/../../b/c", "a:b", "a/b.slice:c:d", "a:b:c:d"] {
            assert_eq!(group(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn the_groups_of_this_process_are_read_by_hierarchy() {
        let own = "9:name=systemd:/a\n4:cpu,cpuacct:/b/c\n3:memory:/\n0::/d\n";
        for (controllers, path) in
            [("name=systemd", "a"), ("cpu,cpuacct", "b/c"), ("memory", ""), ("", "d")]
        {
            assert_eq!(path_in(own, controllers), Some(path.into()));
        }
        assert_eq!(path_in(own, "cpu"), None);
        assert_eq!(path_in("nonsense", "memory"), None);
    }

    #[test]
    fn hierarchies_of_the_first_version_come_once_each() {
        let root = tempfile::tempdir().unwrap();
        for name in ["cpu,cpuacct", "memory", "systemd", "unified", "not-a-hierarchy"] {
            fs::create_dir(root.path().join(name)).unwrap();
            if name != "not-a-hierarchy" {
                fs::write(root.path().join(name).join("cgroup.procs"), "").unwrap();
            }
        }
        std::os::unix::fs::symlink("cpu,cpuacct", root.path().join("cpu")).unwrap();
        let named = |root: &Path| -> Vec<String> {
            hierarchies(root).unwrap().into_iter().map(|(_, name)| name).collect()
        };
        assert_eq!(named(root.path()), ["cpu,cpuacct", "memory", "name=systemd", ""]);
        fs::write(root.path().join("cgroup.controllers"), "memory").unwrap();
        assert_eq!(named(root.path()), [""]);
    }

    /// Set where this test is run once more, as a process that enters a group.
    const PLACE: &str = "NACRE_TEST_CONTROL_GROUP";

    #[test]
    fn everything_started_after_is_in_it_and_nothing_stays() {
        let test = "control_group::tests::everything_started_after_is_in_it_and_nothing_stays";
        let Ok(id) = std::env::var(PLACE) else {
            // Entering concerns the whole process: another one does it.
            let id = format!("unit-{}", std::process::id());
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", test, "--nocapture"])
                .env(PLACE, &id)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            print!("{said}");
            assert!(output.status.success(), "{said}");
            return;
        };
        let container = format!("/nacre-{id}-pod/{id}");
        let root = Path::new(CONTROL_GROUPS);
        let group = ControlGroup::plan(root, Path::new(&container), &id).unwrap();
        let before = fs::read_to_string("/proc/self/cgroup").unwrap();
        if let Err(error) = group.enter() {
            println!("SKIPPED: no control groups can be made here: {error}");
            return;
        }
        let mut machine = Command::new("sleep").arg("600").spawn().unwrap();
        let groups = fs::read_to_string(format!("/proc/{}/cgroup", machine.id())).unwrap();
        for line in groups.lines() {
            assert!(line.ends_with(&format!(":/nacre-{id}-pod/nacre-{id}")), "{groups}");
        }
        assert_eq!(group.directories().len(), groups.lines().count());
        let limits = group.directories().into_iter().map(|group| group.join("pids.max"));
        let limits: Vec<_> = limits.filter(|file| file.exists()).collect();
        assert!(!limits.is_empty());
        assert_eq!(group.lacking(), Vec::<&str>::new());
        for file in limits {
            assert_eq!(fs::read_to_string(file).unwrap().trim(), MOST_TASKS.to_string());
        }
        assert!(!group.was_out_of_memory());
        let reaper = std::thread::spawn(move || machine.wait().unwrap());
        group.leave();
        assert!(!reaper.join().unwrap().success(), "what was left in the group is killed");
        assert_eq!(fs::read_to_string("/proc/self/cgroup").unwrap(), before);
        for directory in group.directories() {
            assert!(!directory.exists(), "{}", directory.display());
            fs::remove_dir(directory.parent().unwrap()).unwrap();
        }
    }

    #[test]
    fn controllers_that_are_missing_are_told() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.controllers"), "cpu").unwrap();
        let group = ControlGroup::plan(root.path(), Path::new("/pod/x"), "x").unwrap();
        let directory = root.path().join("pod/nacre-x");
        fs::create_dir_all(&directory).unwrap();
        let lacking = group.lacking();
        assert!(lacking[0].starts_with("pids") && lacking[1].starts_with("memory"), "{lacking:?}");
        fs::write(directory.join("pids.max"), "").unwrap();
        fs::write(directory.join("memory.events"), "").unwrap();
        assert!(group.lacking().is_empty());
    }

    #[test]
    fn what_cannot_be_entered_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("memory")).unwrap();
        fs::write(root.path().join("memory/cgroup.procs"), "").unwrap();
        // A file where the group of the pod should be.
        fs::write(root.path().join("memory/pod"), "").unwrap();
        let group = ControlGroup::plan(root.path(), Path::new("/pod/x"), "x").unwrap();
        let error = group.enter().unwrap_err().to_string();
        assert!(error.contains("memory/pod/nacre-x cannot be made"), "{error}");
        assert!(!root.path().join("memory/pod/nacre-x").exists());
    }
}
