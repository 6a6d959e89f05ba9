//! QEMU's memory as the kernel sees it: addresses in arguments may be wrong, and then the call fails.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::Errno;

/// Reads and writes this process's memory by address.
pub(crate) struct Memory(File);

impl Memory {
    pub(crate) fn open() -> std::io::Result<Memory> {
        File::options().read(true).write(true).open("/proc/self/mem").map(Memory)
    }

    pub(crate) fn read(&self, address: u64, length: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; length];
        self.0.read_exact_at(&mut bytes, address).map_err(|_| Errno::Fault)?;
        Ok(bytes)
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.0.write_all_at(bytes, address).map_err(|_| Errno::Fault)
    }
}

/// Fields of a structure that was read whole. The offsets are those of `abi`.
pub(crate) fn u64_at(structure: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(array_at(structure, offset))
}

pub(crate) fn u32_at(structure: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(array_at(structure, offset))
}

pub(crate) fn u16_at(structure: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(array_at(structure, offset))
}

fn array_at<const N: usize>(structure: &[u8], offset: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&structure[offset..offset + N]);
    array
}
