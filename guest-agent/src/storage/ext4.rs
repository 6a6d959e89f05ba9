//! Writes an empty ext4 file system, as little of it as a kernel can mount.
//!
//! The disk beneath refuses to read what was never written, so nothing may be left for later that the
//! kernel would read: groups are marked as uninitialized (`uninit_bg`), which makes the kernel build
//! bitmaps itself and skip inode tables that hold nothing. That keeps the work small at any size, too: the
//! superblock, one descriptor for each 128 MiB, and a few blocks of the first and the last group.
//!
//! A scratch disk gets no journal: it never outlives the VM. A volume gets one, written to the last block,
//! since whoever replays it reads on until something is not of it. No copies of the superblock
//! (`sparse_super2` with an empty list).
//!
//! Layout: Documentation/filesystems/ext4 of Linux.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const BLOCK: usize = BLOCK_BYTES as usize;
const BLOCK_BYTES: u32 = 4096;
/// As many as one block's bits.
const BLOCKS_PER_GROUP: u32 = 32768;
/// One for 8 KiB, twice as many as `mke2fs` makes: images are small files.
const INODES_PER_GROUP: u32 = 16384;
const INODE: usize = INODE_BYTES as usize;
const INODE_BYTES: u32 = 256;
const INODE_TABLE_BLOCKS: u32 = INODES_PER_GROUP * INODE_BYTES / BLOCK_BYTES;
/// Two bitmaps and the inode table.
const GROUP_OVERHEAD: u32 = 2 + INODE_TABLE_BLOCKS;
/// A last group with less room for data is left out.
const LEAST_DATA_BLOCKS: u32 = 64;
const DESCRIPTOR: usize = DESCRIPTOR_BYTES as usize;
const DESCRIPTOR_BYTES: u32 = 32;
/// Blocks have 32-bit numbers without the feature `64bit`; 8 TiB.
const MOST_BLOCKS: u64 = 1 << 31;

const ROOT_INODE: u32 = 2;
const JOURNAL_INODE: u32 = 8;
const LOST_AND_FOUND_INODE: u32 = 11;
/// Those that are reserved, and `lost+found`.
const USED_INODES: u32 = 11;

const HAS_JOURNAL: u32 = 0x4;
const COMPATIBLE: u32 = 0x8 /* ext_attr */ | 0x20 /* dir_index */ | 0x200 /* sparse_super2 */;
const INCOMPATIBLE: u32 = 0x2 /* filetype */ | 0x40 /* extents */;
const READ_COMPATIBLE: u32 = 0x2 /* large_file */ | 0x8 /* huge_file */
    | 0x10 /* uninit_bg */ | 0x20 /* dir_nlink */ | 0x40 /* extra_isize */;

const INODES_UNINITIALIZED: u16 = 1;
const BLOCKS_UNINITIALIZED: u16 = 2;

/// What is random about a file system.
#[derive(Debug, Clone, Copy)]
pub(super) struct Identity {
    /// Also the seed of the descriptors' checksums.
    pub(super) uuid: [u8; 16],
    /// Makes the order of directories' hashes unforeseeable.
    pub(super) hash_seed: [u8; 16],
}

/// Whether a crash may leave the file system in disorder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Journal {
    /// It may: nobody will see it.
    None,
    /// A 64th of the file system, 4 to 64 MiB.
    Kept,
}

/// Writes a file system of at most `size` bytes.
///
/// # Errors
/// If `size` is below 8 MiB (16 MiB with a journal) or above 8 TiB, or writing fails.
pub(super) fn format(
    disk: &File,
    size: u64,
    identity: &Identity,
    journal: Journal,
) -> io::Result<()> {
    let layout = Layout::of(size, journal)
        .ok_or_else(|| io::Error::other(format!("{size} bytes are too few or too many for it")))?;
    let mut write = |block: u32, bytes: &[u8]| disk.write_all_at(bytes, offset(block));
    write_all_but_first(&layout, identity, &mut write)?;
    disk.sync_all()?;
    // What was cut short before is no file system.
    let mut first = vec![0_u8; BLOCK];
    first[1024..2048].copy_from_slice(&layout.superblock(identity));
    write(0, &first)?;
    disk.sync_all()
}

