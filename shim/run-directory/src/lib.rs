//! The run directory of a sandbox, the record in it of what would be left after a crash, and the removal
//! of exactly that.
//!
//! `/run/nacre/<sandbox id>` holds the machine's sockets and logs. Its record names the processes, the
//! network and whatever else the shim made for the pod. The shim holds a lock on the directory as long as
//! it lives; who gets the lock knows that it is dead, whatever became of process ids, and holds the
//! [`Remains`]: only these can be removed. So containerd's `delete` command, a starting shim and
//! `nacre gc` may all clean up at once, beside pods that live.
//!
//! It runs on the host as root and trusts what is in that directory, which only root may enter. It never
//! touches a process that is not the very one recorded, follows no id out of the root, and removes no
//! network namespace, address or mount: these belong to containerd and CNI.

mod directory;
pub mod history;
mod process;
mod record;
mod remains;
pub mod report;
mod sweep;
pub mod usage;

use std::io;
use std::path::PathBuf;

pub use directory::{RunDir, Sandbox, find, sandboxes};
pub use process::ProcessRef;
pub use record::{PodName, Record};
pub use remains::{Remains, Removal, Thing};
pub use sweep::{Leftover, Swept, leftovers, sweep};

/// Where the run directories are.
pub const RUN_ROOT: &str = "/run/nacre";

/// Why a run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The id cannot be a directory's name.
    #[error("the sandbox id {0:?} is not a file name of at most 76 characters")]
    Id(String),
    /// The sandbox exists and lives.
    #[error("{path} belongs to the running shim {pid}: this sandbox exists already")]
    InUse {
        /// Its run directory.
        path: PathBuf,
        /// Its shim.
        pid: u32,
    },
    /// Somebody else removes what is left of the sandbox, and takes long.
    #[error("{path} is being cleaned up by another process: try again")]
    Busy {
        /// Its run directory.
        path: PathBuf,
    },
    /// What a dead shim left of the sandbox stands in the way.
    #[error("{path} is left of a dead sandbox and cannot be removed: {}", reasons.join("; "))]
    Remains {
        /// Its run directory.
        path: PathBuf,
        /// Why.
        reasons: Vec<String>,
    },
    /// The system refused something.
    #[error("cannot {what} {path}: {cause}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
}

/// Held by tests that start processes, or count on a lock that was given back: a child has a copy of every
/// descriptor between fork and exec, and so of the locks.
#[cfg(test)]
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
