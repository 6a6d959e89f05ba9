//! Disks of claims: a container gets those that its owner's manifest names, where it names them, and nothing
//! else of the request says what is on them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use nacre_policy::{Judge, Policy};
use serde_json::{Value, json};

const RECORDING: &str = include_str!("recorded/containerd-2.1.jsonl");
const PLACE: &str = "/run/kata-containers/sandbox/volumes/nacre-volume-1";

fn requests() -> Vec<(String, Value)> {
    let lines = RECORDING.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let requests = lines.filter(|line| line["request"].is_string());
    requests
        .map(|mut line| (line["request"].as_str().unwrap().into(), line["input"].take()))
        .collect()
}

fn annotation<'a>(input: &'a Value, name: &str) -> &'a str {
    input["OCI"]["Annotations"][format!("io.kubernetes.cri.{name}")].as_str().unwrap_or_default()
}

fn is_creation(name: &str, input: &Value) -> bool {
    name == "CreateContainerRequest" && annotation(input, "container-type") == "container"
}

/// The pod of the recording, whose first container has a claim at /data and one as /dev/xvda.
fn policy(first: &Value) -> Policy {
    let process = &first["OCI"]["Process"];
    let env: Vec<&Value> = process["Env"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| {
            let entry = entry.as_str().unwrap();
            !entry.starts_with("HOSTNAME=") && !entry.starts_with("KUBERNETES_")
        })
        .collect();
    let data = json!({
        "version": 1,
        "source": "pod.yaml",
        "runtimes": ["containerd-2"],
        "pod": {
            "name": annotation(first, "sandbox-name"),
            "namespace": annotation(first, "sandbox-namespace"),
        },
        "containers": { annotation(first, "container-name"): {
            "image": first["storages"][0]["source"],
            "args": process["Args"],
            "cwd": process["Cwd"],
            "env": env,
            "users": [{
                "uid": process["User"]["UID"], "gid": process["User"]["GID"],
                "groups": process["User"]["AdditionalGids"],
            }],
            "memory_limit": first["OCI"]["Linux"]["Resources"]["Memory"]["Limit"],
            "mounts": {
                "/config": { "kind": "config", "source": "config", "read_only": true },
                "/data": { "kind": "claim", "source_pattern": "^(mount|pvc-[0-9a-f-]{36})$" },
            },
            "devices": ["/dev/xvda"],
        } },
        "copies": { "config": { "files": {
            "key": "cd42404d52ad55ccfa9aca4adc828aa5800ad9d385a0671fbcbf724118320619",
        } } },
    });
    Policy::parse(&format!("package agent_policy\n\npolicy_data := {data:#}\n")).unwrap()
}

/// A judge who has seen all that came before the first container, and that container's creation with disks.
fn before_creation() -> (Judge, Value) {
    let requests = requests();
    let at = requests.iter().position(|(name, input)| is_creation(name, input)).unwrap();
    let mut creation = requests[at].1.clone();
    let mut judge = Judge::new(policy(&creation));
    for (name, input) in &requests[..at] {
        let ticket = judge.judge_json(name, input).unwrap_or_else(|denial| panic!("{denial}"));
        judge.settle(ticket, true);
    }
    let mut storage = creation["storages"][0].clone();
    for (field, value) in [
        ("driver", json!("blk")),
        ("driver_options", json!([])),
        ("source", json!("nacre-volume-1")),
        ("fstype", json!("ext4")),
        ("mount_point", json!(PLACE)),
    ] {
        storage[field] = value;
    }
    creation["storages"].as_array_mut().unwrap().push(storage);
    let mounts = creation["OCI"]["Mounts"].as_array_mut().unwrap();
    let hosts = mounts.iter().find(|mount| mount["destination"] == "/etc/hosts").unwrap();
    let mut mount = hosts.clone();
    mount["destination"] = json!("/data");
    mount["source"] = json!(PLACE);
    mounts.push(mount);
    creation["devices"] = json!([{
        "id": "nacre-volume-0", "type_": "blk", "vm_path": "", "container_path": "/dev/xvda",
        "options": [],
    }]);
    (judge, creation)
}

#[test]
fn a_container_gets_the_disks_of_its_claims() {
    let (mut judge, creation) = before_creation();
    if let Err(denial) = judge.judge_json("CreateContainerRequest", &creation) {
        panic!("{denial}");
    }
}

#[test]
fn every_other_form_is_denied_by_its_field() {
    let (_, creation) = before_creation();
    let storage = creation["storages"].as_array().unwrap().len() - 1;
    let mount = creation["OCI"]["Mounts"].as_array().unwrap().len() - 1;
    let storage = |rest: &str| format!("/storages/{storage}/{rest}");
    let mount = |rest: &str| format!("/OCI/Mounts/{mount}/{rest}");
    for (path, value, field) in [
        (storage("source"), json!("vda"), "storages"),
        (storage("source"), json!("nacre-volume-2"), "storages"),
        (storage("source"), json!("nacre-scratch"), "storages"),
        (storage("fstype"), json!("xfs"), "storages"),
        (storage("options"), json!(["exec"]), "storages"),
        (storage("driver_options"), json!(["encryption_key=ephemeral"]), "storages"),
        (storage("fs_group"), json!({ "group_id": 0, "group_change_policy": 0 }), "storages"),
        (storage("mount_point"), json!("/etc"), "storages"),
        (mount("source"), json!(format!("{PLACE}/sub")), "/data"),
        (mount("source"), json!("/run/kata-containers/sandbox/volumes/nacre-volume-2"), "/data"),
        (mount("destination"), json!("/elsewhere"), "/elsewhere"),
        ("/devices/0/id".into(), json!("0000:00:03.0"), "devices"),
        ("/devices/0/type_".into(), json!("vfio"), "devices"),
        ("/devices/0/vm_path".into(), json!("/dev/vda"), "devices"),
        ("/devices/0/container_path".into(), json!("/dev/mem"), "devices"),
        ("/devices".into(), json!([]), "devices"),
    ] {
        let (mut judge, mut creation) = before_creation();
        *creation.pointer_mut(&path).unwrap() = value.clone();
        match judge.judge_json("CreateContainerRequest", &creation) {
            Ok(_) => panic!("{path} = {value} was allowed"),
            Err(denial) => assert!(denial.to_string().contains(field), "{path}: {denial}"),
        }
    }
}
