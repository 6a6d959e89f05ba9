//! The other direction, for the owner's tools: signatures as this crate (and cosign, and policies of
//! containers) verify them, ready to be pushed.
//!
//! ```
//! # fn example(pem: &[u8]) -> Result<(), nacre_image_security::sign::SignError> {
//! use nacre_image_security::sign::{self, SigningKey, Target};
//! let key = SigningKey::from_pkcs8_pem(pem)?;
//! let target = Target {
//!     name: "registry.example/team/app:v1",
//!     media_type: "application/vnd.oci.image.manifest.v1+json",
//!     digest: "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".parse().unwrap(),
//!     size: 1234,
//! };
//! // Push the blobs, then the manifest under its reference.
//! let classic = sign::cosign(&key, &target, None)?;
//! let bundle = sign::bundle(&key, &target)?;
//! // Only where the registry lacks the referrers API: also this index.
//! let index = sign::referrers_index(&target, &bundle, None)?;
//! # Ok(())
//! # }
//! ```

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nacre_trust::{Algorithm, Digest};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use crate::cosign::{self, BUNDLE_TYPE, MANIFEST_LIMIT, PAYLOAD_TYPE, tag_of};
use crate::envelope::{COSIGN_TYPE, Content, IN_TOTO, SIGN_PREDICATE};
use crate::json;
use crate::reference::Reference;
use crate::search::SIGNATURES_LIMIT;

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";

/// `SubjectPublicKeyInfo` of a P-256 key up to its point (RFC 5480, section 2).
const P256_SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Why nothing was signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// Not a private key of the kind that is used here.
    #[error(
        "not an unencrypted ECDSA P-256 private key in PKCS#8 PEM; make one with: openssl genpkey \
         -algorithm EC -pkeyopt ec_paramgen_curve:P-256"
    )]
    Key,
    /// The name is not an image's.
    #[error("image name: {0}")]
    Name(String),
    /// What is at the registry already is not understood, so nothing is added to it.
    #[error("the signatures that are there already cannot be added to: {0}")]
    Previous(String),
    /// The system has no random numbers.
    #[error("no random numbers to sign with")]
    Random,
}

/// Private key of a signer: ECDSA P-256.
pub struct SigningKey {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

impl SigningKey {
    /// From PKCS#8 in PEM (`-----BEGIN PRIVATE KEY-----`), not encrypted.
    ///
    /// # Errors
    /// [`SignError::Key`] for anything else.
    pub fn from_pkcs8_pem(pem: &[u8]) -> Result<Self, SignError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| SignError::Key)?;
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, der.secret_pkcs8_der(), &random)
            .map_err(|_| SignError::Key)?;
        Ok(Self { pair, random })
    }

    /// The public key in PEM, as policies take it.
    #[must_use]
    pub fn public_key_pem(&self) -> String {
        let text = STANDARD.encode(self.spki());
        let lines: Vec<&str> = [text.get(..64), text.get(64..)].into_iter().flatten().collect();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))
    }

    fn spki(&self) -> Vec<u8> {
        [P256_SPKI.as_slice(), self.pair.public_key().as_ref()].concat()
    }

    fn sign(&self, content: &Content) -> Result<String, SignError> {
        let signature = self.pair.sign(&self.random, &content.signed_bytes());
        signature.map(|one| STANDARD.encode(one.as_ref())).map_err(|_| SignError::Random)
    }
}

/// The image that is signed.
#[derive(Clone, Debug)]
pub struct Target<'a> {
    /// What the signature is for: `host/path` or `host/path:tag`. Policies compare it with what the
    /// pod asks for; a name with a tag is needed where they demand an exact match.
    pub name: &'a str,
    /// Media type of the manifest or index.
    pub media_type: &'a str,
    /// Digest of the manifest or index.
    pub digest: Digest,
    /// Size of the manifest or index, in bytes.
    pub size: u64,
}

impl Target<'_> {
    fn normalised(&self) -> Result<String, SignError> {
        Ok(Reference::parse(self.name).map_err(SignError::Name)?.to_string())
    }
}

/// A signature to be pushed: first the blobs, then the manifest.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// Contents; each goes under its SHA-256.
    pub blobs: Vec<Vec<u8>>,
    /// Manifest that refers to them.
    pub manifest: Vec<u8>,
    /// Its media type.
    pub media_type: &'static str,
    /// Under which tag or digest to put it.
    pub reference: String,
}

