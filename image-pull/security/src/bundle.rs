//! Sigstore bundles (sigstore/protobuf-specs, `sigstore_bundle.proto`), in their JSON form, versions
//! 0.1 to 0.3.

use nacre_trust::{Algorithm, Digest};
use serde::{Deserialize, Deserializer};

use crate::cosign::{CERTIFICATES_LIMIT, decode, is_bundle};
use crate::envelope::{Content, Envelope};
use crate::json;
use crate::transparency::{LogEntry, Proof};

/// Largest bundle, in bytes.
pub(crate) const BUNDLE_LIMIT: usize = 1024 * 1024;
/// Log entries and timestamps that one bundle may carry.
const PROOFS_LIMIT: usize = 16;
/// Longest path in a log's tree: a tree of 2^64 entries.
const HASHES_LIMIT: usize = 64;

/// A bundle, parsed and not verified.
#[derive(Debug)]
pub(crate) struct Bundle {
    signed: Signed,
    certificates: Vec<Vec<u8>>,
    entries: Vec<LogEntry>,
    timestamps: Vec<Vec<u8>>,
}

#[derive(Debug)]
enum Signed {
    /// A signature over bytes that are elsewhere, with their SHA-256.
    Message {
        digest: Digest,
        signature: Vec<u8>,
    },
    Statement {
        payload_type: String,
        payload: Vec<u8>,
        signature: Vec<u8>,
    },
}

impl Bundle {
    pub(crate) fn parse(text: &[u8]) -> Result<Self, String> {
        let document: Document = json::document(text, BUNDLE_LIMIT)?;
        if !is_bundle(&document.media_type) {
            return Err("not a sigstore bundle of version 0.1, 0.2 or 0.3".into());
        }
        let material = document.material;
        let certificates = match (material.certificate, material.chain, material.public_key) {
            (Some(one), None, None) => vec![one],
            (None, Some(chain), None) => chain.certificates,
            (None, None, Some(_)) => Vec::new(),
            _ => return Err("its signer is not exactly one of certificate, chain and key".into()),
        };
        let timestamps = material.timestamps.tokens;
        let entries = material.entries;
        if certificates.len() > CERTIFICATES_LIMIT
            || entries.len() > PROOFS_LIMIT
            || timestamps.len() > PROOFS_LIMIT
        {
            return Err("it has too many certificates, log entries or timestamps".into());
        }
        let signed = match (document.message, document.envelope) {
            (Some(message), None) => message.check()?,
            (None, Some(envelope)) => envelope.check()?,
            _ => return Err("it is not exactly one of a message signature and an envelope".into()),
        };
        Ok(Self {
            signed,
            certificates: bytes(certificates, "certificate")?,
            entries: entries.into_iter().map(Entry::check).collect::<Result<_, _>>()?,
            timestamps: timestamps
                .into_iter()
                .map(|one| decode(&one.token, "timestamp"))
                .collect::<Result<_, _>>()?,
        })
    }

    /// SHA-256 of the message, where it is not in the bundle.
    pub(crate) fn message(&self) -> Option<&Digest> {
        match &self.signed {
            Signed::Message { digest, .. } => Some(digest),
            Signed::Statement { .. } => None,
        }
    }

    /// With the message, which a message signature needs and which must be what its digest says.
    pub(crate) fn into_envelope(self, manifest: Option<&[u8]>) -> Result<Envelope, String> {
        let Self { signed, certificates, entries, timestamps } = self;
        let (content, signature) = match signed {
            Signed::Statement { payload_type, payload, signature } => {
                (Content::Statement { payload_type, payload }, signature)
            }
            Signed::Message { digest, signature } => {
                let message = manifest
                    .filter(|bytes| Digest::of(Algorithm::Sha256, bytes) == digest)
                    .ok_or("it signs something other than this image")?;
                (Content::Manifest(message.to_vec()), signature)
            }
        };
        Ok(Envelope { content, signature, certificates, entries, timestamps })
    }
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "mediaType")]
    media_type: String,
    #[serde(rename = "verificationMaterial")]
    material: Material,
    #[serde(rename = "messageSignature")]
    message: Option<Message>,
    #[serde(rename = "dsseEnvelope")]
    envelope: Option<Dsse>,
}

#[derive(Deserialize)]
struct Material {
    certificate: Option<Raw>,
    #[serde(rename = "x509CertificateChain")]
    chain: Option<Chain>,
    #[serde(rename = "publicKey")]
    public_key: Option<serde::de::IgnoredAny>,
    #[serde(rename = "tlogEntries", default)]
    entries: Vec<Entry>,
    #[serde(rename = "timestampVerificationData", default)]
    timestamps: Timestamps,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "rawBytes")]
    bytes: String,
}

#[derive(Deserialize)]
struct Chain {
    certificates: Vec<Raw>,
}

