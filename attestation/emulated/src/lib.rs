//! An emulated AMD secure processor: real attestation reports about VMs that run without SEV-SNP.
//!
//! It measures the VM that is launched (firmware, kernel, initrd, command line, processors) as SNP
//! firmware does, and answers the guest's requests with reports of version 3 in the firmware's own
//! format, signed by a key beneath a development root that each installation makes for itself. Guest,
//! verifier and broker treat it as hardware; what differs is the root, which nobody trusts unless it is
//! configured under a name that begins with `danger_`.
//!
//! It runs on the host, beside the VM, and proves nothing: whoever runs the host has the key and could
//! sign any report. It distrusts the guest: requests have a fixed size, answers a fixed cost, and a
//! guest that asks without end is slowed down. It never protects memory, and never claims AMD's root.

#![forbid(unsafe_code)]

mod certificates;
mod launch;
mod processor;
mod root;

use nacre_evidence::snp::{Cpuid, Product, Tcb};

pub use launch::{Launch, LaunchError, measure};
pub use processor::{Processor, ProcessorError};
pub use root::{Root, RootError, RsaBits};

/// Size of a chip's identity, in bytes.
const CHIP_ID_SIZE: usize = 64;

/// The processor that is emulated.
const PRODUCT: Product = Product::Genoa;
const CPUID: Cpuid = Cpuid { family: 0x19, model: 0x11, stepping: 1 };

/// Security versions of its firmware.
const TCB: Tcb = Tcb { fmc: None, bootloader: 10, tee: 0, snp: 23, microcode: 84 };
