//! What a dead shim left, and its removal.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::directory::{path_of, remove, try_lock};
use crate::history::{History, end_of_console};
use crate::report::Report;
use crate::{ProcessRef, Record, RecordError};

/// How long a shim that is already stopping, or somebody else who cleans up, is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How long a control group is waited for whose last process has just died.
const LAST_PROCESS: Duration = Duration::from_secs(1);
pub(crate) const POLL: Duration = Duration::from_millis(10);
/// What statfs(2) says of a namespace (`linux/magic.h`).
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

/// What a dead shim left. Holding it proves that the shim is dead, and keeps others from cleaning up
/// the same things.
#[derive(Debug)]
pub struct Remains {
    path: PathBuf,
    record: Record,
    /// Why the record cannot be read: then nobody knows what there is but the directory.
    unreadable: Option<String>,
    _lock: File,
}

/// Something on the host that was made for a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Thing {
    /// A process of a virtual machine.
    Machine {
        /// Its id.
        pid: u32,
    },
    /// A redirect between an interface of the pod and a tap.
    Redirect {
        /// Path of the pod's network namespace.
        namespace: PathBuf,
        /// Name of the interface in it.
        interface: String,
    },
    /// The shim's socket.
    Socket {
        /// Where it is.
        path: PathBuf,
    },
    /// A control group.
    ControlGroup {
        /// Where it is.
        path: PathBuf,
    },
    /// The run directory.
    Directory {
        /// Where it is.
        path: PathBuf,
    },
}

/// What became of the remains.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Removal {
    /// What was removed.
    pub removed: Vec<Thing>,
    /// What could not be removed, and why. While there is any, the run directory stays, so that it is
    /// tried again.
    pub failed: Vec<String>,
}

impl Remains {
    /// What is left of a sandbox whose shim containerd takes for dead: one that is still about to end is
    /// waited for, and killed where that takes too long. Nothing, if there is no such sandbox any more.
    pub async fn after_death(root: &Path, id: &str) -> Result<Option<Remains>, RecordError> {
        let path = path_of(root, id)?;
        let deadline = Instant::now() + PATIENCE;
        while path.exists() {
            if let Some(remains) = Remains::if_dead(&path)? {
                return Ok(Some(remains));
            }
            if Instant::now() > deadline {
                let shim = Record::read(&path).unwrap_or_default().shim;
                let other = shim.filter(|shim| shim.pid != std::process::id());
                let Some(shim) = other.filter(|shim| shim.is_alive()) else {
                    return Err(RecordError::Busy { path });
                };
                tracing::warn!("shim {} of sandbox {id} does not end: it is killed", shim.pid);
                shim.kill().await;
                return Remains::if_dead(&path);
            }
            sleep(POLL).await;
        }
        Ok(None)
    }

    /// What is left of the sandbox with that run directory, if its shim is dead.
    pub fn if_dead(path: &Path) -> Result<Option<Remains>, RecordError> {
        let Some(lock) = try_lock(path)? else { return Ok(None) };
        let (record, unreadable) = match Record::read(path) {
            Ok(record) => (record, None),
            Err(error) => (Record::default(), Some(error.to_string())),
        };
        // A shim from before there was a lock.
        let lives = |shim: &ProcessRef| shim.is_alive() && shim.pid != std::process::id();
        if record.shim.as_ref().is_some_and(lives) {
            return Ok(None);
        }
        Ok(Some(Remains { path: path.to_owned(), record, unreadable, _lock: lock }))
    }

    /// Process id of the machine, as recorded.
    #[must_use]
    pub fn machine(&self) -> Option<u32> {
        self.record.machine.map(|machine| machine.pid)
    }

