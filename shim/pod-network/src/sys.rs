//! The two system calls that have no safe wrapper.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Moves the calling thread into a new, empty network namespace.
pub(crate) fn unshare_network() -> io::Result<()> {
    // SAFETY: only NEWNET is asked for: no memory, descriptor table or signal state is shared or
    // split by it, and the thread is a fresh one that ends right after.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
        .map_err(io::Error::from)
}

/// Turns a descriptor of `/dev/net/tun` into a tap named after `pattern` ("nacre%d") and returns the
/// name that the kernel chose. Frames carry a `virtio_net_hdr`.
pub(crate) fn make_tap(tun: impl AsFd, pattern: &str) -> io::Result<String> {
    // SAFETY: an ifreq is plain data; all zeroes is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if pattern.len() >= request.ifr_name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(pattern.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the descriptor is open for the call; TUNSETIFF reads and writes one ifreq, which lives
    // across the call.
    let answer = unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    let name: Vec<u8> =
        request.ifr_name.iter().map(|c| c.cast_unsigned()).take_while(|c| *c != 0).collect();
    String::from_utf8(name).map_err(|_| io::ErrorKind::InvalidData.into())
}
