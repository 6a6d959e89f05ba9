//! Keyless signatures that sigstore's JavaScript client made against mocked services; see
//! tests/vectors/README.md.

#![allow(clippy::unwrap_used)]

mod support;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nacre_image_security::{ImagePolicy, Subject};
use nacre_trust::{Algorithm, Digest};
use serde_json::{Value, json};
use support::Fake;

const ROOT: &str = "kbs:///default/keys/sigstore";
const ISSUER: &str = "https://issuer.example";
const IDENTITY: &str = "https://git.example/team/app/.ci/release.yml@refs/tags/v1";

fn vector(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/vectors/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn bundle(name: &str) -> Value {
    serde_json::from_slice(&vector(name)).unwrap()
}

fn policy(issuer: &str, identity: &str) -> ImagePolicy {
    let text = format!(
        "[[image]]\nmatch = \"r.example/**\"\nidentity = \"danger-any\"\nrequire = [{{ keyless = \
         {{ trust-root = \"{ROOT}\", issuer = \"{issuer}\", identity = \"{identity}\" }} }}]"
    );
    ImagePolicy::parse(text.as_bytes()).unwrap()
}

/// A repository with the image of the vectors, this bundle and this trust root.
fn repository(bundle: &Value, root: &[u8]) -> (Fake, Subject) {
    let mut fake = Fake::default();
    fake.resources.insert(ROOT.into(), root.to_vec());
    let subject = fake.image("r.example/team/app:v1", &vector("manifest.json"));
    let bundle = bundle.to_string().into_bytes();
    let digest = Digest::of(Algorithm::Sha256, &bundle);
    let media_type = "application/vnd.dev.sigstore.bundle.v0.3+json";
    let size = bundle.len();
    let manifest = json!({
        "schemaVersion": 2,
        "layers": [{"mediaType": media_type, "digest": digest.to_string(), "size": size}],
    });
    let manifest = manifest.to_string().into_bytes();
    let referrer = Digest::of(Algorithm::Sha256, &manifest).to_string();
    let index = json!({"manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": media_type,
        "digest": referrer,
        "size": manifest.len(),
    }]});
    fake.blobs.insert(digest, bundle);
    fake.manifests.insert(referrer, manifest);
    fake.referrers
        .get_or_insert_default()
        .insert(subject.manifests[0], index.to_string().into_bytes());
    (fake, subject)
}

async fn decide(policy: &ImagePolicy, bundle: &Value, root: &[u8]) -> Result<String, String> {
    let (fake, subject) = repository(bundle, root);
    match policy.admit(&subject, &fake).await {
        Ok(admitted) => Ok(admitted.reason().to_owned()),
        Err(refused) => Err(refused.to_string()),
    }
}

#[tokio::test]
async fn real_bundles_are_admitted() {
    let root = vector("trusted_root.json");
    for name in [
        "dsse.json",
        "intoto.json",
        "message.json",
        "rekor2.json",
        "timestamp-only.json",
        "chain.json",
    ] {
        let root =
            if name == "timestamp-only.json" { without(&root, "tlogs") } else { root.clone() };
        let reason = decide(&policy(ISSUER, IDENTITY), &bundle(name), &root).await;
        assert!(reason.as_ref().is_ok_and(|r| r.contains(IDENTITY)), "{name}: {reason:?}");
    }
    let pattern = policy(ISSUER, "https://git.example/team/*/.ci/release.yml@refs/tags/v*");
    decide(&pattern, &bundle("dsse.json"), &root).await.unwrap();
}

fn without(root: &[u8], list: &str) -> Vec<u8> {
    let mut root: Value = serde_json::from_slice(root).unwrap();
    root[list] = json!([]);
    root.to_string().into_bytes()
}

async fn refusal(policy: &ImagePolicy, bundle: &Value, root: &[u8]) -> String {
    let refused = decide(policy, bundle, root).await.unwrap_err();
    assert!(refused.len() <= 600, "{refused}");
    refused
}

#[tokio::test]
async fn other_signers_are_refused() {
    let (dsse, root) = (bundle("dsse.json"), vector("trusted_root.json"));
    for (issuer, identity, problem) in [
        ("https://other.example", IDENTITY, "made by an identity of https://issuer.example"),
        (ISSUER, "https://git.example/team/app", "made by https://git.example/team/app/.ci/rel"),
        (ISSUER, "https://git.example/*/.ci/release.yml@refs/tags/v1", "made by https://git"),
        (ISSUER, "*", "made by https://git"),
    ] {
        let refused = refusal(&policy(issuer, identity), &dsse, &root).await;
        assert!(refused.contains(problem), "{refused}");
    }
    // A key where a certificate is demanded.
    let mut keyed = dsse.clone();
    let material = keyed["verificationMaterial"].as_object_mut().unwrap();
    material.remove("certificate");
    material.insert("publicKey".into(), json!({"hint": "x"}));
    let refused = refusal(&policy(ISSUER, IDENTITY), &keyed, &root).await;
    assert!(refused.contains("made with a key, not with a certificate"), "{refused}");
}

