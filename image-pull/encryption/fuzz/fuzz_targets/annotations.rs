//! Any JSON object of strings as the annotations of a layer: read or refused, never a panic; and no key opens
//! what nobody encrypted to it.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use nacre_image_encryption::{EncryptedLayer, KeyRing, RECIPIENT_LIMIT};

fuzz_target!(|bytes: &[u8]| {
    let Ok(annotations) = serde_json::from_slice::<BTreeMap<String, String>>(bytes) else { return };
    let Ok(layer) = EncryptedLayer::parse(&annotations) else { return };
    let recipients = layer.recipients();
    assert!((1..=RECIPIENT_LIMIT).contains(&recipients.len()));
    assert!(recipients.iter().all(|name| name.chars().all(|c| !c.is_control())));
    let mut keys = KeyRing::new();
    for id in layer.key_ids() {
        keys.add_provider_key(&id, &[1; 32]).expect("what was read is a URI");
    }
    if let Ok(mut cipher) = layer.unwrap(&keys) {
        // A counter-mode packet yields some key with some luck, but not the HMAC's.
        cipher.decrypt(&mut [0; 64]);
        assert!(cipher.finish().is_err());
    }
});
