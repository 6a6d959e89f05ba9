//! The digest of a launch, as SNP firmware computes it, and the page of kernel hashes that a
//! measured launch with `-kernel` puts into the guest.

use sha2::{Digest as _, Sha256, Sha384};

pub(super) const PAGE_SIZE: usize = 4096;

/// Address that the firmware uses for each VMSA page: the highest page of 52 bits less 4 KiB
/// granularity (ABI, `SNP_LAUNCH_FINISH`).
pub const VMSA_GPA: u64 = 0xffff_ffff_f000;

/// Kind of a page (ABI, `SNP_LAUNCH_UPDATE`, `PAGE_TYPE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageType {
    /// Contents are measured.
    Normal,
    /// A processor's initial state; contents are measured.
    Vmsa,
    /// Zeros.
    Zero,
    /// Contents are not measured, their place is.
    Unmeasured,
    /// Filled in by the firmware.
    Secrets,
    /// CPUID values, checked by the firmware.
    Cpuid,
}

impl PageType {
    const fn number(self) -> u8 {
        match self {
            PageType::Normal => 1,
            PageType::Vmsa => 2,
            PageType::Zero => 3,
            PageType::Unmeasured => 4,
            PageType::Secrets => 5,
            PageType::Cpuid => 6,
        }
    }

    const fn measures_contents(self) -> bool {
        matches!(self, PageType::Normal | PageType::Vmsa)
    }
}

/// Launch digest in the making: each page extends the digest of those before (ABI, `PAGE_INFO`).
#[derive(Clone)]
pub struct LaunchDigest([u8; 48]);

impl LaunchDigest {
    /// Before the first page.
    #[must_use]
    pub const fn new() -> LaunchDigest {
        LaunchDigest([0; 48])
    }

    /// Adds a page of 4096 bytes. Only pages of type `Normal` and `Vmsa` are measured by contents; of
    /// others type and address count, and `contents` may be any page.
    pub fn update(&mut self, page_type: PageType, gpa: u64, contents: &[u8; PAGE_SIZE]) {
        let contents: [u8; 48] =
            if page_type.measures_contents() { Sha384::digest(contents).into() } else { [0; 48] };
        let mut page_info = [0; 0x70];
        page_info[..0x30].copy_from_slice(&self.0);
        page_info[0x30..0x60].copy_from_slice(&contents);
        page_info[0x60..0x62].copy_from_slice(&0x70_u16.to_le_bytes());
        page_info[0x62] = page_type.number();
        // 0x63 to 0x67: no initial migration image, no permissions of VMPL 1 to 3.
        page_info[0x68..].copy_from_slice(&gpa.to_le_bytes());
        self.0 = Sha384::digest(page_info).into();
    }

    /// Adds consecutive `Normal` pages from `gpa` on; the last is filled up with zeros.
    pub fn update_range(&mut self, gpa: u64, contents: &[u8]) {
        for (address, piece) in (gpa..).step_by(PAGE_SIZE).zip(contents.chunks(PAGE_SIZE)) {
            let mut page = [0; PAGE_SIZE];
            page[..piece.len()].copy_from_slice(piece);
            self.update(PageType::Normal, address, &page);
        }
    }

    /// The measurement that a report of this launch has.
    #[must_use]
    pub const fn finish(self) -> [u8; 48] {
        self.0
    }
}

impl Default for LaunchDigest {
    fn default() -> Self {
        Self::new()
    }
}

/// SHA-256 digests of what a guest is started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelHashes {
    /// Of the kernel's file.
    pub kernel: [u8; 32],
    /// Of the initrd's file; of no bytes without one.
    pub initrd: [u8; 32],
    /// Of the command line with the zero byte that ends it.
    pub command_line: [u8; 32],
}

impl KernelHashes {
    /// Digests of the files' contents and of the command line without its final zero byte.
    #[must_use]
    pub fn of(kernel: &[u8], initrd: &[u8], command_line: &str) -> KernelHashes {
        let command_line = Sha256::new().chain_update(command_line).chain_update([0]);
        KernelHashes {
            kernel: Sha256::digest(kernel).into(),
            initrd: Sha256::digest(initrd).into(),
            command_line: command_line.finalize().into(),
        }
    }
}

/// Size of the table with its padding, in bytes.
const TABLE_SIZE: usize = 176;

