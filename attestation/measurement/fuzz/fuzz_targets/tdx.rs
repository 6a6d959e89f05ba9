//! Any bytes as TDVF: measured or refused, never a panic; and measured the same again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_measurement::tdx::mr_td;

fuzz_target!(|bytes: &[u8]| {
    // Whole pages, and what matters is at their end.
    let mut firmware = vec![0; 2 * 4096];
    let count = bytes.len().min(firmware.len());
    let at = firmware.len() - count;
    firmware[at..].copy_from_slice(&bytes[bytes.len() - count..]);
    let digest = mr_td(&firmware);
    assert_eq!(mr_td(&firmware), digest);
});
