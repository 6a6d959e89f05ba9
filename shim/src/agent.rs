//! The connection to the agent in the guest.
//!
//! The agent is not trusted: its answers are bounded, its words are cleaned before people see them,
//! and no call waits longer than its deadline, except for the long polls, which end with the machine.

use std::sync::Arc;
use std::time::Duration;

use nacre_hypervisor::AgentChannel;
use nacre_protocol::agent as api;
use nacre_protocol::agent_ttrpc::AgentServiceClient;
use nacre_protocol::channel::{RECORDED_REQUESTS, STREAM_CHUNK};
use nacre_protocol::health_ttrpc::HealthClient;
use nacre_protocol::ports_ttrpc::PortsClient;
use nacre_protocol::types::Interface;
use nacre_protocol::{health, ports, pull_progress, start_report, termination};
use protobuf::well_known_types::empty::Empty;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use ttrpc::r#async::transport::Socket;
use ttrpc::context::Context;

use crate::error::{Code, Coded, printable};
use crate::process::ProcessId;

/// Deadline of calls that only look or change a setting.
const QUICK: Duration = Duration::from_secs(10);
/// Deadline of calls that start or remove something; a starting pod's network is among them, since ten pods
/// that start at once on two processors take their time.
const MODERATE: Duration = Duration::from_secs(60);
/// Writing volumes back: what a guest's memory holds of them, at the speed of a slow disk.
pub(crate) const WRITE_BACK: Duration = Duration::from_secs(300);
/// Deadline of a container's creation, which includes the pull of its image.
const PULL: Duration = Duration::from_secs(30 * 60);
/// Time between two attempts to connect.
const RETRY: Duration = Duration::from_millis(20);

