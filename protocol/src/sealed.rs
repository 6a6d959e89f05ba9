//! Sealed secrets: text that anybody may see, and that only an attested guest can turn into a secret.
//!
//! A pod's owner writes one where Kubernetes wants a secret: in an environment variable or a file. It is
//! `sealed.` and a JSON web signature (RFC 7515) in its compact form, by ES256; the payload is either a
//! *vault* secret, which says where a key broker keeps the secret, or an *envelope*, which carries the
//! secret encrypted under a key that a key broker keeps. The form is that of Confidential Containers
//! (guest components, `SEALED_SECRET.md`).
//!
//! The host carries it and may replace it by another. What speaks for it is the signature, by the key
//! that the header names ([`Signed::key`]), which lies at the owner's key broker. So the way through this
//! module is: [`Signed::parse`], then a check of [`Signed::jws`] with that key, and only what the check
//! gave back goes to [`Secret::parse`]. Cryptography is not in here.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::kbs::ResourceUri;

/// What every sealed secret begins with.
pub const PREFIX: &str = "sealed.";
/// The signature algorithm, as the header has it.
pub const ALGORITHM: &str = "ES256";
/// The only version there is.
pub const VERSION: &str = "0.1.0";
/// The provider that this program knows: a key broker.
pub const PROVIDER: &str = "kbs";
/// AES-256-GCM with a nonce of 12 bytes, the tag of 16 behind the ciphertext.
pub const WRAP_TYPE: &str = "A256GCM";

/// Longest sealed secret, in bytes: what an environment variable can hold in Linux.
pub const TEXT_LIMIT: usize = 128 * 1024;
/// Largest secret, in bytes, that an envelope can carry. Larger ones belong to a key broker.
pub const PLAIN_LIMIT: usize = 64 * 1024;
/// Longest header, in bytes of JSON.
pub const HEADER_LIMIT: usize = 4096;
/// Length of a nonce, in bytes.
pub const NONCE_LENGTH: usize = 12;
/// Length of the tag behind a ciphertext, in bytes.
pub const TAG_LENGTH: usize = 16;
/// Length of a key, in bytes.
pub const KEY_LENGTH: usize = 32;

const WRAPPED_KEY_LENGTH: usize = KEY_LENGTH + TAG_LENGTH;
/// Annotations of an envelope: how the encryption key is wrapped.
const KEY_NONCE: &str = "iv";
const KEY_WRAP_TYPE: &str = "wrap_type";

/// What to do about a secret that is not signed.
const SIGN: &str = "sign it: `nacre seal vault` or `nacre seal envelope` (--key, --public-key)";

/// Why text is no sealed secret that can be used. Never with a part of the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealedError {
    /// Too long.
    #[error("a sealed secret has at most {TEXT_LIMIT} bytes")]
    TooLong,
    /// Not four parts.
    #[error("a sealed secret has the form sealed.HEADER.PAYLOAD.SIGNATURE")]
    Form,
    /// The header is a placeholder, as tools without signatures write one.
    #[error(
        "the sealed secret is not signed (its header is a placeholder), and anybody could have made it: {SIGN}"
    )]
    Unsigned,
    /// Another algorithm than ES256.
    #[error("the sealed secret is signed by another algorithm than {ALGORITHM}: {SIGN}")]
    Algorithm,
    /// The header says nothing about the key, or names none of a key broker.
    #[error(
        "the header of the sealed secret must name the public key as a resource of the key broker \
         (\"kid\": \"kbs:///repository/type/tag\"): {SIGN}"
    )]
    Key,
    /// The header demands something of the reader (RFC 7515, 4.1.11).
    #[error("the header of the sealed secret has \"crit\", which this guest does not know")]
    Critical,
    /// The signature is no base64url of 64 bytes.
    #[error("the signature of the sealed secret is not 64 bytes in base64url: {SIGN}")]
    Signature,
    /// The payload has another form.
    #[error(
        "the sealed secret's payload is not of version {VERSION}, type \"vault\" or \"envelope\", with all fields that these have"
    )]
    Payload,
    /// Another provider than a key broker.
    #[error("the sealed secret is for the provider {0:?}: this guest knows \"{PROVIDER}\" only")]
    Provider(String),
    /// A vault secret's name, or an envelope's key, is none of a key broker.
    #[error(
        "the sealed secret's {0} must name a resource of the key broker: kbs:///repository/type/tag"
    )]
    Uri(&'static str),
    /// Other cryptography than AES-256-GCM, or lengths that do not fit it.
    #[error(
        "the sealed secret's {0} is not that of {WRAP_TYPE} (nonce of {NONCE_LENGTH} bytes, tag of \
         {TAG_LENGTH} behind the ciphertext, base64)"
    )]
    Wrap(&'static str),
}

