//! Recorded requests with any content, one after the other, under the rules of the guest: never a
//! panic, denials of bounded length, and no container but the one that the policy knows.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use nacre_policy::{Judge, LONGEST_DENIAL, Line, Policy};

const DOCUMENT: &str = include_str!("../document.rego");

static POLICY: LazyLock<Policy> = LazyLock::new(|| Policy::parse(DOCUMENT).expect("it is ours"));

fuzz_target!(|text: &str| {
    let mut judge = Judge::new(POLICY.clone());
    for line in text.lines().take(8) {
        let Ok(Line::Request { request, input, .. }) = serde_json::from_str(line) else { continue };
        match judge.judge_json(&request, &input) {
            Ok(ticket) => {
                if request == "CreateContainerRequest" {
                    let image = input["storages"][0]["source"].as_str().unwrap_or_default();
                    assert!(image == "pause" || image.contains("@sha256:"), "{image}");
                }
                judge.settle(ticket, true);
            }
            Err(denial) => assert!(denial.to_string().len() <= LONGEST_DENIAL),
        }
    }
});
