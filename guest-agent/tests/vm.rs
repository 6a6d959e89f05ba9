//! The agent in a real VM: the guest image under QEMU's software emulation, spoken to as the shim does.
//!
//! It needs what `cargo xtask image` makes and the Debian package busybox-static, and is skipped without:
//! `cargo test -p nacre-agent --test vm -- --nocapture`. With `NACRE_TEST_CONSOLE=1` the
//! guest's console is printed also on success; `NACRE_TEST_IMAGE` names the directory of another image.

#![allow(clippy::unwrap_used)]

#[path = "vm/guest.rs"]
#[allow(dead_code)] // for the tests of another file
mod guest;
#[path = "vm/registry.rs"]
mod registry;

use std::time::Duration;

use guest::{
    Guest, HOST_FROM_GUEST, Launch, Stream, allow_all, container, context, message, mount, process,
    shell_process,
};
use nacre_protocol::agent::*;
use nacre_protocol::channel::COPY_ROOT;
use nacre_protocol::start_report::{self, Phase};

/// One VM for all stories: booting is what takes the time.
#[tokio::test]
async fn stories() {
    if let Some(missing) = guest::missing() {
        eprintln!("skipped: {} is absent; run `cargo xtask image`", missing.display());
        return;
    }
    let port = registry::serve().await;
    let registry = format!("{HOST_FROM_GUEST}:{port}");
    let parameters = format!("nacre.danger_plain_http={registry} nacre.danger_set_policy=1");
    let mut guest =
        Guest::boot(Launch { kernel_parameters: &parameters, ..Default::default() }).await;
    let image = format!("{registry}/busybox:latest");
    macro_rules! story {
        ($story:expr) => {{
            let begun = std::time::Instant::now();
            $story.await;
            eprintln!("{:<60} {:>7} ms", stringify!($story), begun.elapsed().as_millis());
        }};
    }
    story!(nothing_is_allowed_before_there_is_a_policy(&guest));
    story!(requests_out_of_order_are_refused(&guest));
    story!(guest.create_sandbox());
    story!(the_pause_container_runs(&guest));
    story!(an_image_is_pulled_and_runs(&guest, &image));
    story!(a_bad_image_is_named_and_leaves_nothing(&guest, &registry));
    story!(programs_that_are_absent_are_named(&guest, &image));
    story!(streams_carry_all_bytes(&guest));
    story!(exit_codes_and_signals(&guest));
    story!(a_terminal_has_a_size(&guest));
    story!(processes_are_confined(&guest));
    story!(a_first_process_has_terminal_user_and_directory(&guest, &image));
    story!(the_pod_shares_what_it_should(&guest, &image));
    story!(copied_files_are_bound_and_others_not(&guest, &image));
    story!(limits_hold(&guest, &image));
    story!(pause_stops_and_resume_goes_on(&guest));
    story!(containers_survive_a_lost_connection(&mut guest));
    story!(many_containers_at_once(&guest, &image));
    story!(the_agent_tells_its_size(&guest));
    guest.agent.destroy_sandbox(context(60), &DestroySandboxRequest::new()).await.unwrap();
    guest.ended().await;
}

async fn nothing_is_allowed_before_there_is_a_policy(guest: &Guest) {
    let denied = guest.agent.create_container(context(10), &container("a", "pause", &[])).await;
    assert!(message(denied).contains("this guest has no policy"));
    let broken = SetPolicyRequest { policy: "nonsense".into(), ..Default::default() };
    let error = message(guest.agent.set_policy(context(10), &broken).await);
    assert!(error.contains("not valid Rego"), "{error}");
    let request = SetPolicyRequest { policy: allow_all(), ..Default::default() };
    guest.agent.set_policy(context(10), &request).await.unwrap();
    let again = guest.agent.set_policy(context(10), &request).await.unwrap_err();
    let ttrpc::Error::RpcStatus(status) = &again else { panic!("{again}") };
    assert_eq!(status.code(), ttrpc::Code::PERMISSION_DENIED);
    assert!(status.message.contains("frozen"), "{again}");
}

