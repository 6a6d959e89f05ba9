//! Requests about the VM's network.

use nacre_protocol::agent::{
    AddARPNeighborsRequest, Interfaces, ListInterfacesRequest, ListRoutesRequest, Routes,
    UpdateInterfaceRequest, UpdateRoutesRequest,
};
use nacre_protocol::types::Interface;
use protobuf::well_known_types::empty::Empty;

use super::Allowed;
use crate::error::RpcError;
use crate::network::Network;

pub(crate) async fn update_interface(
    network: &Network,
    request: &Allowed<UpdateInterfaceRequest>,
) -> Result<Interface, RpcError> {
    network.update_interface(&request.get().interface).await
}

pub(crate) async fn update_routes(
    network: &Network,
    request: &Allowed<UpdateRoutesRequest>,
) -> Result<Routes, RpcError> {
    network.update_routes(&request.get().routes.Routes).await
}

pub(crate) async fn list_interfaces(
    network: &Network,
    _: &Allowed<ListInterfacesRequest>,
) -> Result<Interfaces, RpcError> {
    network.list_interfaces().await
}

pub(crate) async fn list_routes(
    network: &Network,
    _: &Allowed<ListRoutesRequest>,
) -> Result<Routes, RpcError> {
    network.list_routes().await
}

pub(crate) async fn add_neighbours(
    network: &Network,
    request: &Allowed<AddARPNeighborsRequest>,
) -> Result<Empty, RpcError> {
    network.add_neighbours(&request.get().neighbors.ARPNeighbors).await?;
    Ok(Empty::new())
}
