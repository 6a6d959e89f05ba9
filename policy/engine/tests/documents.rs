//! Documents that bring their own rules, as those for Kata Containers' agent do, and the gate.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use nacre_policy::{
    Gate, GuestApi, GuestApiRequest, ImageUserRequest, Judge, Policy, PolicyError, REQUESTS,
    SetPolicyError,
};
use nacre_protocol::agent::{
    CreateContainerRequest, ReadStreamRequest, SetPolicyRequest, StartContainerRequest,
};
use serde_json::{Value, json};

/// State in `/pstate` by patches, Rego of the old kind, `print`, `data` of its own.
const OLD_STYLE: &str = r#"
package agent_policy

import future.keywords.in
import future.keywords.every
import input

default CreateContainerRequest := false
default StartContainerRequest := true
default ReadStreamRequest := false

CreateContainerRequest := {"ops": ops, "allowed": true} {
    print("first container", input.container_id)
    not data.pstate.namespace
    every mount in input.OCI.Mounts { mount.type_ in policy_data.types }
    ops := [{"op": "add", "path": "/pstate/namespace", "value": input.OCI.Annotations.ns}]
}

CreateContainerRequest := {"ops": [], "allowed": true} {
    data.pstate.namespace == input.OCI.Annotations.ns
}

policy_data := {"types": ["bind", "proc"]}
"#;

fn create(id: &str, namespace: &str) -> Value {
    json!({
        "container_id": id,
        "OCI": { "Annotations": { "ns": namespace }, "Mounts": [{ "type_": "bind" }] },
    })
}

fn judge(document: &str) -> Judge {
    Judge::new(Policy::parse(document).unwrap())
}

#[test]
fn state_that_a_document_keeps_by_patches_is_kept() {
    let mut judge = judge(OLD_STYLE);
    let first = judge.judge_json("CreateContainerRequest", &create("a", "one")).unwrap();
    judge.settle(first, true);
    let second = judge.judge_json("CreateContainerRequest", &create("b", "one")).unwrap();
    judge.settle(second, true);
    assert!(judge.judge_json("CreateContainerRequest", &create("c", "two")).is_err());
    assert!(judge.judge_json("StartContainerRequest", &json!({ "container_id": "x" })).is_ok());
    assert!(judge.judge_json("ExecProcessRequest", &json!({})).is_err(), "no such rule");
}

#[test]
fn a_failed_request_leaves_no_state() {
    let mut judge = judge(OLD_STYLE);
    let first = judge.judge_json("CreateContainerRequest", &create("a", "one")).unwrap();
    assert!(judge.judge_json("CreateContainerRequest", &create("b", "two")).is_err(), "in effect");
    judge.settle(first, false);
    let again = judge.judge_json("CreateContainerRequest", &create("b", "two")).unwrap();
    judge.settle(again, true);
    assert!(judge.judge_json("CreateContainerRequest", &create("c", "one")).is_err());
}

#[test]
fn requests_that_overlap_keep_the_effects_of_those_that_succeed() {
    let document = r#"package agent_policy
default StartContainerRequest := false
StartContainerRequest := {"allowed": true, "ops": [{"op": "add", "path": path, "value": count(data.pstate)}]} if {
    path := concat("/", ["/pstate", input.container_id])
    not data.pstate[input.container_id]
}
default WaitProcessRequest := false
WaitProcessRequest if data.pstate[input.container_id] >= 0
"#;
    let mut judge = judge(document);
    let of = |id: &str| json!({ "container_id": id });
    let start = |judge: &mut Judge, id| judge.judge_json("StartContainerRequest", &of(id)).unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|id| start(&mut judge, id));
    judge.settle(b, false);
    judge.settle(c, true);
    judge.settle(a, true);
    for (id, there) in [("a", true), ("b", false), ("c", true)] {
        assert_eq!(judge.judge_json("WaitProcessRequest", &of(id)).is_ok(), there, "{id}");
    }
}

