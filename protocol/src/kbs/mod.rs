//! The key-broker protocol of Confidential Containers: the shapes of its messages, the paths they are
//! sent to, and how evidence is bound to a conversation.
//!
//! A guest asks for a challenge ([`Request`], [`Challenge`]), answers it with evidence
//! ([`Attestation`], [`TokenResponse`]) and then fetches resources ([`ResourceUri`]), each encrypted to
//! the key that its evidence vouches for. Both sides distrust what they read: the limits here are
//! meant to be applied to bytes before they are parsed.

mod error;
mod jwk;
mod uri;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha384};

use crate::jcs;

pub use error::{ERROR_PREFIX, ErrorInformation, ErrorKind};
pub use jwk::{Jwk, JwkError};
pub use uri::{ResourceUri, SEGMENT_LIMIT, URI_LIMIT, UriError};

/// What every path of the protocol begins with.
pub const PREFIX: &str = "/kbs/v0";
/// Where a [`Request`] is posted.
pub const AUTH_PATH: &str = "/kbs/v0/auth";
/// Where an [`Attestation`] is posted.
pub const ATTEST_PATH: &str = "/kbs/v0/attest";
/// Name of the cookie that names a session.
pub const SESSION_COOKIE: &str = "kbs-session-id";
/// The version that Nacre's client speaks.
pub const VERSION: &str = "0.4.0";
/// The name that [`InitData::format`] has for an initdata document.
pub const INIT_DATA_TOML: &str = "toml";

/// Largest [`Request`], in bytes.
pub const REQUEST_LIMIT: usize = 16 * 1024;
/// Largest [`Challenge`], [`TokenResponse`] or [`ErrorInformation`], in bytes.
pub const ANSWER_LIMIT: usize = 128 * 1024;
/// Largest [`Attestation`], in bytes: an initdata document with its policy, an event log and
/// certificates fit.
pub const ATTESTATION_LIMIT: usize = 2 * 1024 * 1024;
/// Largest resource, in bytes, before it is encrypted.
pub const RESOURCE_LIMIT: usize = 1024 * 1024;

/// Whether a client of this protocol version can be answered: 0.1 to 0.4. Within them, what this
/// program reads and writes means the same.
#[must_use]
pub fn version_is_supported(version: &str) -> bool {
    let number = |part: &str| {
        let plain = !part.is_empty() && part.len() <= 9 && part.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| part.parse::<u32>().ok()).flatten()
    };
    let parts: Vec<Option<u32>> = version.splitn(4, '.').map(number).collect();
    matches!(parts[..], [Some(0), Some(1..=4), Some(_)])
}

/// What a guest asks first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Request {
    /// Version of the protocol, such as `0.4.0`.
    pub version: String,
    /// Kind of hardware: `snp`, `tdx`.
    pub tee: String,
    /// An object or an empty string; Nacre's broker reads nothing from it.
    #[serde(default)]
    pub extra_params: Value,
}

impl Request {
    /// What Nacre's client says.
    #[must_use]
    pub fn new(tee: &str) -> Request {
        let extra_params = json!({"supported-hash-algorithms": ["sha256", "sha384", "sha512"]});
        Request { version: VERSION.to_owned(), tee: tee.to_owned(), extra_params }
    }
}

/// What the broker answers to a [`Request`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Challenge {
    /// Base64 of 32 random bytes; valid once.
    pub nonce: String,
    /// An object or an empty string.
    #[serde(default)]
    pub extra_params: Value,
}

impl Challenge {
    /// The hash algorithm that the broker chose for the report data, if it names one. Without a name
    /// it is SHA-384.
    #[must_use]
    pub fn hash_algorithm(&self) -> Option<&str> {
        self.extra_params.get("selected-hash-algorithm")?.as_str()
    }
}

/// A guest's answer to a [`Challenge`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Attestation {
    /// The initdata document that the launch was bound to.
    #[serde(default)]
    pub init_data: Option<InitData>,
    /// What the evidence is bound to.
    pub runtime_data: RuntimeData,
    /// The evidence.
    pub tee_evidence: CompositeEvidence,
}

/// An initdata document on its way to the broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitData {
    /// `toml`.
    pub format: String,
    /// The document, byte for byte.
    pub body: String,
}

/// What the evidence of an [`Attestation`] is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RuntimeData {
    /// The nonce as the challenge had it.
    pub nonce: String,
    /// The key that answers are to be encrypted to.
    pub tee_pubkey: Jwk,
}

/// Evidence of one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompositeEvidence {
    /// Of the processor; its form depends on the kind of hardware.
    pub primary_evidence: Value,
    /// JSON text, a map from kind of hardware to evidence; empty if there is none.
    #[serde(default)]
    pub additional_evidence: String,
}

