//! Versions side by side: a pod keeps the one that it was started with, and what nothing uses goes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::bundle::PREFIX;
use crate::files::Root;
use crate::lock::Lock;
use crate::{NodeError, Step};

/// The link to the version that new pods get.
pub(crate) const CURRENT: &str = "/opt/nacre/current";
/// Links that give the version's files the names that configurations have.
pub(crate) const LINKS: [(&str, &str); 2] =
    [("/opt/nacre/bin", "current/bin"), ("/opt/nacre/share", "current/share")];
/// Longest list of a process's mappings that is looked at, in bytes.
const MOST_MAPS: u64 = 4 << 20;

/// A version that stays because something runs from it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Kept {
    /// Its name.
    pub version: String,
    /// Processes that use files of it.
    pub processes: Vec<i32>,
}

/// Removes the versions but the current one from which nothing runs any more; returns what it did, and those that
/// stay. Without a current one all stay: a node whose installation is not complete is none of its business.
///
/// # Errors
/// [`NodeError::Busy`] while somebody installs: then the current version is not to be relied on.
pub fn collect_unused(root: &Root, dry: bool) -> Result<(Vec<Step>, Vec<Kept>), NodeError> {
    if names(root)?.len() < 2 {
        return Ok((Vec::new(), Vec::new()));
    }
    let _lock = if dry { None } else { Some(Lock::take(root)?) };
    match current(root) {
        Some(current) => collect(root, Some(&current), dry),
        None => Ok((Vec::new(), Vec::new())),
    }
}

