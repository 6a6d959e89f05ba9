//! A hostile host: real pods in real VMs under generated policies, and somebody between shim and agent
//! who asks for more. Each request of theirs is refused with its reason, at the very moment at which the
//! right one would be accepted; then the right one is.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use nacre_protocol::agent::{
    self as api, CopyFileRequest, CreateContainerRequest, CreateSandboxRequest,
    StartContainerRequest, UpdateInterfaceRequest,
};
use nacre_protocol::channel::{ANNOTATION_IMAGE_NAME, COPY_ROOT};
use nacre_protocol::{oci, types};
use nacre_tests::hostile::{Code, Held, Intruder};
use nacre_tests::{Image, World, container};
use protobuf::{Message, MessageField};

/// Denials fit a Kubernetes event.
const LONGEST: usize = 1024;

/// Asks for something; it must be refused with these words.
async fn refused(
    intruder: &Intruder,
    what: &str,
    method: &str,
    request: &impl Message,
    words: &[&str],
) {
    let Err(refusal) = intruder.ask(method, request).await.unwrap() else {
        panic!("{what}: the agent did it");
    };
    println!("{what}: {:?}: {}", refusal.code, refusal.message);
    let sound = [Code::PERMISSION_DENIED, Code::INVALID_ARGUMENT].contains(&refusal.code);
    assert!(sound, "{what}: {:?}: {}", refusal.code, refusal.message);
    assert!(refusal.message.len() <= LONGEST, "{what}: {} bytes", refusal.message.len());
    for word in words {
        assert!(refusal.message.contains(word), "{what}: no {word:?} in {}", refusal.message);
    }
}

fn text(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[tokio::test]
async fn a_hostile_host_gets_no_more_than_the_owner_wrote() {
    let world = World::new().await.unwrap();
    let intruder = world.intrude().unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let evil = world.push(&Image::busybox("evil").env("EVIL", "yes")).unwrap();
    let app = container("app", &image).idle().user(1000).env("MODE", "careful");
    let app = app.files("config", "/config", [("key", "the owner's word\n")]);
    let pod = world.pod("target").with(app).settings("logs = false");

    let before = async {
        let held = intruder.hold("CreateSandbox").await.unwrap();
        sandboxes(&intruder, held).await;
    };
    let (pod, ()) = tokio::join!(async { pod.await.unwrap() }, before);
    networks(&intruder).await;
    let meanwhile = async {
        copies(&intruder).await;
        let held = intruder.hold("CreateContainer").await.unwrap();
        containers(&intruder, held, &evil).await;
        let held = intruder.hold("StartContainer").await.unwrap();
        starts(&intruder, held).await;
    };
    let (app, ()) = tokio::join!(async { pod.start("app").await.unwrap() }, meanwhile);
    assert!(app.runs().await.unwrap(), "the right requests were accepted");

    repetitions(&intruder).await;
    processes(&intruder, app.id()).await;
    the_rest(&intruder).await;

    // What is on the way is withheld, and said to be.
    app.wait_for("nacre: output withheld by the agent policy").await.unwrap();
    assert!(app.exec(["id"]).await.unwrap_err().to_string().contains("policy denies"));
    assert!(app.runs().await.unwrap());
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new());
}

/// Before there is a sandbox.
async fn sandboxes(intruder: &Intruder, held: Held<CreateSandboxRequest>) {
    let policy = "package agent_policy\ndefault CreateContainerRequest := true\n".to_owned();
    let request = api::SetPolicyRequest { policy, ..Default::default() };
    refused(intruder, "another policy", "SetPolicy", &request, &["SetPolicy"]).await;

    type Change = fn(&mut CreateSandboxRequest);
    let changes: [(&str, &[&str], Change); 5] = [
        ("other host name", &["hostname"], |r| r.hostname = "other".into()),
        ("a hook", &["guest_hook_path"], |r| r.guest_hook_path = "/tmp".into()),
        ("a kernel module", &["kernel_modules"], |r| {
            let module = api::KernelModule { name: "nbd".into(), ..Default::default() };
            r.kernel_modules.push(module);
        }),
        ("a mount over the guest's own", &["storages"], |r| {
            r.storages[0].mount_point = "/etc".into();
        }),
        ("lines in resolv.conf", &["dns"], |r| r.dns.push("nameserver 1.1.1.1\nx".into())),
    ];
    for (what, words, change) in changes {
        let mut request = held.request.clone();
        change(&mut request);
        refused(intruder, what, "CreateSandbox", &request, words).await;
    }
    let request = StartContainerRequest { container_id: "early".into(), ..Default::default() };
    refused(intruder, "a start before the sandbox", "StartContainer", &request, &["early"]).await;
    held.pass();
}

