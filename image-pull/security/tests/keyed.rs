//! Images signed with keys by this crate's own signer: what is admitted, and what is not.

#![allow(clippy::unwrap_used)]

mod support;

use nacre_image_security::sign::{self, SigningKey, Target};
use nacre_image_security::{ImagePolicy, Subject};
use support::Fake;

const IMAGE: &str = "r.example/team/app:v1";

fn key() -> SigningKey {
    SigningKey::from_pkcs8_pem(rcgen::KeyPair::generate().unwrap().serialize_pem().as_bytes())
        .unwrap()
}

fn target<'a>(subject: &Subject, name: &'a str) -> Target<'a> {
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    Target { name, media_type, digest: subject.manifests[0], size: 10 }
}

fn policy(identity: &str) -> ImagePolicy {
    let text = format!(
        "[[image]]\nmatch = \"r.example/team/**\"\nidentity = \"{identity}\"\n\
         require = [{{ cosign-key = \"kbs:///default/keys/team\" }}]"
    );
    ImagePolicy::parse(text.as_bytes()).unwrap()
}

fn with_key(key: &SigningKey) -> Fake {
    let mut fake = Fake::default();
    fake.resources.insert("kbs:///default/keys/team".into(), key.public_key_pem().into_bytes());
    fake
}

/// Every way in which this crate's signer can attach a signature.
fn attach(fake: &mut Fake, key: &SigningKey, target: &Target<'_>, way: &str) {
    match way {
        "tag" => fake.push(&sign::cosign(key, target, None).unwrap()),
        "referrers tag" => {
            let bundle = sign::bundle(key, target).unwrap();
            fake.push(&bundle);
            fake.push(&sign::referrers_index(target, &bundle, None).unwrap());
        }
        "referrers" => {
            let bundle = sign::bundle(key, target).unwrap();
            fake.push(&bundle);
            let index = sign::referrers_index(target, &bundle, None).unwrap().manifest;
            fake.referrers.get_or_insert_default().insert(target.digest, index);
        }
        other => panic!("{other}"),
    }
}

const WAYS: [&str; 3] = ["tag", "referrers tag", "referrers"];

#[tokio::test]
async fn a_signed_image_is_admitted_by_name_and_digest() {
    for way in WAYS {
        let key = key();
        let mut fake = with_key(&key);
        let subject = fake.image(IMAGE, b"manifest");
        attach(&mut fake, &key, &target(&subject, IMAGE), way);
        let admitted = policy("exact").admit(&subject, &fake).await.unwrap();
        assert_eq!(admitted.manifest(), &subject.manifests[0]);
        assert!(admitted.covers(&subject.manifests[0]));
        assert!(admitted.reason().contains("signed by key"), "{}", admitted.reason());
        let pinned = Subject { digest: Some(subject.manifests[0]), tag: None, ..subject.clone() };
        policy("exact").admit(&pinned, &fake).await.unwrap();
        let other = Subject { tag: Some("v2".into()), ..subject.clone() };
        policy("repository").admit(&other, &fake).await.unwrap();
        let refused = policy("exact").admit(&other, &fake).await.unwrap_err().to_string();
        assert!(refused.contains("the signature is for r.example/team/app:v1"), "{refused}");
    }
}

#[tokio::test]
async fn a_registry_that_fails_instead_of_404_is_asked_by_tag() {
    let key = key();
    let mut fake = with_key(&key);
    let subject = fake.image(IMAGE, b"manifest");
    fake.no_referrers = Some("400 Bad Request".into());
    let text = refused(&policy("exact"), &subject, &fake).await;
    assert!(text.contains("400 Bad Request"), "{text}");
    attach(&mut fake, &key, &target(&subject, IMAGE), "referrers tag");
    policy("exact").admit(&subject, &fake).await.unwrap();
}

#[tokio::test]
async fn a_signature_over_the_index_admits_the_platforms_manifest() {
    for way in WAYS {
        let key = key();
        let mut fake = with_key(&key);
        let index = fake.image(IMAGE, b"index");
        let manifest = fake.image(IMAGE, b"manifest");
        attach(&mut fake, &key, &target(&index, IMAGE), way);
        let manifests = vec![index.manifests[0], manifest.manifests[0]];
        let subject = Subject { manifests, ..index.clone() };
        let admitted = policy("repository").admit(&subject, &fake).await.unwrap();
        assert_eq!(admitted.manifest(), &manifest.manifests[0]);
        policy("repository").admit(&manifest, &fake).await.unwrap_err();
    }
}

