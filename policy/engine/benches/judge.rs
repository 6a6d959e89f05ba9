//! What judging costs: `CreateContainer` for pods of 1, 10 and 50 containers, `Exec`, and loading a
//! document; beside it the same requests under rules that try every container in turn.
//!
//! `cargo bench -p nacre-policy`

#![allow(clippy::unwrap_used, reason = "a bench that cannot go on panics")]

use std::time::Duration;

use divan::Bencher;
use nacre_policy::{AgentRequest, Judge, Policy, RULES, merge_runtimes, runtimes};
use nacre_protocol::agent::CreateContainerRequest;
use nacre_protocol::oci::Mount;
use serde_json::{Value, json};

const SIZES: [usize; 3] = [1, 10, 50];

/// Requests of a pod with one container, as an agent recorded them.
const RECORDING: &str = include_str!("../tests/recorded/containerd-2.1.jsonl");

fn main() {
    divan::Divan::default().min_time(Duration::from_secs(1)).main();
}

fn recorded(request: &str) -> Value {
    let lines = RECORDING.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let is_app = |line: &Value| {
        line["input"]["OCI"]["Annotations"]["io.kubernetes.cri.container-type"] == "container"
    };
    let found = lines.filter(|line| line["request"] == request).find(is_app).unwrap();
    found["input"].clone()
}

/// Typical: ten variables, two volumes.
fn container(number: usize, request: &Value) -> Value {
    let process = &request["OCI"]["Process"];
    let env: Vec<String> = (0..10).map(|n| format!("SETTING_{n}=value {n} of {number}")).collect();
    let mount = |source: &str| json!({ "kind": "config", "source": source, "read_only": true });
    json!({
        "image": format!("registry.example/app-{number}@sha256:{:064x}", number),
        "args": ["/bin/server", "--number", number.to_string()],
        "cwd": "/srv",
        "env": env,
        "users": [{
            "uid": process["User"]["UID"], "gid": process["User"]["GID"],
            "groups": process["User"]["AdditionalGids"],
        }],
        "mounts": { "/etc/app": mount("config"), "/etc/more": mount("more") },
        "exec": [["/bin/probe", number.to_string()]],
    })
}

fn name(number: usize) -> String {
    format!("container-{number:02}")
}

fn data(size: usize, request: &Value) -> Value {
    let annotations = &request["OCI"]["Annotations"];
    let containers: serde_json::Map<_, _> =
        (0..size).map(|number| (name(number), container(number, request))).collect();
    json!({
        "version": 1,
        "runtimes": runtimes().keys().collect::<Vec<_>>(),
        "pod": {
            "name": annotations["io.kubernetes.cri.sandbox-name"],
            "namespace": annotations["io.kubernetes.cri.sandbox-namespace"],
        },
        "containers": containers,
    })
}

fn document(size: usize) -> String {
    let request = recorded("CreateContainerRequest");
    format!("package agent_policy\n\npolicy_data := {:#}\n", data(size, &request))
}

/// The library's checks without its index: the container that matches is searched.
fn search_document(size: usize) -> String {
    let request = recorded("CreateContainerRequest");
    let mut data = data(size, &request);
    data["standalone"] = true.into();
    let names: Vec<String> = runtimes().keys().cloned().collect();
    data["runtime"] = merge_runtimes(&names).unwrap();
    let rules = RULES
        .replace("default CreateContainerRequest := false", "default OneContainer := false")
        .replace("CreateContainerRequest if {", "OneContainer if {");
    format!(
        "{rules}\ndefault CreateContainerRequest := false\n\nCreateContainerRequest if {{\n\
         some candidate, _ in policy.containers\n\
         OneContainer with input.nacre.assume as candidate\n}}\n\npolicy_data := {data:#}\n"
    )
}

/// A request for the last container of a pod.
fn create(size: usize) -> Value {
    let mut request = recorded("CreateContainerRequest");
    let wanted = container(size - 1, &request);
    request["storages"][0]["source"] = wanted["image"].clone();
    let id = request["container_id"].as_str().unwrap().to_owned();
    let spec = &mut request["OCI"];
    spec["Annotations"]["io.kubernetes.cri.container-name"] = name(size - 1).into();
    spec["Process"]["Args"] = wanted["args"].clone();
    spec["Process"]["Cwd"] = wanted["cwd"].clone();
    spec["Process"]["Env"].as_array_mut().unwrap().retain(|entry| {
        let entry = entry.as_str().unwrap();
        entry.starts_with("HOSTNAME=") || entry.starts_with("KUBERNETES_")
    });
    let env = wanted["env"].as_array().unwrap().clone();
    spec["Process"]["Env"].as_array_mut().unwrap().extend(env);
    spec["Linux"]["Resources"]["Memory"] = Value::Null;
    let mounts = spec["Mounts"].as_array_mut().unwrap();
    let options = runtimes()["containerd-2"]["bind_options"]["ro"][0].clone();
    mounts.retain(|mount| !mount["source"].as_str().unwrap().ends_with("-config"));
    for (place, source) in [("/etc/app", "config"), ("/etc/more", "more")] {
        let root = "/run/kata-containers/shared/containers";
        mounts.push(json!({
            "destination": place, "type_": "bind", "options": options,
            "source": format!("{root}/{id}-0123456789abcdef-{source}"),
        }));
    }
    request
}

