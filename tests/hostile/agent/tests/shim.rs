//! The shim against guests that mean harm: it stays small, answers containerd, and takes the pod down.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::TaskClient;
use nacre_hostile_agent::{Behaviour, Guest, frame};
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::empty::Empty;
use serde_json::json;
use tokio::time::timeout;
use ttrpc::context::Context;

/// How long anything may take before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(90);
/// What a shim may take more than one whose guest is honest, in KiB: some messages of the largest size.
const MORE_KIB: u64 = 40 * 1024;

/// Largest file of a pod's run directory, in bytes: the console's and QEMU's log are kept to 256 KiB.
const MOST_FILE_BYTES: u64 = 256 * 1024;

/// containerd's annotations of what a container is.
const KIND: &str = "io.kubernetes.cri.container-type";
const IMAGE: &str = "io.kubernetes.cri.image-name";

/// What is needed to run a shim.
#[derive(Clone)]
struct Node {
    shim: PathBuf,
    image: PathBuf,
}

impl Node {
    fn find() -> Option<Node> {
        let skipped = |reason: &str| {
            eprintln!("SKIPPED: {reason}");
            None
        };
        if !rustix::process::geteuid().is_root() {
            return skipped("it takes root to run the shim");
        }
        let programs = Path::new(env!("CARGO_BIN_EXE_nacre-hostile-agent")).parent().unwrap();
        let programs = std::env::var_os("NACRE_BIN").map_or(programs.to_owned(), PathBuf::from);
        let shim = programs.join("containerd-shim-nacre-v2");
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../target/nacre");
        let image = std::env::var_os("NACRE_PREFIX").map_or(root, PathBuf::from).join("image");
        for needed in [&shim, &image] {
            if !needed.exists() {
                return skipped(&format!("{} is not built", needed.display()));
            }
        }
        Some(Node { shim, image })
    }
}

/// A shim whose machine is a guest of that behaviour, as containerd would have started it.
struct Shim {
    id: String,
    bundle: tempfile::TempDir,
    pid: u32,
    tasks: TaskClient,
}

impl Shim {
    async fn start(node: &Node, behaviour: Behaviour) -> Shim {
        let id = format!("hostile-{}-{}", behaviour.name(), std::process::id());
        let bundle = tempfile::tempdir().unwrap();
        let path = |name: &str| bundle.path().join(name);
        let qemu = env!("CARGO_BIN_EXE_nacre-hostile-agent");
        let boots_within = match behaviour.guest() {
            Guest::NeverBoots => 3,
            Guest::Runs | Guest::Resists => 60,
        };
        let config = format!(
            "[vm]\nqemu = {qemu:?}\nimage = {:?}\nboot_timeout_seconds = {boots_within}\n\
             kernel_parameters = \"hostile={}\"\n[cache]\nsocket = \"\"\n",
            node.image,
            behaviour.name()
        );
        fs::write(path("nacre.toml"), config).unwrap();
        let kind = match behaviour.guest() {
            Guest::NeverBoots | Guest::Runs => json!({ IMAGE: "registry.test/image:1" }),
            Guest::Resists => json!({ KIND: "sandbox" }),
        };
        write_spec(bundle.path(), &id, &kind);
        let events = UnixListener::bind(path("events.sock")).unwrap();
        std::thread::spawn(move || take_events(&events));

        let output = shim_command(node, bundle.path())
            .args(["-namespace", "hostile", "-id", &id, "-address"])
            .arg(path("containerd.sock"))
            .arg("start")
            .env("TTRPC_ADDRESS", path("events.sock"))
            .current_dir(bundle.path())
            .output()
            .unwrap();
        let address = String::from_utf8(output.stdout).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", behaviour.name());
        let socket = Path::new(address.strip_prefix("unix://").unwrap());
        assert_eq!(fs::metadata(socket).unwrap().permissions().mode() & 0o7777, 0o600);
        let client = ttrpc::r#async::Client::connect(&address).await.unwrap();
        let tasks = TaskClient::new(client);
        let connect = api::ConnectRequest { id: id.clone(), ..Default::default() };
        let pid = tasks.connect(Context::default(), &connect).await.unwrap().shim_pid;
        Shim { id, bundle, pid, tasks }
    }

