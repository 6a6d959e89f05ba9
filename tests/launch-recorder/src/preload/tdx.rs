//! TDX: the commands of a launch in their order.

use std::os::fd::RawFd;

use super::abi::{
    self, cpuid, cpuid_entry, tdx_capabilities, tdx_cmd, tdx_init_vm, tdx_mem_region,
};
use super::boundary::kernel_ioctl_with;
use super::journal::Entry;
use super::kvm::{PAGE_SIZE, Vm, range_end};
use super::memory::{u32_at, u64_at};
use super::{Answered, Errno};

/// `SEPT_VE_DISABLE`, all that KVM lets a guest have (Linux 6.16, `KVM_SUPPORTED_TD_ATTRS`).
const SUPPORTED_ATTRIBUTES: u64 = 1 << 28;

/// x87 and SSE, which each guest has; AVX, AVX-512, PKRU, CET, AMX (Linux 6.16, `KVM_SUPPORTED_XFAM`).
const SUPPORTED_XFAM: u64 = 0x6_1ae7;

/// Most entries of a table of CPUID leaves: `KVM_MAX_CPUID_ENTRIES`.
const MOST_ENTRIES: u32 = 256;

/// Most pages of one region: 64 MiB.
const MOST_PAGES: u64 = (64 << 20) / PAGE_SIZE;

/// How far a launch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Launch {
    Created,
    Initialized,
    Finalized,
}

impl Launch {
    /// `KVM_MEMORY_ENCRYPT_OP`, of the VM or of a processor.
    pub(crate) fn command(&mut self, vm: &mut Vm, fd: RawFd, argument: u64) -> Answered {
        let command = vm.memory.read(argument, tdx_cmd::SIZE)?;
        let flags = u32_at(&command, tdx_cmd::FLAGS);
        let data = u64_at(&command, tdx_cmd::DATA);
        let id = u32_at(&command, tdx_cmd::ID);
        if flags != 0 && id != abi::TDX_INIT_MEM_REGION {
            return Err(Errno::Invalid);
        }
        match (id, *self) {
            (abi::TDX_CAPABILITIES, _) => capabilities(vm, data)?,
            (abi::TDX_INIT_VM, Launch::Created) => {
                init_vm(vm, data)?;
                *self = Launch::Initialized;
            }
            (abi::TDX_GET_CPUID, Launch::Initialized) => {
                // No leaf whose value the module forces upon the guest.
                vm.memory.write(data, &0_u32.to_le_bytes())?;
            }
            (abi::TDX_INIT_VCPU, Launch::Initialized) if vm.is_vcpu(fd) => {
                vm.journal.write(Entry::of("tdx-init-vcpu").number("rcx", data))?;
            }
            (abi::TDX_INIT_MEM_REGION, Launch::Initialized) if vm.is_vcpu(fd) => {
                init_mem_region(vm, flags, data)?;
            }
            (abi::TDX_FINALIZE_VM, Launch::Initialized) => {
                vm.journal.write(Entry::of("tdx-finalize-vm"))?;
                *self = Launch::Finalized;
            }
            _ => return Err(Errno::Invalid),
        }
        Ok(0)
    }
}

/// A module that leaves each CPUID bit that KVM knows to whoever configures the guest.
fn capabilities(vm: &mut Vm, data: u64) -> Result<(), Errno> {
    let room = u32_at(&vm.memory.read(data, tdx_capabilities::SIZE)?, tdx_capabilities::CPUID);
    let mut table = vec![0; cpuid::SIZE + MOST_ENTRIES as usize * cpuid_entry::SIZE];
    table[..4].copy_from_slice(&MOST_ENTRIES.to_le_bytes());
    if kernel_ioctl_with(vm.kvm, abi::GET_SUPPORTED_CPUID, &mut table) < 0 {
        return Err(Errno::Io);
    }
    let entries = u32_at(&table, cpuid::NENT);
    if entries > room {
        return Err(Errno::TooBig);
    }
    table.truncate(cpuid::SIZE + entries as usize * cpuid_entry::SIZE);
    let mut answer = vec![0; tdx_capabilities::CPUID];
    answer[..8].copy_from_slice(&SUPPORTED_ATTRIBUTES.to_le_bytes());
    answer[8..16].copy_from_slice(&SUPPORTED_XFAM.to_le_bytes());
    answer.append(&mut table);
    vm.memory.write(data, &answer)
}

