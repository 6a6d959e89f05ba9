//! Any bytes as a TDX quote: read or refused, never a panic, and what was read stands in its own bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_evidence::tdx::{QUOTE_LIMIT, Quote};

fuzz_target!(|bytes: &[u8]| {
    let Ok(quote) = Quote::parse(bytes) else { return };
    assert!(bytes.len() <= QUOTE_LIMIT && bytes.starts_with(quote.as_bytes()));
    assert!(bytes[quote.as_bytes().len()..].iter().all(|byte| *byte == 0));
    assert_eq!(Quote::parse(quote.as_bytes()), Ok(quote));
});