async fn requests_out_of_order_are_refused(guest: &Guest) {
    let early = guest.agent.create_container(context(10), &container("a", "pause", &[])).await;
    assert!(message(early).contains("CreateSandbox first"));
    let absent = WaitProcessRequest { container_id: "a".into(), ..Default::default() };
    let absent = message(guest.agent.wait_process(context(10), &absent).await);
    assert!(absent.contains("container \"a\" not found"), "{absent}");
}

async fn the_pause_container_runs(guest: &Guest) {
    guest.run(&container("pod", "pause", &["/pause"])).await;
    let twice = guest.agent.create_container(context(60), &container("pod", "pause", &[])).await;
    assert!(message(twice).contains("exists"));
    let stats = StatsContainerRequest { container_id: "pod".into(), ..Default::default() };
    let stats = guest.agent.stats_container(context(10), &stats).await.unwrap();
    assert_eq!(stats.cgroup_stats.pids_stats.current, 1);
    assert!(stats.network_stats.iter().any(|network| network.name == "eth0"));
    let exec = message(guest.exec("pod", "x", process(&["/nope"])).await);
    assert!(exec.contains("no such file or directory"), "{exec}");
}

async fn an_image_is_pulled_and_runs(guest: &Guest, image: &str) {
    guest.run(&container("busybox", image, &["sh", "-c", "echo hello; exec sleep 1000"])).await;
    let hello = guest.read("busybox", "busybox", Stream::Stdout).await.unwrap();
    assert_eq!(hello, b"hello\n");
    let report =
        GetDiagnosticDataRequest { log_type: start_report::LOG_TYPE.into(), ..Default::default() };
    let report = guest.agent.get_diagnostic_data(context(10), &report).await.unwrap().data;
    let phases = start_report::parse(&report);
    assert!(phases.iter().any(|p| p.container == "busybox" && p.phase == Phase::Pull), "{report}");
    eprintln!("{report}");
}

async fn a_bad_image_is_named_and_leaves_nothing(guest: &Guest, registry: &str) {
    for image in [format!("{registry}/absent:1"), format!("{HOST_FROM_GUEST}:1/x:1"), "A b".into()]
    {
        let request = container("bad", &image, &["sh"]);
        let error = message(guest.agent.create_container(context(60), &request).await);
        assert!(error.contains(&image), "{error}");
        eprintln!("  {error}");
    }
}

async fn programs_that_are_absent_are_named(guest: &Guest, image: &str) {
    for (program, text) in [
        ("/bin/nope", "no such file or directory"),
        ("nope", "executable file not found in $PATH"),
        ("/etc/passwd", "permission denied"),
    ] {
        let request = container("absent", image, &[program]);
        let error = message(guest.agent.create_container(context(60), &request).await);
        assert!(error.contains(text), "{error}");
        eprintln!("  {error}");
        let exec = message(guest.exec("busybox", "absent", process(&[program])).await);
        assert!(exec.contains(text), "{exec}");
    }
    let mut request = container("absent", image, &["sh"]);
    let mounts = &mut request.OCI.mut_or_insert_default().Mounts;
    mounts.push(mount("tmpfs", "tmpfs", "/etc/passwd/x", &[]));
    let error = message(guest.agent.create_container(context(60), &request).await);
    assert!(error.contains("/etc/passwd"), "the cause is told: {error}");
    eprintln!("  {error}");
}

