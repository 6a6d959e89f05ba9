//! The agent API as the host calls it. Each method is a line here: the policy judges the request, and a
//! handler in its theme's module does the work. Handlers take what the policy allowed and nothing else.

pub mod containers;
mod diagnostics;
mod guest;
mod network;
mod ports;
mod processes;

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use nacre_policy::{AgentRequest, Gate, PolicyAllowed};
use nacre_protocol::agent::*;
use nacre_protocol::agent_ttrpc::AgentService;
use nacre_protocol::csi::VolumeStatsResponse;
use nacre_protocol::health::{
    CheckRequest, HealthCheckResponse, VersionCheckResponse, health_check_response::ServingStatus,
};
use nacre_protocol::health_ttrpc::Health;
use nacre_protocol::ports::{
    PortCloseRequest, PortForwardRequest, PortForwardResponse, PortReadRequest, PortReadResponse,
    PortWriteRequest,
};
use nacre_protocol::types::Interface;
use nacre_trust::Verified;
use protobuf::well_known_types::empty::Empty;
use tokio::sync::oneshot;
use ttrpc::r#async::TtrpcContext;

use crate::error::RpcError;
use crate::network::Network;
use crate::ports::Ports;
use crate::sandbox::Sandbox;

/// Version of the agent API's health service.
const API_VERSION: &str = "0.0.1";

/// Serves every request.
#[derive(Clone)]
pub(crate) struct Agent {
    /// The pod.
    pub(crate) sandbox: Arc<Sandbox>,
    /// The VM's network.
    pub(crate) network: Network,
    /// Connections of the host to the pod's localhost.
    pub(crate) ports: Ports,
    /// The pod's policy.
    pub(crate) gate: Arc<Gate>,
}

/// A request that the pod's policy allowed.
pub type Allowed<R> = Verified<R, PolicyAllowed>;

type Answer<T> = ttrpc::Result<T>;

impl Agent {
    /// Asks the policy. Nothing about a request is done before.
    fn judge<R: AgentRequest>(&self, request: R) -> Result<Allowed<R>, RpcError> {
        self.sandbox.tell_exits(&self.gate);
        self.gate.judge(request).map_err(|denied| RpcError::denied(denied.denial()))
    }

    /// As every request, but output that may not be read is thrown away.
    async fn read(
        &self,
        request: ReadStreamRequest,
        which: processes::Which,
    ) -> Answer<ReadStreamResponse> {
        match self.gate.judge(request) {
            Ok(allowed) => {
                let result = processes::read(&self.sandbox, which, &allowed).await;
                Ok(allowed.witness().settle(result)?)
            }
            Err(denied) => {
                processes::discard(&self.sandbox, which, &denied);
                Err(RpcError::denied(denied.denial()).into())
            }
        }
    }
}

/// Judges a request, lets a handler carry it out, and tells the policy how that ended.
macro_rules! serve {
    // At once.
    ($agent:ident, $request:ident, $handler:expr) => {{
        let allowed = $agent.judge($request)?;
        let result = $handler(&allowed);
        Ok(allowed.witness().settle(result)?)
    }};
    // With waiting; given up with the request.
    (waiting $agent:ident, $request:ident, $handler:path $(, $argument:expr)*) => {{
        let allowed = $agent.judge($request)?;
        let result = $handler($($argument,)* &allowed).await;
        Ok(allowed.witness().settle(result)?)
    }};
    // To its end, also when the request is given up.
    (whole $agent:ident, $request:ident, $handler:path, $context:expr) => {{
        let allowed = $agent.judge($request)?;
        let context = $context.clone();
        to_the_end(async move {
            let result = $handler(&context, &allowed).await;
            allowed.witness().settle(result)
        })
        .await
    }};
}

/// Methods that this agent does not offer; the policy is asked all the same.
macro_rules! not_offered {
    ($agent:ident, $request:ident, $name:literal) => {{
        let allowed = $agent.judge($request)?;
        let result: Result<_, RpcError> = Err(RpcError::Unimplemented($name));
        Ok(allowed.witness().settle(result)?)
    }};
}

/// Lets `work` come to its end even when the request is given up: by a deadline of the host's or by the
/// end of the connection. What changes the pod must not stop half-way.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, RpcError>> + Send + 'static,
) -> Answer<T> {
    let task = tokio::spawn(work);
    let ended = task.await.map_err(|e| RpcError::internal("the request's task failed", e))?;
    Ok(ended?)
}

/// As [`to_the_end`], but `work` learns from the receiver that the request was given up.
async fn until_given_up<T: Send + 'static, F>(
    work: impl FnOnce(oneshot::Receiver<()>) -> F,
) -> Answer<T>
where
    F: Future<Output = Result<T, RpcError>> + Send + 'static,
{
    // Dropping this future drops the sender, which ends the receiver.
    let (_here, given_up) = oneshot::channel();
    to_the_end(work(given_up)).await
}

#[async_trait]
impl Health for Agent {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> Answer<HealthCheckResponse> {
        Ok(HealthCheckResponse { status: ServingStatus::SERVING.into(), ..Default::default() })
    }

