//! The key-broker protocol of Confidential Containers: the shapes of its messages, the paths they are
//! sent to, and how evidence is bound to a conversation.
//!
//! A guest asks for a challenge ([`Request`], [`Challenge`]), answers it with evidence
//! ([`Attestation`], [`TokenResponse`]) and then fetches resources ([`ResourceUri`]), each encrypted to
//! the key that its evidence vouches for. Both sides distrust what they read: the limits here are
//! meant to be applied to bytes before they are parsed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha384};

use crate::jcs;

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
/// What the type of an error begins with.
pub const ERROR_PREFIX: &str = "https://github.com/confidential-containers/kbs/errors/";
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
/// Longest part of a resource's name, in bytes.
pub const SEGMENT_LIMIT: usize = 128;
/// Longest URI of a resource, in bytes.
pub const URI_LIMIT: usize = 1024;
/// Longest name of a TEE, in bytes.
pub const TEE_LIMIT: usize = 32;
/// Longest nonce, in bytes of its text.
pub const NONCE_LIMIT: usize = 256;

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

/// What went wrong, as the broker says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorInformation {
    /// [`ERROR_PREFIX`] and the name of an [`ErrorKind`], or of another server's error.
    #[serde(rename = "type")]
    pub error_type: String,
    /// For people.
    pub detail: String,
    /// Where the broker's audit log has the whole story; Nacre's broker says it.
    #[serde(rename = "request-id", default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

impl ErrorInformation {
    /// What a broker says of an error of `kind`.
    #[must_use]
    pub fn new(kind: ErrorKind, detail: String, request_id: Option<String>) -> ErrorInformation {
        let error_type = format!("{ERROR_PREFIX}{}", kind.name());
        ErrorInformation { error_type, detail, request_id }
    }

    /// The kind, where it is one that Nacre's broker has.
    #[must_use]
    pub fn kind(&self) -> Option<ErrorKind> {
        let name = self.error_type.strip_prefix(ERROR_PREFIX)?;
        ErrorKind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// What kinds of errors Nacre's broker has. Names that Trustee has mean what they mean there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The message is no message of the protocol, or too large. Status 400 or 413.
    InvalidRequest,
    /// The client's protocol version is not served. Status 401.
    VersionMismatch,
    /// There is no such session, it is over or already used: begin with a new challenge. Status 401.
    SessionNotFound,
    /// Appraised and refused; asking again with the same evidence is of no use. Status 401.
    AttestationFailed,
    /// Neither a session nor a token came. Status 401.
    TokenNotFound,
    /// The token is expired, of another broker or no token: attest anew. Status 401.
    TokenVerifierError,
    /// The resource policy says no. Status 403.
    PolicyDeny,
    /// The resource policy cannot be evaluated. Status 403.
    PolicyEngineError,
    /// The policy says yes, and there is no such resource. Status 404.
    ResourceNotFound,
    /// No such path. Status 404.
    InvalidRequestPath,
    /// No such plugin. Status 404.
    PluginNotFound,
    /// The answer cannot be encrypted to the client's key. Status 401.
    JweError,
    /// No administrator, or a request that is wrong for one. Status 401.
    AdminAuthAccess,
    /// Too many requests; try again later. Status 429 or 503.
    Busy,
    /// The broker failed. Status 500.
    Internal,
}

impl ErrorKind {
    /// All of them.
    pub const ALL: [ErrorKind; 15] = [
        ErrorKind::InvalidRequest,
        ErrorKind::VersionMismatch,
        ErrorKind::SessionNotFound,
        ErrorKind::AttestationFailed,
        ErrorKind::TokenNotFound,
        ErrorKind::TokenVerifierError,
        ErrorKind::PolicyDeny,
        ErrorKind::PolicyEngineError,
        ErrorKind::ResourceNotFound,
        ErrorKind::InvalidRequestPath,
        ErrorKind::PluginNotFound,
        ErrorKind::JweError,
        ErrorKind::AdminAuthAccess,
        ErrorKind::Busy,
        ErrorKind::Internal,
    ];