async fn streams_carry_all_bytes(guest: &Guest) {
    const SIZE: usize = 4 << 20;
    guest.exec("busybox", "cat", process(&["cat"])).await.unwrap();
    let data: Vec<u8> = (0..SIZE).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect();
    let write = async {
        for chunk in data.chunks(60_000) {
            guest.write("busybox", "cat", chunk).await.unwrap();
        }
        guest.close_stdin("busybox", "cat").await;
    };
    let (back, ()) = tokio::join!(guest.read_all("busybox", "cat", Stream::Stdout), write);
    assert!(back == data, "{} of {} bytes came back", back.len(), data.len());
    assert_eq!(guest.wait("busybox", "cat").await, 0);
    let late = message(guest.write("busybox", "cat", b"x").await);
    assert!(late.contains("stdin is closed"), "{late}");
    let (_, stdout, stderr) = guest.shell("busybox", "echo out; echo err >&2").await;
    assert_eq!((stdout.as_str(), stderr.as_str()), ("out\n", "err\n"));
}

async fn exit_codes_and_signals(guest: &Guest) {
    assert_eq!(guest.shell("busybox", "exit 7").await.0, 7);
    guest.exec("busybox", "sleep", process(&["sleep", "1000"])).await.unwrap();
    guest.signal("busybox", "sleep", 15).await;
    assert_eq!(guest.wait("busybox", "sleep").await, 128 + 15);
    guest.signal("busybox", "sleep", 15).await;
    let command = shell_process("kill -37 $$; sleep 10");
    guest.exec("busybox", "real-time", command).await.unwrap();
    assert_eq!(guest.wait("busybox", "real-time").await, 128 + 37);
}

async fn a_terminal_has_a_size(guest: &Guest) {
    let mut shell = process(&["sh"]);
    shell.Terminal = true;
    let size = shell.ConsoleSize.mut_or_insert_default();
    (size.Height, size.Width) = (40, 100);
    guest.exec("busybox", "tty", shell).await.unwrap();
    guest.write("busybox", "tty", b"stty size\n").await.unwrap();
    read_until(guest, "40 100").await;
    let resize = TtyWinResizeRequest {
        container_id: "busybox".into(),
        exec_id: "tty".into(),
        row: 50,
        column: 120,
        ..Default::default()
    };
    guest.agent.tty_win_resize(context(10), &resize).await.unwrap();
    guest.write("busybox", "tty", b"stty size; exit 3\n").await.unwrap();
    read_until(guest, "50 120").await;
    assert_eq!(guest.wait("busybox", "tty").await, 3);
    while guest.read("busybox", "tty", Stream::Stdout).await.is_some() {}
}

async fn read_until(guest: &Guest, wanted: &str) {
    let mut text = String::new();
    while !text.contains(wanted) {
        let data = guest.read("busybox", "tty", Stream::Stdout).await;
        text.push_str(&String::from_utf8_lossy(&data.unwrap_or_else(|| panic!("{text}"))));
    }
}

async fn processes_are_confined(guest: &Guest) {
    let status = "grep -E '^(CapEff|CapBnd|CapPrm|CapInh|Seccomp|NoNewPrivs):' /proc/self/status";
    let (_, exec, _) = guest.shell("busybox", status).await;
    let (_, init, _) = guest.shell("busybox", &status.replace("self", "1")).await;
    assert_eq!(exec, init, "a further process is confined as the first one");
    assert!(exec.contains("Seccomp:\t2") && !exec.contains("ffffffff"), "{exec}");
    let (status, _, error) = guest.shell("busybox", "chroot / true").await;
    assert!(status != 0 && error.contains("not permitted"), "filtered: {error}");
    // The agent's channel can be made as a node, but not be opened.
    let open = "n=$(cat /sys/class/virtio-ports/vport*p*/dev | head -1); \
                mknod /tmp/port c ${n%:*} ${n#*:} && cat /tmp/port";
    let (status, _, error) = guest.shell("busybox", open).await;
    assert!(status != 0 && error.contains("not permitted"), "{error}");
    let (status, _, error) = guest.shell("busybox", "mknod /tmp/c c 5 1 && echo x > /tmp/c").await;
    assert!(status != 0 && error.contains("not permitted"), "{error}");
    let (status, ..) = guest.shell("busybox", "head -c 9 /dev/urandom > /dev/null").await;
    assert_eq!(status, 0);
    let mut user = shell_process("id -u; id -G; echo $HOME; echo back > /dev/stdout");
    let wanted = user.User.mut_or_insert_default();
    (wanted.UID, wanted.GID, wanted.AdditionalGids) = (1000, 1000, vec![7]);
    guest.exec("busybox", "user", user).await.unwrap();
    let text = guest.read_all("busybox", "user", Stream::Stdout).await;
    assert_eq!(String::from_utf8_lossy(&text), "1000\n1000 7\n/home\nback\n");
}

