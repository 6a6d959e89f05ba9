//! Signatures as cosign attaches them to an image: the manifest under the tag `sha256-<hex>.sig`
//! (sigstore/cosign, `specs/SIGNATURE_SPEC.md`), whose layers are payloads and whose annotations are
//! signatures; and the index of referrers, which leads to bundles.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nacre_trust::Digest;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;

use crate::envelope::{Content, Envelope, PAYLOAD_LIMIT};
use crate::json;
use crate::transparency::LogEntry;

/// Largest manifest or index that is read for signatures, in bytes.
pub(crate) const MANIFEST_LIMIT: usize = 4 * 1024 * 1024;
/// Certificates that one signature may carry.
pub(crate) const CERTIFICATES_LIMIT: usize = 8;

pub(crate) const PAYLOAD_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
pub(crate) const ARTIFACT_TYPE: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
pub(crate) const BUNDLE_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
pub(crate) const BUNDLE_TYPE_OLD: &str = "application/vnd.dev.sigstore.bundle+json";

pub(crate) const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const CERTIFICATE: &str = "dev.sigstore.cosign/certificate";
const CHAIN: &str = "dev.sigstore.cosign/chain";
const REKOR: &str = "dev.sigstore.cosign/bundle";
const TIMESTAMP: &str = "dev.sigstore.cosign/rfc3161timestamp";

/// `sha256-<hex>`: the tag that stands in for the referrers API (OCI distribution-spec 1.1, "Referrers
/// Tag Schema"), and with `.sig` cosign's. Both cut the digits at 64.
pub(crate) fn tag_of(digest: &Digest) -> String {
    let mut hex = digest.hex();
    hex.truncate(64);
    format!("{}-{hex}", digest.algorithm().name())
}

/// Whether a media type is a sigstore bundle's.
pub(crate) fn is_bundle(media_type: &str) -> bool {
    media_type == BUNDLE_TYPE || media_type.split(';').next() == Some(BUNDLE_TYPE_OLD)
}

/// What a manifest or index points to.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Descriptor {
    #[serde(rename = "mediaType", default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(rename = "artifactType")]
    pub(crate) artifact_type: Option<String>,
}

/// Layers of a signature's manifest. Nothing else in it matters: it is not signed.
pub(crate) fn layers(manifest: &[u8]) -> Result<Vec<Descriptor>, String> {
    #[derive(Deserialize)]
    struct Manifest {
        layers: Vec<Descriptor>,
    }
    json::document::<Manifest>(manifest, MANIFEST_LIMIT).map(|manifest| manifest.layers)
}

/// Manifests that an index of referrers lists.
pub(crate) fn referrers(index: &[u8]) -> Result<Vec<Descriptor>, String> {
    #[derive(Deserialize)]
    struct Index {
        manifests: Vec<Descriptor>,
    }
    json::document::<Index>(index, MANIFEST_LIMIT).map(|index| index.manifests)
}

/// A payload and the annotations of its layer.
pub(crate) fn envelope(
    payload: Vec<u8>,
    annotations: &BTreeMap<String, String>,
) -> Result<Envelope, String> {
    if payload.len() > PAYLOAD_LIMIT {
        return Err(format!("its payload is larger than {PAYLOAD_LIMIT} bytes"));
    }
    let signature = annotations.get(SIGNATURE).ok_or("its layer has no signature annotation")?;
    let signature = decode(signature, "signature")?;
    let mut certificates = Vec::new();
    for annotation in [CERTIFICATE, CHAIN] {
        if let Some(pem) = annotations.get(annotation) {
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let certificate = certificate.map_err(|_| "its certificate is not PEM")?;
                certificates.push(certificate.to_vec());
                if certificates.len() > CERTIFICATES_LIMIT {
                    return Err(format!("it has more than {CERTIFICATES_LIMIT} certificates"));
                }
            }
        }
    }
    let entries = match annotations.get(REKOR) {
        Some(bundle) => vec![rekor_bundle(bundle)?],
        None => Vec::new(),
    };
    let timestamps = match annotations.get(TIMESTAMP) {
        Some(timestamp) => vec![timestamp_token(timestamp)?],
        None => Vec::new(),
    };
    let content = Content::SimpleSigning(payload);
    Ok(Envelope { content, signature, certificates, entries, timestamps })
}

/// The log's promise as cosign writes it beside a signature.
fn rekor_bundle(text: &str) -> Result<LogEntry, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Bundle {
        #[serde(rename = "SignedEntryTimestamp")]
        promise: String,
        #[serde(rename = "Payload")]
        payload: Payload,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Payload {
        body: String,
        #[serde(rename = "integratedTime")]
        integrated_time: i64,
        #[serde(rename = "logIndex")]
        index: i64,
        #[serde(rename = "logID")]
        log_id: String,
    }
    let Bundle { promise, payload } = json::document(text.as_bytes(), PAYLOAD_LIMIT)
        .map_err(|error| format!("its log entry: {error}"))?;
    let mut log_id = [0; 32];
    hex::decode_to_slice(&payload.log_id, &mut log_id)
        .map_err(|_| "its log entry's logID is not 32 bytes of hexadecimal digits")?;
    Ok(LogEntry {
        log_id,
        index: payload.index,
        integrated_time: payload.integrated_time,
        body: decode(&payload.body, "log entry")?,
        promise: Some(decode(&promise, "log's promise")?),
        proof: None,
    })
}

fn timestamp_token(text: &str) -> Result<Vec<u8>, String> {
    #[derive(Deserialize)]
    struct Timestamp {
        #[serde(rename = "SignedRFC3161Timestamp")]
        token: String,
    }
    let timestamp: Timestamp = json::document(text.as_bytes(), PAYLOAD_LIMIT)
        .map_err(|error| format!("its timestamp: {error}"))?;
    decode(&timestamp.token, "timestamp")
}

pub(crate) fn decode(text: &str, what: &str) -> Result<Vec<u8>, String> {
    STANDARD.decode(text).map_err(|_| format!("its {what} is not base64"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_trust::Algorithm;

    #[test]
    fn tags_are_cut_at_64_digits() {
        let long = tag_of(&Digest::of(Algorithm::Sha512, b""));
        assert_eq!(long.len(), "sha512-".len() + 64);
        assert_eq!(tag_of(&Digest::of(Algorithm::Sha256, b"")).len(), "sha256-".len() + 64);
    }

    #[test]
    fn broken_annotations_are_refused() {
        let with = |name: &str, value: &str| {
            let mut annotations = BTreeMap::from([(SIGNATURE.to_owned(), "AAAA".to_owned())]);
            annotations.insert(name.to_owned(), value.to_owned());
            envelope(b"{}".to_vec(), &annotations)
        };
        assert!(with("x", "y").is_ok());
        assert!(with(SIGNATURE, "A A").is_err());
        assert!(
            with(CERTIFICATE, "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----").is_err()
        );
        assert!(with(REKOR, "{}").is_err());
        assert!(with(TIMESTAMP, "[]").is_err());
        let certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(with(CHAIN, &certificate.repeat(9)).unwrap_err().contains("more than"));
        assert!(envelope(Vec::new(), &BTreeMap::new()).is_err());
    }
}
