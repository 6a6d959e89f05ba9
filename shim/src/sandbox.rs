//! One pod: its virtual machine, the agent in it and its network.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nacre_hypervisor::{
    Disk, DiskImage, Hypervisor, LaunchError, Nic, QemuBackend, Vm, VmConfig, VmExit,
};
use nacre_protocol::agent as api;
use nacre_protocol::channel::{DRIVER_EPHEMERAL, SANDBOX_SHM, volume_serial};
use nacre_protocol::initdata::Initdata;
use nacre_protocol::oci;
use nacre_protocol::start_report::{Failure, Phase};
use oci_spec::runtime::Spec;
use protobuf::MessageField;
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;

use crate::agent::{Agent, AgentError, Ending, WRITE_BACK};
use crate::block_volumes::{self, Attached, BlockVolumeError, Places};
use crate::control_group::{self, ControlGroup};
use crate::docker::NetworkHook;
use crate::error::{Code, Coded, Doing, TaskError, tail};
use crate::port_forward::PortForward;
use crate::processor::Emulation;
use crate::spec::{HostDevice, HostMount, NetworkWanted};
use crate::start_report::{Attempt, StartReport};
use crate::{
    annotations, confinement, debug_shell, guest_network, initdata, node_cache, recording,
    scratch_disk, sizing, spec,
};
use nacre_configuration::Config;
use nacre_pod_network::{Namespace, Network, NetworkError};
use nacre_run_directory::history::History;
use nacre_run_directory::{ProcessRef, RUN_ROOT, RunDir};

/// What the pod's shared memory may hold, in bytes; Docker's and containerd's own default.
const SHM_BYTES: u32 = 64 * 1024 * 1024;

/// Time for a guest without volumes to end what runs in it.
const END: Duration = Duration::from_secs(10);

/// Time for the guest to power off after it has answered `DestroySandbox`.
const POWER_OFF: Duration = Duration::from_secs(3);

/// Most of the guest's console that an error message quotes, in bytes.
const QUOTED_CONSOLE: usize = 400;

/// Why the kernel killed a machine.
const OUT_OF_MEMORY: &str = ": memory ran out in the pod's control group, which its limits and the overhead of its \
                             RuntimeClass make, or on the node";

/// Where a sandbox comes from.
#[derive(Debug)]
pub(crate) struct Origin {
    /// containerd's namespace, such as `k8s.io`.
    pub(crate) namespace: String,
    /// The socket at which containerd reaches this shim.
    pub(crate) socket: PathBuf,
}

/// A pod whose machine runs, or has ended.
pub(crate) struct Sandbox {
    pub(crate) id: String,
    pub(crate) agent: Agent,
    pub(crate) report: StartReport,
    ending: Ending,
    parts: Mutex<Option<Parts>>,
    vm: Arc<dyn Vm>,
    /// The machine's places for volumes.
    volumes: Mutex<Places>,
    /// Directory for the requests that the guest records.
    recordings: Option<PathBuf>,
}

/// What a sandbox consists of on the host, in the order of its making.
#[derive(Default)]
struct Parts {
    run_dir: Option<RunDir>,
    control_group: Option<Arc<ControlGroup>>,
    network: Option<Network>,
    port_forward: Option<PortForward>,
    vm: Option<Arc<dyn Vm>>,
    /// Number of places for volumes in the machine.
    volumes: u32,
}

impl Sandbox {
    /// Boots the machine of a pod and configures it. If that fails, nothing is left.
    pub(crate) async fn start(
        id: &str,
        origin: &Origin,
        spec: &Spec,
        config: &Config,
        report: &StartReport,
    ) -> Result<Arc<Sandbox>, TaskError> {
        let attempt = report.attempt(None);
        let mut parts = Parts::default();
        match Sandbox::build(id, origin, spec, config, &attempt, &mut parts).await {
            Ok((agent, ending, vm)) => Ok(Arc::new(Sandbox {
                id: id.to_owned(),
                agent,
                report: report.clone(),
                ending,
                volumes: Places::new(parts.volumes),
                parts: Mutex::new(Some(parts)),
                vm,
                recordings: Some(config.agent.danger_record.clone())
                    .filter(|path| !path.as_os_str().is_empty()),
            })),
            Err(error) => {
                let error = attempt.failed(error);
                report.ended("");
                parts.take_down(id, Duration::ZERO).await;
                report.keep().await;
                Err(error)
            }
        }
    }

