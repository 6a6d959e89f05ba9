//! The store on a disk of the host's: encrypted, and checked sector by sector.
//!
//! Two mapped devices and a file system, made anew at each boot: dm-integrity keeps [`TAG_BYTES`] beside
//! each sector of 4 KiB; dm-crypt fills them with a random initialization vector and an HMAC over sector
//! number, vector and ciphertext; ext4 without a journal is on top. The key is made here, exists only in
//! this guest's memory, and ends with it, so nothing on the disk can be read after the VM's end.
//!
//! What the host can do with the disk:
//! - It cannot read a sector, nor change one, nor put one in another's place, without the guest reading an
//!   I/O error instead of data.
//! - It can put back what the guest itself wrote to the same sector earlier in this boot, vector and tag
//!   included: freshness is not checked. Files may then seem older than they are.
//! - It sees which sectors are read and written, when, and so about how much is stored. Freed sectors are
//!   not given back to it.
//! - It can refuse, delay or forget: the pod fails.
//! - It chooses the superblock of dm-integrity, of which the guest takes the number of data sectors, within
//!   what the disk can hold. The kernel checks it against its own reckoning.
//!
//! Sectors that were never written have no valid tag, and read as errors. Overwriting the whole disk first
//! would take long; instead the file system is made so that nothing is read before it is written
//! ([`super::ext4`]).

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::mount::MountFlags;
use rustix::rand::{GetRandomFlags, getrandom};
use zeroize::Zeroizing;

use super::device_mapper::{DeviceMapper, Mapped, Table};
use super::{StorageError, ext4, integrity};
use crate::modules::{ModuleError, Modules};

/// AES-256 in XTS mode, then HMAC-SHA-256; the initialization vector is random for each write. Both are
/// fast on processors with AES and SHA instructions, and 128 random bits do not repeat, where GCM's 96 might
/// after some terabytes.
const CIPHER: &str = "capi:authenc(hmac(sha256),xts(aes))-random";
/// Two AES-256 keys, and the HMAC's.
const KEY_BYTES: usize = 64 + 32;
/// HMAC and initialization vector, kept for each sector.
pub(super) const TAG_BYTES: u32 = 32 + 16;
/// What is encrypted and checked as one, in bytes; the file system's blocks are as large.
pub(super) const SECTOR: u64 = SECTOR_BYTES as u64;
pub(super) const SECTOR_BYTES: usize = 4096;
/// The unit of tables.
pub(super) const TABLE_SECTOR: u64 = 512;

/// A smaller disk is a mistake.
const LEAST_BYTES: u64 = 16 << 20;

/// Drivers that must be there.
const DRIVERS: [&str; 4] = ["dm_integrity", "authenc", "xts", "dm_crypt"];
/// Faster forms of what the kernel has built in; a processor may not have the instructions.
const ACCELERATORS: [&str; 2] = ["aesni_intel", "sha256_ssse3"];

/// - `noinit_itable`: no thread that overwrites inode tables that are not used.
/// - `inode_readahead_blks=0`: neighbours of an inode may never have been written.
/// - `nobarrier`: what is not on the disk at the VM's end is lost anyway.
const MOUNT_OPTIONS: &std::ffi::CStr =
    c"noinit_itable,inode_readahead_blks=0,nobarrier,errors=remount-ro";

