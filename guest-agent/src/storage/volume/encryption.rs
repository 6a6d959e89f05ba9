//! An encrypted volume: what its header says, and what is done then. docs/volume-format.md has the format.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nacre_volume_format::declared::{DeclaredVolume, Format};
use nacre_volume_format::header::{Beginning, Content, Header, Keys, LENGTH, SALT, State, Whose};
use nacre_volume_format::superblock;
use rustix::fs::Advice;

use super::VolumeError;
use super::opened::make_file_system;
use crate::storage::StorageError;
use crate::storage::device_mapper::Mapped;
use crate::storage::encrypted::{SECTOR_BYTES, fill_with_random};

/// What a raw volume is overwritten with at a time, in bytes.
const WIPE: usize = 1 << 20;

/// A disk's contents in the clear.
#[derive(Debug)]
pub(super) struct Clear {
    pub(super) node: PathBuf,
    pub(super) bytes: u64,
    /// What it is mapped by, the lowest first.
    pub(super) mapped: Vec<Mapped>,
}

/// How a disk is mapped to its contents in the clear: by the kernel, and in tests by a file beside it.
pub(super) trait Mapping {
    /// Maps so many bytes, or all that the disk can hold.
    fn map(&self, keys: &Keys, bytes: Option<u64>) -> Result<Clear, StorageError>;
    /// Undoes it.
    fn unmap(&self, mapped: &[Mapped]) -> Result<(), StorageError>;
}

/// An encrypted volume that is to be opened.
pub(super) struct Encrypted<'a> {
    pub(super) declared: &'a DeclaredVolume,
    /// Name of the pod that it is bound to, if it is.
    pub(super) pod: Option<&'a str>,
    pub(super) content: Content,
    pub(super) disk: &'a Path,
    pub(super) secret: &'a [u8],
    /// The pod ends.
    pub(super) stop: &'a AtomicBool,
}

impl Encrypted<'_> {
    /// Opens the volume on the disk, of which `beginning` was read; makes it if the owner lets a blank one be made.
    pub(super) fn open(
        &self,
        beginning: &[u8],
        mapping: &impl Mapping,
    ) -> Result<Clear, VolumeError> {
        let volume = || self.declared.name.clone();
        let unusable = |problem: String| VolumeError::Header { volume: volume(), problem };
        let salt = match Beginning::of(beginning) {
            Beginning::Volume(salt) => salt,
            Beginning::Blank => return self.make(mapping),
            Beginning::Foreign => return Err(VolumeError::Foreign(volume())),
            Beginning::OtherVersion(version) => {
                let problem =
                    format!("it has version {version} of the format, and this guest knows 1");
                return Err(unusable(problem));
            }
        };
        let keys = self.keys(&salt);
        let block = beginning.get(..LENGTH).unwrap_or(beginning);
        let header = Header::open(block, &keys).map_err(|error| unusable(error.into()))?;
        if header.content != self.content {
            let made = match header.content {
                Content::FileSystem => "with a file system: use it by volumeMounts",
                Content::Raw => "as a block device: use it by volumeDevices",
            };
            return Err(VolumeError::Content { volume: volume(), made });
        }
        match header.state {
            State::Ready { bytes } => {
                superblock::check(beginning).map_err(|error| unusable(error.into()))?;
                mapping.map(&keys, Some(bytes)).map_err(|error| self.failed(error))
            }
            // It was cut short before anything could be written, or the host says so with a header of that time. So
            // it gets keys of its own: nothing of a former life is valid in the new one.
            State::Making => self.make(mapping),
        }
    }

    fn keys(&self, salt: &[u8; SALT]) -> Keys {
        let whose = Whose { volume: &self.declared.name, pod: self.pod };
        Keys::derive(self.secret, salt, whose)
    }

    fn failed(&self, source: StorageError) -> VolumeError {
        VolumeError::Step { volume: self.declared.name.clone(), source }
    }

    /// Makes the volume where the owner permits. The header says last that it is one.
    fn make(&self, mapping: &impl Mapping) -> Result<Clear, VolumeError> {
        if self.declared.format == Format::Never {
            return Err(VolumeError::Blank(self.declared.name.clone()));
        }
        tracing::info!(volume = self.declared.name, "making a volume on a blank disk");
        let mut salt = [0; SALT];
        fill_with_random(&mut salt).map_err(|error| self.failed(error))?;
        let keys = self.keys(&salt);
        let header = |state| Header { content: self.content, state, salt }.render(&keys);
        let doing = || StorageError::step(format!("write to {}", self.disk.display()));
        let disk = OpenOptions::new().read(true).write(true).open(self.disk);
        let disk = disk.map_err(doing()).map_err(|error| self.failed(error))?;
        let begin = || {
            disk.write_all_at(&header(State::Making), 0)?;
            // dm-integrity makes a superblock where it finds zeros.
            disk.write_all_at(&[0; SECTOR_BYTES], superblock::AT as u64)?;
            disk.sync_all()
        };
        begin().map_err(doing()).map_err(|error| self.failed(error))?;
        let clear = mapping.map(&keys, None).map_err(|error| self.failed(error))?;
        let finish = || {
            self.check_made(&disk)?;
            self.fill(&clear).map_err(|error| self.failed(error))?;
            let ready = header(State::Ready { bytes: clear.bytes });
            let written = disk.write_all_at(&ready, 0).and_then(|()| disk.sync_all());
            written.map_err(doing()).map_err(|error| self.failed(error))
        };
        match finish() {
            Ok(()) => Ok(clear),
            Err(error) => {
                if let Err(left) = mapping.unmap(&clear.mapped) {
                    tracing::warn!(volume = self.declared.name, "failed to undo: {left}");
                }
                Err(error)
            }
        }
    }

    /// What the kernel has made must be what will be asked for when the volume is opened.
    fn check_made(&self, disk: &File) -> Result<(), VolumeError> {
        let mut beginning = vec![0; superblock::AT + superblock::LENGTH];
        // The kernel writes it beside this device's cache, which has the zeros.
        let read = rustix::fs::fadvise(disk, 0, None, Advice::DontNeed)
            .map_err(io::Error::from)
            .and_then(|()| disk.read_exact_at(&mut beginning, 0));
        let doing = StorageError::step(format!("read {}", self.disk.display()));
        read.map_err(doing).map_err(|error| self.failed(error))?;
        superblock::check(&beginning).map_err(|error| {
            let (volume, problem) = (self.declared.name.clone(), error.into());
            VolumeError::Header { volume, problem }
        })
    }

    /// Gives a new volume its contents.
    fn fill(&self, clear: &Clear) -> Result<(), StorageError> {
        match self.content {
            Content::FileSystem => make_file_system(&clear.node, clear.bytes),
            // Sectors that were never written cannot be read.
            Content::Raw => wipe(&clear.node, clear.bytes, self.stop).map_err(StorageError::step(
                format!("overwrite {} with zeros", clear.node.display()),
            )),
        }
    }
}

