//! Certificates and logs of an authority of our own, in cosign's annotations: what policies of
//! containers can demand, and times.

#![allow(clippy::unwrap_used)]

mod support;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nacre_image_security::sign::Attachment;
use nacre_image_security::{ImagePolicy, Subject};
use nacre_trust::{Algorithm, Digest};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType, date_time_ymd,
};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use serde_json::json;
use support::Fake;

const IMAGE: &str = "r.example/team/app:v1";
const ISSUER: &str = "https://issuer.example";
const EMAIL: &str = "ann@team.example";
/// Noon of the day on which certificates are valid: 2026-01-01.
const NOON: i64 = 1_767_268_800;

fn sign(key: &KeyPair, message: &[u8]) -> Vec<u8> {
    let random = SystemRandom::new();
    let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
    let key = EcdsaKeyPair::from_pkcs8(algorithm, &key.serialize_der(), &random).unwrap();
    key.sign(&random, message).unwrap().as_ref().to_vec()
}

fn sha256(bytes: &[u8]) -> String {
    Digest::of(Algorithm::Sha256, bytes).hex()
}

/// A certificate authority with an intermediate, and a log.
struct Sigstore {
    root: String,
    intermediate: String,
    issuer: Issuer<'static, KeyPair>,
    log: KeyPair,
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = date_time_ymd(2025, 1, 1);
    params.not_after = date_time_ymd(2035, 1, 1);
    params
}

impl Sigstore {
    fn new() -> Self {
        let root_key = KeyPair::generate().unwrap();
        let root = authority("root").self_signed(&root_key).unwrap().pem();
        let root_issuer = Issuer::new(authority("root"), root_key);
        let key = KeyPair::generate().unwrap();
        let params = authority("intermediate");
        let intermediate = params.signed_by(&key, &root_issuer).unwrap().pem();
        let issuer = Issuer::new(authority("intermediate"), key);
        Self { root, intermediate, issuer, log: KeyPair::generate().unwrap() }
    }

