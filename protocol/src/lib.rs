//! Every message that crosses a boundary between host and guest.
//!
//! The agent API is wire-compatible with Kata Containers' `grpc.AgentService` and `grpc.Health`
//! over ttrpc: same package, method, message and field names and numbers; `nacre.Ports` beside it is our own.
//! The code is generated from `proto/` at build time.
//!
//! This crate holds shapes and names only. It decides nothing: the guest treats each request as
//! hostile until its policy has judged it, the host treats each answer as bounded data.

/// Code generated from `proto/`.
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    dead_code,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unused_attributes,
    unused_mut,
    unused_imports,
    unused_results,
    mismatched_lifetime_syntaxes
)]
mod generated {
    macro_rules! module {
        ($name:ident) => {
            pub mod $name {
                include!(concat!(env!("OUT_DIR"), "/", stringify!($name), ".rs"));
            }
        };
    }
    module!(agent);
    module!(agent_ttrpc);
    module!(csi);
    module!(health);
    module!(health_ttrpc);
    module!(oci);
    module!(ports);
    module!(ports_ttrpc);
    module!(types);
}

pub mod blob_cache;
pub mod channel;
pub mod debug_shell;
pub mod guest_memory;
pub mod image_user;
pub mod initdata;
pub mod jcs;
pub mod kbs;
pub mod processor;
pub mod pull_progress;
pub mod sealed;
pub mod start_report;
pub mod termination;

pub use generated::{
    agent, agent_ttrpc, csi, health, health_ttrpc, oci, ports, ports_ttrpc, types,
};
