//! SEV-SNP: the commands of a launch in their order, and AMD's secure processor.

use super::abi::{
    self, device_attr, issue_cmd, launch_finish, launch_start, launch_update, platform_status,
    sev_cmd, sev_init, snp_platform_status,
};
use super::journal::Entry;
use super::kvm::{PAGE_SIZE, Vm, range_end};
use super::memory::{Memory, u16_at, u32_at, u64_at};
use super::{Answered, Errno};

/// Bit 17 of a policy must be set (SEV-SNP firmware ABI, guest policy).
const POLICY_RESERVED_ONE: u64 = 1 << 17;

/// Most bytes of one update.
const LARGEST_UPDATE: u64 = 64 << 20;

/// How far a launch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Launch {
    Created,
    Initialized,
    Started,
    Finished,
}

impl Launch {
    /// `KVM_MEMORY_ENCRYPT_OP`.
    pub(crate) fn command(&mut self, vm: &mut Vm, argument: u64) -> Answered {
        if argument == 0 {
            // The question whether there is SEV at all.
            return Ok(0);
        }
        let command = vm.memory.read(argument, sev_cmd::SIZE)?;
        let data = u64_at(&command, sev_cmd::DATA);
        let (from, to) = match u32_at(&command, sev_cmd::ID) {
            abi::SEV_INIT2 => (Launch::Created, Launch::Initialized),
            abi::SNP_LAUNCH_START => (Launch::Initialized, Launch::Started),
            abi::SNP_LAUNCH_UPDATE => (Launch::Started, Launch::Started),
            abi::SNP_LAUNCH_FINISH => (Launch::Started, Launch::Finished),
            _ => return Err(Errno::Invalid),
        };
        if *self != from {
            return Err(Errno::Invalid);
        }
        match u32_at(&command, sev_cmd::ID) {
            abi::SEV_INIT2 => init(vm, data)?,
            abi::SNP_LAUNCH_START => start(vm, data)?,
            abi::SNP_LAUNCH_UPDATE => update(vm, data)?,
            _ => finish(vm, data)?,
        }
        *self = to;
        vm.memory.write(argument + sev_cmd::ERROR as u64, &0_u32.to_le_bytes())?;
        Ok(0)
    }
}

fn init(vm: &mut Vm, data: u64) -> Result<(), Errno> {
    let init = vm.memory.read(data, sev_init::SIZE)?;
    let flags = u32_at(&init, sev_init::FLAGS);
    if flags != 0 {
        return Err(Errno::Invalid);
    }
    let entry = Entry::of("sev-init2")
        .number("vmsa_features", u64_at(&init, sev_init::VMSA_FEATURES))
        .number("ghcb_version", u16_at(&init, sev_init::GHCB_VERSION));
    vm.journal.write(entry)
}

fn start(vm: &mut Vm, data: u64) -> Result<(), Errno> {
    let start = vm.memory.read(data, launch_start::SIZE)?;
    let policy = u64_at(&start, launch_start::POLICY);
    if u16_at(&start, launch_start::FLAGS) != 0 || policy & POLICY_RESERVED_ONE == 0 {
        return Err(Errno::Invalid);
    }
    let workarounds = &start[launch_start::GOSVW..launch_start::FLAGS];
    let entry =
        Entry::of("snp-launch-start").number("policy", policy).hex("workarounds", workarounds);
    vm.journal.write(entry)
}

fn update(vm: &mut Vm, data: u64) -> Result<(), Errno> {
    let update = vm.memory.read(data, launch_update::SIZE)?;
    let gfn = u64_at(&update, launch_update::GFN_START);
    let source = u64_at(&update, launch_update::UADDR);
    let length = u64_at(&update, launch_update::LEN);
    let page_type = update[launch_update::TYPE];
    let gpa = gfn.checked_mul(PAGE_SIZE).ok_or(Errno::Invalid)?;
    let end = range_end(gpa, length)?;
    if length > LARGEST_UPDATE
        || u16_at(&update, launch_update::FLAGS) != 0
        || !vm.private.contains(gpa, end)
    {
        return Err(Errno::Invalid);
    }
    let entry = Entry::of("snp-launch-update")
        .number("gpa", gpa)
        .number("length", length)
        .number("page_type", page_type);
    let entry = match page_type {
        abi::PAGE_NORMAL | abi::PAGE_CPUID => {
            let length = usize::try_from(length).map_err(|_| Errno::Invalid)?;
            entry.contents(vm.memory.read(source, length)?)
        }
        abi::PAGE_ZERO | abi::PAGE_UNMEASURED | abi::PAGE_SECRETS => entry,
        _ => return Err(Errno::Invalid),
    };
    vm.journal.write(entry)?;
    // What is left to be done, as the kernel tells it.
    let progress = [end / PAGE_SIZE, source.wrapping_add(length), 0];
    let progress: Vec<u8> = progress.into_iter().flat_map(u64::to_le_bytes).collect();
    vm.memory.write(data, &progress)
}