/// While the network is still the host's to give: but not what only the guest itself is.
async fn networks(intruder: &Intruder) {
    let seen: Vec<UpdateInterfaceRequest> = intruder.seen("UpdateInterface").unwrap();
    let right = seen.last().unwrap();
    for address in ["127.0.0.2", "169.254.169.254", "::1", "224.0.0.1"] {
        let mut request = right.clone();
        request.interface.mut_or_insert_default().IPAddresses[0].address = address.into();
        let what = format!("the address {address}");
        refused(intruder, &what, "UpdateInterface", &request, &["interface", address]).await;
    }
    let mut request = right.clone();
    request.interface.mut_or_insert_default().name = "lo".into();
    refused(intruder, "the loopback", "UpdateInterface", &request, &["interface"]).await;
    let second = CreateSandboxRequest { sandbox_id: "second".into(), ..Default::default() };
    refused(intruder, "a second sandbox", "CreateSandbox", &second, &["one sandbox"]).await;
}

/// Files for the container, as the shim copies them.
async fn copies(intruder: &Intruder) {
    // The file of the ConfigMap, whose content the policy knows.
    let held = loop {
        let held = intruder.hold::<CopyFileRequest>("CopyFile").await.unwrap();
        if held.request.path.ends_with("/key") && !held.request.data.is_empty() {
            break held;
        }
    };
    let right = &held.request;
    let mut request = right.clone();
    request.data = b"the host's word.\n".to_vec();
    request.file_size = i64::try_from(request.data.len()).unwrap();
    refused(intruder, "other content", "CopyFile", &request, &["content"]).await;

    let (directory, _) = right.path.rsplit_once('/').unwrap();
    let (volume, _) = directory.rsplit_once('/').unwrap();
    for (what, path) in [
        ("a path that climbs", format!("{COPY_ROOT}/../../../etc/passwd")),
        ("a path that climbs within", format!("{directory}/../../../../../etc/passwd")),
        ("a path with dots", format!("{directory}/./key")),
        ("an absolute path", "/etc/passwd".to_owned()),
        ("the agent itself", "/init".to_owned()),
        ("a volume that is not the pod's", volume.replace("-config", "-other")),
    ] {
        let request = CopyFileRequest { path, ..right.clone() };
        refused(intruder, what, "CopyFile", &request, &["path"]).await;
    }
    let link = |path: String, target: &str| CopyFileRequest {
        path,
        file_mode: 0o120_777,
        file_size: 0,
        offset: 0,
        data: target.as_bytes().to_vec(),
        ..right.clone()
    };
    for target in ["/etc", "../../../../../../etc", "..data/../../../etc"] {
        let request = link(format!("{volume}/way"), target);
        let what = format!("a link to {target}");
        refused(intruder, &what, "CopyFile", &request, &["CopyFile"]).await;
    }
    // The directory is there; a link in its place would lead what follows elsewhere.
    let request = link(directory.to_owned(), "/etc");
    refused(intruder, "a link in a directory's place", "CopyFile", &request, &["CopyFile"]).await;
    let request = CopyFileRequest { file_mode: 0o104_755, ..right.clone() };
    refused(intruder, "a set-user-ID program", "CopyFile", &request, &["CopyFile"]).await;
    let request = CopyFileRequest { file_mode: 0o020_666, ..right.clone() };
    refused(intruder, "a device", "CopyFile", &request, &["CopyFile"]).await;
    held.pass();
}

