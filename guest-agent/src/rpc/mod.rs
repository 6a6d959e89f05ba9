//! The agent API as the host calls it. Each handler is a line here and its theme's module does the work.

mod containers;
mod diagnostics;
mod guest;
mod processes;

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use nacre_protocol::agent::*;
use nacre_protocol::agent_ttrpc::AgentService;
use nacre_protocol::csi::VolumeStatsResponse;
use nacre_protocol::health::{
    CheckRequest, HealthCheckResponse, VersionCheckResponse, health_check_response::ServingStatus,
};
use nacre_protocol::health_ttrpc::Health;
use nacre_protocol::types::Interface;
use protobuf::well_known_types::empty::Empty;
use tokio::sync::oneshot;
use ttrpc::r#async::TtrpcContext;

use crate::error::RpcError;
use crate::network::Network;
use crate::sandbox::Sandbox;

/// Version of the agent API's health service.
const API_VERSION: &str = "0.0.1";

/// Driver of the pod's network devices, loaded with the first of them.
const NETWORK_DRIVER: &str = "virtio_net";

/// Serves every request.
#[derive(Clone)]
pub(crate) struct Agent {
    /// The pod.
    pub(crate) sandbox: Arc<Sandbox>,
    /// The VM's network.
    pub(crate) network: Network,
}

type Answer<T> = ttrpc::Result<T>;

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

fn empty(result: Result<(), RpcError>) -> Answer<Empty> {
    result?;
    Ok(Empty::new())
}

