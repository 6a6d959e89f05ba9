//! What an OVMF image asks its launcher for, as QEMU reads it.

use crate::footer::{Covered, Firmware, guid, index, u32_at};
use crate::{MeasureError, PAGE_SIZE};

pub(super) const WHAT: &str = "the firmware's SEV metadata";
const REMEDY: &str = "give OVMF's AmdSev image, which checks the kernel's hashes";

const METADATA: [u8; 16] = guid(0xdc88_6566, 0x984a, 0x4798, 0xa75e_5585_a7bf_67cc);
const RESET_BLOCK: [u8; 16] = guid(0x00f7_71de, 0x1a7e, 0x4fcb, 0x890e_68c7_7e2f_b44e);
const HASH_TABLE: [u8; 16] = guid(0x7255_371f, 0x3a3b, 0x4b04, 0x927b_1da6_efa8_d454);

/// QEMU's table of hashes with its padding, in bytes.
const HASH_TABLE_SIZE: usize = 176;

/// What a section is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Zeros, accepted before the guest runs; the calling area of a service module is such too.
    Memory,
    /// Secrets page.
    Secrets,
    /// CPUID page.
    Cpuid,
    /// Page with the hashes of kernel, initrd and command line.
    KernelHashes,
}

/// Pages that the launcher fills.
#[derive(Debug, Clone, Copy)]
pub(super) struct Section {
    pub(super) address: u64,
    pub(super) size: u64,
    pub(super) kind: Kind,
}

/// All of it.
pub(super) struct Metadata {
    pub(super) sections: Vec<Section>,
    /// Where in its page the table of hashes begins.
    pub(super) hashes_offset: usize,
    /// Where processors other than the first begin.
    pub(super) entry: u32,
}

impl Metadata {
    pub(super) fn parse(firmware: &Firmware<'_>) -> Result<Metadata, MeasureError> {
        let missing = |what| MeasureError::Missing { what, remedy: REMEDY };
        let malformed = |problem: String| MeasureError::malformed(WHAT, problem);
        let found = firmware.metadata(WHAT, METADATA, b"ASEV", 12)?;
        let mut covered = Covered::default();
        // A launcher that loaded the image there would not load something else over it.
        covered.add(firmware.address(), firmware.image().len() as u64).map_err(malformed)?;
        let mut sections = Vec::new();
        for bytes in found.ok_or_else(|| missing("metadata for SEV-SNP"))? {
            let field = |offset| u32_at(bytes, offset).unwrap_or(0);
            let (address, size) = (u64::from(field(0)), u64::from(field(4)));
            let kind = match field(8) {
                1 | 4 => Kind::Memory,
                2 => Kind::Secrets,
                3 => Kind::Cpuid,
                0x10 => Kind::KernelHashes,
                other => return Err(malformed(format!("sections of kind {other} are not known"))),
            };
            // Launchers disagree about larger ones.
            if kind != Kind::Memory && size != PAGE_SIZE as u64 {
                return Err(malformed(format!("{kind:?} of {size} bytes is no page")));
            }
            covered.add(address, size).map_err(malformed)?;
            sections.push(Section { address, size, kind });
        }

        let only = |kind| {
            let mut of_kind = sections.iter().filter(|section| section.kind == kind);
            of_kind.next().filter(|_| of_kind.next().is_none())
        };
        let page = only(Kind::KernelHashes).ok_or_else(|| missing("page for kernel hashes"))?;
        for (kind, what) in [(Kind::Secrets, "secrets page"), (Kind::Cpuid, "CPUID page")] {
            only(kind).ok_or_else(|| missing(what))?;
        }

        let table = firmware.entry(HASH_TABLE).ok_or_else(|| missing("table of kernel hashes"))?;
        let (Some(address), Some(size)) = (u32_at(table, 0), u32_at(table, 4)) else {
            return Err(malformed("the entry of kernel hashes is too short".to_owned()));
        };
        let hashes_offset = u64::from(address)
            .checked_sub(page.address)
            .and_then(|offset| usize::try_from(offset).ok())
            .filter(|offset| *offset <= PAGE_SIZE - HASH_TABLE_SIZE)
            .filter(|_| index(size) >= HASH_TABLE_SIZE);
        let hashes_offset = hashes_offset.ok_or_else(|| {
            malformed(format!("the {size} bytes for kernel hashes at {address:#x} do not fit"))
        })?;

        let reset = firmware.entry(RESET_BLOCK).ok_or_else(|| missing("reset block"))?;
        let entry = u32_at(reset, 0).filter(|entry| *entry != 0);
        let entry = entry.ok_or_else(|| malformed("the reset block has no address".to_owned()))?;
        Ok(Metadata { sections, hashes_offset, entry })
    }
}
