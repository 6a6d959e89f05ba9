//! The agent channel's end on the host: a context id from the host's vhost-vsock device, or a socket.
//!
//! The tests run it only on a host that has the device: the claim of an id and a guest that boots with
//! the vsock device were seen on an emulated KVM host; a connection through it has not been seen yet.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use super::pod_machine::{AgentTransport, agent_socket};
use super::process::host;
use crate::{LaunchError, sys};

const DEVICE: &str = "/dev/vhost-vsock";
/// 0 to 2 and `u32::MAX` have meanings of their own (vsock(7)).
const FIRST_CID: u32 = 3;
const ATTEMPTS: usize = 64;

/// Takes vhost-vsock where the host has it, else virtio-serial.
pub(super) fn transport(run_dir: &Path) -> Result<AgentTransport, LaunchError> {
    let device = match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(device) => device,
        Err(error) if absent(&error) => {
            let socket = bind(&agent_socket(run_dir))
                .map_err(|error| host("make the socket of the agent channel", error))?;
            return Ok(AgentTransport::VirtioSerial { socket });
        }
        Err(error) => return Err(host("open /dev/vhost-vsock", error)),
    };
    let cid = claim_cid(&device).map_err(|error| host("claim a vsock context id", error))?;
    Ok(AgentTransport::Vsock { cid, vhost: device.into() })
}

/// A socket with that name, which only its owner may connect to once somebody listens.
fn bind(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // A name that is bound gets the socket's own permissions: there is no moment in which it has others.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// No such file, or a file whose module is not there.
fn absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO))
}

/// Claims a random id that no other guest has; the claim lasts as long as `device` is open.
fn claim_cid(device: &File) -> io::Result<u32> {
    for _ in 0..ATTEMPTS {
        let mut random = [0; 4];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let cid = u32::from_ne_bytes(random);
        if !(FIRST_CID..u32::MAX).contains(&cid) {
            continue;
        }
        match sys::set_guest_cid(device, cid) {
            Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) => {}
            claimed => return claimed.map(|()| cid),
        }
    }
    Err(io::Error::other("no free context id was found"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_agent_s_socket_is_its_owner_s_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let _socket = bind(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(bind(&path).unwrap_err().raw_os_error(), Some(libc::EADDRINUSE));
    }
}