/// GUIDs as QEMU writes them (target/i386/sev.c): the first three groups little-endian.
const TABLE_GUID: [u8; 16] = guid(0x9438d606, 0x4f22, 0x4cc9, 0xb479_a793_d411_fd21);
const COMMAND_LINE_GUID: [u8; 16] = guid(0x97d02dd8, 0xbd20, 0x4c94, 0xaa78_e771_4d36_ab2a);
const INITRD_GUID: [u8; 16] = guid(0x44baf731, 0x3a2f, 0x4bd7, 0x9af1_41e2_9169_781d);
const KERNEL_GUID: [u8; 16] = guid(0x4de79437, 0xabd2, 0x427f, 0xb835_d5b1_72d2_045b);

const fn guid(a: u32, b: u16, c: u16, d: u64) -> [u8; 16] {
    let ([a0, a1, a2, a3], [b0, b1], [c0, c1]) =
        (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
    let [d0, d1, d2, d3, d4, d5, d6, d7] = d.to_be_bytes();
    [a0, a1, a2, a3, b0, b1, c0, c1, d0, d1, d2, d3, d4, d5, d6, d7]
}

/// The page with QEMU's table of hashes `offset` bytes after its beginning, where the firmware's
/// metadata says. None if the table would not fit the page.
#[must_use]
pub fn kernel_hashes_page(hashes: &KernelHashes, offset: usize) -> Option<[u8; PAGE_SIZE]> {
    const ENTRY_SIZE: u16 = 50;
    const LENGTH: u16 = 18 + 3 * ENTRY_SIZE;
    let mut table = Vec::with_capacity(TABLE_SIZE);
    table.extend_from_slice(&TABLE_GUID);
    table.extend_from_slice(&LENGTH.to_le_bytes());
    for (guid, hash) in [
        (COMMAND_LINE_GUID, hashes.command_line),
        (INITRD_GUID, hashes.initrd),
        (KERNEL_GUID, hashes.kernel),
    ] {
        table.extend_from_slice(&guid);
        table.extend_from_slice(&ENTRY_SIZE.to_le_bytes());
        table.extend_from_slice(&hash);
    }
    table.resize(TABLE_SIZE, 0);
    let mut page = [0; PAGE_SIZE];
    page.get_mut(offset..offset.checked_add(TABLE_SIZE)?)?.copy_from_slice(&table);
    Some(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_no_page_is_zero_and_each_page_counts() {
        assert_eq!(LaunchDigest::new().finish(), [0; 48]);
        let page = [1; PAGE_SIZE];
        let digest = |pages: &[(PageType, u64)]| {
            let mut digest = LaunchDigest::new();
            for (page_type, gpa) in pages {
                digest.update(*page_type, *gpa, &page);
            }
            digest.finish()
        };
        let one = digest(&[(PageType::Normal, 0x1000)]);
        assert_ne!(one, digest(&[(PageType::Normal, 0x2000)]), "the address");
        assert_ne!(one, digest(&[(PageType::Vmsa, 0x1000)]), "the type");
        let two = digest(&[(PageType::Normal, 0x1000), (PageType::Zero, 0x2000)]);
        assert_ne!(
            two,
            digest(&[(PageType::Zero, 0x2000), (PageType::Normal, 0x1000)]),
            "the order"
        );
    }

    #[test]
    fn ranges_are_pages() {
        let contents = [vec![1; PAGE_SIZE], vec![2; 100]].concat();
        let mut range = LaunchDigest::new();
        range.update_range(0x1_0000, &contents);
        let mut pages = LaunchDigest::new();
        pages.update(PageType::Normal, 0x1_0000, &[1; PAGE_SIZE]);
        let mut last = [0; PAGE_SIZE];
        last[..100].fill(2);
        pages.update(PageType::Normal, 0x1_1000, &last);
        assert_eq!(range.finish(), pages.finish());
    }

    #[test]
    fn the_table_of_hashes_must_fit_its_page() {
        let hashes = KernelHashes::of(b"kernel", b"", "quiet");
        assert!(kernel_hashes_page(&hashes, 0).is_some());
        assert!(kernel_hashes_page(&hashes, PAGE_SIZE - TABLE_SIZE).is_some());
        assert!(kernel_hashes_page(&hashes, PAGE_SIZE - TABLE_SIZE + 1).is_none());
        assert!(kernel_hashes_page(&hashes, usize::MAX).is_none());
    }
}
