//! What is launched, and its measurement.
//!
//! The digest is SNP firmware's (`nacre_evidence::snp::LaunchDigest`) over these pages, in this order:
//!
//! 1. the firmware (qboot.rom) as `Normal` pages that end at 4 GiB, where QEMU maps it;
//! 2. one `Normal` page at 0x80c000 with QEMU's table of hashes of kernel, initrd and command line at
//!    its beginning, as `kernel-hashes=on` puts one into guests of an OVMF that asks for it;
//! 3. for each processor a `Vmsa` page at the firmware's address for those, with the state after reset.
//!
//! A hardware launch of the same kernel and initrd has another firmware and so another measurement.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use nacre_evidence::snp::{
    KernelHashes, LaunchDigest, PageType, ProcessorState, RESET_VECTOR, VMSA_GPA,
    kernel_hashes_page,
};
use sha2::{Digest as _, Sha256};

use crate::CPUID;

const PAGE_SIZE: usize = 4096;
const FOUR_GIB: u64 = 1 << 32;
/// Where the page of hashes is taken to be.
const HASHES_GPA: u64 = 0x80_c000;

/// Largest firmware, in bytes.
const FIRMWARE_LIMIT: usize = 16 * 1024 * 1024;
const VCPUS_MOST: u32 = 512;

/// Read from files in pieces of this size, in bytes.
const PIECE: usize = 256 * 1024;

/// Why a launch cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A file cannot be read.
    #[error("failed to read {path} to measure it: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// The firmware cannot be mapped.
    #[error(
        "a firmware of {0} bytes cannot be measured: it has whole pages of 4096 bytes, 16 MiB at most"
    )]
    Firmware(usize),
    /// No processors, or too many.
    #[error("a launch with {0} processors cannot be measured; give 1 to {VCPUS_MOST}")]
    Vcpus(u32),
}

/// What a VM is launched with, as far as it is measured; and whether its host may debug it.
#[derive(Debug, Clone)]
pub struct Launch {
    firmware: Vec<u8>,
    hashes: KernelHashes,
    vcpus: u32,
    debug: bool,
}

impl Launch {
    /// A launch of these very bytes. `command_line` is without its final zero byte.
    ///
    /// # Errors
    /// If the firmware does not consist of pages, or the number of processors is out of range.
    pub fn new(
        firmware: &[u8],
        kernel: &[u8],
        initrd: &[u8],
        command_line: &str,
        vcpus: u32,
    ) -> Result<Launch, LaunchError> {
        Launch::of_hashes(firmware.to_vec(), KernelHashes::of(kernel, initrd, command_line), vcpus)
    }

    /// A launch of these files.
    ///
    /// # Errors
    /// As [`Launch::new`], or if a file cannot be read.
    pub fn of_files(
        firmware: &Path,
        kernel: &Path,
        initrd: &Path,
        command_line: &str,
        vcpus: u32,
    ) -> Result<Launch, LaunchError> {
        let mut bytes = Vec::new();
        File::open(firmware)
            .and_then(|file| file.take(FIRMWARE_LIMIT as u64 + 1).read_to_end(&mut bytes))
            .map_err(|source| LaunchError::File { path: firmware.to_owned(), source })?;
        let mut hashes = KernelHashes::of(&[], &[], command_line);
        hashes.kernel = hash(kernel)?;
        hashes.initrd = hash(initrd)?;
        Launch::of_hashes(bytes, hashes, vcpus)
    }

    fn of_hashes(
        firmware: Vec<u8>,
        hashes: KernelHashes,
        vcpus: u32,
    ) -> Result<Launch, LaunchError> {
        let size = firmware.len();
        if size == 0 || size > FIRMWARE_LIMIT || !size.is_multiple_of(PAGE_SIZE) {
            return Err(LaunchError::Firmware(size));
        }
        if !(1..=VCPUS_MOST).contains(&vcpus) {
            return Err(LaunchError::Vcpus(vcpus));
        }
        Ok(Launch { firmware, hashes, vcpus, debug: false })
    }

    /// The same with another number of processors.
    ///
    /// # Errors
    /// If the number is out of range.
    pub fn with_vcpus(&self, vcpus: u32) -> Result<Launch, LaunchError> {
        Launch::of_hashes(self.firmware.clone(), self.hashes, vcpus)
            .map(|launch| Launch { debug: self.debug, ..launch })
    }

    /// The same under a policy that lets the host debug the guest, which verifiers refuse. The policy is
    /// not part of the measurement; reports tell it.
    #[must_use]
    pub fn danger_debug(self) -> Launch {
        Launch { debug: true, ..self }
    }

