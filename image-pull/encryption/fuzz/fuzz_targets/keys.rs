//! Any bytes as a file with a key.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_image_encryption::{KeyRing, PublicKey};

fuzz_target!(|bytes: &[u8]| {
    let _ = PublicKey::parse(bytes);
    let _ = KeyRing::new().add_private_key(bytes);
});