    async fn build(
        id: &str,
        origin: &Origin,
        spec: &Spec,
        config: &Config,
        attempt: &Attempt,
        parts: &mut Parts,
    ) -> Result<(Agent, Ending, Arc<dyn Vm>), TaskError> {
        let starting = format!("start sandbox {id}");
        let annotations = spec::annotations(spec);
        let size = sizing::machine(spec, &annotations, config).doing(&starting)?;
        let initdata = initdata::of_pod(&annotations, &config.pod).doing(&starting)?;
        let policy = initdata::late_policy(initdata.as_ref(), &config.pod).doing(&starting)?;
        let wanted = spec::network(spec).doing(&starting)?;
        let backend = backend(config).await.doing(&starting)?;

        let run_dir = RunDir::create(Path::new(RUN_ROOT), &History::of_the_node(), id).await;
        let run_dir = run_dir.doing(&starting)?;
        let run_dir = parts.run_dir.insert(run_dir);
        attempt.kept_in(run_dir.path());
        let named = run_dir.update(|record| {
            record.pod = annotations::pod_name(&annotations);
            record.containerd_namespace.clone_from(&origin.namespace);
            record.socket = Some(origin.socket.clone());
        });
        named.doing(&starting)?;
        if let Some(group) = control_group::of_pod(spec, id).doing(&starting)? {
            let planned = run_dir.update(|record| record.control_groups = group.directories());
            planned.doing(&starting)?;
            parts.control_group.insert(Arc::new(group)).enter().doing(&starting)?;
        }
        let attaching = attach(wanted, NetworkHook::of(spec), id);
        let network = attempt.timed(Phase::Network, attaching).await;
        let network = parts.network.insert(network.doing(&starting)?);
        let connected = run_dir.update(|record| {
            record.namespace = network.lasting_path().map(Path::to_owned);
            record.interfaces = network.interface_names();
        });
        connected.doing(&starting)?;

        let guest = config.guest().doing(&starting)?;
        let digest = initdata.as_ref().map(Initdata::digest);
        let confidential = config.confidential(digest.as_ref()).doing(&starting)?;
        let is_confidential = confidential.is_some();
        let (emulation, port) = Emulation::of(config, &guest, size.vcpus(), initdata.as_ref())
            .doing(&starting)?
            .unzip();
        let disks = initdata.iter().map(|initdata| initdata::disk(initdata, run_dir.path()));
        let mut disks: Vec<_> = disks.collect::<Result<_, _>>().doing(&starting)?;
        disks
            .extend(scratch_disk::make(&config.storage, size.scratch_disk_mib()).doing(&starting)?);
        parts.volumes = size.volumes();
        disks.extend(
            (0..parts.volumes)
                .map(|place| Disk { serial: volume_serial(place), image: DiskImage::Empty }),
        );
        let cache = node_cache::port(config, &origin.namespace, id).await;
        let shell = debug_shell::offer(config, run_dir.path()).doing(&starting)?;
        let machine = VmConfig {
            id: id.to_owned(),
            run_dir: run_dir.path().to_owned(),
            kernel: guest.kernel,
            initrd: guest.initrd,
            command_line: guest.command_line,
            vcpus: size.vcpus(),
            memory_mib: size.memory_mib(),
            confidential,
            disks,
            nics: nics(network).doing(&starting)?,
            serial_ports: port.into_iter().chain(cache).chain(shell).collect(),
            netns: Some(network.namespace_path()),
        };
        // The guest needs its processor only once its kernel is up: measuring costs no time of its own.
        let measuring = async {
            match emulation {
                Some(emulation) => attempt.timed_beside(Phase::Measure, emulation.start()).await,
                None => Ok(()),
            }
        };
        let launching = async {
            let launched = backend.launch(machine).await;
            launched.map_err(|error| MachineError { error, is_confidential })
        };
        let launching = attempt.timed(Phase::Vmm, launching);
        let (launched, measured) = tokio::join!(launching, measuring);
        let vm = parts.vm.insert(launched.doing(&starting)?).clone();
        measured.doing(&starting)?;
        let launched = run_dir.update(|record| record.machine = ProcessRef::of(vm.pid()));
        launched.doing(&starting)?;

        let ending = watch_ending(vm.clone(), parts.control_group.clone());
        let within = Duration::from_secs(config.vm.boot_timeout_seconds.into());
        let connecting = Agent::connect(vm.agent_channel(), ending.clone(), within);
        let agent = attempt.timed(Phase::Boot, connecting).await;
        let explain = |doing: String| {
            let vm = vm.clone();
            move |error: AgentError| explain(vm.as_ref(), &doing, &error)
        };
        let agent = agent.map_err(explain(format!("boot the machine of sandbox {id}")))?;

        if let Some(policy) = policy {
            tracing::warn!("sandbox {id} gets its policy from this host (pod.danger_set_policy)");
            let request = api::SetPolicyRequest { policy, ..Default::default() };
            let set = agent.set_policy(request).await;
            set.map_err(explain(format!("set the policy of sandbox {id}")))?;
        }
        let request = create_sandbox_request(id, spec);
        let creating = agent.create_sandbox(request);
        let created = attempt.timed(Phase::Sandbox, creating).await;
        created.map_err(explain(format!("set up sandbox {id} in the guest")))?;
        let configuring = guest_network::configure(&agent, &network.layout);
        let configured = attempt.timed(Phase::GuestNetwork, configuring).await;
        configured
            .map_err(explain(format!("configure the network of sandbox {id} in the guest")))?;
        // Attached before the shim gives up the system calls that it takes.
        parts.port_forward = forward_ports(network, &agent, id).await;
        confinement::confine().doing(&starting)?;
        Ok((agent, ending, vm))
    }

