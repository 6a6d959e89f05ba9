//! The state in which a guest's processors begin, as SNP firmware measures it.

use super::launch::PAGE_SIZE;

/// Where the first processor of every guest begins: the reset vector of x86.
pub const RESET_VECTOR: u32 = 0xffff_fff0;

/// What differs between the initial states of processors under KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessorState {
    /// Linear address of the first instruction: [`RESET_VECTOR`] for the first processor, for the
    /// others where the firmware says.
    pub entry: u32,
    /// `CPUID` function 1 `EAX`, which processors have in `EDX` after a reset.
    pub signature: u32,
    /// `SEV_FEATURES`; bit 0 is set in every SNP guest.
    pub features: u64,
}

impl ProcessorState {
    /// The VMSA page (AMD64 Architecture Programmer's Manual, volume 2, appendix B, "State Save Area
    /// for SEV-ES") with the state after reset (the same, "Processor Initialization State"), as KVM
    /// fills it in.
    #[must_use]
    pub fn page(&self) -> [u8; PAGE_SIZE] {
        let mut page = [0; PAGE_SIZE];
        let mut put = |offset: usize, value: &[u8]| {
            page[offset..offset + value.len()].copy_from_slice(value);
        };
        let mut segment = |offset: usize, selector: u16, attributes: u16, base: u32| {
            put(offset, &selector.to_le_bytes());
            put(offset + 2, &attributes.to_le_bytes());
            put(offset + 4, &0xffff_u32.to_le_bytes());
            put(offset + 8, &u64::from(base).to_le_bytes());
        };
        const DATA: u16 = 0x93;
        segment(0x00, 0, DATA, 0); // ES
        segment(0x10, 0xf000, 0x9b, self.entry & 0xffff_0000); // CS
        segment(0x20, 0, DATA, 0); // SS
        segment(0x30, 0, DATA, 0); // DS
        segment(0x40, 0, DATA, 0); // FS
        segment(0x50, 0, DATA, 0); // GS
        segment(0x60, 0, 0, 0); // GDTR
        segment(0x70, 0, 0x82, 0); // LDTR
        segment(0x80, 0, 0, 0); // IDTR
        segment(0x90, 0, 0x8b, 0); // TR
        put(0x0d0, &0x1000_u64.to_le_bytes()); // EFER: SVME
        put(0x148, &0x40_u64.to_le_bytes()); // CR4: MCE
        put(0x158, &0x10_u64.to_le_bytes()); // CR0: ET
        put(0x160, &0x400_u64.to_le_bytes()); // DR7
        put(0x168, &0xffff_0ff0_u64.to_le_bytes()); // DR6
        put(0x170, &2_u64.to_le_bytes()); // RFLAGS
        put(0x178, &u64::from(self.entry & 0xffff).to_le_bytes()); // RIP
        put(0x268, &0x0007_0406_0007_0406_u64.to_le_bytes()); // G_PAT
        put(0x310, &u64::from(self.signature).to_le_bytes()); // RDX
        put(0x3b0, &self.features.to_le_bytes()); // SEV_FEATURES
        put(0x3e8, &1_u64.to_le_bytes()); // XCR0
        put(0x408, &0x1f80_u32.to_le_bytes()); // MXCSR
        put(0x410, &0x37f_u16.to_le_bytes()); // X87_FCW
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_begin_where_they_are_told() {
        let at = |entry| ProcessorState { entry, signature: 0x00a1_0f11, features: 1 }.page();
        let first = at(RESET_VECTOR);
        assert_eq!(first[0x18..0x20], 0xffff_0000_u64.to_le_bytes());
        assert_eq!(first[0x178..0x180], 0xfff0_u64.to_le_bytes());
        assert_eq!(first[0x310..0x314], 0x00a1_0f11_u32.to_le_bytes());
        let other = at(0x0080_b004);
        assert_eq!(other[0x18..0x20], 0x80_0000_u64.to_le_bytes());
        assert_eq!(other[0x178..0x180], 0xb004_u64.to_le_bytes());
    }
}