fn finish(vm: &mut Vm, data: u64) -> Result<(), Errno> {
    let finish = vm.memory.read(data, launch_finish::SIZE)?;
    if u16_at(&finish, launch_finish::FLAGS) != 0 {
        return Err(Errno::Invalid);
    }
    // KVM makes the pages of the processors' state now, one after the other.
    for vcpu in &vm.vcpus {
        let entry = Entry::of("vcpu-state")
            .hex("registers", &vcpu.registers)
            .hex("special_registers", &vcpu.special_registers);
        vm.journal.write(entry)?;
    }
    let mut entry = Entry::of("snp-launch-finish")
        .hex("host_data", &finish[launch_finish::HOST_DATA..launch_finish::HOST_DATA + 32])
        .flag("author_key", finish[launch_finish::AUTH_KEY_EN] != 0)
        .flag("vcek_disabled", finish[launch_finish::VCEK_DISABLED] != 0);
    if finish[launch_finish::ID_BLOCK_EN] != 0 {
        let block = u64_at(&finish, launch_finish::ID_BLOCK_UADDR);
        let auth = u64_at(&finish, launch_finish::ID_AUTH_UADDR);
        entry = entry
            .hex("id_block", &vm.memory.read(block, abi::ID_BLOCK_SIZE)?)
            .hex("id_auth", &vm.memory.read(auth, abi::ID_AUTH_SIZE)?);
    }
    vm.journal.write(entry)
}

/// `KVM_GET_DEVICE_ATTR` of the system: the features that a processor's state may have, if that is asked.
pub(crate) fn vmsa_features(memory: &Memory, argument: u64) -> Result<bool, Errno> {
    /// Debug registers are swapped, as KVM has it on by choice (Linux 6.16, `sev_hardware_setup`).
    const DEBUG_SWAP: u64 = 1 << 5;
    let request = memory.read(argument, device_attr::SIZE)?;
    let asked = u32_at(&request, device_attr::GROUP) == abi::GROUP_SEV
        && u64_at(&request, device_attr::ATTR) == abi::SEV_VMSA_FEATURES;
    if asked {
        memory.write(u64_at(&request, device_attr::ADDR), &DEBUG_SWAP.to_le_bytes())?;
    }
    Ok(asked)
}

/// `SEV_ISSUE_CMD`: a platform that is initialized, with firmware 1.55, for SEV-ES and SNP.
pub(crate) fn platform(memory: &Memory, argument: u64) -> Answered {
    const API: [u8; 2] = [1, 55];
    const INITIALIZED: u8 = 1;
    const CONFIG_ES: u32 = 1 << 8;
    let command = memory.read(argument, issue_cmd::SIZE)?;
    let status = match u32_at(&command, issue_cmd::CMD) {
        abi::PLATFORM_STATUS => {
            let mut status = vec![0; platform_status::SIZE];
            status[platform_status::API_MAJOR..platform_status::STATE].copy_from_slice(&API);
            status[platform_status::STATE] = INITIALIZED;
            status[platform_status::FLAGS..platform_status::BUILD]
                .copy_from_slice(&CONFIG_ES.to_le_bytes());
            status
        }
        abi::SNP_PLATFORM_STATUS => {
            let mut status = vec![0; snp_platform_status::SIZE];
            status[snp_platform_status::API_MAJOR..snp_platform_status::STATE]
                .copy_from_slice(&API);
            status[snp_platform_status::STATE] = INITIALIZED;
            status
        }
        _ => return Err(Errno::Invalid),
    };
    memory.write(u64_at(&command, issue_cmd::DATA), &status)?;
    memory.write(argument + issue_cmd::ERROR as u64, &0_u32.to_le_bytes())?;
    Ok(0)
}