    /// The name in an error's type.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            ErrorKind::InvalidRequest => "InvalidRequest",
            ErrorKind::VersionMismatch => "VersionMismatch",
            ErrorKind::SessionNotFound => "SessionNotFound",
            ErrorKind::AttestationFailed => "AttestationFailed",
            ErrorKind::TokenNotFound => "TokenNotFound",
            ErrorKind::TokenVerifierError => "TokenVerifierError",
            ErrorKind::PolicyDeny => "PolicyDeny",
            ErrorKind::PolicyEngineError => "PolicyEngineError",
            ErrorKind::ResourceNotFound => "ResourceNotFound",
            ErrorKind::InvalidRequestPath => "InvalidRequestPath",
            ErrorKind::PluginNotFound => "PluginNotFound",
            ErrorKind::JweError => "JweError",
            ErrorKind::AdminAuthAccess => "AdminAuthAccess",
            ErrorKind::Busy => "Busy",
            ErrorKind::Internal => "Internal",
        }
    }
}

/// Where a resource is: `kbs[+plugin]://[host]/repository/type/tag[?query]`. A host may be written and
/// is ignored: which broker is asked is the guest's own configuration.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceUri {
    plugin: Option<String>,
    repository: String,
    kind: String,
    tag: String,
    query: Option<String>,
}

/// Why a text names no resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// Too long.
    #[error("a resource's URI has more than {URI_LIMIT} bytes")]
    TooLong,
    /// Of another scheme.
    #[error("a resource's URI begins with \"kbs://\" or \"kbs+<plugin>://\"")]
    Scheme,
    /// Not three parts.
    #[error("a resource has three parts: kbs:///<repository>/<type>/<tag>")]
    Parts,
    /// A part is empty, too long, begins with a dot or has other characters.
    #[error(
        "a part of a resource's name has letters, digits, '-', '_' and '.', does not begin with '.' and \
         has 1 to {SEGMENT_LIMIT} characters"
    )]
    Part,
    /// The query has characters that no query has.
    #[error("the query of a resource's URI has characters other than printable ASCII, or a '#'")]
    Query,
}

impl ResourceUri {
    /// The plugin that serves plain resources.
    pub const RESOURCE: &str = "resource";

    /// A plain resource.
    ///
    /// # Errors
    /// If a part cannot be part of a name.
    pub fn new(repository: &str, kind: &str, tag: &str) -> Result<ResourceUri, UriError> {
        Ok(ResourceUri {
            plugin: None,
            repository: segment(repository)?,
            kind: segment(kind)?,
            tag: segment(tag)?,
            query: None,
        })
    }

    /// Three parts with slashes between them: `repository/type/tag`.
    ///
    /// # Errors
    /// If there are not three, or one cannot be part of a name.
    pub fn of_path(path: &str) -> Result<ResourceUri, UriError> {
        let parts: Vec<&str> = path.splitn(4, '/').collect();
        let [repository, kind, tag] = parts[..] else { return Err(UriError::Parts) };
        ResourceUri::new(repository, kind, tag)
    }

    /// Who serves it: `resource` where the URI names nobody.
    #[must_use]
    pub fn plugin(&self) -> &str {
        self.plugin.as_deref().unwrap_or(Self::RESOURCE)
    }

    /// First part.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Second part.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Third part.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// What follows a question mark.
    #[must_use]
    pub fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }

    /// The three parts with slashes between them.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}/{}/{}", self.repository, self.kind, self.tag)
    }

    /// Where a broker has it: path and query of the URL.
    #[must_use]
    pub fn url_path(&self) -> String {
        let query = self.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
        format!("{PREFIX}/{}/{}{query}", self.plugin(), self.path())
    }
}

fn segment(part: &str) -> Result<String, UriError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let length = (1..=SEGMENT_LIMIT).contains(&part.len());
    if length && !part.starts_with('.') && part.bytes().all(plain) {
        Ok(part.to_owned())
    } else {
        Err(UriError::Part)
    }
}

