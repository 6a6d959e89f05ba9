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

#[cfg(test)]
mod tests {
    use super::super::bench::{Bench, address_of, structure};
    use super::*;
    use crate::record::Call;

    /// Sends a command about `data`; what became of `data`.
    fn send(
        launch: &mut Launch,
        bench: &mut Bench,
        id: u32,
        mut data: Vec<u8>,
    ) -> (Answered, Vec<u8>) {
        let address = address_of(&mut data);
        let mut command = structure(
            sev_cmd::SIZE,
            &[
                (sev_cmd::ID, &id.to_le_bytes()),
                (sev_cmd::DATA, &address.to_le_bytes()),
                (sev_cmd::ERROR, &[0xff; 4]),
            ],
        );
        let answer = launch.command(&mut bench.vm, address_of(&mut command));
        let data = bench.vm.memory.read(address, data.len()).unwrap();
        (answer, data)
    }

    fn init() -> Vec<u8> {
        vec![0; sev_init::SIZE]
    }

    fn start(policy: u64) -> Vec<u8> {
        structure(launch_start::SIZE, &[(launch_start::POLICY, &policy.to_le_bytes())])
    }

    fn update(gfn: u64, source: &mut [u8], page_type: u8) -> Vec<u8> {
        structure(
            launch_update::SIZE,
            &[
                (launch_update::GFN_START, &gfn.to_le_bytes()),
                (launch_update::UADDR, &address_of(source).to_le_bytes()),
                (launch_update::LEN, &(source.len() as u64).to_le_bytes()),
                (launch_update::TYPE, &[page_type]),
            ],
        )
    }

    #[test]
    fn commands_have_an_order() {
        const COMMANDS: [u32; 4] =
            [abi::SEV_INIT2, abi::SNP_LAUNCH_START, abi::SNP_LAUNCH_UPDATE, abi::SNP_LAUNCH_FINISH];
        // By the stage of the launch: those that are refused whatever they ask for.
        for (mut launch, refused) in [
            (Launch::Created, &[1, 2, 3][..]),
            (Launch::Initialized, &[0, 2, 3]),
            (Launch::Started, &[0, 1]),
            (Launch::Finished, &[0, 1, 2, 3]),
        ] {
            for &index in refused {
                let mut bench = Bench::new();
                bench.vm.private.set(0, 0x1000, true);
                let data = match index {
                    0 => init(),
                    1 => start(POLICY_RESERVED_ONE),
                    2 => update(0, &mut [0; 4096], abi::PAGE_NORMAL),
                    _ => vec![0; launch_finish::SIZE],
                };
                let stage = launch;
                let (answer, _) = send(&mut launch, &mut bench, COMMANDS[index], data);
                assert_eq!(answer, Err(Errno::Invalid), "{stage:?}, {}", COMMANDS[index]);
                assert_eq!(launch, stage);
                assert_eq!(bench.calls(), []);
            }
        }
    }

    #[test]
    fn a_policy_has_the_bit_that_must_be_set() {
        let (mut launch, mut bench) = (Launch::Initialized, Bench::new());
        let (answer, _) =
            send(&mut launch, &mut bench, abi::SNP_LAUNCH_START, start(!POLICY_RESERVED_ONE));
        assert_eq!(answer, Err(Errno::Invalid));
        let (answer, _) = send(&mut launch, &mut bench, abi::SNP_LAUNCH_START, start(0x3_0000));
        assert_eq!((answer, launch), (Ok(0), Launch::Started));
        assert!(matches!(bench.calls()[..], [Call::SnpLaunchStart { policy: 0x3_0000, .. }]));
    }