    /// The host process that stands for every process of the pod.
    pub(crate) fn pid(&self) -> u32 {
        self.vm.pid()
    }

    /// The reason, once the machine is gone.
    pub(crate) fn end(&self) -> Option<Arc<str>> {
        self.ending.borrow().clone()
    }

    /// Its run directory; with the machine's end it goes.
    pub(crate) fn run_dir(&self) -> PathBuf {
        Path::new(RUN_ROOT).join(&self.id)
    }

    /// Waits for the machine to end and returns the reason.
    pub(crate) async fn ended(&self) -> Arc<str> {
        let mut ending = self.ending.clone();
        match ending.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_else(|| "".into()),
            Err(_) => "the shim is stopping".into(),
        }
    }

    /// What containerd is told when the agent fails: the reason, and for the machine's own trouble
    /// the end of the guest's console.
    pub(crate) fn explain(&self, doing: &str, error: &AgentError) -> TaskError {
        explain(self.vm.as_ref(), doing, error)
    }

    /// Ends the machine at once, whatever its guest does. The rest of the pod stays until [`Sandbox::stop`].
    pub(crate) async fn end_machine(&self) {
        self.vm.stop(Duration::ZERO).await;
        self.ended().await;
    }

    /// Makes disks of a container's block volumes; see [`block_volumes::attach`].
    pub(crate) async fn attach(
        &self,
        spec: &mut oci::Spec,
        mounts: &mut Vec<HostMount>,
        devices: Vec<HostDevice>,
    ) -> Result<Attached, BlockVolumeError> {
        block_volumes::attach(&self.volumes, self.vm.as_ref(), spec, mounts, devices).await
    }

    /// Ends the pod and removes all of it from the host. Only the first call does anything.
    pub(crate) async fn stop(&self) {
        let Some(parts) = self.parts.lock().await.take() else { return };
        if let Some(directory) = &self.recordings
            && self.end().is_none()
            && let Err(error) = recording::fetch(&self.agent, directory, &self.id).await
        {
            tracing::warn!("the recorded requests of sandbox {}: {error}", self.id);
        }
        if self.end().is_none() {
            self.destroy().await;
        }
        let reason = self.end().unwrap_or_else(|| "it was stopped".into());
        self.report.ended(&reason);
        parts.take_down(&self.id, POWER_OFF).await;
        self.report.keep().await;
    }

    /// Asks the guest to end everything in it. One that has volumes gets the time to write them back.
    async fn destroy(&self) {
        let has_volumes = self.volumes.lock().await.any_taken();
        let limit = if has_volumes { WRITE_BACK } else { END };
        let request = self.agent.destroy_sandbox(api::DestroySandboxRequest::new());
        match timeout(limit, request).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!("sandbox {} does not end by itself: {error}", self.id),
            Err(_) => {
                tracing::warn!("sandbox {} has not ended by itself within {limit:?}", self.id);
            }
        }
    }
}

impl Parts {
    async fn take_down(self, id: &str, grace: Duration) {
        if let Some(vm) = self.vm {
            let VmExit { reason, clean } = vm.stop(grace).await;
            tracing::info!("machine of sandbox {id} ended (clean: {clean}): {reason}");
        }
        drop(self.port_forward);
        if let Some(network) = self.network
            && let Err(error) = network.detach().await
        {
            tracing::warn!("network of sandbox {id}: {error}");
        }
        if let Some(group) = self.control_group {
            // It may have to wait for a process that is just ending.
            let _ = tokio::task::spawn_blocking(move || group.leave()).await;
        }
        if let Some(run_dir) = self.run_dir
            && let Err(error) = run_dir.remove()
        {
            tracing::warn!("run directory of sandbox {id}: {error}");
        }
    }
}