/// A container, each time with one thing changed.
async fn containers(intruder: &Intruder, held: Held<CreateContainerRequest>, evil: &str) {
    let right = &held.request;
    let try_one =
        async |what: &str, words: &[&str], change: &dyn Fn(&mut CreateContainerRequest)| {
            let mut request = right.clone();
            change(&mut request);
            assert!(request != *right, "{what}: nothing was changed");
            refused(intruder, what, "CreateContainer", &request, words).await;
        };
    try_one("other image", &["image", "app"], &|r| r.storages[0].source = evil.into()).await;
    try_one("other image, told everywhere", &["image"], &|r| {
        r.storages[0].source = evil.into();
        oci(r).Annotations.insert(ANNOTATION_IMAGE_NAME.into(), evil.into());
    })
    .await;
    try_one("a second image", &["image"], &|r| {
        let mut second = r.storages[0].clone();
        second.source = evil.into();
        r.storages.push(second);
    })
    .await;
    try_one("an image mounted elsewhere", &["image"], &|r| {
        r.storages[0].mount_point = "/run".into();
    })
    .await;
    for (what, words, change) in PROCESS_CHANGES {
        try_one(what, words, &|r| change(process(r))).await;
    }
    for (what, words, change) in SPEC_CHANGES {
        try_one(what, words, &|r| change(oci(r))).await;
    }
    for (what, words, change) in REQUEST_CHANGES {
        try_one(what, words, &|r| change(r)).await;
    }
    held.pass();
}

type Changes<T> = &'static [(&'static str, &'static [&'static str], fn(&mut T))];

const PROCESS_CHANGES: Changes<oci::Process> = &[
    ("other command", &["Process.Args", "sleep"], |p| p.Args = text(&["sh", "-c", "evil"])),
    ("one more argument", &["Process.Args"], |p| p.Args.push("evil".into())),
    ("extra variable", &["Process.Env", "LD_PRELOAD"], |p| p.Env.push("LD_PRELOAD=/x".into())),
    ("dropped variable", &["Process.Env", "MODE"], |p| p.Env.retain(|e| !e.starts_with("MODE="))),
    ("changed variable", &["Process.Env", "MODE"], |p| {
        p.Env.retain(|entry| !entry.starts_with("MODE="));
        p.Env.push("MODE=careless".into());
    }),
    ("a variable twice", &["Process.Env"], |p| p.Env.push("MODE=careful".into())),
    ("privileged", &["Capabilities", "CAP_SYS_ADMIN"], |p| {
        let all = &["CAP_SYS_ADMIN", "CAP_SYS_MODULE", "CAP_SYS_PTRACE", "CAP_NET_ADMIN"];
        let sets = capabilities(p);
        for set in [&mut sets.Bounding, &mut sets.Effective, &mut sets.Permitted] {
            set.extend(text(all));
        }
    }),
    ("one more capability", &["Capabilities", "CAP_NET_ADMIN"], |p| {
        let sets = capabilities(p);
        for set in [&mut sets.Bounding, &mut sets.Effective, &mut sets.Permitted] {
            set.push("CAP_NET_ADMIN".into());
        }
    }),
    ("an ambient capability", &["Capabilities"], |p| {
        capabilities(p).Ambient = text(&["CAP_CHOWN"]);
    }),
    ("changed user", &["Process.User"], |p| p.User.mut_or_insert_default().UID = 0),
    ("changed group", &["Process.User"], |p| p.User.mut_or_insert_default().GID = 7),
    ("one more group", &["Process.User"], |p| {
        p.User.mut_or_insert_default().AdditionalGids.push(7);
    }),
    ("other directory", &["Process.Cwd"], |p| p.Cwd = "/proc".into()),
    ("a terminal", &["Process.Terminal"], |p| p.Terminal = true),
    ("other limits", &["Rlimits"], |p| {
        let limit = oci::POSIXRlimit { Type: "RLIMIT_CORE".into(), ..Default::default() };
        p.Rlimits.push(limit);
    }),
];

