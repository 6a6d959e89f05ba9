//! Whom to trust for keyless signatures: sigstore's `trusted_root.json` (sigstore/protobuf-specs,
//! `sigstore_trustroot.proto`, versions 0.1 and 0.2), or a certificate authority and a log by
//! themselves, as containers-policy.json(5) has them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;

use crate::certificate::{Authority, Certificate};
use crate::json;
use crate::key::PublicKey;
use crate::time::{Period, rfc3339};
use crate::transparency::Log;

/// Largest trust root, in bytes.
const TRUST_ROOT_LIMIT: usize = 512 * 1024;
/// Authorities and logs of one kind, and certificates of one chain.
const LIST_LIMIT: usize = 64;

const MEDIA_TYPES: [&str; 3] = [
    "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
    "application/vnd.dev.sigstore.trustedroot.v0.1+json",
    "application/vnd.dev.sigstore.trustedroot.v0.2+json",
];

/// Authorities and logs.
#[derive(Debug)]
pub(crate) struct TrustRoot {
    /// They issue signers' certificates.
    pub(crate) authorities: Vec<Authority>,
    /// They list signatures. If there are any, a signature has to be in one.
    pub(crate) logs: Vec<Log>,
    /// They list certificates. If there are any, a certificate has to be in one.
    pub(crate) certificate_logs: Vec<Log>,
    pub(crate) timestamp_authorities: Vec<Authority>,
}

impl TrustRoot {
    /// From a `trusted_root.json`.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, String> {
        let document: Document = json::document(text, TRUST_ROOT_LIMIT)
            .map_err(|error| format!("not a trusted_root.json: {error}"))?;
        if !MEDIA_TYPES.contains(&document.media_type.as_str()) {
            return Err("not a trusted_root.json of version 0.1 or 0.2".into());
        }
        let root = Self {
            authorities: list(document.authorities, AuthorityFields::check)?,
            logs: list(document.logs, LogFields::check)?.into_iter().flatten().collect(),
            certificate_logs: list(document.certificate_logs, LogFields::check)?
                .into_iter()
                .flatten()
                .collect(),
            timestamp_authorities: list(document.timestamp_authorities, AuthorityFields::check)?,
        };
        root.check()
    }

    /// From PEM certificates, each of which is trusted, and keys of logs.
    pub(crate) fn of_authority(pem: &[u8], logs: Vec<Log>) -> Result<Self, String> {
        let mut anchors = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|_| "the authority is not PEM")?;
            anchors.push(Certificate::parse(&certificate)?);
            if anchors.len() > LIST_LIMIT {
                return Err(format!("more than {LIST_LIMIT} certificates"));
            }
        }
        if anchors.is_empty() {
            return Err("the authority has no certificate".into());
        }
        let authority = Authority { anchors, intermediates: Vec::new(), valid: Period::ALWAYS };
        let root = Self {
            authorities: vec![authority],
            logs,
            certificate_logs: Vec::new(),
            timestamp_authorities: Vec::new(),
        };
        root.check()
    }

    /// Certificates are valid for minutes: without anybody who tells the time none can be checked.
    fn check(self) -> Result<Self, String> {
        if self.authorities.is_empty() {
            return Err("a trust root without certificate authorities admits nobody".into());
        }
        if self.logs.is_empty() && self.timestamp_authorities.is_empty() {
            return Err("a trust root needs a transparency log or a timestamp authority".into());
        }
        Ok(self)
    }
}

fn list<T, U>(list: Vec<T>, check: impl Fn(T) -> Result<U, String>) -> Result<Vec<U>, String> {
    if list.len() > LIST_LIMIT {
        return Err(format!("a list of the trust root has more than {LIST_LIMIT} elements"));
    }
    list.into_iter().map(check).collect()
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "mediaType")]
    media_type: String,
    #[serde(rename = "tlogs", default)]
    logs: Vec<LogFields>,
    #[serde(rename = "certificateAuthorities", default)]
    authorities: Vec<AuthorityFields>,
    #[serde(rename = "ctlogs", default)]
    certificate_logs: Vec<LogFields>,
    #[serde(rename = "timestampAuthorities", default)]
    timestamp_authorities: Vec<AuthorityFields>,
}

#[derive(Deserialize)]
struct LogFields {
    #[serde(rename = "publicKey")]
    key: KeyFields,
    #[serde(rename = "logId")]
    id: IdFields,
}

#[derive(Deserialize)]
struct KeyFields {
    #[serde(rename = "rawBytes")]
    bytes: String,
    #[serde(rename = "validFor")]
    valid: PeriodFields,
}

#[derive(Deserialize)]
struct IdFields {
    #[serde(rename = "keyId")]
    key_id: String,
}

#[derive(Deserialize)]
struct PeriodFields {
    start: Option<String>,
    end: Option<String>,
}

#[derive(Deserialize)]
struct AuthorityFields {
    #[serde(rename = "certChain")]
    chain: ChainFields,
    #[serde(rename = "validFor")]
    valid: PeriodFields,
}

#[derive(Deserialize)]
struct ChainFields {
    certificates: Vec<CertificateFields>,
}

#[derive(Deserialize)]
struct CertificateFields {
    #[serde(rename = "rawBytes")]
    bytes: String,
}

impl PeriodFields {
    /// The start is mandatory (`sigstore_trustroot.proto`): without it anything old would count.
    fn check(self) -> Result<Period, String> {
        let start = self.start.ok_or("a log or authority of the trust root says not since when")?;
        let end = self.end.as_deref().map(rfc3339).transpose()?;
        Ok(Period { from: rfc3339(&start)?, to: end.unwrap_or(i64::MAX) })
    }
}

impl LogFields {
    /// A log whose kind of key is not known here vouches for nothing; the others still count.
    fn check(self) -> Result<Option<Log>, String> {
        let id = bytes(&self.id.key_id)?;
        let id = id.try_into().map_err(|_| "a log's identifier has not 32 bytes")?;
        let valid = self.key.valid.check()?;
        match PublicKey::from_spki(&bytes(&self.key.bytes)?) {
            Ok(key) => Ok(Some(Log { id, key, valid })),
            Err(problem) => {
                tracing::warn!("a log of the trust root is left out: {problem}");
                Ok(None)
            }
        }
    }
}

impl AuthorityFields {
    /// The chain ends with its root.
    fn check(self) -> Result<Authority, String> {
        let chain = list(self.chain.certificates, |one| Certificate::parse(&bytes(&one.bytes)?));
        let mut intermediates = chain?;
        let root = intermediates.pop().ok_or("an authority has no certificate")?;
        let valid = self.valid.check()?;
        Ok(Authority { anchors: vec![root], intermediates, valid })
    }
}

fn bytes(text: &str) -> Result<Vec<u8>, String> {
    STANDARD.decode(text).map_err(|_| "the trust root has something that is not base64".to_owned())
}