async fn a_first_process_has_terminal_user_and_directory(guest: &Guest, image: &str) {
    let script = "tty; pwd; id -u; touch /x; grep NoNewPrivs: /proc/self/status; read line; exit 5";
    let mut request = container("first", image, &["sh", "-c", script]);
    let spec = request.OCI.mut_or_insert_default();
    spec.Root.mut_or_insert_default().Readonly = true;
    let process = spec.Process.mut_or_insert_default();
    (process.Terminal, process.Cwd, process.NoNewPrivileges) = (true, "/made/for/it".into(), true);
    process.User.mut_or_insert_default().UID = 1000;
    guest.run(&request).await;
    let mut text = String::new();
    while !text.contains("NoNewPrivs:\t1") {
        let data =
            guest.read("first", "", Stream::Stdout).await.unwrap_or_else(|| panic!("{text}"));
        text.push_str(&String::from_utf8_lossy(&data));
    }
    for wanted in ["/dev/", "/made/for/it", "1000", "Read-only file system"] {
        assert!(text.contains(wanted), "{wanted} is not in {text}");
    }
    let mut further = shell_process("grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status");
    further.NoNewPrivileges = true;
    guest.exec("first", "further", further).await.unwrap();
    let text = guest.read_all("first", "further", Stream::Stdout).await;
    assert_eq!(String::from_utf8_lossy(&text), "NoNewPrivs:\t1\nSeccomp:\t2\n");
    guest.write("first", "", b"\n").await.unwrap();
    assert_eq!(guest.wait("first", "").await, 5);
    guest.remove("first").await;
}

async fn the_pod_shares_what_it_should(guest: &Guest, image: &str) {
    let mut other = container("other", image, &["sleep", "1000"]);
    other.sandbox_pidns = true;
    guest.run(&other).await;
    let hostname = guest.shell("busybox", "hostname").await.1;
    assert_eq!(
        (hostname.as_str(), guest.shell("other", "hostname").await.1),
        ("the-pod\n", hostname.clone())
    );
    let network = "ls -l /proc/self/ns/net /proc/self/ns/ipc | cut -d'>' -f2";
    assert_eq!(guest.shell("busybox", network).await.1, guest.shell("other", network).await.1);
    assert!(guest.shell("other", "ps").await.1.contains("/pause"), "sees the pod's processes");
    assert!(!guest.shell("busybox", "ps").await.1.contains("/pause"), "sees its own");
    guest.signal("other", "", 9).await;
    assert_eq!(guest.wait("other", "other").await, 128 + 9);
    assert_eq!(guest.shell("busybox", "echo alive").await.1, "alive\n");
    guest.remove("other").await;
}

async fn copied_files_are_bound_and_others_not(guest: &Guest, image: &str) {
    let hosts = format!("{COPY_ROOT}/bound-0123456789abcdef-hosts");
    guest.copy(&hosts, b"127.0.0.1 localhost\n").await;
    let mut request = container("bound", image, &["cat", "/etc/hosts"]);
    let mounts = &mut request.OCI.mut_or_insert_default().Mounts;
    mounts.push(mount("bind", &hosts, "/etc/hosts", &["rbind", "rprivate", "ro"]));
    guest.run(&request).await;
    let text = guest.read_all("bound", "", Stream::Stdout).await;
    assert_eq!(text, b"127.0.0.1 localhost\n");
    assert_eq!(guest.wait("bound", "").await, 0);
    guest.remove("bound").await;
    for source in ["/etc", "/run/nacre", "/proc/1/root", COPY_ROOT, "/run/kata-containers/pod"] {
        let mounts = &mut request.OCI.mut_or_insert_default().Mounts;
        mounts.last_mut().unwrap().source = source.into();
        let error = message(guest.agent.create_container(context(60), &request).await);
        assert!(error.contains("OCI.Mounts[7].source"), "{error}");
    }
}

