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

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nacre_protocol::channel::{VOLUMES_ROOT, volume_place};
use nacre_protocol::initdata::{FileError, Initdata};
use nacre_volume_format::declared::{DeclaredVolume, DeclaredVolumes, Format, Protection};
use nacre_volume_format::header::{self, Content};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::device_mapper::Mapped;
use super::ext4::{self, Identity, Journal};
use super::{StorageError, encrypted};
use crate::disk::{self, DiskError};
use crate::modules::{ModuleError, Modules};
use crate::secrets::{Secrets, SecretsError};

/// How long the size of a disk may take to be known here, after the host has put it there.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);
/// How long a file system may be busy after the last container has ended.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(5);
/// A smaller disk is a mistake, in bytes.
const LEAST_BYTES: u64 = 32 << 20;
/// What must be zero of a blank disk, from its beginning, in bytes.
const BLANK: usize = 2 << 20;

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
    /// Its header.
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
    /// The work was cut short.
    #[error("the work at a volume was cut short")]
    Cut,
}

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

/// All volumes of the pod.
pub(crate) struct Volumes {
    declared: DeclaredVolumes,
    /// Held while one is opened.
    opening: tokio::sync::Mutex<()>,
    /// By serial number.
    open: Mutex<BTreeMap<String, Arc<OpenVolume>>>,
}

/// A volume that containers have.
#[derive(Debug)]
struct OpenVolume {
    name: String,
    kind: Kind,
    read_only: bool,
    /// The device with its contents in the clear.
    node: PathBuf,
    numbers: (u32, u32),
    /// Those that it is mapped by, the lowest first.
    mapped: Vec<Mapped>,
    mount: Option<PathBuf>,
}

impl Volumes {
    /// Reads what the owner declares. Nothing is opened yet.
    pub(crate) fn new(initdata: Option<&Initdata>) -> Result<Self, FileError> {
        let declared = DeclaredVolumes::read(initdata)?;
        Ok(Self { declared, opening: tokio::sync::Mutex::default(), open: Mutex::default() })
    }

    /// Loads what encrypted volumes need, if the pod has any.
    pub(crate) fn load_drivers(&self, modules: &Modules) -> Result<(), ModuleError> {
        if self.declared.needs_encryption() { encrypted::load_drivers(modules) } else { Ok(()) }
    }

    /// Opens the volumes of a container that are not open yet. Returns those that it gets as devices.
    pub(crate) async fn provide(
        &self,
        secrets: &Secrets,
        container: &str,
        wanted: &[Wanted],
    ) -> Result<Vec<VolumeDevice>, VolumeError> {
        for (volume, path) in self.declared.expected(container) {
            if !wanted.iter().any(|wanted| wanted.path == path) {
                let (volume, path) = (volume.to_owned(), path.to_owned());
                return Err(VolumeError::Missing { volume, path });
            }
        }
        let _alone = self.opening.lock().await;
        let mut devices = Vec::new();
        for wanted in wanted {
            let declared = self.declared.at(container, &wanted.path).ok_or_else(|| {
                let (container, path) = (container.to_owned(), wanted.path.clone());
                VolumeError::Undeclared { container, path }
            })?;
            if declared.read_only && !wanted.read_only {
                return Err(VolumeError::ReadOnly(declared.name.clone()));
            }
            let open = self.opened(secrets, declared, wanted).await?;
            if wanted.kind == Kind::Device {
                let (major, minor) = open.numbers;
                let (path, read_only) = (wanted.path.clone(), wanted.read_only);
                devices.push(VolumeDevice { path, major, minor, read_only });
            }
        }
        Ok(devices)
    }

