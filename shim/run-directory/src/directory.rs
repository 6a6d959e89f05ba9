//! Run directories: made by a shim, locked while it lives, listed for everybody else.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;
use tokio::time::{Instant, sleep};

use crate::history::History;
use crate::remains::{PATIENCE, POLL};
use crate::{Record, RecordError, Remains};

/// Most run directories that are looked at; a node has some hundred pods.
const MOST_SANDBOXES: usize = 10_000;
/// A directory that was touched since may be one that a shim has made and not locked yet.
const YOUNG: Duration = Duration::from_secs(60);

/// Before the name of a directory that is not complete yet. No sandbox id begins so.
const DRAFT: char = '.';

/// The run directory of one sandbox, locked by this process.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    record: Record,
    _lock: File,
}

impl RunDir {
    /// Makes the directory. What a dead shim left there is cleaned up first, and its report kept.
    ///
    /// It appears with its lock and its record at once, so that nobody takes it for a dead one.
    pub async fn create(root: &Path, history: &History, id: &str) -> Result<RunDir, RecordError> {
        let path = path_of(root, id)?;
        let failed = |what, cause| RecordError::Io { what, path: path.clone(), cause };
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        builder.recursive(true).create(root).map_err(|cause| failed("make", cause))?;
        builder.recursive(false);
        let draft = root.join(format!("{DRAFT}{id}.{}", std::process::id()));
        let _ = fs::remove_dir_all(&draft);
        builder.create(&draft).map_err(|cause| failed("make", cause))?;
        let made = Self::fill(&draft, &path, history).await;
        if made.is_err() {
            let _ = fs::remove_dir_all(&draft);
        }
        made
    }

