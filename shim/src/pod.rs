//! What containerd asks for, done: the life of one pod's containers and their processes.

mod followers;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use containerd_shim::asynchronous::ExitSignal;
use containerd_shim_protos::api::CreateTaskRequest;
use nacre_configuration::Config;
use nacre_protocol::agent as api;
use nacre_protocol::start_report::Phase;
use nacre_run_directory::usage::{self, Usage};

use crate::agent::AgentError;
use crate::annotations::Kind;
use crate::config::{self, RuntimeOptions};
use crate::container::{Container, Draft, Exec};
use crate::error::{Code, Doing, TaskError};
use crate::events::Events;
use crate::io::{Pumps, Stdio};
use crate::process::{Exit, KILL_PATIENCE, KILLED, Process, ProcessId, State, TerminalSize};
use crate::sandbox::{Origin, Sandbox};
use crate::spec;
use crate::start_report::StartReport;

/// Exit status of a process that could not be started.
const NEVER_RAN: u32 = 255;

/// Signals 1 to 64 exist on Linux.
const LAST_SIGNAL: u32 = 64;

/// The signal that no process can ignore.
const SIGKILL: u32 = 9;

/// The pod of this shim.
pub(crate) struct Pod {
    events: Events,
    origin: Origin,
    pub(crate) exit: ExitSignal,
    /// Held while the sandbox is made or ended.
    lifecycle: tokio::sync::Mutex<()>,
    sandbox: Mutex<Option<Arc<Sandbox>>>,
    containers: Mutex<HashMap<String, Slot>>,
}

/// A place in the list of containers.
#[derive(Clone)]
enum Slot {
    /// Being created: nobody else may take the id.
    Reserved,
    /// Being created, but containerd has lost patience and deleted it meanwhile.
    Abandoned,
    Taken(Arc<Container>),
}

impl Pod {
    pub(crate) fn new(events: Events, origin: Origin) -> Pod {
        Pod {
            events,
            origin,
            exit: ExitSignal::default(),
            lifecycle: tokio::sync::Mutex::new(()),
            sandbox: Mutex::default(),
            containers: Mutex::default(),
        }
    }

    /// Makes a container; the pod's first one brings the machine. Returns the process id that stands
    /// for the container on the host.
    pub(crate) async fn create(
        self: &Arc<Self>,
        request: CreateTaskRequest,
    ) -> Result<u32, TaskError> {
        let creating = format!("create container {}", request.id);
        if !request.checkpoint.is_empty() {
            let cause = "restoring from a checkpoint is not supported: start the container afresh";
            return Err(TaskError::new(Code::UNIMPLEMENTED, creating, cause));
        }
        self.reserve(&request.id, &creating)?;
        let created = self.create_reserved(&request, &creating).await;
        let container = match created {
            Ok(container) => container,
            Err(error) => {
                self.containers().remove(&request.id);
                return Err(error);
            }
        };
        let pid = container.sandbox.pid();
        let stdio = container.init.stdio.clone();
        if !self.take(&request.id, &container) {
            self.undo(&container.sandbox, &request.id).await;
            let cause = "it was deleted while it was being created";
            return Err(TaskError::new(Code::CANCELLED, creating, cause));
        }
        if container.carries_the_sandbox() {
            tokio::spawn(self.clone().give_up_if_unstarted(container));
        }
        self.events.created(&request.id, &request.bundle, &stdio, pid).await;
        Ok(pid)
    }

