//! The superblock of dm-integrity in an encrypted volume: what the kernel reads of the disk before anything of it is
//! authenticated.
//!
//! The guest has the kernel keep an authentication code of it (`fix_hmac`), but the host chooses whether the
//! superblock says so, and the kernel parses much of it before. So nothing but what this format prescribes gets
//! that far. A disk that answers the kernel otherwise than it answered here still meets the code.

/// Where it is, in bytes from the disk's beginning.
pub const AT: usize = 1 << 20;
/// Length of what is checked, in bytes.
pub const LENGTH: usize = 64;

/// What dm-integrity is told of its journal's size, in units of 512 bytes. It keeps the journal in memory, too.
pub const JOURNAL_SECTORS: u32 = 8192;

/// Fields as Linux 6.12 lays them out (`struct superblock` in drivers/md/dm-integrity.c): where, what they must be,
/// and what they are called. Between them are the number of sectors that the kernel had reckoned when it wrote them, and
/// a salt; it takes the former from the disk's size and not from here.
const FIELDS: [(usize, &[u8], &str); 10] = [
    (0, b"integrt\0", "magic"),
    // With `fix_hmac`.
    (8, &[5], "version"),
    (9, &[15], "log2_interleave_sectors"),
    (10, &48_u16.to_le_bytes(), "integrity_tag_size"),
    // A section has 264 sectors: 32 entries of a block of 4096 bytes each, and 8 sectors with their tags.
    (12, &(JOURNAL_SECTORS / 264).to_le_bytes(), "journal_sections"),
    // HAVE_JOURNAL_MAC, FIXED_HMAC.
    (24, &0x11_u32.to_le_bytes(), "flags"),
    (28, &[3], "log2_sectors_per_block"),
    // Of a mode that is not used; always written.
    (29, &[12], "log2_blocks_per_bitmap_bit"),
    (32, &[0; 8], "recalc_sector"),
    (40, &[0; 8], "pad2"),
];

/// A superblock that is none of this format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "its superblock (dm-integrity) has another {0} than this guest gives: the host has changed it, or the disk is damaged"
)]
pub struct SuperblockError(&'static str);

impl From<SuperblockError> for String {
    fn from(error: SuperblockError) -> Self {
        error.to_string()
    }
}

/// Checks the superblock on a disk, given its beginning.
///
/// # Errors
/// If a field is not as this format prescribes.
pub fn check(beginning: &[u8]) -> Result<(), SuperblockError> {
    let block = beginning.get(AT..AT + LENGTH).ok_or(SuperblockError("length"))?;
    for (at, expected, name) in FIELDS {
        if !block[at..].starts_with(expected) {
            return Err(SuperblockError(name));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Vec<u8> {
        let mut beginning = vec![0; AT + LENGTH];
        for (at, bytes, _) in FIELDS {
            beginning[AT + at..][..bytes.len()].copy_from_slice(bytes);
        }
        beginning[AT + 16..][..8].copy_from_slice(&126_976_u64.to_le_bytes());
        beginning[AT + 48..].fill(0x77);
        beginning
    }

    #[test]
    fn every_field_is_as_prescribed_or_nothing_is_mapped() {
        assert_eq!(check(&good()), Ok(()));
        for (at, bytes, name) in FIELDS {
            for bit in 0..bytes.len() * 8 {
                let mut changed = good();
                changed[AT + at + bit / 8] ^= 1 << (bit % 8);
                assert_eq!(check(&changed), Err(SuperblockError(name)), "{name}, bit {bit}");
            }
        }
        assert_eq!(check(&good()[..AT + LENGTH - 1]), Err(SuperblockError("length")));
        assert!(check(&vec![0; AT + LENGTH]).is_err());
    }
}