    /// A certificate of one day.
    fn certificate(&self, signer: &KeyPair, change: impl Fn(&mut CertificateParams)) -> String {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = vec![SanType::Rfc822Name(EMAIL.try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        let oid = [1, 3, 6, 1, 4, 1, 57264, 1, 1];
        params.custom_extensions =
            vec![CustomExtension::from_oid_content(&oid, ISSUER.as_bytes().to_vec())];
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2026, 1, 2);
        change(&mut params);
        params.signed_by(signer, &self.issuer).unwrap().pem()
    }

    /// What the log promises about an entry, as cosign keeps it.
    fn promise(&self, payload: &[u8], signature: &[u8], signer: &str, time: i64) -> String {
        let body = json!({
            "apiVersion": "0.0.1",
            "kind": "hashedrekord",
            "spec": {
                "data": {"hash": {"algorithm": "sha256", "value": sha256(payload)}},
                "signature": {
                    "content": STANDARD.encode(signature),
                    "publicKey": {"content": STANDARD.encode(signer)},
                },
            },
        });
        let body = STANDARD.encode(body.to_string());
        let id = sha256(&self.log.subject_public_key_info());
        let entry =
            format!(r#"{{"body":"{body}","integratedTime":{time},"logID":"{id}","logIndex":7}}"#);
        let promise = STANDARD.encode(sign(&self.log, entry.as_bytes()));
        format!(r#"{{"SignedEntryTimestamp":"{promise}","Payload":{entry}}}"#)
    }
}

fn payload(subject: &Subject) -> Vec<u8> {
    let digest = subject.manifests[0].to_string();
    json!({
        "critical": {
            "identity": {"docker-reference": IMAGE},
            "image": {"docker-manifest-digest": digest},
            "type": "cosign container image signature",
        },
        "optional": null,
    })
    .to_string()
    .into_bytes()
}

/// What goes into the annotations beside the signature.
#[derive(Default)]
struct Beside {
    certificate: Option<String>,
    chain: Option<String>,
    promise: Option<String>,
}

fn attach(fake: &mut Fake, subject: &Subject, signature: &[u8], beside: Beside) {
    let payload = payload(subject);
    let mut annotations = json!({"dev.cosignproject.cosign/signature": STANDARD.encode(signature)});
    for (name, value) in
        [("certificate", beside.certificate), ("chain", beside.chain), ("bundle", beside.promise)]
    {
        if let Some(value) = value {
            annotations[format!("dev.sigstore.cosign/{name}")] = value.into();
        }
    }
    let manifest = json!({"schemaVersion": 2, "layers": [{
        "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
        "digest": format!("sha256:{}", sha256(&payload)),
        "size": payload.len(),
        "annotations": annotations,
    }]});
    fake.push(&Attachment {
        blobs: vec![payload],
        manifest: manifest.to_string().into_bytes(),
        media_type: "application/vnd.oci.image.manifest.v1+json",
        reference: format!("sha256-{}.sig", subject.manifests[0].hex()),
    });
}

fn policy(sigstore: &Sigstore, issuer: &str, email: &str) -> ImagePolicy {
    let requirement = json!({
        "type": "sigstoreSigned",
        "fulcio": {
            "caData": STANDARD.encode(&sigstore.root),
            "oidcIssuer": issuer,
            "subjectEmail": email,
        },
        "rekorPublicKeyData": STANDARD.encode(sigstore.log.public_key_pem()),
    });
    let policy = json!({"default": [requirement]});
    ImagePolicy::parse(policy.to_string().as_bytes()).unwrap()
}

async fn decide(policy: &ImagePolicy, subject: &Subject, fake: &Fake) -> Result<String, String> {
    match policy.admit(subject, fake).await {
        Ok(admitted) => Ok(admitted.reason().to_owned()),
        Err(refused) => Err(refused.to_string()),
    }
}

/// The decision on an image that was signed at `time` with a certificate that `change` changed.
async fn signed(
    sigstore: &Sigstore,
    policy: &ImagePolicy,
    time: i64,
    change: impl Fn(&mut CertificateParams),
) -> Result<String, String> {
    let mut fake = Fake::default();
    let subject = fake.image(IMAGE, b"manifest");
    let key = KeyPair::generate().unwrap();
    let signature = sign(&key, &payload(&subject));
    let certificate = sigstore.certificate(&key, change);
    let promise = sigstore.promise(&payload(&subject), &signature, &certificate, time);
    let beside = Beside {
        certificate: Some(certificate),
        chain: Some(sigstore.intermediate.clone()),
        promise: Some(promise),
    };
    attach(&mut fake, &subject, &signature, beside);
    decide(policy, &subject, &fake).await
}

#[tokio::test]
async fn fulcio_and_rekor_of_policy_json() {
    let sigstore = Sigstore::new();
    let good = policy(&sigstore, ISSUER, EMAIL);
    let reason = signed(&sigstore, &good, NOON, |_| {}).await.unwrap();
    assert!(reason.contains(&format!("signed by {EMAIL}")), "{reason}");
    for (issuer, email) in [(ISSUER, "eve@team.example"), (ISSUER, "*"), ("https://x", EMAIL)] {
        let other = policy(&sigstore, issuer, email);
        let refused = signed(&sigstore, &other, NOON, |_| {}).await.unwrap_err();
        assert!(refused.contains("made by "), "{refused}");
    }
    let stranger = Sigstore::new();
    let refused = signed(&stranger, &good, NOON, |_| {}).await.unwrap_err();
    assert!(refused.contains("of an unknown log"), "{refused}");
    let with_our_log =
        Sigstore { log: KeyPair::try_from(sigstore.log.serialize_der()).unwrap(), ..stranger };
    let refused = signed(&with_our_log, &good, NOON, |_| {}).await.unwrap_err();
    assert!(refused.contains("its certificate: InvalidSignature"), "{refused}");
}

#[tokio::test]
async fn certificates_are_valid_when_the_log_says_it_was_signed() {
    let sigstore = Sigstore::new();
    let policy = policy(&sigstore, ISSUER, EMAIL);
    let day = 24 * 60 * 60;
    for (time, problem) in [
        (NOON + day, "CertExpired"),
        (NOON - day, "CertNotValidYet"),
        (NOON + 20 * 365 * day, "its certificate"),
        (-NOON, "before 1970"),
    ] {
        let refused = signed(&sigstore, &policy, time, |_| {}).await.unwrap_err();
        assert!(refused.contains(problem), "{refused}");
    }
}

#[tokio::test]
async fn certificates_are_for_signing_code_and_say_for_whom() {
    let sigstore = Sigstore::new();
    let policy = policy(&sigstore, ISSUER, EMAIL);
    type Change = fn(&mut CertificateParams);
    let cases: [(Change, &str); 6] = [
        (
            |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::TimeStamping],
            "is not for usage",
        ),
        (|p| p.extended_key_usages.clear(), "is not for usage"),
        (|p| p.custom_extensions.clear(), "names no issuer"),
        (|p| p.subject_alt_names.clear(), "names nobody"),
        (
            // The address as a URI is another name.
            |p| p.subject_alt_names = vec![SanType::URI(EMAIL.try_into().unwrap())],
            "made by ann@team.example",
        ),
        (
            |p| {
                let oid = [1, 3, 6, 1, 4, 1, 57264, 1, 8];
                let other = b"\x0c\x09https://x".to_vec();
                p.custom_extensions.push(CustomExtension::from_oid_content(&oid, other));
            },
            "names two issuers",
        ),
    ];
    for (change, problem) in cases {
        let refused = signed(&sigstore, &policy, NOON, change).await.unwrap_err();
        assert!(refused.contains(problem), "{problem}: {refused}");
    }
}

#[tokio::test]
async fn a_key_can_be_demanded_to_be_in_a_log() {
    let sigstore = Sigstore::new();
    let key = KeyPair::generate().unwrap();
    let mut fake = Fake::default();
    let subject = fake.image(IMAGE, b"manifest");
    let signature = sign(&key, &payload(&subject));
    let pem = key.public_key_pem();
    let json = |rekor: &str| {
        let requirement = json!({
            "type": "sigstoreSigned",
            "keyData": STANDARD.encode(&pem),
            "rekorPublicKeyDatas": [STANDARD.encode(rekor)],
        });
        ImagePolicy::parse(json!({"default": [requirement]}).to_string().as_bytes()).unwrap()
    };
    let text = format!(
        "[[image]]\nmatch = \"r.example/**\"\nrequire = [{{ cosign-key = '''{pem}''', \
         rekor-key = '''{}''' }}]",
        sigstore.log.public_key_pem()
    );
    let native = ImagePolicy::parse(text.as_bytes()).unwrap();
    let policies = [json(&sigstore.log.public_key_pem()), native];
    attach(&mut fake, &subject, &signature, Beside::default());
    for policy in &policies {
        let refused = decide(policy, &subject, &fake).await.unwrap_err();
        assert!(refused.contains("it is in no transparency log"), "{refused}");
    }
    let promise = Some(sigstore.promise(&payload(&subject), &signature, &pem, NOON));
    attach(&mut fake, &subject, &signature, Beside { promise, ..Beside::default() });
    for policy in &policies {
        decide(policy, &subject, &fake).await.unwrap();
    }
    let other = json(&KeyPair::generate().unwrap().public_key_pem());
    let refused = decide(&other, &subject, &fake).await.unwrap_err();
    assert!(refused.contains("of an unknown log"), "{refused}");
    // Promised about somebody else's key, or another signature of this one.
    for (signature_in_log, signer) in [
        (signature.clone(), KeyPair::generate().unwrap().public_key_pem()),
        (sign(&key, &payload(&subject)), pem.clone()),
    ] {
        let promise = sigstore.promise(&payload(&subject), &signature_in_log, &signer, NOON);
        let promise = Some(promise);
        attach(&mut fake, &subject, &signature, Beside { promise, ..Beside::default() });
        let refused = decide(&policies[0], &subject, &fake).await.unwrap_err();
        assert!(refused.contains("is for another signature or signer"), "{refused}");
    }
}