#[test]
fn a_document_cannot_reach_what_is_not_its_own() {
    for ops in [
        r#"[{"op": "replace", "path": "", "value": {}}]"#,
        r#"[{"op": "add", "path": "/nacre", "value": {}}]"#,
        r#"[{"op": "add", "path": "/nacre/policy", "value": {}}]"#,
        r#"[{"op": "add", "path": "/pstate/a/b/c", "value": 1}]"#,
        r#"[{"op": "boil", "path": "/pstate/a"}]"#,
        r#"[{"op": "copy", "from": "/nacre", "path": "/pstate/a"}]"#,
    ] {
        let document = format!(
            "package agent_policy\nStartContainerRequest := {{\"allowed\": true, \"ops\": {ops}}}\n"
        );
        let error = judge(&document).judge_json("StartContainerRequest", &json!({})).unwrap_err();
        assert!(error.to_string().contains("ops cannot be applied"), "{ops}: {error}");
    }
}

#[test]
fn only_an_explicit_yes_allows() {
    for value in ["false", "1", "\"true\"", "[true]", "{\"ops\": []}", "{\"allowed\": 1}", "null"] {
        let document = format!("package agent_policy\nStartContainerRequest := {value}\n");
        assert!(
            judge(&document).judge_json("StartContainerRequest", &json!({})).is_err(),
            "{value}"
        );
    }
}

#[test]
fn an_evaluation_that_fails_denies() {
    let conflict = "package agent_policy\nStartContainerRequest := true if input\n\
                    StartContainerRequest := false if input\n";
    let error = judge(conflict).judge_json("StartContainerRequest", &json!({})).unwrap_err();
    assert!(error.to_string().contains("StartContainerRequest failed"), "{error}");
}

