//! A container: its first process, further ones, its control group and what it occupies.

mod create;
mod footprint;
mod image_user;
mod last_words;
mod layer_usage;
mod sources;
mod volumes;

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nacre_image_pull::Image;
use nacre_protocol::agent::{CgroupStats, WritableLayerStats};
use nacre_protocol::oci as proto;
use oci_spec::runtime::LinuxSeccomp;

pub(crate) use create::create;
use footprint::Footprint;
use image_user::UserOfImage;
use layer_usage::LayerUsage;

use crate::cgroup::Limits;
use crate::device_policy::{DevicePolicy, GuestDevices};
use crate::error::RpcError;
use crate::launcher::{self, Confinement, Control, Kind, Stdio};
use crate::oci::{all_capabilities, capability_sets, parse_process, refuse_if};
use crate::process::Process;
use crate::reaper::Reaper;
use crate::secrets::UnsealedEnv;

/// Most further processes of one container at a time.
const MOST_RUNNING: usize = 1024;
/// Finished ones whose status is kept for a host that has not asked yet.
const MOST_FINISHED: usize = 128;
/// Longest name of a further process.
const LONGEST_EXEC_ID: usize = 128;
/// The signal that cannot be refused.
const SIGKILL: u32 = 9;

/// A container that was created.
#[derive(Debug)]
pub(crate) struct Container {
    id: String,
    is_pod: bool,
    shares_processes: bool,
    init: Arc<Process>,
    /// Given up when the container starts.
    starter: tokio::sync::Mutex<Option<Control>>,
    started: AtomicBool,
    /// Whether the policy knows that the first process has ended.
    pub(crate) exit_told: AtomicBool,
    seccomp: Option<LinuxSeccomp>,
    devices: DevicePolicy,
    /// Commands that are executed come with the variables as the host knows them.
    unsealed: UnsealedEnv,
    /// Files that were copied for it: where it has them, and where the agent has.
    files: HashMap<PathBuf, PathBuf>,
    layer_usage: LayerUsage,
    /// Where the host left its user to its image: commands come with the same numbers.
    image_user: Option<UserOfImage>,
    /// The layers of its root stay as long as it does.
    _image: Option<Image>,
    reaper: Arc<Reaper>,
    execs: Mutex<Execs>,
    exec_number: AtomicU64,
    footprint: Footprint,
}

/// Further processes by their names; finished ones oldest first.
#[derive(Debug, Default)]
struct Execs {
    processes: HashMap<String, Arc<Process>>,
    launching: Vec<String>,
    order: VecDeque<String>,
}

impl Container {
    /// Its name.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// True for the pod's own (pause) container.
    pub(crate) fn is_pod(&self) -> bool {
        self.is_pod
    }

    /// Its first process.
    pub(crate) fn init(&self) -> &Arc<Process> {
        &self.init
    }

    /// Whether its control group, or one that it has made within, has this identifier.
    pub(crate) fn holds_cgroup(&self, id: u64) -> bool {
        self.footprint.cgroup().holds(id)
    }

    /// The process that a request names. No name and the container's own stand for the first one.
    pub(crate) fn process(&self, exec_id: &str) -> Result<Arc<Process>, RpcError> {
        if exec_id.is_empty() || exec_id == self.id {
            return Ok(Arc::clone(&self.init));
        }
        let found = self.execs().processes.get(exec_id).cloned();
        found.ok_or_else(|| {
            RpcError::not_found(format!("process {exec_id:?} of container {:?}", self.id))
        })
    }

    /// Runs the program. Returns when it runs.
    pub(crate) async fn start(&self) -> Result<(), RpcError> {
        let starter = self.starter.lock().await.take();
        let starter = starter.ok_or_else(|| {
            RpcError::Precondition(format!("container {:?} was started before", self.id))
        })?;
        self.started.store(true, Ordering::Relaxed);
        let context = format!("failed to start container {:?}", self.id);
        starter.start().await.map_err(|e| RpcError::internal(context, e))
    }

