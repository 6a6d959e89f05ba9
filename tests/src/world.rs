//! A world: namespaces with a registry, the snapshotter and a containerd in them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use k8s_cri::v1 as cri;
use rustix::process::{Pid, Signal, kill_process};

use crate::cluster_dns::{self, ClusterDns};
use crate::configuration;
use crate::control_groups;
use crate::cri::{Cri, call};
use crate::ctr::Ctr;
use crate::hostile::Intruder;
use crate::image::Image;
use crate::namespaces::{Namespaces, Process};
use crate::pod::PodBuilder;
use crate::policy;
use crate::products::{ContainerdVersion, Products};
use crate::registry::Registry;

/// A name that the world's name server knows.
pub(crate) const KNOWN_NAME: &str = "registry.world.test";
/// containerd's socket, inside.
pub(crate) const SOCKET: &str = "/run/containerd/containerd.sock";
/// The shim's configuration, inside.
pub(crate) const SHIM_CONFIG: &str = "/run/world/shim.toml";
/// Annotation that names a pod's runtime.
pub(crate) const RUNTIME_HANDLER: &str = "io.containerd.cri.runtime-handler";
/// Longest wait for what takes seconds at most where nobody else is at work. It ends tests that hang, and
/// promises nothing: machines that run tests are busy.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What runs the pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// The product.
    Nacre,
    /// Plain runc with layers on the host: shows that a failure is not the harness's own.
    Runc,
}

/// Choices for a world.
#[derive(Debug, Clone)]
pub struct WorldBuilder {
    containerd: ContainerdVersion,
    runtime: Runtime,
    products: Products,
    outlive: bool,
}

/// A running world. See the crate's documentation.
#[derive(Debug)]
pub struct World {
    pub(crate) namespaces: Namespaces,
    pub(crate) cri: Cri,
    pub(crate) runtime: Runtime,
    products: Products,
    pub(crate) containerd: ContainerdVersion,
    /// Daemons, as the `nsenter` that started each.
    daemons: Mutex<Vec<Child>>,
    _dns: ClusterDns,
    logs: PathBuf,
    keeps_logs: AtomicBool,
    outlive: bool,
    mounts_at_start: BTreeSet<String>,
    links_at_start: BTreeSet<String>,
}

impl WorldBuilder {
    /// Which containerd.
    #[must_use]
    pub fn containerd(mut self, version: ContainerdVersion) -> WorldBuilder {
        self.containerd = version;
        self
    }

    /// What runs the pods.
    #[must_use]
    pub fn runtime(mut self, runtime: Runtime) -> WorldBuilder {
        self.runtime = runtime;
        self
    }

    /// Lets the world live on after this process ends, if it is left with [`World::leave`].
    #[must_use]
    pub fn outlive(mut self) -> WorldBuilder {
        self.outlive = true;
        self
    }

    /// Makes the world and waits until containerd is ready for pods.
    pub async fn start(self) -> anyhow::Result<World> {
        self.check()?;
        let name = new_name();
        let logs = new_log_directory(&self.products, &name)?;
        let namespaces = Namespaces::create(&name, &logs.join("namespaces.log"), self.outlive)?;
        let dns = cluster_dns::serve(&namespaces, KNOWN_NAME, Ipv4Addr::new(10, 88, 0, 1))?;
        let mut world = World {
            cri: Cri::new(namespaces.path(SOCKET)),
            namespaces,
            runtime: self.runtime,
            products: self.products,
            containerd: self.containerd,
            daemons: Mutex::default(),
            _dns: dns,
            logs,
            keeps_logs: AtomicBool::new(false),
            outlive: self.outlive,
            mounts_at_start: BTreeSet::new(),
            links_at_start: BTreeSet::new(),
        };
        configuration::write(&world)?;
        world.start_registry().await?;
        world.push(&Image::pause())?;
        if world.runtime == Runtime::Nacre {
            world.start_snapshotter().await?;
        }
        world.start_containerd().await?;
        world.mounts_at_start = world.namespaces.mounts()?;
        world.links_at_start = world.namespaces.links()?;
        Ok(world)
    }

    fn check(&self) -> anyhow::Result<()> {
        let containerd = self.products.containerd(self.containerd).join("containerd");
        for (program, package) in [
            (containerd.as_path(), "containerd"),
            (Path::new("/usr/bin/docker-registry"), "docker-registry"),
            (Path::new("/usr/lib/cni/bridge"), "containernetworking-plugins"),
            (Path::new("/bin/busybox"), "busybox-static"),
        ] {
            ensure!(program.exists(), "{} is absent: package {package}", program.display());
        }
        if self.runtime == Runtime::Nacre {
            let program = self.products.snapshotter();
            ensure!(program.exists(), "{} is not built; use cargo xtask", program.display());
        }
        Ok(())
    }
}