/// Signs as cosign did up to version 2: a manifest under the tag `sha256-<hex>.sig`. `previous` is
/// the manifest that is there already, whose signatures stay.
///
/// # Errors
/// [`SignError`].
pub fn cosign(
    key: &SigningKey,
    target: &Target<'_>,
    previous: Option<&[u8]>,
) -> Result<Attachment, SignError> {
    let payload = json!({
        "critical": {
            "identity": {"docker-reference": target.normalised()?},
            "image": {"docker-manifest-digest": target.digest.to_string()},
            "type": COSIGN_TYPE,
        },
        "optional": {},
    });
    let payload = payload.to_string().into_bytes();
    let content = Content::SimpleSigning(payload.clone());
    let mut layer = descriptor(PAYLOAD_TYPE, &payload);
    layer["annotations"] = json!({cosign::SIGNATURE: key.sign(&content)?});
    let mut layers = match previous {
        Some(manifest) => members(manifest, "layers")?,
        None => Vec::new(),
    };
    layers.push(layer);
    if layers.len() > SIGNATURES_LIMIT {
        return Err(SignError::Previous(format!("there are {SIGNATURES_LIMIT} already")));
    }
    let config = json!({
        "architecture": "",
        "os": "",
        "config": {},
        "rootfs": {
            "type": "layers",
            "diff_ids": layers.iter().map(|layer| layer["digest"].clone()).collect::<Vec<_>>(),
        },
    });
    let config = config.to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": descriptor(CONFIG_TYPE, &config),
        "layers": layers,
    });
    Ok(Attachment {
        blobs: vec![payload, config],
        manifest: manifest.to_string().into_bytes(),
        media_type: MANIFEST_TYPE,
        reference: format!("{}.sig", tag_of(&target.digest)),
    })
}

/// Signs as cosign does from version 3: a sigstore bundle that refers to the image. Unlike cosign's,
/// its statement names the image, so that policies can demand the name.
///
/// # Errors
/// [`SignError`].
pub fn bundle(key: &SigningKey, target: &Target<'_>) -> Result<Attachment, SignError> {
    let algorithm = target.digest.algorithm().name();
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{
            "name": target.normalised()?,
            "digest": BTreeMap::from([(algorithm, target.digest.hex())]),
        }],
        "predicateType": SIGN_PREDICATE,
        "predicate": {},
    });
    let payload = statement.to_string().into_bytes();
    let text = STANDARD.encode(&payload);
    let content = Content::Statement { payload_type: IN_TOTO.to_owned(), payload };
    let hint = Digest::of(Algorithm::Sha256, &key.spki());
    let hint = STANDARD.encode(hex::decode(hint.hex()).unwrap_or_default());
    let bundle = json!({
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": text,
            "payloadType": IN_TOTO,
            "signatures": [{"sig": key.sign(&content)?}],
        },
    });
    let bundle = bundle.to_string().into_bytes();
    let empty = b"{}".to_vec();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": BUNDLE_TYPE,
        "config": descriptor(EMPTY_TYPE, &empty),
        "layers": [descriptor(BUNDLE_TYPE, &bundle)],
        "subject": {
            "mediaType": target.media_type,
            "digest": target.digest.to_string(),
            "size": target.size,
        },
        "annotations": annotations(),
    });
    let manifest = manifest.to_string().into_bytes();
    Ok(Attachment {
        blobs: vec![bundle, empty],
        reference: Digest::of(Algorithm::Sha256, &manifest).to_string(),
        manifest,
        media_type: MANIFEST_TYPE,
    })
}

/// The index that stands in for the referrers API, with `bundle` added to what `previous` lists (OCI
/// distribution-spec 1.1, "Referrers Tag Schema").
///
/// # Errors
/// [`SignError::Previous`].
pub fn referrers_index(
    target: &Target<'_>,
    bundle: &Attachment,
    previous: Option<&[u8]>,
) -> Result<Attachment, SignError> {
    let mut manifests = match previous {
        Some(index) => members(index, "manifests")?,
        None => Vec::new(),
    };
    let mut entry = descriptor(bundle.media_type, &bundle.manifest);
    entry["artifactType"] = json!(BUNDLE_TYPE);
    entry["annotations"] = annotations();
    if !manifests.iter().any(|one| one["digest"] == entry["digest"]) {
        manifests.push(entry);
    }
    let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests});
    Ok(Attachment {
        blobs: Vec::new(),
        manifest: index.to_string().into_bytes(),
        media_type: INDEX_TYPE,
        reference: tag_of(&target.digest),
    })
}

fn annotations() -> Value {
    json!({
        "dev.sigstore.bundle.content": "dsse-envelope",
        "dev.sigstore.bundle.predicateType": SIGN_PREDICATE,
    })
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({
        "mediaType": media_type,
        "digest": Digest::of(Algorithm::Sha256, content).to_string(),
        "size": content.len(),
    })
}

fn members(document: &[u8], name: &str) -> Result<Vec<Value>, SignError> {
    let mut document = json::value(document, MANIFEST_LIMIT).map_err(SignError::Previous)?;
    match document[name].take() {
        Value::Array(members) => Ok(members),
        _ => Err(SignError::Previous(format!("the document has no {name}"))),
    }
}