/// Asks QEMU for its version, which means to run it: not on the runtime's only thread.
async fn backend(config: &Config) -> Result<QemuBackend, BackendError> {
    let paths = config.qemu_paths();
    let accelerator = config.vm.accelerator.into();
    let user = config.vm_user()?;
    let made = tokio::task::spawn_blocking(move || QemuBackend::new(paths, accelerator)).await;
    let backend = made??;
    Ok(match user {
        Some(user) => backend.run_as(user),
        None => backend,
    })
}

#[derive(Debug, thiserror::Error)]
enum BackendError {
    #[error(transparent)]
    Qemu(#[from] nacre_hypervisor::QemuError),
    #[error(transparent)]
    User(#[from] nacre_hypervisor::UnknownUser),
    #[error("the check of QEMU was cut short: {0}")]
    Cut(#[from] tokio::task::JoinError),
}

impl Coded for BackendError {
    fn code(&self) -> Code {
        Code::FAILED_PRECONDITION
    }

    fn failure(&self) -> Option<Failure> {
        Some(Failure::Monitor)
    }
}

/// A machine that was not launched.
#[derive(Debug)]
struct MachineError {
    error: LaunchError,
    is_confidential: bool,
}

impl fmt::Display for MachineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)?;
        match self.error {
            // What QEMU, KVM or the hardware say there is short.
            LaunchError::Ended { .. } | LaunchError::Control(_) if self.is_confidential => f
                .write_str(
                    "; `nacre check` tells what this host lacks for confidential guests (vm.tee)",
                ),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for MachineError {}

impl Coded for MachineError {
    fn code(&self) -> Code {
        self.error.code()
    }

    fn failure(&self) -> Option<Failure> {
        self.error.failure()
    }
}

async fn attach(
    wanted: NetworkWanted,
    docker: Option<NetworkHook>,
    id: &str,
) -> Result<Network, NetworkError> {
    let namespace = match wanted {
        NetworkWanted::Path(path) => Namespace::open(&path)?,
        NetworkWanted::Isolated => Namespace::isolated()?,
    };
    if let Some(hook) = docker {
        hook.run(&namespace, id).await?;
    }
    Network::attach(namespace).await
}

/// A pod whose ports cannot be forwarded runs all the same, and the log says why they cannot.
async fn forward_ports(network: &Network, agent: &Agent, id: &str) -> Option<PortForward> {
    let served = match network.catch_loopback().await {
        Ok(caught) => PortForward::serve(caught, agent, id).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    served
        .inspect_err(|error| tracing::warn!("no port of sandbox {id} can be forwarded: {error}"))
        .ok()
}

fn nics(network: &mut Network) -> Result<Vec<Nic>, NetworkError> {
    let taps = std::mem::take(&mut network.taps);
    let pairs = network.layout.interfaces.iter().zip(taps);
    pairs
        .map(|(interface, tap)| {
            let mtu = u16::try_from(interface.mtu).map_err(|_| {
                NetworkError::Unsupported(format!(
                    "interface {} has the MTU {}",
                    interface.name, interface.mtu
                ))
            })?;
            Ok(Nic { tap, mac: interface.mac, mtu })
        })
        .collect()
}

/// Turns the machine's end into something that every call to the agent can wait for as well.
fn watch_ending(vm: Arc<dyn Vm>, group: Option<Arc<ControlGroup>>) -> Ending {
    let (ended, ending) = watch::channel(None);
    tokio::spawn(async move {
        let VmExit { mut reason, clean } = vm.wait().await;
        if !clean && group.is_some_and(|group| group.was_out_of_memory()) {
            reason.push_str(OUT_OF_MEMORY);
        }
        ended.send_replace(Some(Arc::from(reason)));
    });
    ending
}

fn explain(vm: &dyn Vm, doing: &str, error: &AgentError) -> TaskError {
    let advice = match error {
        AgentError::Deadline { method: "Check", .. } => {
            "; if the host is merely slow, raise vm.boot_timeout_seconds"
        }
        _ => "",
    };
    let quotes = match error {
        // A guest that turns itself off has said why on its console; other ends explain themselves.
        AgentError::Gone(reason) => reason.contains("powered off"),
        _ => error.is_about_the_machine(),
    };
    let console = if quotes { vm.console_tail() } else { String::new() };
    let failure = failure_of(error, &vm.console_tail());
    if console.trim().is_empty() {
        let cause = error.to_string();
        let words = Failure::marked(&cause).map_or(cause.as_str(), |(_, words)| words);
        let cause = format!("{words}{advice}");
        return TaskError::new(error.code(), doing, cause).or_failure(failure);
    }
    let console = tail(console.trim_end(), QUOTED_CONSOLE);
    let cause = format!("{error}{advice}; the guest's console ends: {console}");
    TaskError::new(error.code(), doing, cause).or_failure(failure)
}

/// Which failure of a start it is; what the guest says of itself is believed only of its own phases.
fn failure_of(error: &AgentError, console: &str) -> Option<Failure> {
    Some(match error {
        AgentError::Refused { .. } if error.denial().is_some() => Failure::Denied,
        AgentError::Refused { message, .. } => Failure::marked(message)?.0,
        AgentError::Deadline { method: "Check", .. } if console.trim().is_empty() => {
            Failure::Silent
        }
        AgentError::Deadline { method: "Check", .. } => Failure::KernelStuck,
        AgentError::Deadline { .. } | AgentError::Broken { .. } => Failure::AgentSilent,
        AgentError::Gone(reason) => match Failure::on_console(console) {
            Some(failure) => failure,
            None if reason.contains("powered off") => Failure::AgentRefused,
            None if reason.contains("kernel panicked") || reason.contains("reset itself") => {
                Failure::KernelPanic
            }
            None => Failure::MachineGone,
        },
        AgentError::Nonsense { .. } => Failure::AgentBroken,
    })
}

fn create_sandbox_request(id: &str, spec: &Spec) -> api::CreateSandboxRequest {
    let shm = api::Storage {
        driver: DRIVER_EPHEMERAL.to_owned(),
        source: "shm".to_owned(),
        fstype: "tmpfs".to_owned(),
        mount_point: SANDBOX_SHM.to_owned(),
        options: ["noexec", "nosuid", "nodev", "mode=1777"]
            .map(str::to_owned)
            .into_iter()
            .chain([format!("size={SHM_BYTES}")])
            .collect(),
        fs_group: MessageField::none(),
        ..Default::default()
    };
    api::CreateSandboxRequest {
        hostname: spec.hostname().clone().unwrap_or_default(),
        dns: guest_network::name_servers(spec),
        sandbox_id: id.to_owned(),
        storages: vec![shm],
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_start_is_classified_by_what_is_known_of_the_machine() {
        let gone = |reason: &str| AgentError::Gone(reason.into());
        let refused = |code, message: &str| AgentError::Refused { code, message: message.into() };
        let silent = AgentError::Deadline { method: "Check", seconds: 1 };
        for (error, console, expected) in [
            (silent.clone(), " \n", Some(Failure::Silent)),
            (silent, "Linux version", Some(Failure::KernelStuck)),
            (gone("the guest powered off"), "", Some(Failure::AgentRefused)),
            (
                gone("the guest powered off"),
                "nacre-agent: NACRE-1602: other initdata",
                Some(Failure::OtherInitdata),
            ),
            (gone("the guest's kernel panicked: x"), "x", Some(Failure::KernelPanic)),
            (gone("QEMU was killed by signal 9"), "", Some(Failure::MachineGone)),
            (refused(Code::PERMISSION_DENIED, "policy denies"), "", Some(Failure::Denied)),
            (refused(Code::INTERNAL, "NACRE-2103: no such"), "", Some(Failure::NoImage)),
            (refused(Code::INTERNAL, "NACRE-1202: of the host"), "", None),
            (refused(Code::INTERNAL, "something"), "", None),
        ] {
            assert_eq!(failure_of(&error, console), expected, "{error}");
        }
    }

    #[test]
    fn where_hardware_may_be_missing_the_host_check_is_named() {
        let ended = || LaunchError::Ended { reason: "QEMU exited with status 1".into() };
        let said = |error, is_confidential| MachineError { error, is_confidential }.to_string();
        assert!(said(ended(), true).contains("QEMU exited with status 1; `nacre check` tells"));
        assert!(!said(ended(), false).contains("nacre check"));
        let problem = "is 0".to_owned();
        let config = LaunchError::Config { field: "vcpus", problem };
        assert!(!said(config, true).contains("nacre check"));
    }
}