/// Makes the file system on `disk` and mounts it. Returns its capacity in bytes.
pub(super) fn mount(disk: &Path, target: &Path) -> Result<u64, StorageError> {
    let size = blank(disk)?;
    let mapper = DeviceMapper::open()?;
    let (tags, sectors) = add_integrity(&mapper, disk, size)?;
    let crypt = add_encryption(&mapper, &tags, sectors)?;
    // Nothing was read through them yet.
    integrity::watch([&tags, &crypt])
        .map_err(StorageError::step("watch the scratch disk for changes"))?;
    let node = crypt.node();
    make_file_system(&node, sectors * TABLE_SECTOR)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    rustix::mount::mount(&*node, target, "ext4", flags, Some(MOUNT_OPTIONS))
        .map_err(StorageError::step(format!("mount {node} on {}", target.display())))?;
    // Nobody is to rescue what is in it.
    fs::remove_dir(target.join("lost+found"))
        .map_err(StorageError::step("remove lost+found of the new file system"))?;
    let space = rustix::fs::statvfs(target)
        .map_err(StorageError::step(format!("ask for the size of {}", target.display())))?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

/// Loads what [`mount`] needs.
pub(super) fn load_drivers(modules: &Modules) -> Result<(), ModuleError> {
    for name in ACCELERATORS {
        match modules.ensure(name) {
            Err(ModuleError::Load { source, .. }) => {
                tracing::info!("{name} is of no use on this processor: {source}");
            }
            other => other?,
        }
    }
    DRIVERS.iter().try_for_each(|name| modules.ensure(name))
}

/// Clears where dm-integrity looks for a superblock, so that it makes its own. Returns the size in bytes.
fn blank(disk: &Path) -> Result<u64, StorageError> {
    let shown = disk.display();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(disk)
        .map_err(StorageError::step(format!("open the scratch disk {shown} for writing")))?;
    let size = file
        .seek(SeekFrom::End(0))
        .map_err(StorageError::step(format!("find the size of the scratch disk {shown}")))?;
    let size = size - size % SECTOR;
    if size < LEAST_BYTES {
        return Err(StorageError::TooSmall { size, least: LEAST_BYTES });
    }
    file.write_all_at(&[0; SECTOR_BYTES], 0)
        .and_then(|()| file.sync_all())
        .map_err(StorageError::step(format!("write to the scratch disk {shown}")))?;
    Ok(size)
}

/// Maps `disk` to a device with room for a tag beside each sector. Returns it and its length.
fn add_integrity(
    mapper: &DeviceMapper,
    disk: &Path,
    size: u64,
) -> Result<(Mapped, u64), StorageError> {
    let parameters = integrity_parameters(disk);
    let device = mapper.create("nacre-integrity")?;
    let table = |sectors| Table { kind: "integrity", sectors, parameters: &parameters };
    // It lays itself out when it is first loaded, with any length, and then tells what it can hold.
    mapper.load(&device, &table(SECTOR / TABLE_SECTOR))?;
    let status = mapper.status_of_loaded(&device)?;
    mapper.clear(&device)?;
    let sectors = provided_sectors(&status, size)
        .ok_or_else(|| StorageError::Layout { disk: disk.display().to_string(), status })?;
    mapper.load(&device, &table(sectors))?;
    mapper.resume(&device)?;
    Ok((device, sectors))
}

/// Documentation/admin-guide/device-mapper/dm-integrity.rst. `D` writes without a journal: a crash may
/// leave sectors without their tags, but nothing outlives a crash.
fn integrity_parameters(disk: &Path) -> String {
    // The journal is not used, but cannot be left out.
    format!("{} 0 {TAG_BYTES} D 2 journal_sectors:1 block_size:{SECTOR}", disk.display())
}

/// The second number of a dm-integrity's state, if a disk of `size` bytes can hold so many sectors. Tags
/// and the like take less than a tenth, but of small disks.
pub(super) fn provided_sectors(status: &str, size: u64) -> Option<u64> {
    let sectors: u64 = status.split(' ').nth(1)?.parse().ok()?;
    let bytes = sectors.checked_mul(TABLE_SECTOR)?;
    let whole = bytes.is_multiple_of(SECTOR);
    (whole && bytes < size && bytes >= size / 2).then_some(sectors)
}

/// Maps `beneath` to a device that encrypts, under a key that nobody else knows.
fn add_encryption(
    mapper: &DeviceMapper,
    beneath: &Mapped,
    sectors: u64,
) -> Result<Mapped, StorageError> {
    let mut key = Zeroizing::new([0_u8; KEY_BYTES]);
    fill_with_random(&mut *key)?;
    let device = mapper.create("nacre-scratch")?;
    let parameters = encryption_parameters(&key, &beneath.number());
    mapper.load(&device, &Table { kind: "crypt", sectors, parameters: &parameters })?;
    mapper.resume(&device)?;
    Ok(device)
}

/// Documentation/admin-guide/device-mapper/dm-crypt.rst.
pub(super) fn encryption_parameters(key: &[u8; KEY_BYTES], beneath: &str) -> Zeroizing<String> {
    // As long as it gets: growing would leave copies of the key behind.
    let mut text = Zeroizing::new(String::with_capacity(512));
    text.push_str(CIPHER);
    text.push(' ');
    push_hex(&mut text, key);
    // Writing to a string cannot fail.
    let _ = write!(text, " 0 {beneath} 0 2 integrity:{TAG_BYTES}:aead sector_size:{SECTOR}");
    text
}

/// Adds bytes in hexadecimal digits, without a copy beside.
pub(super) fn push_hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
        }
    }
}

fn make_file_system(node: &str, size: u64) -> Result<(), StorageError> {
    let mut identity = ext4::Identity { uuid: [0; 16], hash_seed: [0; 16] };
    fill_with_random(&mut identity.uuid)?;
    fill_with_random(&mut identity.hash_seed)?;
    let doing = format!("make a file system on {node}");
    let device = OpenOptions::new().write(true).open(node);
    device
        .and_then(|device: File| ext4::format(&device, size, &identity, ext4::Journal::None))
        .map_err(StorageError::step(doing))
}

/// From the kernel's generator, which is seeded before the guest does anything.
pub(super) fn fill_with_random(bytes: &mut [u8]) -> Result<(), StorageError> {
    let mut filled = 0;
    while filled < bytes.len() {
        filled += getrandom(&mut bytes[filled..], GetRandomFlags::empty())
            .map_err(|e| StorageError::step("make a random number")(io::Error::from(e)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_as_the_kernel_documents() {
        assert_eq!(
            integrity_parameters(Path::new("/dev/vdb")),
            "/dev/vdb 0 48 D 2 journal_sectors:1 block_size:4096"
        );
        let text = encryption_parameters(&[0xa5; KEY_BYTES], "252:0");
        assert_eq!(
            *text,
            format!(
                "capi:authenc(hmac(sha256),xts(aes))-random {} 0 252:0 0 2 integrity:48:aead \
                 sector_size:4096",
                "a5".repeat(96)
            )
        );
        assert!(text.capacity() == 512, "it did not grow");
    }

    #[test]
    fn the_number_of_sectors_must_fit_the_disk() {
        let size = 64 << 20;
        assert_eq!(provided_sectors("0 129024 -", size), Some(129_024));
        for wrong in
            ["", "0", "0 x -", "0 129025 -", "0 131072 -", "0 800 -", "0 18446744073709551608"]
        {
            assert_eq!(provided_sectors(wrong, size), None, "{wrong}");
        }
    }

    #[test]
    fn keys_differ() {
        let (mut one, mut other) = ([0; KEY_BYTES], [0; KEY_BYTES]);
        fill_with_random(&mut one).unwrap();
        fill_with_random(&mut other).unwrap();
        assert!(one != other && one[64..].iter().any(|byte| *byte != 0));
    }
}
