//! The `bpf(2)` system call, as far as sending a namespace's connections to one socket takes it. Layouts
//! are those of `union bpf_attr` and `struct bpf_insn` in `include/uapi/linux/bpf.h`, which never change;
//! the kernel takes what a shorter form of the union leaves out as zero. Addresses are 64 bits wide there, as on
//! the machines that this crate is for.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Commands.
const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;

/// `BPF_MAP_TYPE_SOCKMAP`.
const SOCKMAP: u32 = 15;
/// `BPF_PROG_TYPE_SK_LOOKUP`.
const SK_LOOKUP: u32 = 30;
/// `BPF_SK_LOOKUP`, the point that such a program is attached at.
const AT_SK_LOOKUP: u32 = 36;

/// Most bytes that are read of the kernel's reasons against a program.
const MOST_REASONS: usize = 64 << 10;

/// One instruction, `struct bpf_insn`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Instruction {
    code: u8,
    /// Destination register in the lower half, source register in the upper.
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    pub(crate) const fn new(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Self {
        Self { code, registers: (from << 4) | to, offset, immediate }
    }
}

#[repr(C)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    most_entries: u32,
    flags: u32,
}

#[repr(C)]
struct MapUpdate {
    map: u32,
    padding: u32,
    key: *const u32,
    value: *const u32,
    flags: u64,
}

#[repr(C)]
struct ProgramLoad {
    kind: u32,
    length: u32,
    instructions: *const Instruction,
    license: *const libc::c_char,
    log_level: u32,
    log_size: u32,
    log: *mut u8,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_at: u32,
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_at: u32,
    flags: u32,
}

/// A map of sockets, numbered from 0.
pub(crate) fn socket_map(entries: u32) -> io::Result<OwnedFd> {
    let attributes =
        MapCreate { kind: SOCKMAP, key_size: 4, value_size: 4, most_entries: entries, flags: 0 };
    // SAFETY: MAP_CREATE reads the attributes and follows no address.
    let made = unsafe { bpf(MAP_CREATE, &attributes) }?;
    // SAFETY: MAP_CREATE answers with a new descriptor, closed on exec, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(made) })
}

/// Puts a listening socket into a map. It leaves it when it is closed.
pub(crate) fn put(map: BorrowedFd<'_>, key: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
    let value = number(socket);
    let attributes = MapUpdate {
        map: number(map),
        padding: 0,
        key: &raw const key,
        value: &raw const value,
        flags: 0,
    };
    // SAFETY: MAP_UPDATE_ELEM reads as many bytes at `key` and `value` as the map was made with: 4 and 4,
    // the sizes of these variables, which outlive the call.
    unsafe { bpf(MAP_UPDATE_ELEM, &attributes) }.map(drop)
}

/// Loads a program of the kind that chooses a socket. The kernel verifies it first; the last of its reasons
/// against it is in the error.
pub(crate) fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let error = match load_saying(program, &mut []) {
        Ok(loaded) => return Ok(loaded),
        Err(error) => error,
    };
    let mut reasons = vec![0; MOST_REASONS];
    if let Ok(loaded) = load_saying(program, &mut reasons) {
        return Ok(loaded);
    }
    let said = String::from_utf8_lossy(&reasons);
    let said = said.trim_matches(['\0', '\n']).lines().rev();
    // The very last line tells how long it took.
    match said.into_iter().find(|line| !line.starts_with("processed")) {
        Some(reason) => Err(io::Error::new(error.kind(), format!("{error}: {reason}"))),
        None => Err(error),
    }
}

fn load_saying(program: &[Instruction], reasons: &mut [u8]) -> io::Result<OwnedFd> {
    let length = |length| u32::try_from(length).map_err(|_| io::ErrorKind::InvalidInput);
    let silent = reasons.is_empty();
    let attributes = ProgramLoad {
        kind: SK_LOOKUP,
        length: length(program.len())?,
        instructions: program.as_ptr(),
        license: LICENSE.as_ptr(),
        log_level: u32::from(!silent),
        log_size: length(reasons.len())?,
        log: if silent { std::ptr::null_mut() } else { reasons.as_mut_ptr() },
        kernel_version: 0,
        flags: 0,
        name: *NAME,
        interface: 0,
        attach_at: AT_SK_LOOKUP,
    };
    // SAFETY: PROG_LOAD reads `length` instructions of 8 bytes, the size of `Instruction`, and the license up
    // to its zero, and writes at most `log_size` bytes at `log`; all three are borrowed across the call.
    let loaded = unsafe { bpf(PROG_LOAD, &attributes) }?;
    // SAFETY: PROG_LOAD answers with a new descriptor, closed on exec, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(loaded) })
}

/// Attaches a program to a network namespace for as long as the answer is open.
pub(crate) fn attach(program: BorrowedFd<'_>, namespace: impl AsFd) -> io::Result<OwnedFd> {
    let attributes = LinkCreate {
        program: number(program),
        target: number(namespace.as_fd()),
        attach_at: AT_SK_LOOKUP,
        flags: 0,
    };
    // SAFETY: LINK_CREATE reads the attributes and follows no address.
    let made = unsafe { bpf(LINK_CREATE, &attributes) }?;
    // SAFETY: LINK_CREATE answers with a new descriptor, closed on exec, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(made) })
}

/// As `bpftool` shows it.
const NAME: &[u8; 16] = b"nacre_ports\0\0\0\0\0";
const LICENSE: &std::ffi::CStr = c"Apache-2.0";

fn number(descriptor: BorrowedFd<'_>) -> u32 {
    descriptor.as_raw_fd().cast_unsigned()
}

/// # Safety
/// Every address that `command` follows in `attributes` must be valid for what the command does there.
unsafe fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of the attributes, which are borrowed; the caller
    // vouches for the addresses within.
    let answer = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>())
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    libc::c_int::try_from(answer).map_err(|_| io::ErrorKind::InvalidData.into())
}
