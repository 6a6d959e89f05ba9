//! The byte stream on which the host speaks the agent API.
//!
//! It is vsock where the VM has such a device, otherwise a virtio-serial port. A serial port is one
//! stream for one peer at a time: when the host closes it, the next connection is waited for, and
//! containers go on running.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::stream;
use nacre_protocol::channel::{SERIAL_PORT_NAME, VSOCK_PORT};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use ttrpc::asynchronous::transport::Listener;

use crate::modules::{ModuleError, Modules};
use crate::raw;

/// How long the kernel may take to show the serial port's device node.
const PORT_DEADLINE: Duration = Duration::from_secs(20);
/// How often the port is looked for, and asked whether the host has connected.
const PORT_POLL: Duration = Duration::from_millis(5);

/// PCI identifiers of a virtio vsock device: transitional and modern (virtio 1.2, 4.1.2 and 5.10).
const VSOCK_PCI_IDS: [&str; 2] = ["0x1012", "0x1053"];
const VIRTIO_PCI_VENDOR: &str = "0x1af4";

/// Why the agent cannot be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransportError {
    /// The VM has neither device.
    #[error(
        "the VM has no vsock device and no virtio-serial port named {SERIAL_PORT_NAME}: \
         the hypervisor must offer one of them"
    )]
    NoDevice,
    /// The vsock driver could not be loaded.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// The channel could not be opened.
    #[error("failed to open the agent's channel: {0}")]
    Open(#[from] io::Error),
}

/// Finds the channel and listens on it.
pub(crate) async fn listen(modules: &Modules) -> Result<Listener, TransportError> {
    if has_vsock_device() {
        modules.ensure("vmw_vsock_virtio_transport")?;
        return Ok(Listener::bind(format!("vsock://-1:{VSOCK_PORT}"))?);
    }
    let port = wait_for_port().await.ok_or(TransportError::NoDevice)?;
    let free = Arc::new(Semaphore::new(1));
    Ok(Listener::new(stream::unfold((port, free), |(port, free)| async {
        let connection = connect(&port, &free).await;
        Some((connection, (port, free)))
    })))
}

fn has_vsock_device() -> bool {
    let Ok(devices) = fs::read_dir("/sys/bus/pci/devices") else { return false };
    devices.flatten().any(|device| {
        let is = |file: &str, values: &[&str]| {
            let text = fs::read_to_string(device.path().join(file)).unwrap_or_default();
            values.contains(&text.trim())
        };
        is("vendor", &[VIRTIO_PCI_VENDOR]) && is("device", &VSOCK_PCI_IDS)
    })
}

async fn wait_for_port() -> Option<PathBuf> {
    let search = async {
        loop {
            if let Some(port) = find_port(Path::new("/sys/class/virtio-ports")) {
                return port;
            }
            tokio::time::sleep(PORT_POLL).await;
        }
    };
    tokio::time::timeout(PORT_DEADLINE, search).await.ok()
}

fn find_port(class: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(class).ok()?;
    entries.flatten().find_map(|entry| {
        let name = fs::read_to_string(entry.path().join("name")).ok()?;
        let device = Path::new("/dev").join(entry.file_name());
        (name.trim() == SERIAL_PORT_NAME && device.exists()).then_some(device)
    })
}

/// Waits until the last connection is gone and the host has opened its end.
async fn connect(port: &Path, free: &Arc<Semaphore>) -> io::Result<SerialStream> {
    let permit = Arc::clone(free).acquire_owned().await.map_err(io::Error::other)?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let fd = rustix::fs::open(port, flags, Mode::empty())?;
    while !host_is_connected(&fd)? {
        tokio::time::sleep(PORT_POLL).await;
    }
    Ok(SerialStream { fd: raw::register(fd)?, _permit: permit })
}

/// A port whose host end is closed reports a hang-up.
fn host_is_connected(fd: &OwnedFd) -> io::Result<bool> {
    let mut poll = [PollFd::new(fd, PollFlags::OUT)];
    rustix::event::poll(&mut poll, Some(&Timespec::default()))?;
    Ok(!poll[0].revents().contains(PollFlags::HUP))
}

/// One connection over a virtio-serial port.
#[derive(Debug)]
struct SerialStream {
    fd: AsyncFd<OwnedFd>,
    _permit: OwnedSemaphorePermit,
}

impl AsyncRead for SerialStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.fd.poll_read_ready(context))?;
            let free = buffer.initialize_unfilled();
            match ready.try_io(|fd| Ok(rustix::io::read(fd, free)?)) {
                Ok(result) => {
                    buffer.advance(result?);
                    return Poll::Ready(Ok(()));
                }
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for SerialStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.fd.poll_write_ready(context))?;
            match ready.try_io(|fd| Ok(rustix::io::write(fd, data)?)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_found_by_its_name() {
        let class = std::env::temp_dir().join(format!("nacre-ports-{}", std::process::id()));
        // `null` stands in for a device node that exists in /dev.
        for (device, name) in [("vport0p1", "other"), ("null", SERIAL_PORT_NAME)] {
            fs::create_dir_all(class.join(device)).unwrap();
            fs::write(class.join(device).join("name"), format!("{name}\n")).unwrap();
        }
        let found = find_port(&class);
        fs::remove_dir_all(&class).unwrap();
        assert_eq!(found, Some(PathBuf::from("/dev/null")));
        assert_eq!(find_port(&class), None);
    }
}