const SPEC_CHANGES: Changes<oci::Spec> = &[
    ("extra mount", &["Mounts", "/etc"], |s| {
        let volume = s.Mounts.iter().find(|mount| mount.destination == "/config").unwrap().clone();
        s.Mounts.push(oci::Mount { destination: "/etc".into(), ..volume });
    }),
    ("hostPath", &["Mounts", "/host"], |s| {
        s.Mounts.push(oci::Mount {
            destination: "/host".into(),
            source: "/".into(),
            type_: "bind".into(),
            options: text(&["rbind", "rw"]),
            ..Default::default()
        });
    }),
    ("a dropped mount", &["Mounts", "/config"], |s| {
        s.Mounts.retain(|mount| mount.destination != "/config");
    }),
    ("another container's files", &["Mounts", "/config"], |s| {
        let mount = s.Mounts.iter_mut().find(|mount| mount.destination == "/config").unwrap();
        mount.source = format!("{COPY_ROOT}/other-0123456789abcdef-config");
    }),
    ("a writable mount", &["Mounts", "/config"], |s| {
        let mount = s.Mounts.iter_mut().find(|mount| mount.destination == "/config").unwrap();
        mount.options.retain(|option| option != "ro");
        mount.options.push("rw".into());
    }),
    ("a host namespace", &["Namespaces", "/proc/1/ns/net"], |s| {
        linux(s).Namespaces.push(oci::LinuxNamespace {
            Type: "network".into(),
            Path: "/proc/1/ns/net".into(),
            ..Default::default()
        });
    }),
    ("the guest's processes", &["Namespaces"], |s| {
        linux(s).Namespaces.retain(|namespace| namespace.Type != "pid");
    }),
    ("other sysctl", &["Sysctl", "kernel.core_pattern"], |s| {
        linux(s).Sysctl.insert("kernel.core_pattern".into(), "|/evil".into());
    }),
    ("a device", &["devices", "/dev/vda"], |s| {
        linux(s).Devices.push(oci::LinuxDevice {
            Path: "/dev/vda".into(),
            Type: "b".into(),
            Major: 254,
            FileMode: 0o666,
            ..Default::default()
        });
    }),
    ("all devices", &["Resources.Devices"], |s| {
        let rule = oci::LinuxDeviceCgroup {
            Allow: true,
            Type: "a".into(),
            Major: -1,
            Minor: -1,
            Access: "rwm".into(),
            ..Default::default()
        };
        linux(s).Resources.mut_or_insert_default().Devices.push(rule);
    }),
    ("bare /proc", &["MaskedPaths"], |s| linux(s).MaskedPaths.clear()),
    ("writable /proc/sys", &["ReadonlyPaths"], |s| linux(s).ReadonlyPaths.clear()),
    ("a hook", &["hooks"], |s| {
        let hook = oci::Hook { Path: "/bin/sh".into(), ..Default::default() };
        s.Hooks.mut_or_insert_default().Prestart.push(hook);
    }),
    ("the guest's root", &["Root"], |s| s.Root.mut_or_insert_default().Path = "/".into()),
    ("a read-only root", &["Root"], |s| s.Root.mut_or_insert_default().Readonly = true),
    ("an unknown annotation", &["Annotations", "evil"], |s| {
        s.Annotations.insert("evil".into(), "1".into());
    }),
    ("another pod's name", &["sandbox-name"], |s| {
        s.Annotations.insert("io.kubernetes.cri.sandbox-name".into(), "other".into());
    }),
    ("a container that is not the pod's", &["container-name", "other"], |s| {
        s.Annotations.insert("io.kubernetes.cri.container-name".into(), "other".into());
    }),
    ("a second pause container", &["container_id"], |s| {
        s.Annotations.insert("io.kubernetes.cri.container-type".into(), "sandbox".into());
    }),
    ("other host name", &["Hostname"], |s| s.Hostname = "other".into()),
];

