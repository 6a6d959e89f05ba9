//! Connections to a pod's localhost that somebody on the node makes in the pod's network namespace, as
//! containerd does for `kubectl port-forward`. There, nothing listens: the pod's processes are in its
//! machine. So the kernel is told to give every TCP connection to 127.0.0.1 or `::1`, whatever its port, to
//! one listening socket for each of these addresses.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::bpf::{self, Instruction};

/// Places of the sockets in the map.
const V4: u32 = 0;
const V6: u32 = 1;

/// Why connections to a pod's localhost are not caught.
#[derive(Debug, thiserror::Error)]
pub enum CatchError {
    /// No socket on the loopback interface.
    #[error("cannot listen on the loopback interface of the pod's network namespace: {0}")]
    Listen(io::Error),
    /// No program or map.
    #[error(
        "the kernel does not take the program that finds sockets: {0}; it takes Linux 5.9 or newer with \
         CONFIG_BPF_SYSCALL and CONFIG_INET, and the capabilities CAP_BPF and CAP_NET_ADMIN"
    )]
    Program(io::Error),
    /// No link to the namespace.
    #[error("cannot attach the program that finds sockets to the pod's network namespace: {0}")]
    Attach(io::Error),
}

/// The sockets that get every connection to a pod's localhost. When this is dropped, also by the end of the
/// process, the kernel forgets the program and all that belongs to it.
#[derive(Debug)]
pub struct Loopback {
    /// Listening sockets, which do not block: for 127.0.0.1 and, where the namespace has it, for `::1`. The
    /// local address of an accepted connection is the one that was asked for.
    pub listeners: Vec<TcpListener>,
    /// Keeps the program attached.
    pub attachment: Attachment,
}

/// The program's attachment to the namespace, while it lives.
#[derive(Debug)]
pub struct Attachment {
    _link: OwnedFd,
}

