//! The run directory of a sandbox, and the record in it of what would be left after a crash.
//!
//! `/run/nacre/<sandbox id>` holds the machine's sockets and logs. Its record names the processes and
//! the network of the pod, so that containerd's `delete` command, which is all that runs after this
//! shim has died, can remove every trace.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::error::{Code, Coded};
use crate::network;

/// Where the run directories are.
pub(crate) const RUN_ROOT: &str = "/run/nacre";

const RECORD: &str = "record.json";
const MOST_BYTES: u64 = 64 * 1024;

/// How long a shim that is already stopping is waited for, and a killed process.
const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

/// Why a run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("the sandbox id {0:?} is not a file name of at most 76 characters")]
    Id(String),
    #[error("{path} belongs to the running shim {pid}: this sandbox exists already")]
    InUse { path: PathBuf, pid: u32 },
    #[error("cannot {what} {path}: {cause}")]
    Io { what: &'static str, path: PathBuf, cause: io::Error },
}

impl Coded for RecordError {
    fn code(&self) -> Code {
        match self {
            RecordError::Id(_) => Code::INVALID_ARGUMENT,
            RecordError::InUse { .. } => Code::ALREADY_EXISTS,
            RecordError::Io { .. } => Code::UNAVAILABLE,
        }
    }
}

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessRef {
    pub(crate) pid: u32,
    /// Field 22 of `/proc/<pid>/stat`.
    started: u64,
}

impl ProcessRef {
    /// The running process of that number.
    pub(crate) fn of(pid: u32) -> Option<ProcessRef> {
        let (state, started) = stat(pid)?;
        (state != b'Z').then_some(ProcessRef { pid, started })
    }

    fn is_alive(self) -> bool {
        ProcessRef::of(self.pid) == Some(self)
    }

    async fn gone_within(self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.is_alive() {
            if Instant::now() > deadline {
                return false;
            }
            sleep(POLL).await;
        }
        true
    }

    /// Kills it. The descriptor makes sure that it is still the one that was meant.
    async fn kill(self) -> bool {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return true };
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return !self.is_alive() };
        if self.is_alive() {
            let _ = pidfd_send_signal(&process, Signal::KILL);
        }
        self.gone_within(PATIENCE).await
    }
}

/// State and start time of a process. The name in between may contain anything, `)` included.
fn stat(pid: u32) -> Option<(u8, u64)> {
    let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let started = fields.nth(18)?.parse().ok()?;
    Some((state, started))
}

/// What would be left after a crash.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) shim: Option<ProcessRef>,
    pub(crate) machine: Option<ProcessRef>,
    /// The pod's network namespace.
    pub(crate) namespace: Option<PathBuf>,
    /// Its interfaces that carry a redirect.
    pub(crate) interfaces: Vec<String>,
}

/// The run directory of one sandbox.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// Makes the directory. What a dead shim left there is cleaned up first.
    pub(crate) async fn create(root: &Path, id: &str) -> Result<RunDir, RecordError> {
        let path = path_of(root, id)?;
        let failed = |what, cause| RecordError::Io { what, path: path.clone(), cause };
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        builder.recursive(true).create(root).map_err(|cause| failed("make", cause))?;
        builder.recursive(false);
        match builder.create(&path) {
            Err(exists) if exists.kind() == io::ErrorKind::AlreadyExists => {
                if let Some(shim) = read(&path).shim.filter(|shim| shim.is_alive()) {
                    return Err(RecordError::InUse { path, pid: shim.pid });
                }
                clean(root, id).await?;
                builder.create(&path).map_err(|cause| failed("make", cause))?;
            }
            other => other.map_err(|cause| failed("make", cause))?,
        }
        let dir = RunDir { path };
        let written =
            dir.write(&Record { shim: ProcessRef::of(std::process::id()), ..Record::default() });
        if written.is_err() {
            let _ = dir.remove();
        }
        written.map(|()| dir)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces the record as a whole.
    pub(crate) fn write(&self, record: &Record) -> Result<(), RecordError> {
        let failed =
            |cause| RecordError::Io { what: "write the record in", path: self.path.clone(), cause };
        let text = serde_json::to_vec(record).map_err(|e| failed(e.into()))?;
        let draft = self.path.join("record.new");
        std::fs::write(&draft, text).map_err(failed)?;
        std::fs::rename(&draft, self.path.join(RECORD)).map_err(failed)
    }

    pub(crate) fn remove(&self) -> Result<(), RecordError> {
        remove(&self.path)
    }
}