fn write_all_but_first(
    layout: &Layout,
    identity: &Identity,
    write: &mut impl FnMut(u32, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    write(1, &layout.descriptors(identity))?;
    let (bitmap, inodes, table) = layout.places(0);
    write(bitmap, &layout.block_bitmap(0))?;
    write(inodes, &inode_bitmap())?;
    write(table, &layout.inode_table())?;
    write(layout.root_block(), &root_directory())?;
    write(layout.root_block() + 1, &lost_and_found())?;
    if layout.journal_blocks > 0 {
        write(layout.journal_start(), &journal_superblock(layout.journal_blocks, identity))?;
        for block in 1..layout.journal_blocks {
            write(layout.journal_start() + block, &[0; BLOCK])?;
        }
    }
    let last = layout.groups - 1;
    if last > 0 {
        write(layout.places(last).0, &layout.block_bitmap(last))?;
    }
    Ok(())
}

/// Where everything is.
struct Layout {
    blocks: u32,
    groups: u32,
    /// Of the table of descriptors.
    descriptor_blocks: u32,
    /// In the first group, behind the two directories.
    journal_blocks: u32,
}

impl Layout {
    fn of(size: u64, journal: Journal) -> Option<Self> {
        let mut blocks =
            u32::try_from((size / u64::from(BLOCK_BYTES)).min(MOST_BLOCKS + 1)).ok()?;
        if u64::from(blocks) > MOST_BLOCKS {
            return None;
        }
        let last = blocks % BLOCKS_PER_GROUP;
        if blocks > BLOCKS_PER_GROUP && last < GROUP_OVERHEAD + LEAST_DATA_BLOCKS {
            blocks -= last;
        }
        let groups = blocks.div_ceil(BLOCKS_PER_GROUP);
        let descriptor_blocks = (groups * DESCRIPTOR_BYTES).div_ceil(BLOCK_BYTES);
        let journal_blocks = match journal {
            Journal::None => 0,
            // The kernel takes none of less than 1024 blocks.
            Journal::Kept => (blocks / 64).clamp(1024, 16384),
        };
        let layout = Self { blocks, groups, descriptor_blocks, journal_blocks };
        let least = layout.used(0) + LEAST_DATA_BLOCKS;
        (blocks >= least.max(2048)).then_some(layout)
    }

    /// Blocks of a group.
    fn size(&self, group: u32) -> u32 {
        (self.blocks - group * BLOCKS_PER_GROUP).min(BLOCKS_PER_GROUP)
    }

    /// Blocks at the beginning of a group that are taken.
    fn used(&self, group: u32) -> u32 {
        match group {
            // Superblock, descriptors, two directories, and the journal.
            0 => 1 + self.descriptor_blocks + GROUP_OVERHEAD + 2 + self.journal_blocks,
            _ => GROUP_OVERHEAD,
        }
    }

    /// Of a group: block bitmap, inode bitmap, inode table.
    fn places(&self, group: u32) -> (u32, u32, u32) {
        let start = match group {
            0 => 1 + self.descriptor_blocks,
            _ => group * BLOCKS_PER_GROUP,
        };
        (start, start + 1, start + 2)
    }

    /// That of `lost+found` follows.
    fn root_block(&self) -> u32 {
        self.places(0).2 + INODE_TABLE_BLOCKS
    }

    fn journal_start(&self) -> u32 {
        self.root_block() + 2
    }

    fn free(&self, group: u32) -> u32 {
        self.size(group) - self.used(group)
    }

    fn superblock(&self, identity: &Identity) -> [u8; 1024] {
        let mut block = [0; 1024];
        let inodes = self.groups * INODES_PER_GROUP;
        let free: u32 = (0..self.groups).map(|group| self.free(group)).sum();
        let words = [
            (0x00, inodes),
            (0x04, self.blocks),
            (0x0c, free),
            (0x10, inodes - USED_INODES),
            (0x18, 2), // blocks of 1024 << 2
            (0x1c, 2), // clusters as well
            (0x20, BLOCKS_PER_GROUP),
            (0x24, BLOCKS_PER_GROUP),
            (0x28, INODES_PER_GROUP),
            (0x4c, 1), // revision
            (0x54, USED_INODES),
            (0x5c, COMPATIBLE | if self.journal_blocks > 0 { HAS_JOURNAL } else { 0 }),
            (0x60, INCOMPATIBLE),
            (0x64, READ_COMPATIBLE),
            (0x160, 1), // hashes of signed characters
        ];
        for (at, word) in words {
            put(&mut block, at, &word.to_le_bytes());
        }
        let halves = [
            (0x36, u16::MAX), // no count of mounts after which to check
            (0x38, 0xef53),
            (0x3a, 1),   // clean
            (0x3c, 2),   // errors make it read-only
            (0x58, 256), // bytes of an inode
            (0x15c, 32), // extra size of inodes, least and wanted
            (0x15e, 32),
        ];
        for (at, half) in halves {
            put(&mut block, at, &half.to_le_bytes());
        }
        put(&mut block, 0x68, &identity.uuid);
        put(&mut block, 0xec, &identity.hash_seed);
        block[0xfc] = 1; // half MD4
        if self.journal_blocks > 0 {
            put(&mut block, 0xe0, &JOURNAL_INODE.to_le_bytes());
            // A copy of where the journal is, for repairs: the inode's blocks, then its size.
            block[0xfd] = 1;
            let inode = self.journal_inode();
            put(&mut block, 0x10c, &inode[0x28..0x64]);
            put(&mut block, 0x14c, &inode[0x04..0x08]);
        }
        block
    }

    /// The table of descriptors, in whole blocks.
    fn descriptors(&self, identity: &Identity) -> Vec<u8> {
        let mut table = vec![0; self.descriptor_blocks as usize * BLOCK];
        let seed = crc16(u16::MAX, &identity.uuid);
        for (group, descriptor) in (0..self.groups).zip(table.chunks_exact_mut(DESCRIPTOR)) {
            let (bitmap, inodes, inode_table) = self.places(group);
            let used_inodes = if group == 0 { USED_INODES } else { 0 };
            let unused = half(INODES_PER_GROUP - used_inodes);
            let flags = match group {
                0 => 0,
                // The last one's bitmap has a tail, and is written.
                _ if group == self.groups - 1 => INODES_UNINITIALIZED,
                _ => INODES_UNINITIALIZED | BLOCKS_UNINITIALIZED,
            };
            put(descriptor, 0x00, &bitmap.to_le_bytes());
            put(descriptor, 0x04, &inodes.to_le_bytes());
            put(descriptor, 0x08, &inode_table.to_le_bytes());
            put(descriptor, 0x0c, &half(self.free(group)));
            put(descriptor, 0x0e, &unused);
            let directories: u16 = if group == 0 { 2 } else { 0 };
            put(descriptor, 0x10, &directories.to_le_bytes());
            put(descriptor, 0x12, &flags.to_le_bytes());
            put(descriptor, 0x1c, &unused);
            let sum = crc16(crc16(seed, &group.to_le_bytes()), &descriptor[..0x1e]);
            put(descriptor, 0x1e, &sum.to_le_bytes());
        }
        table
    }

    fn block_bitmap(&self, group: u32) -> Vec<u8> {
        let mut bitmap = vec![0; BLOCK];
        set_bits(&mut bitmap, 0, self.used(group) as usize);
        set_bits(&mut bitmap, self.size(group) as usize, BLOCK * 8);
        bitmap
    }

    /// The first block of it.
    fn inode_table(&self) -> Vec<u8> {
        let mut table = vec![0; BLOCK];
        let inodes =
            [(ROOT_INODE, 3, self.root_block()), (LOST_AND_FOUND_INODE, 2, self.root_block() + 1)];
        for (number, links, block) in inodes {
            let start = (number as usize - 1) * INODE;
            table[start..start + INODE].copy_from_slice(&directory_inode(links, block));
        }
        if self.journal_blocks > 0 {
            let start = (JOURNAL_INODE as usize - 1) * INODE;
            table[start..start + INODE].copy_from_slice(&self.journal_inode());
        }
        table
    }

    fn journal_inode(&self) -> [u8; INODE] {
        inode(0o100_600, 1, self.journal_start(), self.journal_blocks)
    }
}

/// The journal's first block (Documentation/filesystems/ext4/journal.rst; its numbers are big-endian): version
/// 2, nothing in it.
fn journal_superblock(blocks: u32, identity: &Identity) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    let words = [
        (0x00, 0xc03b_3998),
        (0x04, 4), // superblock, version 2
        (0x0c, BLOCK_BYTES),
        (0x10, blocks),
        (0x14, 1), // the first block of the log
        (0x18, 1), // the first number expected
        (0x40, 1), // users
    ];
    for (at, word) in words {
        put(&mut block, at, &u32::to_be_bytes(word));
    }
    put(&mut block, 0x30, &identity.uuid);
    block
}

