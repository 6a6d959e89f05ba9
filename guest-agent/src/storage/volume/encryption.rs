//! From a disk to its contents in the clear: header, dm-integrity, dm-crypt.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nacre_volume_format::declared::{DeclaredVolume, Format};
use nacre_volume_format::header::{Beginning, Content, Header, Keys, LENGTH, SALT, State};
use zeroize::Zeroizing;

use super::{VolumeError, make_file_system};
use crate::storage::device_mapper::{DeviceMapper, Mapped, Table};
use crate::storage::encrypted::{
    SECTOR, SECTOR_BYTES, TABLE_SECTOR, TAG_BYTES, encryption_parameters, fill_with_random,
    provided_sectors,
};
use crate::storage::{StorageError, encrypted};

/// Where dm-integrity begins, in units of 512 bytes. Before it is the header.
const RESERVED_SECTORS: u64 = 2048;
/// What a raw volume is overwritten with at a time, in bytes.
const WIPE: usize = 1 << 20;

/// Opens the volume on `disk`, of which `beginning` was read; makes it if the owner lets a blank one be made.
/// Returns what it is mapped by, the lowest first.
pub(super) fn open(
    declared: &DeclaredVolume,
    content: Content,
    serial: &str,
    disk: &Path,
    beginning: &[u8],
    secret: &[u8],
) -> Result<Vec<Mapped>, VolumeError> {
    let name = &declared.name;
    let step = |source| VolumeError::Step { volume: name.clone(), source };
    let salt = match Beginning::of(beginning) {
        Beginning::Volume(salt) => salt,
        Beginning::Foreign => return Err(VolumeError::Foreign(name.clone())),
        Beginning::Blank => {
            may_make(declared)?;
            let mut salt = [0; SALT];
            fill_with_random(&mut salt).map_err(step)?;
            let keys = Keys::derive(secret, &salt, name);
            return make(declared, content, serial, disk, &keys, salt).map_err(step);
        }
    };
    let keys = Keys::derive(secret, &salt, name);
    let block = beginning.get(..LENGTH).unwrap_or(beginning);
    let header = Header::open(block, &keys)
        .map_err(|problem| VolumeError::Header { volume: name.clone(), problem: problem.into() })?;
    if header.content != content {
        let made = match header.content {
            Content::FileSystem => "with a file system: use it by volumeMounts",
            Content::Raw => "as a block device: use it by volumeDevices",
        };
        return Err(VolumeError::Content { volume: name.clone(), made });
    }
    match header.state {
        State::Ready => map(serial, disk, &keys).map_err(step).map(|(mapped, _)| mapped),
        // It was cut short before anything could be written.
        State::Making => {
            may_make(declared)?;
            make(declared, content, serial, disk, &keys, salt).map_err(step)
        }
    }
}

fn may_make(declared: &DeclaredVolume) -> Result<(), VolumeError> {
    match declared.format {
        Format::Blank => Ok(()),
        Format::Never => Err(VolumeError::Blank(declared.name.clone())),
    }
}

/// Closes what [`open`] has opened.
pub(super) fn close(mapped: &[Mapped]) -> Result<(), StorageError> {
    if mapped.is_empty() {
        return Ok(());
    }
    let mapper = DeviceMapper::open()?;
    mapped.iter().rev().try_for_each(|device| mapper.remove(device))
}

/// Makes a volume. The header says last that it is one.
fn make(
    declared: &DeclaredVolume,
    content: Content,
    serial: &str,
    disk: &Path,
    keys: &Keys,
    salt: [u8; SALT],
) -> Result<Vec<Mapped>, StorageError> {
    tracing::info!(volume = declared.name, "making a volume on a blank disk");
    let header = |state| Header { content, state, salt }.render(keys);
    let failed = || StorageError::step(format!("write to {}", disk.display()));
    let file = OpenOptions::new().write(true).open(disk).map_err(failed())?;
    // dm-integrity makes a superblock where it finds zeros.
    let zeros = [0; SECTOR_BYTES];
    file.write_all_at(&header(State::Making), 0)
        .and_then(|()| file.write_all_at(&zeros, RESERVED_SECTORS * TABLE_SECTOR))
        .and_then(|()| file.sync_all())
        .map_err(failed())?;
    let (mapped, sectors) = map(serial, disk, keys)?;
    let made = fill(&mapped, sectors * TABLE_SECTOR, content);
    let made = made.and_then(|()| {
        file.write_all_at(&header(State::Ready), 0).and_then(|()| file.sync_all()).map_err(failed())
    });
    match made {
        Ok(()) => Ok(mapped),
        Err(error) => {
            if let Err(left) = close(&mapped) {
                tracing::warn!(volume = declared.name, "failed to undo: {left}");
            }
            Err(error)
        }
    }
}

