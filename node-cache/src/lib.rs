//! The node's cache of image blobs: a daemon on the host that answers guests `digest -> bytes`, from
//! containerd's content store and from a directory of its own, which guests fill with what they pull.
//!
//! It distrusts its guests. Each one speaks on a stream that the shim has opened and named for it; sizes,
//! counts, memory, disk space and time are bounded for each of them, and a stream that breaks the protocol
//! (`nacre_protocol::blob_cache`) ends. What a guest puts is kept only if its size and digest are those
//! that it was announced with. Guests that ask for a blob while another one brings it follow that guest:
//! they hash all of it themselves.
//!
//! Guests distrust it in turn, and need not trust it with anything: it sees no names, no tags, no
//! credentials. Blobs of one containerd namespace are not visible to another's pods unless the
//! configuration shares them, because that a node has a blob says what runs on it.
//!
//! It never talks to a registry, never writes into containerd's store, and never runs what it keeps.

#![forbid(unsafe_code)]

mod config;
mod guest;
mod server;
mod statistics;
mod store;

pub use config::{Config, ConfigError, DEFAULT_PATH, Namespaces};
pub use server::{Server, ServerError, ask_for_statistics};
pub use statistics::Statistics;
pub use store::StoreError;
