//! Volumes that outlive the pod: disks of the host's, put by it into places that the machine was made with.
//!
//! The host says which disk a container is to see where. What that disk is, the pod's owner has said
//! ([`nacre_volume_format::declared`]): encrypted under a key of the key broker, or expressly open to the host. A place that the
//! owner declared nothing for gets nothing, and a declared one gets no copy of files in its stead.
//!
//! Encrypted volumes (docs/volume-format.md): an authenticated header, then dm-integrity with a journal, then
//! dm-crypt, which encrypts and authenticates each sector, as on the scratch disk ([`super::encrypted`]); then
//! ext4 with a journal, or the container's own data. What the host can do: withhold a volume, destroy it, put
//! back an earlier state of all or some of its sectors. The reader sees an I/O error for whatever the guest has
//! not written there at some time.

mod encryption;
mod error;
mod mapping;
mod opened;

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nacre_protocol::initdata::{FileError, Initdata};
use nacre_protocol::kbs::ResourceUri;
use nacre_volume_format::declared::{DeclaredVolume, DeclaredVolumes, Protection};
use nacre_volume_format::header;
use rustix::fs::{CWD, Mode, OFlags};
use zeroize::Zeroizing;

use self::opened::{OpenVolume, Task};
use super::encrypted;
use crate::modules::{ModuleError, Modules};
use crate::secrets::Secrets;

pub(crate) use error::VolumeError;

/// A volume that a container is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Serial number of its place; checked to be one.
    pub(crate) serial: String,
    /// Path in the container.
    pub(crate) path: String,
    /// A file system, or the device itself.
    pub(crate) kind: Kind,
    /// Whether the container is not to write.
    pub(crate) read_only: bool,
}

/// What a request to make a container says of volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    /// The disks.
    pub(crate) wanted: Vec<Wanted>,
    /// Each path at which the container is to see something of the request's, whatever it is.
    pub(crate) places: Vec<String>,
    /// Those among them at which it sees files that the host copies.
    pub(crate) copied: Vec<String>,
    /// Name of the pod; empty outside of Kubernetes.
    pub(crate) pod: String,
}

/// As what a container sees a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A directory.
    FileSystem,
    /// A block device.
    Device,
}

/// A block device for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VolumeDevice {
    /// Path in the container.
    pub(crate) path: String,
    /// Its numbers in this guest.
    pub(crate) major: u32,
    /// Its numbers in this guest.
    pub(crate) minor: u32,
    /// Whether it can only be read.
    pub(crate) read_only: bool,
}

/// Opens one volume. The flag is set when the pod ends.
type Open = dyn Fn(&Task, &AtomicBool) -> Result<OpenVolume, VolumeError> + Send + Sync;

/// All volumes of the pod.
pub(crate) struct Volumes {
    declared: DeclaredVolumes,
    /// Held while one is opened, also when whoever asked for it has gone.
    opening: Arc<tokio::sync::Mutex<()>>,
    open: Arc<Open>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// The open ones, by serial number.
    open: Mutex<BTreeMap<String, Arc<OpenVolume>>>,
    /// The pod ends: nothing is opened any more.
    closing: AtomicBool,
}

impl Volumes {
    /// Reads what the owner declares. Nothing is opened yet.
    pub(crate) fn new(initdata: Option<&Initdata>) -> Result<Self, FileError> {
        Ok(Self::of(DeclaredVolumes::read(initdata)?, Arc::new(Task::run)))
    }

    fn of(declared: DeclaredVolumes, open: Arc<Open>) -> Self {
        Self { declared, opening: Arc::default(), open, shared: Arc::default() }
    }

    /// Loads what encrypted volumes need, if the pod has any.
    pub(crate) fn load_drivers(&self, modules: &Modules) -> Result<(), ModuleError> {
        if self.declared.needs_encryption() { encrypted::load_drivers(modules) } else { Ok(()) }
    }

    /// Whether this resource of the key broker is a volume's key.
    pub(crate) fn has_key(&self, uri: &ResourceUri) -> bool {
        let is_it = |volume: &DeclaredVolume| match &volume.protection {
            // A broker may store by the path alone: with another query it may be the same one.
            Protection::Encrypted(key) => key.plugin() == uri.plugin() && key.path() == uri.path(),
            Protection::DangerPlaintext => false,
        };
        self.declared.volumes().iter().any(is_it)
    }

    /// Opens the volumes of a container that are not open yet. Returns those that it gets as devices.
    pub(crate) async fn provide(
        &self,
        secrets: &Secrets,
        container: &str,
        asked: &Asked,
    ) -> Result<Vec<VolumeDevice>, VolumeError> {
        let mut devices = Vec::new();
        for (declared, wanted) in checked(&self.declared, container, asked)? {
            let secret = key(secrets, declared);
            let open = self.opened(declared, wanted, &asked.pod, secret).await?;
            if wanted.kind == Kind::Device {
                let (major, minor) = open.numbers;
                let (path, read_only) = (wanted.path.clone(), wanted.read_only);
                devices.push(VolumeDevice { path, major, minor, read_only });
            }
        }
        Ok(devices)
    }

