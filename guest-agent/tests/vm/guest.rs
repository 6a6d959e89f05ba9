//! One VM with the real guest image, under software emulation, and a client of its agent.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nacre_emulated::Processor;
use nacre_image_manifest::GuestImage;
use nacre_policy::REQUESTS;
use nacre_protocol::agent::*;
use nacre_protocol::agent_ttrpc::AgentServiceClient;
use nacre_protocol::channel::{
    ANNOTATION_CONTAINER_TYPE, CACHE_PORT_NAME, DRIVER_EPHEMERAL, DRIVER_IMAGE_PULL,
    PROCESSOR_PORT_NAME, SANDBOX_SHM, SCRATCH_DISK_SERIAL, SERIAL_PORT_NAME, STREAM_CHUNK,
};
use nacre_protocol::health_ttrpc::HealthClient;
use nacre_protocol::initdata::DISK_SERIAL;
use nacre_protocol::oci;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::Context;

/// Where QEMU's user network shows the machine that runs the test.
pub(crate) const HOST_FROM_GUEST: &str = "10.0.2.2";
const MAC: &str = "52:54:00:12:34:56";
/// As the hypervisor crate makes it for a pod.
const MACHINE: &str = "-M q35,smm=off,sata=off,smbus=off,usb=off,i8042=off,vmport=off,hpet=off,graphics=off \
                       -accel tcg,thread=multi -cpu max -m 512 -nodefaults";
const BOOT_DEADLINE: Duration = Duration::from_secs(90);

/// What a VM is launched with, beside the guest image.
#[derive(Default)]
pub(crate) struct Launch<'a> {
    pub(crate) kernel_parameters: &'a str,
    /// Contents of the initdata disk.
    pub(crate) initdata: Option<&'a [u8]>,
    /// The file behind the scratch disk.
    pub(crate) scratch_disk: Option<&'a Path>,
    /// Answers on the port of the secure processor.
    pub(crate) processor: Option<Processor>,
    /// Connected to the node's cache.
    pub(crate) node_cache: Option<std::os::unix::net::UnixStream>,
    /// QEMU, and firmware that starts the kernel as confidential guests do, instead of the usual ones.
    pub(crate) firmware: Option<(&'a Path, &'a Path)>,
    /// Further arguments of QEMU.
    pub(crate) qemu: &'a [&'a str],
}

/// A running VM. QEMU ends with it.
pub(crate) struct Guest {
    pub(crate) agent: AgentServiceClient,
    pub(crate) health: HealthClient,
    qemu: Child,
    directory: tempfile::TempDir,
}

