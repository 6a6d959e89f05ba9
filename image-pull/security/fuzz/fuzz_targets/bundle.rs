//! Any bytes as a sigstore bundle, before a trust root and a signer that the corpus really knows: no
//! panic, and never the image of the fuzzer.
#![no_main]

#[path = "answers.rs"]
mod answers;

use answers::{Answers, refused};
use libfuzzer_sys::fuzz_target;
use nacre_image_security::ImagePolicy;

const ROOT: &[u8] = include_bytes!("../../tests/vectors/trusted_root.json");
const POLICY: &str = r#"
    [[image]]
    match = "**"
    identity = "danger-any"
    require = [{ keyless = { trust-root = "kbs:///a/b/c", issuer = "https://issuer.example", identity = "**" } }]
"#;
const MANIFEST: &[u8] = br#"{"layers":[{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json",
    "digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":1}]}"#;

fuzz_target!(|bytes: &[u8]| {
    let policy = ImagePolicy::parse(POLICY.as_bytes()).expect("the policy above");
    let manifest = Some(MANIFEST);
    refused(&policy, &Answers { manifest, blob: bytes, resource: ROOT, ..Answers::default() });
});
