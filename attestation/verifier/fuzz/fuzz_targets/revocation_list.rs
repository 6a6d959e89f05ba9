//! Any bytes as a revocation list: none is a root's, so all are refused, and never with a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_verifier::{Trust, Verifier};

fuzz_target!(|bytes: &[u8]| {
    let trust = Trust { snp_crls: vec![bytes.to_vec()], ..Trust::default() };
    assert!(Verifier::new(&trust).is_err());
});
