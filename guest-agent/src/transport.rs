//! The byte stream on which the host speaks the agent API.
//!
//! It is vsock where the VM has such a device, otherwise a virtio-serial port. A serial port is one
//! stream for one peer at a time: when the host closes it, the next connection is waited for, and
//! containers go on running.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use nacre_protocol::channel::{SERIAL_PORT_NAME, VSOCK_PORT};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use ttrpc::asynchronous::transport::Listener;

use crate::devices::{Kind, Machine};
use crate::port::{self, Port, PortStream};
use crate::seal::Sealed;

/// How long the kernel may take to show the serial port's device node.
const PORT_DEADLINE: Duration = Duration::from_secs(20);
/// How often the port is looked for, and asked whether the host has connected.
const PORT_POLL: Duration = Duration::from_millis(5);

/// Why the agent cannot be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransportError {
    /// The VM has neither device.
    #[error(
        "the VM has no vsock device and no virtio-serial port named {SERIAL_PORT_NAME}: \
         the hypervisor must offer one of them"
    )]
    NoDevice,
    /// The channel could not be opened.
    #[error("failed to open the agent's channel: {0}")]
    Open(#[from] io::Error),
}

/// Finds the channel and listens on it: the moment from which the host is heard.
pub(crate) async fn listen(machine: &Machine, _: &Sealed) -> Result<Listener, TransportError> {
    if machine.has(Kind::Vsock) {
        return Ok(Listener::bind(format!("vsock://-1:{VSOCK_PORT}"))?);
    }
    let port = wait_for_port().await.ok_or(TransportError::NoDevice)?;
    let free = Arc::new(Semaphore::new(1));
    Ok(Listener::new(stream::unfold((port, free), |(port, free)| async {
        let connection = connect(&port, &free).await;
        Some((connection, (port, free)))
    })))
}

async fn wait_for_port() -> Option<PathBuf> {
    let search = async {
        loop {
            if let Some(port) = port::find(SERIAL_PORT_NAME) {
                return port;
            }
            tokio::time::sleep(PORT_POLL).await;
        }
    };
    tokio::time::timeout(PORT_DEADLINE, search).await.ok()
}

/// Waits until the last connection is gone and the host has opened its end.
async fn connect(
    port: &Path,
    free: &Arc<Semaphore>,
) -> io::Result<PortStream<OwnedSemaphorePermit>> {
    let permit = Arc::clone(free).acquire_owned().await.map_err(io::Error::other)?;
    let port = Port::open(port)?;
    while !port.host_is_connected()? {
        tokio::time::sleep(PORT_POLL).await;
    }
    port.into_stream(permit)
}