async fn refused(policy: &ImagePolicy, subject: &Subject, fake: &Fake) -> String {
    let text = policy.admit(subject, fake).await.unwrap_err().to_string();
    assert!(text.len() <= 600 && text.bytes().all(|b| (0x20..0x7f).contains(&b)), "{text}");
    text
}

#[tokio::test]
async fn strangers_are_refused() {
    for way in WAYS {
        let team = key();
        let mut fake = with_key(&team);
        let subject = fake.image(IMAGE, b"manifest");
        let text = refused(&policy("repository"), &subject, &fake).await;
        assert!(text.contains("0 signatures, none by key"), "{text}");
        attach(&mut fake, &key(), &target(&subject, IMAGE), way);
        let text = refused(&policy("danger-any"), &subject, &fake).await;
        assert!(text.contains("1 signature, none by key"), "{text}");
        assert!(text.contains("made by somebody else"), "{text}");
        assert!(text.contains("image r.example/team/app:v1 refused by the rule for"), "{text}");
    }
}

#[tokio::test]
async fn a_signature_cannot_be_moved_to_another_image() {
    let team = key();
    let mut fake = with_key(&team);
    let genuine = fake.image(IMAGE, b"manifest");
    let evil = fake.image(IMAGE, b"another manifest");
    let classic = sign::cosign(&team, &target(&genuine, IMAGE), None).unwrap();
    let bundle = sign::bundle(&team, &target(&genuine, IMAGE)).unwrap();
    let moved_to = target(&evil, IMAGE);
    let mut moved = sign::referrers_index(&moved_to, &bundle, None).unwrap();
    fake.push(&bundle);
    fake.push(&moved);
    let text = refused(&policy("danger-any"), &evil, &fake).await;
    assert!(text.contains("the signature is for another image"), "{text}");
    fake.push(&classic);
    moved.manifest = classic.manifest.clone();
    moved.reference.push_str(".sig");
    fake.push(&moved);
    let text = refused(&policy("danger-any"), &evil, &fake).await;
    assert!(text.contains("2 signatures"), "{text}");
    assert!(text.contains("the signature is for another image"), "{text}");
}

#[tokio::test]
async fn an_image_cannot_be_moved_to_another_name() {
    for way in WAYS {
        let team = key();
        let mut fake = with_key(&team);
        let subject = fake.image(IMAGE, b"manifest");
        attach(&mut fake, &team, &target(&subject, IMAGE), way);
        let elsewhere = Subject { path: "team/payments".into(), ..subject };
        let text = refused(&policy("repository"), &elsewhere, &fake).await;
        assert!(text.contains("the signature is for r.example/team/app:v1"), "{text}");
        policy("danger-any").admit(&elsewhere, &fake).await.unwrap();
    }
}

#[tokio::test]
async fn all_clauses_have_to_be_met_and_one_of_any() {
    let (team, reviewer) = (key(), key());
    let mut fake = with_key(&team);
    let uri = "kbs:///default/keys/reviewer";
    fake.resources.insert(uri.into(), reviewer.public_key_pem().into_bytes());
    let subject = fake.image(IMAGE, b"manifest");
    let policy = |middle: &str| {
        let text = format!(
            "[[image]]\nmatch = \"r.example/team/app\"\nrequire = [\n\
             {{ cosign-key = \"kbs:///default/keys/team\" }},\n{middle}\n]"
        );
        ImagePolicy::parse(text.as_bytes()).unwrap()
    };
    let both = policy(&format!("{{ cosign-key = \"{uri}\" }}"));
    let digest = &subject.manifests[0];
    let either = policy(&format!(
        "{{ any = [{{ cosign-key = \"{uri}\" }}, {{ digests = [\"{digest}\"] }}] }}"
    ));
    let first = sign::cosign(&team, &target(&subject, IMAGE), None).unwrap();
    fake.push(&first);
    refused(&both, &subject, &fake).await;
    either.admit(&subject, &fake).await.unwrap();
    let second = sign::cosign(&reviewer, &target(&subject, IMAGE), Some(&first.manifest)).unwrap();
    fake.push(&second);
    let admitted = both.admit(&subject, &fake).await.unwrap();
    assert_eq!(admitted.reason().matches("signed by key").count(), 2, "{}", admitted.reason());
}

#[tokio::test]
async fn a_key_that_the_broker_does_not_hold_refuses() {
    let team = key();
    let mut fake = with_key(&team);
    let subject = fake.image(IMAGE, b"manifest");
    attach(&mut fake, &team, &target(&subject, IMAGE), "tag");
    fake.resources.clear();
    let text = refused(&policy("repository"), &subject, &fake).await;
    assert!(text.contains("kbs:///default/keys/team: not found"), "{text}");
    fake.resources.insert("kbs:///default/keys/team".into(), b"no key".to_vec());
    let text = refused(&policy("repository"), &subject, &fake).await;
    assert!(text.contains("kbs:///default/keys/team: not a public key"), "{text}");
}