/// Removes what a dead shim left of a sandbox: its machine, its redirects, its directory. Returns the
/// number of the machine's process, if there was a record of one.
pub(crate) async fn clean(root: &Path, id: &str) -> Result<Option<u32>, RecordError> {
    let path = path_of(root, id)?;
    if !path.exists() {
        return Ok(None);
    }
    let record = read(&path);
    if let Some(shim) = record.shim
        && shim.pid != std::process::id()
        && !shim.gone_within(PATIENCE).await
    {
        shim.kill().await;
    }
    if let Some(machine) = record.machine
        && !machine.kill().await
    {
        tracing::warn!("process {} of the dead sandbox {id} does not go away", machine.pid);
    }
    if let Some(namespace) = &record.namespace
        && let Err(error) = network::detach(namespace, record.interfaces.clone()).await
    {
        tracing::warn!("network of the dead sandbox {id}: {error}");
    }
    remove(&path)?;
    Ok(record.machine.map(|machine| machine.pid))
}

/// One component, so that no id leads out of the root; the length containerd allows.
fn path_of(root: &Path, id: &str) -> Result<PathBuf, RecordError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if id.is_empty() || id.len() > 76 || id.starts_with('.') || !id.chars().all(plain) {
        return Err(RecordError::Id(id.chars().take(100).collect()));
    }
    Ok(root.join(id))
}

fn read(path: &Path) -> Record {
    crate::files::read_text(&path.join(RECORD), MOST_BYTES)
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default()
}

fn remove(path: &Path) -> Result<(), RecordError> {
    match std::fs::remove_dir_all(path) {
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

    #[tokio::test]
    async fn a_running_sandbox_keeps_its_directory() {
        let root = tempfile::tempdir().unwrap();
        let dir = RunDir::create(root.path(), "a").await.unwrap();
        let error = RunDir::create(root.path(), "a").await.unwrap_err();
        assert!(error.to_string().contains("this sandbox exists already"), "{error}");
        dir.remove().unwrap();
        dir.remove().unwrap();
        RunDir::create(root.path(), "a").await.unwrap();
    }

    #[tokio::test]
    async fn what_a_dead_shim_left_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let dir = RunDir::create(root.path(), "b").await.unwrap();
        let mut machine = Command::new("sleep").arg("600").spawn().unwrap();
        let mut shim = Command::new("true").spawn().unwrap();
        let record = Record {
            shim: Some(ProcessRef { pid: shim.id(), started: 1 }),
            machine: ProcessRef::of(machine.id()),
            namespace: Some("/run/netns/gone".into()),
            interfaces: vec!["eth0".into()],
        };
        shim.wait().unwrap();
        dir.write(&record).unwrap();
        assert_eq!(clean(root.path(), "b").await.unwrap(), Some(machine.id()));
        assert!(!machine.wait().unwrap().success(), "it was killed");
        assert!(!root.path().join("b").exists());
        assert_eq!(clean(root.path(), "b").await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_later_process_with_the_same_number_is_spared() {
        let mut bystander = Command::new("sleep").arg("600").spawn().unwrap();
        let stale = ProcessRef { pid: bystander.id(), started: 1 };
        assert!(stale.kill().await);
        assert!(bystander.try_wait().unwrap().is_none());
        bystander.kill().unwrap();
        bystander.wait().unwrap();
    }

    #[tokio::test]
    async fn ids_stay_within_the_root_and_short_enough_for_sockets() {
        let root = Path::new("/run/nacre");
        for id in ["", ".", "..", "../x", "a/b", "a\0", ".hidden", &"x".repeat(77)] {
            assert!(matches!(path_of(root, id), Err(RecordError::Id(_))), "{id:?}");
        }
        let longest = path_of(root, &"x".repeat(76)).unwrap().join("agent.sock");
        assert!(longest.as_os_str().len() < 108);
    }
}
