//! Specifications as containerd writes them, and as a mistaken or hostile client may.

use serde_json::{Value, json};

use super::*;

const ROOT: &str = "/run/kata-containers/c/rootfs";

/// What CRI of containerd writes for an ordinary container, shortened.
fn ordinary() -> Value {
    json!({
        "ociVersion": "1.0.2-dev",
        "process": {
            "user": {"uid": 1000, "gid": 1000, "additionalGids": [10]},
            "args": ["sh", "-c", "true"],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_CHOWN"],
                "permitted": ["CAP_CHOWN"]
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 512}],
            "noNewPrivileges": true,
            "apparmorProfile": "cri-containerd.apparmor.d",
            "oomScoreAdj": 1000
        },
        "root": {"path": "rootfs", "readonly": true},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            {"destination": "/etc/hosts", "type": "bind", "source": "/var/lib/pods/hosts",
             "options": ["rbind", "rprivate", "rw"]},
            {"destination": "/dev/shm", "type": "bind", "source": "/run/sandboxes/s/shm",
             "options": ["rbind", "ro"]},
            {"destination": "/secret", "type": "bind", "source": "/var/lib/pods/secret",
             "options": ["rbind", "ro"]}
        ],
        "annotations": {"io.kubernetes.cri.container-type": "container"},
        "linux": {
            "resources": {
                "devices": [{"allow": false, "access": "rwm"},
                            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"}],
                "memory": {"limit": 1_048_576, "swap": 1_048_576},
                "cpu": {"shares": 2, "quota": 10000, "period": 100_000, "cpus": "0-3"},
                "pids": {"limit": 100},
                "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
                "unified": {"memory.high": "1"}
            },
            "cgroupsPath": "/kubepods/pod/c",
            "namespaces": [
                {"type": "pid"}, {"type": "ipc", "path": "/proc/77/ns/ipc"},
                {"type": "uts", "path": "/proc/77/ns/uts"}, {"type": "mount"},
                {"type": "network", "path": "/proc/77/ns/net"}, {"type": "cgroup"}
            ],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO",
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
                "syscalls": [
                    {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
                    {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
                    {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
                     "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]}
                ]
            },
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
            "sysctl": {"net.ipv4.ip_forward": "1"}
        }
    })
}

fn parse(value: Value) -> spec::Spec {
    serde_json::from_value(value).unwrap()
}

/// The ordinary specification with one thing set; `path` is a JSON pointer.
fn with(path: &str, value: Value) -> Value {
    let mut spec = ordinary();
    let (parent, key) = path.rsplit_once('/').unwrap();
    let parent = spec.pointer_mut(parent).unwrap();
    match parent {
        Value::Array(list) if key == "-" => list.push(value),
        Value::Array(list) => list[key.parse::<usize>().unwrap()] = value,
        other => other[key] = value,
    }
    spec
}

#[test]
fn an_ordinary_container_is_converted() {
    let Converted { spec, host_mounts, devices, left_out } =
        convert(&parse(ordinary()), ROOT).unwrap();
    assert_eq!(devices, []);
    assert_eq!((spec.Root.Path.as_str(), spec.Root.Readonly), (ROOT, true));

    let process = &spec.Process;
    assert_eq!(process.Args, ["sh", "-c", "true"]);
    assert_eq!((process.User.UID, process.User.AdditionalGids.as_slice()), (1000, &[10][..]));
    assert_eq!(process.Capabilities.Bounding, ["CAP_CHOWN", "CAP_KILL"]);
    assert!(process.Capabilities.Ambient.is_empty());
    assert_eq!(process.Rlimits[0].Type, "RLIMIT_NOFILE");
    assert_eq!((process.Rlimits[0].Soft, process.OOMScoreAdj), (512, 1000));
    assert_eq!(process.ApparmorProfile, "");

    let linux = &spec.Linux;
    let kinds: Vec<_> = linux.Namespaces.iter().map(|n| n.Type.as_str()).collect();
    assert_eq!(kinds, ["pid", "ipc", "uts", "mount"], "network and cgroup are the agent's");
    assert!(linux.Namespaces.iter().all(|namespace| namespace.Path.is_empty()));
    assert_eq!(linux.CgroupsPath, "");
    assert_eq!(linux.Sysctl["net.ipv4.ip_forward"], "1");
    let resources = &linux.Resources;
    assert_eq!((resources.Memory.Limit, resources.CPU.Quota), (1_048_576, 10_000));
    assert_eq!((resources.CPU.Cpus.as_str(), resources.Pids.Limit), ("", 100));
    assert_eq!((resources.Devices[0].Allow, resources.Devices[0].Major), (false, -1));
    assert_eq!((resources.Devices[1].Type.as_str(), resources.Devices[1].Minor), ("c", 3));

    let seccomp = &linux.Seccomp;
    assert_eq!(seccomp.DefaultAction, "SCMP_ACT_ERRNO");
    assert_eq!(seccomp.Architectures, ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]);
    assert_eq!((seccomp.Syscalls[1].errnoret, seccomp.Syscalls[2].Args[0].Value), (38, 8));
    assert_eq!(seccomp.Syscalls[2].Args[0].Op, "SCMP_CMP_EQ");

    let sources: Vec<_> = host_mounts.iter().map(|m| (m.position, m.source.to_str())).collect();
    assert_eq!(
        sources,
        [(2, Some("/var/lib/pods/hosts")), (4, Some("/var/lib/pods/secret"))],
        "shared memory is the pod's own"
    );
    assert_eq!(spec.Mounts[3].source, nacre_protocol::channel::SANDBOX_SHM);
    let left_out = left_out.join(" ");
    for part in ["apparmorProfile", "cpu.cpus", "unified.memory.high"] {
        assert!(left_out.contains(part), "{left_out}");
    }
}

