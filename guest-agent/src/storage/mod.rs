//! Where image layers and the containers' writable layers live: a file system of their own, beside the
//! agent's. A full one is an error of whoever writes to it, never the end of the agent.
//!
//! It lives in the VM's memory, which the TEE protects.

mod memory;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::error::RpcError;

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
}

impl StorageError {
    /// For `map_err`.
    fn step<E: Into<io::Error>>(doing: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self::Step { doing: doing.into(), source: source.into() }
    }
}

/// The guest's storage: mounted once, when something first needs it.
#[derive(Debug, Clone, Default)]
pub(crate) struct GuestStorage {
    prepared: Arc<OnceLock<Result<ImageStore, StorageError>>>,
}

impl GuestStorage {
    /// The store; made by the first caller, while others wait. If that failed, it stays failed: there is no
    /// second choice of a place.
    pub(crate) async fn ready(&self) -> Result<ImageStore, RpcError> {
        let prepared = Arc::clone(&self.prepared);
        let make = move || match prepared.get_or_init(|| prepare(Path::new(ROOT))) {
            Ok(store) => Ok(store.clone()),
            Err(error) => Err(error.to_string()),
        };
        let made = tokio::task::spawn_blocking(make).await.map_err(|e| e.to_string());
        made.flatten().map_err(|error| {
            RpcError::internal("there is no place for images and containers in this guest", error)
        })
    }
}

/// Mounts what there is on `root`.
fn prepare(root: &Path) -> Result<ImageStore, StorageError> {
    fs::create_dir_all(root)
        .map_err(StorageError::step(format!("make the directory {}", root.display())))?;
    let capacity_bytes = memory::mount(root)?;
    let store = ImageStore { root: root.to_owned(), capacity_bytes, kind: Kind::Memory };
    for directory in [store.layers(), store.scratches()] {
        fs::create_dir(&directory)
            .map_err(StorageError::step(format!("make the directory {}", directory.display())))?;
    }
    tracing::info!("images and writable layers: {store}");
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
                "{mebibytes} MiB in the VM's memory, half of it; give the pod more memory \
                 (annotation io.nacre.vm.memory_mib) or a scratch disk \
                 (io.nacre.vm.scratch_disk_mib)"
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