/// Flips a bit in the middle of base64.
fn flip(value: &mut Value) {
    let mut bytes = STANDARD.decode(value.as_str().unwrap()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    *value = STANDARD.encode(bytes).into();
}

#[tokio::test]
async fn every_part_of_a_bundle_is_bound_to_the_others() {
    let root = vector("trusted_root.json");
    type Change = fn(&mut Value);
    let cases: [(&str, Change, &str); 13] = [
        (
            "promise",
            |b| flip(&mut at(b)["inclusionPromise"]["signedEntryTimestamp"]),
            "the promise is not the log's",
        ),
        ("time", |b| at(b)["integratedTime"] = "1".into(), "the promise is not the log's"),
        ("index", |b| at(b)["logIndex"] = "1".into(), "the promise is not the log's"),
        ("log", |b| flip(&mut at(b)["logId"]["keyId"]), "is of an unknown log"),
        ("body", |b| flip(&mut at(b)["canonicalizedBody"]), "is not in the log's tree"),
        ("root", |b| flip(&mut at(b)["inclusionProof"]["rootHash"]), "is not in the log's tree"),
        ("size", |b| at(b)["inclusionProof"]["treeSize"] = "2".into(), "not in the log's tree"),
        (
            "checkpoint",
            |b| {
                let note = &mut at(b)["inclusionProof"]["checkpoint"]["envelope"];
                *note = note.as_str().unwrap().replacen("example", "exampel", 1).into();
            },
            "the checkpoint is not the log's",
        ),
        (
            "neither promise nor proof",
            |b| {
                let entry = at(b).as_object_mut().unwrap();
                entry.remove("inclusionPromise");
                entry.remove("inclusionProof");
            },
            "neither a promise nor a proof",
        ),
        (
            "no entry",
            |b| b["verificationMaterial"]["tlogEntries"] = json!([]),
            "in no transparency",
        ),
        (
            "another's entry",
            |b| {
                b["verificationMaterial"]["tlogEntries"] =
                    other()["verificationMaterial"]["tlogEntries"].take();
            },
            "its log entry: is for",
        ),
        (
            "another's certificate",
            |b| {
                b["verificationMaterial"]["certificate"] =
                    other()["verificationMaterial"]["certificate"].take();
            },
            "the signature is not its certificate's",
        ),
        (
            "signature",
            |b| flip(&mut b["dsseEnvelope"]["signatures"][0]["sig"]),
            "not its certificate's",
        ),
    ];
    for (name, change, problem) in cases {
        let mut bundle = bundle("dsse.json");
        change(&mut bundle);
        let refused = refusal(&policy(ISSUER, IDENTITY), &bundle, &root).await;
        assert!(refused.contains(problem), "{name}: {refused}");
    }
}

fn at(bundle: &mut Value) -> &mut Value {
    &mut bundle["verificationMaterial"]["tlogEntries"][0]
}

fn other() -> Value {
    bundle("provenance.json")
}

#[tokio::test]
async fn logs_of_the_second_generation_tell_no_time() {
    let root = vector("trusted_root.json");
    let policy = policy(ISSUER, IDENTITY);
    let bundle = bundle("rekor2.json");
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 4] = [
        // Nobody signed this time.
        (
            |b| {
                let time =
                    other()["verificationMaterial"]["tlogEntries"][0]["integratedTime"].take();
                at(b)["integratedTime"] = time;
                b["verificationMaterial"]["timestampVerificationData"] = json!({});
            },
            "nobody who is trusted tells when it was made",
        ),
        (|b| flip(&mut at(b)["inclusionProof"]["hashes"][0]), "is not in the log's tree"),
        (|b| at(b)["inclusionProof"]["logIndex"] = "0".into(), "is not in the log's tree"),
        (|b| at(b)["inclusionProof"]["hashes"] = json!([]), "is not in the log's tree"),
    ];
    for (change, problem) in cases {
        let mut changed = bundle.clone();
        change(&mut changed);
        let refused = refusal(&policy, &changed, &root).await;
        assert!(refused.contains(problem), "{refused}");
    }
}