fn wipe(node: &Path, size: u64, stop: &AtomicBool) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(node)?;
    let zeros = vec![0; WIPE];
    let mut at = 0;
    while at < size {
        if stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("the pod ends; it will begin anew"));
        }
        let rest = usize::try_from(size - at).unwrap_or(WIPE).min(WIPE);
        file.write_all_at(&zeros[..rest], at)?;
        at += rest as u64;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_volume_format::declared::DeclaredVolumes;

    const SECRET: [u8; 32] = [7; 32];
    const SIZE: usize = 24 << 20;
    const ENOUGH: usize = 2 << 20;
    /// As Linux 6.12 makes it.
    const SUPERBLOCK: [u8; 48] =
        *b"integrt\0\x05\x0f\x30\0\x1f\0\0\0\0\0\x01\0\0\0\0\0\x11\0\0\0\x03\x0c\0\0\
                                    \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

    fn declared(format: &str) -> DeclaredVolume {
        let text = format!(
            "[[volume]]\nname = \"data\"\nmounts = [\"/data\"]\nkey = \"kbs:///a/b/c\"\nformat = \"{format}\"\n"
        );
        DeclaredVolumes::parse(&text).unwrap().volumes()[0].clone()
    }

    /// The contents in the clear are a file beside the disk.
    struct Beside(PathBuf);

    impl Beside {
        fn disk(&self) -> PathBuf {
            self.0.join("disk")
        }

        fn clear(&self) -> PathBuf {
            self.0.join("clear")
        }
    }

    impl Mapping for Beside {
        fn map(&self, _keys: &Keys, bytes: Option<u64>) -> Result<Clear, StorageError> {
            let disk = OpenOptions::new().read(true).write(true).open(self.disk()).unwrap();
            let mut there = [0; 8];
            disk.read_exact_at(&mut there, superblock::AT as u64).unwrap();
            if there == [0; 8] {
                disk.write_all_at(&SUPERBLOCK, superblock::AT as u64).unwrap();
            }
            let bytes = bytes.unwrap_or(SIZE as u64);
            let clear =
                OpenOptions::new().create(true).truncate(false).write(true).open(self.clear());
            clear.unwrap().set_len(bytes).unwrap();
            Ok(Clear { node: self.clear(), bytes, mapped: vec![] })
        }

        fn unmap(&self, _mapped: &[Mapped]) -> Result<(), StorageError> {
            Ok(())
        }
    }

    fn open(beside: &Beside, format: &str, content: Content) -> Result<Clear, VolumeError> {
        open_with(beside, format, content, &SECRET, None, false)
    }

    fn open_with(
        beside: &Beside,
        format: &str,
        content: Content,
        secret: &[u8],
        pod: Option<&str>,
        stop: bool,
    ) -> Result<Clear, VolumeError> {
        let (declared, disk, stop) = (declared(format), beside.disk(), AtomicBool::new(stop));
        let volume =
            Encrypted { declared: &declared, pod, content, disk: &disk, secret, stop: &stop };
        let beginning = std::fs::read(&disk).unwrap();
        volume.open(&beginning[..ENOUGH], beside)
    }

    fn blank() -> (tempfile::TempDir, Beside) {
        let root = tempfile::tempdir().unwrap();
        let beside = Beside(root.path().to_owned());
        std::fs::write(beside.disk(), vec![0; ENOUGH]).unwrap();
        (root, beside)
    }

    fn change(beside: &Beside, at: usize, to: &[u8]) {
        let disk = OpenOptions::new().write(true).open(beside.disk()).unwrap();
        disk.write_all_at(to, at as u64).unwrap();
    }

    #[test]
    fn a_blank_disk_becomes_a_volume_once_and_only_where_that_is_permitted() {
        let (_root, beside) = blank();
        let error = open(&beside, "never", Content::FileSystem).unwrap_err();
        assert!(matches!(error, VolumeError::Blank(_)), "{error}");
        assert!(std::fs::read(beside.disk()).unwrap().iter().all(|byte| *byte == 0));
        let clear = open(&beside, "blank", Content::FileSystem).unwrap();
        assert_eq!(clear.bytes, SIZE as u64);
        let made = std::fs::read(beside.clear()).unwrap();
        assert_eq!(made[1080..1082], [0x53, 0xef], "ext4");
        let before = std::fs::read(beside.disk()).unwrap();
        let again = open(&beside, "never", Content::FileSystem).unwrap();
        assert_eq!(again.bytes, SIZE as u64, "as large as it was made");
        open(&beside, "blank", Content::FileSystem).unwrap();
        assert_eq!(std::fs::read(beside.disk()).unwrap(), before, "nothing is made anew");
    }

    #[test]
    fn what_is_another_s_is_refused_and_left_alone() {
        let (_root, beside) = blank();
        open_with(&beside, "blank", Content::Raw, &SECRET, Some("web-0"), false).unwrap();
        let before = std::fs::read(beside.disk()).unwrap();
        type Expected = fn(&VolumeError) -> bool;
        let with = |secret: u8, pod, content| {
            open_with(&beside, "blank", content, &[secret; 32], pod, false).map(|_| ())
        };
        let cases: [(Result<(), VolumeError>, Expected); 4] = [
            (with(8, Some("web-0"), Content::Raw), |e| matches!(e, VolumeError::Header { .. })),
            (with(7, Some("web-1"), Content::Raw), |e| matches!(e, VolumeError::Header { .. })),
            (with(7, None, Content::Raw), |e| matches!(e, VolumeError::Header { .. })),
            (with(7, Some("web-0"), Content::FileSystem), |e| {
                matches!(e, VolumeError::Content { .. })
            }),
        ];
        for (opened, expected) in cases {
            let error = opened.unwrap_err();
            assert!(expected(&error), "{error}");
        }
        assert_eq!(std::fs::read(beside.disk()).unwrap(), before);
        with(7, Some("web-0"), Content::Raw).unwrap();
        // The superblock is looked at before the kernel does.
        change(&beside, superblock::AT + 24, &[0x15]);
        let error = with(7, Some("web-0"), Content::Raw).unwrap_err().to_string();
        assert!(error.contains("flags"), "{error}");
        for (magic, expected) in
            [(&b"LUKS\xba\xbe"[..], "something else"), (b"nacre-volume\x02", "version 2")]
        {
            change(&beside, 0, magic);
            let error = with(7, Some("web-0"), Content::Raw).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn what_was_cut_short_is_made_anew_under_new_keys() {
        let (_root, beside) = blank();
        let error = open_with(&beside, "blank", Content::Raw, &SECRET, None, true).unwrap_err();
        assert!(error.to_string().contains("the pod ends"), "{error}");
        let read = || std::fs::read(beside.disk()).unwrap();
        let salt = |bytes: &[u8]| match Beginning::of(bytes) {
            Beginning::Volume(salt) => salt,
            other => panic!("{other:?}"),
        };
        let unfinished = read();
        let error = open(&beside, "never", Content::Raw).unwrap_err();
        assert!(matches!(error, VolumeError::Blank(_)), "{error}");
        open(&beside, "blank", Content::Raw).unwrap();
        let first = read();
        assert_ne!(salt(&unfinished), salt(&first));
        // The host puts the header of that time back. What it has kept of the volume's sectors is of no use.
        change(&beside, 0, &unfinished[..LENGTH]);
        open(&beside, "blank", Content::Raw).unwrap();
        let second = read();
        assert!(![salt(&unfinished), salt(&first)].contains(&salt(&second)));
    }
}
