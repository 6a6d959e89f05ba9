//! What an entry says: that it holds this signature, over this content, by this signer. Kinds:
//! `hashedrekord` 0.0.1 and 0.0.2, `dsse` 0.0.1 and 0.0.2, `intoto` 0.0.2 (sigstore/rekor and
//! sigstore/rekor-tiles, schemas of the types).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use rustls_pki_types::pem::{PemObject as _, SectionKind};
use serde::Deserialize;
use serde_json::Value;

use super::LoggedSigner;
use crate::envelope::{Content, Envelope};
use crate::json;

/// Largest entry, in bytes.
const BODY_LIMIT: usize = 512 * 1024;

#[derive(Deserialize)]
struct Body {
    kind: String,
    #[serde(rename = "apiVersion")]
    version: String,
    spec: Value,
}

/// That the entry is for this very signature.
pub(super) fn check(
    body: &[u8],
    envelope: &Envelope,
    signer: LoggedSigner<'_>,
) -> Result<(), String> {
    let Body { kind, version, spec } = json::document(body, BODY_LIMIT)?;
    let whole = || digest(&SHA256, &envelope.content.signed_bytes());
    let payload = || match &envelope.content {
        Content::Statement { payload, .. } => Ok(digest(&SHA256, payload)),
        Content::SimpleSigning(_) | Content::Manifest(_) => {
            Err("is for an envelope, and this is none".to_owned())
        }
    };
    let signature = envelope.signature.as_slice();
    match (kind.as_str(), version.as_str()) {
        ("hashedrekord", "0.0.1") => {
            let spec: HashedRekord = read(spec)?;
            check_hash(&spec.data.hash, whole().as_ref())?;
            let holds = is_base64(&spec.signature.content, signature)
                && is_pem(&spec.signature.public_key.content, signer);
            held(holds)
        }
        ("hashedrekord", "0.0.2") => {
            let spec: HashedRekordV002 = read(spec)?;
            let spec = spec.hashed_rekord;
            check_digest(&spec.data, whole().as_ref())?;
            held(spec.signature.holds(signature, signer))
        }
        ("dsse", "0.0.1") => {
            let spec: Dsse = read(spec)?;
            check_hash(&spec.payload_hash, payload()?.as_ref())?;
            held(
                spec.signatures.iter().any(|one| {
                    is_base64(&one.signature, signature) && is_pem(&one.verifier, signer)
                }),
            )
        }
        ("dsse", "0.0.2") => {
            let spec: DsseV002 = read(spec)?;
            let spec = spec.dsse;
            check_digest(&spec.payload_hash, payload()?.as_ref())?;
            held(spec.signatures.iter().any(|one| one.holds(signature, signer)))
        }
        ("intoto", "0.0.2") => {
            let spec: InToto = read(spec)?;
            check_hash(&spec.content.payload_hash, payload()?.as_ref())?;
            held(spec.content.envelope.signatures.iter().any(|one| {
                // This type encodes twice.
                is_base64(&one.sig, STANDARD.encode(signature).as_bytes())
                    && is_pem(&one.public_key, signer)
            }))
        }
        _ => Err(format!("is a {kind:?} of version {version:?}, which is not known")),
    }
}

fn read<T: serde::de::DeserializeOwned>(spec: Value) -> Result<T, String> {
    serde_json::from_value(spec).map_err(|error| error.to_string())
}

fn held(holds: bool) -> Result<(), String> {
    if holds { Ok(()) } else { Err("is for another signature or signer".into()) }
}

fn is_base64(text: &str, expected: &[u8]) -> bool {
    STANDARD.decode(text).is_ok_and(|bytes| bytes == expected)
}

/// Base64 of PEM of a certificate or key.
fn is_pem(text: &str, signer: LoggedSigner<'_>) -> bool {
    let Ok(pem) = STANDARD.decode(text) else { return false };
    let section = <(SectionKind, Vec<u8>)>::from_pem_slice(&pem);
    section.is_ok_and(|(_, der)| der == signer.der())
}

fn check_hash(hash: &Hash, expected: &[u8]) -> Result<(), String> {
    if hash.algorithm == "sha256" && hash.value == hex::encode(expected) {
        return Ok(());
    }
    Err("is for other content".into())
}

fn check_digest(hash: &HashOutput, expected: &[u8]) -> Result<(), String> {
    if hash.algorithm == "SHA2_256" && is_base64(&hash.digest, expected) {
        return Ok(());
    }
    Err("is for other content".into())
}

#[derive(Deserialize)]
struct Hash {
    algorithm: String,
    value: String,
}

#[derive(Deserialize)]
struct HashedRekord {
    data: Data,
    signature: Signature,
}

#[derive(Deserialize)]
struct Data {
    hash: Hash,
}

#[derive(Deserialize)]
struct Signature {
    content: String,
    #[serde(rename = "publicKey")]
    public_key: Pem,
}

#[derive(Deserialize)]
struct Pem {
    content: String,
}

#[derive(Deserialize)]
struct Dsse {
    #[serde(rename = "payloadHash")]
    payload_hash: Hash,
    signatures: Vec<DsseSignature>,
}

#[derive(Deserialize)]
struct DsseSignature {
    signature: String,
    verifier: String,
}

#[derive(Deserialize)]
struct InToto {
    content: InTotoContent,
}

#[derive(Deserialize)]
struct InTotoContent {
    envelope: InTotoEnvelope,
    #[serde(rename = "payloadHash")]
    payload_hash: Hash,
}

#[derive(Deserialize)]
struct InTotoEnvelope {
    signatures: Vec<InTotoSignature>,
}

#[derive(Deserialize)]
struct InTotoSignature {
    sig: String,
    #[serde(rename = "publicKey")]
    public_key: String,
}

#[derive(Deserialize)]
struct HashedRekordV002 {
    #[serde(rename = "hashedRekordV002")]
    hashed_rekord: HashedRekordFields,
}

#[derive(Deserialize)]
struct HashedRekordFields {
    data: HashOutput,
    signature: SignatureV002,
}

#[derive(Deserialize)]
struct DsseV002 {
    #[serde(rename = "dsseV002")]
    dsse: DsseFields,
}

#[derive(Deserialize)]
struct DsseFields {
    #[serde(rename = "payloadHash")]
    payload_hash: HashOutput,
    signatures: Vec<SignatureV002>,
}

#[derive(Deserialize)]
struct HashOutput {
    algorithm: String,
    digest: String,
}

#[derive(Deserialize)]
struct SignatureV002 {
    content: String,
    verifier: Verifier,
}

#[derive(Deserialize)]
struct Verifier {
    #[serde(rename = "x509Certificate")]
    certificate: Option<Raw>,
    #[serde(rename = "publicKey")]
    public_key: Option<Raw>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "rawBytes")]
    bytes: String,
}

impl SignatureV002 {
    fn holds(&self, signature: &[u8], signer: LoggedSigner<'_>) -> bool {
        let named = match signer {
            LoggedSigner::Certificate(_) => &self.verifier.certificate,
            LoggedSigner::Key(_) => &self.verifier.public_key,
        };
        is_base64(&self.content, signature)
            && named.as_ref().is_some_and(|raw| is_base64(&raw.bytes, signer.der()))
    }
}
