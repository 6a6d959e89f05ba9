//! Any bytes as Intel's collateral: read or refused, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_verifier::TdxCollateral;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(collateral) = TdxCollateral::parse(bytes) {
        let _ = (collateral.fmspc(), collateral.expires());
    }
});
