//! A key broker: releases a secret to a guest whose evidence is appraised and whom a grant or a policy
//! names, and keeps a record.
//!
//! It speaks the key-broker protocol of Confidential Containers. It believes no guest, no host and no
//! network: what a guest says counts as far as `nacre-verifier` affirms it, an administrator is who
//! signs with a configured key, and tokens are believed that the broker itself signed. Secrets are
//! encrypted at rest, and towards a guest to the key that its evidence vouches for; they are in no log
//! and no error. Nothing is released before the audit log has it on disk.
//!
//! It never releases anything by default: no reference values, no grant, no key or no time means no.
//! It never asks a vendor's service on its own, and never believes a root that is not built in or
//! configured under a name that begins with `danger_`.

#![forbid(unsafe_code)]

pub mod admin;
pub mod audit;
mod broker;
mod claims;
mod collateral;
mod config;
mod error;
mod grants;
mod http;
mod init;
mod limiter;
mod metrics;
mod policy;
mod references;
mod sealing;
mod server;
mod session;
mod store;
mod token;

pub use config::{Config, ConfigError};
pub use error::ServeError;
pub use grants::{Grant, GrantError};
pub use init::{InitError, InitOptions, Made, init};
pub use policy::PolicyError;
pub use sealing::SealError;
pub use server::serve;
pub use store::StoreError;

/// One provider for all TLS of the process, unless its program chose one.
fn use_ring() {
    // An error says that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