const REQUEST_CHANGES: Changes<CreateContainerRequest> = &[
    ("the pod's processes", &["sandbox_pidns"], |r| r.sandbox_pidns = true),
    ("a device of the VM", &["devices"], |r| {
        r.devices.push(api::Device {
            type_: "blk".into(),
            vm_path: "/dev/vda".into(),
            container_path: "/dev/vda".into(),
            ..Default::default()
        });
    }),
    ("a shared mount", &["shared mounts"], |r| {
        r.shared_mounts.push(api::SharedMount { name: "x".into(), ..Default::default() });
    }),
    ("streams by vsock", &["ports"], |r| r.stdout_port = 9),
    ("an identifier that climbs", &[], |r| r.container_id = "../../etc".into()),
];

fn oci(request: &mut CreateContainerRequest) -> &mut oci::Spec {
    request.OCI.mut_or_insert_default()
}

fn process(request: &mut CreateContainerRequest) -> &mut oci::Process {
    oci(request).Process.mut_or_insert_default()
}

fn linux(spec: &mut oci::Spec) -> &mut oci::Linux {
    spec.Linux.mut_or_insert_default()
}

fn capabilities(process: &mut oci::Process) -> &mut oci::LinuxCapabilities {
    process.Capabilities.mut_or_insert_default()
}

/// Between the container's creation and its start.
async fn starts(intruder: &Intruder, held: Held<StartContainerRequest>) {
    for id in ["unknown", "namespace", "../app"] {
        let request = StartContainerRequest { container_id: id.into(), ..Default::default() };
        refused(intruder, &format!("start of {id}"), "StartContainer", &request, &[]).await;
        let request = api::RemoveContainerRequest { container_id: id.into(), ..Default::default() };
        refused(intruder, &format!("removal of {id}"), "RemoveContainer", &request, &[]).await;
        let request =
            api::SignalProcessRequest { container_id: id.into(), signal: 9, ..Default::default() };
        refused(intruder, &format!("signal to {id}"), "SignalProcess", &request, &[]).await;
    }
    let id = held.request.container_id.clone();
    let request = api::ExecProcessRequest { container_id: id, ..Default::default() };
    refused(intruder, "exec before the start", "ExecProcess", &request, &[]).await;
    held.pass();
}

/// What was right the first time is wrong the second.
async fn repetitions(intruder: &Intruder) {
    let seen: Vec<CreateContainerRequest> = intruder.seen("CreateContainer").unwrap();
    let right = seen.last().unwrap().clone();
    refused(intruder, "the same container again", "CreateContainer", &right, &["app"]).await;
    let mut other = right.clone();
    let root = format!("/run/kata-containers/{}/rootfs", "again");
    other.container_id = "again".into();
    other.exec_id = "again".into();
    other.storages[0].mount_point.clone_from(&root);
    let spec = oci(&mut other);
    spec.Root.mut_or_insert_default().Path = root;
    for mount in &mut spec.Mounts {
        mount.source = mount.source.replace(&right.container_id, "again");
    }
    refused(intruder, "its twin", "CreateContainer", &other, &["app", "once"]).await;
    let again = StartContainerRequest { container_id: right.container_id, ..Default::default() };
    refused(intruder, "a second start", "StartContainer", &again, &["running"]).await;

    let seen: Vec<CopyFileRequest> = intruder.seen("CopyFile").unwrap();
    let file = seen.iter().rfind(|request| request.path.ends_with("/key")).unwrap();
    refused(intruder, "a file under a running container", "CopyFile", file, &["path"]).await;

    let seen: Vec<UpdateInterfaceRequest> = intruder.seen("UpdateInterface").unwrap();
    let mut bogus = seen.last().unwrap().clone();
    bogus.interface.mut_or_insert_default().IPAddresses[0].address = "6.6.6.6".into();
    refused(intruder, "a bogus address", "UpdateInterface", &bogus, &["network"]).await;
    let device = bogus.interface.name.clone();
    let route =
        types::Route { gateway: "10.88.6.6".into(), device: device.clone(), ..Default::default() };
    let routes = api::Routes { Routes: vec![route], ..Default::default() };
    let request =
        api::UpdateRoutesRequest { routes: MessageField::some(routes), ..Default::default() };
    refused(intruder, "a route to the attacker", "UpdateRoutes", &request, &["network"]).await;
    let neighbour = types::ARPNeighbor {
        toIPAddress: MessageField::some(types::IPAddress {
            address: "10.88.0.1".into(),
            ..Default::default()
        }),
        device,
        lladdr: "02:06:06:06:06:06".into(),
        ..Default::default()
    };
    let neighbors = api::ARPNeighbors { ARPNeighbors: vec![neighbour], ..Default::default() };
    let request = api::AddARPNeighborsRequest {
        neighbors: MessageField::some(neighbors),
        ..Default::default()
    };
    refused(intruder, "a neighbour's impostor", "AddARPNeighbors", &request, &["network"]).await;
}

