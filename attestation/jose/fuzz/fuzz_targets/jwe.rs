//! Any bytes as an encrypted message or as a key to encrypt to: read or refused, never a panic, and
//! nothing is ever read of a message that was not encrypted to this key.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use nacre_jose::{Jwe, Jwk, TeeKey, jwe};

static KEY: LazyLock<TeeKey> = LazyLock::new(TeeKey::generate);

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = serde_json::from_slice::<Jwe>(bytes) {
        assert!(jwe::decrypt(&message, &KEY).is_err());
    }
    if let Ok(key) = serde_json::from_slice::<Jwk>(bytes) {
        let _ = jwe::encrypt(b"secret", &key);
    }
    // A good message whose parts are exchanged for these bytes.
    if let Ok(text) = std::str::from_utf8(bytes) {
        let good = jwe::encrypt(b"secret", &KEY.public()).expect("a good key");
        for part in 0..6 {
            let mut message = good.clone();
            let place = match part {
                0 => &mut message.protected,
                1 => &mut message.encrypted_key,
                2 => &mut message.iv,
                3 => &mut message.ciphertext,
                4 => &mut message.tag,
                _ => message.aad.insert(String::new()),
            };
            if part < 5 && place == text {
                continue;
            }
            text.clone_into(place);
            assert!(jwe::decrypt(&message, &KEY).is_err());
        }
    }
});
