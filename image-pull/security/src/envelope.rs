//! A signature of the sigstore kind, whatever it was wrapped in: what was signed, and what goes along.

use std::borrow::Cow;

use nacre_trust::{Algorithm, Digest};
use serde::Deserialize;
use serde_json::Value;

use crate::json;
use crate::key::PublicKey;
use crate::miss::{Miss, Stage};
use crate::transparency::LogEntry;
use crate::{Subject, identity::Identity};

/// Largest signed statement, in bytes.
pub(crate) const PAYLOAD_LIMIT: usize = 256 * 1024;
/// `predicateType` by which cosign says "this image is signed", and nothing else about it.
pub(crate) const SIGN_PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";
/// Payload type of in-toto statements in an envelope.
pub(crate) const IN_TOTO: &str = "application/vnd.in-toto+json";
/// `critical.type` of cosign's payloads.
pub(crate) const COSIGN_TYPE: &str = "cosign container image signature";
/// `critical.type` of simple signing's payloads.
pub(crate) const ATOMIC_TYPE: &str = "atomic container signature";

/// A signature and its surroundings. Nothing of it is verified.
#[derive(Debug)]
pub(crate) struct Envelope {
    pub(crate) content: Content,
    pub(crate) signature: Vec<u8>,
    /// DER, the signer's first. Empty where a key signed.
    pub(crate) certificates: Vec<Vec<u8>>,
    pub(crate) entries: Vec<LogEntry>,
    /// Tokens of RFC 3161.
    pub(crate) timestamps: Vec<Vec<u8>>,
}

/// What was signed.
#[derive(Debug)]
pub(crate) enum Content {
    /// A simple signing payload, as it is.
    SimpleSigning(Vec<u8>),
    /// An in-toto statement in a DSSE envelope.
    Statement { payload_type: String, payload: Vec<u8> },
    /// The manifest's own bytes.
    Manifest(Vec<u8>),
}

impl Content {
    /// The bytes that the signature is over; for DSSE its pre-authentication encoding
    /// (dsse/protocol.md).
    pub(crate) fn signed_bytes(&self) -> Cow<'_, [u8]> {
        match self {
            Self::SimpleSigning(bytes) | Self::Manifest(bytes) => Cow::Borrowed(bytes),
            Self::Statement { payload_type, payload } => {
                let length = payload_type.len();
                let head = format!("DSSEv1 {length} {payload_type} {} ", payload.len());
                Cow::Owned([head.as_bytes(), payload].concat())
            }
        }
    }
}

impl Envelope {
    /// That `key` made this signature.
    pub(crate) fn verified_by(&self, key: &PublicKey) -> Option<Authentic<'_>> {
        key.verifies(&self.content.signed_bytes(), &self.signature)
            .then_some(Authentic(&self.content))
    }
}

/// Content whose signature was verified: only now is it read.
pub(crate) struct Authentic<'a>(&'a Content);

/// One image that a signature speaks about.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) digest: Digest,
    pub(crate) name: Option<String>,
}

impl Authentic<'_> {
    /// That the signer speaks about this image, under a name that is accepted.
    pub(crate) fn check(&self, subject: &Subject, identity: &Identity) -> Result<(), Miss> {
        let claims = match self.0 {
            Content::SimpleSigning(payload) => {
                vec![simple_signing(payload, &[COSIGN_TYPE, ATOMIC_TYPE, SIGN_PREDICATE])?]
            }
            Content::Statement { payload_type, payload } => statement(payload_type, payload)?,
            Content::Manifest(bytes) => [Algorithm::Sha256, Algorithm::Sha512]
                .map(|algorithm| Claim { digest: Digest::of(algorithm, bytes), name: None })
                .into(),
        };
        check_claims(&claims, subject, identity)
    }
}

pub(crate) fn check_claims(
    claims: &[Claim],
    subject: &Subject,
    identity: &Identity,
) -> Result<(), Miss> {
    let mut miss = Miss::new(Stage::Digest, "the signature is for another image");
    for claim in claims.iter().filter(|claim| subject.manifests.contains(&claim.digest)) {
        match identity.accepts(subject, claim.name.as_deref()) {
            Ok(()) => return Ok(()),
            Err(why) => miss = Miss::new(Stage::Name, &why),
        }
    }
    Err(miss)
}

