//! A context id for a guest, from the host's vhost-vsock device.
//!
//! The tests run it only on a host that has the device: the claim of an id and a guest that boots with
//! the vsock device were seen on an emulated KVM host; a connection through it has not been seen yet.

use std::fs::{File, OpenOptions};
use std::io;

use super::pod_machine::AgentTransport;
use super::process::host;
use crate::{LaunchError, sys};

const DEVICE: &str = "/dev/vhost-vsock";
/// 0 to 2 and `u32::MAX` have meanings of their own (vsock(7)).
const FIRST_CID: u32 = 3;
const ATTEMPTS: usize = 64;

/// Takes vhost-vsock where the host has it, else virtio-serial.
pub(super) fn transport() -> Result<AgentTransport, LaunchError> {
    let device = match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(device) => device,
        Err(error) if absent(&error) => return Ok(AgentTransport::VirtioSerial),
        Err(error) => return Err(host("open /dev/vhost-vsock", error)),
    };
    let cid = claim_cid(&device).map_err(|error| host("claim a vsock context id", error))?;
    Ok(AgentTransport::Vsock { cid, vhost: device.into() })
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
