//! Any bytes as a sealed secret and as its payload: read or refused, never a panic, and what was read
//! is the same when it is written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_protocol::sealed::{Secret, Signed, is_sealed, text_of};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(secret) = Secret::parse(bytes) {
        assert_eq!(Secret::parse(&secret.payload()), Ok(secret));
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(signed) = Signed::parse(text) {
        assert!(is_sealed(bytes));
        let again = text_of(signed.jws());
        assert_eq!(Signed::parse(&again), Ok(signed));
    }
});
