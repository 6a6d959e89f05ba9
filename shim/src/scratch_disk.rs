//! The disk on which a guest keeps images and what its containers write. The guest encrypts it under a key
//! of its own; to the host it is a file of noise.
//!
//! The file never has a name, and QEMU inherits it: it goes with the last process that has it open,
//! whichever way these processes end.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nacre_configuration::StorageSection;
use nacre_hypervisor::{Disk, DiskImage};
use nacre_protocol::channel::SCRATCH_DISK_SERIAL;
use nacre_protocol::start_report::Failure;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Code, Coded};

/// Why a pod cannot have its scratch disk.
#[derive(Debug, thiserror::Error)]
#[error("storage.directory {directory}: cannot make a scratch disk of {mebibytes} MiB: {cause}")]
pub(crate) struct ScratchDiskError {
    directory: PathBuf,
    mebibytes: u32,
    cause: io::Error,
}

impl Coded for ScratchDiskError {
    fn code(&self) -> Code {
        Code::UNAVAILABLE
    }

    fn failure(&self) -> Option<Failure> {
        Some(Failure::Storage)
    }
}

/// A disk of that size, unless it is 0. Nothing is allocated for it yet.
pub(crate) fn make(
    storage: &StorageSection,
    mebibytes: u32,
) -> Result<Option<Disk>, ScratchDiskError> {
    if mebibytes == 0 {
        return Ok(None);
    }
    let directory = &storage.directory;
    let file = unnamed(directory, u64::from(mebibytes) << 20)
        .map_err(|cause| ScratchDiskError { directory: directory.clone(), mebibytes, cause })?;
    let serial = SCRATCH_DISK_SERIAL.to_owned();
    Ok(Some(Disk { serial, image: DiskImage::Scratch(file.into()) }))
}

fn unnamed(directory: &Path, bytes: u64) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    let file = rustix::fs::open(directory, flags, mode).map_err(|errno| match errno {
        Errno::OPNOTSUPP | Errno::ISDIR => io::Error::other(
            "its file system has no unnamed files; give a directory on ext4, XFS, Btrfs or tmpfs",
        ),
        errno => errno.into(),
    })?;
    let file = File::from(file);
    file.set_len(bytes)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn the_file_is_sparse_private_and_has_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("made/when/absent");
        let storage = StorageSection { directory: directory.clone(), ..Default::default() };
        assert!(make(&storage, 0).unwrap().is_none());
        assert!(!directory.exists());

        let disk = make(&storage, 1024).unwrap().unwrap();
        assert_eq!(disk.serial, "nacre-scratch");
        let DiskImage::Scratch(file) = disk.image else { panic!("the guest could not write it") };
        let metadata = File::from(file).metadata().unwrap();
        assert_eq!((metadata.len(), metadata.nlink(), metadata.blocks()), (1 << 30, 0, 0));
        assert_eq!(metadata.mode() & 0o7777, 0o600);
        assert_eq!(directory.metadata().unwrap().permissions().mode() & 0o7777, 0o700);
        assert_eq!(directory.read_dir().unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_cannot_be_used_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let storage = StorageSection { directory: file.path().into(), ..Default::default() };
        let error = make(&storage, 64).unwrap_err().to_string();
        assert!(error.contains(file.path().to_str().unwrap()), "{error}");
        assert!(error.contains("storage.directory") && error.contains("64 MiB"), "{error}");
    }
}