#[tokio::test]
async fn what_needs_no_signature_makes_no_request() {
    let mut fake = Fake::default();
    let subject = fake.image(IMAGE, b"manifest");
    let pinned = Subject { digest: Some(subject.manifests[0]), ..subject.clone() };
    let accept = |word: &str| {
        let text = format!("[[image]]\nmatch = \"r.example/**\"\naccept = \"{word}\"");
        ImagePolicy::parse(text.as_bytes()).unwrap()
    };
    accept("danger-any").admit(&subject, &fake).await.unwrap();
    accept("pinned").admit(&pinned, &fake).await.unwrap();
    let text = refused(&accept("pinned"), &subject, &fake).await;
    assert!(text.contains("write it as name@sha256:digest"), "{text}");
    let other = Subject { host: "other.example".into(), ..subject.clone() };
    let text = refused(&accept("danger-any"), &other, &fake).await;
    assert!(text.contains("refused by the policy's default: it rejects"), "{text}");
    ImagePolicy::accept_any().admit(&subject, &fake).await.unwrap();
    // Not what the reference says.
    let wrong = Subject {
        manifests: other.manifests,
        digest: Some(fake.image("r/x", b"x").manifests[0]),
        ..subject
    };
    refused(&accept("danger-any"), &wrong, &fake).await;
    let nothing = Subject { manifests: vec![], digest: None, ..wrong };
    refused(&accept("danger-any"), &nothing, &fake).await;
    assert!(fake.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn hostile_registries_cost_a_bounded_number_of_requests() {
    let team = key();
    let mut fake = with_key(&team);
    let subject = fake.image(IMAGE, b"manifest");
    let stranger = key();
    let mut all = sign::cosign(&stranger, &target(&subject, IMAGE), None).unwrap();
    fake.push(&all);
    let mut manifest: serde_json::Value = serde_json::from_slice(&all.manifest).unwrap();
    let layer = manifest["layers"][0].clone();
    manifest["layers"] = vec![layer; 5000].into();
    all.manifest = manifest.to_string().into_bytes();
    fake.push(&all);
    let text = refused(&policy("danger-any"), &subject, &fake).await;
    assert!(text.contains("64 signatures"), "{text}");
    assert!(fake.requests.lock().unwrap().len() < 80);
    // Referrers without end.
    let bundle = sign::bundle(&stranger, &target(&subject, IMAGE)).unwrap();
    let index = sign::referrers_index(&target(&subject, IMAGE), &bundle, None).unwrap();
    let mut index: serde_json::Value = serde_json::from_slice(&index.manifest).unwrap();
    let entry = index["manifests"][0].clone();
    index["manifests"] = vec![entry; 5000].into();
    let mut fake = with_key(&team);
    fake.push(&bundle);
    let index = index.to_string().into_bytes();
    fake.referrers.get_or_insert_default().insert(subject.manifests[0], index);
    refused(&policy("danger-any"), &subject, &fake).await;
    assert!(fake.requests.lock().unwrap().len() < 160);
}

#[tokio::test]
async fn broken_and_hostile_attachments_are_told() {
    let team = key();
    let tag = |subject: &Subject| format!("sha256-{}.sig", subject.manifests[0].hex());
    for (manifest, problem) in [
        ("{".to_owned(), "a manifest of signatures"),
        ("{\"layers\":[],\"layers\":[]}".into(), "occurs twice"),
        (
            r#"{"layers":[{"mediaType":"application/vnd.dev.cosign.simplesigning.v1+json","digest":"../x","size":1}]}"#
                .into(),
            "a signature's layer",
        ),
        (
            format!(
                r#"{{"layers":[{{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","digest":"sha256:{}","size":99999999}}]}}"#,
                "0".repeat(64)
            ),
            "larger than",
        ),
        (
            format!(
                r#"{{"layers":[{{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","digest":"sha256:{}","size":9}}]}}"#,
                "0".repeat(64)
            ),
            "404",
        ),
        ("\u{1b}[2J\u{202e}".repeat(200), "a manifest of signatures"),
    ] {
        let mut fake = with_key(&team);
        let subject = fake.image(IMAGE, b"manifest");
        fake.manifests.insert(tag(&subject), manifest.into_bytes());
        let text = refused(&policy("danger-any"), &subject, &fake).await;
        assert!(text.contains(problem), "{text}");
    }
}
