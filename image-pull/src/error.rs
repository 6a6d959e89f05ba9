//! What can go wrong in a pull, in words a pod's event can carry.

use std::io;
use std::path::PathBuf;

use nacre_image_security::Refused;
use nacre_trust::{Digest, DigestMismatch};

/// What to do if an image does not fit.
const MORE_ROOM: &str = "say how large the pod's images are (annotation io.nacre.vm.images_mib), raise its \
    memory (io.nacre.vm.memory_mib), give it a scratch disk (io.nacre.vm.scratch_disk_mib) or use a smaller \
    image";

/// Who asked a registry that refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presented {
    /// An anonymous client: there are no credentials for this registry.
    Nothing,
    /// The holder of the credentials that are configured.
    Credentials,
    /// Credentials are configured, but the connection is not encrypted.
    Withheld,
}

impl Presented {
    fn told(self, status: u16) -> String {
        match self {
            Self::Nothing => format!(
                "anonymous clients (status {status}); the image is private or does not exist: check its \
                 name, or give the pod credentials for this registry"
            ),
            Self::Credentials => format!(
                "the credentials that are configured for it (status {status}); check that they are \
                 right and may pull this image, and that it exists"
            ),
            Self::Withheld => format!(
                "anonymous clients (status {status}); there are credentials for it, but they are not \
                 sent over plain HTTP: let the registry serve https"
            ),
        }
    }
}

/// Why an image could not be pulled, mounted or merged into a process.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The reference itself is not usable.
    #[error("image reference: {field} {problem}")]
    Reference {
        /// Part of the reference: `name`, `host`, `path`, `tag` or `digest`.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The puller's own configuration is not usable.
    #[error("image puller configuration: {field}: {problem}")]
    Config {
        /// Field of [`PullConfig`](crate::PullConfig).
        field: &'static str,
        /// What is wrong with it and what to do.
        problem: String,
    },
    /// The registry's name has no address.
    #[error(
        "registry {registry}: the name cannot be resolved; check the image reference and the pod's \
         DNS ({problem})"
    )]
    NameNotResolved {
        /// `host[:port]`.
        registry: String,
        /// The resolver's words.
        problem: String,
    },
    /// No connection could be made.
    #[error("registry {registry} cannot be reached from the pod: {problem}")]
    Unreachable {
        /// `host[:port]`.
        registry: String,
        /// Such as "connection refused".
        problem: String,
    },
    /// A connection was made and then brought nothing for too long.
    #[error("registry {registry}: {what} stalled: no data for {seconds} s")]
    Stalled {
        /// `host[:port]`.
        registry: String,
        /// What was being fetched.
        what: String,
        /// The bound, in seconds.
        seconds: u64,
    },
    /// The registry has no such manifest or blob.
    #[error("registry {registry} has no {what}; check the image's name and tag")]
    NotFound {
        /// `host[:port]`.
        registry: String,
        /// What was asked for.
        what: String,
    },
    /// The registry wants credentials, or better ones.
    #[error("registry {registry} refuses {what} to {presented}", presented = .presented.told(*.status))]
    Unauthorized {
        /// `host[:port]`.
        registry: String,
        /// What was asked for.
        what: String,
        /// HTTP status.
        status: u16,
        /// Who asked.
        presented: Presented,
    },
    /// The key broker did not give what the pull needs.
    #[error("{purpose}: {problem}")]
    Resource {
        /// What it is for.
        purpose: &'static str,
        /// Why it cannot be had.
        problem: String,
    },
    /// The image policy does not admit the image.
    #[error("{0}")]
    Policy(Box<Refused>),
    /// A layer cannot be decrypted.
    #[error("layer {digest}: {problem}")]
    Encrypted {
        /// Digest in the manifest.
        digest: Digest,
        /// Why.
        problem: String,
    },
    /// The registry answered in a way that ends the pull.
    #[error("registry {registry}: {what}: {problem}")]
    Registry {
        /// `host[:port]`.
        registry: String,
        /// What was being fetched.
        what: String,
        /// What was wrong with the answer.
        problem: String,
    },
    /// The manifest, index or configuration is not that of a container image for this guest.
    #[error("{document}: {field}: {problem}")]
    Document {
        /// `index`, `manifest` or `image configuration`.
        document: &'static str,
        /// Field of it.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Content is not what its digest names.
    #[error("{what}: {mismatch}; the content was changed on its way and is not used")]
    DigestMismatch {
        /// Which content.
        what: String,
        /// Both digests.
        #[source]
        mismatch: DigestMismatch,
    },
    /// Content is shorter or longer than its descriptor says.
    #[error("{what}: its descriptor says {expected} bytes, but {actual}")]
    SizeMismatch {
        /// Which content.
        what: String,
        /// Size in the descriptor.
        expected: u64,
        /// Such as "it ended after 12".
        actual: String,
    },
    /// A bound of [`Limits`](crate::Limits) was reached.
    #[error("{what}: more than the limit of {limit} {unit}")]
    Limit {
        /// Which content.
        what: String,
        /// The bound.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// A layer's content is not acceptable.
    #[error("layer {digest}: {problem}")]
    Layer {
        /// Digest in the manifest.
        digest: Digest,
        /// What is wrong, and with which entry.
        problem: String,
    },
    /// No room for the image, as its manifest already tells.
    #[error(
        "image {image} does not fit: its layers have at least {needed} MiB and the pod's image storage \
         has {available} of {quota} MiB left; {MORE_ROOM}"
    )]
    TooLarge {
        /// The reference.
        image: String,
        /// MiB of the layers that are to be fetched, as they travel: unpacked they are more.
        needed: u64,
        /// MiB that are free.
        available: u64,
        /// MiB of the whole storage.
        quota: u64,
    },
    /// No room for the image, as it turned out while it was unpacked.
    #[error(
        "the image does not fit in the pod's image storage ({what}: no space left); {MORE_ROOM}"
    )]
    NoSpace {
        /// What was being written.
        what: String,
    },
    /// The pull took too long.
    #[error(
        "the pull was given up after {seconds} s, with {done} of {total} MiB of the layers here"
    )]
    Deadline {
        /// The bound, in seconds.
        seconds: u64,
        /// MiB that had come.
        done: u64,
        /// MiB of all layers; 0 if the manifest had not come.
        total: u64,
    },
    /// The guest's own file system failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's words.
        source: io::Error,
    },
    /// The root file system cannot be mounted.
    #[error("failed to mount the image on {target}: {problem}")]
    Mount {
        /// Mount point.
        target: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The image's configuration and the container's spec do not make a process.
    #[error("process {field}: {problem}")]
    Process {
        /// Field of the OCI process.
        field: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
    /// Another layer failed first, or the caller went away.
    #[error("the pull was abandoned")]
    Abandoned,
}

impl PullError {
    /// A file system error, with "no space" told apart because it has its own remedy.
    pub(crate) fn io(what: impl Into<String>, source: io::Error) -> Self {
        let no_space = [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT];
        if no_space.iter().any(|errno| source.raw_os_error() == Some(errno.raw_os_error())) {
            Self::NoSpace { what: what.into() }
        } else {
            Self::Io { what: what.into(), source }
        }
    }

    pub(crate) fn digest(what: impl Into<String>, mismatch: DigestMismatch) -> Self {
        Self::DigestMismatch { what: what.into(), mismatch }
    }
}