/// True for text that means to be a sealed secret, and nothing else beside it: whoever reads it wants it
/// unsealed, or an error. Prose that happens to begin with the word is none.
#[must_use]
pub fn is_sealed(text: &[u8]) -> bool {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_=.".contains(byte);
    text.starts_with(PREFIX.as_bytes()) && text.iter().all(plain)
}

/// A sealed secret whose signature has not been checked. Nothing in the payload can be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed<'a> {
    jws: &'a str,
    key: ResourceUri,
}

#[derive(Deserialize)]
struct Header {
    alg: Option<String>,
    kid: Option<String>,
    crit: Option<Value>,
}

impl<'a> Signed<'a> {
    /// Reads the header. One line break at the end, as editors and `echo` leave, is not part of it.
    ///
    /// # Errors
    /// [`SealedError`] for anything that is not signed as it should be.
    pub fn parse(text: &'a str) -> Result<Signed<'a>, SealedError> {
        if text.len() > TEXT_LIMIT {
            return Err(SealedError::TooLong);
        }
        let text = text.strip_suffix('\n').unwrap_or(text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        let jws = text.strip_prefix(PREFIX).ok_or(SealedError::Form)?;
        let parts: Vec<&str> = jws.splitn(4, '.').collect();
        let [header, payload, signature] = parts[..] else { return Err(SealedError::Form) };
        let sound =
            !payload.is_empty() && header.len() <= HEADER_LIMIT && is_sealed(text.as_bytes());
        if !sound {
            return Err(SealedError::Form);
        }
        let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| SealedError::Unsigned)?;
        let header: Header = serde_json::from_slice(&header).map_err(|_| SealedError::Unsigned)?;
        if header.crit.is_some() {
            return Err(SealedError::Critical);
        }
        if header.alg.as_deref() != Some(ALGORITHM) {
            return Err(SealedError::Algorithm);
        }
        let key = header.kid.and_then(|kid| kid.parse().ok()).ok_or(SealedError::Key)?;
        match URL_SAFE_NO_PAD.decode(signature) {
            Ok(bytes) if bytes.len() == 64 => Ok(Signed { jws, key }),
            _ => Err(SealedError::Signature),
        }
    }

    /// Where the public key lies that must have signed it, as a JSON web key.
    #[must_use]
    pub const fn key(&self) -> &ResourceUri {
        &self.key
    }

    /// The signature in its compact form, payload within.
    #[must_use]
    pub const fn jws(&self) -> &'a str {
        self.jws
    }
}

/// Members of a sealed secret's header.
#[must_use]
pub fn header(key: &ResourceUri) -> Map<String, Value> {
    [("alg", ALGORITHM.to_owned()), ("kid", key.to_string())]
        .map(|(name, value)| (name.to_owned(), value.into()))
        .into_iter()
        .collect()
}

/// The sealed secret of a compact signature.
#[must_use]
pub fn text_of(jws: &str) -> String {
    format!("{PREFIX}{jws}")
}

/// What a sealed secret says, after its signature was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secret {
    /// A key broker keeps the secret.
    Vault(ResourceUri),
    /// The secret itself, encrypted.
    Envelope(Envelope),
}

/// A secret encrypted under a key of its own, and that key under another that a key broker keeps.
#[derive(Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Where the wrapping key lies: 32 bytes.
    pub key: ResourceUri,
    /// Nonce of the wrapped key.
    pub key_nonce: [u8; NONCE_LENGTH],
    /// The encryption key, wrapped: ciphertext of 32 bytes and tag.
    pub wrapped_key: Vec<u8>,
    /// Nonce of the secret.
    pub nonce: [u8; NONCE_LENGTH],
    /// The secret: ciphertext and tag.
    pub data: Vec<u8>,
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.data.len();
        f.debug_struct("Envelope").field("key", &self.key).field("bytes", &bytes).finish()
    }
}