#[tokio::test]
async fn timestamps_are_of_this_signature_and_a_known_authority() {
    let root = vector("trusted_root.json");
    let policy = policy(ISSUER, IDENTITY);
    let stamped = bundle("timestamp-only.json");
    let alone = without(&root, "tlogs");
    decide(&policy, &stamped, &alone).await.unwrap();
    let token = |bundle: &Value| {
        bundle["verificationMaterial"]["timestampVerificationData"]["rfc3161Timestamps"][0].clone()
    };
    let with = |token: Value| {
        let mut bundle = stamped.clone();
        bundle["verificationMaterial"]["timestampVerificationData"]["rfc3161Timestamps"] =
            json!([token]);
        bundle
    };
    let refused = refusal(&policy, &with(token(&bundle("dsse.json"))), &alone).await;
    assert!(refused.contains("its timestamp is for another signature"), "{refused}");
    let mut flipped = token(&stamped);
    flip(&mut flipped["signedTimestamp"]);
    refusal(&policy, &with(flipped), &alone).await;
    let malformed = json!({"signedTimestamp": "AAAA"});
    let refused = refusal(&policy, &with(malformed), &alone).await;
    assert!(refused.contains("its timestamp is malformed"), "{refused}");
    // An authority that signs certificates does not thereby tell the time.
    let mut confused: Value = serde_json::from_slice(&alone).unwrap();
    confused["timestampAuthorities"] = confused["certificateAuthorities"].clone();
    let refused = refusal(&policy, &stamped, confused.to_string().as_bytes()).await;
    assert!(refused.contains("its timestamp is of no known authority"), "{refused}");
    // A log is demanded where the root has one.
    let refused = refusal(&policy, &stamped, &root).await;
    assert!(refused.contains("in no transparency log"), "{refused}");
}

#[tokio::test]
async fn what_the_trust_root_does_not_hold_is_not_trusted() {
    let policy = policy(ISSUER, IDENTITY);
    let dsse = bundle("dsse.json");
    let changed = |change: fn(&mut Value)| {
        let mut root: Value = serde_json::from_slice(&vector("trusted_root.json")).unwrap();
        change(&mut root);
        root.to_string().into_bytes()
    };
    for (root, problem) in [
        (
            changed(|r| r["certificateAuthorities"] = r["timestampAuthorities"].clone()),
            "its certificate: ",
        ),
        (
            changed(|r| {
                r["certificateAuthorities"][0]["validFor"] =
                    json!({"start": "2020-01-01T00:00:00Z", "end": "2021-01-01T00:00:00Z"});
            }),
            "its authority was not trusted then",
        ),
        (
            changed(|r| {
                r["tlogs"][0]["publicKey"]["validFor"]["end"] = "2021-01-01T00:00:00Z".into();
            }),
            "when the log was not trusted",
        ),
        (changed(|r| r["ctlogs"] = r["tlogs"].clone()), "no known log of certificates"),
        (changed(|r| r["tlogs"] = r["ctlogs"].clone()), "of an unknown log"),
        (changed(|r| r["certificateAuthorities"] = json!([])), "admits nobody"),
        (changed(|r| r["tlogs"][0]["publicKey"]["validFor"] = json!({})), "says not since when"),
        (changed(|r| r["mediaType"] = "x".into()), "not a trusted_root.json"),
        (b"{".to_vec(), "not a trusted_root.json"),
    ] {
        let refused = refusal(&policy, &dsse, &root).await;
        assert!(refused.contains(problem), "{problem}: {refused}");
    }
    // Certificate logs are demanded only where the root has some.
    decide(&policy, &dsse, &without(&vector("trusted_root.json"), "ctlogs")).await.unwrap();
}

#[tokio::test]
async fn other_statements_and_other_images_are_refused() {
    let root = vector("trusted_root.json");
    let refused = refusal(&policy(ISSUER, IDENTITY), &bundle("provenance.json"), &root).await;
    assert!(refused.contains("it attests \"https://slsa.dev/provenance/v1\""), "{refused}");
    for name in ["dsse.json", "message.json"] {
        let (mut fake, mut subject) = repository(&bundle(name), &root);
        let index = fake.referrers.get_or_insert_default().remove(&subject.manifests[0]).unwrap();
        subject = fake.image("r.example/team/app:v1", b"another manifest");
        fake.referrers.get_or_insert_default().insert(subject.manifests[0], index);
        let refused = policy(ISSUER, IDENTITY).admit(&subject, &fake).await.unwrap_err();
        let refused = refused.to_string();
        let known = ["the signature is for another image", "it signs something other than this"];
        assert!(known.iter().any(|problem| refused.contains(problem)), "{refused}");
    }
    // Signatures of cosign name no image: by default they do not admit.
    let text = format!(
        "[[image]]\nmatch = \"**\"\nrequire = [{{ keyless = {{ trust-root = \"{ROOT}\", \
         issuer = \"{ISSUER}\", identity = \"{IDENTITY}\" }} }}]"
    );
    let by_name = ImagePolicy::parse(text.as_bytes()).unwrap();
    let refused = refusal(&by_name, &bundle("dsse.json"), &root).await;
    assert!(refused.contains("the signature names no image"), "{refused}");
}