impl World {
    /// A world with the system's containerd and Nacre.
    pub async fn new() -> anyhow::Result<World> {
        World::builder().start().await
    }

    /// Choices before it starts.
    pub fn builder() -> WorldBuilder {
        WorldBuilder {
            containerd: ContainerdVersion::V1_6,
            runtime: Runtime::Nacre,
            products: Products::find(),
            outlive: false,
        }
    }

    /// Where the products under test are.
    pub fn products(&self) -> &Products {
        &self.products
    }

    /// The registry.
    pub fn registry(&self) -> Registry<'_> {
        Registry::new(&self.namespaces)
    }

    /// Pushes an image to the registry; returns the reference to pull it by.
    pub fn push(&self, image: &Image) -> anyhow::Result<String> {
        self.registry().push(image)
    }

    /// A pod to be run.
    pub fn pod(&self, name: &str) -> PodBuilder<'_> {
        PodBuilder::new(self, name)
    }

    /// `ctr`, in this world.
    pub fn ctr(&self) -> Ctr<'_> {
        Ctr::new(self, self.products.containerd(self.containerd).join("ctr"))
    }

    /// Lets containerd pull an image, as the kubelet does before it creates a container.
    pub async fn pull(&self, reference: &str) -> anyhow::Result<()> {
        self.pull_for(reference, self.runtime_handler()).await
    }

    /// Lets containerd pull an image for pods of a runtime handler.
    pub(crate) async fn pull_for(&self, reference: &str, handler: &str) -> anyhow::Result<()> {
        let spec = cri::ImageSpec { image: reference.to_owned(), ..Default::default() };
        // By this annotation containerd 1.7 and 2.1 find the snapshotter.
        let annotations = [(RUNTIME_HANDLER.to_owned(), handler.to_owned())].into();
        let sandbox_config = Some(cri::PodSandboxConfig { annotations, ..Default::default() });
        let auth = World::nodes_login(reference);
        let mut images = self.cri.images();
        let request = cri::PullImageRequest { image: Some(spec), auth, sandbox_config };
        call("PullImage", images.pull_image(request)).await?;
        Ok(())
    }

    /// Whether containerd knows the image.
    pub(crate) async fn has_image(&self, reference: &str) -> anyhow::Result<bool> {
        let spec = cri::ImageSpec { image: reference.to_owned(), ..Default::default() };
        let mut images = self.cri.images();
        let request = cri::ImageStatusRequest { image: Some(spec), verbose: false };
        Ok(call("ImageStatus", images.image_status(request)).await?.image.is_some())
    }

    /// Digests of what containerd's content store holds and is not a manifest or a configuration.
    pub fn host_layers(&self) -> anyhow::Result<Vec<String>> {
        let mut layers = Vec::new();
        for (name, bytes) in self.host_content()? {
            if serde_json::from_slice::<serde_json::Value>(&bytes).is_err() {
                layers.push(format!("sha256:{name}"));
            }
        }
        Ok(layers)
    }

    /// How many blobs containerd's content store holds.
    pub fn host_blobs(&self) -> anyhow::Result<usize> {
        Ok(self.host_content()?.len())
    }

    fn host_content(&self) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
        let store = "/run/world/containerd/io.containerd.content.v1.content/blobs/sha256";
        let mut blobs = Vec::new();
        for entry in fs::read_dir(self.namespaces.path(store))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            blobs.push((name, fs::read(path)?));
        }
        Ok(blobs)
    }

    /// The shim's configuration, changed by `change`; holds for pods that start afterwards.
    pub fn configure_shim(&self, change: impl FnOnce(String) -> String) -> anyhow::Result<()> {
        let path = self.namespaces.path(SHIM_CONFIG);
        let text = fs::read_to_string(&path)?;
        Ok(fs::write(path, change(text))?)
    }

    /// Pods without a policy of their own may be asked for anything; holds for those that start
    /// afterwards.
    pub fn danger_allow_all_by_default(&self) -> anyhow::Result<()> {
        let (_, initdata) = policy::allow_all(self)?;
        self.configure_shim(|text| format!("{text}\n[pod]\ndefault_initdata = {initdata:?}\n"))
    }

    /// Pods without initdata are sent a policy that allows everything; holds for those that start
    /// afterwards.
    pub fn danger_set_policy(&self) -> anyhow::Result<()> {
        let (policy, _) = policy::allow_all(self)?;
        self.configure_shim(|text| format!("{text}\n[pod]\ndanger_set_policy = {policy:?}\n"))
    }

    /// Replays recorded requests (a path inside) against the policy in an annotation; returns the
    /// table of `nacre policy test`, an error if a verdict differs.
    pub fn replay(&self, annotation: &str, requests: &str) -> anyhow::Result<String> {
        policy::replay(self, annotation, requests)
    }

    /// Pods that start afterwards boot the development image, which records all requests. Returns the
    /// directory, inside, with a file for each sandbox that has ended.
    pub fn danger_record(&self) -> anyhow::Result<&'static str> {
        const DIRECTORY: &str = "/run/world/requests";
        fs::create_dir_all(self.path(DIRECTORY))?;
        self.configure_shim(|text| {
            let text = text.replace("[vm]\n", "[vm]\ndanger_development_image = true\n");
            format!("{text}\n[agent]\ndanger_record = {DIRECTORY:?}\n")
        })?;
        Ok(DIRECTORY)
    }

    /// Pods that start from now on boot the guest image with `name`, a file of it, as `change` makes it.
    pub fn change_image(
        &self,
        name: &str,
        change: impl FnOnce(Vec<u8>) -> Vec<u8>,
    ) -> anyhow::Result<()> {
        const DIRECTORY: &str = "/run/world/image";
        let directory = self.path(DIRECTORY);
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => fs::create_dir(&directory)?,
        }
        let original = self.products.image();
        fs::write(directory.join(name), change(fs::read(original.join(name))?))?;
        for entry in fs::read_dir(&original)? {
            let entry = entry?;
            if entry.file_name() != name {
                std::os::unix::fs::symlink(entry.path(), directory.join(entry.file_name()))?;
            }
        }
        self.configure_image(DIRECTORY.as_ref())
    }

    /// Pods that start from now on boot the guest image as it was built.
    pub fn restore_image(&self) -> anyhow::Result<()> {
        self.configure_image(&self.products.image())
    }

    fn configure_image(&self, directory: &Path) -> anyhow::Result<()> {
        self.configure_shim(|text| {
            let line = |line: &str| match line.strip_prefix("image = ") {
                Some(_) => format!("image = {directory:?}\n"),
                None => format!("{line}\n"),
            };
            text.lines().map(line).collect()
        })
    }

    /// Somebody steps between the shim and the guests that start from now on.
    pub fn intrude(&self) -> anyhow::Result<Intruder> {
        Intruder::between(self)
    }

    /// Ends containerd, leaves the pods alone, and starts it again.
    pub async fn restart_containerd(&self) -> anyhow::Result<()> {
        self.end_daemon("containerd", Signal::TERM)?;
        self.start_containerd().await
    }

    /// Kills the snapshotter and starts it again.
    pub async fn restart_snapshotter(&self) -> anyhow::Result<()> {
        self.end_daemon("nacre-snapshott", Signal::KILL)?;
        self.start_snapshotter().await
    }

    /// Ends the registry.
    pub fn stop_registry(&self) -> anyhow::Result<()> {
        self.end_daemon("docker-registry", Signal::KILL)
    }

    /// The QEMU processes that are machines.
    pub fn virtual_machines(&self) -> anyhow::Result<Vec<Process>> {
        let mut found = self.processes("qemu-system")?;
        // The shim asks QEMU for its version first. A process that is ending has no command line any more.
        found.retain(|qemu| !qemu.command.is_empty() && !qemu.command.ends_with("--version"));
        Ok(found)
    }

    /// The shim processes.
    pub fn shims(&self) -> anyhow::Result<Vec<Process>> {
        self.processes("containerd-shim")
    }

    fn processes(&self, prefix: &str) -> anyhow::Result<Vec<Process>> {
        let all = self.namespaces.processes()?;
        Ok(all.into_iter().filter(|p| p.name.starts_with(prefix)).collect())
    }

    /// Kills a process of this world with SIGKILL.
    pub fn kill(&self, process: &Process) -> anyhow::Result<()> {
        self.namespaces.kill(process, Signal::KILL)
    }

    /// Runs a command in the world; returns what it prints.
    pub fn run(&self, words: &[&str]) -> anyhow::Result<String> {
        self.namespaces.run(words)
    }

    /// Where a path of the world is to be found from outside.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.namespaces.path(inside)
    }

    /// Joins a new network namespace to the pod network, for use without CRI; returns its path.
    pub fn network(&self, name: &str) -> anyhow::Result<String> {
        self.run(&["ip", "netns", "add", name])?;
        self.plug(name, "ADD")?;
        Ok(format!("/run/netns/{name}"))
    }

    /// Undoes [`World::network`].
    pub fn remove_network(&self, name: &str) -> anyhow::Result<()> {
        self.plug(name, "DEL")?;
        self.run(&["ip", "netns", "del", name])?;
        Ok(())
    }

    fn plug(&self, name: &str, what: &str) -> anyhow::Result<()> {
        let list: serde_json::Value = serde_json::from_str(&configuration::pod_network())?;
        let mut plugin = list["plugins"][0].clone();
        plugin["name"] = list["name"].clone();
        plugin["cniVersion"] = list["cniVersion"].clone();
        let script = format!(
            "echo '{plugin}' | CNI_COMMAND={what} CNI_CONTAINERID={name} CNI_IFNAME=eth0 \
             CNI_NETNS=/run/netns/{name} CNI_PATH=/usr/lib/cni /usr/lib/cni/bridge"
        );
        self.run(&["sh", "-c", &script]).map(drop)
    }

    /// What pods left behind: processes, mounts, interfaces, namespaces, sockets, addresses, control groups.
    /// Things that go on their own are waited for.
    pub async fn leftovers(&self) -> anyhow::Result<Vec<String>> {
        let started = Instant::now();
        loop {
            let found = self.leftovers_now()?;
            if found.is_empty() || started.elapsed() > PATIENCE {
                return Ok(found);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The same, without any wait.
    pub fn leftovers_now(&self) -> anyhow::Result<Vec<String>> {
        const DAEMONS: [&str; 5] =
            ["containerd", "docker-registry", "nacre-snapshott", "nacre-cache", "nacre"];
        let mut found = Vec::new();
        for process in self.namespaces.processes()? {
            if !DAEMONS.contains(&process.name.as_str()) {
                found.push(format!("process {} {}", process.inner_pid, process.command));
            }
        }
        for mount in self.namespaces.mounts()?.difference(&self.mounts_at_start) {
            found.push(format!("mount {mount}"));
        }
        for link in self.namespaces.links()?.difference(&self.links_at_start) {
            found.push(format!("interface {link}"));
        }
        let addresses = "/run/world/cni-addresses/world";
        for directory in ["/run/netns", "/run/nacre", "/run/containerd/s", addresses] {
            for name in names(&self.path(directory))? {
                if name != "lock" && !name.starts_with("last_reserved") {
                    found.push(format!("file {directory}/{name}"));
                }
            }
        }
        let tasks = "/run/containerd/io.containerd.runtime.v2.task";
        for namespace in names(&self.path(tasks))? {
            for task in names(&self.path(&format!("{tasks}/{namespace}")))? {
                found.push(format!("task {namespace}/{task}"));
            }
        }
        for group in control_groups::of_sandboxes(&self.path(control_groups::ROOT)) {
            found.push(format!("control group {}", group.display()));
        }
        Ok(found)
    }

    /// All that containerd and the shims have logged.
    pub fn containerd_log(&self) -> anyhow::Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(self.logs.join("containerd.log"))?).into_owned())
    }

    /// Prints the ends of all logs, and keeps them, for somebody has to find out what happened.
    pub fn show_logs(&self) {
        self.keeps_logs.store(true, Ordering::Relaxed);
        let daemons =
            ["docker-registry", "nacre-snapshotter", "nacre-cache", "nacre", "containerd"];
        for name in ["namespaces"].into_iter().chain(daemons) {
            eprintln!("--- {name}.log\n{}", tail(&self.log_file(name)));
        }
        eprintln!("--- all logs: {}", self.logs.display());
    }

    /// How often the registries were asked for the contents of a blob of `name`.
    pub fn downloads(&self, name: &str) -> anyhow::Result<usize> {
        let log = fs::read(self.log_file("docker-registry"))?;
        let log = String::from_utf8_lossy(&log);
        let wanted = format!("\"GET /v2/{name}/blobs/");
        Ok(log.lines().filter(|line| line.contains(&wanted)).count())
    }

    /// Directory with the logs.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// Process id, outside, of the world's first process.
    pub fn init(&self) -> i32 {
        self.namespaces.init()
    }

    /// Leaves the world running; returns the id of the process whose end ends it.
    pub fn leave(self) -> anyhow::Result<u32> {
        ensure!(self.outlive, "this world was not made to outlive its maker");
        let keeper = self.namespaces.keeper();
        std::mem::forget(self);
        Ok(keeper)
    }

    /// The runtime's name for CRI.
    pub(crate) fn runtime_handler(&self) -> &'static str {
        match self.runtime {
            Runtime::Nacre => "nacre",
            Runtime::Runc => "runc",
        }
    }

    async fn start_registry(&self) -> anyhow::Result<()> {
        self.start_daemon("docker-registry".as_ref(), &["serve", "/run/world/registry.yml"])?;
        let started = Instant::now();
        while !self.registry().ready() {
            self.check_started("docker-registry", started)?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn start_snapshotter(&self) -> anyhow::Result<()> {
        let (root, socket) = ("/run/world/snapshotter", "/run/world/snapshotter.sock");
        let program = self.products.snapshotter();
        self.start_daemon(&program, &["--root", root, "--socket", socket])?;
        let started = Instant::now();
        while tokio::net::UnixStream::connect(self.path(socket)).await.is_err() {
            self.check_started("nacre-snapshotter", started)?;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    pub(crate) async fn start_containerd(&self) -> anyhow::Result<()> {
        let program = self.products.containerd(self.containerd).join("containerd");
        self.start_daemon(&program, &["--config", "/run/world/containerd.toml"])?;
        let started = Instant::now();
        while !self.containerd_ready().await {
            self.check_started("containerd", started)?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn containerd_ready(&self) -> bool {
        let mut runtime = self.cri.runtime();
        let request = cri::StatusRequest { verbose: false };
        let conditions = match runtime.status(request).await {
            Ok(answer) => answer.into_inner().status.unwrap_or_default().conditions,
            Err(_) => return false,
        };
        !conditions.is_empty()
            && conditions.iter().filter(|c| c.r#type.ends_with("Ready")).all(|c| c.status)
    }

    pub(crate) fn start_daemon(&self, program: &Path, arguments: &[&str]) -> anyhow::Result<()> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = File::options().create(true).append(true).open(self.log_file(&name))?;
        // containerd finds its own shim for runc beside it.
        let beside = program.parent().unwrap_or(Path::new("/")).display();
        let path = format!("{beside}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        let child = self
            .namespaces
            .daemon("env")
            .arg(format!("PATH={path}"))
            .arg(program)
            .args(arguments)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("failed to start {name}"))?;
        self.daemons.lock().expect("no holder panics").push(child);
        Ok(())
    }

    pub(crate) fn end_daemon(&self, name: &str, signal: Signal) -> anyhow::Result<()> {
        let all = self.namespaces.processes()?;
        let process = all.into_iter().find(|p| p.name == name);
        let process = process.with_context(|| format!("{name} does not run"))?;
        self.namespaces.kill(&process, signal)?;
        let started = Instant::now();
        while Path::new(&format!("/proc/{}", process.pid)).exists() {
            ensure!(started.elapsed() < PATIENCE, "{name} does not end");
            // The `nsenter` that started it is its parent and ends with it.
            self.daemons
                .lock()
                .expect("no holder panics")
                .retain_mut(|d| !matches!(d.try_wait(), Ok(Some(_))));
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    pub(crate) fn check_started(&self, name: &str, started: Instant) -> anyhow::Result<()> {
        let ended = self
            .daemons
            .lock()
            .expect("no holder panics")
            .last_mut()
            .and_then(|daemon| daemon.try_wait().ok().flatten());
        if ended.is_some() || started.elapsed() > PATIENCE {
            bail!("{name} did not become ready:\n{}", tail(&self.log_file(name)));
        }
        Ok(())
    }

    pub(crate) fn log_file(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let daemons = self.daemons.get_mut().expect("no holder panics");
        for daemon in daemons.iter() {
            // An `nsenter` whose daemon was frozen has stopped itself. It would take no notice of the daemon's
            // end, which the end of the namespaces waits for.
            let _ = kill_process(Pid::from_child(daemon), Signal::CONT);
        }
        self.namespaces.end();
        for daemon in daemons {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        if std::thread::panicking() {
            self.show_logs();
        }
        if !self.keeps_logs.load(Ordering::Relaxed) {
            let _ = fs::remove_dir_all(&self.logs);
        }
    }
}

/// A name that no other world has.
fn new_name() -> String {
    static WORLDS: AtomicU32 = AtomicU32::new(1);
    let number = WORLDS.fetch_add(1, Ordering::Relaxed);
    format!("{}-{number}", std::process::id())
}

fn new_log_directory(products: &Products, name: &str) -> anyhow::Result<PathBuf> {
    let path = products.prefix.join("worlds").join(name);
    fs::create_dir_all(&path).with_context(|| format!("failed to create {}", path.display()))?;
    Ok(path)
}

fn names(directory: &Path) -> anyhow::Result<Vec<String>> {
    match fs::read_dir(directory) {
        Ok(entries) => {
            entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// The last lines of a log.
fn tail(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
