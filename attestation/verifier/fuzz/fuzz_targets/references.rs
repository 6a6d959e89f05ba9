//! Any bytes as reference values: read or refused, never a panic, and what was read is the same after it
//! was written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_verifier::{DOCUMENT_LIMIT, ReferenceValues};

fuzz_target!(|bytes: &[u8]| {
    let Ok(values) = ReferenceValues::parse(bytes) else { return };
    let json = serde_json::to_vec(&values).expect("as parsed");
    if json.len() <= DOCUMENT_LIMIT {
        assert_eq!(ReferenceValues::parse(&json), Ok(values));
    }
});