    async fn create_reserved(
        self: &Arc<Self>,
        request: &CreateTaskRequest,
        creating: &str,
    ) -> Result<Arc<Container>, TaskError> {
        let id = &request.id;
        let source = spec::read(Path::new(&request.bundle)).doing(creating)?;
        let annotations = spec::annotations(&source);
        let kind = Kind::of(&annotations).doing(creating)?;
        let (report, whose) = match &kind {
            Kind::Member { sandbox } => {
                (self.joined(sandbox, creating)?.report.clone(), Some(&**id))
            }
            Kind::Sandbox | Kind::Single => {
                (StartReport::begin(id, &self.origin.namespace, &annotations), None)
            }
        };
        report.add_container(id, &annotations);
        let attempt = report.attempt(whose);
        let created = self.create_reported(request, creating, &source, &kind, &report).await;
        match created {
            Ok(container) => {
                if whose.is_none() {
                    report.runs();
                }
                Ok(container)
            }
            Err(error) => {
                let error = attempt.failed(error);
                if whose.is_none() {
                    report.ended("");
                    report.keep().await;
                }
                Err(error)
            }
        }
    }

    async fn create_reported(
        self: &Arc<Self>,
        request: &CreateTaskRequest,
        creating: &str,
        source: &oci_spec::runtime::Spec,
        kind: &Kind,
        report: &StartReport,
    ) -> Result<Arc<Container>, TaskError> {
        let id = &request.id;
        let options = RuntimeOptions::decode(&request.options.type_url, &request.options.value);
        let mut draft = Draft::new(id, kind, source)?;
        let stdio = Stdio {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        draft.set_terminal(request.terminal);
        let streams = stdio.open().doing(creating)?;
        let sandbox = match kind {
            Kind::Member { sandbox } => self.joined(sandbox, creating)?,
            Kind::Sandbox | Kind::Single => {
                let config = config::load(&options.doing(creating)?).doing(creating)?;
                set_log_level(config.shim.log.into());
                report.configured(&config);
                self.boot(id, source, &config, report).await?
            }
        };
        let attempt = report.attempt(Some(id));
        let beside = match draft.create(&sandbox, &attempt).await {
            Ok(beside) => beside,
            Err(error) => {
                let error = attempt.failed(error);
                self.undo(&sandbox, id).await;
                return Err(error);
            }
        };
        let process_id = ProcessId { container: id.clone(), exec: String::new() };
        let init = Process::new(process_id, stdio, Pumps::new(streams));
        Ok(Arc::new(Container::new(request.bundle.clone(), init, sandbox, beside)))
    }

    fn reserve(&self, id: &str, creating: &str) -> Result<(), TaskError> {
        let mut containers = self.containers();
        if containers.contains_key(id) {
            return Err(TaskError::new(Code::ALREADY_EXISTS, creating, "it exists already"));
        }
        containers.insert(id.to_owned(), Slot::Reserved);
        Ok(())
    }

    /// Puts a finished container into its reserved place; false if the place was abandoned.
    fn take(&self, id: &str, container: &Arc<Container>) -> bool {
        let mut containers = self.containers();
        if matches!(containers.get(id), Some(Slot::Abandoned) | None) {
            containers.remove(id);
            return false;
        }
        containers.insert(id.to_owned(), Slot::Taken(container.clone()));
        true
    }

    /// Removes what was made of a container that is not to be; the pod's own takes the pod with it.
    async fn undo(&self, sandbox: &Sandbox, id: &str) {
        if sandbox.id == id {
            self.end_sandbox().await;
            return;
        }
        let request =
            api::RemoveContainerRequest { container_id: id.to_owned(), ..Default::default() };
        if let Err(error) = sandbox.agent.remove_container(request).await
            && !error.is_not_found()
        {
            tracing::warn!("remains of container {id} stay in the guest until it ends: {error}");
        }
    }

    async fn boot(
        self: &Arc<Self>,
        id: &str,
        source: &oci_spec::runtime::Spec,
        config: &Config,
        report: &StartReport,
    ) -> Result<Arc<Sandbox>, TaskError> {
        let _alone = self.lifecycle.lock().await;
        if let Some(sandbox) = self.current() {
            let cause = format!("this shim has the sandbox {} already", sandbox.id);
            return Err(TaskError::new(Code::ALREADY_EXISTS, format!("start sandbox {id}"), cause));
        }
        let sandbox = Sandbox::start(id, &self.origin, source, config, report).await?;
        *self.sandbox() = Some(sandbox.clone());
        tokio::spawn(self.clone().bury_the_dead(sandbox.clone()));
        tokio::spawn(followers::sweep_up());
        tokio::spawn(self.clone().report_memory_exhaustion(sandbox.clone()));
        tokio::spawn(followers::report_start(sandbox.clone(), None));
        Ok(sandbox)
    }

    /// The sandbox that a container wants to join, if it is this shim's and alive.
    fn joined(&self, wanted: &str, creating: &str) -> Result<Arc<Sandbox>, TaskError> {
        let failed = |cause: String| TaskError::new(Code::FAILED_PRECONDITION, creating, cause);
        match self.current() {
            Some(sandbox) if sandbox.id == wanted => match sandbox.end() {
                None => Ok(sandbox),
                Some(reason) => Err(failed(format!("the pod's virtual machine is gone: {reason}"))),
            },
            Some(sandbox) => Err(failed(format!(
                "it belongs to sandbox {wanted}, but this shim has {}",
                sandbox.id
            ))),
            None => Err(failed(format!("its sandbox {wanted} does not run"))),
        }
    }

    /// Starts a container's first process, or one that joins it.
    pub(crate) async fn start(self: &Arc<Self>, id: &str, exec: &str) -> Result<u32, TaskError> {
        let container = self.container(id)?;
        let process = find(&container, exec)?;
        let starting = format!("start {}", process.id);
        if !process.advance(State::Created, State::Running) {
            let cause = "it was started before";
            return Err(TaskError::new(Code::FAILED_PRECONDITION, starting, cause));
        }
        let sandbox = &container.sandbox;
        if let Err(error) = self.start_in_guest(&container, &process, &starting).await {
            // Those who wait for it or for its output are let go: it will never run.
            process.stop(Exit::now(NEVER_RAN));
            process.pumps.close();
            return Err(error);
        }
        let pid = sandbox.pid();
        process.pumps.start(&sandbox.agent, &process.id);
        self.events.started(&process.id, pid).await;
        tokio::spawn(self.clone().supervise(container.clone(), process.clone()));
        if exec.is_empty() && !container.carries_the_sandbox() {
            tokio::spawn(self.clone().follow_usage(container.clone()));
        }
        self.apply_early_size(&container, &process).await;
        Ok(pid)
    }

    async fn start_in_guest(
        &self,
        container: &Container,
        process: &Process,
        starting: &str,
    ) -> Result<(), TaskError> {
        let ProcessId { container: id, exec } = &process.id;
        let sandbox = &container.sandbox;
        let explain = |error: AgentError| sandbox.explain(starting, &error);
        if exec.is_empty() {
            let request =
                api::StartContainerRequest { container_id: id.clone(), ..Default::default() };
            let attempt = sandbox.report.attempt(Some(id));
            let started = attempt.timed(Phase::Start, sandbox.agent.start_container(request)).await;
            started.map_err(|error| attempt.failed(explain(error)))?;
            tokio::spawn(followers::report_start(sandbox.clone(), Some(id.clone())));
            return Ok(());
        }
        let spec = container.execs().get(exec).map(|exec| exec.spec.clone());
        let request = api::ExecProcessRequest {
            container_id: id.clone(),
            exec_id: exec.clone(),
            process: spec.map(|spec| spec.as_ref().clone()).into(),
            ..Default::default()
        };
        sandbox.agent.exec_process(request).await.map(|_| ()).map_err(explain)
    }

    async fn apply_early_size(&self, container: &Container, process: &Process) {
        let early = process.early_size.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(size) = early
            && let Err(error) = resize_in_guest(&container.sandbox, process, size).await
        {
            tracing::warn!("terminal size of {}: {error}", process.id);
        }
    }

    /// Registers a process that will join a container.
    pub(crate) async fn exec(
        &self,
        id: ProcessId,
        stdio: Stdio,
        spec_json: &[u8],
    ) -> Result<(), TaskError> {
        let adding = format!("add {id}");
        let container = self.container(&id.container)?;
        if container.init.state() != State::Running {
            let cause = match container.sandbox.end() {
                Some(reason) => format!("the pod's virtual machine is gone: {reason}"),
                None => "the container does not run".to_owned(),
            };
            return Err(TaskError::new(Code::FAILED_PRECONDITION, adding, cause));
        }
        let process = spec::process_from_json(spec_json).doing(&adding)?;
        let streams = stdio.open().doing(&adding)?;
        {
            let mut execs = container.execs();
            if id.exec.is_empty() || execs.contains_key(&id.exec) || id.exec == id.container {
                let cause = "its id is empty or taken";
                return Err(TaskError::new(Code::ALREADY_EXISTS, adding, cause));
            }
            execs.insert(id.exec.clone(), Exec::new(id.clone(), stdio, streams, process));
        }
        self.events.exec_added(&id).await;
        Ok(())
    }

    /// Signals one process, or all of a container.
    pub(crate) async fn kill(
        &self,
        id: &ProcessId,
        signal: u32,
        all: bool,
    ) -> Result<(), TaskError> {
        let killing = format!("send signal {signal} to {id}");
        if !(1..=LAST_SIGNAL).contains(&signal) {
            let cause = "there is no such signal: give 1 to 64";
            return Err(TaskError::new(Code::INVALID_ARGUMENT, killing, cause));
        }
        let container = self.container(&id.container)?;
        let process = find(&container, &id.exec)?;
        let finished = |cause: &str| TaskError::new(Code::NOT_FOUND, &killing, cause);
        match process.state() {
            State::Stopped(_) => return Err(finished("process already finished")),
            State::Created => {
                self.end_unstarted(&container, &process, signal).await;
                return Ok(());
            }
            State::Running | State::Paused => {}
        }
        // Nobody has to believe the guest for it: see `Process::outlived_sigkill`.
        let is_promised = signal == SIGKILL && id.exec.is_empty();
        if is_promised {
            process.condemn();
        }
        let targets = if all && id.exec.is_empty() { container.running() } else { vec![process] };
        for target in targets {
            let request = api::SignalProcessRequest {
                container_id: target.id.container.clone(),
                exec_id: target.id.agent_exec_id().to_owned(),
                signal,
                ..Default::default()
            };
            match container.sandbox.agent.signal_process(request).await {
                Ok(_) => {}
                Err(gone) if gone.is_not_found() => {
                    if target.id == *id {
                        return Err(finished("process already finished"));
                    }
                }
                Err(AgentError::Gone(reason)) => {
                    return Err(finished(&format!(
                        "process already finished: the virtual machine is gone: {reason}"
                    )));
                }
                Err(error) if is_promised => tracing::warn!(
                    "{killing}: {error}; if it has not ended in {} s the machine is ended",
                    KILL_PATIENCE.as_secs()
                ),
                Err(error) => return Err(container.sandbox.explain(&killing, &error)),
            }
        }
        Ok(())
    }

    /// A process that never ran ends as if the signal had found it.
    async fn end_unstarted(&self, container: &Container, process: &Process, signal: u32) {
        if process.stop(Exit::now(128 + signal)) {
            self.announce_exit(&container.sandbox, process).await;
        }
    }

    /// Waits for a process to end.
    pub(crate) async fn wait(&self, id: &str, exec: &str) -> Result<Exit, TaskError> {
        let container = self.container(id)?;
        let process = find(&container, exec)?;
        Ok(process.exited().await)
    }

    /// Forgets a process that has ended; with a container's first one, the container. With the pod's
    /// own container the machine goes.
    pub(crate) async fn delete(&self, id: &str, exec: &str) -> Result<(Exit, u32), TaskError> {
        if let Some(slot @ Slot::Reserved) = self.containers().get_mut(id) {
            *slot = Slot::Abandoned;
        }
        let container = self.container(id)?;
        let process = find(&container, exec)?;
        let deleting = format!("delete {}", process.id);
        let exit = match process.state() {
            State::Stopped(exit) => exit,
            State::Created => {
                let exit = Exit::now(KILLED);
                process.stop(exit);
                exit
            }
            State::Running | State::Paused => {
                let cause = "it still runs: kill it first";
                return Err(TaskError::new(Code::FAILED_PRECONDITION, deleting, cause));
            }
        };
        let pid = container.sandbox.pid();
        if !exec.is_empty() {
            process.pumps.close();
            container.execs().remove(exec);
            return Ok((exit, pid));
        }
        if !container.carries_the_sandbox() {
            let request =
                api::RemoveContainerRequest { container_id: id.to_owned(), ..Default::default() };
            match container.sandbox.agent.remove_container(request).await {
                Ok(_) | Err(AgentError::Gone(_)) => {}
                Err(absent) if absent.is_not_found() => {}
                // containerd would ask for ever, and never end a pod whose guest keeps one container.
                Err(error) => {
                    tracing::warn!(
                        "{deleting}: its remains stay in the guest until it ends: {error}"
                    );
                }
            }
        }
        process.pumps.close();
        for exec in container.execs().values() {
            exec.process.pumps.close();
        }
        self.containers().remove(id);
        if let Err(error) = usage::remove(&container.sandbox.run_dir(), id) {
            tracing::debug!("what container {id} had written is still told: {error}");
        }
        if container.carries_the_sandbox() {
            self.end_sandbox().await;
        }
        self.events.deleted(&process.id, exit, pid).await;
        Ok((exit, pid))
    }

    pub(crate) async fn pause(&self, id: &str) -> Result<(), TaskError> {
        let container = self.container(id)?;
        let pausing = format!("pause container {id}");
        self.expect(&container, State::Running, &pausing)?;
        let request =
            api::PauseContainerRequest { container_id: id.to_owned(), ..Default::default() };
        let paused = container.sandbox.agent.pause_container(request).await;
        paused.map_err(|error| container.sandbox.explain(&pausing, &error))?;
        container.init.advance(State::Running, State::Paused);
        self.events.paused(id).await;
        Ok(())
    }

    pub(crate) async fn resume(&self, id: &str) -> Result<(), TaskError> {
        let container = self.container(id)?;
        let resuming = format!("resume container {id}");
        self.expect(&container, State::Paused, &resuming)?;
        let request =
            api::ResumeContainerRequest { container_id: id.to_owned(), ..Default::default() };
        let resumed = container.sandbox.agent.resume_container(request).await;
        resumed.map_err(|error| container.sandbox.explain(&resuming, &error))?;
        container.init.advance(State::Paused, State::Running);
        self.events.resumed(id).await;
        Ok(())
    }

    fn expect(&self, container: &Container, state: State, doing: &str) -> Result<(), TaskError> {
        let found = container.init.state();
        if found == state {
            return Ok(());
        }
        let cause = format!("it is not {state:?} but {found:?}");
        Err(TaskError::new(Code::FAILED_PRECONDITION, doing, cause))
    }

    pub(crate) async fn resize(
        &self,
        id: &str,
        exec: &str,
        size: TerminalSize,
    ) -> Result<(), TaskError> {
        let container = self.container(id)?;
        let process = find(&container, exec)?;
        let resizing = format!("resize the terminal of {}", process.id);
        if !process.stdio.terminal {
            let cause = "it has no terminal";
            return Err(TaskError::new(Code::FAILED_PRECONDITION, resizing, cause));
        }
        match process.state() {
            State::Created => {
                *process.early_size.lock().unwrap_or_else(PoisonError::into_inner) = Some(size);
                Ok(())
            }
            State::Stopped(_) => Ok(()),
            State::Running | State::Paused => resize_in_guest(&container.sandbox, &process, size)
                .await
                .map_err(|error| container.sandbox.explain(&resizing, &error)),
        }
    }

    /// No more input will come for a process.
    pub(crate) fn close_input(&self, id: &str, exec: &str) -> Result<(), TaskError> {
        let container = self.container(id)?;
        find(&container, exec)?.pumps.close_input();
        Ok(())
    }

    pub(crate) async fn update(&self, id: &str, resources_json: &[u8]) -> Result<(), TaskError> {
        let updating = format!("update container {id}");
        let container = self.container(id)?;
        let resources = spec::resources_from_json(resources_json).doing(&updating)?;
        let request = api::UpdateContainerRequest {
            container_id: id.to_owned(),
            resources: Some(resources).into(),
            ..Default::default()
        };
        let updated = container.sandbox.agent.update_container(request).await;
        updated.map(|_| ()).map_err(|error| container.sandbox.explain(&updating, &error))
    }

    pub(crate) async fn stats(&self, id: &str) -> Result<api::StatsContainerResponse, TaskError> {
        let container = self.container(id)?;
        let request =
            api::StatsContainerRequest { container_id: id.to_owned(), ..Default::default() };
        let stats = container.sandbox.agent.stats_container(request).await;
        let stats = stats.map_err(|error| {
            container.sandbox.explain(&format!("get the statistics of container {id}"), &error)
        })?;
        if let Some(layer) = stats.writable_layer.as_ref() {
            let usage = Usage { bytes: layer.bytes, inodes: layer.inodes };
            if let Err(error) = usage::write(&container.sandbox.run_dir(), id, usage) {
                tracing::debug!("what container {id} has written is told nobody: {error}");
            }
        }
        Ok(stats)
    }

    /// Ends the shim if no container is left, or at once.
    pub(crate) async fn shutdown(&self, now: bool) {
        let alone = self.lifecycle.lock().await;
        let in_use = |slot: &Slot| !matches!(slot, Slot::Abandoned);
        if !now && self.containers().values().any(in_use) {
            return;
        }
        drop(alone);
        self.end_sandbox().await;
        self.exit.signal();
    }

    async fn end_sandbox(&self) {
        let _alone = self.lifecycle.lock().await;
        let sandbox = self.sandbox().take();
        if let Some(sandbox) = sandbox {
            sandbox.stop().await;
        }
    }

    /// The container of that id.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, TaskError> {
        self.containers().get(id).and_then(Slot::container).ok_or_else(|| {
            TaskError::new(Code::NOT_FOUND, format!("find container {id}"), "there is none")
        })
    }