    async fn fill(draft: &Path, path: &Path, history: &History) -> Result<RunDir, RecordError> {
        let failed = |what, cause| RecordError::Io { what, path: path.to_owned(), cause };
        let Some(lock) = try_lock(draft)? else {
            return Err(RecordError::Busy { path: draft.to_owned() });
        };
        let record = Record::of_this_process();
        record.write(draft).map_err(|cause| failed("write the record in", cause))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match renameat_with(CWD, draft, CWD, path, RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                other => {
                    other.map_err(|e| failed("make", e.into()))?;
                    return Ok(RunDir { path: path.to_owned(), record, _lock: lock });
                }
            }
            match Remains::if_dead(path)? {
                Some(remains) => {
                    let reasons = remains.remove(history).await.failed;
                    if !reasons.is_empty() {
                        return Err(RecordError::Remains { path: path.to_owned(), reasons });
                    }
                }
                // Whoever has the lock lives with it, or is cleaning up and done in a moment.
                None => {
                    let shim = Record::read(path).unwrap_or_default().shim;
                    if let Some(shim) = shim.filter(|shim| shim.is_alive()) {
                        return Err(RecordError::InUse { path: path.to_owned(), pid: shim.pid });
                    }
                    if Instant::now() > deadline {
                        return Err(RecordError::Busy { path: path.to_owned() });
                    }
                    sleep(POLL).await;
                }
            }
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Changes the record. What is made for the pod is recorded before it is made, or right after.
    pub fn update(&mut self, change: impl FnOnce(&mut Record)) -> Result<(), RecordError> {
        change(&mut self.record);
        self.record.write(&self.path).map_err(|cause| RecordError::Io {
            what: "write the record in",
            path: self.path.clone(),
            cause,
        })
    }

    /// Removes the directory with all that is in it.
    pub fn remove(&self) -> Result<(), RecordError> {
        remove(&self.path)
    }
}

/// A sandbox that has a run directory.
#[derive(Debug)]
pub struct Sandbox {
    /// Its id, as containerd knows it.
    pub id: String,
    /// Its run directory.
    pub path: PathBuf,
    /// Whether its shim lives.
    pub is_alive: bool,
    /// What its shim recorded.
    pub record: Record,
}

/// All sandboxes that have a run directory, in the order of their ids.
pub fn sandboxes(root: &Path) -> Result<Vec<Sandbox>, RecordError> {
    let named = names(root)?.into_iter().filter(|name| path_of(root, name).is_ok());
    let mut found = Vec::new();
    for id in named {
        let path = root.join(&id);
        // Of one that cannot be read nothing is known but that it is there.
        let record = Record::read(&path).unwrap_or_default();
        let is_alive = Remains::if_dead(&path)?.is_none();
        // One that went away in the meantime is neither.
        if path.exists() {
            found.push(Sandbox { id, path, is_alive, record });
        }
    }
    Ok(found)
}

/// The sandboxes that `name` means: an id or the beginning of one, or `namespace/name` of a pod.
pub fn find(root: &Path, name: &str) -> Result<Vec<Sandbox>, RecordError> {
    let meant = |sandbox: &Sandbox| match (name.split_once('/'), &sandbox.record.pod) {
        (Some((namespace, name)), Some(pod)) => pod.namespace == namespace && pod.name == name,
        (Some(_), None) => false,
        (None, _) => !name.is_empty() && sandbox.id.starts_with(name),
    };
    Ok(sandboxes(root)?.into_iter().filter(meant).collect())
}

/// Directories that a shim had only begun to make. Whether it still does, its lock tells, but for a moment before
/// it has the lock: young ones are left out.
pub(crate) fn abandoned_drafts(root: &Path) -> Result<Vec<PathBuf>, RecordError> {
    let is_old = |path: &PathBuf| {
        let changed = fs::symlink_metadata(path).and_then(|directory| directory.modified());
        changed.is_ok_and(|changed| changed.elapsed().is_ok_and(|age| age > YOUNG))
    };
    let drafts = names(root)?.into_iter().filter(|name| name.starts_with(DRAFT));
    Ok(drafts.map(|name| root.join(name)).filter(is_old).collect())
}

/// The names of the directories in `root`.
pub(crate) fn names(root: &Path) -> Result<Vec<String>, RecordError> {
    let failed = |cause| RecordError::Io { what: "list", path: root.to_owned(), cause };
    let entries = match fs::read_dir(root) {
        Err(absent) if absent.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries.take(MOST_SANDBOXES) {
        let entry = entry.map_err(failed)?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir())
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The lock on a run directory, if nobody has it, and the directory is still the one at that path.
pub(crate) fn try_lock(path: &Path) -> Result<Option<File>, RecordError> {
    let failed = |what, cause| RecordError::Io { what, path: path.to_owned(), cause };
    let directory = match File::open(path) {
        Err(absent) if absent.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|cause| failed("open", cause))?,
    };
    match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(None),
        other => other.map_err(|e| failed("lock", e.into()))?,
    }
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let held = directory.metadata().map(identity).map_err(|cause| failed("open", cause))?;
    let is_there = fs::symlink_metadata(path).map(identity).is_ok_and(|there| there == held);
    Ok(is_there.then_some(directory))
}

/// One component, so that no id leads out of the root; the length containerd allows.
pub(crate) fn path_of(root: &Path, id: &str) -> Result<PathBuf, RecordError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if id.is_empty() || id.len() > 76 || id.starts_with(DRAFT) || !id.chars().all(plain) {
        return Err(RecordError::Id(id.chars().take(100).collect()));
    }
    Ok(root.join(id))
}

