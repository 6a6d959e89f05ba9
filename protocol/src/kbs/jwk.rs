//! Public keys on the wire.

use serde::{Deserialize, Serialize};

/// A public key as a JSON web key (RFC 7517) with the members that the protocol knows, and no
/// others: both sides hash it, so both must write the same. Parsing checks shape and size; whether it
/// is a point of its curve is found where it is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "AnyJwk", into = "AnyJwk")]
pub enum Jwk {
    /// On an elliptic curve.
    Ec {
        /// Name of the curve: `P-256`, `P-521`.
        crv: String,
        /// What it is for: `ECDH-ES+A256KW`, `ES256`.
        alg: String,
        /// Coordinate, base64url without padding.
        x: String,
        /// Coordinate, base64url without padding.
        y: String,
    },
    /// For RSA.
    Rsa {
        /// What it is for: `RSA-OAEP-256`.
        alg: String,
        /// Modulus, base64url without padding.
        n: String,
        /// Exponent, base64url without padding.
        e: String,
    },
}

/// Why members make no [`Jwk`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JwkError {
    /// Another kind of key.
    #[error("the key's kty is neither \"EC\" nor \"RSA\"")]
    Kind,
    /// A member is absent, or belongs to another kind.
    #[error("the key has not exactly kty, alg, crv, x, y (EC) or kty, alg, n, e (RSA)")]
    Members,
    /// A member is empty, too long or has other characters than its kind.
    #[error("a member of the key is empty, too long, or not base64url")]
    Member,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AnyJwk {
    kty: String,
    alg: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    crv: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    y: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    e: Option<String>,
}

/// Longest name of a curve or an algorithm, in bytes.
const NAME_LIMIT: usize = 32;
/// Longest coordinate: 66 bytes in base64url.
const COORDINATE_LIMIT: usize = 88;
/// Longest modulus: 8,192 bits in base64url.
const MODULUS_LIMIT: usize = 1366;
/// Longest exponent: 33 bits in base64url.
const EXPONENT_LIMIT: usize = 7;

impl TryFrom<AnyJwk> for Jwk {
    type Error = JwkError;

    fn try_from(any: AnyJwk) -> Result<Jwk, JwkError> {
        let name = |text: String| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-+_".contains(&b);
            let sound = !text.is_empty() && text.len() <= NAME_LIMIT && text.bytes().all(plain);
            sound.then_some(text).ok_or(JwkError::Member)
        };
        let number = |text: String, limit: usize| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
            let sound = !text.is_empty() && text.len() <= limit && text.bytes().all(plain);
            sound.then_some(text).ok_or(JwkError::Member)
        };
        let AnyJwk { kty, alg, crv, x, y, n, e } = any;
        let alg = name(alg.ok_or(JwkError::Members)?)?;
        match (kty.as_str(), crv, x, y, n, e) {
            ("EC", Some(crv), Some(x), Some(y), None, None) => Ok(Jwk::Ec {
                crv: name(crv)?,
                alg,
                x: number(x, COORDINATE_LIMIT)?,
                y: number(y, COORDINATE_LIMIT)?,
            }),
            ("RSA", None, None, None, Some(n), Some(e)) => {
                Ok(Jwk::Rsa { alg, n: number(n, MODULUS_LIMIT)?, e: number(e, EXPONENT_LIMIT)? })
            }
            ("EC" | "RSA", ..) => Err(JwkError::Members),
            _ => Err(JwkError::Kind),
        }
    }
}

impl From<Jwk> for AnyJwk {
    fn from(jwk: Jwk) -> AnyJwk {
        let none =
            AnyJwk { kty: String::new(), alg: None, crv: None, x: None, y: None, n: None, e: None };
        match jwk {
            Jwk::Ec { crv, alg, x, y } => AnyJwk {
                kty: "EC".to_owned(),
                alg: Some(alg),
                crv: Some(crv),
                x: Some(x),
                y: Some(y),
                ..none
            },
            Jwk::Rsa { alg, n, e } => {
                AnyJwk { kty: "RSA".to_owned(), alg: Some(alg), n: Some(n), e: Some(e), ..none }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_another_shape_are_refused() {
        let good = r#"{"kty":"RSA","alg":"RSA-OAEP-256","n":"AQAB","e":"AQAB"}"#;
        let parsed: Jwk = serde_json::from_str(good).unwrap();
        assert_eq!(serde_json::to_string(&parsed).unwrap(), good);
        let long = "A".repeat(MODULUS_LIMIT + 1);
        for (bad, expected) in [
            (r#"{"kty":"OKP","alg":"EdDSA","crv":"Ed25519","x":"AA"}"#, "kty"),
            (r#"{"kty":"EC","alg":"ECDH-ES+A256KW","crv":"P-256","x":"AA"}"#, "exactly"),
            (r#"{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}"#, "exactly"),
            (r#"{"kty":"RSA","alg":"RSA-OAEP-256","n":"AA","e":"AQAB","x":"AA"}"#, "exactly"),
            (
                r#"{"kty":"EC","alg":"a","crv":"P-256","x":"AA","y":"AA","kid":"1"}"#,
                "unknown field",
            ),
            (r#"{"kty":"EC","alg":"a","crv":"P-256","x":"AA=","y":"AA"}"#, "base64url"),
            (r#"{"kty":"EC","alg":"","crv":"P-256","x":"AA","y":"AA"}"#, "empty"),
            (&format!(r#"{{"kty":"RSA","alg":"a","n":"{long}","e":"AQAB"}}"#), "too long"),
        ] {
            let error = serde_json::from_str::<Jwk>(bad).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} for {bad}");
        }
    }
}
