//! The layouts that the recorder reads and writes are the kernel's.

use std::io::{self, Write as _};
use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};
use std::process::Command;

use kvm_bindings as kvm;
use nacre_launch_recorder::abi;

/// Size of a structure and offsets of its fields, theirs and ours.
macro_rules! assert_layout {
    ($theirs:ty, $ours:ident { $($field:ident = $name:ident),* $(,)? }) => {
        assert_eq!(size_of::<$theirs>(), abi::$ours::SIZE, stringify!($theirs));
        $(assert_eq!(
            offset_of!($theirs, $field),
            abi::$ours::$name,
            concat!(stringify!($theirs), ".", stringify!($field))
        );)*
    };
}

#[test]
fn layouts_are_those_of_kvm_bindings() {
    assert_layout!(kvm::kvm_userspace_memory_region2, memory_region {
        flags = FLAGS, guest_phys_addr = GUEST_PHYS_ADDR, memory_size = MEMORY_SIZE,
    });
    // The beginning of it is passed on as the older structure.
    assert_eq!(size_of::<kvm::kvm_userspace_memory_region>(), 32);
    assert_eq!(offset_of!(kvm::kvm_userspace_memory_region, userspace_addr), 24);
    assert_eq!(offset_of!(kvm::kvm_userspace_memory_region2, userspace_addr), 24);
    assert_layout!(kvm::kvm_memory_attributes, memory_attributes {
        address = ADDRESS, size = LENGTH, attributes = ATTRIBUTES, flags = FLAGS,
    });
    assert_layout!(kvm::kvm_create_guest_memfd, guest_memfd { size = LENGTH, flags = FLAGS });
    assert_layout!(kvm::kvm_enable_cap, enable_cap { cap = CAP });
    assert_layout!(kvm::kvm_device_attr, device_attr { group = GROUP, attr = ATTR, addr = ADDR });
    assert_layout!(kvm::kvm_regs, registers {
        rax = RAX, rdx = RDX, rsp = RSP, rip = RIP, rflags = RFLAGS,
    });
    assert_layout!(kvm::kvm_sregs, special_registers {
        cs = CS, ds = DS, es = ES, fs = FS, gs = GS, ss = SS, tr = TR, ldt = LDT, gdt = GDT, idt = IDT,
        cr0 = CR0, cr4 = CR4, efer = EFER,
    });
    // What is read of `kvm_sregs` is where it is in the newer structure, too.
    assert_eq!(offset_of!(kvm::kvm_sregs2, efer), abi::special_registers::EFER);
    assert_layout!(kvm::kvm_sev_cmd, sev_cmd { id = ID, data = DATA, error = ERROR });
    assert_layout!(kvm::kvm_sev_init, sev_init {
        vmsa_features = VMSA_FEATURES, flags = FLAGS, ghcb_version = GHCB_VERSION,
    });
    assert_layout!(kvm::kvm_sev_snp_launch_start, launch_start {
        policy = POLICY, gosvw = GOSVW, flags = FLAGS,
    });
    assert_layout!(kvm::kvm_sev_snp_launch_update, launch_update {
        gfn_start = GFN_START, uaddr = UADDR, len = LEN, type_ = TYPE, flags = FLAGS,
    });
    assert_layout!(kvm::kvm_sev_snp_launch_finish, launch_finish {
        id_block_uaddr = ID_BLOCK_UADDR, id_auth_uaddr = ID_AUTH_UADDR, id_block_en = ID_BLOCK_EN,
        auth_key_en = AUTH_KEY_EN, vcek_disabled = VCEK_DISABLED, host_data = HOST_DATA, flags = FLAGS,
    });
    assert_layout!(kvm::kvm_cpuid2, cpuid { nent = NENT });
    assert_layout!(kvm::kvm_cpuid_entry2, cpuid_entry {
        function = FUNCTION, index = INDEX, flags = FLAGS, eax = EAX, ebx = EBX, ecx = ECX, edx = EDX,
    });
    assert_eq!(offset_of!(kvm::kvm_run, immediate_exit), abi::RUN_IMMEDIATE_EXIT);
}

#[test]
fn segments_are_where_the_page_of_a_processor_is_made_from_them() {
    let offsets = [
        (offset_of!(kvm::kvm_segment, base), 0),
        (offset_of!(kvm::kvm_segment, limit), 8),
        (offset_of!(kvm::kvm_segment, selector), 12),
        (offset_of!(kvm::kvm_segment, type_), 14),
        (offset_of!(kvm::kvm_segment, present), 15),
        (offset_of!(kvm::kvm_segment, dpl), 16),
        (offset_of!(kvm::kvm_segment, db), 17),
        (offset_of!(kvm::kvm_segment, s), 18),
        (offset_of!(kvm::kvm_segment, l), 19),
        (offset_of!(kvm::kvm_segment, g), 20),
        (offset_of!(kvm::kvm_segment, avl), 21),
        (offset_of!(kvm::kvm_segment, unusable), 22),
        (offset_of!(kvm::kvm_dtable, base), 0),
        (offset_of!(kvm::kvm_dtable, limit), 8),
    ];
    for (theirs, ours) in offsets {
        assert_eq!(theirs, ours);
    }
}

