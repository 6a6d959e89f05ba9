//! Requests about containers.

use std::sync::Arc;
use std::time::Instant;

use nacre_protocol::agent::{
    CreateContainerRequest, PauseContainerRequest, RemoveContainerRequest, ResumeContainerRequest,
    StartContainerRequest, StatsContainerRequest, StatsContainerResponse, UpdateContainerRequest,
};
use nacre_protocol::start_report::Phase;
use protobuf::well_known_types::empty::Empty;
use tokio::sync::oneshot;

use super::Allowed;
use crate::cgroup::Limits;
use crate::container;
use crate::error::RpcError;
use crate::network;
use crate::oci::{missing, refuse_if};
use crate::sandbox::Sandbox;

/// Makes a container, up to where its program waits to be run.
pub(crate) async fn create(
    sandbox: &Arc<Sandbox>,
    request: &Allowed<CreateContainerRequest>,
    given_up: oneshot::Receiver<()>,
) -> Result<Empty, RpcError> {
    container::create(sandbox, request.get(), given_up).await?;
    Ok(Empty::new())
}

/// Runs a container's program.
pub async fn start(
    sandbox: &Sandbox,
    request: &Allowed<StartContainerRequest>,
) -> Result<Empty, RpcError> {
    let begun = Instant::now();
    let id = &request.get().container_id;
    sandbox.container(id)?.start().await?;
    sandbox.report.record(id, Phase::Start, begun.elapsed());
    Ok(Empty::new())
}

/// Takes a container down.
pub(crate) async fn remove(
    sandbox: &Arc<Sandbox>,
    request: &Allowed<RemoveContainerRequest>,
) -> Result<Empty, RpcError> {
    let id = &request.get().container_id;
    sandbox.container(id)?.remove().await?;
    sandbox.forget(id);
    Ok(Empty::new())
}

/// Changes a container's limits.
pub(crate) fn update(
    sandbox: &Sandbox,
    request: &Allowed<UpdateContainerRequest>,
) -> Result<Empty, RpcError> {
    let request = request.get();
    let resources = request.resources.as_ref().ok_or_else(|| missing("resources"))?;
    let limits = Limits::parse("resources", resources)?;
    let container = sandbox.container(&request.container_id)?;
    if !resources.Devices.is_empty() {
        let same = container.allows_devices_as("resources.Devices", &resources.Devices)?;
        let why = "device rules are fixed when a container is created";
        refuse_if(!same, "resources.Devices", why)?;
    }
    container.update(&limits)?;
    Ok(Empty::new())
}

/// What a container uses.
pub(crate) fn stats(
    sandbox: &Sandbox,
    request: &Allowed<StatsContainerRequest>,
) -> Result<StatsContainerResponse, RpcError> {
    let container = sandbox.container(&request.get().container_id)?;
    Ok(StatsContainerResponse {
        cgroup_stats: Some(container.stats()?).into(),
        network_stats: network::statistics(),
        writable_layer: container.writable_layer().into(),
        ..Default::default()
    })
}

/// Freezes a container's processes.
pub(crate) async fn pause(
    sandbox: &Sandbox,
    request: &Allowed<PauseContainerRequest>,
) -> Result<Empty, RpcError> {
    sandbox.container(&request.get().container_id)?.pause().await?;
    Ok(Empty::new())
}

/// Lets frozen processes go on.
pub(crate) async fn resume(
    sandbox: &Sandbox,
    request: &Allowed<ResumeContainerRequest>,
) -> Result<Empty, RpcError> {
    sandbox.container(&request.get().container_id)?.resume().await?;
    Ok(Empty::new())
}