fn inode_bitmap() -> Vec<u8> {
    let mut bitmap = vec![0; BLOCK];
    set_bits(&mut bitmap, 0, USED_INODES as usize);
    set_bits(&mut bitmap, INODES_PER_GROUP as usize, BLOCK * 8);
    bitmap
}

/// The inode of a directory of one block that root alone may write.
fn directory_inode(links: u16, block: u32) -> [u8; INODE] {
    let mode = if links > 2 { 0o040_755 } else { 0o040_700 };
    inode(mode, links, block, 1)
}

/// The inode of what lies in `count` blocks from `block` on.
fn inode(mode: u16, links: u16, block: u32, count: u32) -> [u8; INODE] {
    const EXTENTS: u32 = 0x8_0000;
    let mut inode = [0; INODE];
    put(&mut inode, 0x00, &mode.to_le_bytes());
    put(&mut inode, 0x04, &(count * BLOCK_BYTES).to_le_bytes());
    put(&mut inode, 0x1a, &links.to_le_bytes());
    put(&mut inode, 0x1c, &(count * (BLOCK_BYTES / 512)).to_le_bytes());
    put(&mut inode, 0x20, &EXTENTS.to_le_bytes());
    // Header of the extents: magic number, entries, room for entries; then the one extent.
    for (at, half) in [(0x28, 0xf30a), (0x2a, 1), (0x2c, 4)] {
        put(&mut inode, at, &u16::to_le_bytes(half));
    }
    put(&mut inode, 0x38, &half(count));
    put(&mut inode, 0x3c, &block.to_le_bytes());
    put(&mut inode, 0x80, &32_u16.to_le_bytes());
    inode
}