    async fn version(&self, _: &TtrpcContext, _: CheckRequest) -> Answer<VersionCheckResponse> {
        Ok(VersionCheckResponse {
            grpc_version: API_VERSION.into(),
            agent_version: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        })
    }
}

#[async_trait]
impl AgentService for Agent {
    // Containers.

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> Answer<Empty> {
        let allowed = self.judge(request)?;
        let sandbox = Arc::clone(&self.sandbox);
        until_given_up(|given_up| async move {
            let result = containers::create(&sandbox, &allowed, given_up).await;
            allowed.witness().settle(result)
        })
        .await
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: StartContainerRequest,
    ) -> Answer<Empty> {
        serve!(whole self, request, containers::start, self.sandbox)
    }

    async fn remove_container(
        &self,
        _: &TtrpcContext,
        request: RemoveContainerRequest,
    ) -> Answer<Empty> {
        serve!(whole self, request, containers::remove, self.sandbox)
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> Answer<Empty> {
        serve!(self, request, |allowed| containers::update(&self.sandbox, allowed))
    }

    async fn stats_container(
        &self,
        _: &TtrpcContext,
        request: StatsContainerRequest,
    ) -> Answer<StatsContainerResponse> {
        serve!(self, request, |allowed| containers::stats(&self.sandbox, allowed))
    }

    async fn pause_container(
        &self,
        _: &TtrpcContext,
        request: PauseContainerRequest,
    ) -> Answer<Empty> {
        serve!(waiting self, request, containers::pause, &self.sandbox)
    }

    async fn resume_container(
        &self,
        _: &TtrpcContext,
        request: ResumeContainerRequest,
    ) -> Answer<Empty> {
        serve!(waiting self, request, containers::resume, &self.sandbox)
    }

    // Processes.

    async fn exec_process(&self, _: &TtrpcContext, request: ExecProcessRequest) -> Answer<Empty> {
        serve!(whole self, request, processes::exec, self.sandbox)
    }

    async fn signal_process(
        &self,
        _: &TtrpcContext,
        request: SignalProcessRequest,
    ) -> Answer<Empty> {
        serve!(self, request, |allowed| processes::signal(&self.sandbox, allowed))
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: WaitProcessRequest,
    ) -> Answer<WaitProcessResponse> {
        serve!(waiting self, request, processes::wait, &self.sandbox)
    }

    async fn write_stdin(
        &self,
        _: &TtrpcContext,
        request: WriteStreamRequest,
    ) -> Answer<WriteStreamResponse> {
        serve!(waiting self, request, processes::write_stdin, &self.sandbox)
    }

    async fn read_stdout(
        &self,
        _: &TtrpcContext,
        request: ReadStreamRequest,
    ) -> Answer<ReadStreamResponse> {
        self.read(request, |streams| &streams.stdout).await
    }

    async fn read_stderr(
        &self,
        _: &TtrpcContext,
        request: ReadStreamRequest,
    ) -> Answer<ReadStreamResponse> {
        self.read(request, |streams| &streams.stderr).await
    }

    async fn close_stdin(&self, _: &TtrpcContext, request: CloseStdinRequest) -> Answer<Empty> {
        serve!(self, request, |allowed| processes::close_stdin(&self.sandbox, allowed))
    }

    async fn tty_win_resize(
        &self,
        _: &TtrpcContext,
        request: TtyWinResizeRequest,
    ) -> Answer<Empty> {
        serve!(self, request, |allowed| processes::resize_terminal(&self.sandbox, allowed))
    }

    // The pod.

    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> Answer<Empty> {
        serve!(self, request, |allowed| guest::create(&self.sandbox, allowed))
    }

    async fn destroy_sandbox(
        &self,
        _: &TtrpcContext,
        request: DestroySandboxRequest,
    ) -> Answer<Empty> {
        serve!(whole self, request, guest::destroy, self.sandbox)
    }

    async fn copy_file(&self, _: &TtrpcContext, request: CopyFileRequest) -> Answer<Empty> {
        serve!(self, request, |allowed| guest::copy_file(&self.sandbox, allowed))
    }

    async fn update_ephemeral_mounts(
        &self,
        _: &TtrpcContext,
        request: UpdateEphemeralMountsRequest,
    ) -> Answer<Empty> {
        not_offered!(self, request, "UpdateEphemeralMounts")
    }

    async fn get_oom_event(
        &self,
        _: &TtrpcContext,
        request: GetOOMEventRequest,
    ) -> Answer<OOMEvent> {
        serve!(waiting self, request, guest::next_oom, &self.sandbox)
    }

    // The network.

    async fn update_interface(
        &self,
        _: &TtrpcContext,
        request: UpdateInterfaceRequest,
    ) -> Answer<Interface> {
        serve!(whole self, request, network::update_interface, &self.network)
    }

    async fn update_routes(
        &self,
        _: &TtrpcContext,
        request: UpdateRoutesRequest,
    ) -> Answer<Routes> {
        serve!(whole self, request, network::update_routes, self.network)
    }

    async fn list_interfaces(
        &self,
        _: &TtrpcContext,
        request: ListInterfacesRequest,
    ) -> Answer<Interfaces> {
        serve!(waiting self, request, network::list_interfaces, &self.network)
    }

    async fn list_routes(&self, _: &TtrpcContext, request: ListRoutesRequest) -> Answer<Routes> {
        serve!(waiting self, request, network::list_routes, &self.network)
    }

    async fn add_arp_neighbors(
        &self,
        _: &TtrpcContext,
        request: AddARPNeighborsRequest,
    ) -> Answer<Empty> {
        serve!(whole self, request, network::add_neighbours, self.network)
    }

    async fn get_ip_tables(
        &self,
        _: &TtrpcContext,
        request: GetIPTablesRequest,
    ) -> Answer<GetIPTablesResponse> {
        not_offered!(self, request, "GetIPTables")
    }

    async fn set_ip_tables(
        &self,
        _: &TtrpcContext,
        request: SetIPTablesRequest,
    ) -> Answer<SetIPTablesResponse> {
        not_offered!(self, request, "SetIPTables")
    }

    // The guest.

    async fn get_guest_details(
        &self,
        _: &TtrpcContext,
        request: GuestDetailsRequest,
    ) -> Answer<GuestDetailsResponse> {
        serve!(self, request, guest::details)
    }

    async fn set_guest_date_time(
        &self,
        _: &TtrpcContext,
        request: SetGuestDateTimeRequest,
    ) -> Answer<Empty> {
        serve!(self, request, guest::set_time)
    }

    async fn reseed_random_dev(
        &self,
        _: &TtrpcContext,
        request: ReseedRandomDevRequest,
    ) -> Answer<Empty> {
        serve!(self, request, guest::reseed)
    }

    async fn online_cpu_mem(
        &self,
        _: &TtrpcContext,
        request: OnlineCPUMemRequest,
    ) -> Answer<Empty> {
        serve!(self, request, guest::online)
    }

    async fn get_diagnostic_data(
        &self,
        _: &TtrpcContext,
        request: GetDiagnosticDataRequest,
    ) -> Answer<GetDiagnosticDataResponse> {
        serve!(self, request, |allowed| diagnostics::get(&self.sandbox, &self.gate, allowed))
    }

    async fn get_metrics(&self, _: &TtrpcContext, request: GetMetricsRequest) -> Answer<Metrics> {
        serve!(self, request, diagnostics::metrics)
    }

    async fn remove_stale_virtiofs_share_mounts(
        &self,
        _: &TtrpcContext,
        request: RemoveStaleVirtiofsShareMountsRequest,
    ) -> Answer<Empty> {
        not_offered!(self, request, "RemoveStaleVirtiofsShareMounts")
    }

    async fn mem_hotplug_by_probe(
        &self,
        _: &TtrpcContext,
        request: MemHotplugByProbeRequest,
    ) -> Answer<Empty> {
        not_offered!(self, request, "MemHotplugByProbe")
    }

    async fn mem_agent_memcg_set(
        &self,
        _: &TtrpcContext,
        request: MemAgentMemcgConfig,
    ) -> Answer<Empty> {
        not_offered!(self, request, "MemAgentMemcgSet")
    }

    async fn mem_agent_compact_set(
        &self,
        _: &TtrpcContext,
        request: MemAgentCompactConfig,
    ) -> Answer<Empty> {
        not_offered!(self, request, "MemAgentCompactSet")
    }

    async fn add_swap(&self, _: &TtrpcContext, request: AddSwapRequest) -> Answer<Empty> {
        not_offered!(self, request, "AddSwap")
    }

    async fn add_swap_path(&self, _: &TtrpcContext, request: AddSwapPathRequest) -> Answer<Empty> {
        not_offered!(self, request, "AddSwapPath")
    }

    async fn get_volume_stats(
        &self,
        _: &TtrpcContext,
        request: VolumeStatsRequest,
    ) -> Answer<VolumeStatsResponse> {
        not_offered!(self, request, "GetVolumeStats")
    }

    async fn resize_volume(&self, _: &TtrpcContext, request: ResizeVolumeRequest) -> Answer<Empty> {
        not_offered!(self, request, "ResizeVolume")
    }

    async fn set_policy(&self, _: &TtrpcContext, request: SetPolicyRequest) -> Answer<Empty> {
        Ok(guest::set_policy(&self.gate, &request)?)
    }
}

#[async_trait]
impl nacre_protocol::ports_ttrpc::Ports for Agent {
    async fn forward(
        &self,
        _: &TtrpcContext,
        request: PortForwardRequest,
    ) -> Answer<PortForwardResponse> {
        serve!(waiting self, request, ports::forward, &self.ports)
    }

    async fn read(&self, _: &TtrpcContext, request: PortReadRequest) -> Answer<PortReadResponse> {
        serve!(waiting self, request, ports::read, &self.ports)
    }

    async fn write(&self, _: &TtrpcContext, request: PortWriteRequest) -> Answer<Empty> {
        serve!(waiting self, request, ports::write, &self.ports)
    }

    async fn close(&self, _: &TtrpcContext, request: PortCloseRequest) -> Answer<Empty> {
        serve!(waiting self, request, ports::close, &self.ports)
    }
}