/// A pod up to where its first application container may be created.
fn judge(document: &str) -> Judge {
    let mut judge = Judge::new(Policy::parse(document).unwrap());
    for line in RECORDING.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let input = &line["input"];
        let request = line["request"].as_str().unwrap_or_default();
        let pod = input["OCI"]["Annotations"]["io.kubernetes.cri.container-type"] == "sandbox";
        if request == "CreateSandboxRequest" || pod {
            let ticket = judge.judge_json(request, input).unwrap_or_else(|e| panic!("{e}"));
            judge.settle(ticket, true);
        }
    }
    judge
}

fn bench_create(bencher: Bencher, document: &str, size: usize) {
    let request = regorus::Value::from(create(size));
    let mut judge = judge(document);
    bencher.bench_local(move || {
        let ticket = judge
            .judge("CreateContainerRequest", divan::black_box(&request))
            .unwrap_or_else(|e| panic!("{e}"));
        judge.settle(ticket, false);
    });
}

#[divan::bench(args = SIZES)]
fn create_container(bencher: Bencher, size: usize) {
    bench_create(bencher, &document(size), size);
}

#[divan::bench(args = SIZES)]
fn create_container_by_search(bencher: Bencher, size: usize) {
    bench_create(bencher, &search_document(size), size);
}

#[divan::bench(args = SIZES)]
fn exec(bencher: Bencher, size: usize) {
    let created = create(size);
    let mut judge = judge(&document(size));
    let id = &created["container_id"];
    let ticket = judge.judge_json("CreateContainerRequest", &created).unwrap();
    judge.settle(ticket, true);
    let ticket = judge.judge_json("StartContainerRequest", &json!({ "container_id": id })).unwrap();
    judge.settle(ticket, true);
    let mut process = created["OCI"]["Process"].clone();
    process["Args"] = json!(["/bin/probe", (size - 1).to_string()]);
    let request = json!({
        "container_id": id, "exec_id": "e", "string_user": null, "process": process,
        "stdin_port": 0, "stdout_port": 0, "stderr_port": 0,
    });
    let request = regorus::Value::from(request);
    bencher.bench_local(move || {
        let ticket = judge.judge("ExecProcessRequest", divan::black_box(&request));
        judge.settle(ticket.unwrap_or_else(|e| panic!("{e}")), true);
    });
}

/// From the message to what the rules see.
#[divan::bench]
fn input(bencher: Bencher) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().unwrap().iter().map(text).collect::<Vec<_>>();
    let json = create(1);
    let mut request = CreateContainerRequest::new();
    request.container_id = text(&json["container_id"]);
    let spec = request.OCI.mut_or_insert_default();
    let annotations = json["OCI"]["Annotations"].as_object().unwrap();
    spec.Annotations = annotations.iter().map(|(key, value)| (key.clone(), text(value))).collect();
    let process = spec.Process.mut_or_insert_default();
    process.Args = list(&json["OCI"]["Process"]["Args"]);
    process.Env = list(&json["OCI"]["Process"]["Env"]);
    process.User.mut_or_insert_default();
    let names = list(&json["OCI"]["Process"]["Capabilities"]["Bounding"]);
    let capabilities = process.Capabilities.mut_or_insert_default();
    capabilities.Bounding.clone_from(&names);
    capabilities.Effective.clone_from(&names);
    capabilities.Permitted = names;
    for mount in json["OCI"]["Mounts"].as_array().unwrap() {
        spec.Mounts.push(Mount {
            destination: text(&mount["destination"]),
            source: text(&mount["source"]),
            type_: text(&mount["type_"]),
            options: list(&mount["options"]),
            ..Default::default()
        });
    }
    let linux = spec.Linux.mut_or_insert_default();
    linux.MaskedPaths = list(&json["OCI"]["Linux"]["MaskedPaths"]);
    linux.ReadonlyPaths = list(&json["OCI"]["Linux"]["ReadonlyPaths"]);
    bencher.bench_local(|| divan::black_box(&request).input());
}

#[divan::bench(args = SIZES)]
fn load(bencher: Bencher, size: usize) {
    let document = document(size);
    bencher.bench_local(|| Policy::parse(divan::black_box(&document)).unwrap());
}
