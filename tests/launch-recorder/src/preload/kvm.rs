//! KVM as a host with SEV-SNP and TDX has it, in front of one that has neither.

use std::ffi::c_int;
use std::os::fd::{IntoRawFd, RawFd};
use std::sync::Arc;

use super::abi::{self, enable_cap, guest_memfd, memory_attributes, memory_region};
use super::boundary::{RunPage, kernel_ioctl, kernel_ioctl_with, memory_file};
use super::journal::{self, Entry, Journal};
use super::memory::{Memory, u32_at, u64_at};
use super::private::PrivateMemory;
use super::{Answer, Answered, Errno, snp, tdx};

/// Granularity of everything that KVM does with memory.
pub(crate) const PAGE_SIZE: u64 = 4096;

/// One host: one QEMU with one VM.
pub(crate) struct Host {
    vm: Vm,
    launch: Launch,
}

/// What has been asked of the VM apart from its launch.
pub(crate) struct Vm {
    pub(crate) journal: Journal,
    pub(crate) memory: Memory,
    pub(crate) private: PrivateMemory,
    /// In the order in which they were made.
    pub(crate) vcpus: Vec<Vcpu>,
    /// `/dev/kvm`, once a VM was made of it.
    pub(crate) kvm: RawFd,
    pub(crate) ran: bool,
}

/// A virtual processor and the state that QEMU last gave it: `kvm_regs` and `kvm_sregs`.
pub(crate) struct Vcpu {
    pub(crate) fd: RawFd,
    pub(crate) registers: Vec<u8>,
    pub(crate) special_registers: Vec<u8>,
    pub(crate) run: Arc<RunPage>,
}

enum Launch {
    /// No VM yet, or a plain one: the kernel's own.
    Plain,
    Snp(snp::Launch),
    Tdx(tdx::Launch),
}

/// Whether this request may need an answer that the kernel here does not have.
pub(crate) fn is_ours(request: u64) -> bool {
    (request >> 8) & 0xff == 0xae || request == abi::SEV_ISSUE_CMD
}

impl Host {
    /// None when nothing is to be recorded.
    pub(crate) fn recording() -> Option<Host> {
        let path = std::env::var_os(journal::VARIABLE)?;
        let parts = Journal::create(path).and_then(|journal| Ok((journal, Memory::open()?)));
        match parts {
            Ok((journal, memory)) => {
                let vm = Vm {
                    journal,
                    memory,
                    private: PrivateMemory::default(),
                    vcpus: Vec::new(),
                    kvm: -1,
                    ran: false,
                };
                Some(Host { vm, launch: Launch::Plain })
            }
            Err(error) => {
                eprintln!("launch recorder: failed to begin a record: {error}");
                std::process::abort();
            }
        }
    }

    pub(crate) fn ioctl(&mut self, fd: RawFd, request: u64, argument: u64) -> Answer {
        let answered = match request {
            abi::CHECK_EXTENSION => match extension(fd, argument) {
                Some(value) => Ok(value),
                None => return Answer::Kernel,
            },
            abi::SEV_ISSUE_CMD => snp::platform(&self.vm.memory, argument),
            abi::GET_DEVICE_ATTR => match snp::vmsa_features(&self.vm.memory, argument) {
                Ok(true) => Ok(0),
                Ok(false) => return Answer::Kernel,
                Err(errno) => Err(errno),
            },
            abi::CREATE_VM => self.create_vm(fd, argument),
            _ if matches!(self.launch, Launch::Plain) => return Answer::Kernel,
            abi::MEMORY_ENCRYPT_OP => match &mut self.launch {
                Launch::Snp(launch) => launch.command(&mut self.vm, argument),
                Launch::Tdx(launch) => launch.command(&mut self.vm, fd, argument),
                Launch::Plain => return Answer::Kernel,
            },
            abi::CREATE_VCPU => self.vm.create_vcpu(fd, argument),
            abi::SET_REGS | abi::SET_SREGS | abi::SET_SREGS2 => {
                match self.vm.keep_registers(fd, request, argument) {
                    Ok(()) => return Answer::Kernel,
                    Err(errno) => Err(errno),
                }
            }
            abi::RUN => match self.vm.run(fd) {
                Ok(page) => return Answer::Idle(page),
                Err(errno) => Err(errno),
            },
            abi::SET_USER_MEMORY_REGION2 => self.vm.memory_region(fd, argument),
            abi::SET_MEMORY_ATTRIBUTES => self.vm.memory_attributes(argument),
            abi::CREATE_GUEST_MEMFD => self.vm.guest_memfd(argument),
            abi::ENABLE_CAP => match self.vm.enables_ours(argument) {
                Ok(true) => Ok(0),
                Ok(false) => return Answer::Kernel,
                Err(errno) => Err(errno),
            },
            _ => return Answer::Kernel,
        };
        match answered {
            Ok(value) => Answer::Done(value),
            Err(errno) => Answer::Error(errno),
        }
    }

