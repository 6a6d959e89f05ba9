//! Virtio-serial ports of the VM: found by their names, opened as byte streams.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::raw;

/// Where the kernel lists the ports.
const CLASS: &str = "/sys/class/virtio-ports";

/// The device node of the port of that name, if the kernel shows one by now.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    find_in(Path::new(CLASS), name)
}

fn find_in(class: &Path, name: &str) -> Option<PathBuf> {
    fs::read_dir(class).ok()?.flatten().find_map(|entry| {
        let found = fs::read_to_string(entry.path().join("name")).ok()?;
        let device = Path::new("/dev").join(entry.file_name());
        (found.trim() == name && device.exists()).then_some(device)
    })
}

/// A port that is open here. The host may have closed its end.
#[derive(Debug)]
pub(crate) struct Port(OwnedFd);

impl Port {
    pub(crate) fn open(device: &Path) -> io::Result<Port> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        Ok(Port(rustix::fs::open(device, flags, Mode::empty())?))
    }

    /// A port whose host end is closed reports a hang-up.
    pub(crate) fn host_is_connected(&self) -> io::Result<bool> {
        let mut poll = [PollFd::new(&self.0, PollFlags::OUT)];
        rustix::event::poll(&mut poll, Some(&Timespec::default()))?;
        Ok(!poll[0].revents().contains(PollFlags::HUP))
    }

    /// The port as a stream, which holds `held` for as long as it is open. Needs the runtime.
    pub(crate) fn into_stream<Held>(self, held: Held) -> io::Result<PortStream<Held>> {
        Ok(PortStream { fd: raw::register(self.0)?, _held: held })
    }
}

/// One connection over a port.
#[derive(Debug)]
pub(crate) struct PortStream<Held> {
    fd: AsyncFd<OwnedFd>,
    _held: Held,
}

impl<Held: Unpin> AsyncRead for PortStream<Held> {
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

impl<Held: Unpin> AsyncWrite for PortStream<Held> {
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
        for (device, name) in [("vport0p1", "other"), ("null", "org.nacre.test.0")] {
            fs::create_dir_all(class.join(device)).unwrap();
            fs::write(class.join(device).join("name"), format!("{name}\n")).unwrap();
        }
        let found = find_in(&class, "org.nacre.test.0");
        fs::remove_dir_all(&class).unwrap();
        assert_eq!(found, Some(PathBuf::from("/dev/null")));
        assert_eq!(find_in(&class, "org.nacre.test.0"), None);
    }
}