/// Catches all connections; the calling thread must be in the namespace.
pub(crate) fn catch(namespace: BorrowedFd<'_>) -> Result<Loopback, CatchError> {
    let v4 = listen((Ipv4Addr::LOCALHOST, 0).into()).map_err(CatchError::Listen)?;
    let map = bpf::socket_map(2).map_err(CatchError::Program)?;
    bpf::put(map.as_fd(), V4, v4.as_fd()).map_err(CatchError::Program)?;
    let mut listeners = vec![v4];
    // A namespace without IPv6 has nobody who asks for ::1.
    if let Ok(v6) = listen((Ipv6Addr::LOCALHOST, 0).into()) {
        bpf::put(map.as_fd(), V6, v6.as_fd()).map_err(CatchError::Program)?;
        listeners.push(v6);
    }
    let program = bpf::load(&program(map.as_fd())).map_err(CatchError::Program)?;
    let link = bpf::attach(program.as_fd(), namespace).map_err(CatchError::Attach)?;
    // The link holds the program, and the program the map.
    Ok(Loopback { listeners, attachment: Attachment { _link: link } })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Registers, by what they hold here.
mod register {
    pub(super) const ANSWER: u8 = 0;
    pub(super) const FIRST: u8 = 1;
    pub(super) const SECOND: u8 = 2;
    pub(super) const THIRD: u8 = 3;
    pub(super) const CONTEXT: u8 = 6;
    pub(super) const SOCKET: u8 = 7;
    pub(super) const STACK: u8 = 10;
}

/// Operation codes (`Documentation/bpf/standardization/instruction-set.rst`).
mod code {
    /// `to = *(u32 *)(from + offset)`
    pub(super) const LOAD: u8 = 0x61;
    /// `*(u32 *)(to + offset) = immediate`
    pub(super) const STORE: u8 = 0x62;
    /// `to = from`
    pub(super) const MOVE: u8 = 0xbf;
    /// `to = immediate`
    pub(super) const SET: u8 = 0xb7;
    /// `to += immediate`
    pub(super) const ADD: u8 = 0x07;
    /// `to = ` a map, by its descriptor; takes two places.
    pub(super) const MAP: u8 = 0x18;
    /// Skips `offset` instructions.
    pub(super) const SKIP: u8 = 0x05;
    /// The same if `to == immediate`.
    pub(super) const SKIP_IF: u8 = 0x15;
    /// The same if the lower halves differ.
    pub(super) const SKIP_UNLESS: u8 = 0x56;
    pub(super) const CALL: u8 = 0x85;
    pub(super) const EXIT: u8 = 0x95;
}

/// Functions of the kernel.
mod function {
    pub(super) const MAP_LOOKUP_ELEM: i32 = 1;
    pub(super) const SK_RELEASE: i32 = 86;
    pub(super) const SK_ASSIGN: i32 = 124;
}

/// Offsets in the program's context, `struct bpf_sk_lookup`.
mod context {
    pub(super) const FAMILY: i16 = 8;
    pub(super) const PROTOCOL: i16 = 12;
    pub(super) const LOCAL_V4: i16 = 40;
    pub(super) const LOCAL_V6: [i16; 4] = [44, 48, 52, 56];
}

/// `SK_PASS`: the kernel goes on, with the socket that was assigned or, without one, as ever.
const PASS: i32 = 1;

/// The program: it assigns the socket of the address's family to what is meant for localhost.
fn program(map: BorrowedFd<'_>) -> Vec<Instruction> {
    use register::{ANSWER, CONTEXT, FIRST, SECOND, SOCKET, STACK, THIRD};
    let op = Instruction::new;
    let load = |offset| op(code::LOAD, SECOND, CONTEXT, offset, 0);
    // An address as the context has it, in the order of the network, is read as a number of this machine.
    let v4 = u32::from_ne_bytes(Ipv4Addr::LOCALHOST.octets()).cast_signed();
    let last_of_v6 = 1_u32.to_be().cast_signed();

    let assign = [
        op(code::MOVE, SECOND, STACK, 0, 0),
        op(code::ADD, SECOND, 0, 0, -4),
        op(code::MAP, FIRST, 1, 0, map.as_raw_fd()),
        op(0, 0, 0, 0, 0),
        op(code::CALL, 0, 0, 0, function::MAP_LOOKUP_ELEM),
        // No socket there.
        op(code::SKIP_IF, ANSWER, 0, 7, 0),
        op(code::MOVE, SOCKET, ANSWER, 0, 0),
        op(code::MOVE, FIRST, CONTEXT, 0, 0),
        op(code::MOVE, SECOND, ANSWER, 0, 0),
        op(code::SET, THIRD, 0, 0, 0),
        op(code::CALL, 0, 0, 0, function::SK_ASSIGN),
        op(code::MOVE, FIRST, SOCKET, 0, 0),
        op(code::CALL, 0, 0, 0, function::SK_RELEASE),
    ];
    let pass = [op(code::SET, ANSWER, 0, 0, PASS), op(code::EXIT, 0, 0, 0, 0)];

    let v4_part = [
        load(context::LOCAL_V4),
        op(code::SKIP_UNLESS, SECOND, 0, distance(1 + assign.len()), v4),
        op(code::STORE, STACK, 0, -4, V4.cast_signed()),
    ];
    let mut v6_part = Vec::new();
    for (position, offset) in context::LOCAL_V6.into_iter().enumerate() {
        let expected = if position == 3 { last_of_v6 } else { 0 };
        let left = 2 * (3 - position) + 2 + v4_part.len() + assign.len();
        v6_part.push(load(offset));
        v6_part.push(op(code::SKIP_UNLESS, SECOND, 0, distance(left), expected));
    }
    v6_part.push(op(code::STORE, STACK, 0, -4, V6.cast_signed()));
    v6_part.push(op(code::SKIP, 0, 0, distance(v4_part.len()), 0));

    let rest = v6_part.len() + v4_part.len() + assign.len();
    let begin = [
        op(code::MOVE, CONTEXT, FIRST, 0, 0),
        load(context::PROTOCOL),
        op(code::SKIP_UNLESS, SECOND, 0, distance(3 + rest), libc::IPPROTO_TCP),
        load(context::FAMILY),
        op(code::SKIP_IF, SECOND, 0, distance(1 + v6_part.len()), libc::AF_INET),
        op(code::SKIP_UNLESS, SECOND, 0, distance(rest), libc::AF_INET6),
    ];
    [&begin[..], &v6_part, &v4_part, &assign, &pass].concat()
}

/// A jump of the program; it has some thirty instructions.
fn distance(instructions: usize) -> i16 {
    i16::try_from(instructions).unwrap_or(i16::MAX)
}