/// Payload of simple signing (container-signature(5)); cosign writes the same with other types. What
/// is `critical` is known whole or the signature is refused.
pub(crate) fn simple_signing(payload: &[u8], types: &[&str]) -> Result<Claim, Miss> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Document {
        critical: Critical,
        #[serde(rename = "optional", default)]
        _optional: Value,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Critical {
        #[serde(rename = "type")]
        kind: String,
        image: Image,
        identity: Name,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Image {
        #[serde(rename = "docker-manifest-digest")]
        digest: String,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Name {
        #[serde(rename = "docker-reference")]
        reference: String,
    }
    let document: Document = json::document(payload, PAYLOAD_LIMIT)
        .map_err(|error| Miss::new(Stage::Form, &format!("its payload: {error}")))?;
    let critical = document.critical;
    if !types.contains(&critical.kind.as_str()) {
        return Err(Miss::new(Stage::Form, &format!("its payload is a {:?}", critical.kind)));
    }
    let digest = critical
        .image
        .digest
        .parse()
        .map_err(|error| Miss::new(Stage::Form, &format!("its payload: {error}")))?;
    let name = critical.identity.reference;
    Ok(Claim { digest, name: Some(name).filter(|name| !name.is_empty()) })
}

/// Subjects of an in-toto statement, if it is the one by which cosign signs. Another predicate (a
/// vulnerability report, say) is signed by the same people and does not say that an image may run.
fn statement(payload_type: &str, payload: &[u8]) -> Result<Vec<Claim>, Miss> {
    #[derive(Deserialize)]
    struct Statement {
        #[serde(rename = "_type")]
        kind: String,
        #[serde(rename = "predicateType")]
        predicate_type: String,
        subject: Vec<Resource>,
    }
    #[derive(Deserialize)]
    struct Resource {
        name: Option<String>,
        digest: std::collections::BTreeMap<String, String>,
    }
    if payload_type != IN_TOTO {
        return Err(Miss::new(Stage::Form, &format!("it signs a {payload_type:?}")));
    }
    let statement: Statement = json::document(payload, PAYLOAD_LIMIT)
        .map_err(|error| Miss::new(Stage::Form, &format!("its statement: {error}")))?;
    let versions = ["https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"];
    if !versions.contains(&statement.kind.as_str()) {
        return Err(Miss::new(Stage::Form, &format!("it signs a {:?}", statement.kind)));
    }
    if statement.predicate_type != SIGN_PREDICATE {
        let found = statement.predicate_type;
        return Err(Miss::new(Stage::Form, &format!("it attests {found:?}, not a signature")));
    }
    let mut claims = Vec::new();
    for Resource { name, digest } in statement.subject {
        let name = name.filter(|name| !name.is_empty());
        for (algorithm, value) in digest {
            // Other algorithms cannot be compared and so admit nothing.
            if let Ok(digest) = format!("{algorithm}:{value}").parse() {
                claims.push(Claim { digest, name: name.clone() });
            }
        }
    }
    Ok(claims)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn payload(kind: &str, extra: &str) -> String {
        format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"r.example/a"}},"image":{{"docker-manifest-digest":"sha256:{HEX}"}},"type":"{kind}"{extra}}},"optional":null}}"#
        )
    }

    #[test]
    fn what_is_critical_is_known_whole() {
        let claim = simple_signing(payload(COSIGN_TYPE, "").as_bytes(), &[COSIGN_TYPE]).unwrap();
        assert_eq!(claim.name.as_deref(), Some("r.example/a"));
        for bad in [
            payload(ATOMIC_TYPE, ""),
            payload(COSIGN_TYPE, r#","more":1"#),
            payload(COSIGN_TYPE, r#","type":"x""#),
            payload(COSIGN_TYPE, "").replace("sha256:", "md5:"),
            payload(COSIGN_TYPE, "").replace("\"optional\":null", "\"optional\":{\"a\":1,\"a\":2}"),
            "{}".into(),
        ] {
            assert!(simple_signing(bad.as_bytes(), &[COSIGN_TYPE]).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_the_statement_of_a_signature_counts() {
        let good = format!(
            r#"{{"_type":"https://in-toto.io/Statement/v1","predicateType":"{SIGN_PREDICATE}","predicate":{{}},"subject":[{{"digest":{{"sha256":"{HEX}","gitCommit":"x"}}}}]}}"#
        );
        let claims = statement(IN_TOTO, good.as_bytes()).unwrap();
        let digest = format!("sha256:{HEX}").parse().unwrap();
        assert_eq!(claims, [Claim { digest, name: None }]);
        for (kind, bad) in [
            ("text/plain", good.clone()),
            (IN_TOTO, good.replace(SIGN_PREDICATE, "https://slsa.dev/provenance/v1")),
            (IN_TOTO, good.replace("Statement/v1", "Statement/v9")),
            (IN_TOTO, good.replace("\"predicate\":{}", "\"subject\":[]")),
        ] {
            assert!(statement(kind, bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn dsse_signs_its_type_and_length() {
        let content = Content::Statement {
            payload_type: "http://example.com/HelloWorld".into(),
            payload: b"hello world".to_vec(),
        };
        let expected: &[u8] = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world";
        assert_eq!(content.signed_bytes(), expected);
    }
}
