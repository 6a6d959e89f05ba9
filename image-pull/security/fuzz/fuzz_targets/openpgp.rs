//! Any bytes as an OpenPGP keyring and a message: no panic, no admission. The first two bytes say how
//! long the keyring is.
#![no_main]

#[path = "answers.rs"]
mod answers;

use answers::{Answers, refused};
use libfuzzer_sys::fuzz_target;
use nacre_image_security::ImagePolicy;

const POLICY: &str = r#"
    [[image]]
    match = "**"
    lookaside = "https://store.example"
    require = [{ gpg-key = "kbs:///a/b/c" }]
"#;

fuzz_target!(|bytes: &[u8]| {
    let [high, low, rest @ ..] = bytes else { return };
    let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
    let (keyring, message) = rest.split_at(length);
    let policy = ImagePolicy::parse(POLICY.as_bytes()).expect("the policy above");
    let lookaside = Some(message);
    // The fuzzer may know a key, but not one that signed this image: a name is demanded, too.
    refused(&policy, &Answers { lookaside, resource: keyring, ..Answers::default() });
});