/// The running container.
async fn processes(intruder: &Intruder, app: &str) {
    let seen: Vec<CreateContainerRequest> = intruder.seen("CreateContainer").unwrap();
    let mut process = seen.last().unwrap().OCI.Process.clone();
    process.mut_or_insert_default().Args = text(&["cat", "/config/key"]);
    let container_id = || app.to_owned();
    let request = api::ExecProcessRequest {
        container_id: container_id(),
        exec_id: "spy".into(),
        process,
        ..Default::default()
    };
    refused(intruder, "exec", "ExecProcess", &request, &["process.Args", "cat"]).await;
    let request = api::WriteStreamRequest {
        container_id: container_id(),
        exec_id: container_id(),
        data: b"evil\n".to_vec(),
        ..Default::default()
    };
    refused(intruder, "stdin", "WriteStdin", &request, &["stdin"]).await;
    let request = api::ReadStreamRequest {
        container_id: container_id(),
        exec_id: container_id(),
        len: 1024,
        ..Default::default()
    };
    refused(intruder, "stdout", "ReadStdout", &request, &["logs"]).await;
    refused(intruder, "stderr", "ReadStderr", &request, &["logs"]).await;
    let request = api::SignalProcessRequest {
        container_id: container_id(),
        exec_id: container_id(),
        signal: 10,
        ..Default::default()
    };
    refused(intruder, "another signal", "SignalProcess", &request, &["signal"]).await;
    let request =
        api::UpdateContainerRequest { container_id: container_id(), ..Default::default() };
    refused(intruder, "other limits", "UpdateContainer", &request, &["update_container"]).await;
    let request = api::PauseContainerRequest { container_id: container_id(), ..Default::default() };
    refused(intruder, "a freeze", "PauseContainer", &request, &["pause"]).await;
}

/// What no pod needs from its host.
async fn the_rest(intruder: &Intruder) {
    let request = api::SetGuestDateTimeRequest { Sec: 4_102_444_800, ..Default::default() };
    refused(intruder, "a jump in time", "SetGuestDateTime", &request, &["clock"]).await;
    let request = api::SetPolicyRequest { policy: String::new(), ..Default::default() };
    refused(intruder, "no policy", "SetPolicy", &request, &[]).await;
    let request = api::GetDiagnosticDataRequest { log_type: "kernel".into(), ..Default::default() };
    refused(intruder, "the kernel's log", "GetDiagnosticData", &request, &[]).await;
    let request = api::AddSwapPathRequest { path: "/dev/vda".into(), ..Default::default() };
    refused(intruder, "swap on the host's disk", "AddSwapPath", &request, &[]).await;
    let request = api::ListInterfacesRequest::new();
    refused(intruder, "the interfaces", "ListInterfaces", &request, &[]).await;
    let request = api::SetIPTablesRequest { data: b"*nat\n".to_vec(), ..Default::default() };
    refused(intruder, "iptables", "SetIPTables", &request, &[]).await;
    let request = api::UpdateEphemeralMountsRequest::new();
    refused(intruder, "ephemeral mounts", "UpdateEphemeralMounts", &request, &[]).await;
    let request = api::VolumeStatsRequest { volume_guest_path: "/".into(), ..Default::default() };
    refused(intruder, "a volume's statistics", "GetVolumeStats", &request, &[]).await;
}