    fn create_vm(&mut self, kvm: RawFd, vm_type: u64) -> Answered {
        self.vm.journal.write(Entry::of("create-vm").number("vm_type", vm_type))?;
        let plain = match vm_type {
            abi::SNP_VM => {
                self.launch = Launch::Snp(snp::Launch::Created);
                abi::DEFAULT_VM
            }
            abi::TDX_VM => {
                self.launch = Launch::Tdx(tdx::Launch::Created);
                abi::DEFAULT_VM
            }
            other => other,
        };
        self.vm.kvm = kvm;
        kernel(kernel_ioctl(kvm, abi::CREATE_VM, plain))
    }
}

impl Vm {
    pub(crate) fn is_vcpu(&self, fd: RawFd) -> bool {
        self.vcpus.iter().any(|vcpu| vcpu.fd == fd)
    }

    fn create_vcpu(&mut self, vm: RawFd, id: u64) -> Answered {
        let vcpu = kernel(kernel_ioctl(vm, abi::CREATE_VCPU, id))?;
        let run = Arc::new(RunPage::map(vcpu).map_err(|_| Errno::Io)?);
        let (registers, special_registers) = (Vec::new(), Vec::new());
        self.vcpus.push(Vcpu { fd: vcpu, registers, special_registers, run });
        Ok(vcpu)
    }

    fn keep_registers(&mut self, fd: RawFd, request: u64, argument: u64) -> Result<(), Errno> {
        let vcpu = self.vcpus.iter_mut().find(|vcpu| vcpu.fd == fd).ok_or(Errno::NotTerminal)?;
        if request == abi::SET_REGS {
            vcpu.registers = self.memory.read(argument, abi::registers::SIZE)?;
        } else {
            vcpu.special_registers = self.memory.read(argument, abi::special_registers::SIZE)?;
        }
        Ok(())
    }

    fn run(&mut self, fd: RawFd) -> Result<Arc<RunPage>, Errno> {
        let vcpu = self.vcpus.iter().find(|vcpu| vcpu.fd == fd).ok_or(Errno::NotTerminal)?;
        let page = Arc::clone(&vcpu.run);
        if !self.ran {
            self.ran = true;
            self.journal.write(Entry::of("run"))?;
        }
        Ok(page)
    }

    /// The guest's private memory is never used here: what stands for it is an empty file, and the slot is a
    /// plain one.
    fn memory_region(&mut self, vm: RawFd, argument: u64) -> Answered {
        const PLAIN_SIZE: usize = 32;
        let mut region = self.memory.read(argument, memory_region::SIZE)?;
        let flags = u32_at(&region, memory_region::FLAGS);
        let entry = Entry::of("memory-region")
            .number("gpa", u64_at(&region, memory_region::GUEST_PHYS_ADDR))
            .number("size", u64_at(&region, memory_region::MEMORY_SIZE))
            .flag("guest_memfd", flags & abi::MEM_GUEST_MEMFD != 0);
        self.journal.write(entry)?;
        let flags = (flags & !abi::MEM_GUEST_MEMFD).to_le_bytes();
        region[memory_region::FLAGS..memory_region::FLAGS + flags.len()].copy_from_slice(&flags);
        kernel(kernel_ioctl_with(vm, abi::SET_USER_MEMORY_REGION, &mut region[..PLAIN_SIZE]))
    }

    fn memory_attributes(&mut self, argument: u64) -> Answered {
        let request = self.memory.read(argument, memory_attributes::SIZE)?;
        let start = u64_at(&request, memory_attributes::ADDRESS);
        let length = u64_at(&request, memory_attributes::LENGTH);
        let attributes = u64_at(&request, memory_attributes::ATTRIBUTES);
        let end = range_end(start, length)?;
        if u64_at(&request, memory_attributes::FLAGS) != 0
            || attributes & !abi::ATTRIBUTE_PRIVATE != 0
        {
            return Err(Errno::Invalid);
        }
        let private = attributes == abi::ATTRIBUTE_PRIVATE;
        self.private.set(start, end, private);
        let entry = Entry::of("memory-attributes")
            .number("gpa", start)
            .number("size", length)
            .flag("private", private);
        self.journal.write(entry)?;
        Ok(0)
    }

    fn guest_memfd(&self, argument: u64) -> Answered {
        let request = self.memory.read(argument, guest_memfd::SIZE)?;
        let length = u64_at(&request, guest_memfd::LENGTH);
        if length == 0
            || !length.is_multiple_of(PAGE_SIZE)
            || u64_at(&request, guest_memfd::FLAGS) != 0
        {
            return Err(Errno::Invalid);
        }
        memory_file(length).map(IntoRawFd::into_raw_fd).map_err(|_| Errno::Io)
    }