#[test]
fn initdata_and_wishes_for_the_machine_do_not_travel_with_each_container() {
    let mut source = ordinary();
    source["annotations"]["io.nacre.vm.vcpus"] = json!("2");
    source["annotations"][initdata::ANNOTATION] = json!("H4sI");
    let spec = convert(&parse(source), ROOT).unwrap().spec;
    assert_eq!(spec.Annotations.keys().collect::<Vec<_>>(), ["io.kubernetes.cri.container-type"]);
}

#[test]
fn the_pods_own_container_brings_no_files() {
    let mut converted = convert(&parse(ordinary()), ROOT).unwrap();
    converted.drop_host_mounts();
    let destinations: Vec<_> =
        converted.spec.Mounts.iter().map(|mount| mount.destination.as_str()).collect();
    assert_eq!(destinations, ["/proc", "/dev", "/dev/shm"]);
    assert!(converted.host_mounts.is_empty());
}

#[test]
fn what_would_need_the_host_is_refused_by_name() {
    let namespaces_without = |kind: &str| {
        let mut spec = ordinary();
        let list = spec.pointer_mut("/linux/namespaces").unwrap().as_array_mut().unwrap();
        list.retain(|namespace| namespace["type"] != kind);
        spec
    };
    let hook = json!([{"path": "/bin/sh"}]);
    let kvm = json!([{"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}]);
    for (spec, expected) in [
        (with("/hooks", json!({"prestart": hook})), "hooks.prestart"),
        (with("/hooks", json!({"poststop": hook})), "hooks.poststop"),
        (with("/linux/devices", kvm), "linux.devices[0] (/dev/kvm)"),
        (
            with("/linux/uidMappings", json!([{"containerID": 0, "hostID": 1, "size": 1}])),
            "linux.uidMappings",
        ),
        (with("/linux/namespaces/-", json!({"type": "user"})), "linux.namespaces[6] (User)"),
        (with("/linux/namespaces/-", json!({"type": "time"})), "linux.namespaces[6] (Time)"),
        (namespaces_without("pid"), "hostPID"),
        (namespaces_without("ipc"), "hostIPC"),
        (namespaces_without("mount"), "mount namespace"),
        (with("/linux/intelRdt", json!({"closID": "x"})), "linux.intelRdt"),
        (with("/linux/personality", json!({"domain": "LINUX"})), "linux.personality"),
        (with("/linux/seccomp/listenerPath", json!("/run/s")), "linux.seccomp.listenerPath"),
        (with("/linux/seccomp/defaultErrnoRet", json!(38)), "linux.seccomp.defaultErrnoRet"),
        (with("/linux/resources/rdma", json!({"mlx": {}})), "linux.resources.rdma"),
        (
            with("/mounts/-", json!({"destination": "/sys", "type": "sysfs", "source": "sysfs"})),
            "mounts[5] (sysfs, writable)",
        ),
        (
            with("/mounts/-", json!({"destination": "/x", "type": "nfs", "source": "h:/x"})),
            "mounts[5] with type \"nfs\"",
        ),
        (
            with("/mounts/-", json!({"destination": "/x", "type": "ext4", "source": "/dev/sda"})),
            "mounts[5] with type \"ext4\"",
        ),
        (
            with("/mounts/-", json!({"destination": "/x", "source": "x"})),
            "mounts[5] with type \"\"",
        ),
        (with("/vm", json!({"kernel": {"path": "/k"}, "hypervisor": {"path": "/q"}})), "vm"),
    ] {
        let error = convert(&parse(spec), ROOT).unwrap_err();
        assert!(matches!(error, SpecError::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn mistakes_are_named_by_field() {
    for (spec, expected) in [
        (with("/process/args", json!([])), "process.args is missing"),
        (with("/process/args", json!([""])), "process.args is missing"),
        (with("/process/cwd", json!("home")), "process.cwd is \"home\""),
        (with("/process", Value::Null), "process is missing"),
        (with("/linux", Value::Null), "linux is missing"),
        (
            with("/process/consoleSize", json!({"height": 1, "width": 4_294_967_296_u64})),
            "process.consoleSize.width",
        ),
        (with("/mounts/-", json!({"destination": "x", "type": "tmpfs"})), "mounts[5].destination"),
        (
            with("/mounts/-", json!({"destination": "/x", "type": "bind", "source": "rel"})),
            "mounts[5].source",
        ),
        (with("/mounts/-", json!({"destination": "/x", "type": "bind"})), "mounts[5].source"),
        (
            with("/linux/resources/hugepageLimits", json!([{"pageSize": "2MB", "limit": -1}])),
            "hugepageLimits.limit is -1",
        ),
    ] {
        let error = convert(&parse(spec), ROOT).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(error.code(), Code::INVALID_ARGUMENT);
    }
}

#[test]
fn the_network_is_a_namespace_of_the_pods_own() {
    let namespaces = |list: Value| network(&parse(with("/linux/namespaces", list)));
    assert_eq!(
        namespaces(json!([{"type": "network", "path": "/run/netns/a"}])),
        Ok(NetworkWanted::Path("/run/netns/a".into()))
    );
    for isolated in [json!([{"type": "network"}]), json!([{"type": "network", "path": ""}])] {
        assert_eq!(namespaces(isolated), Ok(NetworkWanted::Isolated));
    }
    let host = namespaces(json!([{"type": "pid"}])).unwrap_err();
    assert!(host.to_string().contains("without hostNetwork"), "{host}");
    assert!(namespaces(json!([{"type": "network", "path": "x"}])).is_err());
}

#[test]
fn sharing_the_pods_processes_is_recognized() {
    assert!(!shares_pod_processes(&parse(ordinary())));
    let shared = json!([{"type": "pid", "path": "/proc/77/ns/pid"}]);
    assert!(shares_pod_processes(&parse(with("/linux/namespaces", shared))));
}

#[test]
fn what_is_not_json_of_the_right_form_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(read(dir.path()), Err(SpecError::Read { .. })));
    for text in ["", "{", "3", "{\"ociVersion\": 1}", "{\"process\": {\"args\": 3}}", "\u{0}"] {
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        assert!(matches!(read(dir.path()), Err(SpecError::Parse { .. })), "{text:?}");
    }
    assert!(process_from_json(b"{}").is_err());
    assert!(process_from_json(b"\xff").is_err());
    assert!(resources_from_json(b"{\"memory\": {\"limit\": \"1\"}}").is_err());
    let update = resources_from_json(b"{\"cpu\": {\"shares\": 5}}").unwrap();
    assert_eq!(update.CPU.Shares, 5);
}

#[test]
fn block_devices_become_disks_and_their_rules_stay_here() {
    let xvda = json!({"path": "/dev/xvda", "type": "b", "major": 7, "minor": 3});
    let mut source = with("/linux/devices", json!([xvda]));
    let rules = source.pointer_mut("/linux/resources/devices").unwrap().as_array_mut().unwrap();
    rules.push(json!({"allow": true, "type": "b", "major": 7, "minor": 3, "access": "r"}));
    let converted = convert(&parse(source), ROOT).unwrap();
    let device = HostDevice { path: "/dev/xvda".to_owned(), major: 7, minor: 3, read_only: true };
    assert_eq!(converted.devices, [device]);
    let linux = converted.spec.Linux.unwrap();
    assert!(linux.Devices.is_empty());
    let rules = &linux.Resources.unwrap().Devices;
    assert_eq!(rules.len(), 2, "{rules:?}");
    assert!(rules.iter().all(|rule| rule.Type != "b"));
}
