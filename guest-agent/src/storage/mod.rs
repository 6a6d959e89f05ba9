//! Where image layers and the containers' writable layers live: a file system of their own, beside the
//! agent's. A full one is an error of whoever writes to it, never the end of the agent.
//!
//! It lives in the VM's memory, which the TEE protects; where the host gives a scratch disk, on that one,
//! encrypted under a key of this guest's own. A disk that was given and cannot be used ends in an error:
//! the pod was sized for it.

mod device_mapper;
mod encrypted;
mod ext4;
mod integrity;
mod memory;
mod volume;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use nacre_protocol::channel::SCRATCH_DISK_SERIAL;
use nacre_protocol::start_report::HOST_VISIBLE;

use crate::devices::Machine;
use crate::disk::{self, DiskError};
use crate::error::RpcError;
use crate::modules::{ModuleError, Modules};

pub(crate) use volume::{
    Asked as AskedVolumes, Kind as VolumeKind, VolumeDevice, Volumes, Wanted as WantedVolume,
};

/// Where the file system is mounted.
const ROOT: &str = "/run/nacre/image";

/// The file system for images and writable layers, once it is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageStore {
    root: PathBuf,
    capacity_bytes: u64,
    kind: Kind,
}

/// What holds the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A tmpfs.
    Memory,
    /// A disk of the host's, encrypted and checked.
    EncryptedDisk,
}

/// Why there is no place for images.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StorageError {
    /// A step of the set-up failed.
    #[error("failed to {doing}: {source}")]
    Step {
        /// What was tried.
        doing: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It is not known which disk to use.
    #[error("scratch disk: {0}")]
    Disk(#[from] DiskError),
    /// The guest image lacks a driver, or the kernel refuses it.
    #[error("scratch disk: {0}")]
    Module(#[from] ModuleError),
    /// Nothing would fit.
    #[error("the scratch disk has {size} bytes; give it at least {least}")]
    TooSmall {
        /// Its size, in bytes.
        size: u64,
        /// The bound, in bytes.
        least: u64,
    },
    /// What dm-integrity says of the disk cannot be.
    #[error("the disk {disk} cannot hold what its state {status:?} tells")]
    Layout {
        /// Its node.
        disk: String,
        /// The target's state.
        status: String,
    },
    /// A volume's disk was larger.
    #[error(
        "the disk {disk} has room for {has} bytes of a volume that was made with {needs}: it was cut short"
    )]
    CutShort {
        /// Its node.
        disk: String,
        /// In bytes.
        has: u64,
        /// In bytes.
        needs: u64,
    },
}

impl StorageError {
    /// For `map_err`.
    fn step<E: Into<io::Error>>(doing: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self::Step { doing: doing.into(), source: source.into() }
    }
}

/// The guest's storage: mounted once, when something first needs it.
#[derive(Debug, Clone)]
pub(crate) struct GuestStorage {
    scratch_disk: Option<PathBuf>,
    prepared: Arc<OnceLock<Result<ImageStore, StorageError>>>,
}

impl GuestStorage {
    /// Looks for a scratch disk and loads its drivers. Nothing is mounted yet; what goes wrong is told when
    /// something needs the storage.
    pub(crate) fn find(machine: &Machine, modules: &Modules) -> Self {
        let prepared = OnceLock::new();
        let found = scratch_disk(machine, modules).unwrap_or_else(|error| {
            tracing::error!("{error}");
            prepared.get_or_init(|| Err(error));
            None
        });
        Self { scratch_disk: found, prepared: Arc::new(prepared) }
    }

    /// The store; made by the first caller, while others wait. If that failed, it stays failed: there is no
    /// second choice of a place.
    pub(crate) async fn ready(&self) -> Result<ImageStore, RpcError> {
        let this = self.clone();
        let make = move || {
            let prepared = this.prepared.get_or_init(|| {
                prepare(this.scratch_disk.as_deref(), Path::new(ROOT))
                    .inspect_err(|error| tracing::error!("{error}"))
            });
            prepared.as_ref().cloned().map_err(ToString::to_string)
        };
        let made = tokio::task::spawn_blocking(make).await.map_err(|e| e.to_string());
        made.flatten().map_err(|error| {
            RpcError::internal("there is no place for images and containers in this guest", error)
        })
    }
}

