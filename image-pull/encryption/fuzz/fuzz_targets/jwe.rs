//! Any bytes as a wrapped key of each form, tried with a private key and with a symmetric one.
#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use nacre_image_encryption::{EncryptedLayer, KeyRing};

/// RFC 7517, appendix A.2.
const KEY: &str = r#"{"kty":"EC","crv":"P-256","d":"870MB6gfuTJ4HtUnUvYMyJpr5eUZNP4Bk43bVdj3eAE"}"#;

static KEYS: LazyLock<KeyRing> = LazyLock::new(|| {
    let mut keys = KeyRing::new();
    keys.add_private_key(KEY.as_bytes()).expect("it is a key");
    keys.add_provider_key("kbs:///a/b/c", &[1; 32]).expect("it is a URI");
    keys
});

fuzz_target!(|bytes: &[u8]| {
    let options =
        format!(r#"{{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"{}"}}"#, STANDARD.encode([0; 32]));
    for scheme in ["jwe", "provider.attestation-agent"] {
        let annotations = BTreeMap::from([
            (format!("org.opencontainers.image.enc.keys.{scheme}"), STANDARD.encode(bytes)),
            ("org.opencontainers.image.enc.pubopts".to_owned(), STANDARD.encode(&options)),
        ]);
        if let Ok(layer) = EncryptedLayer::parse(&annotations) {
            let _ = layer.unwrap(&KEYS).map(|cipher| assert!(cipher.finish().is_err()));
        }
    }
});
