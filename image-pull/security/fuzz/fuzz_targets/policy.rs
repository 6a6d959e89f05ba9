//! Any bytes as a policy: read or refused, never a panic; and a decision by it ends.
#![no_main]

#[path = "answers.rs"]
mod answers;

use answers::{Answers, decide};
use libfuzzer_sys::fuzz_target;
use nacre_image_security::ImagePolicy;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(policy) = ImagePolicy::parse(bytes) {
        let _ = decide(&policy, &Answers::default());
    }
});