    /// The volume in that place, if it is the declared one.
    async fn opened(
        &self,
        secrets: &Secrets,
        declared: &DeclaredVolume,
        wanted: &Wanted,
    ) -> Result<Arc<OpenVolume>, VolumeError> {
        let in_use = |how| VolumeError::InUse { volume: declared.name.clone(), how };
        if let Some(open) = self.open().get(&wanted.serial) {
            return match open {
                open if open.name != declared.name => Err(in_use("under another name")),
                open if open.kind != wanted.kind => Err(in_use("in another form")),
                open => Ok(Arc::clone(open)),
            };
        }
        if self.open().values().any(|open| open.name == declared.name) {
            return Err(in_use("from another disk"));
        }
        let secret = match &declared.protection {
            Protection::DangerPlaintext => None,
            Protection::Encrypted(uri) => {
                let volume = declared.name.clone();
                let fetched = secrets.resource(uri).await;
                let secret = fetched
                    .map_err(|source| VolumeError::Key { volume, source: Box::new(source) })?;
                let length = secret.len();
                if !(header::LEAST_SECRET..=header::MOST_SECRET).contains(&length) {
                    let volume = declared.name.clone();
                    return Err(VolumeError::KeyLength { volume, length });
                }
                Some(secret)
            }
        };
        let (task, name) = (declared.clone(), wanted.serial.clone());
        let kind = wanted.kind;
        let opening = move || {
            let (disk, size) = wait_for_disk(&name)?;
            open_disk(&task, kind, &name, &disk, size, secret.as_ref().map(|secret| &secret[..]))
        };
        let opened = tokio::task::spawn_blocking(opening).await.map_err(|_| VolumeError::Cut)??;
        tracing::info!(
            volume = declared.name,
            place = wanted.serial,
            kind = ?kind,
            encrypted = !opened.mapped.is_empty(),
            "opened a volume"
        );
        let opened = Arc::new(opened);
        self.open().insert(wanted.serial.clone(), Arc::clone(&opened));
        Ok(opened)
    }

    /// Opens the directory of a volume that is mounted, to be bound into a container. `None` for other paths.
    pub(crate) fn open_directory(&self, path: &Path) -> Option<io::Result<OwnedFd>> {
        let open = self.open();
        open.values().find(|volume| volume.mount.as_deref() == Some(path))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Some(rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(Into::into))
    }

