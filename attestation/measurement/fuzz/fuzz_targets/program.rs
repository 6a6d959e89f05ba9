//! Any bytes as an EFI program: hashed or refused, never a panic; its checksum never counts.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_measurement::pe::authenticode;
use sha2::Sha384;

fuzz_target!(|bytes: &[u8]| {
    let Ok(digest) = authenticode::<Sha384>(bytes) else { return };
    let header = u32::from_le_bytes(bytes[0x3c..0x40].try_into().expect("four bytes"));
    let checksum = usize::try_from(header).expect("64 bits") + 24 + 64;
    let mut changed = bytes.to_vec();
    changed[checksum] ^= 1;
    assert_eq!(authenticode::<Sha384>(&changed), Ok(digest));
});
