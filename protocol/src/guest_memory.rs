//! How a guest divides its memory, which both sides have to know: the guest makes room for images by these
//! rules, the node and the owner's tool give a machine as much memory as they demand.
//!
//! The rules are fixed and depend on nothing but the guest's memory, so that the measured command line is
//! the same for pods of all sizes, and the host, which chooses the size anyway, gets nothing more to choose.

const MIB: u64 = 1 << 20;

/// What the guest keeps for itself beside its kernel, in MiB: the file system that its image is unpacked to,
/// the agent, and what the kernel takes for processes, network and bookkeeping.
pub const RESERVED_MIB: u32 = 96;

/// One file, directory or link for this many bytes of the store's quota.
const BYTES_PER_INODE: u64 = 4096;
/// What the kernel keeps for each, which `size=` of a tmpfs does not count, in bytes; rounded up.
const BYTES_OF_INODE: u64 = 1024;

/// The store for images and what containers write, in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryStore {
    /// Most bytes of contents.
    pub quota_bytes: u64,
    /// Most files, directories and links.
    pub inodes: u64,
}

impl MemoryStore {
    /// The store of a guest whose kernel has `memory_bytes` (`MemTotal`): all but what the guest keeps, or
    /// half of it where the guest is small. Full of files of one page each, store and inodes together take
    /// just that.
    ///
    /// What containers write counts against their own limits as well, images against nobody's.
    #[must_use]
    pub fn of(memory_bytes: u64) -> MemoryStore {
        let reserved = (u64::from(RESERVED_MIB) * MIB).min(memory_bytes / 2);
        let room = memory_bytes - reserved;
        let quota = room / (BYTES_PER_INODE + BYTES_OF_INODE) * BYTES_PER_INODE;
        MemoryStore { quota_bytes: quota, inodes: quota / BYTES_PER_INODE }
    }

    /// The room that a store takes at most which holds `quota_bytes`.
    #[must_use]
    pub fn room_for(quota_bytes: u64) -> u64 {
        quota_bytes.div_ceil(BYTES_PER_INODE).saturating_mul(BYTES_PER_INODE + BYTES_OF_INODE)
    }
}

/// What an image takes of a guest's memory: the sum over all entries of all of its layers, inodes included.
/// A store with a quota of as many bytes holds it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoredSize {
    bytes: u64,
}

impl StoredSize {
    /// Counts a file, directory or link with that many bytes of contents.
    pub fn add(&mut self, contents_bytes: u64) {
        let pages = contents_bytes.div_ceil(BYTES_PER_INODE).max(1);
        let contents = pages.saturating_mul(BYTES_PER_INODE);
        self.bytes = self.bytes.saturating_add(contents).saturating_add(BYTES_OF_INODE);
    }

    /// In MiB, rounded up.
    #[must_use]
    pub fn mebibytes(self) -> u64 {
        self.bytes.div_ceil(MIB)
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: StoredSize) -> StoredSize {
        StoredSize { bytes: self.bytes.saturating_add(other.bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_is_what_the_guest_does_not_keep() {
        for (memory_mib, quota_mib) in [(0, 0), (100, 40), (192, 76), (292, 156), (1096, 800)] {
            let store = MemoryStore::of(memory_mib * MIB);
            assert_eq!(store.quota_bytes / MIB, quota_mib, "of {memory_mib} MiB");
            assert_eq!(store.inodes, store.quota_bytes / 4096);
            let whole = store.quota_bytes + store.inodes * BYTES_OF_INODE;
            assert!(whole <= memory_mib * MIB, "of {memory_mib} MiB");
        }
        assert!(MemoryStore::of(u64::MAX).quota_bytes > 1 << 63);
    }

    #[test]
    fn a_store_that_was_made_for_a_size_holds_it() {
        for quota in [0, 1, 4096, 4097, 123_456_789, 10 << 30] {
            let reserved = u64::from(RESERVED_MIB) * MIB;
            let store = MemoryStore::of(MemoryStore::room_for(quota).max(reserved) + reserved);
            assert!(store.quota_bytes >= quota, "{quota}: {store:?}");
        }
        assert!(MemoryStore::room_for(u64::MAX) > 1 << 63);
    }

    #[test]
    fn every_entry_takes_a_page_at_least() {
        let mut size = StoredSize::default();
        assert_eq!(size.mebibytes(), 0);
        for bytes in [0, 1, 4096, 4097] {
            size.add(bytes);
        }
        assert_eq!(size.bytes, 5 * 4096 + 4 * 1024);
        assert_eq!(size.mebibytes(), 1);
        size.add(u64::MAX);
        size.add(u64::MAX);
        assert_eq!(size.plus(size).mebibytes(), (1 << 44));
    }
}