#[test]
fn numbers_are_those_of_kvm_bindings() {
    let numbers = [
        (u64::from(kvm::KVM_X86_SNP_VM), abi::SNP_VM),
        (u64::from(kvm::KVM_X86_TDX_VM), abi::TDX_VM),
        (u64::from(kvm::KVM_X86_DEFAULT_VM), abi::DEFAULT_VM),
        (u64::from(kvm::KVM_CAP_EXIT_HYPERCALL), abi::CAP_EXIT_HYPERCALL),
        (u64::from(kvm::KVM_CAP_USER_MEMORY2), abi::CAP_USER_MEMORY2),
        (u64::from(kvm::KVM_CAP_MEMORY_ATTRIBUTES), abi::CAP_MEMORY_ATTRIBUTES),
        (u64::from(kvm::KVM_CAP_GUEST_MEMFD), abi::CAP_GUEST_MEMFD),
        (u64::from(kvm::KVM_CAP_VM_TYPES), abi::CAP_VM_TYPES),
        (u64::from(kvm::KVM_CAP_X86_APIC_BUS_CYCLES_NS), abi::CAP_X86_APIC_BUS_CYCLES_NS),
        (u64::from(kvm::KVM_MEMORY_ATTRIBUTE_PRIVATE), abi::ATTRIBUTE_PRIVATE),
        (kvm::KVM_MEM_GUEST_MEMFD.into(), abi::MEM_GUEST_MEMFD.into()),
        (kvm::KVM_X86_GRP_SEV.into(), abi::GROUP_SEV.into()),
        (kvm::KVM_X86_SEV_VMSA_FEATURES.into(), abi::SEV_VMSA_FEATURES),
        (kvm::sev_cmd_id_KVM_SEV_INIT2.into(), abi::SEV_INIT2.into()),
        (kvm::sev_cmd_id_KVM_SEV_SNP_LAUNCH_START.into(), abi::SNP_LAUNCH_START.into()),
        (kvm::sev_cmd_id_KVM_SEV_SNP_LAUNCH_UPDATE.into(), abi::SNP_LAUNCH_UPDATE.into()),
        (kvm::sev_cmd_id_KVM_SEV_SNP_LAUNCH_FINISH.into(), abi::SNP_LAUNCH_FINISH.into()),
        (kvm::KVM_SEV_SNP_PAGE_TYPE_NORMAL.into(), abi::PAGE_NORMAL.into()),
        (kvm::KVM_SEV_SNP_PAGE_TYPE_ZERO.into(), abi::PAGE_ZERO.into()),
        (kvm::KVM_SEV_SNP_PAGE_TYPE_UNMEASURED.into(), abi::PAGE_UNMEASURED.into()),
        (kvm::KVM_SEV_SNP_PAGE_TYPE_SECRETS.into(), abi::PAGE_SECRETS.into()),
        (kvm::KVM_SEV_SNP_PAGE_TYPE_CPUID.into(), abi::PAGE_CPUID.into()),
        (u64::from(kvm::KVM_SEV_SNP_ID_BLOCK_SIZE), abi::ID_BLOCK_SIZE as u64),
        (u64::from(kvm::KVM_SEV_SNP_ID_AUTH_SIZE), abi::ID_AUTH_SIZE as u64),
    ];
    for (theirs, ours) in numbers {
        assert_eq!(theirs, ours);
    }
}

/// `ioctl` numbers, and TDX, which `kvm-bindings` 0.14 does not have.
#[test]
fn layouts_and_numbers_are_those_of_the_kernels_headers() {
    let scratch = tempfile::tempdir().unwrap();
    let source = scratch.path().join("layout.c");
    std::fs::write(&source, PROGRAM).unwrap();
    let program = scratch.path().join("layout");
    for (feature, define, expected) in [
        ("plain KVM", "PLAIN", plain()),
        ("AMD's secure processor", "PSP", psp()),
        ("SEV-SNP", "SNP", snp()),
        ("TDX", "TDX", tdx()),
    ] {
        let mut compiler = Command::new("cc");
        if let Some(headers) = fetched_headers() {
            compiler.arg("-I").arg(&headers).arg("-I").arg(headers.join("x86_64-linux-gnu"));
        }
        let compiled = compiler.arg("-D").arg(define).arg("-o").arg(&program).arg(&source).output();
        match compiled {
            Ok(output) if output.status.success() => {}
            Ok(_) => {
                skipped(&format!("the kernel's headers are too old for {feature}"));
                continue;
            }
            Err(error) => {
                skipped(&format!("no C compiler: {error}"));
                return;
            }
        }
        let output = Command::new(&program).output().unwrap();
        let theirs: Vec<u64> = String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| line.parse().unwrap())
            .collect();
        assert_eq!(theirs, expected, "{feature}");
        println!("{feature}: {} values compared", theirs.len());
    }
}

