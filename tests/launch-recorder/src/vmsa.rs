//! The page with a processor's first state that KVM makes of the registers QEMU gave it, and that SNP firmware
//! measures (AMD64 Architecture Programmer's Manual 2, table B-4; Linux 6.16, `sev_es_sync_vmsa`).

use crate::abi::{registers, special_registers};

/// A processor as QEMU left it before the launch was finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vcpu {
    /// `struct kvm_regs`.
    pub registers: [u8; registers::SIZE],
    /// `struct kvm_sregs`.
    pub special_registers: [u8; special_registers::SIZE],
}

impl Vcpu {
    /// Where it begins: the base of its code segment and its instruction pointer.
    #[must_use]
    pub fn reset_vector(&self) -> u64 {
        let base = u64_at(&self.special_registers, special_registers::CS);
        base.wrapping_add(u64_at(&self.registers, registers::RIP))
    }

    /// What it has in RDX: its own signature, CPUID leaf 1 EAX.
    #[must_use]
    pub fn rdx(&self) -> u64 {
        u64_at(&self.registers, registers::RDX)
    }
}

/// Fields that KVM fills in with the processor's reset values, whatever QEMU says: offset and value.
const RESET_VALUES: [(usize, u64); 5] = [
    (0x160, 0x400),                 // DR7
    (0x168, 0xffff_0ff0),           // DR6
    (0x268, 0x0007_0406_0007_0406), // G_PAT
    (0x3e8, 1),                     // XCR0: x87
    (0x408, 0x1f80),                // MXCSR
];
const X87_FCW: (usize, u16) = (0x410, 0x37f);

/// The guest's own EFER and CR4 lack these, and cannot.
const EFER_SVME: u64 = 1 << 12;
const CR4_MCE: u64 = 1 << 6;
/// KVM clears these of CR0: caching stays on (`KVM_X86_QUIRK_CD_NW_CLEARED`).
const CR0_CD_NW: u64 = 3 << 29;

/// Where `kvm_sregs` and the page have each segment.
const SEGMENTS: [(usize, usize); 8] = [
    (special_registers::ES, 0x00),
    (special_registers::CS, 0x10),
    (special_registers::SS, 0x20),
    (special_registers::DS, 0x30),
    (special_registers::FS, 0x40),
    (special_registers::GS, 0x50),
    (special_registers::LDT, 0x70),
    (special_registers::TR, 0x90),
];
const TABLES: [(usize, usize); 2] =
    [(special_registers::GDT, 0x60), (special_registers::IDT, 0x80)];

/// Where the page has the registers of `kvm_regs`, in its order: rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8
/// to r15, rip, rflags.
const REGISTERS: [usize; 18] = [
    0x1f8, 0x318, 0x308, 0x310, 0x330, 0x338, 0x1d8, 0x328, 0x340, 0x348, 0x350, 0x358, 0x360,
    0x368, 0x370, 0x378, 0x178, 0x170,
];

const EFER: usize = 0xd0;
const CR4: usize = 0x148;
const CR0: usize = 0x158;
const SEV_FEATURES: usize = 0x3b0;

/// The page of one processor of a guest with these features.
#[must_use]
pub fn page(vcpu: &Vcpu, guest_features: u64) -> [u8; 4096] {
    let special = &vcpu.special_registers;
    let mut page = [0; 4096];
    let mut put = |offset: usize, bytes: &[u8]| {
        page[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    for (from, to) in SEGMENTS {
        let segment = &special[from..from + 24];
        put(to, &segment[12..14]); // selector
        put(to + 2, &attributes(segment).to_le_bytes());
        put(to + 4, &segment[8..12]); // limit
        put(to + 8, &segment[..8]); // base
    }
    for (from, to) in TABLES {
        put(to + 4, &special[from + 8..from + 10]); // limit
        put(to + 8, &special[from..from + 8]); // base
    }
    for (index, to) in REGISTERS.into_iter().enumerate() {
        put(to, &vcpu.registers[index * 8..index * 8 + 8]);
    }
    let control = |offset| u64_at(special, offset);
    put(EFER, &(control(special_registers::EFER) | EFER_SVME).to_le_bytes());
    put(CR4, &(control(special_registers::CR4) | CR4_MCE).to_le_bytes());
    put(CR0, &(control(special_registers::CR0) & !CR0_CD_NW).to_le_bytes());
    put(SEV_FEATURES, &guest_features.to_le_bytes());
    for (offset, value) in RESET_VALUES {
        put(offset, &value.to_le_bytes());
    }
    put(X87_FCW.0, &X87_FCW.1.to_le_bytes());
    page
}

/// Attributes of a segment: bytes of `kvm_segment` become bits (`svm_set_segment`).
fn attributes(segment: &[u8]) -> u16 {
    let [kind, present, dpl, db, s, l, g, avl, unusable] =
        [14, 15, 16, 17, 18, 19, 20, 21, 22].map(|offset| u16::from(segment[offset]));
    let present = present & u16::from(unusable == 0);
    (kind & 15)
        | (s & 1) << 4
        | (dpl & 3) << 5
        | (present & 1) << 7
        | (avl & 1) << 8
        | (l & 1) << 9
        | (db & 1) << 10
        | (g & 1) << 11
}

fn u64_at(structure: &[u8], offset: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&structure[offset..offset + 8]);
    u64::from_le_bytes(value)
}
