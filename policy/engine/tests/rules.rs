//! The rules library.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use nacre_policy::Policy;

#[test]
fn the_rules_compile() {
    let document = r#"package agent_policy
policy_data := {"version": 1, "runtimes": ["containerd-1.6"], "pod": {"name": "a"}, "containers": {}}
"#;
    Policy::parse(document).unwrap();
}
