//! The launch digest of an SNP guest that QEMU starts with OVMF's `AmdSev` image and `kernel-hashes=on`.
//!
//! Pages are measured in the order in which QEMU gives them to the firmware (QEMU,
//! `target/i386/sev.c`): the image as `Normal` pages that end at 4 GiB; then what the image's own
//! metadata asks for (edk2, `OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm`), among it the page of hashes
//! of kernel, initrd and command line; last a `Vmsa` page for each processor (KVM, `sev.c`).

mod metadata;

use nacre_evidence::snp::{
    KernelHashes, LaunchDigest, PageType, ProcessorState, RESET_VECTOR, VMSA_GPA,
    kernel_hashes_page,
};

use crate::footer::{Firmware, index};
use crate::{MeasureError, PAGE_SIZE};
use metadata::{Kind, Metadata};

/// Most processors of a guest that is measured.
pub const VCPUS_LIMIT: u32 = 512;

/// `SEV_FEATURES` of a guest that asks for nothing beyond SNP itself: bit 0.
pub const SNP_ACTIVE: u64 = 1;

/// What an SNP guest is launched with, as far as it is measured.
#[derive(Debug, Clone, Copy)]
pub struct SnpInputs<'a> {
    /// OVMF's `AmdSev` image, the whole file.
    pub firmware: &'a [u8],
    /// Of kernel, initrd and command line.
    pub hashes: KernelHashes,
    /// Processors, 1 to [`VCPUS_LIMIT`].
    pub vcpus: u32,
    /// `CPUID` function 1 `EAX` of the processor model.
    pub cpu_signature: u32,
    /// `SEV_FEATURES`, commonly [`SNP_ACTIVE`].
    pub guest_features: u64,
}

/// The launch digest, `MEASUREMENT` of the guest's reports.
///
/// # Errors
/// If the firmware is no OVMF image for such guests, or the number of processors is out of range.
pub fn measure(inputs: &SnpInputs<'_>) -> Result<[u8; 48], MeasureError> {
    let SnpInputs { firmware, hashes, vcpus, cpu_signature, guest_features } = *inputs;
    check_vcpus(vcpus)?;
    let launch = Launch::new(firmware, &hashes)?;
    let digest = launch.digests(cpu_signature, guest_features).nth(index(vcpus) - 1);
    digest.ok_or(MeasureError::Vcpus(vcpus))
}

/// A launch up to its processors: firmware and metadata are hashed once for all numbers of them.
#[derive(Clone)]
pub struct Launch {
    digest: LaunchDigest,
    /// Where processors other than the first begin.
    entry: u32,
}

impl Launch {
    /// Measures firmware, metadata and hashes.
    ///
    /// # Errors
    /// If the firmware is no OVMF image for SNP guests whose kernel is measured.
    pub fn new(firmware: &[u8], hashes: &KernelHashes) -> Result<Launch, MeasureError> {
        let firmware = Firmware::parse(firmware)?;
        let metadata = Metadata::parse(&firmware)?;
        let mut digest = LaunchDigest::new();
        digest.update_range(firmware.address(), firmware.image());
        // Measured by place alone.
        let nothing = [0; PAGE_SIZE];
        for section in &metadata.sections {
            let page_type = match section.kind {
                Kind::Memory => PageType::Zero,
                Kind::Secrets => PageType::Secrets,
                Kind::Cpuid => PageType::Cpuid,
                Kind::KernelHashes => {
                    let page =
                        kernel_hashes_page(hashes, metadata.hashes_offset).ok_or_else(|| {
                            MeasureError::malformed(metadata::WHAT, "no room for kernel hashes")
                        })?;
                    digest.update(PageType::Normal, section.address, &page);
                    continue;
                }
            };
            for page in (section.address..section.address + section.size).step_by(PAGE_SIZE) {
                digest.update(page_type, page, &nothing);
            }
        }
        Ok(Launch { digest, entry: metadata.entry })
    }

    /// The digest with this number of processors.
    ///
    /// # Errors
    /// If the number is not 1 to [`VCPUS_LIMIT`].
    pub fn measurement(
        &self,
        vcpus: u32,
        cpu_signature: u32,
        guest_features: u64,
    ) -> Result<[u8; 48], MeasureError> {
        check_vcpus(vcpus)?;
        let digest = self.digests(cpu_signature, guest_features).nth(index(vcpus) - 1);
        digest.ok_or(MeasureError::Vcpus(vcpus))
    }

    /// The digests with 1 to `most` processors, in that order.
    ///
    /// # Errors
    /// If `most` is not 1 to [`VCPUS_LIMIT`].
    pub fn measurements(
        &self,
        most: u32,
        cpu_signature: u32,
        guest_features: u64,
    ) -> Result<Vec<[u8; 48]>, MeasureError> {
        check_vcpus(most)?;
        Ok(self.digests(cpu_signature, guest_features).take(index(most)).collect())
    }

    /// Digests with one processor, two, and so on, each from the one before.
    fn digests(&self, signature: u32, features: u64) -> impl Iterator<Item = [u8; 48]> + use<> {
        let state = |entry| ProcessorState { entry, signature, features }.page();
        let (first, other) = (state(RESET_VECTOR), state(self.entry));
        let mut digest = self.digest.clone();
        std::iter::once(first).chain(std::iter::repeat(other)).map(move |page| {
            digest.update(PageType::Vmsa, VMSA_GPA, &page);
            digest.clone().finish()
        })
    }
}

fn check_vcpus(vcpus: u32) -> Result<(), MeasureError> {
    if (1..=VCPUS_LIMIT).contains(&vcpus) { Ok(()) } else { Err(MeasureError::Vcpus(vcpus)) }
}
