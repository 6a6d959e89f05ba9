//! Images and registries made to do harm, each with what must come of it.
//!
//! [`corpus`] lists the cases. Each makes what a registry serves, however wrong, and says whether a
//! puller must take it, refuse it (and in which words) or render it harmless. The test of this crate
//! runs every case against Nacre's own engine: in a process, a mount namespace and a tmpfs of its own,
//! with files outside the root that must not change, bounds on memory and time, and a search for what
//! is left behind.
//!
//! Archives, gzip and zstd streams and HTTP are written here byte by byte: libraries refuse to make
//! most of what is needed. Bombs are described, not stored, so that 40 GiB cost nothing to serve.
//!
//! ```sh
//! cargo test -p nacre-hostile-images                    # all
//! cargo test -p nacre-hostile-images -- bombs           # a class
//! cargo test -p nacre-hostile-images -- gzip-bomb       # a case
//! ```

#![forbid(unsafe_code)]

pub mod authority;
pub mod case;
pub mod compression;
pub mod content;
mod corpus;
pub mod image;
pub mod registry;
pub mod tar;
pub mod tree;

pub use corpus::corpus;

/// Where a case's puller has its file system: a tmpfs in a mount namespace of its own. Cases can aim
/// at absolute paths because this is fixed.
pub const WORLD: &str = "/mnt";
/// The store, below [`WORLD`].
pub const STORE: &str = "/mnt/store";
/// What a case's puller trusts if its servers speak TLS.
pub const CERTIFICATE: &str = "/mnt/certificate.pem";
/// The password of cases with credentials, and the forms in which it travels: none may be in an error,
/// which the host can read.
pub const PASSWORD: [&str; 2] = ["open-sesame", "YXBwOm9wZW4tc2VzYW1l"];
/// A directory of files that nobody may touch: `file`, `setuid`, `directory/inner`, `link`.
pub const OUTSIDE: &str = "/mnt/outside";
