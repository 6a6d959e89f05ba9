//! Where the host's processor marks a page of an SEV-SNP guest as encrypted.

use std::arch::x86_64::CpuidResult;

use crate::sys;

/// What `CPUID` leaf `8000_001Fh` says (AMD64 Architecture Programmer's Manual 3, E.4.17). QEMU wants both said.
/// It compares the C-bit with the host's, and stops at another; the reduction is only what it shows the guest in
/// the same leaf, and its documentation suggests 1. A host that lies about them harms nobody but its guest, which
/// does not run then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryEncryption {
    /// Bit of a page table entry that says "encrypted" (EBX, bits 5 to 0).
    pub c_bit: u8,
    /// Bits of physical addresses that encryption takes (EBX, bits 11 to 6), at least one.
    pub reduced_address_bits: u8,
}

const HIGHEST: u32 = 0x8000_0000;
const ENCRYPTED_MEMORY: u32 = 0x8000_001f;
const SNP: u32 = 1 << 4;

impl MemoryEncryption {
    /// Of this processor; `None` if it has no SEV-SNP, or hides it.
    #[must_use]
    pub fn of_this_host() -> Option<MemoryEncryption> {
        Self::of(sys::cpuid)
    }

    fn of(cpuid: impl Fn(u32) -> CpuidResult) -> Option<MemoryEncryption> {
        if cpuid(HIGHEST).eax < ENCRYPTED_MEMORY {
            return None;
        }
        let CpuidResult { eax, ebx, .. } = cpuid(ENCRYPTED_MEMORY);
        let [low, high, ..] = ebx.to_le_bytes();
        let c_bit = low & 0x3f;
        // A guest's page table loses one bit at least, the one above; QEMU takes no 0.
        let reduced_address_bits = ((low >> 6) | ((high & 0x0f) << 2)).max(1);
        (eax & SNP != 0).then_some(MemoryEncryption { c_bit, reduced_address_bits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answering(highest: u32, eax: u32, ebx: u32) -> impl Fn(u32) -> CpuidResult {
        move |leaf| match leaf {
            HIGHEST => CpuidResult { eax: highest, ebx: 0, ecx: 0, edx: 0 },
            ENCRYPTED_MEMORY => CpuidResult { eax, ebx, ecx: 0, edx: 0 },
            other => panic!("leaf {other:#x} says nothing about it"),
        }
    }

    #[test]
    fn the_fields_are_found_where_the_manual_puts_them() {
        // As an EPYC 7003 answers: four privilege levels, 5 address bits, C-bit 51.
        let milan = MemoryEncryption::of(answering(0x8000_0023, 0x1_780f | SNP, 0x4173)).unwrap();
        assert_eq!(milan, MemoryEncryption { c_bit: 51, reduced_address_bits: 5 });
        let all = MemoryEncryption::of(answering(ENCRYPTED_MEMORY, u32::MAX, u32::MAX)).unwrap();
        assert_eq!(all, MemoryEncryption { c_bit: 63, reduced_address_bits: 63 });
        let none_lost = MemoryEncryption::of(answering(ENCRYPTED_MEMORY, SNP, 51)).unwrap();
        assert_eq!(none_lost.reduced_address_bits, 1);
    }

    #[test]
    fn a_processor_without_snp_has_none() {
        assert_eq!(MemoryEncryption::of(answering(0x8000_0008, u32::MAX, u32::MAX)), None);
        assert_eq!(MemoryEncryption::of(answering(0x8000_0023, !SNP, 0x4173)), None);
    }
}