    /// The volume in that place, if it is the declared one. Its secret is asked for if it is not open yet.
    async fn opened(
        &self,
        declared: &DeclaredVolume,
        wanted: &Wanted,
        pod: &str,
        secret: impl Future<Output = Result<Option<Zeroizing<Vec<u8>>>, VolumeError>>,
    ) -> Result<Arc<OpenVolume>, VolumeError> {
        if let Some(open) = self.known(declared, wanted)? {
            return Ok(open);
        }
        // Before the others are kept waiting: a broker that does not answer must not keep open volumes from
        // being closed.
        let secret = secret.await?;
        let alone = Arc::clone(&self.opening).lock_owned().await;
        if let Some(open) = self.known(declared, wanted)? {
            return Ok(open);
        }
        let task = Task {
            declared: declared.clone(),
            pod: pod.to_owned(),
            serial: wanted.serial.clone(),
            kind: wanted.kind,
            secret,
        };
        let (open, shared) = (Arc::clone(&self.open), Arc::clone(&self.shared));
        // It goes on when the request is given up. Then the volume is open for the next one, and is closed with the
        // others; a second opening beside the first could write over what is in use.
        let opening = move || {
            let _alone = alone;
            let opened = Arc::new(open(&task, &shared.closing)?);
            shared.open().insert(task.serial.clone(), Arc::clone(&opened));
            tracing::info!(
                volume = task.declared.name,
                place = task.serial,
                kind = ?task.kind,
                encrypted = task.secret.is_some(),
                "opened a volume"
            );
            Ok(opened)
        };
        tokio::task::spawn_blocking(opening).await.map_err(|_| VolumeError::Cut)?
    }

    /// The volume in that place, if it is open.
    fn known(
        &self,
        declared: &DeclaredVolume,
        wanted: &Wanted,
    ) -> Result<Option<Arc<OpenVolume>>, VolumeError> {
        if self.shared.closing.load(Ordering::Relaxed) {
            return Err(VolumeError::Cut);
        }
        let in_use = |how| VolumeError::InUse { volume: declared.name.clone(), how };
        let volumes = self.shared.open();
        match volumes.get(&wanted.serial) {
            Some(open) if open.name != declared.name => Err(in_use("under another name")),
            Some(open) if open.kind != wanted.kind => Err(in_use("in another form")),
            Some(open) => Ok(Some(Arc::clone(open))),
            None if volumes.values().any(|open| open.name == declared.name) => {
                Err(in_use("from another disk"))
            }
            None => Ok(None),
        }
    }

    /// Opens the directory of a volume that is mounted, to be bound into a container. `None` for other paths.
    pub(crate) fn open_directory(&self, path: &Path) -> Option<io::Result<OwnedFd>> {
        let open = self.shared.open();
        open.values().find(|volume| volume.mount.as_deref() == Some(path))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Some(rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(Into::into))
    }

    /// Writes everything to the disks and closes them. No container runs any more.
    pub(crate) async fn close(&self) {
        self.shared.closing.store(true, Ordering::Relaxed);
        let _alone = self.opening.lock().await;
        let open = std::mem::take(&mut *self.shared.open());
        let closing = move || {
            for volume in open.values() {
                match volume.close() {
                    Ok(()) => tracing::info!(volume = volume.name, "closed a volume"),
                    Err(error) => {
                        tracing::error!(volume = volume.name, "failed to close a volume: {error}");
                    }
                }
            }
        };
        if tokio::task::spawn_blocking(closing).await.is_err() {
            tracing::error!("failed to close the volumes");
        }
    }
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, BTreeMap<String, Arc<OpenVolume>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Each disk of a request with what the owner declares of it. Where a volume is declared, the container gets that
/// disk and nothing else.
fn checked<'a>(
    declared: &'a DeclaredVolumes,
    container: &str,
    asked: &'a Asked,
) -> Result<Vec<(&'a DeclaredVolume, &'a Wanted)>, VolumeError> {
    let is_disk = |path: &str| asked.wanted.iter().any(|wanted| wanted.path == path);
    let expected = declared.expected(container);
    let places = asked.places.iter().filter_map(|path| {
        declared.at(container, path).map(|volume| (volume.name.as_str(), path.as_str()))
    });
    for (volume, path) in expected.chain(places) {
        let times = asked.places.iter().filter(|place| *place == path).count();
        if times != 1 || !is_disk(path) {
            let (volume, path) = (volume.to_owned(), path.to_owned());
            return Err(VolumeError::Missing { volume, path });
        }
        // Links among the files would lead the disk's mount elsewhere, and change later.
        let is_above = |copied: &&String| Path::new(path).starts_with(copied);
        if let Some(copied) = asked.copied.iter().find(is_above) {
            let (volume, path) = (volume.to_owned(), path.to_owned());
            return Err(VolumeError::AmongCopies { volume, path, copied: copied.clone() });
        }
    }
    let pairs = asked.wanted.iter().map(|wanted| {
        let declared = declared.at(container, &wanted.path).ok_or_else(|| {
            let (container, path) = (container.to_owned(), wanted.path.clone());
            VolumeError::Undeclared { container, path }
        })?;
        if declared.read_only && !wanted.read_only {
            return Err(VolumeError::ReadOnly(declared.name.clone()));
        }
        Ok((declared, wanted))
    });
    pairs.collect()
}

/// The key of an encrypted volume.
async fn key(
    secrets: &Secrets,
    declared: &DeclaredVolume,
) -> Result<Option<Zeroizing<Vec<u8>>>, VolumeError> {
    let Protection::Encrypted(uri) = &declared.protection else { return Ok(None) };
    let volume = declared.name.clone();
    let secret = match secrets.resource(uri).await {
        Ok(secret) => secret,
        Err(source) => return Err(VolumeError::Key { volume, source: Box::new(source) }),
    };
    let length = secret.len();
    if !(header::LEAST_SECRET..=header::MOST_SECRET).contains(&length) {
        return Err(VolumeError::KeyLength { volume, length });
    }
    Ok(Some(secret))
}

#[cfg(test)]
mod tests;
