//! Any bytes as a file of certificate authorities: refused, or certificates with names and hashes.
#![no_main]

use std::time::SystemTime;

use libfuzzer_sys::fuzz_target;
use nacre_guest_image::authorities::Authority;

fuzz_target!(|bytes: &[u8]| {
    let Ok(authorities) = Authority::read(bytes) else { return };
    assert!(!authorities.is_empty());
    for authority in authorities {
        let _ = (authority.subject(), authority.is_expired(SystemTime::UNIX_EPOCH));
    }
});