/// Says it past the test harness, which shows what a test prints only when it fails.
fn skipped(reason: &str) {
    drop(writeln!(io::stderr(), "SKIPPED: {reason}"));
}

/// The headers that `cargo xtask` fetched, newer than the system's.
fn fetched_headers() -> Option<PathBuf> {
    let prefix = std::env::var_os("NACRE_PREFIX").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/nacre"),
        PathBuf::from,
    );
    Some(prefix.join("linux-headers/usr/include")).filter(|headers| headers.is_dir())
}

const PROGRAM: &str = r#"
#include <stddef.h>
#include <stdio.h>
#include <linux/kvm.h>
#include <linux/psp-sev.h>
#define N(x) printf("%llu\n", (unsigned long long)(x));
#define S(type) N(sizeof(struct type))
#define O(type, field) N(offsetof(struct type, field))
int main(void) {
#ifdef PLAIN
    N(KVM_CREATE_VM) N(KVM_CHECK_EXTENSION) N(KVM_CREATE_VCPU) N(KVM_RUN) N(KVM_GET_SUPPORTED_CPUID)
    N(KVM_SET_USER_MEMORY_REGION) N(KVM_SET_REGS) N(KVM_SET_SREGS) N(KVM_SET_SREGS2) N(KVM_ENABLE_CAP)
    N(KVM_GET_DEVICE_ATTR) N(KVM_MEMORY_ENCRYPT_OP)
    O(kvm_run, immediate_exit)
#endif
#ifdef PSP
    N(SEV_ISSUE_CMD) N(SEV_PLATFORM_STATUS)
    S(sev_issue_cmd) O(sev_issue_cmd, cmd) O(sev_issue_cmd, data) O(sev_issue_cmd, error)
    S(sev_user_data_status) O(sev_user_data_status, api_major) O(sev_user_data_status, api_minor)
    O(sev_user_data_status, state) O(sev_user_data_status, flags) O(sev_user_data_status, build)
    O(sev_user_data_status, guest_count)
#endif
#ifdef SNP
    N(KVM_SET_USER_MEMORY_REGION2) N(KVM_SET_MEMORY_ATTRIBUTES) N(KVM_CREATE_GUEST_MEMFD) N(SNP_PLATFORM_STATUS)
    S(sev_user_data_snp_status) O(sev_user_data_snp_status, api_major) O(sev_user_data_snp_status, api_minor)
    O(sev_user_data_snp_status, state) O(sev_user_data_snp_status, build_id)
    S(kvm_sev_init) O(kvm_sev_init, vmsa_features) O(kvm_sev_init, flags) O(kvm_sev_init, ghcb_version)
    S(kvm_sev_snp_launch_start) O(kvm_sev_snp_launch_start, policy) O(kvm_sev_snp_launch_start, gosvw)
    O(kvm_sev_snp_launch_start, flags)
    S(kvm_sev_snp_launch_update) O(kvm_sev_snp_launch_update, gfn_start) O(kvm_sev_snp_launch_update, uaddr)
    O(kvm_sev_snp_launch_update, len) O(kvm_sev_snp_launch_update, type) O(kvm_sev_snp_launch_update, flags)
    S(kvm_sev_snp_launch_finish) O(kvm_sev_snp_launch_finish, id_block_uaddr)
    O(kvm_sev_snp_launch_finish, id_auth_uaddr) O(kvm_sev_snp_launch_finish, id_block_en)
    O(kvm_sev_snp_launch_finish, auth_key_en) O(kvm_sev_snp_launch_finish, vcek_disabled)
    O(kvm_sev_snp_launch_finish, host_data) O(kvm_sev_snp_launch_finish, flags)
#endif
#ifdef TDX
    N(KVM_TDX_CAPABILITIES) N(KVM_TDX_INIT_VM) N(KVM_TDX_INIT_VCPU) N(KVM_TDX_INIT_MEM_REGION)
    N(KVM_TDX_FINALIZE_VM) N(KVM_TDX_GET_CPUID) N(KVM_TDX_MEASURE_MEMORY_REGION)
    S(kvm_tdx_cmd) O(kvm_tdx_cmd, id) O(kvm_tdx_cmd, flags) O(kvm_tdx_cmd, data)
    S(kvm_tdx_capabilities) O(kvm_tdx_capabilities, supported_attrs) O(kvm_tdx_capabilities, supported_xfam)
    O(kvm_tdx_capabilities, cpuid)
    S(kvm_tdx_init_vm) O(kvm_tdx_init_vm, attributes) O(kvm_tdx_init_vm, xfam) O(kvm_tdx_init_vm, mrconfigid)
    O(kvm_tdx_init_vm, mrowner) O(kvm_tdx_init_vm, mrownerconfig) O(kvm_tdx_init_vm, reserved)
    O(kvm_tdx_init_vm, cpuid)
    S(kvm_tdx_init_mem_region) O(kvm_tdx_init_mem_region, source_addr) O(kvm_tdx_init_mem_region, gpa)
    O(kvm_tdx_init_mem_region, nr_pages)
#endif
    return 0;
}
"#;