    pub(crate) const fn is_debug(&self) -> bool {
        self.debug
    }
}

/// The measurement that reports about this launch have.
#[must_use]
pub fn measure(launch: &Launch) -> [u8; 48] {
    let mut digest = LaunchDigest::new();
    digest.update_range(FOUR_GIB - launch.firmware.len() as u64, &launch.firmware);
    let hashes = kernel_hashes_page(&launch.hashes, 0).expect("the table is smaller than a page");
    digest.update(PageType::Normal, HASHES_GPA, &hashes);
    const SNP_ACTIVE: u64 = 1;
    let (entry, signature) = (RESET_VECTOR, signature());
    let state = ProcessorState { entry, signature, features: SNP_ACTIVE }.page();
    for _ in 0..launch.vcpus {
        digest.update(PageType::Vmsa, VMSA_GPA, &state);
    }
    digest.finish()
}

fn hash(path: &Path) -> Result<[u8; 32], LaunchError> {
    let hash = || {
        let mut file = File::open(path)?;
        let mut piece = vec![0; PIECE];
        let mut hash = Sha256::new();
        loop {
            match file.read(&mut piece)? {
                0 => return Ok(hash.finalize().into()),
                count => hash.update(&piece[..count]),
            }
        }
    };
    hash().map_err(|source| LaunchError::File { path: path.to_owned(), source })
}

/// `CPUID` function 1 `EAX` of the emulated processor.
const fn signature() -> u32 {
    const BASE_FAMILY: u32 = 0xf;
    let family = CPUID.family as u32 - BASE_FAMILY;
    let (model, stepping) = (CPUID.model as u32, CPUID.stepping as u32);
    family << 20 | (model >> 4) << 16 | BASE_FAMILY << 8 | (model & 0xf) << 4 | stepping
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(kernel: &[u8], initrd: &[u8], line: &str, vcpus: u32) -> Launch {
        Launch::new(&[1; 2 * PAGE_SIZE], kernel, initrd, line, vcpus).unwrap()
    }

    #[test]
    fn every_part_of_a_launch_changes_its_measurement() {
        let measured = measure(&launch(b"kernel", b"initrd", "quiet", 1));
        for other in [
            launch(b"Kernel", b"initrd", "quiet", 1),
            launch(b"kernel", b"initrd\0", "quiet", 1),
            launch(b"kernel", b"initrd", "quiet ", 1),
            launch(b"kernel", b"initrd", "quiet", 2),
            Launch::new(&[2; 2 * PAGE_SIZE], b"kernel", b"initrd", "quiet", 1).unwrap(),
            Launch::new(&[1; PAGE_SIZE], b"kernel", b"initrd", "quiet", 1).unwrap(),
        ] {
            assert_ne!(measure(&other), measured);
        }
        assert_eq!(measure(&launch(b"kernel", b"initrd", "quiet", 1)), measured);
        let one = launch(b"kernel", b"initrd", "quiet", 1);
        let four = launch(b"kernel", b"initrd", "quiet", 4);
        assert_eq!(measure(&one.with_vcpus(4).unwrap()), measure(&four));
        assert!(one.with_vcpus(0).is_err());
        let debug = one.danger_debug();
        assert_eq!(measure(&debug), measured, "the policy is told, not measured");
    }

    #[test]
    fn files_are_measured_as_their_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let kernel = vec![3; 2 * PIECE + 1];
        let of_files = Launch::of_files(
            &write("firmware", &[1; 2 * PAGE_SIZE]),
            &write("kernel", &kernel),
            &write("initrd", b""),
            "quiet",
            4,
        );
        assert_eq!(measure(&of_files.unwrap()), measure(&launch(&kernel, b"", "quiet", 4)));
        let gone = directory.path().join("gone");
        let error = Launch::of_files(&gone, &gone, &gone, "", 1).unwrap_err().to_string();
        assert!(error.contains("/gone to measure it"), "{error}");
    }

    #[test]
    fn what_cannot_be_launched_cannot_be_measured() {
        let error = |firmware: usize, vcpus| {
            Launch::new(&vec![0; firmware], b"", b"", "", vcpus).unwrap_err().to_string()
        };
        for size in [0, 1, 4097, FIRMWARE_LIMIT + PAGE_SIZE] {
            assert!(error(size, 1).contains(&format!("of {size} bytes")));
        }
        for vcpus in [0, 513] {
            assert!(error(PAGE_SIZE, vcpus).contains(&format!("{vcpus} processors")));
        }
    }

    #[test]
    fn the_emulated_processor_is_a_genoa() {
        assert_eq!(signature(), 0x00a1_0f11);
    }
}