/// The payload as JSON. `provider_settings` and `annotations` are objects whose members a provider
/// knows; members beside these are left alone, they were signed.
#[derive(Serialize, Deserialize)]
struct Payload {
    version: String,
    #[serde(rename = "type")]
    kind: String,
    provider: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encrypted_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encrypted_data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wrap_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iv: Option<String>,
    provider_settings: Map<String, Value>,
    #[serde(default)]
    annotations: Map<String, Value>,
}

impl Secret {
    /// Reads a payload whose signature was checked.
    ///
    /// # Errors
    /// [`SealedError`] for what this guest cannot unseal.
    pub fn parse(payload: &[u8]) -> Result<Secret, SealedError> {
        if payload.len() > TEXT_LIMIT {
            return Err(SealedError::TooLong);
        }
        let payload: Payload = serde_json::from_slice(payload).map_err(|_| SealedError::Payload)?;
        if payload.version != VERSION {
            return Err(SealedError::Payload);
        }
        if payload.provider != PROVIDER {
            let shown = payload.provider.chars().filter(|c| !c.is_control()).take(32).collect();
            return Err(SealedError::Provider(shown));
        }
        match payload.kind.as_str() {
            "vault" => Ok(Secret::Vault(uri("name", payload.name.as_deref())?)),
            "envelope" => Ok(Secret::Envelope(Envelope::of(&payload)?)),
            _ => Err(SealedError::Payload),
        }
    }

    /// The payload to sign.
    #[must_use]
    pub fn payload(&self) -> Vec<u8> {
        let mut payload = Payload {
            version: VERSION.into(),
            kind: "vault".into(),
            provider: PROVIDER.into(),
            name: None,
            key_id: None,
            encrypted_key: None,
            encrypted_data: None,
            wrap_type: None,
            iv: None,
            provider_settings: Map::new(),
            annotations: Map::new(),
        };
        match self {
            Secret::Vault(name) => payload.name = Some(name.to_string()),
            Secret::Envelope(envelope) => {
                payload.kind = "envelope".into();
                payload.key_id = Some(envelope.key.to_string());
                payload.encrypted_key = Some(STANDARD.encode(&envelope.wrapped_key));
                payload.encrypted_data = Some(STANDARD.encode(&envelope.data));
                payload.wrap_type = Some(WRAP_TYPE.into());
                payload.iv = Some(STANDARD.encode(envelope.nonce));
                let nonce = STANDARD.encode(envelope.key_nonce);
                payload.annotations.insert(KEY_NONCE.into(), nonce.into());
                payload.annotations.insert(KEY_WRAP_TYPE.into(), WRAP_TYPE.into());
            }
        }
        serde_json::to_vec(&payload).expect("strings and maps of strings")
    }
}

impl Envelope {
    fn of(payload: &Payload) -> Result<Envelope, SealedError> {
        let annotation = |name| payload.annotations.get(name).and_then(Value::as_str);
        for wrap_type in [payload.wrap_type.as_deref(), annotation(KEY_WRAP_TYPE)] {
            if wrap_type != Some(WRAP_TYPE) {
                return Err(SealedError::Wrap("wrap_type"));
            }
        }
        let wrapped_key = bytes("encrypted_key", payload.encrypted_key.as_deref())?;
        if wrapped_key.len() != WRAPPED_KEY_LENGTH {
            return Err(SealedError::Wrap("encrypted_key"));
        }
        let data = bytes("encrypted_data", payload.encrypted_data.as_deref())?;
        if !(TAG_LENGTH..=PLAIN_LIMIT + TAG_LENGTH).contains(&data.len()) {
            return Err(SealedError::Wrap("encrypted_data"));
        }
        Ok(Envelope {
            key: uri("key_id", payload.key_id.as_deref())?,
            key_nonce: nonce("annotations.iv", annotation(KEY_NONCE))?,
            wrapped_key,
            nonce: nonce("iv", payload.iv.as_deref())?,
            data,
        })
    }
}

