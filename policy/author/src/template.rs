//! Documents for development in plain Rego: everything is allowed, or nothing.

use nacre_policy::REQUESTS;

/// Allows the host everything. Whoever rules the host rules the pod.
#[must_use]
pub fn danger_allow_all() -> String {
    let mut text = String::from(
        "# DANGER: this policy allows the host everything: other images, commands in containers, reading\n\
         # and writing their streams and files. It is for development only; a pod that runs under it is not\n\
         # confidential. `nacre policy generate` writes policies that protect a pod.\n\
         package agent_policy\n\n",
    );
    for request in REQUESTS {
        // A host that may replace the policy needs nothing else, but this one is open as it is.
        let allowed = *request != "SetPolicyRequest";
        text.push_str(&format!("default {request} := {allowed}\n"));
    }
    text
}

/// Denies every request. No pod starts under it; it is a place to begin from.
#[must_use]
pub fn deny_all() -> String {
    let mut text = String::from(
        "# DANGER: this policy denies every request, so no pod starts under it. It is for development: set to\n\
         # true what you want to try. Whatever is true is true for every container and every content.\n\
         package agent_policy\n\n",
    );
    for request in REQUESTS {
        text.push_str(&format!("default {request} := false\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use nacre_policy::{Judge, Policy};

    use super::*;

    #[test]
    fn the_engine_follows_them() {
        for (text, allowed) in [(danger_allow_all(), true), (deny_all(), false)] {
            let mut judge = Judge::new(Policy::parse(&text).unwrap());
            let input = serde_json::json!({"container_id": "c", "exec_id": "e", "process": null});
            assert_eq!(judge.judge_json("ExecProcessRequest", &input).is_ok(), allowed);
            assert!(
                judge.judge_json("SetPolicyRequest", &serde_json::json!({"policy": ""})).is_err()
            );
        }
    }
}