fn unimplemented<T>(method: &'static str) -> Answer<T> {
    Err(RpcError::Unimplemented(method).into())
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
        let sandbox = Arc::clone(&self.sandbox);
        until_given_up(
            |given_up| async move { containers::create(&sandbox, &request, given_up).await },
        )
        .await
        .map(|()| Empty::new())
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: StartContainerRequest,
    ) -> Answer<Empty> {
        let sandbox = Arc::clone(&self.sandbox);
        to_the_end(async move { containers::start(&sandbox, &request).await })
            .await
            .map(|()| Empty::new())
    }

    async fn remove_container(
        &self,
        _: &TtrpcContext,
        request: RemoveContainerRequest,
    ) -> Answer<Empty> {
        let sandbox = Arc::clone(&self.sandbox);
        to_the_end(async move { containers::remove(&sandbox, &request).await })
            .await
            .map(|()| Empty::new())
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> Answer<Empty> {
        empty(containers::update(&self.sandbox, &request))
    }

    async fn stats_container(
        &self,
        _: &TtrpcContext,
        request: StatsContainerRequest,
    ) -> Answer<StatsContainerResponse> {
        Ok(containers::stats(&self.sandbox, &request)?)
    }

    async fn pause_container(
        &self,
        _: &TtrpcContext,
        request: PauseContainerRequest,
    ) -> Answer<Empty> {
        let container = self.sandbox.container(&request.container_id)?;
        empty(container.pause().await)
    }

    async fn resume_container(
        &self,
        _: &TtrpcContext,
        request: ResumeContainerRequest,
    ) -> Answer<Empty> {
        let container = self.sandbox.container(&request.container_id)?;
        empty(container.resume().await)
    }

    // Processes.

    async fn exec_process(&self, _: &TtrpcContext, request: ExecProcessRequest) -> Answer<Empty> {
        let sandbox = Arc::clone(&self.sandbox);
        to_the_end(async move { processes::exec(&sandbox, &request).await })
            .await
            .map(|()| Empty::new())
    }

    async fn signal_process(
        &self,
        _: &TtrpcContext,
        request: SignalProcessRequest,
    ) -> Answer<Empty> {
        empty(processes::signal(&self.sandbox, &request))
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: WaitProcessRequest,
    ) -> Answer<WaitProcessResponse> {
        Ok(processes::wait(&self.sandbox, &request).await?)
    }

    async fn write_stdin(
        &self,
        _: &TtrpcContext,
        request: WriteStreamRequest,
    ) -> Answer<WriteStreamResponse> {
        let sandbox = Arc::clone(&self.sandbox);
        Ok(processes::write_stdin(&sandbox, &request).await?)
    }

    async fn read_stdout(
        &self,
        _: &TtrpcContext,
        request: ReadStreamRequest,
    ) -> Answer<ReadStreamResponse> {
        Ok(processes::read_stdout(&self.sandbox, &request).await?)
    }

    async fn read_stderr(
        &self,
        _: &TtrpcContext,
        request: ReadStreamRequest,
    ) -> Answer<ReadStreamResponse> {
        Ok(processes::read_stderr(&self.sandbox, &request).await?)
    }

    async fn close_stdin(&self, _: &TtrpcContext, request: CloseStdinRequest) -> Answer<Empty> {
        empty(processes::close_stdin(&self.sandbox, &request))
    }

    async fn tty_win_resize(
        &self,
        _: &TtrpcContext,
        request: TtyWinResizeRequest,
    ) -> Answer<Empty> {
        empty(processes::resize_terminal(&self.sandbox, &request))
    }

    // The pod.

    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> Answer<Empty> {
        empty(self.sandbox.create(&request))
    }

    async fn destroy_sandbox(&self, _: &TtrpcContext, _: DestroySandboxRequest) -> Answer<Empty> {
        let sandbox = Arc::clone(&self.sandbox);
        to_the_end(async move { guest::destroy(&sandbox).await }).await.map(|()| Empty::new())
    }

    async fn copy_file(&self, _: &TtrpcContext, request: CopyFileRequest) -> Answer<Empty> {
        empty(self.sandbox.with_copies(|copies| copies.copy(&request)))
    }

    async fn update_ephemeral_mounts(
        &self,
        _: &TtrpcContext,
        _: UpdateEphemeralMountsRequest,
    ) -> Answer<Empty> {
        unimplemented("UpdateEphemeralMounts")
    }

    async fn get_oom_event(&self, _: &TtrpcContext, _: GetOOMEventRequest) -> Answer<OOMEvent> {
        let container_id = self.sandbox.oom.next().await;
        Ok(OOMEvent { container_id, ..Default::default() })
    }

    // The network.

    async fn update_interface(
        &self,
        _: &TtrpcContext,
        request: UpdateInterfaceRequest,
    ) -> Answer<Interface> {
        tracing::debug!("updating an interface");
        if !Network::has_device() {
            guest::load(&self.sandbox, NETWORK_DRIVER)?;
        }
        let network = self.network.clone();
        to_the_end(async move { network.update_interface(&request.interface).await }).await
    }

    async fn update_routes(
        &self,
        _: &TtrpcContext,
        request: UpdateRoutesRequest,
    ) -> Answer<Routes> {
        let network = self.network.clone();
        to_the_end(async move { network.update_routes(&request.routes.Routes).await }).await
    }

    async fn list_interfaces(
        &self,
        _: &TtrpcContext,
        _: ListInterfacesRequest,
    ) -> Answer<Interfaces> {
        Ok(self.network.list_interfaces().await?)
    }

    async fn list_routes(&self, _: &TtrpcContext, _: ListRoutesRequest) -> Answer<Routes> {
        Ok(self.network.list_routes().await?)
    }

    async fn add_arp_neighbors(
        &self,
        _: &TtrpcContext,
        request: AddARPNeighborsRequest,
    ) -> Answer<Empty> {
        let network = self.network.clone();
        to_the_end(async move { network.add_neighbours(&request.neighbors.ARPNeighbors).await })
            .await
            .map(|()| Empty::new())
    }

    async fn get_ip_tables(
        &self,
        _: &TtrpcContext,
        _: GetIPTablesRequest,
    ) -> Answer<GetIPTablesResponse> {
        unimplemented("GetIPTables")
    }

    async fn set_ip_tables(
        &self,
        _: &TtrpcContext,
        _: SetIPTablesRequest,
    ) -> Answer<SetIPTablesResponse> {
        unimplemented("SetIPTables")
    }

    // The guest.

    async fn get_guest_details(
        &self,
        _: &TtrpcContext,
        _: GuestDetailsRequest,
    ) -> Answer<GuestDetailsResponse> {
        Ok(guest::details())
    }

    async fn set_guest_date_time(
        &self,
        _: &TtrpcContext,
        request: SetGuestDateTimeRequest,
    ) -> Answer<Empty> {
        empty(guest::set_time(&request))
    }

    async fn reseed_random_dev(
        &self,
        _: &TtrpcContext,
        request: ReseedRandomDevRequest,
    ) -> Answer<Empty> {
        empty(guest::reseed(&request))
    }

    async fn online_cpu_mem(
        &self,
        _: &TtrpcContext,
        request: OnlineCPUMemRequest,
    ) -> Answer<Empty> {
        empty(guest::online(&request))
    }

    async fn get_diagnostic_data(
        &self,
        _: &TtrpcContext,
        request: GetDiagnosticDataRequest,
    ) -> Answer<GetDiagnosticDataResponse> {
        Ok(diagnostics::get(&self.sandbox, &request)?)
    }

    async fn get_metrics(&self, _: &TtrpcContext, _: GetMetricsRequest) -> Answer<Metrics> {
        Ok(diagnostics::metrics()?)
    }

    async fn remove_stale_virtiofs_share_mounts(
        &self,
        _: &TtrpcContext,
        _: RemoveStaleVirtiofsShareMountsRequest,
    ) -> Answer<Empty> {
        unimplemented("RemoveStaleVirtiofsShareMounts")
    }

    async fn mem_hotplug_by_probe(
        &self,
        _: &TtrpcContext,
        _: MemHotplugByProbeRequest,
    ) -> Answer<Empty> {
        unimplemented("MemHotplugByProbe")
    }

    async fn mem_agent_memcg_set(&self, _: &TtrpcContext, _: MemAgentMemcgConfig) -> Answer<Empty> {
        unimplemented("MemAgentMemcgSet")
    }

    async fn mem_agent_compact_set(
        &self,
        _: &TtrpcContext,
        _: MemAgentCompactConfig,
    ) -> Answer<Empty> {
        unimplemented("MemAgentCompactSet")
    }

    async fn add_swap(&self, _: &TtrpcContext, _: AddSwapRequest) -> Answer<Empty> {
        unimplemented("AddSwap")
    }

    async fn add_swap_path(&self, _: &TtrpcContext, _: AddSwapPathRequest) -> Answer<Empty> {
        unimplemented("AddSwapPath")
    }

    async fn get_volume_stats(
        &self,
        _: &TtrpcContext,
        _: VolumeStatsRequest,
    ) -> Answer<VolumeStatsResponse> {
        unimplemented("GetVolumeStats")
    }

    async fn resize_volume(&self, _: &TtrpcContext, _: ResizeVolumeRequest) -> Answer<Empty> {
        unimplemented("ResizeVolume")
    }

    async fn set_policy(&self, _: &TtrpcContext, _: SetPolicyRequest) -> Answer<Empty> {
        unimplemented("SetPolicy")
    }
}
