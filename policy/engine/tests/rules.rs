//! The rules library against requests that real runtimes made: the recorded sequence of a pod is allowed,
//! and each single change of it is denied with a reason that names the field.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use nacre_policy::{Denial, Event, Judge, LONGEST_DENIAL, Policy};
use serde_json::{Value, json};

/// What agents recorded of the same pod, by the profile that describes the runtime.
const RECORDINGS: [(&str, &str); 3] = [
    ("containerd-1.6", include_str!("recorded/containerd-1.6.jsonl")),
    ("containerd-1.7", include_str!("recorded/containerd-1.7.jsonl")),
    ("containerd-2", include_str!("recorded/containerd-2.1.jsonl")),
];

struct Request {
    name: String,
    input: Value,
}

fn requests(recording: &str) -> Vec<Request> {
    let lines = recording.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let requests = lines.filter(|line| line["request"].is_string());
    requests
        .map(|line| Request {
            name: line["request"].as_str().unwrap().into(),
            input: line["input"].clone(),
        })
        .collect()
}

fn is_pod(input: &Value) -> bool {
    input["OCI"]["Annotations"]["io.kubernetes.cri.container-type"] == "sandbox"
}

/// The policy of the pod in a recording, with `change` applied.
fn document(recording: &str, runtimes: &[&str], change: impl FnOnce(&mut Value)) -> String {
    let creations: Vec<Request> = requests(recording).into_iter().filter(is_app_creation).collect();
    let annotations = &creations[0].input["OCI"]["Annotations"];
    let containers: serde_json::Map<String, Value> =
        creations.iter().map(|request| container(&request.input)).collect();
    let mut data = json!({
        "version": 1,
        "source": "pod.yaml",
        "runtimes": runtimes,
        "pod": {
            "name": annotations["io.kubernetes.cri.sandbox-name"],
            "namespace": annotations["io.kubernetes.cri.sandbox-namespace"],
        },
        "containers": containers,
        "copies": { "config": { "files": { "key": CONTENT } } },
    });
    let app = &mut data["containers"]["app"];
    app["mounts"] =
        json!({ "/config": { "kind": "config", "source": "config", "read_only": true } });
    app["exec"] = json!([["cat", "/config/key"]]);
    app["lines"] = json!({ "args": 7, "env": 9, "image": 5, "mounts": 14, "exec": 21 });
    change(&mut data);
    format!("package agent_policy\n\npolicy_data := {data:#}\n")
}

fn container(input: &Value) -> (String, Value) {
    let (process, annotations) = (&input["OCI"]["Process"], &input["OCI"]["Annotations"]);
    let env = process["Env"].as_array().unwrap().iter();
    let env: Vec<&Value> = env
        .filter(|entry| {
            let entry = entry.as_str().unwrap();
            !entry.starts_with("HOSTNAME=") && !entry.starts_with("KUBERNETES_")
        })
        .collect();
    let data = json!({
        "image": input["storages"][0]["source"],
        "args": process["Args"],
        "cwd": process["Cwd"],
        "env": env,
        "users": [{
            "uid": process["User"]["UID"], "gid": process["User"]["GID"],
            "groups": process["User"]["AdditionalGids"],
        }],
        "memory_limit": input["OCI"]["Linux"]["Resources"]["Memory"]["Limit"],
    });
    (annotations["io.kubernetes.cri.container-name"].as_str().unwrap().into(), data)
}

/// SHA-256 of what the recorded volume holds.
const CONTENT: &str = "cd42404d52ad55ccfa9aca4adc828aa5800ad9d385a0671fbcbf724118320619";

fn judge(document: &str) -> Judge {
    Judge::new(Policy::parse(document).unwrap())
}

/// Carries out everything before the first request that `stop` recognises; returns that one.
fn up_to(judge: &mut Judge, recording: &str, stop: impl Fn(&Request) -> bool) -> Request {
    for request in requests(recording) {
        if stop(&request) {
            return request;
        }
        let ticket = judge.judge_json(&request.name, &request.input);
        let ticket = ticket.unwrap_or_else(|denial| panic!("{denial}\n{}", request.input));
        judge.settle(ticket, true);
    }
    panic!("no such request was recorded");
}

fn is_app_creation(request: &Request) -> bool {
    request.name == "CreateContainerRequest" && !is_pod(&request.input)
}

/// One runtime is enough for most: the newest.
const NEWEST: &str = RECORDINGS[2].1;

fn denied_creation(change: impl FnOnce(&mut Value)) -> Denial {
    let mut judge = judge(&document(NEWEST, &["containerd-2"], |_| {}));
    let mut request = up_to(&mut judge, NEWEST, is_app_creation);
    let untouched = judge.judge_json(&request.name, &request.input).unwrap();
    judge.settle(untouched, false);
    change(&mut request.input);
    let before = format!("{judge:?}");
    let denial = judge.judge_json(&request.name, &request.input).unwrap_err();
    assert_eq!(format!("{judge:?}"), before, "a denied request leaves no trace");
    let text = denial.to_string();
    assert!(text.len() <= LONGEST_DENIAL, "{text}");
    denial
}

#[test]
fn each_runtime_s_own_profile_admits_its_requests() {
    for (profile, recording) in RECORDINGS {
        run_all(recording, &document(recording, &[profile], |_| {}));
    }
}

#[test]
fn one_policy_admits_the_requests_of_every_runtime() {
    let profiles = RECORDINGS.map(|(profile, _)| profile);
    for (_, recording) in RECORDINGS {
        run_all(recording, &document(NEWEST, &profiles, |_| {}));
    }
}

fn run_all(recording: &str, document: &str) {
    let mut judge = judge(document);
    let mut count = 0;
    for line in recording.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        if line["event"] == "exited" {
            let container_id = line["container_id"].as_str().unwrap().to_owned();
            judge.observe(&Event::Exited { container_id });
            continue;
        }
        let request = Request {
            name: line["request"].as_str().unwrap().into(),
            input: line["input"].clone(),
        };
        let ticket = judge.judge_json(&request.name, &request.input);
        let ticket = ticket.unwrap_or_else(|denial| panic!("{denial}\n{}", request.input));
        judge.settle(ticket, line["outcome"] == "ok");
        count += 1;
    }
    assert!(count > 20, "{count}");
}