fn plain() -> Vec<u64> {
    [
        abi::CREATE_VM,
        abi::CHECK_EXTENSION,
        abi::CREATE_VCPU,
        abi::RUN,
        abi::GET_SUPPORTED_CPUID,
        abi::SET_USER_MEMORY_REGION,
        abi::SET_REGS,
        abi::SET_SREGS,
        abi::SET_SREGS2,
        abi::ENABLE_CAP,
        abi::GET_DEVICE_ATTR,
        abi::MEMORY_ENCRYPT_OP,
    ]
    .into_iter()
    .chain([abi::RUN_IMMEDIATE_EXIT as u64])
    .collect()
}

fn psp() -> Vec<u64> {
    use abi::{issue_cmd as i, platform_status as s};
    [abi::SEV_ISSUE_CMD, abi::PLATFORM_STATUS.into()]
        .into_iter()
        .chain(numbers(&[i::SIZE, i::CMD, i::DATA, i::ERROR]))
        .chain(numbers(&[
            s::SIZE,
            s::API_MAJOR,
            s::API_MINOR,
            s::STATE,
            s::FLAGS,
            s::BUILD,
            s::GUEST_COUNT,
        ]))
        .collect()
}

fn snp() -> Vec<u64> {
    use abi::snp_platform_status as s;
    use abi::{launch_finish as f, launch_start as b, launch_update as u, sev_init as i};
    [
        abi::SET_USER_MEMORY_REGION2,
        abi::SET_MEMORY_ATTRIBUTES,
        abi::CREATE_GUEST_MEMFD,
        abi::SNP_PLATFORM_STATUS.into(),
    ]
    .into_iter()
    .chain(numbers(&[s::SIZE, s::API_MAJOR, s::API_MINOR, s::STATE, s::BUILD]))
    .chain(numbers(&[i::SIZE, i::VMSA_FEATURES, i::FLAGS, i::GHCB_VERSION]))
    .chain(numbers(&[b::SIZE, b::POLICY, b::GOSVW, b::FLAGS]))
    .chain(numbers(&[u::SIZE, u::GFN_START, u::UADDR, u::LEN, u::TYPE, u::FLAGS]))
    .chain(numbers(&[f::SIZE, f::ID_BLOCK_UADDR, f::ID_AUTH_UADDR, f::ID_BLOCK_EN]))
    .chain(numbers(&[f::AUTH_KEY_EN, f::VCEK_DISABLED, f::HOST_DATA, f::FLAGS]))
    .collect()
}

fn tdx() -> Vec<u64> {
    use abi::{tdx_capabilities as p, tdx_cmd as c, tdx_init_vm as v, tdx_mem_region as r};
    [
        abi::TDX_CAPABILITIES,
        abi::TDX_INIT_VM,
        abi::TDX_INIT_VCPU,
        abi::TDX_INIT_MEM_REGION,
        abi::TDX_FINALIZE_VM,
        abi::TDX_GET_CPUID,
        abi::TDX_MEASURE,
    ]
    .map(u64::from)
    .into_iter()
    .chain(numbers(&[c::SIZE, c::ID, c::FLAGS, c::DATA]))
    .chain(numbers(&[p::SIZE, p::SUPPORTED_ATTRS, p::SUPPORTED_XFAM, p::CPUID]))
    .chain(numbers(&[v::SIZE, v::ATTRIBUTES, v::XFAM, v::MRCONFIGID, v::MROWNER]))
    .chain(numbers(&[v::MROWNERCONFIG, v::RESERVED, v::CPUID]))
    .chain(numbers(&[r::SIZE, r::SOURCE_ADDR, r::GPA, r::NR_PAGES]))
    .collect()
}

fn numbers(values: &[usize]) -> impl Iterator<Item = u64> {
    values.iter().map(|&value| value as u64)
}