    /// The pod's sandbox, if it was made.
    pub(crate) fn current(&self) -> Option<Arc<Sandbox>> {
        self.sandbox().clone()
    }

    fn sandbox(&self) -> MutexGuard<'_, Option<Arc<Sandbox>>> {
        self.sandbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn container(&self) -> Option<Arc<Container>> {
        match self {
            Slot::Reserved | Slot::Abandoned => None,
            Slot::Taken(container) => Some(container.clone()),
        }
    }
}

/// The process of that name in a container.
pub(crate) fn find(container: &Container, exec: &str) -> Result<Arc<Process>, TaskError> {
    container.process(exec).ok_or_else(|| {
        let id = &container.init.id.container;
        let finding = format!("find process {exec} of container {id}");
        TaskError::new(Code::NOT_FOUND, finding, "there is none")
    })
}

async fn resize_in_guest(
    sandbox: &Sandbox,
    process: &Process,
    size: TerminalSize,
) -> Result<(), AgentError> {
    let request = api::TtyWinResizeRequest {
        container_id: process.id.container.clone(),
        exec_id: process.id.agent_exec_id().to_owned(),
        row: size.rows,
        column: size.columns,
        ..Default::default()
    };
    sandbox.agent.resize_terminal(request).await.map(|_| ())
}

/// As configured, but containerd's own wish to debug is not undone.
fn set_log_level(configured: log::LevelFilter) {
    let wished = log::max_level();
    let debugging = wished == log::LevelFilter::Debug;
    log::set_max_level(if debugging { wished.max(configured) } else { configured });
}
