//! Any bytes as a signed message, as a key in PEM, or as what is signed: read or refused, never a panic;
//! what was signed is read, and nothing else is believed.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use nacre_jose::jws::{self, Header};
use nacre_jose::{Ed25519Key, Ed25519Public, Es256Key, Jwk};

static KEYS: LazyLock<(Es256Key, Jwk, Ed25519Key)> = LazyLock::new(|| {
    let key = Es256Key::generate().expect("random bytes");
    let public = key.public();
    (key, public, Ed25519Key::generate().expect("random bytes"))
});

fuzz_target!(|bytes: &[u8]| {
    let (es256, public, ed25519) = &*KEYS;
    if let Ok(text) = std::str::from_utf8(bytes) {
        assert!(jws::verify_es256(text, public).is_err());
        assert!(jws::verify_eddsa(text, &ed25519.public()).is_err());
        if let Ok(parsed) = jws::parse(text) {
            let _ = (parsed.key_id(), parsed.danger_payload());
        }
        let _ =
            (Es256Key::from_pem(text), Ed25519Key::from_pem(text), Ed25519Public::from_pem(text));
        let headers = serde_json::from_str::<Header>(text).unwrap_or_default();
        if let Ok(signed) = jws::sign_es256(headers.clone(), b"payload", es256)
            && !headers.contains_key("crit")
            && !headers.contains_key("b64")
        {
            assert_eq!(jws::verify_es256(&signed, public).as_deref(), Ok(b"payload".as_slice()));
        }
    }
    if let Ok(signed) = jws::sign_eddsa(Header::new(), bytes, ed25519) {
        assert_eq!(jws::verify_eddsa(&signed, &ed25519.public()).as_deref(), Ok(bytes));
        assert!(jws::verify_es256(&signed, public).is_err());
    }
});
