//! Any bytes as everything that a registry answers about signatures: bounded work, no panic, no
//! admission.
#![no_main]

#[path = "answers.rs"]
mod answers;

use answers::{Answers, refused};
use libfuzzer_sys::fuzz_target;
use nacre_image_security::ImagePolicy;

const KEY: &[u8] = include_bytes!("../../tests/vectors/cosign.pub");
const POLICY: &str = r#"
    [[image]]
    match = "**"
    require = [{ cosign-key = "kbs:///a/b/c" }]
"#;

fuzz_target!(|bytes: &[u8]| {
    let policy = ImagePolicy::parse(POLICY.as_bytes()).expect("the policy above");
    let (manifest, referrers) = (Some(bytes), Some(bytes));
    let answers = Answers { manifest, referrers, blob: bytes, resource: KEY, lookaside: None };
    refused(&policy, &answers);
});