pub(crate) fn remove(path: &Path) -> Result<(), RecordError> {
    match fs::remove_dir_all(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            Err(RecordError::Io { what: "remove", path: path.to_owned(), cause })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::{ALONE, PodName, ProcessRef, Thing};

    fn history(root: &tempfile::TempDir) -> History {
        History::at(&root.path().join(".history"))
    }

    #[tokio::test]
    async fn a_running_sandbox_keeps_its_directory() {
        let _alone = ALONE.lock().await;
        let root = tempfile::tempdir().unwrap();
        let dir = RunDir::create(root.path(), &history(&root), "a").await.unwrap();
        let error = RunDir::create(root.path(), &history(&root), "a").await.unwrap_err();
        assert!(error.to_string().contains("this sandbox exists already"), "{error}");
        assert!(Remains::if_dead(dir.path()).unwrap().is_none());
        assert!(sandboxes(root.path()).unwrap()[0].is_alive);
        dir.remove().unwrap();
        dir.remove().unwrap();
        let _again = RunDir::create(root.path(), &history(&root), "a").await.unwrap();
        assert_eq!(names(root.path()).unwrap(), ["a"]);
    }

    #[tokio::test]
    async fn what_a_dead_shim_left_is_removed() {
        let _alone = ALONE.lock().await;
        let root = tempfile::tempdir().unwrap();
        let mut dir = RunDir::create(root.path(), &history(&root), "b").await.unwrap();
        let mut machine = Command::new("sleep").arg("600").spawn().unwrap();
        let shim = dead_process();
        let socket = root.path().join("socket");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let group = root.path().join("group");
        fs::create_dir(&group).unwrap();
        dir.update(|record| {
            record.shim = Some(shim);
            record.machine = ProcessRef::of(machine.id());
            record.namespace = Some("/run/netns/gone".into());
            record.interfaces = vec!["eth0".into()];
            record.socket = Some(socket.clone());
            record.control_groups = vec![group.clone()];
        })
        .unwrap();
        let path = dir.path().to_owned();
        assert!(Remains::if_dead(&path).unwrap().is_none(), "the lock is held");
        drop(dir);
        assert!(!sandboxes(root.path()).unwrap()[0].is_alive);
        let remains = Remains::after_death(root.path(), "b").await.unwrap().unwrap();
        assert_eq!(remains.machine(), Some(machine.id()));
        let things = vec![
            Thing::Machine { pid: machine.id() },
            Thing::Socket { path: socket.clone() },
            Thing::ControlGroup { path: group.clone() },
            Thing::Directory { path: path.clone() },
        ];
        assert_eq!(remains.things(), things);
        // The machine is a child of this process: its end must be seen for it to be gone.
        let reaper = std::thread::spawn(move || machine.wait().unwrap());
        let removal = remains.remove(&history(&root)).await;
        assert!(!reaper.join().unwrap().success(), "it was killed");
        assert_eq!((removal.removed, removal.failed), (things, Vec::new()));
        assert!(!path.exists() && !socket.exists() && !group.exists());
        assert!(Remains::after_death(root.path(), "b").await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_cannot_be_removed_keeps_the_directory_for_the_next_time() {
        let _alone = ALONE.lock().await;
        let root = tempfile::tempdir().unwrap();
        let mut dir = RunDir::create(root.path(), &history(&root), "c").await.unwrap();
        let group = root.path().join("group");
        fs::create_dir_all(group.join("occupied")).unwrap();
        let shim = dead_process();
        dir.update(|record| {
            record.shim = Some(shim);
            record.control_groups = vec![group.clone()];
        })
        .unwrap();
        let path = dir.path().to_owned();
        drop(dir);
        let removal = Remains::if_dead(&path).unwrap().unwrap().remove(&history(&root)).await;
        assert!(removal.failed[0].contains("group"), "{removal:?}");
        assert!(path.exists());
        fs::remove_dir(group.join("occupied")).unwrap();
        let removal = Remains::if_dead(&path).unwrap().unwrap().remove(&history(&root)).await;
        assert_eq!(removal.failed, Vec::<String>::new());
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn the_file_that_a_namespace_was_mounted_on_has_no_redirects() {
        let _alone = ALONE.lock().await;
        let root = tempfile::tempdir().unwrap();
        let mut dir = RunDir::create(root.path(), &history(&root), "e").await.unwrap();
        let unmounted = root.path().join("cni-1");
        fs::write(&unmounted, "").unwrap();
        let shim = dead_process();
        dir.update(|record| {
            record.shim = Some(shim);
            record.namespace = Some(unmounted);
            record.interfaces = vec!["eth0".into()];
        })
        .unwrap();
        let path = dir.path().to_owned();
        drop(dir);
        let remains = Remains::if_dead(&path).unwrap().unwrap();
        assert_eq!(remains.things(), [Thing::Directory { path }]);
    }

    #[tokio::test]
    async fn a_socket_that_somebody_listens_at_stays() {
        let _alone = ALONE.lock().await;
        let root = tempfile::tempdir().unwrap();
        let mut dir = RunDir::create(root.path(), &history(&root), "d").await.unwrap();
        let socket = root.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let shim = dead_process();
        dir.update(|record| {
            record.shim = Some(shim);
            record.socket = Some(socket.clone());
        })
        .unwrap();
        let path = dir.path().to_owned();
        drop(dir);
        let removal = Remains::if_dead(&path).unwrap().unwrap().remove(&history(&root)).await;
        assert_eq!(removal.removed, vec![Thing::Directory { path }]);
        assert!(socket.exists());
    }

    #[tokio::test]
    async fn sandboxes_are_found_by_id_and_by_the_pod_they_are() {
        let _alone = ALONE.lock().await;
        let root = tempfile::tempdir().unwrap();
        assert!(sandboxes(&root.path().join("absent")).unwrap().is_empty());
        let mut one = RunDir::create(root.path(), &history(&root), "aa1").await.unwrap();
        let _two = RunDir::create(root.path(), &history(&root), "aa2").await.unwrap();
        let [namespace, name, uid] = ["default", "web", "7"].map(str::to_owned);
        one.update(|record| record.pod = Some(PodName { namespace, name, uid })).unwrap();
        let ids = |name| {
            let found = find(root.path(), name).unwrap();
            found.into_iter().map(|sandbox| sandbox.id).collect::<Vec<_>>()
        };
        assert_eq!(ids("aa"), ["aa1", "aa2"]);
        assert_eq!(ids("aa2"), ["aa2"]);
        assert_eq!(ids("default/web"), ["aa1"]);
        assert_eq!(ids("other/web"), Vec::<String>::new());
        assert_eq!(ids(""), Vec::<String>::new());
    }

    #[test]
    fn a_record_of_an_older_or_newer_shim_is_understood_and_a_broken_one_is_not_an_empty_one() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(root.path()).unwrap(), Record::default());
        let of = |text: &str| {
            fs::write(root.path().join("record.json"), text).unwrap();
            Record::read(root.path())
        };
        let old =
            r#"{"shim":{"pid":1,"started":2},"machine":null,"namespace":null,"interfaces":[]}"#;
        assert_eq!(of(old).unwrap().shim.unwrap().pid, 1);
        let new = r#"{"containerd_namespace":"k8s.io","novelty":[1]}"#;
        assert_eq!(of(new).unwrap().containerd_namespace, "k8s.io");
        for broken in ["", "{", "[", "{\"shim\":7}", &" ".repeat(70_000)] {
            assert!(of(broken).is_err(), "{broken}");
        }
    }

    #[tokio::test]
    async fn what_has_a_record_that_cannot_be_read_stays_and_is_told() {
        let _alone = ALONE.lock().await;
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("f");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("record.json"), "{").unwrap();
        let removal = Remains::if_dead(&path).unwrap().unwrap().remove(&history(&root)).await;
        assert!(removal.failed[0].contains("cannot be read"), "{removal:?}");
        assert_eq!((removal.removed, path.exists()), (Vec::new(), true));
        let error = RunDir::create(root.path(), &history(&root), "f").await.unwrap_err();
        assert!(matches!(&error, RecordError::Remains { .. }), "{error}");
        assert!(!error.to_string().contains("running shim"), "{error}");
    }

    #[tokio::test]
    async fn who_comes_while_another_cleans_up_waits_for_that() {
        let _alone = ALONE.lock().await;
        let root = tempfile::tempdir().unwrap();
        let history = history(&root);
        let mut dir = RunDir::create(root.path(), &history, "g").await.unwrap();
        let shim = dead_process();
        dir.update(|record| record.shim = Some(shim)).unwrap();
        let path = dir.path().to_owned();
        drop(dir);
        let remains = Remains::if_dead(&path).unwrap().unwrap();
        let cleaning = async {
            sleep(10 * POLL).await;
            remains.remove(&history).await
        };
        let made = RunDir::create(root.path(), &history, "g");
        let (made, removal) = tokio::join!(made, cleaning);
        assert_eq!(removal.failed, Vec::<String>::new());
        assert!(made.unwrap().path().exists());
    }

    #[test]
    fn ids_stay_within_the_root_and_short_enough_for_sockets() {
        let root = Path::new("/run/nacre");
        for id in ["", ".", "..", "../x", "a/b", "a\0", ".hidden", &"x".repeat(77)] {
            assert!(matches!(path_of(root, id), Err(RecordError::Id(_))), "{id:?}");
        }
        let longest = path_of(root, &"x".repeat(76)).unwrap().join("agent.sock");
        assert!(longest.as_os_str().len() < 108);
    }

    fn dead_process() -> ProcessRef {
        let mut short = Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let process = ProcessRef::of(short.id()).unwrap();
        drop(short.stdin.take());
        short.wait().unwrap();
        process
    }
}