impl FromStr for ResourceUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<ResourceUri, UriError> {
        if text.len() > URI_LIMIT {
            return Err(UriError::TooLong);
        }
        let (scheme, rest) = text.split_once("://").ok_or(UriError::Scheme)?;
        let plugin = match scheme.strip_prefix("kbs").ok_or(UriError::Scheme)? {
            "" => None,
            plugin => Some(segment(plugin.strip_prefix('+').ok_or(UriError::Scheme)?)?),
        };
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) => (rest, Some(query)),
            None => (rest, None),
        };
        let printable = |b: u8| b.is_ascii_graphic() && b != b'#';
        if query.is_some_and(|query| query.is_empty() || !query.bytes().all(printable)) {
            return Err(UriError::Query);
        }
        let (_host, path) = rest.split_once('/').ok_or(UriError::Parts)?;
        let named = ResourceUri::of_path(path)?;
        // One way to write the plugin of plain resources.
        let plugin = plugin.filter(|plugin| plugin != Self::RESOURCE);
        Ok(ResourceUri { plugin, query: query.map(str::to_owned), ..named })
    }
}

impl fmt::Display for ResourceUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("kbs")?;
        if let Some(plugin) = &self.plugin {
            write!(f, "+{plugin}")?;
        }
        write!(f, ":///{}", self.path())?;
        self.query.as_ref().map_or(Ok(()), |query| write!(f, "?{query}"))
    }
}

impl Serialize for ResourceUri {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ResourceUri {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<ResourceUri, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
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

    #[test]
    fn uris() {
        for (text, shown, path) in [
            ("kbs:///a/b/c", "kbs:///a/b/c", "/kbs/v0/resource/a/b/c"),
            ("kbs://broker:8080/a/b/c.d", "kbs:///a/b/c.d", "/kbs/v0/resource/a/b/c.d"),
            ("kbs+resource:///a/b/c", "kbs:///a/b/c", "/kbs/v0/resource/a/b/c"),
            (
                "kbs+nebula-ca:///a/b/c?x=1&y",
                "kbs+nebula-ca:///a/b/c?x=1&y",
                "/kbs/v0/nebula-ca/a/b/c?x=1&y",
            ),
        ] {
            let uri: ResourceUri = text.parse().unwrap();
            assert_eq!(uri.to_string(), shown);
            assert_eq!(uri.url_path(), path);
            assert_eq!(shown.parse(), Ok(uri));
        }
        let long = "a".repeat(SEGMENT_LIMIT + 1);
        for (text, expected) in [
            ("", UriError::Scheme),
            ("a/b/c", UriError::Scheme),
            ("http:///a/b/c", UriError::Scheme),
            ("kbsx:///a/b/c", UriError::Scheme),
            ("kbs+:///a/b/c", UriError::Part),
            ("kbs://a", UriError::Parts),
            ("kbs:///a/b", UriError::Parts),
            ("kbs:///a/b/c/d", UriError::Parts),
            ("kbs:///a//c", UriError::Part),
            ("kbs:///a/../c", UriError::Part),
            ("kbs:///a/b/c%2f", UriError::Part),
            ("kbs:///a/b/c d", UriError::Part),
            ("kbs:///a/b/c#d", UriError::Part),
            ("kbs:///a/b/c?", UriError::Query),
            ("kbs:///a/b/c?d#e", UriError::Query),
            ("kbs:///a/b/c?\u{e4}", UriError::Query),
            (&format!("kbs:///a/b/{long}"), UriError::Part),
            (&format!("kbs:///a/b/c?{}", "q".repeat(URI_LIMIT)), UriError::TooLong),
        ] {
            assert_eq!(text.parse::<ResourceUri>(), Err(expected), "{text}");
        }
    }

    #[test]
    fn errors_tell_their_kind() {
        for kind in ErrorKind::ALL {
            let said = ErrorInformation::new(kind, "why".into(), Some("id".into()));
            let text = serde_json::to_string(&said).unwrap();
            assert!(text.contains("\"request-id\":\"id\""), "{text}");
            let read: ErrorInformation = serde_json::from_str(&text).unwrap();
            assert_eq!(read.kind(), Some(kind));
        }
        let other: ErrorInformation =
            serde_json::from_str(r#"{"type":"https://example.org/x","detail":""}"#).unwrap();
        assert_eq!(other.kind(), None);
    }
}
