//! Why a container does not get a volume: what is wrong, and who can mend it.

use nacre_volume_format::header;

use super::opened::LEAST_BYTES;
use crate::disk::DiskError;
use crate::secrets::SecretsError;
use crate::storage::StorageError;

/// Why a container does not get a volume.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    /// Nobody but the owner may say what it is.
    #[error(
        "the pod's owner has declared no volume for {container}:{path}: add it to volumes.toml in the pod's \
         initdata"
    )]
    Undeclared {
        /// Its name.
        container: String,
        /// Where it would be.
        path: String,
    },
    /// The host has put something else there, or nothing.
    #[error(
        "the volume {volume} is to be at {path}, and the host has attached no disk there: is its claim bound to \
         a volume that is handed over as a block device?"
    )]
    Missing {
        /// The owner's name.
        volume: String,
        /// Where.
        path: String,
    },
    /// What the host copies would decide where it is seen.
    #[error(
        "the volume {volume} is to be at {path}, among files that the host copies to {copied}: mount it elsewhere"
    )]
    AmongCopies {
        /// The owner's name.
        volume: String,
        /// Where.
        path: String,
        /// Where the files are.
        copied: String,
    },
    /// It would be written.
    #[error("the volume {0} is read_only in volumes.toml: mount it read-only")]
    ReadOnly(String),
    /// Two places, or two ways to look at it.
    #[error("the volume {volume} is in use {how} already")]
    InUse {
        /// The owner's name.
        volume: String,
        /// Otherwise.
        how: &'static str,
    },
    /// The host has announced it and not put it there.
    #[error("there is no disk with the serial number {0}, or it has no contents")]
    Absent(String),
    /// Its list of disks.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Too small.
    #[error("the volume {volume} has {size} bytes; give it at least {LEAST_BYTES}")]
    TooSmall {
        /// The owner's name.
        volume: String,
        /// In bytes.
        size: u64,
    },
    /// No key.
    #[error("the key of the volume {volume}: {source}")]
    Key {
        /// The owner's name.
        volume: String,
        /// Why.
        source: Box<SecretsError>,
    },
    /// A key that is none.
    #[error(
        "the key of the volume {volume} has {length} bytes; give the key broker {least} to {most} random ones",
        least = header::LEAST_SECRET, most = header::MOST_SECRET
    )]
    KeyLength {
        /// The owner's name.
        volume: String,
        /// In bytes.
        length: usize,
    },
    /// Not formatted, and not to be.
    #[error(
        "the volume {0} is blank: to make one of a blank disk, set format = \"blank\" in volumes.toml; if it \
         had data, the host has exchanged it"
    )]
    Blank(String),
    /// Something is on it.
    #[error(
        "the disk of the volume {0} holds something else than a volume of this guest; it is left as it is"
    )]
    Foreign(String),
    /// Made for the other use.
    #[error("the volume {volume} was made {made}")]
    Content {
        /// The owner's name.
        volume: String,
        /// For what.
        made: &'static str,
    },
    /// Its header or its superblock.
    #[error("the volume {volume}: {problem}")]
    Header {
        /// The owner's name.
        volume: String,
        /// What is wrong.
        problem: String,
    },
    /// A step failed.
    #[error("the volume {volume}: {source}")]
    Step {
        /// The owner's name.
        volume: String,
        /// Which, and why.
        source: StorageError,
    },
    /// It is bound to a pod's name.
    #[error(
        "the volume {0} is bound to a pod (bind = \"pod\" in volumes.toml), and this container's has no name"
    )]
    NoPod(String),
    /// The pod ends, or this guest's memory does.
    #[error("the work at a volume was cut short: the pod ends")]
    Cut,
}