    /// Writes everything to the disks and closes them. No container runs any more.
    pub(crate) async fn close(&self) {
        let _alone = self.opening.lock().await;
        let open = std::mem::take(&mut *self.open());
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

    fn open(&self) -> MutexGuard<'_, BTreeMap<String, Arc<OpenVolume>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenVolume {
    fn close(&self) -> Result<(), StorageError> {
        if let Some(mount) = &self.mount {
            // First, so that what follows may fail without harm.
            let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = rustix::fs::open(mount, flags, Mode::empty());
            directory
                .and_then(rustix::fs::syncfs)
                .map_err(StorageError::step(format!("write back {}", mount.display())))?;
            unmount(mount).map_err(StorageError::step(format!("unmount {}", mount.display())))?;
        }
        if !self.read_only {
            let node = File::open(&self.node).and_then(|node| node.sync_all());
            node.map_err(StorageError::step(format!("write back {}", self.node.display())))?;
        }
        encryption::close(&self.mapped)
    }
}

/// The mounts in containers vanish with their processes, which may take a moment.
fn unmount(path: &Path) -> io::Result<()> {
    let began = Instant::now();
    loop {
        match rustix::mount::unmount(path, UnmountFlags::empty()) {
            Ok(()) => return Ok(()),
            Err(Errno::BUSY) if began.elapsed() < UNMOUNT_PATIENCE => std::thread::sleep(PAUSE),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The kernel's node of the disk in that place, and its size, once the host has put one there.
fn wait_for_disk(serial: &str) -> Result<(PathBuf, u64), VolumeError> {
    let absent = || VolumeError::Absent(serial.to_owned());
    volume_place(serial).ok_or_else(absent)?;
    let name = disk::name_of(serial)?.ok_or_else(absent)?;
    let began = Instant::now();
    loop {
        match disk::size_of(&name)? {
            0 if began.elapsed() > PATIENCE => return Err(absent()),
            0 => std::thread::sleep(PAUSE),
            size => return Ok((Path::new("/dev").join(name), size)),
        }
    }
}

/// Opens what is on the disk; `secret` is the volume's key if it is encrypted.
fn open_disk(
    declared: &DeclaredVolume,
    kind: Kind,
    serial: &str,
    disk: &Path,
    size: u64,
    secret: Option<&[u8]>,
) -> Result<OpenVolume, VolumeError> {
    let name = declared.name.clone();
    let step = |source| VolumeError::Step { volume: name.clone(), source };
    if size < LEAST_BYTES {
        return Err(VolumeError::TooSmall { volume: name, size });
    }
    let doing = format!("read {}", disk.display());
    let beginning = read_beginning(disk).map_err(StorageError::step(doing)).map_err(step)?;
    let (node, mapped) = match secret {
        Some(secret) => {
            let content = match kind {
                Kind::FileSystem => Content::FileSystem,
                Kind::Device => Content::Raw,
            };
            let mapped = encryption::open(declared, content, serial, disk, &beginning, secret)?;
            let node = mapped.last().map_or_else(|| disk.to_owned(), |top| top.node().into());
            (node, mapped)
        }
        None => {
            if kind == Kind::FileSystem && beginning.iter().all(|byte| *byte == 0) {
                if declared.format == Format::Never {
                    return Err(VolumeError::Blank(name));
                }
                make_file_system(disk, size).map_err(step)?;
            }
            (disk.to_owned(), Vec::new())
        }
    };
    let numbers = node_numbers(&node).map_err(step)?;
    let mut opened = OpenVolume {
        name: name.clone(),
        kind,
        read_only: declared.read_only,
        node,
        numbers,
        mapped,
        mount: None,
    };
    if kind == Kind::FileSystem {
        match mount(&opened, serial) {
            Ok(place) => opened.mount = Some(place),
            Err(error) => {
                if let Err(left) = opened.close() {
                    tracing::warn!(volume = name, "failed to undo: {left}");
                }
                return Err(step(error));
            }
        }
    }
    Ok(opened)
}

fn read_beginning(disk: &Path) -> io::Result<Vec<u8>> {
    let mut beginning = vec![0; BLANK];
    File::open(disk)?.read_exact_at(&mut beginning, 0)?;
    Ok(beginning)
}

fn mount(volume: &OpenVolume, serial: &str) -> Result<PathBuf, StorageError> {
    let place = Path::new(VOLUMES_ROOT).join(serial);
    fs::create_dir_all(&place)
        .map_err(StorageError::step(format!("make the directory {}", place.display())))?;
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    if volume.read_only {
        flags |= MountFlags::RDONLY;
    }
    // An encrypted one's tables may have parts that were never written, and cannot be read.
    let options = match volume.mapped.is_empty() {
        true => c"errors=remount-ro",
        false => c"noinit_itable,inode_readahead_blks=0,errors=remount-ro",
    };
    rustix::mount::mount(&volume.node, &place, "ext4", flags, Some(options))
        .map_err(StorageError::step(format!("mount {} as ext4", volume.node.display())))?;
    Ok(place)
}

/// Makes an empty file system on a device of that size.
fn make_file_system(node: &Path, size: u64) -> Result<(), StorageError> {
    let mut identity = Identity { uuid: [0; 16], hash_seed: [0; 16] };
    encrypted::fill_with_random(&mut identity.uuid)?;
    encrypted::fill_with_random(&mut identity.hash_seed)?;
    let device = OpenOptions::new().write(true).open(node);
    device
        .and_then(|device| ext4::format(&device, size, &identity, Journal::Kept))
        .map_err(StorageError::step(format!("make a file system on {}", node.display())))
}

fn node_numbers(node: &Path) -> Result<(u32, u32), StorageError> {
    let found =
        fs::metadata(node).map_err(StorageError::step(format!("look at {}", node.display())))?;
    let number = found.rdev();
    Ok((rustix::fs::major(number), rustix::fs::minor(number)))
}
