//! Requests about containers.

use std::sync::Arc;

use nacre_protocol::agent::{
    CreateContainerRequest, RemoveContainerRequest, StartContainerRequest, StatsContainerRequest,
    StatsContainerResponse, UpdateContainerRequest,
};
use tokio::sync::oneshot;

use crate::cgroup::Limits;
use crate::container;
use crate::error::RpcError;
use crate::network;
use crate::oci::{missing, refuse_if};
use crate::sandbox::Sandbox;

pub(super) async fn create(
    sandbox: &Arc<Sandbox>,
    request: &CreateContainerRequest,
    given_up: oneshot::Receiver<()>,
) -> Result<(), RpcError> {
    container::create(sandbox, request, given_up).await
}

pub(super) async fn start(
    sandbox: &Sandbox,
    request: &StartContainerRequest,
) -> Result<(), RpcError> {
    let begun = std::time::Instant::now();
    sandbox.container(&request.container_id)?.start().await?;
    sandbox.report.record(&request.container_id, "start", begun.elapsed());
    Ok(())
}

pub(super) async fn remove(
    sandbox: &Sandbox,
    request: &RemoveContainerRequest,
) -> Result<(), RpcError> {
    let container = sandbox.container(&request.container_id)?;
    container.remove().await?;
    sandbox.forget(&request.container_id);
    Ok(())
}

pub(super) fn update(sandbox: &Sandbox, request: &UpdateContainerRequest) -> Result<(), RpcError> {
    let resources = request.resources.as_ref().ok_or_else(|| missing("resources"))?;
    let limits = Limits::parse("resources", resources)?;
    let container = sandbox.container(&request.container_id)?;
    if !resources.Devices.is_empty() {
        let same = container.allows_devices_as("resources.Devices", &resources.Devices)?;
        let why = "device rules are fixed when a container is created";
        refuse_if(!same, "resources.Devices", why)?;
    }
    container.update(&limits)
}

pub(super) fn stats(
    sandbox: &Sandbox,
    request: &StatsContainerRequest,
) -> Result<StatsContainerResponse, RpcError> {
    let stats = sandbox.container(&request.container_id)?.stats()?;
    Ok(StatsContainerResponse {
        cgroup_stats: Some(stats).into(),
        network_stats: network::statistics(),
        ..Default::default()
    })
}
