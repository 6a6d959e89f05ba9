//! A VM without a kernel behind it, for tests of what is asked of it.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use super::boundary::{RunPage, memory_file};
use super::journal::Journal;
use super::kvm::{PAGE_SIZE, Vcpu, Vm};
use super::memory::Memory;
use super::private::PrivateMemory;
use crate::record::{Call, Record};

/// The VM, and where its record is.
pub(crate) struct Bench {
    pub(crate) vm: Vm,
    record: tempfile::TempDir,
}

impl Bench {
    /// It has one processor: [`Bench::VCPU`].
    pub(crate) fn new() -> Bench {
        let record = tempfile::tempdir().unwrap();
        let journal = Journal::create(record.path().join("record").into()).unwrap();
        let page = memory_file(PAGE_SIZE).unwrap();
        let run = Arc::new(RunPage::map(page.as_raw_fd()).unwrap());
        let (registers, special_registers) = (Vec::new(), Vec::new());
        let vcpu = Vcpu { fd: Self::VCPU, registers, special_registers, run };
        let vm = Vm {
            journal,
            memory: Memory::open().unwrap(),
            private: PrivateMemory::default(),
            vcpus: vec![vcpu],
            kvm: -1,
            ran: false,
        };
        Bench { vm, record }
    }

    pub(crate) const VCPU: RawFd = 1000;

    /// Calls written down so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        Record::read(&self.record.path().join("record")).unwrap().calls
    }
}

/// A structure with these fields: offset and bytes.
pub(crate) fn structure(size: usize, fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut structure = vec![0; size];
    for (offset, bytes) in fields {
        structure[*offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    structure
}

/// The address of bytes that the code under test reads, and writes, as the kernel would.
pub(crate) fn address_of(bytes: &mut [u8]) -> u64 {
    bytes.as_mut_ptr() as u64
}
