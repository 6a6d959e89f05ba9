//! Launching processes in containers, each launch in a short-lived process of its own.
//!
//! The OCI runtime library changes directories and forks without `exec`, so it cannot run twice at a
//! time in one process, nor in one with threads. The agent therefore runs itself again (`/proc/self/exe`)
//! as a single-threaded *launcher*, gives it a [`Launch`] order and the process's streams over a socket, and
//! hears [`Report`]s on the same socket. The library's own processes keep the socket until they `exec`,
//! so the socket's end is the proof that the program runs.

mod agent_side;
mod executor;
mod launcher_side;

use serde::{Deserialize, Serialize};

pub(crate) use agent_side::{Control, Stdio, launch};
pub(crate) use launcher_side::run;

/// First argument that makes the agent's program a launcher.
pub(crate) const ARGUMENT: &str = "container-launcher";

/// Where the runtime library keeps its states.
pub(crate) const STATES: &str = "/run/nacre/containers";

/// Longest message either way, in bytes.
const LONGEST_MESSAGE: usize = 16 * 1024;

/// What a launcher is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The container.
    pub(crate) container: String,
    /// Socket on which the terminal's controlling end is expected; absent without a terminal.
    pub(crate) console_socket: Option<String>,
    /// Owner of the pipes, so that the process may open `/dev/stdout` anew.
    pub(crate) owner: u32,
    /// A container's first process or a further one.
    pub(crate) kind: Kind,
}

/// Which process is launched.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// The container's init process, from a bundle directory with its `config.json`. It waits for
    /// [`START`].
    Init {
        /// The bundle.
        bundle: String,
    },
    /// A further process in a running container. It runs at once.
    Exec {
        /// File with the process as in the OCI runtime specification.
        process: String,
        /// File with what confines it besides; see [`Confinement`].
        confinement: String,
    },
}

/// What the runtime library leaves out for further processes, though the container's first one has it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Confinement {
    /// Capabilities that the process keeps; none if absent.
    pub(crate) capabilities: Option<oci_spec::runtime::LinuxCapabilities>,
    /// The container's filter of system calls.
    pub(crate) seccomp: Option<oci_spec::runtime::LinuxSeccomp>,
}

/// What the agent says to a launcher whose container may start.
const START: &[u8] = b"start\n";

/// What a launcher tells, one JSON object a line.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Report {
    /// The process exists, under this number.
    Born(i32),
    /// It could not be made or started. For people, with causes.
    Failed(String),
    /// A failure as the runtime library logged it, with more detail than its errors carry.
    Log(String),
}
