//! Any JSON as evidence of the key-broker protocol: read or refused, never a panic, and what was read is
//! the same after it was written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_evidence::Evidence;
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| {
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return };
    for tee in ["snp", "tdx"] {
        let Ok(evidence) = Evidence::from_wire(tee, &value) else { continue };
        assert_eq!(evidence.tee().name(), tee);
        assert_eq!(Evidence::from_wire(tee, &evidence.to_wire()), Ok(evidence));
    }
});
