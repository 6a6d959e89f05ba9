//! Requests about connections to the pod's localhost.

use nacre_protocol::channel::STREAM_CHUNK;
use nacre_protocol::ports::{
    PortCloseRequest, PortForwardRequest, PortForwardResponse, PortReadRequest, PortReadResponse,
    PortWriteRequest,
};
use protobuf::well_known_types::empty::Empty;

use super::Allowed;
use crate::error::RpcError;
use crate::oci::refuse_if;
use crate::ports::Ports;

pub(crate) async fn forward(
    ports: &Ports,
    request: &Allowed<PortForwardRequest>,
) -> Result<PortForwardResponse, RpcError> {
    let connection = ports.connect(port(request.get().port)?).await?;
    Ok(PortForwardResponse { connection, ..Default::default() })
}

pub(crate) async fn read(
    ports: &Ports,
    request: &Allowed<PortReadRequest>,
) -> Result<PortReadResponse, RpcError> {
    let request = request.get();
    let most = usize::try_from(request.len).unwrap_or(usize::MAX);
    refuse_if(most == 0, "len", "must be at least 1")?;
    let connection = ports.connection(port(request.port)?, request.connection)?;
    let data = connection.read(most).await?;
    Ok(PortReadResponse { data, ..Default::default() })
}

pub(crate) async fn write(
    ports: &Ports,
    request: &Allowed<PortWriteRequest>,
) -> Result<Empty, RpcError> {
    let request = request.get();
    let why = format!("must be at most {STREAM_CHUNK} bytes");
    refuse_if(request.data.len() > STREAM_CHUNK, "data", &why)?;
    let connection = ports.connection(port(request.port)?, request.connection)?;
    connection.write(&request.data).await?;
    Ok(Empty::new())
}

pub(crate) async fn close(
    ports: &Ports,
    request: &Allowed<PortCloseRequest>,
) -> Result<Empty, RpcError> {
    let request = request.get();
    let port = port(request.port)?;
    if request.write_only {
        ports.connection(port, request.connection)?.close_write().await;
    } else {
        ports.close(port, request.connection)?;
    }
    Ok(Empty::new())
}

fn port(number: u32) -> Result<u16, RpcError> {
    let port = u16::try_from(number).ok().filter(|port| *port != 0);
    port.ok_or_else(|| RpcError::invalid("port", "must be between 1 and 65535"))
}
