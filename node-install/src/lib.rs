//! Puts Nacre on a node and takes it off again: programs and guest image side by side with those that running
//! pods still use, systemd units, configuration, and containerd's handlers.
//!
//! It trusts the node's administrator, who runs it as root, and the bundle that it is given. It distrusts what
//! stands between: containerd's configuration is never changed without `containerd config dump` reading the result
//! first and saying that only what is Nacre's has changed; what was there is kept, and comes back when
//! containerd does not. It never writes a file in place, never touches a pod, and never talks to a cluster.

#![forbid(unsafe_code)]

mod bundle;
mod candidate;
mod change;
mod containerd;
mod dump;
mod edit;
mod error;
mod files;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod handlers;
mod install;
mod lock;
mod node_files;
mod receipt;
mod services;
mod uninstall;
mod versions;

pub use bundle::Bundle;
pub use containerd::{Containerd, Place};
pub use error::NodeError;
pub use files::Root;
pub use handlers::{HANDLERS, Handler, Release, Schema};
pub use install::{Choices, Installed, install};
pub use node_files::VmUser;
pub use services::{Services, Start, Systemd, Unmanaged};
pub use uninstall::{Uninstalled, uninstall};
pub use versions::{Kept, collect_unused};

/// Something that was done, or would be.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Step {
    /// What: `copy`, `link`, `write`, `remove`, `user`, `enable` (at boot), `disable`, `restart` (or start).
    pub what: &'static str,
    /// To which file, version or unit.
    pub to: String,
}

impl Step {
    pub(crate) fn new(what: &'static str, to: impl std::fmt::Display) -> Step {
        Step { what, to: to.to_string() }
    }
}