impl Guest {
    /// Boots a VM and waits until its agent answers.
    pub(crate) async fn boot(launch: Launch<'_>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let qemu = start_qemu(directory.path(), launch);
        let (agent, health) = connect(directory.path()).await;
        let guest = Self { agent, health, qemu, directory };
        let begun = Instant::now();
        loop {
            let check = guest.health.check(context(5), &Default::default()).await;
            match check {
                Ok(_) => return guest,
                Err(error) if begun.elapsed() > BOOT_DEADLINE => {
                    panic!("no answer: {error}\n{}", guest.console())
                }
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Boots a VM whose agent does not want to go on, waits for its end, and returns its console.
    pub(crate) async fn refuses(launch: Launch<'_>) -> String {
        let directory = tempfile::tempdir().unwrap();
        let mut qemu = start_qemu(directory.path(), launch);
        let console = || std::fs::read_to_string(directory.path().join("console"));
        let end = Instant::now() + BOOT_DEADLINE;
        while qemu.try_wait().unwrap().is_none() {
            if Instant::now() > end {
                let _ = qemu.kill();
                panic!("the VM runs on\n{}", console().unwrap_or_default());
            }
            sleep(Duration::from_millis(50)).await;
        }
        console().unwrap()
    }

    /// Boots a VM and waits until `file` has the words in it; returns that file, and the guest's console.
    pub(crate) async fn until(launch: Launch<'_>, file: &Path, words: &str) -> (String, String) {
        let directory = tempfile::tempdir().unwrap();
        let mut qemu = start_qemu(directory.path(), launch);
        let end = Instant::now() + BOOT_DEADLINE;
        let read = |path: &Path| {
            String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
        };
        while !read(file).contains(words) && Instant::now() < end {
            sleep(Duration::from_millis(50)).await;
        }
        let _ = qemu.kill();
        let _ = qemu.wait();
        (read(file), read(&directory.path().join("console")))
    }

    /// Closes the connection and opens another.
    pub(crate) async fn reconnect(&mut self) {
        drop((self.agent.clone(), self.health.clone()));
        let (agent, health) = connect(self.directory.path()).await;
        (self.agent, self.health) = (agent, health);
    }

    /// What the guest has printed.
    pub(crate) fn console(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("console")).unwrap_or_default()
    }

    /// Sets a policy that allows everything, where the command line lets the host set one.
    pub(crate) async fn allow_all(&self) {
        let policy = SetPolicyRequest { policy: allow_all(), ..Default::default() };
        self.agent.set_policy(context(10), &policy).await.unwrap();
    }

    /// Makes the pod: namespaces, shared memory, network.
    pub(crate) async fn create_sandbox(&self) {
        let shm = Storage {
            driver: DRIVER_EPHEMERAL.into(),
            source: "shm".into(),
            fstype: "tmpfs".into(),
            mount_point: SANDBOX_SHM.into(),
            options: ["noexec", "nosuid", "nodev", "mode=1777", "size=67108864"]
                .map(String::from)
                .to_vec(),
            ..Default::default()
        };
        let request = CreateSandboxRequest {
            hostname: "the-pod".into(),
            storages: vec![shm],
            sandbox_id: "pod".into(),
            ..Default::default()
        };
        self.agent.create_sandbox(context(60), &request).await.unwrap();
        let mut interface = UpdateInterfaceRequest::new();
        let wanted = interface.interface.mut_or_insert_default();
        (wanted.device, wanted.name) = ("eth0".into(), "eth0".into());
        (wanted.hwAddr, wanted.mtu) = (MAC.into(), 1500);
        wanted.IPAddresses.push(nacre_protocol::types::IPAddress {
            address: "10.0.2.15".into(),
            mask: "24".into(),
            ..Default::default()
        });
        self.agent.update_interface(context(60), &interface).await.unwrap();
        let mut routes = UpdateRoutesRequest::new();
        routes.routes.mut_or_insert_default().Routes.push(nacre_protocol::types::Route {
            gateway: HOST_FROM_GUEST.into(),
            device: "eth0".into(),
            ..Default::default()
        });
        self.agent.update_routes(context(60), &routes).await.unwrap();
    }

    /// Creates and starts a container.
    pub(crate) async fn run(&self, request: &CreateContainerRequest) {
        self.agent.create_container(context(120), request).await.unwrap();
        let start = StartContainerRequest {
            container_id: request.container_id.clone(),
            ..Default::default()
        };
        self.agent.start_container(context(60), &start).await.unwrap();
    }

    /// Runs a shell command in a container: exit status, standard output, standard error.
    pub(crate) async fn shell(&self, container: &str, command: &str) -> (i32, String, String) {
        self.exec(container, "shell", shell_process(command)).await.unwrap();
        let stdout = self.read_all(container, "shell", Stream::Stdout).await;
        let stderr = self.read_all(container, "shell", Stream::Stderr).await;
        let status = self.wait(container, "shell").await;
        let text = |data: Vec<u8>| String::from_utf8_lossy(&data).into_owned();
        (status, text(stdout), text(stderr))
    }

    /// Runs a process in a container.
    pub(crate) async fn exec(
        &self,
        container: &str,
        exec_id: &str,
        process: oci::Process,
    ) -> ttrpc::Result<()> {
        let request = ExecProcessRequest {
            container_id: container.into(),
            exec_id: exec_id.into(),
            process: Some(process).into(),
            ..Default::default()
        };
        self.agent.exec_process(context(60), &request).await.map(|_| ())
    }

    /// Waits for the exit status.
    pub(crate) async fn wait(&self, container: &str, exec_id: &str) -> i32 {
        let request = WaitProcessRequest {
            container_id: container.into(),
            exec_id: exec_id.into(),
            ..Default::default()
        };
        self.agent.wait_process(context(120), &request).await.unwrap().status
    }

    /// Reads one piece of a stream; `None` at its end.
    pub(crate) async fn read(
        &self,
        container: &str,
        exec_id: &str,
        stream: Stream,
    ) -> Option<Vec<u8>> {
        let request = ReadStreamRequest {
            container_id: container.into(),
            exec_id: exec_id.into(),
            len: u32::try_from(STREAM_CHUNK).unwrap(),
            ..Default::default()
        };
        let answer = match stream {
            Stream::Stdout => self.agent.read_stdout(context(120), &request).await,
            Stream::Stderr => self.agent.read_stderr(context(120), &request).await,
        };
        match answer {
            Ok(answer) => Some(answer.data),
            Err(ttrpc::Error::RpcStatus(status)) if status.message == "end of stream" => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Reads a stream to its end.
    pub(crate) async fn read_all(&self, container: &str, exec_id: &str, stream: Stream) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(data) = self.read(container, exec_id, stream).await {
            all.extend(data);
        }
        all
    }

    /// Writes to a process.
    pub(crate) async fn write(
        &self,
        container: &str,
        exec_id: &str,
        data: &[u8],
    ) -> ttrpc::Result<()> {
        let request = WriteStreamRequest {
            container_id: container.into(),
            exec_id: exec_id.into(),
            data: data.to_vec(),
            ..Default::default()
        };
        self.agent.write_stdin(context(120), &request).await.map(|_| ())
    }

    /// Ends a process's input.
    pub(crate) async fn close_stdin(&self, container: &str, exec_id: &str) {
        let request = CloseStdinRequest {
            container_id: container.into(),
            exec_id: exec_id.into(),
            ..Default::default()
        };
        self.agent.close_stdin(context(60), &request).await.unwrap();
    }

    /// Signals a process.
    pub(crate) async fn signal(&self, container: &str, exec_id: &str, signal: u32) {
        let request = SignalProcessRequest {
            container_id: container.into(),
            exec_id: exec_id.into(),
            signal,
            ..Default::default()
        };
        self.agent.signal_process(context(60), &request).await.unwrap();
    }

    /// Takes a container down.
    pub(crate) async fn remove(&self, container: &str) {
        let request =
            RemoveContainerRequest { container_id: container.into(), ..Default::default() };
        self.agent.remove_container(context(60), &request).await.unwrap();
    }

    /// Copies a file to where containers may bind it from.
    pub(crate) async fn copy(&self, path: &str, data: &[u8]) {
        let request = CopyFileRequest {
            path: path.into(),
            file_size: i64::try_from(data.len()).unwrap(),
            file_mode: 0o100_644,
            dir_mode: 0o755,
            data: data.to_vec(),
            ..Default::default()
        };
        self.agent.copy_file(context(60), &request).await.unwrap();
    }

    /// Waits until the VM has ended by itself, and returns its console.
    pub(crate) async fn ended(mut self) -> String {
        let end = Instant::now() + Duration::from_secs(30);
        while self.qemu.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "the VM runs on\n{}", self.console());
            sleep(Duration::from_millis(50)).await;
        }
        self.console()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() || std::env::var_os("NACRE_TEST_CONSOLE").is_some() {
            eprintln!("--- console of the guest ---\n{}", self.console());
        }
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// A deadline of some seconds.
pub(crate) fn context(seconds: u64) -> Context {
    ttrpc::context::with_duration(Duration::from_secs(seconds))
}

/// A container as containerd describes one, without what a test does not need.
pub(crate) fn container(id: &str, image: &str, arguments: &[&str]) -> CreateContainerRequest {
    let rootfs = format!("/run/kata-containers/{id}/rootfs");
    let mut spec = oci::Spec::new();
    spec.Process = Some(process(arguments)).into();
    spec.Root.mut_or_insert_default().Path.clone_from(&rootfs);
    let kind = if image == "pause" { "sandbox" } else { "container" };
    spec.Annotations.insert(ANNOTATION_CONTAINER_TYPE.into(), kind.into());
    spec.Mounts = [
        ("proc", "proc", "/proc", &["nosuid", "noexec", "nodev"][..]),
        ("tmpfs", "tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("devpts", "devpts", "/dev/pts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666"]),
        ("mqueue", "mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
        ("sysfs", "sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"]),
        ("cgroup", "cgroup", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ("bind", SANDBOX_SHM, "/dev/shm", &["rbind", "ro"]),
    ]
    .map(|(kind, source, destination, options)| mount(kind, source, destination, options))
    .to_vec();
    let linux = spec.Linux.mut_or_insert_default();
    linux.MaskedPaths = vec!["/proc/kcore".into(), "/proc/keys".into(), "/sys/firmware".into()];
    linux.ReadonlyPaths = vec!["/proc/sys".into(), "/proc/sysrq-trigger".into()];
    linux.Seccomp = Some(oci::LinuxSeccomp {
        DefaultAction: "SCMP_ACT_ALLOW".into(),
        Syscalls: vec![oci::LinuxSyscall {
            Names: vec!["chroot".into()],
            Action: "SCMP_ACT_ERRNO".into(),
            ..Default::default()
        }],
        ..Default::default()
    })
    .into();
    let storage = Storage {
        driver: DRIVER_IMAGE_PULL.into(),
        source: image.into(),
        fstype: "overlay".into(),
        mount_point: rootfs,
        ..Default::default()
    };
    CreateContainerRequest {
        container_id: id.into(),
        exec_id: id.into(),
        OCI: Some(spec).into(),
        storages: vec![storage],
        ..Default::default()
    }
}

pub(crate) fn mount(kind: &str, source: &str, destination: &str, options: &[&str]) -> oci::Mount {
    oci::Mount {
        type_: kind.into(),
        source: source.into(),
        destination: destination.into(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..Default::default()
    }
}

pub(crate) fn process(arguments: &[&str]) -> oci::Process {
    let mut process = oci::Process::new();
    process.Args = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    process.Env = vec!["PATH=/bin".into()];
    process.Cwd = "/".into();
    process.User.mut_or_insert_default();
    let capabilities = process.Capabilities.mut_or_insert_default();
    let usual = ["CAP_KILL", "CAP_MKNOD", "CAP_SYS_CHROOT", "CAP_DAC_OVERRIDE"].map(String::from);
    capabilities.Bounding = usual.to_vec();
    capabilities.Effective = usual.to_vec();
    capabilities.Permitted = usual.to_vec();
    process
}

pub(crate) fn shell_process(command: &str) -> oci::Process {
    process(&["/bin/sh", "-c", command])
}

/// A policy that allows everything.
pub(crate) fn allow_all() -> String {
    let rules = REQUESTS.iter().map(|request| format!("default {request} := true\n"));
    format!("package agent_policy\n\n{}", rules.collect::<String>())
}

fn target() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/nacre")
}

fn image_directory() -> PathBuf {
    std::env::var_os("NACRE_TEST_IMAGE").map_or_else(|| target().join("image"), Into::into)
}

/// The guest image that is tested.
pub(crate) fn image() -> GuestImage {
    GuestImage::open(&image_directory()).unwrap()
}

/// What these tests need and do not find.
pub(crate) fn missing() -> Option<PathBuf> {
    let needed = [image_directory().join("manifest.json"), "/bin/busybox".into()];
    needed.into_iter().find(|path| !path.exists())
}

/// Files that a launch is measured by: firmware, kernel, initrd.
pub(crate) fn measured_files() -> [PathBuf; 3] {
    let firmware = target().join("qemu/usr/share/qemu/qboot.rom");
    let installed = PathBuf::from("/usr/share/qemu/qboot.rom");
    let image = image();
    [if firmware.exists() { firmware } else { installed }, image.vmlinux(), image.initrd()]
}

/// The whole kernel command line.
pub(crate) fn command_line(kernel_parameters: &str) -> String {
    format!("{} {kernel_parameters}", image().command_line())
}

fn start_qemu(directory: &Path, launch: Launch<'_>) -> Child {
    let prefix = target().join("qemu");
    let unpacked = prefix.join("usr/bin/qemu-system-x86_64");
    // `cargo xtask setup` unpacks a QEMU only where the system's is too old.
    let usual = if unpacked.exists() { unpacked } else { "qemu-system-x86_64".into() };
    let qemu = launch.firmware.map_or(usual, |(qemu, _)| qemu.to_owned());
    let path = |name: &str| directory.join(name).display().to_string();
    let mut command = Command::new(qemu);
    command.arg("-L").arg(prefix.join("usr/share/qemu"));
    command.arg("-L").arg(prefix.join("usr/share/seabios"));
    let [_, kernel, initrd] = measured_files();
    // Firmware starts the bzImage only.
    let kernel = if launch.firmware.is_some() { image().bzimage() } else { kernel };
    if let Some((_, firmware)) = launch.firmware {
        command.arg("-bios").arg(firmware);
    }
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
    command.arg("-append").arg(command_line(launch.kernel_parameters));
    command.args(MACHINE.split(' '));
    command.args("-no-user-config -display none -no-reboot".split(' '));
    command.args(["-device", "virtio-serial-pci,disable-legacy=on"]);
    command.arg("-chardev").arg(format!("file,id=console,path={}", path("console")));
    command.args(["-device", "virtconsole,chardev=console"]);
    let socket = path("agent");
    command.arg("-chardev").arg(format!("socket,id=agent,path={socket},server=on,wait=off"));
    command.arg("-device");
    command.arg(format!("virtserialport,chardev=agent,name={SERIAL_PORT_NAME}"));
    command.args(["-netdev", "user,id=net", "-device"]);
    command.arg(format!("virtio-net-pci,netdev=net,mac={MAC},romfile=,disable-legacy=on"));
    if let Some(bytes) = launch.initdata {
        std::fs::write(path("initdata"), bytes).unwrap();
        let file = format!(
            "driver=raw,node-name=disk,read-only=on,file.driver=file,file.filename={}",
            path("initdata")
        );
        command.arg("-blockdev").arg(file);
        let device = format!("virtio-blk-pci,drive=disk,serial={DISK_SERIAL},disable-legacy=on");
        command.arg("-device").arg(device);
    }
    if let Some(file) = launch.scratch_disk {
        let file = file.display();
        let file = format!("driver=raw,node-name=scratch,file.driver=file,file.filename={file}");
        command.arg("-blockdev").arg(file);
        let device =
            format!("virtio-blk-pci,drive=scratch,serial={SCRATCH_DISK_SERIAL},disable-legacy=on");
        command.arg("-device").arg(device);
    }
    if let Some(processor) = launch.processor {
        let socket = path("processor");
        let chardev = format!("socket,id=processor,path={socket},server=on,wait=off");
        command.arg("-chardev").arg(chardev);
        let port = format!("virtserialport,chardev=processor,name={PROCESSOR_PORT_NAME}");
        command.arg("-device").arg(port);
        std::thread::spawn(move || serve(&processor, socket.as_ref()));
    }
    if let Some(socket) = &launch.node_cache {
        rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::empty()).unwrap();
        command.arg("-chardev").arg(format!("socket,id=cache,fd={}", socket.as_raw_fd()));
        command.arg("-device");
        command.arg(format!("virtserialport,chardev=cache,name={CACHE_PORT_NAME}"));
    }
    command.args(launch.qemu);
    command.stdin(Stdio::null()).spawn().expect("QEMU does not start")
}

/// Answers the guest until its VM ends.
fn serve(processor: &Processor, socket: &Path) {
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while std::time::Instant::now() < end {
        match std::os::unix::net::UnixStream::connect(socket) {
            Ok(stream) => return processor.serve(&stream).unwrap(),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

async fn connect(directory: &Path) -> (AgentServiceClient, HealthClient) {
    let open = async {
        loop {
            match UnixStream::connect(directory.join("agent")).await {
                Ok(stream) => return stream,
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let stream = timeout(Duration::from_secs(20), open).await.expect("QEMU opens no socket");
    let client = ttrpc::r#async::Client::new(Socket::new(stream));
    (AgentServiceClient::new(client.clone()), HealthClient::new(client))
}

/// What an answer says for people.
pub(crate) fn message<T>(answer: ttrpc::Result<T>) -> String {
    match answer {
        Err(ttrpc::Error::RpcStatus(status)) => status.message,
        Err(error) => panic!("the connection failed: {error}"),
        Ok(_) => panic!("the request should have been refused"),
    }
}