/// The disk that the host lends, ready to be used.
fn scratch_disk(machine: &Machine, modules: &Modules) -> Result<Option<PathBuf>, StorageError> {
    let disk = disk::find(machine, modules, SCRATCH_DISK_SERIAL)?;
    if disk.is_some() {
        encrypted::load_drivers(modules)?;
    }
    Ok(disk)
}

/// Mounts what there is on `root`.
fn prepare(scratch_disk: Option<&Path>, root: &Path) -> Result<ImageStore, StorageError> {
    fs::create_dir_all(root)
        .map_err(StorageError::step(format!("make the directory {}", root.display())))?;
    let begun = Instant::now();
    let (kind, capacity_bytes) = match scratch_disk {
        Some(disk) => (Kind::EncryptedDisk, encrypted::mount(disk, root)?),
        None => (Kind::Memory, memory::mount(root)?),
    };
    let store = ImageStore { root: root.to_owned(), capacity_bytes, kind };
    for directory in [store.layers(), store.scratches()] {
        fs::create_dir(&directory)
            .map_err(StorageError::step(format!("make the directory {}", directory.display())))?;
    }
    let milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(target: HOST_VISIBLE, milliseconds, kind = ?store.kind, mebibytes = capacity_bytes >> 20, "storage");
    Ok(store)
}

impl ImageStore {
    /// Directory for the layers of images.
    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// Directory for what a container writes. It does not exist yet, on the same file system as the layers.
    /// `container` is a checked name.
    pub(crate) fn scratch(&self, container: &str) -> PathBuf {
        self.scratches().join(container)
    }

    /// Directory of a volume that the pod's containers share. `volume` is a checked name.
    pub(crate) fn volume(&self, volume: &str) -> PathBuf {
        self.root.join("volumes").join(volume)
    }

    fn scratches(&self) -> PathBuf {
        self.root.join("scratch")
    }

    /// What an error of somebody who wrote to the store says, and if its cause is that the store is full,
    /// what to do.
    pub(crate) fn explain(&self, error: &(dyn std::error::Error + 'static)) -> String {
        let mut causes = std::iter::successors(Some(error), |error| error.source());
        let full = causes.any(|cause| {
            let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
            matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
        });
        if full {
            format!("{error}; the store for images and writable layers is full: it is {self}")
        } else {
            error.to_string()
        }
    }
}

impl fmt::Display for ImageStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mebibytes = self.capacity_bytes >> 20;
        match self.kind {
            Kind::Memory => write!(
                f,
                "{mebibytes} MiB in the VM's memory; say how large the pod's images are \
                 (annotation io.nacre.vm.images_mib), or give it more memory \
                 (io.nacre.vm.memory_mib) or a scratch disk (io.nacre.vm.scratch_disk_mib)"
            ),
            Kind::EncryptedDisk => write!(
                f,
                "{mebibytes} MiB on the pod's scratch disk; give the pod a larger one \
                 (annotation io.nacre.vm.scratch_disk_mib)"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("layer 3")]
    struct Outer(#[source] io::Error);

    #[test]
    fn a_full_store_is_recognized_beneath_other_errors() {
        let store = ImageStore { root: "/x".into(), capacity_bytes: 200 << 20, kind: Kind::Memory };
        let full = Outer(rustix::io::Errno::NOSPC.into());
        let text = store.explain(&full);
        assert!(text.starts_with("layer 3; ") && text.contains("200 MiB in the VM's"), "{text}");
        assert_eq!(store.explain(&Outer(rustix::io::Errno::IO.into())), "layer 3");
    }

    #[test]
    fn layers_and_scratch_places_share_the_file_system() {
        let store = ImageStore { root: "/run/x".into(), capacity_bytes: 1, kind: Kind::Memory };
        assert_eq!(store.layers(), Path::new("/run/x/layers"));
        assert_eq!(store.scratch("a"), Path::new("/run/x/scratch/a"));
    }
}
