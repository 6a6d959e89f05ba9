//! The kernel's part of an encrypted volume: dm-integrity on the disk, dm-crypt above.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::path::Path;

use nacre_volume_format::header::Keys;
use nacre_volume_format::superblock;
use zeroize::Zeroizing;

use super::encryption::{Clear, Mapping};
use crate::storage::device_mapper::{DeviceMapper, Mapped, Table};
use crate::storage::encrypted::{
    SECTOR, TABLE_SECTOR, TAG_BYTES, encryption_parameters, provided_sectors,
};
use crate::storage::{StorageError, encrypted};

/// Where dm-integrity begins, in units of 512 bytes. Before it is the header.
pub(super) const RESERVED_SECTORS: u64 = superblock::AT as u64 / TABLE_SECTOR;

/// The kernel's mapping of the disk in a place.
pub(super) struct DeviceMapping<'a> {
    pub(super) serial: &'a str,
    pub(super) disk: &'a Path,
}

impl Mapping for DeviceMapping<'_> {
    fn map(&self, keys: &Keys, bytes: Option<u64>) -> Result<Clear, StorageError> {
        let mapper = DeviceMapper::open()?;
        let tags = mapper.create(&format!("{}-integrity", self.serial))?;
        match self.map_above(&mapper, keys, bytes, &tags) {
            Ok((crypt, sectors)) => Ok(Clear {
                node: crypt.node().into(),
                bytes: sectors * TABLE_SECTOR,
                mapped: vec![tags, crypt],
            }),
            Err(error) => {
                close_one(&mapper, &tags);
                Err(error)
            }
        }
    }

    fn unmap(&self, mapped: &[Mapped]) -> Result<(), StorageError> {
        close(mapped)
    }
}

impl DeviceMapping<'_> {
    fn map_above(
        &self,
        mapper: &DeviceMapper,
        keys: &Keys,
        bytes: Option<u64>,
        tags: &Mapped,
    ) -> Result<(Mapped, u64), StorageError> {
        let Self { serial, disk } = *self;
        let shown = || disk.display().to_string();
        let size = File::open(disk)
            .and_then(|mut file| io::Seek::seek(&mut file, io::SeekFrom::End(0)))
            .map_err(StorageError::step(format!("find the size of {}", disk.display())))?;
        let parameters = integrity_parameters(disk, &keys.journal);
        let table = |sectors| Table { kind: "integrity", sectors, parameters: &parameters };
        // As on the scratch disk: it tells what it can hold when it is first loaded.
        mapper.load(tags, &table(SECTOR / TABLE_SECTOR))?;
        let status = mapper.status_of_loaded(tags)?;
        mapper.clear(tags)?;
        let room = size.saturating_sub(RESERVED_SECTORS * TABLE_SECTOR);
        let provided = provided_sectors(&status, room)
            .ok_or_else(|| StorageError::Layout { disk: shown(), status })?;
        let sectors = match bytes {
            None => provided,
            // What a disk that has grown has more of was never written.
            Some(bytes) if bytes <= provided * TABLE_SECTOR => bytes / TABLE_SECTOR,
            Some(needs) => {
                let has = provided * TABLE_SECTOR;
                return Err(StorageError::CutShort { disk: shown(), has, needs });
            }
        };
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
}

/// Closes what was mapped.
pub(super) fn close(mapped: &[Mapped]) -> Result<(), StorageError> {
    if mapped.is_empty() {
        return Ok(());
    }
    let mapper = DeviceMapper::open()?;
    mapped.iter().rev().try_for_each(|device| mapper.remove(device))
}

fn close_one(mapper: &DeviceMapper, device: &Mapped) {
    if let Err(error) = mapper.remove(device) {
        tracing::warn!("{error}");
    }
}

/// Documentation/admin-guide/device-mapper/dm-integrity.rst. `J`: sectors and their tags go through a journal,
/// so that a crash leaves none without the other. The journal is authenticated, and with `fix_hmac` the superblock and
/// the places of the journal's sections, too. It has one size for all volumes: the kernel keeps all of it in memory.
fn integrity_parameters(disk: &Path, journal: &[u8; 32]) -> Zeroizing<String> {
    // As long as it gets: growing would leave copies of the key behind.
    let mut text = Zeroizing::new(String::with_capacity(512));
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "{} {RESERVED_SECTORS} {TAG_BYTES} J 4 block_size:{SECTOR} journal_sectors:{} \
         fix_hmac journal_mac:hmac(sha256):",
        disk.display(),
        superblock::JOURNAL_SECTORS
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
                "/dev/vdc 2048 48 J 4 block_size:4096 journal_sectors:8192 fix_hmac \
                 journal_mac:hmac(sha256):{}",
                "5a".repeat(32)
            )
        );
        assert_eq!(text.capacity(), 512, "it did not grow");
    }
}