fn init_vm(vm: &mut Vm, data: u64) -> Result<(), Errno> {
    let init = vm.memory.read(data, tdx_init_vm::SIZE)?;
    let attributes = u64_at(&init, tdx_init_vm::ATTRIBUTES);
    let xfam = u64_at(&init, tdx_init_vm::XFAM);
    let entries = u32_at(&init, tdx_init_vm::CPUID + cpuid::NENT);
    let reserved = &init[tdx_init_vm::RESERVED..tdx_init_vm::CPUID];
    if attributes & !SUPPORTED_ATTRIBUTES != 0
        || xfam & !SUPPORTED_XFAM != 0
        || reserved.iter().any(|&byte| byte != 0)
        || entries > MOST_ENTRIES
    {
        return Err(Errno::Invalid);
    }
    let table =
        vm.memory.read(data + tdx_init_vm::SIZE as u64, entries as usize * cpuid_entry::SIZE)?;
    let entry = Entry::of("tdx-init-vm")
        .number("attributes", attributes)
        .number("xfam", xfam)
        .hex("mr_config_id", &init[tdx_init_vm::MRCONFIGID..tdx_init_vm::MROWNER])
        .hex("mr_owner", &init[tdx_init_vm::MROWNER..tdx_init_vm::MROWNERCONFIG])
        .hex("mr_owner_config", &init[tdx_init_vm::MROWNERCONFIG..tdx_init_vm::RESERVED])
        .hex("cpuid", &table);
    vm.journal.write(entry)
}

fn init_mem_region(vm: &mut Vm, flags: u32, data: u64) -> Result<(), Errno> {
    let region = vm.memory.read(data, tdx_mem_region::SIZE)?;
    let source = u64_at(&region, tdx_mem_region::SOURCE_ADDR);
    let gpa = u64_at(&region, tdx_mem_region::GPA);
    let pages = u64_at(&region, tdx_mem_region::NR_PAGES);
    if flags & !abi::TDX_MEASURE != 0 || pages > MOST_PAGES || !source.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::Invalid);
    }
    let length = pages * PAGE_SIZE;
    let end = range_end(gpa, length)?;
    if !vm.private.contains(gpa, end) {
        return Err(Errno::Invalid);
    }
    let contents = vm.memory.read(source, usize::try_from(length).map_err(|_| Errno::Invalid)?)?;
    let entry = Entry::of("tdx-init-mem-region")
        .number("gpa", gpa)
        .number("length", length)
        .flag("measured", flags & abi::TDX_MEASURE != 0)
        .contents(contents);
    vm.journal.write(entry)?;
    // What is left to be done, as the kernel tells it.
    let progress = [source + length, end, 0];
    let progress: Vec<u8> = progress.into_iter().flat_map(u64::to_le_bytes).collect();
    vm.memory.write(data, &progress)
}

#[cfg(test)]
mod tests {
    use super::super::bench::{Bench, address_of, structure};
    use super::*;
    use crate::record::Call;

    const VM: RawFd = 999;

    /// Sends a command about `data`; what became of `data`.
    fn send(
        (launch, bench): (&mut Launch, &mut Bench),
        fd: RawFd,
        (id, flags): (u32, u32),
        mut data: Vec<u8>,
    ) -> (Answered, Vec<u8>) {
        let address = address_of(&mut data);
        let mut command = structure(
            tdx_cmd::SIZE,
            &[
                (tdx_cmd::ID, &id.to_le_bytes()),
                (tdx_cmd::FLAGS, &flags.to_le_bytes()),
                (tdx_cmd::DATA, &address.to_le_bytes()),
            ],
        );
        let answer = launch.command(&mut bench.vm, fd, address_of(&mut command));
        let data = bench.vm.memory.read(address, data.len()).unwrap();
        (answer, data)
    }

    fn region(source: u64, gpa: u64, pages: u64) -> Vec<u8> {
        structure(
            tdx_mem_region::SIZE,
            &[
                (tdx_mem_region::SOURCE_ADDR, &source.to_le_bytes()),
                (tdx_mem_region::GPA, &gpa.to_le_bytes()),
                (tdx_mem_region::NR_PAGES, &pages.to_le_bytes()),
            ],
        )
    }

    #[test]
    fn commands_have_an_order() {
        let mut source = vec![0; 0x2000];
        let aligned = address_of(&mut source).next_multiple_of(PAGE_SIZE);
        for (mut launch, fd, id) in [
            (Launch::Created, VM, abi::TDX_FINALIZE_VM),
            (Launch::Created, Bench::VCPU, abi::TDX_INIT_VCPU),
            (Launch::Created, Bench::VCPU, abi::TDX_INIT_MEM_REGION),
            (Launch::Initialized, VM, abi::TDX_INIT_VM),
            // Processors' commands.
            (Launch::Initialized, VM, abi::TDX_INIT_VCPU),
            (Launch::Initialized, VM, abi::TDX_INIT_MEM_REGION),
            (Launch::Finalized, VM, abi::TDX_INIT_VM),
            (Launch::Finalized, Bench::VCPU, abi::TDX_INIT_MEM_REGION),
            (Launch::Finalized, VM, abi::TDX_FINALIZE_VM),
            (Launch::Initialized, VM, 99),
        ] {
            let mut bench = Bench::new();
            bench.vm.private.set(0, 0x1000, true);
            let data = match id {
                abi::TDX_INIT_MEM_REGION => region(aligned, 0, 1),
                _ => vec![0; tdx_init_vm::SIZE],
            };
            let stage = launch;
            let (answer, _) = send((&mut launch, &mut bench), fd, (id, 0), data);
            assert_eq!(answer, Err(Errno::Invalid), "{stage:?}, {id}");
            assert_eq!((launch, bench.calls()), (stage, vec![]));
        }
    }