/// Name of the version that new pods get.
pub(crate) fn current(root: &Root) -> Option<String> {
    let target = fs::read_link(root.name(CURRENT).ok()?).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

/// Removes the versions but `current` from which nothing runs any more, for who has the installation's lock. Uses are
/// found by looking at the node's processes: a pod's shim and virtual machine are programs of its version, so there
/// is no record that could be wrong after a crash.
pub(crate) fn collect(
    root: &Root,
    current: Option<&str>,
    dry: bool,
) -> Result<(Vec<Step>, Vec<Kept>), NodeError> {
    let names = names(root)?;
    let old: Vec<&String> = names.iter().filter(|name| current != Some(name.as_str())).collect();
    if old.is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    let uses = uses(root)?;
    let (mut steps, mut kept) = (Vec::new(), Vec::new());
    for name in old {
        let path = root.at(PREFIX)?.join(name);
        if let Some(processes) = uses.get(name) {
            kept.push(Kept { version: name.clone(), processes: processes.clone() });
            continue;
        }
        steps.push(Step::new("remove", path.display()));
        if !dry {
            // Out of the way first: nobody finds half of it.
            let leaving = root.at(PREFIX)?.join(".leaving");
            let _ = fs::remove_dir_all(&leaving);
            fs::rename(&path, &leaving).map_err(NodeError::file("remove", &path))?;
            fs::remove_dir_all(&leaving).map_err(NodeError::file("remove", &leaving))?;
        }
    }
    Ok((steps, kept))
}

/// Names of the versions that are there.
pub(crate) fn names(root: &Root) -> Result<Vec<String>, NodeError> {
    let prefix = root.at(PREFIX)?;
    let entries = match fs::read_dir(&prefix) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(NodeError::file("list", &prefix))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(NodeError::file("list", &prefix))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Only what an installation made: a number, a hyphen, twelve hexadecimal digits.
        if is_version(&name) && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn is_version(name: &str) -> bool {
    name.rsplit_once('-').is_some_and(|(release, hash)| {
        release.starts_with(|c: char| c.is_ascii_digit())
            && hash.len() == 12
            && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// Which processes use files of which version: their program, what they have mapped or open.
pub(crate) fn uses(root: &Root) -> Result<BTreeMap<String, Vec<i32>>, NodeError> {
    let prefix = root.at(PREFIX)?;
    let prefix = fs::canonicalize(&prefix).unwrap_or(prefix);
    let mut uses: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    let proc = Path::new("/proc");
    for entry in fs::read_dir(proc).map_err(NodeError::file("list", proc))? {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if u32::try_from(pid) == Ok(std::process::id()) {
            continue;
        }
        let mut versions: Vec<String> = files_of(&entry.path())
            .filter_map(|file| {
                let rest = file.strip_prefix(&prefix).ok()?;
                let name = rest.components().next()?.as_os_str().to_str()?.to_owned();
                is_version(&name).then_some(name)
            })
            .collect();
        versions.sort();
        versions.dedup();
        for version in versions {
            uses.entry(version).or_default().push(pid);
        }
    }
    Ok(uses)
}

/// Files that a process uses, as far as they can be seen. It may end meanwhile.
fn files_of(process: &Path) -> impl Iterator<Item = PathBuf> {
    use std::io::Read as _;
    let program = fs::read_link(process.join("exe")).ok();
    let open = fs::read_dir(process.join("fd")).into_iter().flatten();
    let open: Vec<PathBuf> =
        open.flatten().filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
    let mut maps = Vec::new();
    if let Ok(file) = fs::File::open(process.join("maps")) {
        let _ = file.take(MOST_MAPS).read_to_end(&mut maps);
    }
    let maps = String::from_utf8_lossy(&maps).into_owned();
    let mapped: Vec<PathBuf> = maps
        .lines()
        .filter_map(|line| line.split_once('/').map(|(_, path)| PathBuf::from(format!("/{path}"))))
        .collect();
    program.into_iter().chain(open).chain(mapped)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_version_stays_for_as_long_as_something_runs_from_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = Root::new(directory.path());
        for version in ["0.1.0-000000000001", "0.1.0-000000000002", "0.2.0-000000000003"] {
            fs::create_dir_all(root.at(PREFIX).expect("a place").join(version).join("bin"))
                .expect("made");
        }
        fs::create_dir_all(root.at("/opt/nacre/of-the-administrator").expect("a place"))
            .expect("made");
        std::os::unix::fs::symlink("0.2.0-000000000003", root.name(CURRENT).expect("a place"))
            .expect("linked");
        let program = root.at("/opt/nacre/0.1.0-000000000002/bin/sleep").expect("a place");
        fs::copy("/bin/sleep", &program).expect("copied");
        let mut pod = Command::new(&program).arg("100").stdin(Stdio::null()).spawn().expect("runs");
        let pid = i32::try_from(pod.id()).expect("an id");
        let (steps, kept) = collect_unused(&root, true).expect("looked");
        assert_eq!(steps.len(), 1);
        assert_eq!(names(&root).expect("listed").len(), 3, "looking removes nothing");
        assert_eq!(kept, [Kept { version: "0.1.0-000000000002".to_owned(), processes: vec![pid] }]);
        collect_unused(&root, false).expect("collected");
        assert_eq!(names(&root).expect("listed"), ["0.1.0-000000000002", "0.2.0-000000000003"]);
        pod.kill().and_then(|()| pod.wait()).expect("ended");
        collect_unused(&root, false).expect("collected");
        assert_eq!(names(&root).expect("listed"), ["0.2.0-000000000003"]);
        assert!(root.at("/opt/nacre/of-the-administrator").expect("a place").is_dir());
    }

    #[test]
    fn versions_stay_while_somebody_installs_and_where_none_is_current() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = Root::new(directory.path());
        let versions = ["0.1.0-000000000001", "0.2.0-000000000002"];
        for version in versions {
            fs::create_dir_all(root.at(PREFIX).expect("a place").join(version)).expect("made");
        }
        // The first installation has copied its version and not made the link yet, or uninstalling has taken it.
        collect_unused(&root, false).expect("looked");
        assert_eq!(names(&root).expect("listed"), versions);
        std::os::unix::fs::symlink(versions[1], root.name(CURRENT).expect("a place"))
            .expect("linked");
        // An installation goes back to the other version and has not switched the link yet.
        let installing = Lock::take(&root).expect("taken");
        assert!(matches!(collect_unused(&root, false), Err(NodeError::Busy(_))));
        assert_eq!(names(&root).expect("listed"), versions);
        drop(installing);
        collect_unused(&root, false).expect("collected");
        assert_eq!(names(&root).expect("listed"), versions[1..]);
    }

    #[test]
    fn only_names_that_an_installation_gives_are_versions() {
        for name in ["bin", "share", "current", ".incoming", "0.1.0", "0.1.0-xyz", "v-0123456789ab"]
        {
            assert!(!is_version(name), "{name}");
        }
        assert!(is_version("0.1.0-0123456789ab"));
    }
}