    /// Runs a further process.
    pub(crate) async fn exec(
        &self,
        exec_id: &str,
        process: &proto::Process,
    ) -> Result<(), RpcError> {
        let plain = |c: char| c.is_ascii_graphic() && c != '/';
        let bad = exec_id.is_empty()
            || exec_id.len() > LONGEST_EXEC_ID
            || exec_id == self.id
            || !exec_id.chars().all(plain);
        refuse_if(bad, "exec_id", "must be a name of its own without spaces and slashes")?;
        let mut parsed = parse_process("process", process)?;
        refuse_if(process.Args.is_empty(), "process.Args", "names no program")?;
        if !self.started.load(Ordering::Relaxed) || self.init.has_exited() {
            let why = format!("container {:?} is not running", self.id);
            return Err(RpcError::Precondition(why));
        }
        if image_user::is_wanted(parsed.user()) {
            let answer = self.image_user.as_ref().ok_or_else(|| {
                let why = "stands for the image's user, which the container was not created with";
                RpcError::invalid("process.User", why)
            })?;
            answer.put("process.User", parsed.user_mut())?;
        }
        let _launching = self.begin_exec(exec_id)?;
        // The launcher's program applies these itself, after the filter of system calls.
        let confinement = Confinement {
            capabilities: parsed.capabilities().clone(),
            seccomp: self.seccomp.clone(),
        };
        parsed.set_capabilities(Some(capability_sets(|_| all_capabilities())));
        if let Some(env) = parsed.env_mut() {
            self.unsealed.apply(env);
        }
        let number = self.exec_number.fetch_add(1, Ordering::Relaxed);
        let files = ExecFiles {
            process: self.footprint.directory().join(format!("exec-{number}.json")),
            confinement: self.footprint.directory().join(format!("exec-{number}-confinement.json")),
        };
        let context = format!("failed to exec in container {:?}", self.id);
        let fail = |e: String| RpcError::internal(&context, e);
        files.write(&parsed, &confinement).map_err(fail)?;
        let kind = Kind::Exec {
            process: files.process.to_string_lossy().into_owned(),
            confinement: files.confinement.to_string_lossy().into_owned(),
        };
        let stdio = self.stdio(process);
        let owner = parsed.user().uid();
        let launched = launcher::launch(&self.reaper, &self.id, owner, kind, stdio).await;
        let (process, _) = launched.map_err(fail)?.into_parts();
        self.execs().processes.insert(exec_id.to_owned(), Arc::new(process));
        Ok(())
    }

    /// SIGKILL to a container whose processes share a PID namespace with others kills all of it,
    /// as the kernel does for one with its own.
    pub(crate) fn signal(&self, exec_id: &str, signal: u32) -> Result<(), RpcError> {
        let process = self.process(exec_id)?;
        let is_init = Arc::ptr_eq(&process, &self.init);
        if is_init && signal == SIGKILL && self.shares_processes && !process.has_exited() {
            let context = format!("failed to kill container {:?}", self.id);
            return self.footprint.cgroup().kill().map_err(|e| RpcError::internal(context, e));
        }
        process.signal(signal)
    }

    /// Changes limits while the container runs.
    pub(crate) fn update(&self, limits: &Limits) -> Result<(), RpcError> {
        self.footprint.cgroup().apply(limits).map_err(RpcError::Internal)
    }

    /// Whether device rules are those that the container was created with.
    pub(crate) fn allows_devices_as(
        &self,
        field: &str,
        rules: &[proto::LinuxDeviceCgroup],
    ) -> Result<bool, RpcError> {
        Ok(DevicePolicy::new(field, rules, &GuestDevices::find())? == self.devices)
    }

    /// Usage figures.
    pub(crate) fn stats(&self) -> Result<CgroupStats, RpcError> {
        let context = format!("failed to read the figures of container {:?}", self.id);
        self.footprint.cgroup().stats().map_err(|e| RpcError::internal(context, e))
    }

    /// What it has written to its root, if that is known yet.
    pub(crate) fn writable_layer(&self) -> Option<WritableLayerStats> {
        self.layer_usage.known(self.footprint.scratch().join("upper"))
    }

    /// The end of a file that was copied for the container and that it may have written to. Only when its
    /// first process has ended.
    pub(crate) fn last_words(&self, path: &str) -> Result<String, RpcError> {
        if !self.init.has_exited() {
            let why = format!("container {:?} has not ended", self.id);
            return Err(RpcError::Precondition(why));
        }
        let place = self.files.get(Path::new(path)).ok_or_else(|| {
            RpcError::not_found(format!("a copied file at {path:?} in container {:?}", self.id))
        })?;
        last_words::read(place).map_err(|e| {
            let doing = format!("failed to read {path:?} of container {:?}", self.id);
            RpcError::internal(doing, e)
        })
    }