    /// Capabilities that only confidential guests need, and that change nothing for one that never runs.
    fn enables_ours(&self, argument: u64) -> Result<bool, Errno> {
        let request = self.memory.read(argument, enable_cap::SIZE)?;
        let capability = u64::from(u32_at(&request, enable_cap::CAP));
        Ok([abi::CAP_EXIT_HYPERCALL, abi::CAP_X86_APIC_BUS_CYCLES_NS].contains(&capability))
    }
}

/// What `KVM_CHECK_EXTENSION` answers on such a host, where it differs.
fn extension(fd: RawFd, capability: u64) -> Option<c_int> {
    let kernels = || kernel_ioctl(fd, abi::CHECK_EXTENSION, capability).max(0);
    match capability {
        abi::CAP_VM_TYPES => Some(kernels() | 1 << abi::SNP_VM | 1 << abi::TDX_VM),
        abi::CAP_MEMORY_ATTRIBUTES => Some(1 << abi::ATTRIBUTE_PRIVATE.trailing_zeros()),
        abi::CAP_EXIT_HYPERCALL => Some(abi::MAP_GPA_RANGE),
        abi::CAP_USER_MEMORY2 | abi::CAP_GUEST_MEMFD | abi::CAP_X86_APIC_BUS_CYCLES_NS => Some(1),
        _ => None,
    }
}

/// The end of a range of whole pages.
pub(crate) fn range_end(start: u64, length: u64) -> Result<u64, Errno> {
    let end = start.checked_add(length).ok_or(Errno::Invalid)?;
    let whole = start.is_multiple_of(PAGE_SIZE) && length.is_multiple_of(PAGE_SIZE) && length > 0;
    if whole { Ok(end) } else { Err(Errno::Invalid) }
}

/// The kernel's answer to a call that it answers instead of the one that QEMU made.
fn kernel(answer: c_int) -> Answered {
    if answer < 0 { Err(Errno::Invalid) } else { Ok(answer) }
}

#[cfg(test)]
mod tests {
    use super::super::bench::{Bench, address_of, structure};
    use super::*;
    use crate::record::Call;

    fn attributes(start: u64, length: u64, attributes: u64, flags: u64) -> Vec<u8> {
        structure(
            memory_attributes::SIZE,
            &[
                (memory_attributes::ADDRESS, &start.to_le_bytes()),
                (memory_attributes::LENGTH, &length.to_le_bytes()),
                (memory_attributes::ATTRIBUTES, &attributes.to_le_bytes()),
                (memory_attributes::FLAGS, &flags.to_le_bytes()),
            ],
        )
    }

    #[test]
    fn memory_becomes_private_by_whole_pages() {
        let mut bench = Bench::new();
        for (start, length, bits, flags) in [
            (1, 0x1000, 8, 0),
            (0, 0x1001, 8, 0),
            (0, 0, 8, 0),
            (0xffff_ffff_ffff_f000, 0x2000, 8, 0),
            (0, 0x1000, 1, 0),
            (0, 0x1000, 8, 1),
        ] {
            let mut request = attributes(start, length, bits, flags);
            let answer = bench.vm.memory_attributes(address_of(&mut request));
            assert_eq!(answer, Err(Errno::Invalid), "{start:#x} {length:#x} {bits} {flags}");
        }
        assert_eq!(bench.vm.memory_attributes(16), Err(Errno::Fault));
        let mut request = attributes(0x1000, 0x2000, 8, 0);
        assert_eq!(bench.vm.memory_attributes(address_of(&mut request)), Ok(0));
        assert!(bench.vm.private.contains(0x1000, 0x3000));
        let call = Call::MemoryAttributes { gpa: 0x1000, size: 0x2000, private: true };
        assert_eq!(bench.calls(), [call]);
    }

    #[test]
    fn private_memory_is_a_file_of_the_right_size() {
        let bench = Bench::new();
        let request = |length: u64, flags: u64| {
            let fields: [(usize, &[u8]); 2] = [
                (guest_memfd::LENGTH, &length.to_le_bytes()),
                (guest_memfd::FLAGS, &flags.to_le_bytes()),
            ];
            bench.vm.guest_memfd(address_of(&mut structure(guest_memfd::SIZE, &fields)))
        };
        assert!(request(0x10_0000, 0).is_ok_and(|fd| fd > 2));
        for (length, flags) in [(0, 0), (0x1001, 0), (0x1000, 1)] {
            assert_eq!(request(length, flags), Err(Errno::Invalid));
        }
    }

    #[test]
    fn what_such_a_host_can_do() {
        // No device behind it: what the kernel itself can do counts as nothing.
        let value = |capability| extension(-1, capability);
        assert_eq!(value(abi::CAP_VM_TYPES), Some(0b11_0000));
        assert_eq!(value(abi::CAP_MEMORY_ATTRIBUTES), Some(8));
        assert_eq!(value(abi::CAP_GUEST_MEMFD), Some(1));
        assert_eq!(value(0), None);
        assert!(is_ours(abi::RUN) && is_ours(abi::SEV_ISSUE_CMD));
        const TCGETS: u64 = 0x5401;
        assert!(!is_ours(TCGETS));
    }
}
