//! The containerd shim of Nacre: one process a pod, between containerd's task API and the agent in
//! the pod's virtual machine.
//!
//! It runs on the host and trusts containerd, which starts it. It distrusts the guest: every answer
//! of the agent is bounded in size and time, its words are cleaned before they reach a log or an
//! error, and nothing it says selects a file or a process of the host. It also distrusts what comes
//! through containerd from users (the OCI specification, annotations): what has no meaning in a guest
//! is refused by name. The pod's owner in turn does not trust this program: whatever it asks of the
//! agent is judged there.
//!
//! It never mounts a container's root file system, never pulls an image and never sees a secret.

mod agent;
mod annotations;
mod block_volumes;
mod bootstrap;
mod config;
mod confinement;
mod container;
mod control_group;
mod debug_shell;
mod docker;
mod error;
mod events;
mod files;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod guest_network;
mod initdata;
mod io;
mod last_words;
mod node_cache;
mod pod;
mod port_forward;
mod process;
mod processor;
mod pull_progress;
mod recording;
mod sandbox;
mod scratch_disk;
mod service;
mod sizing;
mod spec;
mod start_report;
mod stats;
mod telemetry;
mod volumes;

/// The whole program; containerd says by arguments and environment what it is called for.
#[must_use]
pub fn main() -> std::process::ExitCode {
    bootstrap::run()
}