#[test]
fn each_change_of_a_creation_is_denied_and_explained() {
    let with = |pointer: &'static str, value: Value| {
        move |input: &mut Value| *input.pointer_mut(pointer).unwrap() = value
    };
    let push = |pointer: &'static str, value: Value| {
        move |input: &mut Value| {
            input.pointer_mut(pointer).unwrap().as_array_mut().unwrap().push(value);
        }
    };
    type Change = Box<dyn FnOnce(&mut Value)>;
    let mount = json!({ "destination": "/x", "type_": "bind", "source": "/run/x", "options": [] });
    let proc = json!({ "destination": "/x", "type_": "proc", "source": "proc", "options": [] });
    let capability = json!("CAP_SYS_ADMIN");
    let cases: Vec<(Change, &str)> = vec![
        (Box::new(with("/storages/0/source", "registry/evil:1".into())), "storages"),
        (Box::new(with("/storages/0/mount_point", "/run".into())), "storages"),
        (
            Box::new(|input| {
                let first = input["storages"][0].clone();
                input["storages"].as_array_mut().unwrap().push(first);
            }),
            "storages",
        ),
        (Box::new(|input| input["storages"] = json!([])), "storages"),
        (Box::new(with("/OCI/Process/Args/0", "/bin/evil".into())), "OCI.Process.Args"),
        (Box::new(push("/OCI/Process/Args", "--evil".into())), "OCI.Process.Args"),
        (Box::new(with("/OCI/Process/Args", json!([]))), "OCI.Process.Args"),
        (Box::new(with("/OCI/Process/Cwd", "/tmp".into())), "OCI.Process.Cwd"),
        (Box::new(push("/OCI/Process/Env", "LD_PRELOAD=/evil.so".into())), "LD_PRELOAD"),
        (Box::new(push("/OCI/Process/Env", "MODE=other".into())), "OCI.Process.Env"),
        (
            Box::new(push("/OCI/Process/Env", "KUBERNETES_SERVICE_HOST=evil.example".into())),
            "KUBERNETES_SERVICE_HOST",
        ),
        (
            Box::new(|input| {
                input["OCI"]["Process"]["Env"]
                    .as_array_mut()
                    .unwrap()
                    .retain(|e| e != "MODE=production");
            }),
            "MODE=production",
        ),
        (Box::new(with("/OCI/Process/User/UID", 0.into())), "OCI.Process.User"),
        (Box::new(push("/OCI/Process/User/AdditionalGids", 4.into())), "OCI.Process.User"),
        (Box::new(with("/OCI/Process/User/Username", "root".into())), "OCI.Process.User"),
        (Box::new(push("/OCI/Process/Capabilities/Bounding", capability.clone())), "CAP_SYS_ADMIN"),
        (
            Box::new(push("/OCI/Process/Capabilities/Effective", capability.clone())),
            "CAP_SYS_ADMIN",
        ),
        (Box::new(push("/OCI/Process/Capabilities/Ambient", capability.clone())), "CAP_SYS_ADMIN"),
        (Box::new(with("/OCI/Process/Capabilities", Value::Null)), "OCI.Process.Capabilities"),
        (
            Box::new(with("/OCI/Process/NoNewPrivileges", true.into())),
            "OCI.Process.NoNewPrivileges",
        ),
        (Box::new(with("/OCI/Process/Terminal", true.into())), "OCI.Process.Terminal"),
        (Box::new(with("/OCI/Process/OOMScoreAdj", (-1000).into())), "OOMScoreAdj"),
        (Box::new(with("/OCI/Process/ApparmorProfile", "unconfined".into())), "labels"),
        (
            Box::new(push(
                "/OCI/Process/Rlimits",
                json!({"Type": "RLIMIT_CORE", "Hard": 1, "Soft": 1}),
            )),
            "Rlimits",
        ),
        (Box::new(push("/OCI/Mounts", mount)), "OCI.Mounts[/x]"),
        (Box::new(push("/OCI/Mounts", proc)), "OCI.Mounts[/x]"),
        (
            Box::new(|input| {
                let again = input["OCI"]["Mounts"][0].clone();
                input["OCI"]["Mounts"].as_array_mut().unwrap().push(again);
            }),
            "each destination once",
        ),
        (
            Box::new(|input| {
                let mounts = input["OCI"]["Mounts"].as_array_mut().unwrap();
                mounts.retain(|mount| mount["destination"] != "/config");
            }),
            "/config",
        ),
        (
            Box::new(|input| {
                let mounts = input["OCI"]["Mounts"].as_array_mut().unwrap();
                let config =
                    mounts.iter_mut().find(|mount| mount["destination"] == "/config").unwrap();
                let other = config["source"].as_str().unwrap().replace("-config", "-etc-hosts");
                config["source"] = other.into();
            }),
            "OCI.Mounts[/config]",
        ),
        (
            Box::new(|input| {
                let mounts = input["OCI"]["Mounts"].as_array_mut().unwrap();
                let config =
                    mounts.iter_mut().find(|mount| mount["destination"] == "/config").unwrap();
                let deeper = format!("{}/../../x", config["source"].as_str().unwrap());
                config["source"] = deeper.into();
            }),
            "OCI.Mounts[/config]",
        ),
        (
            Box::new(|input| {
                let mounts = input["OCI"]["Mounts"].as_array_mut().unwrap();
                let shm =
                    mounts.iter_mut().find(|mount| mount["destination"] == "/dev/shm").unwrap();
                shm["source"] =
                    "/run/kata-containers/shared/containers/x-0123456789abcdef-y".into();
            }),
            "OCI.Mounts[/dev/shm]",
        ),
        (
            Box::new(with("/OCI/Linux/Sysctl", json!({"net.ipv4.ip_forward": "1"}))),
            "OCI.Linux.Sysctl",
        ),
        (Box::new(push("/OCI/Linux/Devices", json!({"Path": "/dev/kvm"}))), "/dev/kvm"),
        (Box::new(push("/devices", json!({"container_path": "/dev/vdb"}))), "/dev/vdb"),
        (
            Box::new(push("/OCI/Linux/Resources/Devices", json!({"Allow": true, "Type": "a"}))),
            "OCI.Linux.Resources.Devices",
        ),
        (
            Box::new(with("/OCI/Linux/Resources/Memory/Limit", 1.into())),
            "OCI.Linux.Resources.Memory",
        ),
        (Box::new(with("/OCI/Linux/CgroupsPath", "/".into())), "hooks"),
        (Box::new(with("/OCI/Linux/MaskedPaths", json!([]))), "OCI.Linux.MaskedPaths"),
        (
            Box::new(with("/OCI/Linux/Namespaces/0/Path", "/proc/1/ns/pid".into())),
            "OCI.Linux.Namespaces",
        ),
        (
            Box::new(|input| {
                input["OCI"]["Linux"]["Namespaces"].as_array_mut().unwrap().pop();
            }),
            "OCI.Linux.Namespaces",
        ),
        (
            Box::new(with(
                "/OCI/Linux/Seccomp",
                json!({"DefaultAction": "SCMP_ACT_ALLOW", "Syscalls": []}),
            )),
            "OCI.Linux.Seccomp",
        ),
        (Box::new(with("/OCI/Linux/RootfsPropagation", "shared".into())), "propagation"),
        (Box::new(with("/OCI/Linux/UIDMappings", json!([{}]))), "id mappings"),
        (Box::new(with("/OCI/Hooks", json!({"Prestart": [{"Path": "/x"}]}))), "hooks"),
        (Box::new(with("/OCI/Root/Readonly", true.into())), "OCI.Root"),
        (Box::new(with("/OCI/Root/Path", "/".into())), "OCI.Root"),
        (Box::new(with("/OCI/Hostname", "evil".into())), "OCI.Hostname"),
        (Box::new(with("/OCI/Version", "9.9.9".into())), "OCI.Version"),
        (Box::new(with("/OCI/Process", Value::Null)), "OCI.Process"),
        (Box::new(with("/OCI/Linux", Value::Null)), "OCI.Linux"),
        (Box::new(with("/OCI", Value::Null)), "container-type"),
        (Box::new(with("/sandbox_pidns", true.into())), "sandbox_pidns"),
        (Box::new(with("/string_user", json!({"uid": "0"}))), "hooks"),
        (Box::new(push("/shared_mounts", json!({}))), "shared mounts"),
        (Box::new(with("/stdin_port", 1.into())), "ports"),
        (
            Box::new(|input| {
                input["OCI"]["Annotations"]["io.kubernetes.cri.container-name"] = "other".into();
            }),
            "closest",
        ),
        (
            Box::new(|input| {
                input["OCI"]["Annotations"]["io.kubernetes.cri.sandbox-id"] = "other".into();
            }),
            "sandbox-id",
        ),
        (
            Box::new(|input| {
                input["OCI"]["Annotations"]["io.kubernetes.cri.sandbox-namespace"] = "other".into();
            }),
            "sandbox-namespace",
        ),
        (
            Box::new(|input| {
                input["OCI"]["Annotations"]["io.kubernetes.cri.sandbox-name"] = "other".into();
            }),
            "sandbox-name",
        ),
        (
            Box::new(|input| {
                input["OCI"]["Annotations"]["io.kubernetes.cri.container-type"] = "sandbox".into();
            }),
            "once and first",
        ),
        (
            Box::new(|input| {
                input["OCI"]["Annotations"]["io.example.new"] = "x".into();
            }),
            "io.example.new",
        ),
    ];
    for (change, word) in cases {
        let denial = denied_creation(change);
        let text = format!("{denial} | {:?}", denial.problems);
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

#[test]
fn a_denial_is_one_line_with_the_place_to_change() {
    let denial = denied_creation(|input| input["OCI"]["Process"]["Args"][0] = "/bin/evil".into());
    let text = denial.to_string();
    let begin = "policy denies CreateContainer of container \"app\": OCI.Process.Args: expected [";
    assert!(text.starts_with(begin), "{text}");
    assert!(text.contains("got [\"/bin/evil\"") && text.ends_with("(pod.yaml:7, args)"), "{text}");
    let denial = denied_creation(|input| {
        let env = input["OCI"]["Process"]["Env"].as_array_mut().unwrap();
        env.retain(|entry| !entry.as_str().unwrap().starts_with("PASSWORD="));
        env.push("PASSWORD=guessed".into());
    });
    let text = denial.to_string();
    assert!(text.contains("PASSWORD=(secret)"), "{text}");
    assert!(!text.contains("guessed") && !text.contains("hunter2"), "{text}");
}

#[test]
fn a_pinned_image_may_be_named_with_its_tag() {
    let mut judge = judge(&document(NEWEST, &["containerd-2"], |data| {
        data["containers"]["app"]["image"] = format!("registry:5000/a/b@sha256:{:064}", 1).into();
    }));
    let request = up_to(&mut judge, NEWEST, is_app_creation);
    let digest = format!("sha256:{:064}", 1);
    for (source, allowed) in [
        (format!("registry:5000/a/b@{digest}"), true),
        (format!("registry:5000/a/b:v1@{digest}"), true),
        (format!("registry:5000/a/b:v1@sha256:{:064}", 2), false),
        ("registry:5000/a/b:v1".to_owned(), false),
        (format!("registry:5000/a/bb@{digest}"), false),
        (format!("evil:5000/a/b@{digest}"), false),
        (format!("registry:5000/a/b:/c@{digest}"), false),
    ] {
        let mut input = request.input.clone();
        input["storages"][0]["source"] = source.clone().into();
        match judge.judge_json(&request.name, &input) {
            Ok(ticket) => {
                assert!(allowed, "{source}");
                judge.settle(ticket, false);
            }
            Err(denial) => assert!(!allowed, "{source}: {denial}"),
        }
    }
}

#[test]
fn short_names_of_images_are_those_of_docker_io() {
    let digest = format!("sha256:{:064}", 1);
    for (pinned, source, allowed) in [
        ("docker.io/library/busybox", "busybox", true),
        ("docker.io/library/busybox", "busybox:1.36", true),
        ("docker.io/library/busybox", "library/busybox", true),
        ("docker.io/a/b", "a/b:v1", true),
        ("docker.io/library/busybox", "docker.io/library/busybox:1", true),
        ("docker.io/library/busybox", "evil.io/library/busybox", false),
        ("docker.io/library/busybox", "localhost/busybox", false),
        ("docker.io/library/localhost", "localhost", true),
        ("localhost/a", "localhost/a", true),
        ("evil.io/busybox", "busybox", false),
    ] {
        let mut judge = judge(&document(NEWEST, &["containerd-2"], |data| {
            data["containers"]["app"]["image"] = format!("{pinned}@{digest}").into();
        }));
        let mut request = up_to(&mut judge, NEWEST, is_app_creation);
        request.input["storages"][0]["source"] = format!("{source}@{digest}").into();
        let judged = judge.judge_json(&request.name, &request.input);
        assert_eq!(judged.is_ok(), allowed, "{source}: {judged:?}");
    }
}

#[test]
fn variables_that_the_cluster_decides_have_the_form_of_their_kind() {
    for (kind, good, bad) in [
        ("ip", "10.0.0.1", "evil.example"),
        ("ips", "10.0.0.1,fd00::1", "10.0.0.1,"),
        ("host_ip", "fd00::1", "x"),
        ("host_ips", "10.0.0.1", ""),
        ("node_name", "node-1.example", "a b"),
        ("pod_name", "recorded", "other"),
        ("namespace", "stories", "other"),
        ("uid", "01234567-89ab-cdef-0123-456789abcdef", "x"),
        ("service_account", "default", "/"),
        ("label", "v1.2_a", "a/b"),
        ("number", "17", "-1"),
        ("service_host", "10.96.0.1", "evil.example"),
        ("service_port", "443", "443/tcp"),
        ("service_url", "tcp://10.96.0.1:443", "http://10.96.0.1"),
        ("service_protocol", "tcp", "icmp"),
        ("no such kind", "", "x"),
    ] {
        let mut judge = judge(&document(NEWEST, &["containerd-2"], |data| {
            data["containers"]["app"]["env_from_pod"] = json!({ "FACT": kind });
        }));
        let request = up_to(&mut judge, NEWEST, is_app_creation);
        let mut answer = |value: Option<&str>| {
            let mut input = request.input.clone();
            let env = input["OCI"]["Process"]["Env"].as_array_mut().unwrap();
            env.extend(value.map(|value| json!(format!("FACT={value}"))));
            judge.judge_json(&request.name, &input).map(|ticket| judge.settle(ticket, false))
        };
        assert_eq!(answer(Some(good)).is_ok(), kind != "no such kind", "{kind}");
        assert!(answer(Some(bad)).is_err(), "{kind}: {bad}");
        assert!(answer(None).is_err(), "{kind} is missing");
    }
}

#[test]
fn a_container_runs_once_at_a_time() {
    let mut judge = judge(&document(NEWEST, &["containerd-2"], |_| {}));
    let request = up_to(&mut judge, NEWEST, is_app_creation);
    let again = |input: &Value| {
        let id = input["container_id"].as_str().unwrap();
        let text = input.to_string().replace(id, &format!("{}x", &id[..id.len() - 1]));
        serde_json::from_str::<Value>(&text).unwrap()
    };
    let first = judge.judge_json(&request.name, &request.input).unwrap();
    let second = again(&request.input);
    let denial = judge.judge_json(&request.name, &second).unwrap_err().to_string();
    assert!(denial.contains("runs once at a time"), "while the first is made: {denial}");
    judge.settle(first, true);
    assert!(judge.judge_json(&request.name, &second).is_err());
    let container_id = request.input["container_id"].as_str().unwrap().to_owned();
    judge.observe(&Event::Exited { container_id });
    let _ = judge.judge_json(&request.name, &second).unwrap();
}

#[test]
fn init_containers_come_first_and_sidecars_stay() {
    let mut judge = judge(&document(NEWEST, &["containerd-2"], |data| {
        let app = data["containers"]["app"].clone();
        for (name, kind) in [("setup", "init"), ("proxy", "sidecar")] {
            data["containers"][name] = app.clone();
            data["containers"][name][kind] = true.into();
        }
    }));
    let request = up_to(&mut judge, NEWEST, is_app_creation);
    let named = |name: &str| {
        let id = request.input["container_id"].as_str().unwrap();
        let text = request.input.to_string().replace(id, &format!("id-of-{name}"));
        let mut input: Value = serde_json::from_str(&text).unwrap();
        input["OCI"]["Annotations"]["io.kubernetes.cri.container-name"] = name.into();
        input
    };
    let denial = judge.judge_json(&request.name, &named("app")).unwrap_err().to_string();
    assert!(denial.contains("setup") && denial.contains("init containers run first"), "{denial}");
    for name in ["proxy", "setup"] {
        let ticket = judge.judge_json(&request.name, &named(name)).unwrap();
        judge.settle(ticket, true);
    }
    assert!(judge.judge_json(&request.name, &named("app")).is_err(), "setup still runs");
    judge.observe(&Event::Exited { container_id: "id-of-setup".into() });
    let _ = judge.judge_json(&request.name, &named("app")).unwrap();
}

/// A pod whose container runs.
fn running() -> (Judge, String) {
    let mut judge = judge(&document(NEWEST, &["containerd-2"], |_| {}));
    let start = |request: &Request| request.name == "ExecProcessRequest";
    let exec = up_to(&mut judge, NEWEST, start);
    (judge, exec.input["container_id"].as_str().unwrap().to_owned())
}

#[test]
fn requests_about_a_container_are_judged_by_its_policy() {
    let (mut judge, id) = running();
    let unknown = json!({ "container_id": "nobody", "exec_id": "", "signal": 9 });
    let own = |extra: Value| {
        let mut input = json!({ "container_id": id, "exec_id": "" });
        input.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        input
    };
    for (request, input, word) in [
        ("StartContainerRequest", &unknown, "nobody"),
        ("SignalProcessRequest", &unknown, "nobody"),
        ("RemoveContainerRequest", &unknown, "nobody"),
        ("RemoveContainerRequest", &json!({ "container_id": "namespace" }), "namespace"),
        ("WaitProcessRequest", &unknown, "nobody"),
        ("StatsContainerRequest", &unknown, "nobody"),
        ("StartContainerRequest", &own(json!({})), "running"),
        ("SignalProcessRequest", &own(json!({ "signal": 10 })), "signal"),
        ("WriteStreamRequest", &own(json!({ "data": [] })), "stdin"),
        ("WriteStreamRequest", &own(json!({ "exec_id": "other" })), "allow.stdin"),
        ("UpdateContainerRequest", &own(json!({})), "allow.update_container"),
        ("PauseContainerRequest", &own(json!({})), "allow.pause"),
        ("SetGuestDateTimeRequest", &json!({ "Sec": 1, "Usec": 0 }), "allow.set_time"),
        ("SetPolicyRequest", &json!({ "policy": "" }), "no rule"),
        ("AddSwapRequest", &json!({}), "no rule"),
        ("GetDiagnosticDataRequest", &json!({ "log_type": "x", "container_id": "" }), "no rule"),
        ("CreateSandboxRequest", &json!({ "sandbox_id": "two" }), "one sandbox"),
        ("NoSuchRequest", &json!({}), "no rule"),
    ] {
        let denial = judge.judge_json(request, input).expect_err(request).to_string();
        assert!(denial.contains(word), "{request}: {denial}");
    }
    for (request, input) in [
        ("SignalProcessRequest", own(json!({ "signal": 15 }))),
        ("ReadStreamRequest", own(json!({ "len": 1 }))),
        ("WaitProcessRequest", own(json!({}))),
        ("GetDiagnosticDataRequest", json!({ "log_type": "nacre.start", "container_id": "" })),
        ("GetDiagnosticDataRequest", json!({ "log_type": "nacre.pulls", "container_id": "" })),
    ] {
        let _ = judge.judge_json(request, &input).unwrap_or_else(|e| panic!("{request}: {e}"));
    }
}

#[test]
fn last_words_are_read_from_the_file_that_the_owner_named_when_the_container_has_ended() {
    let judged = |allow: Value, file: Option<&str>, path: &str, ended: bool| {
        let document = document(NEWEST, &["containerd-2"], |data| {
            data["allow"] = allow;
            if let Some(file) = file {
                data["containers"]["app"]["termination_log"] = file.into();
            }
        });
        let mut judge = judge(&document);
        let creation = up_to(&mut judge, NEWEST, is_app_creation);
        let ticket = judge.judge_json(&creation.name, &creation.input).unwrap();
        judge.settle(ticket, true);
        let id = creation.input["container_id"].as_str().unwrap();
        if ended {
            judge.observe(&Event::Exited { container_id: id.into() });
        }
        let input = json!({ "log_type": "nacre.termination", "container_id": id, "path": path });
        let judged = judge.judge_json("GetDiagnosticDataRequest", &input);
        judged.map(drop).map_err(|denial| denial.to_string())
    };
    let usual = "/dev/termination-log";
    judged(json!({}), None, usual, true).unwrap();
    judged(json!({ "termination_message": true }), None, usual, true).unwrap();
    judged(json!({}), Some("/tmp/end"), "/tmp/end", true).unwrap();
    for (allow, file, path, ended, word) in [
        (json!({}), None, usual, false, "ended"),
        (json!({}), None, "/etc/shadow", true, "path"),
        (json!({}), None, "/dev/../dev/termination-log", true, "path"),
        (json!({}), None, "", true, "path"),
        (json!({}), Some("/tmp/end"), usual, true, "path"),
        (json!({ "termination_message": false }), None, usual, true, "allow.termination_message"),
        (json!({ "termination_message": "yes" }), None, usual, true, "allow.termination_message"),
    ] {
        let denial = judged(allow, file, path, ended).expect_err(path);
        assert!(denial.contains(word), "{denial}");
    }
    let (mut judge, _) = running();
    for id in ["", "nobody"] {
        let input = json!({ "log_type": "nacre.termination", "container_id": id, "path": usual });
        let denial = judge.judge_json("GetDiagnosticDataRequest", &input).expect_err(id);
        assert!(denial.to_string().contains("container_id"), "{denial}");
    }
}

#[test]
fn the_file_for_last_words_may_be_anywhere() {
    let created = |file: &str, destination: &str, source: &str| {
        let document = document(NEWEST, &["containerd-2"], |data| {
            data["containers"]["app"]["termination_log"] = file.into();
        });
        let mut judge = judge(&document);
        let mut creation = up_to(&mut judge, NEWEST, is_app_creation);
        let id = creation.input["container_id"].as_str().unwrap().to_owned();
        let mounts = creation.input["OCI"]["Mounts"].as_array_mut().unwrap();
        let hosts = mounts.iter().find(|mount| mount["destination"] == "/etc/hosts");
        let mut file = hosts.unwrap().clone();
        file["destination"] = destination.into();
        file["source"] =
            format!("/run/kata-containers/shared/containers/{id}-0123456789abcdef-{source}").into();
        mounts.retain(|mount| mount["destination"] != "/dev/termination-log");
        mounts.push(file);
        judge.judge_json(&creation.name, &creation.input).map(drop).map_err(|e| e.to_string())
    };
    created("/tmp/end", "/tmp/end", "0123abcd").unwrap();
    for (destination, source) in [("/tmp/other", "0123abcd"), ("/tmp/end", "config")] {
        assert!(created("/tmp/end", destination, source).is_err(), "{destination} {source}");
    }
}

#[test]
fn a_container_gets_of_the_guest_what_its_policy_says() {
    let asks = |id: &str, api: &str, resource: &str| json!({ "container_id": id, "api": api, "resource": resource });
    let judged = |guest_api: Value, id: Option<&str>, api: &str, resource: &str| {
        let document = document(NEWEST, &["containerd-2"], |data| {
            data["containers"]["app"]["guest_api"] = guest_api;
        });
        let mut judge = judge(&document);
        let creation = up_to(&mut judge, NEWEST, is_app_creation);
        let ticket = judge.judge_json(&creation.name, &creation.input).unwrap();
        judge.settle(ticket, true);
        let own = creation.input["container_id"].as_str().unwrap().to_owned();
        let input = asks(id.unwrap_or(&own), api, resource);
        judge.judge_json("GuestApiRequest", &input).map(drop).map_err(|denial| denial.to_string())
    };
    let all = json!({ "resources": true });
    judged(all.clone(), None, "resource", "default/key/1").unwrap();
    judged(json!({}), None, "info", "").unwrap();
    for api in ["token", "evidence", "aael"] {
        judged(json!({ api: true }), None, api, "").unwrap();
        let denial = judged(all.clone(), None, api, "").unwrap_err();
        assert!(denial.contains(&format!("guest_api.{api}")), "{denial}");
    }
    let named = json!({ "resources": ["default/key/1", "team/*", "x/y/z*"] });
    for resource in ["default/key/1", "team/a/b", "x/y/z", "x/y/z2"] {
        judged(named.clone(), None, "resource", resource).unwrap();
    }
    for resource in ["default/key/2", "default/key/11", "teams/a/b", "x/y/q", "", "*"] {
        let denial = judged(named.clone(), None, "resource", resource).unwrap_err();
        assert!(denial.contains("guest_api.resources"), "{denial}");
    }
    for nothing in
        [json!({}), json!({ "resources": false }), json!({ "resources": "true" }), Value::Null]
    {
        judged(nothing, None, "resource", "default/key/1").unwrap_err();
    }
    // The pod's own container, a container that is not there, and APIs that do not exist.
    let sandbox =
        up_to(&mut judge(&document(NEWEST, &["containerd-2"], |_| {})), NEWEST, |request| {
            request.name == "CreateContainerRequest"
        });
    let pause = sandbox.input["container_id"].as_str().unwrap();
    for (id, api) in [
        (Some(pause), "resource"),
        (Some(pause), "info"),
        (Some("nobody"), "info"),
        (None, "resources"),
        (None, ""),
    ] {
        let denial = judged(all.clone(), id, api, "default/key/1").unwrap_err();
        assert!(denial.starts_with("policy denies GuestApi"), "{denial}");
    }
}

#[test]
fn a_command_runs_as_the_container_or_not_at_all() {
    let (mut judge, _) = running();
    let exec = requests(NEWEST).into_iter().find(|r| r.name == "ExecProcessRequest").unwrap();
    let _ = judge.judge_json(&exec.name, &exec.input).unwrap();
    for (pointer, value, word) in [
        ("/process/Args", json!(["sh"]), "process.Args"),
        ("/process/Args/1", json!("/etc/shadow"), "pod.yaml:21"),
        ("/process/User/UID", json!(0), "process.User"),
        ("/process/User/AdditionalGids", json!([4]), "process.User"),
        ("/process/Terminal", json!(true), "allow.terminal"),
        ("/process/Cwd", json!("/"), "process"),
        ("/process/NoNewPrivileges", json!(true), "NoNewPrivileges"),
        ("/process/Env/0", json!("LD_PRELOAD=/x"), "LD_PRELOAD"),
        ("/process/Capabilities/Ambient", json!(["CAP_SYS_ADMIN"]), "process.Capabilities"),
        ("/process", Value::Null, "process"),
        ("/container_id", json!("nobody"), "nobody"),
    ] {
        let mut input = exec.input.clone();
        *input.pointer_mut(pointer).unwrap() = value;
        let denial = judge.judge_json(&exec.name, &input).expect_err(pointer).to_string();
        assert!(denial.contains(word), "{pointer}: {denial}");
    }
    let container_id = exec.input["container_id"].as_str().unwrap().to_owned();
    judge.observe(&Event::Exited { container_id });
    let denial = judge.judge_json(&exec.name, &exec.input).unwrap_err().to_string();
    assert!(denial.contains("a running container"), "{denial}");
}

/// What the host sends for "the user of its image", and what the agent asks about that.
const IMAGE_USER: u64 = 2_147_438_147;
const IMAGE_GROUP: u64 = 2_147_438_148;
const IMAGE_GROUPS: u64 = 2_147_438_149;

#[test]
fn the_images_user_is_one_of_the_owners_users_or_nothing_runs() {
    let owners = json!([{ "uid": 100, "gid": 101, "groups": [10, 101, 102] }]);
    let document = document(NEWEST, &["containerd-2"], |data| {
        data["containers"]["app"]["users"] = owners.clone();
    });
    let mut judge = judge(&document);
    let mut creation = up_to(&mut judge, NEWEST, is_app_creation);
    // A number that the owner did not want is denied as ever; those that stand for the image's user pass.
    let denial = judge.judge_json(&creation.name, &creation.input).unwrap_err().to_string();
    assert!(denial.contains("OCI.Process.User"), "{denial}");
    for (uid, gid, groups) in [
        (IMAGE_USER, IMAGE_USER, json!([IMAGE_USER, IMAGE_GROUPS])),
        (IMAGE_USER, IMAGE_GROUP, json!([IMAGE_GROUP])),
        (IMAGE_USER, 7, json!([7, 5000])),
        (100, IMAGE_GROUP, json!([IMAGE_GROUP])),
    ] {
        let user = &mut creation.input["OCI"]["Process"]["User"];
        (user["UID"], user["GID"], user["AdditionalGids"]) = (uid.into(), gid.into(), groups);
        let ticket = judge.judge_json(&creation.name, &creation.input).unwrap();
        judge.settle(ticket, false);
    }
    creation.input["OCI"]["Process"]["User"]["Username"] = "root".into();
    assert!(judge.judge_json(&creation.name, &creation.input).is_err());

    let mut asks = |name: &str, uid: u32, gid: u32, groups: &[u32]| {
        let input = nacre_policy::ImageUserRequest {
            container_id: "c".into(),
            name: name.into(),
            uid,
            gid,
            groups: groups.to_vec(),
        };
        let ticket = judge.judge("ImageUserRequest", &nacre_policy::AgentRequest::input(&input));
        ticket.map(|ticket| judge.settle(ticket, true)).map_err(|denial| denial.to_string())
    };
    asks("app", 100, 101, &[102, 10, 101]).unwrap();
    for (name, uid, gid, groups) in [
        ("app", 0, 101, &[10, 101, 102][..]),
        ("app", 100, 0, &[10, 101, 102]),
        ("app", 100, 101, &[101]),
        ("app", 100, 101, &[0, 10, 101, 102]),
        ("init", 100, 101, &[10, 101, 102]),
        ("nobody", 100, 101, &[10, 101, 102]),
        ("", 100, 101, &[10, 101, 102]),
    ] {
        let denial = asks(name, uid, gid, groups).unwrap_err();
        assert!(denial.contains("ImageUser"), "{denial}");
        assert!(name != "app" || denial.contains(&format!("\"uid\":{uid}")), "{denial}");
    }
}

/// A document may bring these rules to a guest whose agent takes the numbers for what they are.
#[test]
fn the_images_user_passes_only_where_the_agent_asks_again() {
    let mut engine = regorus::Engine::new();
    let rules = include_str!("../rules/v1.rego").to_owned();
    engine.add_policy("v1.rego".into(), rules).unwrap();
    let mut passes = |facts: Value| {
        engine.set_input(json!({ "nacre": facts }).into());
        let user = json!({ "Username": "", "UID": 0, "GID": 0, "AdditionalGids": [IMAGE_GROUPS] });
        let query = format!("x := data.agent_policy.stands_for_image_user({user})");
        !engine.eval_query(query, false).unwrap().result.is_empty()
    };
    assert!(passes(json!({ "state": {}, "image_user": true })));
    assert!(!passes(json!({ "state": {} })));
}

#[test]
fn a_command_of_the_images_user_is_judged_by_the_agents_question() {
    let (mut judge, _) = running();
    let exec = requests(NEWEST).into_iter().find(|r| r.name == "ExecProcessRequest").unwrap();
    let mut input = exec.input.clone();
    for (uid, allowed) in [(IMAGE_USER, true), (IMAGE_USER - 1, false), (IMAGE_GROUPS + 1, false)] {
        input["process"]["User"]["UID"] = uid.into();
        assert_eq!(judge.judge_json(&exec.name, &input).is_ok(), allowed, "{uid}");
    }
    // Whatever the user, it is a command of the owner's.
    input["process"]["User"]["UID"] = IMAGE_USER.into();
    input["process"]["Args"] = json!(["sh"]);
    assert!(judge.judge_json(&exec.name, &input).is_err());
}

#[test]
fn ports_are_those_of_the_owner() {
    const REQUESTS: [&str; 4] =
        ["PortForwardRequest", "PortReadRequest", "PortWriteRequest", "PortCloseRequest"];
    let with = |ports: Value| {
        judge(&document(NEWEST, &["containerd-2"], |data| {
            data["allow"] = json!({ "port_forward": ports });
        }))
    };
    let mut some = with(json!([80, 8006]));
    let mut none = judge(&document(NEWEST, &["containerd-2"], |_| {}));
    let mut nonsense = with(json!(true));
    for request in REQUESTS {
        let input = |port: Value| json!({ "port": port, "connection": 1, "len": 1 });
        let ticket = some.judge_json(request, &input(json!(80))).unwrap_or_else(|e| panic!("{e}"));
        some.settle(ticket, true);
        // 8006 is the guest's own, whatever the document says.
        for port in [json!(81), json!(0), json!(8006), json!("80"), Value::Null] {
            let denial = some.judge_json(request, &input(port)).unwrap_err().to_string();
            assert!(denial.contains("port: expected [80") && denial.contains("allow.port_forward"));
        }
        for judge in [&mut none, &mut nonsense] {
            let denial = judge.judge_json(request, &input(json!(80))).unwrap_err().to_string();
            assert!(denial.contains("got 80 (setting allow.port_forward)"), "{denial}");
        }
    }
}

#[test]
fn output_can_be_withheld() {
    let mut judge = judge(&document(NEWEST, &["containerd-2"], |data| {
        data["containers"]["app"]["logs"] = false.into();
    }));
    let is_read =
        |request: &Request| request.name == "ReadStreamRequest" && request.input["exec_id"] != "";
    let read = |r: &Request| {
        r.name == "ReadStreamRequest" && {
            let app = requests(NEWEST).into_iter().find(is_app_creation).unwrap();
            r.input["container_id"] == app.input["container_id"]
        }
    };
    let read = up_to(&mut judge, NEWEST, read);
    let denial = judge.judge_json(&read.name, &read.input).unwrap_err().to_string();
    assert!(denial.contains("setting logs"), "{denial}");
    assert!(is_read(&read) || read.input["exec_id"] == "");
}

#[test]
fn files_go_to_known_volumes_of_containers_to_come() {
    let mut judge = judge(&document(NEWEST, &["containerd-2"], |_| {}));
    let copy = up_to(&mut judge, NEWEST, |request| {
        request.name == "CopyFileRequest" && request.input["sha256"] == CONTENT
    });
    let _ = judge.judge_json(&copy.name, &copy.input).unwrap();
    let path = copy.input["path"].as_str().unwrap().to_owned();
    let root = "/run/kata-containers/shared/containers/";
    let (top, rest) = path[root.len()..].split_once('/').unwrap();
    for (pointer, value, word) in [
        ("/path", format!("/etc/{rest}"), "path"),
        ("/path", format!("{root}../../../etc/passwd"), "path"),
        ("/path", format!("{root}{top}/../../x"), "path"),
        ("/path", format!("{root}{top}/./x"), "path"),
        (
            "/path",
            format!("{root}{}/{rest}", top.replace("-config", "-other")),
            "a volume of the pod",
        ),
        ("/path", format!("{root}plain"), "path"),
        ("/path", format!("{root}{top}/other-key"), "data"),
        ("/sha256", "0".repeat(64), "data"),
        ("/file_type", "Unknown".into(), "file_type"),
    ] {
        let mut input = copy.input.clone();
        *input.pointer_mut(pointer).unwrap() = value.clone().into();
        let denial = judge.judge_json(&copy.name, &input).expect_err(&value).to_string();
        assert!(denial.contains(word), "{value}: {denial}");
    }
    let mut in_pieces = copy.input.clone();
    in_pieces["sha256"] = Value::Null;
    assert!(judge.judge_json(&copy.name, &in_pieces).is_err());
    let link = |path: String, target: &str| {
        let mut input = copy.input.clone();
        input["path"] = path.into();
        input["file_type"] = "Symlink".into();
        input["sha256"] = Value::Null;
        input["symlink_target"] = target.into();
        input
    };
    for (name, target, allowed) in [
        ("..data", "..2026_01_01", true),
        ("key", "..data/key", true),
        ("..data", "../../etc", false),
        ("key", "/etc/passwd", false),
        ("key", "..data/other", false),
        ("more/key", "..data/key", false),
    ] {
        let input = link(format!("{root}{top}/{name}"), target);
        let judged = judge.judge_json(&copy.name, &input);
        assert_eq!(judged.is_ok(), allowed, "{name} -> {target}: {judged:?}");
    }
    let request = up_to_creation(&copy);
    let ticket = judge.judge_json(&request.name, &request.input).unwrap();
    judge.settle(ticket, true);
    let denial = judge.judge_json(&copy.name, &copy.input).unwrap_err().to_string();
    assert!(denial.contains("still to be created"), "{denial}");
}

#[test]
fn the_files_of_a_part_of_a_volume_are_those_of_its_own_mount() {
    let part = |source: &str, volume: Option<&str>, path: &str| {
        let mut mount = json!({ "kind": "config", "source": source, "read_only": true });
        if let Some(volume) = volume {
            mount["volume"] = volume.into();
            mount["sub_path"] = path.into();
        }
        mount
    };
    let other = "2".repeat(64);
    let mut judge = judge(&document(NEWEST, &["containerd-2"], |data| {
        data["copies"]["config"]["files"]["other"] = other.clone().into();
        data["containers"]["app"]["mounts"]["/one"] = part("app.0", Some("config"), "key");
        data["containers"]["second"]["mounts"] = json!({
            // The same number: another file of the owner's, and one that the host chooses.
            "/two": part("second.0", Some("config"), "other"),
            "/three": part("second.1", None, ""),
            // In documents by hand names may meet: what is fixed stays so.
            "/four": part("app.0", None, ""),
        });
    }));
    let copy = up_to(&mut judge, NEWEST, |request| {
        request.name == "CopyFileRequest" && request.input["sha256"] == CONTENT
    });
    let (before, _) = copy.input["path"].as_str().unwrap().split_once("-config/").unwrap();
    for (name, sha256, allowed) in [
        ("app.0", CONTENT, true),
        ("app.0", &*other, false),
        ("app.0", &*"0".repeat(64), false),
        ("second.0", &*other, true),
        ("second.0", CONTENT, false),
        ("second.1", &*"0".repeat(64), true),
        ("0", CONTENT, false),
        ("app.1", CONTENT, false),
    ] {
        let mut input = copy.input.clone();
        input["path"] = format!("{before}-{name}").into();
        input["sha256"] = sha256.into();
        let verdict = judge.judge_json(&copy.name, &input).map(|_| ());
        assert_eq!(verdict.is_ok(), allowed, "{name} {sha256}: {verdict:?}");
    }
}

fn up_to_creation(copy: &Request) -> Request {
    let id = copy.input["path"].as_str().unwrap();
    let creation = requests(NEWEST).into_iter().find(is_app_creation).unwrap();
    assert!(id.contains(creation.input["container_id"].as_str().unwrap()));
    creation
}

#[test]
fn a_copy_cannot_pass_for_another_volume_s() {
    let mut judge = judge(&document(NEWEST, &["containerd-2"], |data| {
        // Whatever the host likes goes there.
        data["containers"]["second"]["mounts"] =
            json!({ "/data": { "kind": "claim", "source_pattern": ".*" } });
    }));
    let request = up_to(&mut judge, NEWEST, is_app_creation);
    let id = request.input["container_id"].as_str().unwrap().to_owned();
    let longer = format!("{id}-0123456789abcdef");
    let text = request.input.to_string().replace(&id, &longer);
    let input: Value = serde_json::from_str(&text).unwrap();
    let denial = judge.judge_json(&request.name, &input).unwrap_err().to_string();
    assert!(denial.contains("16 hexadecimal digits"), "{denial}");
    let _ = judge.judge_json(&request.name, &request.input).unwrap();
}

#[test]
fn the_network_is_set_up_before_the_containers() {
    let mut judge = judge(&document(NEWEST, &["containerd-2"], |_| {}));
    let interface = up_to(&mut judge, NEWEST, |r| r.name == "UpdateInterfaceRequest");
    let routes = requests(NEWEST).into_iter().find(|r| r.name == "UpdateRoutesRequest").unwrap();
    for (pointer, value) in [
        ("/interface/name", "lo"),
        ("/interface/device", "lo"),
        ("/interface/hwAddr", "00:00:00:00:00:00"),
        ("/interface/IPAddresses/0/address", "127.0.0.1"),
        ("/interface/IPAddresses/0/address", "::1"),
        ("/interface/IPAddresses/0/address", "169.254.169.254"),
        ("/interface/IPAddresses/0/address", "224.0.0.1"),
        ("/interface/IPAddresses/0/address", "nonsense"),
    ] {
        let mut input = interface.input.clone();
        *input.pointer_mut(pointer).unwrap() = value.into();
        let denial = judge.judge_json(&interface.name, &input).expect_err(value).to_string();
        assert!(denial.contains("interface"), "{denial}");
    }
    for (pointer, value) in [
        ("/routes/Routes/0/device", "lo"),
        ("/routes/Routes/0/dest", "127.0.0.0/8"),
        ("/routes/Routes/0/dest", "127.1.0.0/16"),
        ("/routes/Routes/0/gateway", "127.0.0.1"),
        ("/routes/Routes/0/source", "127.0.0.1"),
    ] {
        let mut input = routes.input.clone();
        *input.pointer_mut(pointer).unwrap() = value.into();
        let denial = judge.judge_json(&routes.name, &input).expect_err(value).to_string();
        assert!(denial.contains("routes.Routes[0]"), "{denial}");
    }
    for request in [&interface, &routes] {
        let _ = judge.judge_json(&request.name, &request.input).unwrap();
    }
    let (mut judge, _) = running();
    for request in [&interface, &routes] {
        let denial = judge.judge_json(&request.name, &request.input).unwrap_err().to_string();
        assert!(denial.contains("running pod is fixed"), "{denial}");
    }
}

#[test]
fn a_sandbox_is_plain() {
    let mut judge = judge(&document(NEWEST, &["containerd-2"], |_| {}));
    let sandbox = up_to(&mut judge, NEWEST, |r| r.name == "CreateSandboxRequest");
    for (pointer, value, word) in [
        ("/hostname", json!("other"), "hostname"),
        ("/kernel_modules", json!([{ "name": "evil" }]), "kernel_modules"),
        ("/guest_hook_path", json!("/hooks"), "guest_hook_path"),
        ("/sandbox_id", json!("../x"), "sandbox_id"),
        ("/storages/0/driver", json!("blk"), "storages"),
        ("/storages/0/mount_point", json!("/etc"), "storages"),
        ("/dns", json!(["nameserver 10.0.0.1\nmalicious"]), "dns"),
        ("/dns", json!(["include /etc/passwd"]), "dns"),
    ] {
        let mut input = sandbox.input.clone();
        *input.pointer_mut(pointer).unwrap() = value;
        let denial = judge.judge_json(&sandbox.name, &input).expect_err(pointer).to_string();
        assert!(denial.contains(word), "{pointer}: {denial}");
    }
    judge.judge_json(&sandbox.name, &sandbox.input).map(drop).unwrap();
}

/// A volume whose content is not fixed and which may change, in the container `app`.
fn changing(data: &mut Value) {
    data["copies"] = json!({});
    data["containers"]["app"]["mounts"]["/config"]["updates"] = true.into();
}

#[test]
fn files_of_a_running_container_change_as_the_kubelet_changes_them_or_not_at_all() {
    let is_app_start = |r: &Request| {
        r.name == "StartContainerRequest" && {
            let app = requests(NEWEST).into_iter().find(is_app_creation).unwrap();
            r.input["container_id"] == app.input["container_id"]
        }
    };
    let started = |change: fn(&mut Value)| {
        let mut judge = judge(&document(NEWEST, &["containerd-2"], change));
        up_to(&mut judge, NEWEST, is_app_start);
        judge
    };
    let copy = requests(NEWEST).into_iter().find(|r| r.input["sha256"] == CONTENT).unwrap();
    let (root, rest) = copy.input["path"].as_str().unwrap().split_once("-config/").unwrap();
    assert!(rest.starts_with(".."), "{rest}");
    let request = |path: &str, kind: &str, target: &str| {
        let mut input = copy.input.clone();
        input["path"] = format!("{root}-config/{path}").into();
        input["file_type"] = kind.into();
        input["symlink_target"] = if kind == "Symlink" { target.into() } else { Value::Null };
        input["sha256"] = if kind == "Regular" { "1".repeat(64).into() } else { Value::Null };
        input
    };
    let cases = [
        ("..2026_11_22_10_00_00.7", "Directory", "", true),
        ("..2026_11_22_10_00_00.7/key", "Regular", "", true),
        ("..2026_11_22_10_00_00.7/sub/key", "Regular", "", true),
        ("..data", "Symlink", "..2026_11_22_10_00_00.7", true),
        ("more", "Symlink", "..data/more", true),
        ("..2026_11_22_10_00_00.8", "Regular", "", false),
        ("key", "Regular", "", false),
        ("..data", "Regular", "", false),
        ("..data/key", "Regular", "", false),
        ("sub/key", "Regular", "", false),
        ("sub", "Directory", "", false),
        ("..data", "Symlink", "..data", false),
        ("..data", "Symlink", "plain", false),
        ("..data", "Symlink", "/etc", false),
        ("..data", "Symlink", "..x/../../..", false),
        ("more", "Symlink", "..data/other", false),
        ("..more", "Symlink", "..data/..more", false),
        ("sub/more", "Symlink", "..data/more", false),
        ("..2026_11_22_10_00_00.7/link", "Symlink", "..data/link", false),
    ];
    let mut open = started(changing);
    for (path, kind, target, allowed) in cases {
        let input = request(path, kind, target);
        let verdict = open.judge_json("CopyFileRequest", &input).map(|_| ());
        assert_eq!(verdict.is_ok(), allowed, "{path} {kind} {target}: {verdict:?}");
    }
    // Its content is fixed, or the owner does not let it change.
    let mut fixed = started(|data| {
        data["containers"]["app"]["mounts"]["/config"]["updates"] = true.into();
    });
    let other = request("..2026_11_22_10_00_00.7/key", "Regular", "");
    let denial = fixed.judge_json("CopyFileRequest", &other).unwrap_err().to_string();
    assert!(denial.contains("content"), "{denial}");
    let mut closed = started(|_| {});
    let denial = closed.judge_json("CopyFileRequest", &other).unwrap_err().to_string();
    assert!(denial.contains("volume_updates"), "{denial}");
}

#[test]
fn empty_directories_are_those_of_the_owner() {
    let places = "/run/kata-containers/sandbox";
    let document = document(NEWEST, &["containerd-2"], |data| {
        let mounts = &mut data["containers"]["app"]["mounts"];
        mounts["/work"] = json!({ "kind": "empty_dir", "volume": "work" });
        mounts["/dev/shm"] = json!({ "kind": "empty_dir", "volume": "fast", "memory": true });
        mounts["/part"] = json!({ "kind": "empty_dir", "volume": "work", "sub_path": "a/b" });
        mounts["/pod"] =
            json!({ "kind": "empty_dir", "volume": "work", "sub_path_pattern": "^[a-z0-9-]+$" });
    });
    let mut judge = judge(&document);
    let mut creation = up_to(&mut judge, NEWEST, is_app_creation).input;
    let storage = |driver: &str, kind: &str, at: &str, options: &[&str]| {
        let mut storage = creation["storages"][0].clone();
        storage["driver"] = driver.into();
        storage["driver_options"] = json!([]);
        storage["source"] = kind.into();
        storage["fstype"] = kind.into();
        storage["mount_point"] = format!("{places}/{at}").into();
        storage["options"] = json!(options);
        storage
    };
    let local = storage("local", "local", "local/work", &["mode=2777", "gid=1000"]);
    let fast = storage("ephemeral", "tmpfs", "ephemeral/fast", &["mode=0777", "size=65536"]);
    let bind = |source: &str, destination: &str| {
        json!({
            "type_": "bind", "source": format!("{places}/{source}"), "destination": destination,
            "options": ["rbind", "rprivate", "rw"],
        })
    };
    let binds = [
        bind("local/work", "/work"),
        bind("ephemeral/fast", "/dev/shm"),
        bind("local/work/a/b", "/part"),
        bind("local/work/pod-1", "/pod"),
    ];
    let mounts = creation["OCI"]["Mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| mount["destination"] != "/dev/shm");
    mounts.extend(binds);
    let first = creation["storages"].as_array().unwrap().len();
    creation["storages"].as_array_mut().unwrap().extend([local.clone(), fast.clone()]);
    let _ = judge
        .judge_json("CreateContainerRequest", &creation)
        .unwrap_or_else(|denial| panic!("{denial}"));

    let at = |index: usize, rest: &str| format!("/storages/{}{rest}", first + index);
    let count = creation["OCI"]["Mounts"].as_array().unwrap().len();
    let mount = |index: usize| format!("/OCI/Mounts/{}/source", count - 4 + index);
    for (pointer, value, word) in [
        (at(0, "/driver"), json!("ephemeral"), "storages"),
        (at(1, "/driver"), json!("local"), "storages"),
        (at(0, "/fstype"), json!("ext4"), "storages"),
        (at(0, "/mount_point"), json!("/etc"), "storages"),
        (at(0, "/mount_point"), json!(format!("{places}/local/other")), "storages"),
        (at(0, "/mount_point"), json!(format!("{places}/ephemeral/fast")), "storages"),
        (at(0, "/options"), json!(["mode=4777"]), "storages"),
        (at(1, "/options"), json!(["size=1,mpol=bind"]), "storages"),
        (at(0, "/source"), json!("/dev/vda"), "storages"),
        (at(0, "/shared"), json!(true), "storages"),
        (mount(0), json!(format!("{places}/local/other")), "OCI.Mounts"),
        (mount(0), json!(format!("{places}/local/work/a")), "OCI.Mounts"),
        (mount(1), json!("/run/kata-containers/sandbox/shm"), "OCI.Mounts"),
        (mount(2), json!(format!("{places}/local/work/b")), "OCI.Mounts"),
        (mount(3), json!(format!("{places}/local/work/../x")), "OCI.Mounts"),
        (mount(3), json!(format!("{places}/local/work")), "OCI.Mounts"),
    ] {
        let mut changed = creation.clone();
        *changed.pointer_mut(&pointer).unwrap() = value;
        let judged = judge.judge_json("CreateContainerRequest", &changed);
        let denial = judged.expect_err(&pointer).to_string();
        assert!(denial.contains(word), "{pointer}: {denial}");
    }
    // The host has no files to copy into them.
    let copy = requests(NEWEST).into_iter().find(|r| r.input["sha256"] == CONTENT).unwrap();
    let mut input = copy.input.clone();
    let path = input["path"].as_str().unwrap().replace("-config/", "-work/");
    input["path"] = path.into();
    assert!(judge.judge_json("CopyFileRequest", &input).is_err());
}