    /// What is there, in the order of its removal.
    #[must_use]
    pub fn things(&self) -> Vec<Thing> {
        let machine = self.record.machine.filter(|machine| machine.is_alive());
        let machine = machine.map(|machine| Thing::Machine { pid: machine.pid });
        let namespace = self.record.namespace.iter().filter(|path| is_namespace(path));
        let redirects = namespace.flat_map(|namespace| {
            self.record.interfaces.iter().map(|interface| Thing::Redirect {
                namespace: namespace.clone(),
                interface: interface.clone(),
            })
        });
        let socket = self.record.socket.clone().filter(|path| is_abandoned_socket(path));
        let groups = self.record.control_groups.iter().filter(|path| path.is_dir());
        machine
            .into_iter()
            .chain(redirects)
            .chain(socket.map(|path| Thing::Socket { path }))
            .chain(groups.map(|path| Thing::ControlGroup { path: path.clone() }))
            .chain([Thing::Directory { path: self.path.clone() }])
            .collect()
    }

    /// Removes it all; the run directory last, and only if everything else is gone. Its report goes to the history.
    pub async fn remove(self, history: &History) -> Removal {
        let mut removal = Removal::default();
        if let Some(cause) = &self.unreadable {
            removal.failed.push(format!(
                "the record in {} cannot be read: {cause}; look for the machine and the pod's network by hand, \
                 then remove the directory",
                self.path.display()
            ));
        }
        for thing in self.things() {
            if matches!(thing, Thing::Directory { .. }) {
                if !removal.failed.is_empty() {
                    continue;
                }
                self.keep_report(history).await;
            }
            match self.remove_one(&thing).await {
                Ok(()) => removal.removed.push(thing),
                Err(reason) => removal.failed.push(reason),
            }
        }
        removal
    }

    /// Nothing waits for it: a report that cannot be kept is lost.
    async fn keep_report(&self, history: &History) {
        // One that died at once has none.
        let Ok(mut report) = Report::read(&self.path) else { return };
        let failed = report.lost_its_shim(self.record.shim);
        let (history, console) = (history.clone(), end_of_console(&self.path));
        let kept = tokio::task::spawn_blocking(move || {
            if let Some(failed) = failed {
                history.count(|totals| {
                    totals.add(&failed);
                    totals.pods.failed += 1;
                })?;
            }
            history.keep(&report, console.as_deref())
        });
        if let Ok(Err(error)) = kept.await {
            tracing::warn!("the start report in {} is not kept: {error}", self.path.display());
        }
    }

    async fn remove_one(&self, thing: &Thing) -> Result<(), String> {
        let io = |what: &str, path: &Path, done: io::Result<()>| match done {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                Err(format!("cannot remove {what} {}: {cause}", path.display()))
            }
            _ => Ok(()),
        };
        match thing {
            Thing::Machine { pid } => match self.record.machine {
                Some(machine) if !machine.kill().await => {
                    Err(format!("process {pid} does not end though it was killed"))
                }
                _ => Ok(()),
            },
            Thing::Redirect { namespace, interface } => {
                let detached = nacre_pod_network::detach(namespace, vec![interface.clone()]).await;
                detached.map_err(|error| error.to_string())
            }
            Thing::Socket { path } => io("the socket", path, fs::remove_file(path)),
            Thing::ControlGroup { path } => io("the control group", path, remove_group(path).await),
            Thing::Directory { path } => remove(path).map_err(|error| error.to_string()),
        }
    }
}

/// A namespace, and not the empty file that one was mounted on before a reboot.
fn is_namespace(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|filesystem| filesystem.f_type == NSFS_MAGIC)
}

/// A socket that nobody listens at.
fn is_abandoned_socket(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    is_socket && UnixStream::connect(path).is_err()
}

/// Only an empty control group can be removed: that is the kernel's rule, and the safety of this.
async fn remove_group(path: &Path) -> io::Result<()> {
    let deadline = Instant::now() + LAST_PROCESS;
    loop {
        match fs::remove_dir(path) {
            Err(busy)
                if busy.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
            {
                sleep(POLL).await;
            }
            other => return other,
        }
    }
}