    async fn create(&self) -> ttrpc::Result<api::CreateTaskResponse> {
        self.create_in(&self.id, self.bundle.path()).await
    }

    /// Another container of the pod.
    async fn create_member(&self, member: &str) -> ttrpc::Result<api::CreateTaskResponse> {
        let bundle = self.bundle.path().join(member);
        fs::create_dir(&bundle).unwrap();
        let kind = json!({
            KIND: "container", "io.kubernetes.cri.sandbox-id": self.id, IMAGE: "registry.test/image:1",
        });
        write_spec(&bundle, member, &kind);
        self.create_in(member, &bundle).await
    }

    async fn create_in(&self, id: &str, bundle: &Path) -> ttrpc::Result<api::CreateTaskResponse> {
        let stdout = bundle.join("stdout");
        rustix::fs::mknodat(rustix::fs::CWD, &stdout, rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .unwrap();
        let config = self.bundle.path().join("nacre.toml");
        let config = config.to_str().unwrap();
        // runtimeoptions.v1.Options: config_path = 2.
        let mut value = vec![18, u8::try_from(config.len()).unwrap()];
        value.extend(config.as_bytes());
        let request = api::CreateTaskRequest {
            id: id.to_owned(),
            bundle: bundle.to_str().unwrap().to_owned(),
            stdout: stdout.to_str().unwrap().to_owned(),
            options: Some(Any {
                type_url: "runtimeoptions.v1.Options".to_owned(),
                value,
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        self.tasks.create(Context::default(), &request).await
    }

    async fn start_container(&self, id: &str) -> ttrpc::Result<api::StartResponse> {
        let request = api::StartRequest { id: id.to_owned(), ..Default::default() };
        self.tasks.start(Context::default(), &request).await
    }

    /// Sends `SIGKILL` once. Then it is the shim's to see to the end, whatever the guest says.
    async fn kill(&self, id: &str) {
        let request = api::KillRequest { id: id.to_owned(), signal: 9, ..Default::default() };
        match self.tasks.kill(Context::default(), &request).await {
            Ok(_) => {}
            Err(ttrpc::Error::RpcStatus(status)) if status.code() == ttrpc::Code::NOT_FOUND => {}
            Err(error) => panic!("{id}: SIGKILL is refused: {error}"),
        }
    }

    async fn wait(&self, id: &str) -> ttrpc::Result<api::WaitResponse> {
        let request = api::WaitRequest { id: id.to_owned(), ..Default::default() };
        self.tasks.wait(Context::default(), &request).await
    }

    async fn delete(&self, id: &str) -> ttrpc::Result<api::DeleteResponse> {
        let request = api::DeleteRequest { id: id.to_owned(), ..Default::default() };
        self.tasks.delete(Context::default(), &request).await
    }

    async fn stats(&self) -> ttrpc::Result<api::StatsResponse> {
        let request = api::StatsRequest { id: self.id.clone(), ..Default::default() };
        self.tasks.stats(Context::default(), &request).await
    }

    async fn state(&self) -> ttrpc::Result<api::StateResponse> {
        let request = api::StateRequest { id: self.id.clone(), ..Default::default() };
        self.tasks.state(Context::default(), &request).await
    }

    /// The most memory that it has had, in KiB.
    fn peak_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Ends it as containerd does, and sees to it that nothing is left.
    async fn end(self) {
        let _ = self.delete(&self.id).await;
        let shutdown = api::ShutdownRequest { id: self.id.clone(), ..Default::default() };
        let _ = self.tasks.shutdown(Context::default(), &shutdown).await;
        let deadline = Instant::now() + PATIENCE;
        while is_running(self.pid) {
            assert!(Instant::now() < deadline, "{}: the shim does not end", self.id);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(!Path::new("/run/nacre").join(&self.id).exists(), "{}", self.id);
        let left: Vec<_> = control_groups(&self.id).into_iter().collect();
        assert!(left.is_empty(), "{left:?} are left");
    }
}

/// The shim, on a host without vhost-vsock: there an agent could not be played without a machine. A device is hidden by
/// a socket, which cannot be opened.
fn shim_command(node: &Node, bundle: &Path) -> Command {
    const DEVICE: &str = "/dev/vhost-vsock";
    if !Path::new(DEVICE).exists() {
        return Command::new(&node.shim);
    }
    let socket = bundle.join("no-vsock");
    UnixListener::bind(&socket).unwrap();
    let mut command = Command::new("unshare");
    let script = format!("mount --bind \"$0\" {DEVICE} && exec \"$@\"");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    command.args([&socket, &node.shim]);
    command
}

/// What containerd puts into a bundle, with the annotations that say what the container is.
fn write_spec(bundle: &Path, id: &str, annotations: &serde_json::Value) {
    let kinds = ["network", "pid", "ipc", "uts", "mount"];
    let namespaces = kinds.map(|kind| json!({ "type": kind }));
    let spec = json!({
        "ociVersion": "1.0.2",
        "process": { "args": ["true"], "cwd": "/", "user": { "uid": 0, "gid": 0 } },
        "root": { "path": "rootfs" },
        "annotations": annotations,
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": format!("/nacre-hostile/{id}"),
        },
    });
    fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
}

/// Takes whatever events come.
fn take_events(listener: &UnixListener) {
    for connection in listener.incoming().flatten() {
        std::thread::spawn(move || {
            let mut connection = connection;
            while let Ok(event) = frame::read(&mut connection) {
                if frame::answer(&mut connection, event.stream, &Empty::new()).is_err() {
                    return;
                }
            }
        });
    }
}

/// Whether a process of that number runs; a zombie, whose parent is not ours, does not.
fn is_running(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// The directories of a sandbox's control group.
fn control_groups(id: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    let roots = hierarchies.chain([root.to_owned()]);
    let group = format!("nacre-hostile/nacre-{id}");
    roots.map(|root| root.join(&group)).filter(|path| path.is_dir()).collect()
}

/// What people read of a failure: bounded, and nothing that a terminal would obey.
fn is_fit_to_print(words: &str) -> bool {
    words.len() < 2048 && !words.chars().any(char::is_control)
}

async fn within<T>(behaviour: Behaviour, doing: &str, work: impl Future<Output = T>) -> T {
    let done = timeout(PATIENCE, work).await;
    done.unwrap_or_else(|_| panic!("{}: {doing} is stuck", behaviour.name()))
}

/// A guest that never becomes ready: the pod fails, in time and with words.
async fn boots(node: &Node, behaviour: Behaviour) -> u64 {
    let shim = Shim::start(node, behaviour).await;
    let error = within(behaviour, "create", shim.create()).await.unwrap_err().to_string();
    eprintln!("{}: {error}", behaviour.name());
    assert!(is_fit_to_print(&error), "{}: {error:?}", behaviour.name());
    let peak = shim.peak_kib();
    within(behaviour, "the end", shim.end()).await;
    peak
}

/// A guest that turns hostile once its container runs.
async fn runs(node: &Node, behaviour: Behaviour) -> u64 {
    let name = behaviour.name();
    let shim = Shim::start(node, behaviour).await;
    within(behaviour, "create", shim.create()).await.unwrap_or_else(|e| panic!("{name}: {e}"));
    let groups = control_groups(&shim.id);
    assert!(!groups.is_empty(), "{name}: no control group");
    for group in groups {
        let inside = fs::read_to_string(group.join("cgroup.procs")).unwrap();
        assert!(inside.lines().any(|pid| pid == shim.pid.to_string()), "{}", group.display());
        assert_eq!(inside.lines().count(), 2, "shim and machine: {inside}");
    }
    // Nobody reads it until the end.
    let stdout = shim.bundle.path().join("stdout");
    let mut reader = fs::File::options();
    let reader = reader.read(true).custom_flags(libc::O_NONBLOCK).open(&stdout).unwrap();
    within(behaviour, "start", shim.start_container(&shim.id)).await.unwrap();
    for _ in 0..20 {
        // It answers by itself at any time.
        within(behaviour, "state", shim.state()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    match within(behaviour, "stats", shim.stats()).await {
        Ok(answer) => assert!(answer.stats.value.len() < 64 << 10, "{name}: large statistics"),
        Err(error) => assert!(is_fit_to_print(&error.to_string()), "{name}: {error}"),
    }
    for file in fs::read_dir(Path::new("/run/nacre").join(&shim.id)).unwrap() {
        let file = file.unwrap();
        let size = file.metadata().unwrap().len();
        assert!(size <= MOST_FILE_BYTES, "{name}: {} has {size} bytes", file.path().display());
    }
    within(behaviour, "kill", shim.kill(&shim.id)).await;
    let exit = within(behaviour, "wait", shim.wait(&shim.id)).await.unwrap();
    assert_eq!(exit.exit_status, 137, "{name}");
    drop(reader);
    let peak = shim.peak_kib();
    within(behaviour, "the end", shim.end()).await;
    peak
}

/// A guest that does not let its pod end: containerd's usual requests end it all the same.
async fn resists(node: &Node, behaviour: Behaviour) -> u64 {
    let name = behaviour.name();
    let shim = Shim::start(node, behaviour).await;
    within(behaviour, "create", shim.create()).await.unwrap_or_else(|e| panic!("{name}: {e}"));
    within(behaviour, "start", shim.start_container(&shim.id)).await.unwrap();
    let created = within(behaviour, "create a member", shim.create_member("member")).await;
    created.unwrap_or_else(|e| panic!("{name}: {e}"));
    within(behaviour, "start the member", shim.start_container("member")).await.unwrap();
    for container in ["member", &shim.id] {
        within(behaviour, "kill", shim.kill(container)).await;
        let exit = within(behaviour, "wait", shim.wait(container)).await.unwrap();
        assert_eq!(exit.exit_status, 137, "{name}: {container}");
        let deleted = within(behaviour, "delete", shim.delete(container)).await;
        deleted.unwrap_or_else(|e| panic!("{name}: {container} is not deleted: {e}"));
    }
    let peak = shim.peak_kib();
    within(behaviour, "the end", shim.end()).await;
    peak
}

async fn plays(node: &Node, behaviour: Behaviour) -> u64 {
    match behaviour.guest() {
        Guest::NeverBoots => boots(node, behaviour).await,
        Guest::Runs => runs(node, behaviour).await,
        Guest::Resists => resists(node, behaviour).await,
    }
}

#[tokio::test]
async fn no_guest_crashes_wedges_or_bloats_the_shim() {
    let Some(node) = Node::find() else { return };
    let usual = plays(&node, Behaviour::Honest).await;
    eprintln!("honest: {usual} KiB at most");
    let is_patient = |behaviour: &Behaviour| {
        behaviour.guest() == Guest::Resists
            || matches!(behaviour, Behaviour::Mute | Behaviour::Lies)
    };
    let others = Behaviour::all().filter(|behaviour| *behaviour != Behaviour::Honest);
    // Those that wait for most of their time do so beside the others.
    let (patient, others): (Vec<_>, Vec<_>) = others.partition(is_patient);
    let mut waiting = tokio::task::JoinSet::new();
    for behaviour in patient {
        let node = node.clone();
        waiting.spawn(async move { (behaviour, plays(&node, behaviour).await) });
    }
    let mut peaks = Vec::new();
    for behaviour in others {
        peaks.push((behaviour, plays(&node, behaviour).await));
    }
    peaks.extend(waiting.join_all().await);
    for (behaviour, peak) in peaks {
        eprintln!("{}: {peak} KiB at most", behaviour.name());
        assert!(peak < usual + MORE_KIB, "{}: {peak} KiB, {usual} are usual", behaviour.name());
    }
    for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let _ = fs::remove_dir(hierarchy.path().join("nacre-hostile"));
    }
    let _ = fs::remove_dir("/sys/fs/cgroup/nacre-hostile");
}
