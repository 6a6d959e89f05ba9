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

/// What is copied or a disk: as of a claim that no volumes.toml names.
fn copy_or_disk() -> Value {
    json!({ "kind": "claim", "source_pattern": "^(mount|pvc-[0-9a-f-]{36})$" })
}

/// The pod of the recording, whose first container has a claim at /data and one as /dev/xvda.
fn policy(first: &Value, claim: &Value) -> Policy {
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
                "/data": claim,
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
    before_creation_with(&copy_or_disk())
}

fn before_creation_with(claim: &Value) -> (Judge, Value) {
    let requests = requests();
    let at = requests.iter().position(|(name, input)| is_creation(name, input)).unwrap();
    let mut creation = requests[at].1.clone();
    let mut judge = Judge::new(policy(&creation, claim));
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

#[test]
fn a_claim_that_is_a_disk_takes_no_copied_files_and_a_part_of_one_no_disk() {
    let (_, creation) = before_creation();
    let id = creation["container_id"].as_str().unwrap();
    let copied =
        |name: &str| format!("/run/kata-containers/shared/containers/{id}-0123456789abcdef-{name}");
    let copied_mount = |claim: &Value, name: &str| {
        let (mut judge, mut creation) = before_creation_with(claim);
        let directory = json!({
            "path": copied(name), "file_type": "Directory", "file_size": 0, "offset": 0, "uid": 0, "gid": 0,
            "file_mode": 0o40755, "dir_mode": 0, "symlink_target": null, "sha256": null,
        });
        let may_copy = judge.judge_json("CopyFileRequest", &directory).is_ok();
        let mounts = creation["OCI"]["Mounts"].as_array_mut().unwrap();
        mounts.last_mut().unwrap()["source"] = copied(name).into();
        creation["storages"].as_array_mut().unwrap().pop();
        (may_copy, judge.judge_json("CreateContainerRequest", &creation).is_ok())
    };
    assert_eq!(copied_mount(&copy_or_disk(), "mount"), (true, true));
    let only_a_disk = json!({ "kind": "claim" });
    assert_eq!(copied_mount(&only_a_disk, "mount"), (false, false));
    let (mut judge, creation) = before_creation_with(&only_a_disk);
    let _ = judge.judge_json("CreateContainerRequest", &creation).unwrap();
    // What shows a part must not show the whole.
    let part = json!({ "kind": "claim", "source": "app.0" });
    assert_eq!(copied_mount(&part, "app.0"), (true, true));
    let (mut judge, creation) = before_creation_with(&part);
    let denial = judge.judge_json("CreateContainerRequest", &creation).err().unwrap().to_string();
    assert!(denial.contains("/data"), "{denial}");
}

#[test]
fn the_pod_s_own_container_has_no_devices() {
    let requests = requests();
    let first = requests.iter().find(|(name, input)| is_creation(name, input)).unwrap();
    let is_pod = |(name, input): &&(String, Value)| {
        name == "CreateContainerRequest" && annotation(input, "container-type") == "sandbox"
    };
    let at = requests.iter().position(|request| is_pod(&request)).unwrap();
    let mut judge = Judge::new(policy(&first.1, &copy_or_disk()));
    for (name, input) in &requests[..at] {
        let ticket = judge.judge_json(name, input).unwrap_or_else(|denial| panic!("{denial}"));
        judge.settle(ticket, true);
    }
    let mut creation = requests[at].1.clone();
    let name = "io.kubernetes.cri.container-name";
    creation["OCI"]["Annotations"][name] = annotation(&first.1, "container-name").into();
    creation["devices"] = json!([{
        "id": "nacre-volume-0", "type_": "blk", "vm_path": "", "container_path": "/dev/xvda",
        "options": [],
    }]);
    let denial = judge.judge_json("CreateContainerRequest", &creation).err().unwrap().to_string();
    assert!(denial.contains("devices"), "{denial}");
}
