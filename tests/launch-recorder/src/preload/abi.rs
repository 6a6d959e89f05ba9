//! Numbers and layouts of the kernel's interface, as far as a launch uses it: Linux 6.16,
//! `include/uapi/linux/kvm.h`, `arch/x86/include/uapi/asm/kvm.h`, `include/uapi/linux/psp-sev.h`.
//!
//! Structures are offsets into bytes, because they are read from QEMU's memory. The crate's tests compare
//! them with `kvm-bindings` and with the kernel's own headers.

/// The whole of a structure, and where its fields begin, in bytes.
macro_rules! layout {
    ($(#[$doc:meta])* $name:ident: $size:literal { $($field:ident = $offset:literal),* $(,)? }) => {
        $(#[$doc])*
        pub mod $name {
            /// Size in bytes.
            pub const SIZE: usize = $size;
            $(
                #[doc = concat!("Offset of a field, ", stringify!($offset), ".")]
                pub const $field: usize = $offset;
            )*
        }
    };
}

/// `KVM_CREATE_VM`: the argument is the type of the VM.
pub const CREATE_VM: u64 = 0xae01;
/// `KVM_CHECK_EXTENSION`: the argument is the capability.
pub const CHECK_EXTENSION: u64 = 0xae03;
/// `KVM_CREATE_VCPU`.
pub const CREATE_VCPU: u64 = 0xae41;
/// `KVM_RUN`.
pub const RUN: u64 = 0xae80;
/// `KVM_GET_SUPPORTED_CPUID`, of a `kvm_cpuid2`.
pub const GET_SUPPORTED_CPUID: u64 = 0xc008_ae05;
/// `KVM_SET_USER_MEMORY_REGION`: the first 32 bytes of a [`memory_region`].
pub const SET_USER_MEMORY_REGION: u64 = 0x4020_ae46;
/// `KVM_SET_USER_MEMORY_REGION2`, of a [`memory_region`].
pub const SET_USER_MEMORY_REGION2: u64 = 0x40a0_ae49;
/// `KVM_SET_REGS`, of [`registers`].
pub const SET_REGS: u64 = 0x4090_ae82;
/// `KVM_SET_SREGS`, of [`special_registers`].
pub const SET_SREGS: u64 = 0x4138_ae84;
/// `KVM_SET_SREGS2`: the same fields as far as they are used here.
pub const SET_SREGS2: u64 = 0x4140_aecd;
/// `KVM_ENABLE_CAP`, of an [`enable_cap`].
pub const ENABLE_CAP: u64 = 0x4068_aea3;
/// `KVM_GET_DEVICE_ATTR`, of a [`device_attr`].
pub const GET_DEVICE_ATTR: u64 = 0x4018_aee2;
/// `KVM_MEMORY_ENCRYPT_OP`, of a [`sev_cmd`] or a [`tdx_cmd`].
pub const MEMORY_ENCRYPT_OP: u64 = 0xc008_aeba;
/// `KVM_SET_MEMORY_ATTRIBUTES`, of [`memory_attributes`].
pub const SET_MEMORY_ATTRIBUTES: u64 = 0x4020_aed2;
/// `KVM_CREATE_GUEST_MEMFD`, of a [`guest_memfd`].
pub const CREATE_GUEST_MEMFD: u64 = 0xc040_aed4;
/// `SEV_ISSUE_CMD` of `/dev/sev`, of a [`issue_cmd`].
pub const SEV_ISSUE_CMD: u64 = 0xc010_5300;

/// `KVM_X86_DEFAULT_VM`.
pub const DEFAULT_VM: u64 = 0;
/// `KVM_X86_SNP_VM`.
pub const SNP_VM: u64 = 4;
/// `KVM_X86_TDX_VM`.
pub const TDX_VM: u64 = 5;

/// `KVM_CAP_EXIT_HYPERCALL`.
pub const CAP_EXIT_HYPERCALL: u64 = 201;
/// `KVM_CAP_USER_MEMORY2`.
pub const CAP_USER_MEMORY2: u64 = 231;
/// `KVM_CAP_MEMORY_ATTRIBUTES`.
pub const CAP_MEMORY_ATTRIBUTES: u64 = 233;
/// `KVM_CAP_GUEST_MEMFD`.
pub const CAP_GUEST_MEMFD: u64 = 234;
/// `KVM_CAP_VM_TYPES`.
pub const CAP_VM_TYPES: u64 = 235;
/// `KVM_CAP_X86_APIC_BUS_CYCLES_NS`.
pub const CAP_X86_APIC_BUS_CYCLES_NS: u64 = 237;

/// `KVM_HC_MAP_GPA_RANGE`, as a bit of `KVM_CAP_EXIT_HYPERCALL`.
pub const MAP_GPA_RANGE: i32 = 1 << 12;
/// `KVM_MEMORY_ATTRIBUTE_PRIVATE`.
pub const ATTRIBUTE_PRIVATE: u64 = 1 << 3;
/// `KVM_MEM_GUEST_MEMFD`.
pub const MEM_GUEST_MEMFD: u32 = 1 << 2;

/// `KVM_X86_GRP_SEV`.
pub const GROUP_SEV: u32 = 1;
/// `KVM_X86_SEV_VMSA_FEATURES`.
pub const SEV_VMSA_FEATURES: u64 = 0;

/// `KVM_SEV_INIT2`.
pub const SEV_INIT2: u32 = 22;
/// `KVM_SEV_SNP_LAUNCH_START`.
pub const SNP_LAUNCH_START: u32 = 100;
/// `KVM_SEV_SNP_LAUNCH_UPDATE`.
pub const SNP_LAUNCH_UPDATE: u32 = 101;
/// `KVM_SEV_SNP_LAUNCH_FINISH`.
pub const SNP_LAUNCH_FINISH: u32 = 102;

/// `KVM_SEV_SNP_PAGE_TYPE_NORMAL`.
pub const PAGE_NORMAL: u8 = 1;
/// `KVM_SEV_SNP_PAGE_TYPE_ZERO`.
pub const PAGE_ZERO: u8 = 3;
/// `KVM_SEV_SNP_PAGE_TYPE_UNMEASURED`.
pub const PAGE_UNMEASURED: u8 = 4;
/// `KVM_SEV_SNP_PAGE_TYPE_SECRETS`.
pub const PAGE_SECRETS: u8 = 5;
/// `KVM_SEV_SNP_PAGE_TYPE_CPUID`.
pub const PAGE_CPUID: u8 = 6;
/// `KVM_SEV_SNP_ID_BLOCK_SIZE`.
pub const ID_BLOCK_SIZE: usize = 96;
/// `KVM_SEV_SNP_ID_AUTH_SIZE`.
pub const ID_AUTH_SIZE: usize = 4096;

/// `KVM_TDX_CAPABILITIES`.
pub const TDX_CAPABILITIES: u32 = 0;
/// `KVM_TDX_INIT_VM`.
pub const TDX_INIT_VM: u32 = 1;
/// `KVM_TDX_INIT_VCPU`.
pub const TDX_INIT_VCPU: u32 = 2;
/// `KVM_TDX_INIT_MEM_REGION`.
pub const TDX_INIT_MEM_REGION: u32 = 3;
/// `KVM_TDX_FINALIZE_VM`.
pub const TDX_FINALIZE_VM: u32 = 4;
/// `KVM_TDX_GET_CPUID`.
pub const TDX_GET_CPUID: u32 = 5;
/// `KVM_TDX_MEASURE_MEMORY_REGION`.
pub const TDX_MEASURE: u32 = 1;

/// `SEV_PLATFORM_STATUS`.
pub const PLATFORM_STATUS: u32 = 1;
/// `SNP_PLATFORM_STATUS`.
pub const SNP_PLATFORM_STATUS: u32 = 9;

layout! {
    /// `struct kvm_userspace_memory_region2`; its beginning is `kvm_userspace_memory_region`.
    memory_region: 160 { FLAGS = 4, GUEST_PHYS_ADDR = 8, MEMORY_SIZE = 16 }
}
layout! {
    /// `struct kvm_memory_attributes`.
    memory_attributes: 32 { ADDRESS = 0, LENGTH = 8, ATTRIBUTES = 16, FLAGS = 24 }
}
layout! {
    /// `struct kvm_create_guest_memfd`.
    guest_memfd: 64 { LENGTH = 0, FLAGS = 8 }
}
layout! {
    /// `struct kvm_enable_cap`.
    enable_cap: 104 { CAP = 0 }
}
layout! {
    /// `struct kvm_device_attr`.
    device_attr: 24 { GROUP = 4, ATTR = 8, ADDR = 16 }
}
layout! {
    /// `struct kvm_regs`: sixteen registers, then these.
    registers: 144 { RAX = 0, RDX = 24, RSP = 48, RIP = 128, RFLAGS = 136 }
}
layout! {
    /// `struct kvm_sregs`: segments of 24 bytes, descriptor tables of 16, control registers.
    special_registers: 312 {
        CS = 0, DS = 24, ES = 48, FS = 72, GS = 96, SS = 120, TR = 144, LDT = 168, GDT = 192, IDT = 208,
        CR0 = 224, CR4 = 248, EFER = 264,
    }
}
layout! {
    /// `struct kvm_sev_cmd`.
    sev_cmd: 24 { ID = 0, DATA = 8, ERROR = 16 }
}
layout! {
    /// `struct kvm_sev_init`.
    sev_init: 48 { VMSA_FEATURES = 0, FLAGS = 8, GHCB_VERSION = 12 }
}
layout! {
    /// `struct kvm_sev_snp_launch_start`.
    launch_start: 64 { POLICY = 0, GOSVW = 8, FLAGS = 24 }
}
layout! {
    /// `struct kvm_sev_snp_launch_update`.
    launch_update: 64 { GFN_START = 0, UADDR = 8, LEN = 16, TYPE = 24, FLAGS = 26 }
}
layout! {
    /// `struct kvm_sev_snp_launch_finish`.
    launch_finish: 88 {
        ID_BLOCK_UADDR = 0, ID_AUTH_UADDR = 8, ID_BLOCK_EN = 16, AUTH_KEY_EN = 17, VCEK_DISABLED = 18,
        HOST_DATA = 19, FLAGS = 54,
    }
}
layout! {
    /// `struct kvm_tdx_cmd`.
    tdx_cmd: 24 { ID = 0, FLAGS = 4, DATA = 8 }
}
layout! {
    /// `struct kvm_tdx_capabilities`, without the entries of its table.
    tdx_capabilities: 2056 { SUPPORTED_ATTRS = 0, SUPPORTED_XFAM = 8, CPUID = 2048 }
}
layout! {
    /// `struct kvm_tdx_init_vm`, without the entries of its table.
    tdx_init_vm: 264 {
        ATTRIBUTES = 0, XFAM = 8, MRCONFIGID = 16, MROWNER = 64, MROWNERCONFIG = 112, RESERVED = 160, CPUID = 256,
    }
}
layout! {
    /// `struct kvm_tdx_init_mem_region`.
    tdx_mem_region: 24 { SOURCE_ADDR = 0, GPA = 8, NR_PAGES = 16 }
}
layout! {
    /// `struct kvm_cpuid2`, without its entries.
    cpuid: 8 { NENT = 0 }
}
layout! {
    /// `struct kvm_cpuid_entry2`.
    cpuid_entry: 40 { FUNCTION = 0, INDEX = 4, FLAGS = 8, EAX = 12, EBX = 16, ECX = 20, EDX = 24 }
}
/// `immediate_exit` in `struct kvm_run`: its offset.
pub const RUN_IMMEDIATE_EXIT: usize = 1;

layout! {
    /// `struct sev_issue_cmd`, which is packed.
    issue_cmd: 16 { CMD = 0, DATA = 4, ERROR = 12 }
}
layout! {
    /// `struct sev_user_data_status`, which is packed.
    platform_status: 12 { API_MAJOR = 0, API_MINOR = 1, STATE = 2, FLAGS = 3, BUILD = 7, GUEST_COUNT = 8 }
}
layout! {
    /// `struct sev_user_data_snp_status`, which is packed.
    snp_platform_status: 32 { API_MAJOR = 0, API_MINOR = 1, STATE = 2, BUILD = 4 }
}
