//! Keyless signatures that sigstore's JavaScript client made against mocked services; see
//! tests/vectors/README.md.

mod support;

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
        "[[image]]\nmatch = \"r.example/**\"\nidentity = \"any\"\nrequire = [{{ keyless = \
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
    for name in ["dsse.json", "intoto.json", "message.json", "timestamp-only.json", "chain.json"] {
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