#[test]
fn unusable_documents_are_refused_with_the_reason() {
    let refused = |text: &str| Policy::parse(text).unwrap_err();
    assert_eq!(refused(""), PolicyError::Size(0));
    assert!(matches!(refused(&" ".repeat(3 << 20)), PolicyError::Size(_)));
    assert!(matches!(refused("package agent_policy\nx := "), PolicyError::Syntax(_)));
    let deep = |n: usize| {
        format!("package agent_policy\n# {{{{[\nx := {}1{}", "{".repeat(n), "}".repeat(n))
    };
    assert_eq!(refused(&deep(40)), PolicyError::Depth(3), "which would take a day to read");
    Policy::parse(&deep(12)).unwrap();
    let quoted =
        format!("package agent_policy\nx := [\"{0}\\\"{0}\", `{0}`] # {0}\n", "{".repeat(40));
    Policy::parse(&quoted).unwrap();
    assert_eq!(refused("package other\nx := 1"), PolicyError::Package("other".into()));
    let versioned = |data: &str| refused(&format!("package agent_policy\npolicy_data := {data}\n"));
    let future = versioned(r#"{"version": 2}"#).to_string();
    assert!(future.contains("version 2") && future.contains("--standalone"), "{future}");
    let unknown =
        versioned(r#"{"version": 1, "runtimes": ["docker-1"], "pod": {}, "containers": {}}"#);
    assert!(unknown.to_string().contains("docker-1"), "{unknown}");
    assert!(matches!(versioned(r#"{"version": 1}"#), PolicyError::Runtimes(_)));
    let bare = versioned(r#"{"version": 1, "runtimes": ["containerd-1.6"]}"#);
    assert!(matches!(bare, PolicyError::Data(_)), "{bare}");
}

fn start(id: &str) -> StartContainerRequest {
    StartContainerRequest { container_id: id.into(), ..Default::default() }
}

#[test]
fn without_a_policy_nothing_is_allowed_and_none_can_be_set() {
    let gate = Gate::without_policy();
    let denied = gate.judge(start("a")).unwrap_err();
    assert!(denied.denial().to_string().contains("nacre policy generate"), "{}", denied.denial());
    assert_eq!(gate.set_policy("package agent_policy"), Err(SetPolicyError::NotConfigured));
}

#[test]
fn a_policy_is_set_once_where_that_is_permitted() {
    let gate = Gate::danger_awaiting_policy();
    assert!(gate.judge(start("a")).is_err());
    assert!(matches!(gate.set_policy("nonsense"), Err(SetPolicyError::Policy(_))));
    let document = "package agent_policy\ndefault StartContainerRequest := true\n\
                    default SetPolicyRequest := true\n";
    gate.set_policy(document).unwrap();
    assert_eq!(gate.set_policy(document), Err(SetPolicyError::Frozen), "whatever its rules say");
    assert!(gate.judge(start("a")).is_ok());
    assert!(gate.judge(SetPolicyRequest::new()).is_ok(), "the rule is asked, and without effect");
    let bound = Gate::bound_to(Policy::parse(document).unwrap());
    assert_eq!(bound.set_policy(document), Err(SetPolicyError::Frozen));
}

#[test]
fn a_proof_that_is_dropped_undoes_the_request() {
    let gate = Gate::bound_to(Policy::parse(OLD_STYLE).unwrap());
    let request = |id: &str, namespace: &str| {
        let mut request = CreateContainerRequest::new();
        request.container_id = id.into();
        let spec = request.OCI.mut_or_insert_default();
        spec.Annotations.insert("ns".into(), namespace.into());
        request
    };
    drop(gate.judge(request("a", "one")).unwrap());
    let second = gate.judge(request("b", "two")).unwrap();
    second.witness().settle(Ok::<_, String>(())).unwrap();
    drop(second);
    assert!(gate.judge(request("c", "one")).is_err());
}

#[test]
fn a_recording_holds_every_request_and_how_it_ended() {
    let gate = Gate::bound_to(Policy::parse(OLD_STYLE).unwrap());
    drop(gate.judge(start("before")));
    gate.danger_record();
    let done = gate.judge(start("a")).unwrap();
    done.witness().settle(Ok::<_, String>(())).unwrap();
    let failed = gate.judge(start("b")).unwrap();
    failed.witness().settle(Err::<(), _>("no such thing")).unwrap_err();
    drop(gate.judge(ReadStreamRequest::new()));
    let lines: Vec<Value> =
        gate.take_records().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let seen: Vec<_> = lines.iter().map(|line| line["outcome"].as_str().unwrap()).collect();
    assert_eq!(seen, ["ok", "failed", "denied"]);
    assert_eq!(lines[0]["input"], json!({ "container_id": "a" }));
    assert_eq!(gate.take_records(), "");
}

#[test]
fn documents_of_other_agents_give_containers_nothing_unless_they_say_so() {
    let asks = || GuestApiRequest {
        container_id: "a".into(),
        api: GuestApi::Resource("default/key/1".into()),
    };
    let old = Gate::bound_to(Policy::parse(OLD_STYLE).unwrap());
    let denied = old.judge(asks()).unwrap_err();
    assert!(denied.denial().to_string().contains("no rule"), "{}", denied.denial());
    let rule = "package agent_policy\nimport rego.v1\n\
                GuestApiRequest if { input.api == \"resource\"; input.resource == \"default/key/1\" }\n";
    let own = Gate::bound_to(Policy::parse(rule).unwrap());
    assert!(own.judge(asks()).is_ok());
    for api in [GuestApi::Resource("default/key/2".into()), GuestApi::Token, GuestApi::Info] {
        assert!(own.judge(GuestApiRequest { api, ..asks() }).is_err());
    }
    assert!(Gate::without_policy().judge(asks()).is_err());
    // Nor is an image's user looked up for those that do not know of that.
    let user = ImageUserRequest {
        container_id: "a".into(),
        name: "app".into(),
        uid: 1,
        gid: 1,
        groups: vec![1],
    };
    assert!(old.judge(user).is_err());
}

#[test]
fn the_names_of_all_requests_are_known() {
    assert_eq!(REQUESTS.len(), 47);
}