/// The broker's answer to an [`Attestation`] that it believes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenResponse {
    /// A signed JSON web token.
    pub token: String,
}

/// What evidence of a [`RuntimeData`] carries as report data: SHA-384 over the canonical JSON
/// (RFC 8785) of nonce, key and additional evidence, then 16 zero bytes.
#[must_use]
pub fn report_data(nonce: &str, tee_pubkey: &Jwk, additional_evidence: &str) -> [u8; 64] {
    let bound = json!({
        "additional-evidence": additional_evidence,
        "nonce": nonce,
        "tee-pubkey": tee_pubkey,
    });
    let text = jcs::canonical(&bound).expect("strings, two levels deep");
    let mut data = [0; 64];
    data[..48].copy_from_slice(&Sha384::digest(text));
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Jwk {
        Jwk::Ec {
            crv: "P-256".into(),
            alg: "ECDH-ES+A256KW".into(),
            x: "gI0GAILBdu7T53akrFmMyGcsF3n5dO7MmwNBHKW5SV0".into(),
            y: "SLW_xSffzlPWrHEVI30DHM_4egVwt3NQqeUD7nMFpps".into(),
        }
    }

    #[test]
    fn versions() {
        for good in ["0.1.0", "0.1.1", "0.2.0", "0.3.7", "0.4.0", "0.4.12"] {
            assert!(version_is_supported(good), "{good}");
        }
        for bad in [
            "", "0", "0.4", "0.0.1", "0.5.0", "1.0.0", "0.4.0-rc", "0.4.0.1", "0.+4.0", " 0.4.0",
            "0.4.",
        ] {
            assert!(!version_is_supported(bad), "{bad}");
        }
    }

    #[test]
    fn messages_have_the_names_of_the_protocol() {
        let attestation = Attestation {
            init_data: Some(InitData { format: INIT_DATA_TOML.into(), body: "x".into() }),
            runtime_data: RuntimeData { nonce: "bm9uY2U=".into(), tee_pubkey: key() },
            tee_evidence: CompositeEvidence {
                primary_evidence: json!({"a": [1]}),
                additional_evidence: String::new(),
            },
        };
        let value = serde_json::to_value(&attestation).unwrap();
        assert_eq!(
            value,
            json!({
                "init-data": {"format": "toml", "body": "x"},
                "runtime-data": {"nonce": "bm9uY2U=", "tee-pubkey": {
                    "kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW",
                    "x": "gI0GAILBdu7T53akrFmMyGcsF3n5dO7MmwNBHKW5SV0",
                    "y": "SLW_xSffzlPWrHEVI30DHM_4egVwt3NQqeUD7nMFpps"}},
                "tee-evidence": {"primary_evidence": {"a": [1]}, "additional_evidence": ""},
            })
        );
        assert_eq!(serde_json::from_value::<Attestation>(value).unwrap(), attestation);
        let request = serde_json::to_value(Request::new("snp")).unwrap();
        assert_eq!(request["version"], "0.4.0");
        assert!(request["extra-params"]["supported-hash-algorithms"].is_array());
        // What older clients and servers leave out or write otherwise.
        serde_json::from_str::<Request>(r#"{"version":"0.2.0","tee":"snp","extra-params":""}"#)
            .unwrap();
        let plain: Challenge = serde_json::from_str(
            r#"{"nonce":"bm8=","extra-params":{"selected-hash-algorithm":"sha384"}}"#,
        )
        .unwrap();
        assert_eq!(plain.hash_algorithm(), Some("sha384"));
        let plain: Challenge =
            serde_json::from_str(r#"{"nonce":"bm8=","extra-params":""}"#).unwrap();
        assert_eq!(plain.hash_algorithm(), None);
    }

    /// The canonical text written out by hand.
    #[test]
    fn report_data_is_the_hash_of_the_canonical_form() {
        let text = concat!(
            r#"{"additional-evidence":"","nonce":"bm9uY2U=","tee-pubkey":{"alg":"ECDH-ES+A256KW","crv":"P-256","#,
            r#""kty":"EC","x":"gI0GAILBdu7T53akrFmMyGcsF3n5dO7MmwNBHKW5SV0","#,
            r#""y":"SLW_xSffzlPWrHEVI30DHM_4egVwt3NQqeUD7nMFpps"}}"#
        );
        let data = report_data("bm9uY2U=", &key(), "");
        assert_eq!(&data[..48], Sha384::digest(text).as_slice());
        assert_eq!(data[48..], [0; 16]);
        assert_ne!(data, report_data("bm9uY2U", &key(), ""));
        assert_ne!(data, report_data("bm9uY2U=", &key(), "{}"));
    }
}
