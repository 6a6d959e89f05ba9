//! Any text as a policy document: read or refused, never a panic; and what it reads judges.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_policy::{Judge, LONGEST_DENIAL, Policy};

fuzz_target!(|text: &str| {
    match Policy::parse(text) {
        Err(error) => assert!(error.to_string().len() < 2048),
        Ok(policy) => {
            let mut judge = Judge::new(policy);
            let input = serde_json::json!({ "container_id": "c", "OCI": null });
            match judge.judge_json("CreateContainerRequest", &input) {
                Ok(ticket) => judge.settle(ticket, false),
                Err(denial) => assert!(denial.to_string().len() <= LONGEST_DENIAL),
            }
        }
    }
});
