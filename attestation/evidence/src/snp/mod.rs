//! AMD SEV-SNP: attestation report, certificate table, wire form, launch digest.
//!
//! Sources: SEV Secure Nested Paging Firmware ABI (56860), "the ABI" below; Guest-Hypervisor
//! Communication Block (56421), "GHCB".

mod certificates;
pub mod json;
mod launch;
mod report;
mod values;
mod vmsa;

pub use certificates::{
    CERTIFICATE_COUNT_LIMIT, CERTIFICATE_LIMIT, CertType, Certificate, CertificateTable, Guid,
};
pub use launch::{KernelHashes, LaunchDigest, PageType, VMSA_GPA, kernel_hashes_page};
pub use report::{REPORT_SIZE, Report, ReportFields, ReportVersion, SIGNED_SIZE, Signature};
pub use values::{
    Cpuid, FirmwareVersion, GuestPolicy, KeyInfo, Mitigations, PlatformInfo, Product, SigningKey,
    Tcb,
};
pub use vmsa::{ProcessorState, RESET_VECTOR};
