//! Any bytes as messages and names of the key-broker protocol: read or refused, never a panic. What was
//! read can be written and read again, and has one canonical text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_protocol::jcs::canonical;
use nacre_protocol::kbs::{
    self, Attestation, Challenge, ErrorInformation, Jwk, Request, ResourceUri, TokenResponse,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

fn again<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> Option<T> {
    let read: T = serde_json::from_slice(bytes).ok()?;
    let text = serde_json::to_vec(&read).expect("what was read can be written");
    assert_eq!(serde_json::from_slice::<T>(&text).expect("what was written can be read"), read);
    Some(read)
}

fuzz_target!(|bytes: &[u8]| {
    if let Some(request) = again::<Request>(bytes) {
        let _ = kbs::version_is_supported(&request.version);
    }
    if let Some(challenge) = again::<Challenge>(bytes) {
        let _ = challenge.hash_algorithm();
    }
    if let Some(attestation) = again::<Attestation>(bytes) {
        let bound = &attestation.runtime_data;
        let evidence = &attestation.tee_evidence.additional_evidence;
        let data = kbs::report_data(&bound.nonce, &bound.tee_pubkey, evidence);
        assert_eq!(data[48..], [0; 16]);
    }
    again::<TokenResponse>(bytes);
    again::<Jwk>(bytes);
    if let Some(information) = again::<ErrorInformation>(bytes) {
        let _ = information.kind();
    }
    if let Ok(value) = Value::deserialize(&mut serde_json::Deserializer::from_slice(bytes)) {
        let text =
            canonical(&value).expect("no deeper than the parser reads, and no number out of range");
        let read: Value = serde_json::from_str(&text).expect("canonical JSON is JSON");
        assert_eq!(canonical(&read).as_deref(), Ok(text.as_str()), "canonical is final");
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = kbs::version_is_supported(text);
        if let Ok(uri) = text.parse::<ResourceUri>() {
            let shown = uri.to_string();
            assert_eq!(shown.parse(), Ok(uri.clone()));
            assert!(uri.url_path().starts_with(kbs::PREFIX) && !uri.url_path().contains("/../"));
        }
    }
});
