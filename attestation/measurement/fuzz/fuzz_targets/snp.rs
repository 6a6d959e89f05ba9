//! Any bytes as OVMF's image for SNP guests: measured or refused, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_evidence::snp::KernelHashes;
use nacre_measurement::snp::{Launch, SNP_ACTIVE};

fuzz_target!(|bytes: &[u8]| {
    // Whole pages, and what matters is at their end.
    let mut firmware = vec![0; 2 * 4096];
    let count = bytes.len().min(firmware.len());
    let at = firmware.len() - count;
    firmware[at..].copy_from_slice(&bytes[bytes.len() - count..]);
    let Ok(launch) = Launch::new(&firmware, &KernelHashes::of(b"kernel", b"", "")) else { return };
    let all = launch.measurements(3, 0x0080_0f12, SNP_ACTIVE).expect("three processors");
    let third = launch.measurement(3, 0x0080_0f12, SNP_ACTIVE).expect("three processors");
    assert_eq!(all[2], third);
});
