//! Who is at the other end of a connection on the loopback interface: the kernel knows the control group
//! of the process that made the socket, and tells (`NETLINK_SOCK_DIAG`, `sock_diag(7)`). A container cannot
//! change it, nor make a socket in another one's group.

use std::io;
use std::net::SocketAddrV4;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

/// `linux/netlink.h`, `linux/sock_diag.h`.
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `linux/inet_diag.h`: a socket's control group, the inode of its directory.
const INET_DIAG_CGROUP_ID: u16 = 21;
const AF_INET: u8 = 2;
const IPPROTO_TCP: u8 = 6;
/// Any state.
const STATES: u32 = u32::MAX;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct inet_diag_req_v2`.
const REQUEST: usize = 56;
/// Both together.
const LENGTH: u32 = 72;
/// `struct inet_diag_msg`.
const ANSWER: usize = 72;
/// Longest answer, in bytes: one socket with its attributes.
const LONGEST: usize = 4096;

/// Kernel module that answers about TCP sockets.
pub(crate) const MODULE: &str = "tcp_diag";

/// Identifier of the control group in which the socket at `peer` was made, which is connected to `here`.
pub(super) fn cgroup_of(peer: SocketAddrV4, here: SocketAddrV4) -> io::Result<u64> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    // Without an address it goes to the kernel, which answers before this returns.
    rustix::net::send(&socket, &request(peer, here), SendFlags::empty())?;
    let mut answer = [0; LONGEST];
    let (length, _) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::DONTWAIT)?;
    parse(&answer[..length])
}

fn request(peer: SocketAddrV4, here: SocketAddrV4) -> [u8; HEADER + REQUEST] {
    let mut message = [0; HEADER + REQUEST];
    let mut put = |at: usize, bytes: &[u8]| message[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &LENGTH.to_ne_bytes());
    put(4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(6, &NLM_F_REQUEST.to_ne_bytes());
    put(16, &[AF_INET, IPPROTO_TCP, 0, 0]);
    put(20, &STATES.to_ne_bytes());
    put(24, &peer.port().to_be_bytes());
    put(26, &here.port().to_be_bytes());
    put(28, &peer.ip().octets());
    put(44, &here.ip().octets());
    // No interface (60), and no cookie (64): INET_DIAG_NOCOOKIE.
    put(64, &[0xff; 8]);
    message
}

fn parse(answer: &[u8]) -> io::Result<u64> {
    let odd = || io::Error::other("the kernel's answer about a socket is not understood");
    let u16_at = |at: usize| Some(u16::from_ne_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_ne_bytes(answer.get(at..at + 4)?.try_into().ok()?));
    let length = u32_at(0).and_then(|length| usize::try_from(length).ok()).ok_or_else(odd)?;
    match u16_at(4) {
        Some(SOCK_DIAG_BY_FAMILY) => {}
        Some(NLMSG_ERROR) => {
            let number = u32_at(HEADER).ok_or_else(odd)?.cast_signed().wrapping_neg();
            return Err(io::Error::from_raw_os_error(number));
        }
        _ => return Err(odd()),
    }
    let end = length.min(answer.len());
    let mut at = HEADER + ANSWER;
    while at + 4 <= end {
        let (size, kind) = (u16_at(at).ok_or_else(odd)?, u16_at(at + 2).ok_or_else(odd)?);
        let size = usize::from(size);
        if size < 4 || at + size > end {
            return Err(odd());
        }
        if kind == INET_DIAG_CGROUP_ID {
            let id = answer[at + 4..at + size].try_into().map_err(|_| odd())?;
            return Ok(u64::from_ne_bytes(id));
        }
        at += size.next_multiple_of(4);
    }
    Err(io::Error::other("the kernel does not tell the control group of a socket"))
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};

    use super::*;

    fn answer(attributes: &[u8]) -> Vec<u8> {
        let mut answer = vec![0; HEADER + ANSWER];
        answer.extend_from_slice(attributes);
        let length = u32::try_from(answer.len()).unwrap();
        answer[..4].copy_from_slice(&length.to_ne_bytes());
        answer[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        answer
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let size = u16::try_from(value.len() + 4).unwrap();
        let mut bytes = [size.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn the_group_is_found_among_the_attributes() {
        let id = 0x1234_5678_9abc_def0_u64;
        let mut attributes = attribute(8, &[1]);
        attributes.extend(attribute(INET_DIAG_CGROUP_ID, &id.to_ne_bytes()));
        assert_eq!(parse(&answer(&attributes)).unwrap(), id);
        for odd in [
            answer(&[]),
            answer(&attribute(8, &[1])),
            answer(&attribute(INET_DIAG_CGROUP_ID, &[1; 4])),
            answer(&[3, 0, 21, 0]),
            answer(&[200, 0, 21, 0]),
            answer(&attributes)[..20].to_vec(),
            Vec::new(),
        ] {
            assert!(parse(&odd).is_err(), "{odd:?}");
        }
        let mut error = answer(&[]);
        error[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        error[HEADER..HEADER + 4].copy_from_slice(&(-2_i32).to_ne_bytes());
        assert_eq!(parse(&error).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    /// Where the kernel of the machine that tests run on has the module.
    #[test]
    fn this_test_s_own_socket_is_in_its_own_group() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = listener.local_addr().unwrap();
        let stream = TcpStream::connect(here).unwrap();
        let (SocketAddr::V4(peer), SocketAddr::V4(here)) = (stream.local_addr().unwrap(), here)
        else {
            panic!("version 4")
        };
        match cgroup_of(peer, here) {
            Ok(id) => assert_ne!(id, 0),
            Err(error) => eprintln!("skipped: this kernel tells nothing about sockets: {error}"),
        }
    }
}
