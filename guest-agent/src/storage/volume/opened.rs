//! Opening one volume, from waiting for its disk to the mounted file system, and closing it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use nacre_protocol::channel::{VOLUMES_ROOT, volume_place};
use nacre_volume_format::declared::{Bind, DeclaredVolume, Format};
use nacre_volume_format::header::Content;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use zeroize::Zeroizing;

use super::encryption::{Encrypted, Mapping as _};
use super::mapping::{self, DeviceMapping};
use super::{Kind, VolumeError};
use crate::disk;
use crate::storage::device_mapper::Mapped;
use crate::storage::encrypted::SECTOR_BYTES;
use crate::storage::ext4::{self, Identity, Journal};
use crate::storage::{StorageError, encrypted};

/// How long the size of a disk may take to be known here, after the host has put it there.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);
/// How long a file system may be busy after the last container has ended.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(5);
/// A smaller disk is a mistake, in bytes.
pub(super) const LEAST_BYTES: u64 = 32 << 20;
/// What must be zero of a blank disk, from its beginning, in bytes.
const BLANK: usize = 2 << 20;
/// What a plain disk begins with while its file system is made.
const MAKING: &[u8] = b"nacre: a file system is being made here";

/// A volume that containers have.
#[derive(Debug)]
pub(super) struct OpenVolume {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) read_only: bool,
    /// The device with its contents in the clear.
    pub(super) node: PathBuf,
    pub(super) numbers: (u32, u32),
    /// Those that it is mapped by, the lowest first.
    pub(super) mapped: Vec<Mapped>,
    pub(super) mount: Option<PathBuf>,
}

impl OpenVolume {
    /// Writes everything to the disk and lets it go. No container uses it any more.
    pub(super) fn close(&self) -> Result<(), StorageError> {
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
        mapping::close(&self.mapped)
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

/// A volume that is to be opened.
pub(super) struct Task {
    pub(super) declared: DeclaredVolume,
    /// Name of the pod; empty outside of Kubernetes.
    pub(super) pod: String,
    /// Its place.
    pub(super) serial: String,
    pub(super) kind: Kind,
    /// The owner's key, if it is encrypted.
    pub(super) secret: Option<Zeroizing<Vec<u8>>>,
}

impl Task {
    /// Opens what is on the disk, once the host has put one there. `stop` is looked at where it takes long.
    pub(super) fn run(&self, stop: &AtomicBool) -> Result<OpenVolume, VolumeError> {
        let (disk, size) = wait_for_disk(&self.serial)?;
        let name = &self.declared.name;
        let step = |source| VolumeError::Step { volume: name.clone(), source };
        if size < LEAST_BYTES {
            return Err(VolumeError::TooSmall { volume: name.clone(), size });
        }
        let doing = format!("read {}", disk.display());
        let beginning = read_beginning(&disk).map_err(StorageError::step(doing)).map_err(step)?;
        let Some(secret) = &self.secret else {
            if self.kind == Kind::FileSystem && is_to_be_made(&beginning) {
                if self.declared.format == Format::Never {
                    return Err(VolumeError::Blank(name.clone()));
                }
                begin(&disk)
                    .map_err(StorageError::step(format!("write to {}", disk.display())))
                    .and_then(|()| make_file_system(&disk, size))
                    .map_err(step)?;
            }
            return self.opened(disk, Vec::new()).map_err(step);
        };
        let content = match self.kind {
            Kind::FileSystem => Content::FileSystem,
            Kind::Device => Content::Raw,
        };
        let pod = match self.declared.bind {
            Bind::Name => None,
            Bind::Pod if self.pod.is_empty() => return Err(VolumeError::NoPod(name.clone())),
            Bind::Pod => Some(self.pod.as_str()),
        };
        let volume =
            Encrypted { declared: &self.declared, pod, content, disk: &disk, secret, stop };
        let mapping = DeviceMapping { serial: &self.serial, disk: &disk };
        let clear = volume.open(&beginning, &mapping)?;
        let mapped = clear.mapped.clone();
        self.opened(clear.node, clear.mapped).map_err(|error| {
            if let Err(left) = mapping.unmap(&mapped) {
                tracing::warn!(volume = name, "failed to undo: {left}");
            }
            step(error)
        })
    }

    /// What is at `node` can be read and written now; a file system is mounted. If that fails, nothing is.
    fn opened(&self, node: PathBuf, mapped: Vec<Mapped>) -> Result<OpenVolume, StorageError> {
        let mut opened = OpenVolume {
            name: self.declared.name.clone(),
            kind: self.kind,
            read_only: self.declared.read_only,
            numbers: node_numbers(&node)?,
            node,
            mapped,
            mount: None,
        };
        if self.kind == Kind::FileSystem {
            opened.mount = Some(mount(&opened, &self.serial)?);
        }
        Ok(opened)
    }
}

/// Whether a plain disk is blank, or the making of a file system was cut short there.
fn is_to_be_made(beginning: &[u8]) -> bool {
    let first = beginning.get(..SECTOR_BYTES).unwrap_or_default();
    let zeros = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    zeros(beginning) || first.strip_prefix(MAKING).is_some_and(zeros)
}

/// Says on a plain disk that what it holds is not a file system yet. The file system's first block goes over it last.
fn begin(disk: &Path) -> io::Result<()> {
    let mut first = MAKING.to_vec();
    first.resize(SECTOR_BYTES, 0);
    let disk = OpenOptions::new().write(true).open(disk)?;
    disk.write_all_at(&first, 0)?;
    disk.sync_all()
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
pub(super) fn make_file_system(node: &Path, size: u64) -> Result<(), StorageError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_disk_whose_making_was_cut_short_is_made_anew_and_nothing_else_is() {
        let root = tempfile::tempdir().unwrap();
        let disk = root.path().join("disk");
        let write = |bytes: &[u8]| fs::write(&disk, [bytes, &vec![0; BLANK]].concat()).unwrap();
        let is_to_be_made = || is_to_be_made(&read_beginning(&disk).unwrap());
        write(b"");
        assert!(is_to_be_made());
        begin(&disk).unwrap();
        let file = OpenOptions::new().write(true).open(&disk).unwrap();
        file.write_all_at(b"a bitmap", 1 << 20).unwrap();
        assert!(is_to_be_made());
        for other in [&[MAKING, b"!"].concat()[..], &MAKING[1..], b"LUKS"] {
            write(other);
            assert!(!is_to_be_made(), "{other:?}");
        }
        // Others' superblocks need not be at the beginning.
        write(&[&vec![0; 1 << 16], &b"_BHRfS_M"[..]].concat());
        assert!(!is_to_be_made());
    }
}