    /// Stops all processes until [`Container::resume`].
    pub(crate) async fn pause(&self) -> Result<(), RpcError> {
        let context = format!("failed to pause container {:?}", self.id);
        self.footprint.cgroup().freeze().await.map_err(|e| RpcError::internal(context, e))
    }

    /// Lets a paused container go on.
    pub(crate) async fn resume(&self) -> Result<(), RpcError> {
        let context = format!("failed to resume container {:?}", self.id);
        self.footprint.cgroup().thaw().await.map_err(|e| RpcError::internal(context, e))
    }

    /// Kills what is left, wakes who waits on a stream, and removes everything the container
    /// occupied.
    pub(crate) async fn remove(&self) -> Result<(), RpcError> {
        self.starter.lock().await.take();
        let result = self.footprint.release().await;
        self.init.streams.close();
        for process in self.execs().processes.values() {
            process.streams.close();
        }
        result
            .map_err(|e| RpcError::internal(format!("failed to remove container {:?}", self.id), e))
    }

    fn stdio(&self, process: &proto::Process) -> Stdio {
        stdio_of(process, self.footprint.directory().to_owned())
    }

    fn begin_exec<'a>(&'a self, exec_id: &str) -> Result<Launching<'a>, RpcError> {
        let mut execs = self.execs();
        execs.forget_finished();
        let running = execs.processes.get(exec_id).is_some_and(|process| !process.has_exited());
        if running || execs.launching.iter().any(|id| id == exec_id) {
            let why = format!("process {exec_id:?} exists in container {:?}", self.id);
            return Err(RpcError::AlreadyExists(why));
        }
        let alive = execs.processes.values().filter(|process| !process.has_exited()).count();
        if alive + execs.launching.len() >= MOST_RUNNING {
            let why = format!(
                "container {:?} has {MOST_RUNNING} processes by exec, which is the most",
                self.id
            );
            return Err(RpcError::Exhausted(why));
        }
        execs.order.retain(|id| id != exec_id);
        execs.order.push_back(exec_id.to_owned());
        execs.launching.push(exec_id.to_owned());
        Ok(Launching { container: self, exec_id: exec_id.to_owned() })
    }

    fn execs(&self) -> MutexGuard<'_, Execs> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Execs {
    /// Keeps the last finished ones.
    fn forget_finished(&mut self) {
        let finished = |processes: &HashMap<String, Arc<Process>>, id: &String| {
            processes.get(id).is_none_or(|process| process.has_exited())
        };
        let launching = &self.launching;
        let old: Vec<_> = self
            .order
            .iter()
            .filter(|id| finished(&self.processes, id) && !launching.contains(id))
            .cloned()
            .collect();
        let surplus = old.len().saturating_sub(MOST_FINISHED);
        for id in old.into_iter().take(surplus) {
            self.processes.remove(&id);
            self.order.retain(|kept| *kept != id);
        }
    }
}

/// Holds the name of a further process while it is launched.
struct Launching<'a> {
    container: &'a Container,
    exec_id: String,
}

impl Drop for Launching<'_> {
    fn drop(&mut self) {
        self.container.execs().launching.retain(|id| *id != self.exec_id);
    }
}

/// The launcher's input, removed after the launch.
struct ExecFiles {
    process: PathBuf,
    confinement: PathBuf,
}

impl ExecFiles {
    fn write(
        &self,
        process: &oci_spec::runtime::Process,
        confinement: &Confinement,
    ) -> Result<(), String> {
        let process = serde_json::to_vec(process).map_err(|e| e.to_string())?;
        let confinement = serde_json::to_vec(confinement).map_err(|e| e.to_string())?;
        std::fs::write(&self.process, process)
            .and_then(|()| std::fs::write(&self.confinement, confinement))
            .map_err(|e| format!("failed to write the launch order: {e}"))
    }
}

impl Drop for ExecFiles {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.process);
        let _ = std::fs::remove_file(&self.confinement);
    }
}

fn stdio_of(process: &proto::Process, directory: PathBuf) -> Stdio {
    if !process.Terminal {
        return Stdio::Pipes;
    }
    let size = process.ConsoleSize.as_ref().filter(|size| size.Height > 0 && size.Width > 0);
    let cut = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    Stdio::Terminal { directory, size: size.map(|size| (cut(size.Height), cut(size.Width))) }
}