/// Why the agent did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum AgentError {
    /// The agent refused or failed.
    #[error("{message}")]
    Refused { code: Code, message: String },
    /// There is no machine any more.
    #[error("the virtual machine is gone: {0}")]
    Gone(Arc<str>),
    /// No answer came in time.
    #[error("the guest's agent did not answer {method} within {seconds} s")]
    Deadline { method: &'static str, seconds: u64 },
    /// The connection broke, or never came to be.
    #[error("no connection to the guest's agent ({method}): {cause}")]
    Broken { method: &'static str, cause: String },
    /// The answer breaks the protocol.
    #[error("the guest's agent broke the protocol: {method} {problem}")]
    Nonsense { method: &'static str, problem: String },
}

impl AgentError {
    /// Whether it is about the machine or the connection, not about the request.
    pub(crate) fn is_about_the_machine(&self) -> bool {
        !matches!(self, AgentError::Refused { .. })
    }

    /// What the agent says where its policy denies the request.
    pub(crate) fn denial(&self) -> Option<&str> {
        match self {
            AgentError::Refused { code: Code::PERMISSION_DENIED, message } => Some(message),
            _ => None,
        }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, AgentError::Refused { code: Code::NOT_FOUND, .. })
    }
}

impl Coded for AgentError {
    fn code(&self) -> Code {
        match self {
            AgentError::Refused { code, .. } => *code,
            AgentError::Deadline { .. } => Code::DEADLINE_EXCEEDED,
            AgentError::Gone(_) | AgentError::Broken { .. } => Code::UNAVAILABLE,
            AgentError::Nonsense { .. } => Code::INTERNAL,
        }
    }
}

/// Becomes the reason once the machine is gone.
pub(crate) type Ending = watch::Receiver<Option<Arc<str>>>;

/// A client of the agent; clones share one connection.
#[derive(Clone)]
pub(crate) struct Agent {
    service: AgentServiceClient,
    ports: PortsClient,
    ending: Ending,
}

impl Agent {
    /// Connects and waits until the agent answers. QEMU holds what is sent before the guest listens.
    pub(crate) async fn connect(
        channel: &AgentChannel,
        ending: Ending,
        within: Duration,
    ) -> Result<Agent, AgentError> {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let attempt = Agent::attempt(channel, ending.clone(), left);
            let failure = match timeout(left, attempt).await {
                Ok(Ok(agent)) => return Ok(agent),
                Ok(Err(gone @ AgentError::Gone(_))) => return Err(gone),
                Ok(Err(failure)) => failure,
                Err(_) => AgentError::Deadline { method: "Check", seconds: within.as_secs() },
            };
            if Instant::now() + RETRY >= deadline {
                return Err(failure);
            }
            sleep(RETRY).await;
        }
    }

    async fn attempt(
        channel: &AgentChannel,
        ending: Ending,
        within: Duration,
    ) -> Result<Agent, AgentError> {
        let address = match channel {
            AgentChannel::Unix(path) => format!("unix://{}", path.display()),
            AgentChannel::Vsock { cid, port } => format!("vsock://{cid}:{port}"),
        };
        let socket = Socket::connect(&address)
            .await
            .map_err(|e| AgentError::Broken { method: "connect", cause: e.to_string() })?;
        let client = ttrpc::r#async::Client::new(socket);
        let health = HealthClient::new(client.clone());
        let ports = PortsClient::new(client.clone());
        let agent = Agent { service: AgentServiceClient::new(client), ports, ending };
        agent
            .call("Check", Some(within), async move {
                health
                    .check(ttrpc::context::with_duration(within), &health::CheckRequest::new())
                    .await
            })
            .await?;
        Ok(agent)
    }

    /// Awaits one call. It runs as a task of its own: a call that is dropped while its request is
    /// being written would take the whole connection with it.
    async fn call<T: Send + 'static>(
        &self,
        method: &'static str,
        limit: Option<Duration>,
        call: impl Future<Output = ttrpc::Result<T>> + Send + 'static,
    ) -> Result<T, AgentError> {
        let mut ending = self.ending.clone();
        let call = tokio::spawn(call);
        let gone = async move {
            match ending.wait_for(Option::is_some).await {
                Ok(reason) => reason.clone().unwrap_or_else(|| "".into()),
                Err(_) => "the shim is stopping".into(),
            }
        };
        let expired = async {
            match limit {
                // The deadline travels with the request; this one is for a dead connection.
                Some(limit) => sleep(limit + Duration::from_secs(1)).await,
                None => std::future::pending().await,
            }
        };
        let seconds = limit.unwrap_or_default().as_secs();
        let answer = tokio::select! {
            biased;
            answer = call => answer,
            reason = gone => return Err(AgentError::Gone(reason)),
            () = expired => return Err(AgentError::Deadline { method, seconds }),
        };
        match answer {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.explain(method, seconds, error).await),
            Err(failed) => Err(AgentError::Broken { method, cause: failed.to_string() }),
        }
    }

    async fn explain(&self, method: &'static str, seconds: u64, error: ttrpc::Error) -> AgentError {
        match error {
            ttrpc::Error::RpcStatus(status) if status.code() == Code::DEADLINE_EXCEEDED => {
                AgentError::Deadline { method, seconds }
            }
            ttrpc::Error::RpcStatus(status) => AgentError::Refused {
                code: status.code(),
                message: printable(status.message(), 1200),
            },
            ttrpc::Error::Others(text) if text.contains("deadline elapsed") => {
                AgentError::Deadline { method, seconds }
            }
            other => {
                // A broken connection is usually the first sign of a dead machine: let it be told.
                let mut ending = self.ending.clone();
                let told = timeout(Duration::from_secs(2), ending.wait_for(Option::is_some)).await;
                match told {
                    Ok(Ok(reason)) => AgentError::Gone(reason.clone().unwrap_or_else(|| "".into())),
                    _ => AgentError::Broken { method, cause: printable(&other.to_string(), 200) },
                }
            }
        }
    }

    /// Waits for a process to end and returns its exit status, 0 to 255.
    pub(crate) async fn wait_process(&self, process: &ProcessId) -> Result<u32, AgentError> {
        let request = api::WaitProcessRequest {
            container_id: process.container.clone(),
            exec_id: process.agent_exec_id().to_owned(),
            ..Default::default()
        };
        let answer = self.wait_process_call(request).await?;
        match u32::try_from(answer.status) {
            Ok(status @ 0..=255) => Ok(status),
            _ => Err(AgentError::Nonsense {
                method: "WaitProcess",
                problem: format!("gave the exit status {}", answer.status),
            }),
        }
    }

    /// Reads from a process's output; nothing at its end.
    pub(crate) async fn read_output(
        &self,
        process: &ProcessId,
        output: Output,
    ) -> Result<Option<Vec<u8>>, AgentError> {
        let request = api::ReadStreamRequest {
            container_id: process.container.clone(),
            exec_id: process.agent_exec_id().to_owned(),
            len: u32::try_from(STREAM_CHUNK).unwrap_or(u32::MAX),
            ..Default::default()
        };
        let answer = match output {
            Output::Stdout => self.read_stdout_call(request).await,
            Output::Stderr => self.read_stderr_call(request).await,
        };
        match answer {
            Ok(answer) if answer.data.len() > STREAM_CHUNK => Err(AgentError::Nonsense {
                method: "ReadStdout",
                problem: format!("gave {} bytes, more than asked for", answer.data.len()),
            }),
            Ok(answer) => Ok(Some(answer.data)),
            Err(AgentError::Refused { code: Code::OUT_OF_RANGE | Code::NOT_FOUND, .. }) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// Writes all of `data` to a process's standard input.
    pub(crate) async fn write_stdin(
        &self,
        process: &ProcessId,
        mut data: Vec<u8>,
    ) -> Result<(), AgentError> {
        while !data.is_empty() {
            let length = data.len();
            let request = api::WriteStreamRequest {
                container_id: process.container.clone(),
                exec_id: process.agent_exec_id().to_owned(),
                data: data.clone(),
                ..Default::default()
            };
            let written = self.write_stdin_call(request).await?.len as usize;
            if written == 0 || written > length {
                return Err(AgentError::Nonsense {
                    method: "WriteStdin",
                    problem: format!("says that it wrote {written} of {length} bytes"),
                });
            }
            data.drain(..written);
        }
        Ok(())
    }

    /// The guest's part of the start report.
    pub(crate) async fn start_report(&self) -> Result<Vec<start_report::Measured>, AgentError> {
        let request = api::GetDiagnosticDataRequest {
            log_type: start_report::LOG_TYPE.to_owned(),
            ..Default::default()
        };
        Ok(start_report::parse(&self.get_diagnostic_data(request).await?.data))
    }

    /// How far the pulls have come that run in the guest.
    pub(crate) async fn pull_progress(
        &self,
    ) -> Result<Vec<pull_progress::PullProgress>, AgentError> {
        let request = api::GetDiagnosticDataRequest {
            log_type: pull_progress::LOG_TYPE.to_owned(),
            ..Default::default()
        };
        Ok(pull_progress::parse(&self.get_diagnostic_data(request).await?.data))
    }

    /// What a container that has ended has written to the file at `path` in it; cut, whatever the guest says.
    pub(crate) async fn last_words(
        &self,
        container: &str,
        path: &str,
    ) -> Result<String, AgentError> {
        let request = api::GetDiagnosticDataRequest {
            log_type: termination::LOG_TYPE.to_owned(),
            container_id: container.to_owned(),
            path: path.to_owned(),
            ..Default::default()
        };
        let answer = self.get_diagnostic_data(request).await?;
        Ok(termination::last_words(answer.data.as_bytes()))
    }

    /// The next lines that a development image has recorded; nothing when there are no more.
    pub(crate) async fn recorded_requests(&self) -> Result<String, AgentError> {
        let request = api::GetDiagnosticDataRequest {
            log_type: RECORDED_REQUESTS.to_owned(),
            ..Default::default()
        };
        Ok(self.get_diagnostic_data(request).await?.data)
    }
}

/// One of a process's output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    Stdout,
    Stderr,
}