#[derive(Default, Deserialize)]
struct Timestamps {
    #[serde(rename = "rfc3161Timestamps", default)]
    tokens: Vec<Token>,
}

#[derive(Deserialize)]
struct Token {
    #[serde(rename = "signedTimestamp")]
    token: String,
}

#[derive(Deserialize)]
struct Message {
    #[serde(rename = "messageDigest")]
    digest: MessageDigest,
    signature: String,
}

#[derive(Deserialize)]
struct MessageDigest {
    algorithm: String,
    digest: String,
}

impl Message {
    fn check(self) -> Result<Signed, String> {
        if self.digest.algorithm != "SHA2_256" {
            return Err("its message digest is not SHA2_256".into());
        }
        let digest = decode(&self.digest.digest, "message digest")?;
        let digest = digest.try_into().map_err(|_| "its message digest has not 32 bytes")?;
        let signature = decode(&self.signature, "signature")?;
        Ok(Signed::Message { digest: Digest::Sha256(digest), signature })
    }
}

#[derive(Deserialize)]
struct Dsse {
    payload: String,
    #[serde(rename = "payloadType")]
    payload_type: String,
    signatures: Vec<DsseSignature>,
}

#[derive(Deserialize)]
struct DsseSignature {
    sig: String,
}

impl Dsse {
    fn check(self) -> Result<Signed, String> {
        let [signature] = self.signatures.as_slice() else {
            return Err("its envelope has not exactly one signature".into());
        };
        Ok(Signed::Statement {
            payload: decode(&self.payload, "payload")?,
            signature: decode(&signature.sig, "signature")?,
            payload_type: self.payload_type,
        })
    }
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "logIndex", deserialize_with = "integer", default)]
    index: i64,
    #[serde(rename = "logId")]
    log: LogId,
    #[serde(rename = "integratedTime", deserialize_with = "integer", default)]
    integrated_time: i64,
    #[serde(rename = "inclusionPromise")]
    promise: Option<Promise>,
    #[serde(rename = "inclusionProof")]
    proof: Option<InclusionProof>,
    #[serde(rename = "canonicalizedBody")]
    body: String,
}

#[derive(Deserialize)]
struct LogId {
    #[serde(rename = "keyId")]
    key_id: String,
}

#[derive(Deserialize)]
struct Promise {
    #[serde(rename = "signedEntryTimestamp")]
    timestamp: String,
}

#[derive(Deserialize)]
struct InclusionProof {
    #[serde(rename = "logIndex", deserialize_with = "integer", default)]
    index: i64,
    #[serde(rename = "rootHash")]
    root: String,
    #[serde(rename = "treeSize", deserialize_with = "integer")]
    size: i64,
    #[serde(default)]
    hashes: Vec<String>,
    checkpoint: Option<Checkpoint>,
}

#[derive(Deserialize)]
struct Checkpoint {
    envelope: String,
}

impl Entry {
    fn check(self) -> Result<LogEntry, String> {
        let promise =
            self.promise.map(|one| decode(&one.timestamp, "log's promise")).transpose()?;
        Ok(LogEntry {
            log_id: hash(&self.log.key_id, "log's identifier")?,
            index: self.index,
            integrated_time: self.integrated_time,
            body: decode(&self.body, "log entry")?,
            promise,
            proof: self.proof.map(InclusionProof::check).transpose()?,
        })
    }
}

impl InclusionProof {
    fn check(self) -> Result<Proof, String> {
        if self.hashes.len() > HASHES_LIMIT {
            return Err(format!("its inclusion proof has more than {HASHES_LIMIT} hashes"));
        }
        let negative = |_| "its inclusion proof has a negative number".to_owned();
        Ok(Proof {
            index: self.index.try_into().map_err(negative)?,
            size: self.size.try_into().map_err(negative)?,
            root: hash(&self.root, "root hash")?,
            hashes: self
                .hashes
                .iter()
                .map(|one| hash(one, "inclusion proof"))
                .collect::<Result<_, _>>()?,
            checkpoint: self.checkpoint.ok_or("its inclusion proof has no checkpoint")?.envelope,
        })
    }
}

fn bytes(list: Vec<Raw>, what: &str) -> Result<Vec<Vec<u8>>, String> {
    list.into_iter().map(|one| decode(&one.bytes, what)).collect()
}

fn hash(text: &str, what: &str) -> Result<[u8; 32], String> {
    decode(text, what)?.try_into().map_err(|_| format!("its {what} has not 32 bytes"))
}

/// 64-bit integers are strings in protobuf's JSON; writers also use numbers.
pub(crate) fn integer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Integer {
        Number(i64),
        Text(String),
    }
    match Integer::deserialize(deserializer)? {
        Integer::Number(number) => Ok(number),
        Integer::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}