async fn limits_hold(guest: &Guest, image: &str) {
    let mut request =
        container("small", image, &["sh", "-c", "dd if=/dev/zero of=/tmp/x bs=1M; sleep 1000"]);
    let linux = request.OCI.mut_or_insert_default().Linux.mut_or_insert_default();
    let resources = linux.Resources.mut_or_insert_default();
    resources.Memory.mut_or_insert_default().Limit = 16 << 20;
    resources.Pids.mut_or_insert_default().Limit = 5;
    guest.run(&request).await;
    assert_eq!(guest.wait("small", "").await, 128 + 9);
    let event = guest.agent.get_oom_event(context(10), &GetOOMEventRequest::new()).await.unwrap();
    assert_eq!(event.container_id, "small");
    guest.remove("small").await;
    let mut update =
        UpdateContainerRequest { container_id: "busybox".into(), ..Default::default() };
    update.resources.mut_or_insert_default().Memory.mut_or_insert_default().Limit = 64 << 20;
    guest.agent.update_container(context(10), &update).await.unwrap();
    let limit = guest.shell("busybox", "cat /sys/fs/cgroup/memory.max").await.1;
    assert_eq!(limit, "67108864\n");
}

async fn pause_stops_and_resume_goes_on(guest: &Guest) {
    guest.exec("busybox", "echo", process(&["cat"])).await.unwrap();
    let pause = PauseContainerRequest { container_id: "busybox".into(), ..Default::default() };
    guest.agent.pause_container(context(20), &pause).await.unwrap();
    guest.write("busybox", "echo", b"x").await.unwrap();
    let read = guest.read("busybox", "echo", Stream::Stdout);
    assert!(tokio::time::timeout(Duration::from_secs(1), read).await.is_err(), "it is stopped");
    let resume = ResumeContainerRequest { container_id: "busybox".into(), ..Default::default() };
    guest.agent.resume_container(context(20), &resume).await.unwrap();
    // What was asked above and given up may have taken the byte along; this one comes.
    guest.write("busybox", "echo", b"y").await.unwrap();
    let read = guest.read("busybox", "echo", Stream::Stdout).await.unwrap();
    assert!(read.ends_with(b"y"), "{read:?}");
    guest.close_stdin("busybox", "echo").await;
    assert_eq!(guest.wait("busybox", "echo").await, 0);
}

async fn containers_survive_a_lost_connection(guest: &mut Guest) {
    guest.reconnect().await;
    assert_eq!(guest.shell("busybox", "echo alive").await.1, "alive\n");
}

async fn many_containers_at_once(guest: &Guest, image: &str) {
    let one = |number: usize| async move {
        let id = format!("many-{number}");
        guest.run(&container(&id, image, &["echo", &id])).await;
        let text = guest.read_all(&id, "", Stream::Stdout).await;
        assert_eq!(String::from_utf8_lossy(&text).trim(), id);
        assert_eq!(guest.wait(&id, "").await, 0);
        guest.remove(&id).await;
    };
    for _ in 0..2 {
        tokio::join!(one(0), one(1), one(2), one(3), one(4), one(5));
    }
}

async fn the_agent_tells_its_size(guest: &Guest) {
    let metrics = guest.agent.get_metrics(context(10), &GetMetricsRequest::new()).await.unwrap();
    let value = |name: &str| {
        let line = metrics.metrics.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.trim().parse::<u64>().ok()).unwrap()
    };
    let (memory, files) = (value("process_resident_memory_bytes"), value("process_open_fds"));
    eprintln!("  resident {} KiB, {files} open files", memory / 1024);
    assert!(memory < 64 << 20 && files < 100, "{}", metrics.metrics);
}