fn root_directory() -> Vec<u8> {
    directory(&[(".", ROOT_INODE), ("..", ROOT_INODE), ("lost+found", LOST_AND_FOUND_INODE)])
}

fn lost_and_found() -> Vec<u8> {
    directory(&[(".", LOST_AND_FOUND_INODE), ("..", ROOT_INODE)])
}

/// A directory's block: its entries, each a directory, of which the last reaches to the end.
fn directory(entries: &[(&str, u32)]) -> Vec<u8> {
    const DIRECTORY: u8 = 2;
    let mut block = Vec::with_capacity(BLOCK);
    for (index, (name, inode)) in entries.iter().enumerate() {
        let last = index == entries.len() - 1;
        let end = if last { BLOCK } else { block.len() + (8 + name.len()).next_multiple_of(4) };
        let length = end - block.len();
        block.extend(inode.to_le_bytes());
        block.extend(length.to_le_bytes().first_chunk::<2>().into_iter().flatten());
        block.extend([name.len().to_le_bytes()[0], DIRECTORY]);
        block.extend(name.as_bytes());
        block.resize(end, 0);
    }
    block
}

fn offset(block: u32) -> u64 {
    u64::from(block) * u64::from(BLOCK_BYTES)
}

/// Of a number below 65536.
fn half(number: u32) -> [u8; 2] {
    let [low, high, ..] = number.to_le_bytes();
    [low, high]
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Bits from `start` to `end`, the least significant of a byte first.
fn set_bits(bitmap: &mut [u8], start: usize, end: usize) {
    for bit in start..end {
        bitmap[bit / 8] |= 1 << (bit % 8);
    }
}

/// CRC-16 with the polynomial 0x8005, reflected, as the kernel's lib/crc16.c.
fn crc16(seed: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(seed, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| {
            if crc & 1 == 1 { (crc >> 1) ^ 0xa001 } else { crc >> 1 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const IDENTITY: Identity = Identity { uuid: [7; 16], hash_seed: [9; 16] };

    #[test]
    fn the_checksum_is_the_usual_one() {
        // The check value of CRC-16/ARC.
        assert_eq!(crc16(0, b"123456789"), 0xbb3d);
    }

    #[test]
    fn the_block_that_makes_it_a_file_system_comes_last() {
        let layout = Layout::of(1 << 30, Journal::Kept).unwrap();
        let mut written = Vec::new();
        let mut write = |block, _: &[u8]| {
            written.push(block);
            Ok(())
        };
        write_all_but_first(&layout, &IDENTITY, &mut write).unwrap();
        assert!(written.len() > 4096 && !written.contains(&0));
    }

    #[test]
    fn a_checker_finds_nothing_wrong_at_any_size() {
        if Command::new("e2fsck").arg("-V").output().is_err() {
            eprintln!("skipped: e2fsck (e2fsprogs) is absent");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let group = u64::from(BLOCKS_PER_GROUP) * BLOCK as u64;
        let overhead = u64::from(GROUP_OVERHEAD + LEAST_DATA_BLOCKS) * BLOCK as u64;
        for size in [
            8 << 20,
            64 << 20,
            group,
            // A last group that is just left out, and one that is just taken.
            group + overhead - 4096,
            group + overhead,
            (3 * group) + 12_345_678,
            1 << 30,
            (10 << 30) + 4096,
            1 << 40,
        ] {
            let path = directory.path().join("disk");
            let disk = File::options().create(true).truncate(true).write(true).open(&path).unwrap();
            disk.set_len(size).unwrap();
            for journal in [Journal::None, Journal::Kept] {
                if journal == Journal::Kept && size < 16 << 20 {
                    assert!(Layout::of(size, journal).is_none());
                    continue;
                }
                format(&disk, size, &IDENTITY, journal).unwrap();
                let check = Command::new("e2fsck").args(["-f", "-n"]).arg(&path).output().unwrap();
                let said = String::from_utf8_lossy(&check.stdout);
                assert!(check.status.success(), "{size}, {journal:?}: {said}{check:?}");
                assert!(!said.contains("Fix?"), "{size}, {journal:?}: {said}");
            }
        }
    }

    #[test]
    fn sizes_that_make_no_file_system_are_refused() {
        for size in [0, 4096, (8 << 20) - 4096, (8 << 40) + 4096, u64::MAX] {
            assert!(Layout::of(size, Journal::None).is_none(), "{size}");
        }
        assert!(Layout::of(8 << 40, Journal::None).is_some());
    }
}
