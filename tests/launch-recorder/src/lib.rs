//! A recorder of confidential launches: lets the real QEMU run a whole SEV-SNP or TDX launch on a host whose
//! `/dev/kvm` does plain VMs only, and reads back what it asked for.
//!
//! Two halves. The library that is preloaded into QEMU ([`PRELOAD`], `src/preload/`) answers KVM's
//! calls for confidential guests and writes each down. This crate reads the [`record`], checks that it is one
//! complete launch in the order the hardware wants, and computes from the recorded pages and registers what the
//! hardware would have measured: by its own rules ([`vmsa`], [`snp`], [`tdx`]), so that a prediction that
//! agrees was not merely computed by the same code twice.
//!
//! It is for tests, runs no guest and proves nothing about a host. It does not show what processors, firmware
//! and the TDX module check by themselves, such as CPUID values, signatures of an ID block or attributes.

pub mod record;
pub mod snp;
pub mod tdx;
pub mod vmsa;

#[path = "preload/abi.rs"]
pub mod abi;

// Looked at and tested here, never linked into a program: it would stand between that program and its kernel.
#[cfg(any(test, clippy))]
#[path = "preload/lib.rs"]
mod preload;

/// The library for QEMU: a path for `LD_PRELOAD`.
pub const PRELOAD: &str = env!("NACRE_LAUNCH_RECORDER");

/// Environment variable that tells the library where to write the record, a file that does not exist yet.
pub const RECORD_VARIABLE: &str = "NACRE_LAUNCH_RECORD";