/// A method a line: name, the client's method, request, answer, name on the wire, deadline.
macro_rules! calls {
    ($service:ident: $($name:ident = $method:ident($request:ty) -> $answer:ty, $wire:literal, $limit:expr;)*) => {
        impl Agent {
            $(pub(crate) async fn $name(&self, request: $request) -> Result<$answer, AgentError> {
                let service = self.$service.clone();
                let limit: Option<Duration> = $limit;
                self.call($wire, limit, async move {
                    let context = limit.map_or_else(Context::default, ttrpc::context::with_duration);
                    service.$method(context, &request).await
                })
                .await
            })*
        }
    };
}

calls! {
    service:
    set_policy = set_policy(api::SetPolicyRequest) -> Empty, "SetPolicy", Some(MODERATE);
    create_sandbox = create_sandbox(api::CreateSandboxRequest) -> Empty, "CreateSandbox", Some(MODERATE);
    destroy_sandbox = destroy_sandbox(api::DestroySandboxRequest) -> Empty, "DestroySandbox", Some(WRITE_BACK);
    update_interface = update_interface(api::UpdateInterfaceRequest) -> Interface, "UpdateInterface", Some(MODERATE);
    update_routes = update_routes(api::UpdateRoutesRequest) -> api::Routes, "UpdateRoutes", Some(MODERATE);
    add_neighbours = add_arp_neighbors(api::AddARPNeighborsRequest) -> Empty, "AddARPNeighbors", Some(MODERATE);
    copy_file = copy_file(api::CopyFileRequest) -> Empty, "CopyFile", Some(MODERATE);
    create_container = create_container(api::CreateContainerRequest) -> Empty, "CreateContainer", Some(PULL);
    start_container = start_container(api::StartContainerRequest) -> Empty, "StartContainer", Some(MODERATE);
    remove_container = remove_container(api::RemoveContainerRequest) -> Empty, "RemoveContainer", Some(MODERATE);
    exec_process = exec_process(api::ExecProcessRequest) -> Empty, "ExecProcess", Some(MODERATE);
    signal_process = signal_process(api::SignalProcessRequest) -> Empty, "SignalProcess", Some(QUICK);
    resize_terminal = tty_win_resize(api::TtyWinResizeRequest) -> Empty, "TtyWinResize", Some(QUICK);
    close_stdin = close_stdin(api::CloseStdinRequest) -> Empty, "CloseStdin", Some(QUICK);
    pause_container = pause_container(api::PauseContainerRequest) -> Empty, "PauseContainer", Some(QUICK);
    resume_container = resume_container(api::ResumeContainerRequest) -> Empty, "ResumeContainer", Some(QUICK);
    update_container = update_container(api::UpdateContainerRequest) -> Empty, "UpdateContainer", Some(QUICK);
    stats_container = stats_container(api::StatsContainerRequest) -> api::StatsContainerResponse, "StatsContainer", Some(QUICK);
    get_diagnostic_data = get_diagnostic_data(api::GetDiagnosticDataRequest) -> api::GetDiagnosticDataResponse, "GetDiagnosticData", Some(QUICK);
    get_oom_event = get_oom_event(api::GetOOMEventRequest) -> api::OOMEvent, "GetOOMEvent", None;
    wait_process_call = wait_process(api::WaitProcessRequest) -> api::WaitProcessResponse, "WaitProcess", None;
    read_stdout_call = read_stdout(api::ReadStreamRequest) -> api::ReadStreamResponse, "ReadStdout", None;
    read_stderr_call = read_stderr(api::ReadStreamRequest) -> api::ReadStreamResponse, "ReadStderr", None;
    write_stdin_call = write_stdin(api::WriteStreamRequest) -> api::WriteStreamResponse, "WriteStdin", None;
}

calls! {
    ports:
    forward_port = forward(ports::PortForwardRequest) -> ports::PortForwardResponse, "PortForward", Some(QUICK);
    read_port = read(ports::PortReadRequest) -> ports::PortReadResponse, "PortRead", None;
    write_port = write(ports::PortWriteRequest) -> Empty, "PortWrite", None;
    close_port = close(ports::PortCloseRequest) -> Empty, "PortClose", Some(QUICK);
}