    #[test]
    fn a_guest_is_what_the_module_supports() {
        let init = |attributes: u64, xfam: u64, offset: usize, byte: u8| {
            structure(
                tdx_init_vm::SIZE,
                &[
                    (tdx_init_vm::ATTRIBUTES, &attributes.to_le_bytes()),
                    (tdx_init_vm::XFAM, &xfam.to_le_bytes()),
                    (tdx_init_vm::MRCONFIGID, &[1; 48]),
                    (tdx_init_vm::MROWNER, &[2; 48]),
                    (tdx_init_vm::MROWNERCONFIG, &[3; 48]),
                    (offset, &[byte]),
                ],
            )
        };
        let (mut launch, mut bench) = (Launch::Created, Bench::new());
        const DEBUG: u64 = 1;
        for data in [
            init(DEBUG, 3, 0x100, 0),
            init(SUPPORTED_ATTRIBUTES, 1 << 8, 0x100, 0),
            init(SUPPORTED_ATTRIBUTES, 3, tdx_init_vm::RESERVED, 1),
            // 257 entries.
            init(SUPPORTED_ATTRIBUTES, 3 | 1 << 8, tdx_init_vm::CPUID + 1, 1),
        ] {
            let command = (abi::TDX_INIT_VM, 0);
            let (answer, _) = send((&mut launch, &mut bench), VM, command, data);
            assert_eq!(answer, Err(Errno::Invalid));
        }
        let data = init(SUPPORTED_ATTRIBUTES, 3, tdx_init_vm::CPUID, 0);
        let (answer, _) = send((&mut launch, &mut bench), VM, (abi::TDX_INIT_VM, 0), data);
        assert_eq!((answer, launch), (Ok(0), Launch::Initialized));
        let calls = bench.calls();
        let [Call::TdxInitVm { attributes, xfam, mr_config_id, mr_owner, mr_owner_config, cpuid }] =
            &calls[..]
        else {
            panic!("{calls:?}");
        };
        assert_eq!((*attributes, *xfam), (SUPPORTED_ATTRIBUTES, 3));
        assert_eq!(
            [&mr_config_id.0[..], &mr_owner.0, &mr_owner_config.0, &cpuid.0],
            [&[1; 48][..], &[2; 48], &[3; 48], &[]]
        );
    }

    #[test]
    fn memory_is_private_and_whole() {
        let (mut launch, mut bench) = (Launch::Initialized, Bench::new());
        bench.vm.private.set(0x1000, 0x3000, true);
        let mut source = vec![0; 0x4000];
        let aligned = address_of(&mut source).next_multiple_of(PAGE_SIZE);
        const COMMAND: u32 = abi::TDX_INIT_MEM_REGION;
        for (source, gpa, pages, flags) in [
            (aligned, 0, 1, 0),
            (aligned, 0x1000, 0, 0),
            (aligned, 0x2000, 2, 0),
            (aligned, 0x1800, 1, 0),
            (aligned + 1, 0x1000, 1, 0),
            (aligned, 0x1000, u64::MAX, 0),
            (aligned, 0x1000, 1, 2),
        ] {
            let data = region(source, gpa, pages);
            let (answer, _) = send((&mut launch, &mut bench), Bench::VCPU, (COMMAND, flags), data);
            assert_eq!(answer, Err(Errno::Invalid), "{gpa:#x} {pages} {flags}");
        }
        assert_eq!(bench.calls(), []);
        let data = region(aligned, 0x1000, 2);
        let (answer, told) = send((&mut launch, &mut bench), Bench::VCPU, (COMMAND, 1), data);
        assert_eq!(answer, Ok(0));
        assert_eq!(told, region(aligned + 0x2000, 0x3000, 0), "nothing is left");
        assert!(matches!(
            bench.calls()[..],
            [Call::TdxInitMemRegion { gpa: 0x1000, length: 0x2000, measured: true, .. }]
        ));
    }
}