/// Gives a new volume its contents.
fn fill(mapped: &[Mapped], size: u64, content: Content) -> Result<(), StorageError> {
    let Some(top) = mapped.last() else { return Ok(()) };
    let node = top.node();
    match content {
        Content::FileSystem => make_file_system(Path::new(&node), size),
        // Sectors that were never written cannot be read.
        Content::Raw => wipe(Path::new(&node), size)
            .map_err(StorageError::step(format!("overwrite {node} with zeros"))),
    }
}

fn wipe(node: &Path, size: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(node)?;
    let zeros = vec![0; WIPE];
    let mut at = 0;
    while at < size {
        let rest = usize::try_from(size - at).unwrap_or(WIPE).min(WIPE);
        file.write_all_at(&zeros[..rest], at)?;
        at += rest as u64;
    }
    file.sync_all()
}

/// Maps a disk with a header. Returns what it is mapped by, and the length in units of 512 bytes.
fn map(serial: &str, disk: &Path, keys: &Keys) -> Result<(Vec<Mapped>, u64), StorageError> {
    let size = File::open(disk)
        .and_then(|mut file| io::Seek::seek(&mut file, io::SeekFrom::End(0)))
        .map_err(StorageError::step(format!("find the size of {}", disk.display())))?;
    let mapper = DeviceMapper::open()?;
    let tags = mapper.create(&format!("{serial}-integrity"))?;
    match map_above(&mapper, serial, disk, size, keys, &tags) {
        Ok((crypt, sectors)) => Ok((vec![tags, crypt], sectors)),
        Err(error) => {
            close_one(&mapper, &tags);
            Err(error)
        }
    }
}

fn map_above(
    mapper: &DeviceMapper,
    serial: &str,
    disk: &Path,
    size: u64,
    keys: &Keys,
    tags: &Mapped,
) -> Result<(Mapped, u64), StorageError> {
    let parameters = integrity_parameters(disk, &keys.journal);
    let table = |sectors| Table { kind: "integrity", sectors, parameters: &parameters };
    // As on the scratch disk: it tells what it can hold when it is first loaded.
    mapper.load(tags, &table(SECTOR / TABLE_SECTOR))?;
    let status = mapper.status_of_loaded(tags)?;
    mapper.clear(tags)?;
    let room = size.saturating_sub(RESERVED_SECTORS * TABLE_SECTOR);
    let sectors = provided_sectors(&status, room).ok_or(StorageError::Layout { status })?;
    mapper.load(tags, &table(sectors))?;
    mapper.resume(tags)?;
    let crypt = mapper.create(&format!("{serial}-crypt"))?;
    let parameters = encryption_parameters(&keys.sectors, &tags.number());
    let loaded = mapper
        .load(&crypt, &Table { kind: "crypt", sectors, parameters: &parameters })
        .and_then(|()| mapper.resume(&crypt));
    match loaded {
        Ok(()) => Ok((crypt, sectors)),
        Err(error) => {
            close_one(mapper, &crypt);
            Err(error)
        }
    }
}

fn close_one(mapper: &DeviceMapper, device: &Mapped) {
    if let Err(error) = mapper.remove(device) {
        tracing::warn!("{error}");
    }
}

/// Documentation/admin-guide/device-mapper/dm-integrity.rst. `J`: sectors and their tags go through a journal,
/// so that a crash leaves none without the other; the journal is authenticated, too.
fn integrity_parameters(disk: &Path, journal: &[u8; 32]) -> Zeroizing<String> {
    // As long as it gets: growing would leave copies of the key behind.
    let mut text = Zeroizing::new(String::with_capacity(512));
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "{} {RESERVED_SECTORS} {TAG_BYTES} J 2 block_size:{SECTOR} journal_mac:hmac(sha256):",
        disk.display()
    );
    encrypted::push_hex(&mut text, journal);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_kept_and_authenticated() {
        let text = integrity_parameters(Path::new("/dev/vdc"), &[0x5a; 32]);
        assert_eq!(
            *text,
            format!(
                "/dev/vdc 2048 48 J 2 block_size:4096 journal_mac:hmac(sha256):{}",
                "5a".repeat(32)
            )
        );
        assert_eq!(text.capacity(), 512, "it did not grow");
    }
}