#[tokio::test]
async fn malformed_bundles_are_refused() {
    let root = vector("trusted_root.json");
    let policy = policy(ISSUER, IDENTITY);
    let text = bundle("dsse.json").to_string();
    let twice = text.replacen("\"dsseEnvelope\":", "\"dsseEnvelope\":{},\"dsseEnvelope\":", 1);
    assert_ne!(twice, text);
    let oversize = format!("{text}{}", " ".repeat(1024 * 1024));
    let (fake, subject) = repository(&bundle("dsse.json"), &root);
    for (text, problem) in [(twice, "occurs twice"), (oversize, "larger than")] {
        let mut fake = Fake { manifests: fake.manifests.clone(), ..Fake::default() };
        fake.resources.insert(ROOT.into(), root.clone());
        let blob = text.into_bytes();
        let digest = Digest::of(Algorithm::Sha256, &blob);
        let layers = json!({"layers": [{
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "digest": digest.to_string(),
            // The size is the registry's word.
            "size": 10,
        }]});
        fake.blobs.insert(digest, blob);
        let tag = format!("sha256-{}.sig", subject.manifests[0].hex());
        fake.manifests.insert(tag, layers.to_string().into_bytes());
        let refused = policy.admit(&subject, &fake).await.unwrap_err().to_string();
        assert!(refused.contains(problem), "{refused}");
    }
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 7] = [
        (|b| b["mediaType"] = "application/json".into(), "not a sigstore bundle"),
        (|b| b["messageSignature"] = other_message(), "not exactly one of a message"),
        (|b| b["verificationMaterial"]["publicKey"] = json!({}), "not exactly one of certificate"),
        (|b| b["dsseEnvelope"]["signatures"] = json!([]), "exactly one signature"),
        (|b| b["dsseEnvelope"]["payload"] = "%".into(), "is not base64"),
        (
            |b| {
                let entry = at(b).clone();
                b["verificationMaterial"]["tlogEntries"] = vec![entry; 17].into();
            },
            "too many",
        ),
        (
            |b| at(b)["inclusionProof"]["hashes"] = vec![Value::from("AAAA"); 65].into(),
            "more than 64 hashes",
        ),
    ];
    for (change, problem) in cases {
        let mut bundle = bundle("dsse.json");
        change(&mut bundle);
        let refused = refusal(&policy, &bundle, &root).await;
        assert!(refused.contains(problem), "{refused}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(300))]

    /// Any damage to a bundle, before a policy that admits it whole but for the image: no panic, no
    /// admission.
    #[test]
    fn damaged_bundles_admit_nothing(at in 0_usize..6000, byte: u8, name in 0_usize..3) {
        let name = ["dsse.json", "message.json", "rekor2.json"][name];
        let (mut fake, subject) = repository(&bundle(name), &vector("trusted_root.json"));
        for blob in fake.blobs.values_mut() {
            let at = at % blob.len();
            blob[at] = byte;
        }
        let other = fake.image("r.example/team/app:v1", b"another manifest");
        if let Some(list) = &mut fake.referrers {
            let index = list.remove(&subject.manifests[0]).unwrap();
            list.insert(other.manifests[0], index);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let refused = runtime.block_on(policy(ISSUER, IDENTITY).admit(&other, &fake)).unwrap_err();
        let text = refused.to_string();
        assert!(text.len() <= 600 && text.bytes().all(|b| (0x20..0x7f).contains(&b)), "{text}");
    }

    /// Any bytes as a policy: read or refused, never a panic.
    #[test]
    fn any_bytes_are_a_policy_or_none(bytes: Vec<u8>) {
        let _ = ImagePolicy::parse(&bytes);
        let _ = ImagePolicy::parse(&[b"{".as_slice(), &bytes].concat());
    }
}

fn other_message() -> Value {
    bundle("message.json")["messageSignature"].take()
}