fn uri(field: &'static str, text: Option<&str>) -> Result<ResourceUri, SealedError> {
    text.ok_or(SealedError::Payload)?.parse().map_err(|_| SealedError::Uri(field))
}

fn bytes(field: &'static str, text: Option<&str>) -> Result<Vec<u8>, SealedError> {
    STANDARD.decode(text.ok_or(SealedError::Payload)?).map_err(|_| SealedError::Wrap(field))
}

fn nonce(field: &'static str, text: Option<&str>) -> Result<[u8; NONCE_LENGTH], SealedError> {
    bytes(field, text)?.try_into().map_err(|_| SealedError::Wrap(field))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(text: &str) -> ResourceUri {
        text.parse().unwrap()
    }

    fn envelope() -> Envelope {
        Envelope {
            key: at("kbs:///a/key/1"),
            key_nonce: [1; 12],
            wrapped_key: vec![2; 48],
            nonce: [3; 12],
            data: vec![4; 20],
        }
    }

    fn sealed(header: &Map<String, Value>, payload: &[u8], signature: &[u8]) -> String {
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let header = part(&serde_json::to_vec(header).unwrap());
        text_of(&format!("{header}.{}.{}", part(payload), part(signature)))
    }

    #[test]
    fn what_is_made_is_read() {
        for secret in [Secret::Vault(at("kbs:///a/b/c")), Secret::Envelope(envelope())] {
            let payload = secret.payload();
            assert_eq!(Secret::parse(&payload), Ok(secret));
            let text = sealed(&header(&at("kbs:///a/keys/s")), &payload, &[5; 64]);
            assert!(is_sealed(text.as_bytes()));
            let signed = Signed::parse(&text).unwrap();
            assert_eq!(signed.key(), &at("kbs:///a/keys/s"));
            assert_eq!(text_of(signed.jws()), text);
            let with_line_break = format!("{text}\n");
            assert_eq!(Signed::parse(&with_line_break), Ok(signed));
        }
    }

    /// Field by field as Confidential Containers' document has them.
    #[test]
    fn payloads_have_the_names_of_the_format() {
        let vault: Value =
            serde_json::from_slice(&Secret::Vault(at("kbs:///a/b/c")).payload()).unwrap();
        let expected = json!({
            "version": "0.1.0", "type": "vault", "provider": "kbs", "name": "kbs:///a/b/c",
            "provider_settings": {}, "annotations": {},
        });
        assert_eq!(vault, expected);
        let made: Value = serde_json::from_slice(&Secret::Envelope(envelope()).payload()).unwrap();
        let names: Vec<&String> = made.as_object().unwrap().keys().collect();
        let mut expected = vec![
            "version",
            "type",
            "provider",
            "key_id",
            "encrypted_key",
            "encrypted_data",
            "wrap_type",
            "iv",
            "provider_settings",
            "annotations",
        ];
        expected.sort_unstable();
        let mut names: Vec<&str> = names.into_iter().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, expected);
    }

    #[test]
    fn what_is_not_signed_is_refused() {
        let payload = Secret::Vault(at("kbs:///a/b/c")).payload();
        let body = URL_SAFE_NO_PAD.encode(&payload);
        let fake = format!("sealed.fakejwsheader.{body}.fakesignature");
        assert_eq!(Signed::parse(&fake), Err(SealedError::Unsigned));
        assert!(SealedError::Unsigned.to_string().contains("nacre seal"));
        let good = header(&at("kbs:///a/b/c"));
        let with = |key: &str, value: Value| {
            let mut header = good.clone();
            header.insert(key.to_owned(), value);
            header
        };
        for (header, signature, expected) in [
            (with("alg", "none".into()), 64, SealedError::Algorithm),
            (with("alg", "HS256".into()), 64, SealedError::Algorithm),
            (with("alg", Value::Null), 64, SealedError::Algorithm),
            (with("alg", 7.into()), 64, SealedError::Unsigned),
            (with("kid", "local-name".into()), 64, SealedError::Key),
            (with("kid", "/etc/passwd".into()), 64, SealedError::Key),
            (with("kid", Value::Null), 64, SealedError::Key),
            (with("crit", json!(["b64"])), 64, SealedError::Critical),
            (good.clone(), 0, SealedError::Signature),
            (good.clone(), 63, SealedError::Signature),
            (good.clone(), 72, SealedError::Signature),
        ] {
            let text = sealed(&header, &payload, &vec![0; signature]);
            assert_eq!(Signed::parse(&text), Err(expected), "{header:?}");
        }
    }

    #[test]
    fn other_forms_are_refused() {
        let long = format!("sealed.{}.x.y", "A".repeat(HEADER_LIMIT + 1));
        let longer = format!("sealed.{}", "A".repeat(TEXT_LIMIT));
        for (text, expected) in [
            ("", SealedError::Form),
            ("secret", SealedError::Form),
            ("sealed.", SealedError::Form),
            ("sealed.a.b", SealedError::Form),
            ("sealed.a.b.c.d", SealedError::Form),
            ("sealed.e30..c", SealedError::Form),
            ("sealed.e30=.b.c", SealedError::Unsigned),
            ("sealed.e30.b b.c", SealedError::Form),
            (&long, SealedError::Form),
            (&longer, SealedError::TooLong),
        ] {
            assert_eq!(Signed::parse(text).map(|_| ()), Err(expected), "{text:.40}");
        }
    }

    #[test]
    fn prose_is_not_a_sealed_secret() {
        for text in ["sealed.a.b.c", "sealed.", "sealed.a.b.c\r\n"] {
            assert!(is_sealed(text.as_bytes()), "{text}");
        }
        for text in ["", "sealed", "sealed. And so on.", "sealed.a\nb", "Sealed.a.b.c", "sealed.ü"]
        {
            assert!(!is_sealed(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn payloads_of_another_kind_are_refused() {
        let vault = json!({
            "version": "0.1.0", "type": "vault", "provider": "kbs", "name": "kbs:///a/b/c",
            "provider_settings": {},
        });
        Secret::parse(vault.to_string().as_bytes()).unwrap();
        let envelope: Value =
            serde_json::from_slice(&Secret::Envelope(envelope()).payload()).unwrap();
        let refused = |good: &Value, field: &str, value: Value| {
            let mut payload = good.clone();
            payload[field] = value;
            Secret::parse(payload.to_string().as_bytes()).unwrap_err()
        };
        for (field, value, expected) in [
            ("version", json!("0.2.0"), SealedError::Payload),
            ("version", json!(1), SealedError::Payload),
            ("type", json!("other"), SealedError::Payload),
            ("type", json!("envelope"), SealedError::Wrap("wrap_type")),
            ("provider", json!("aliyun\n"), SealedError::Provider("aliyun".into())),
            ("name", json!("https://x"), SealedError::Uri("name")),
            ("name", Value::Null, SealedError::Payload),
            ("provider_settings", json!([]), SealedError::Payload),
        ] {
            assert_eq!(refused(&vault, field, value), expected, "{field}");
        }
        let too_much = STANDARD.encode(vec![0; PLAIN_LIMIT + TAG_LENGTH + 1]);
        for (field, value, expected) in [
            ("wrap_type", json!("A256CTR"), SealedError::Wrap("wrap_type")),
            ("annotations", json!({}), SealedError::Wrap("wrap_type")),
            ("annotations", json!({"wrap_type": "A256GCM"}), SealedError::Payload),
            ("encrypted_key", json!("AAAA"), SealedError::Wrap("encrypted_key")),
            ("encrypted_data", json!("AAAA"), SealedError::Wrap("encrypted_data")),
            ("encrypted_data", json!(too_much), SealedError::Wrap("encrypted_data")),
            ("encrypted_data", json!("%"), SealedError::Wrap("encrypted_data")),
            ("iv", json!("AAAA"), SealedError::Wrap("iv")),
            ("key_id", json!("key-1"), SealedError::Uri("key_id")),
        ] {
            assert_eq!(refused(&envelope, field, value), expected, "{field}");
        }
        assert_eq!(Secret::parse(b"{"), Err(SealedError::Payload));
        assert_eq!(Secret::parse(&vec![b' '; TEXT_LIMIT + 1]), Err(SealedError::TooLong));
    }
}