    #[test]
    fn pages_are_private_whole_and_of_a_known_type() {
        let (mut launch, mut bench) = (Launch::Started, Bench::new());
        bench.vm.private.set(0x1000, 0x3000, true);
        let mut pages = vec![7; 0x2000];
        for (gfn, length, page_type) in [
            (0, 0x1000, abi::PAGE_NORMAL),
            (1, 0, abi::PAGE_NORMAL),
            (1, 0x800, abi::PAGE_NORMAL),
            (2, 0x2000, abi::PAGE_NORMAL),
            (u64::MAX, 0x1000, abi::PAGE_NORMAL),
            (1, 0x1000, 0),
            // Processors' state is KVM's business.
            (1, 0x1000, 2),
        ] {
            let data = update(gfn, &mut pages[..length], page_type);
            let (answer, _) = send(&mut launch, &mut bench, abi::SNP_LAUNCH_UPDATE, data);
            assert_eq!(answer, Err(Errno::Invalid), "{gfn:#x} {length:#x} {page_type}");
        }
        assert_eq!(bench.calls(), []);

        let data = update(1, &mut pages, abi::PAGE_NORMAL);
        let source = u64_at(&data, launch_update::UADDR);
        let (answer, told) = send(&mut launch, &mut bench, abi::SNP_LAUNCH_UPDATE, data);
        assert_eq!((answer, launch), (Ok(0), Launch::Started));
        assert_eq!(u64_at(&told, launch_update::GFN_START), 3, "the next page");
        assert_eq!(u64_at(&told, launch_update::UADDR), source + 0x2000);
        assert_eq!(u64_at(&told, launch_update::LEN), 0, "nothing is left");
        assert!(matches!(
            bench.calls()[..],
            [Call::SnpLaunchUpdate {
                gpa: 0x1000,
                length: 0x2000,
                page_type: 1,
                contents: Some(_)
            }]
        ));
    }

    #[test]
    fn contents_that_cannot_be_read_are_no_page() {
        let (mut launch, mut bench) = (Launch::Started, Bench::new());
        bench.vm.private.set(0, 0x1000, true);
        let mut data = update(0, &mut [0; 0x1000], abi::PAGE_NORMAL);
        data[launch_update::UADDR..launch_update::LEN].copy_from_slice(&16_u64.to_le_bytes());
        let (answer, _) = send(&mut launch, &mut bench, abi::SNP_LAUNCH_UPDATE, data);
        assert_eq!(answer, Err(Errno::Fault));
        assert_eq!(bench.calls(), []);
    }

    #[test]
    fn the_last_command_hands_over_what_the_owner_gave() {
        let (mut launch, mut bench) = (Launch::Started, Bench::new());
        let mut block = [1; abi::ID_BLOCK_SIZE];
        let mut auth = vec![2; abi::ID_AUTH_SIZE];
        let finish = structure(
            launch_finish::SIZE,
            &[
                (launch_finish::ID_BLOCK_UADDR, &address_of(&mut block).to_le_bytes()),
                (launch_finish::ID_AUTH_UADDR, &address_of(&mut auth).to_le_bytes()),
                (launch_finish::ID_BLOCK_EN, &[1]),
                (launch_finish::VCEK_DISABLED, &[1]),
                (launch_finish::HOST_DATA, &[3; 32]),
            ],
        );
        let (answer, _) = send(&mut launch, &mut bench, abi::SNP_LAUNCH_FINISH, finish);
        assert_eq!((answer, launch), (Ok(0), Launch::Finished));
        let calls = bench.calls();
        let [
            Call::VcpuState { .. },
            Call::SnpLaunchFinish { host_data, author_key, vcek_disabled, id_block, id_auth },
        ] = &calls[..]
        else {
            panic!("{calls:?}");
        };
        assert_eq!(host_data.0, [3; 32]);
        assert!(!author_key && *vcek_disabled);
        assert_eq!(id_block.as_ref().unwrap().0, block);
        assert_eq!(id_auth.as_ref().unwrap().0, auth);
    }

    #[test]
    fn the_secure_processor_answers_for_its_platform() {
        let bench = Bench::new();
        let ask = |command: u32, size: usize| {
            let mut status = vec![0xff; size];
            let address = address_of(&mut status);
            let mut request = structure(
                issue_cmd::SIZE,
                &[
                    (issue_cmd::CMD, &command.to_le_bytes()),
                    (issue_cmd::DATA, &address.to_le_bytes()),
                ],
            );
            platform(&bench.vm.memory, address_of(&mut request))?;
            bench.vm.memory.read(address, size)
        };
        let status = ask(abi::PLATFORM_STATUS, platform_status::SIZE).unwrap();
        assert_eq!(status[..3], [1, 55, 1]);
        assert_eq!(u32_at(&status, platform_status::FLAGS), 0x100, "SEV-ES");
        let status = ask(abi::SNP_PLATFORM_STATUS, snp_platform_status::SIZE).unwrap();
        assert_eq!(status[..3], [1, 55, 1]);
        const FACTORY_RESET: u32 = 0;
        assert_eq!(ask(FACTORY_RESET, 16), Err(Errno::Invalid));
    }
}
