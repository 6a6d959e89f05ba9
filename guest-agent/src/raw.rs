//! The kernel calls that have no safe wrapper in the crates we use. All `unsafe` of the agent is here.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::thread::UnshareFlags;
use tokio::io::unix::AsyncFd;

/// `bpf(2)` commands, program and attach types (linux/bpf.h).
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;

/// `struct dm_ioctl` (linux/dm-ioctl.h): its length, and where in it the length of the request is.
const DM_HEADER: usize = 312;
const DM_DATA_SIZE: usize = 12;
/// `_IOWR(DM_IOCTL, 0, struct dm_ioctl)`; the command is in the lowest byte.
const DM_IOCTL: u32 = 0xc138_fd00;

/// One eBPF instruction (`struct bpf_insn`).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    /// Operation.
    pub(crate) code: u8,
    /// Destination register in the low four bits, source register in the high ones.
    pub(crate) registers: u8,
    /// Jump distance or memory offset.
    pub(crate) offset: i16,
    /// Immediate value.
    pub(crate) immediate: i32,
}

/// The part of `union bpf_attr` that `BPF_PROG_LOAD` reads; the kernel takes the rest as zero.
#[repr(C)]
struct ProgramLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The part of `union bpf_attr` that `BPF_PROG_ATTACH` reads.
#[repr(C)]
struct ProgramAttach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// Moves the calling thread into new IPC and UTS namespaces.
pub(crate) fn unshare_ipc_and_uts() -> io::Result<()> {
    // SAFETY: the call is unsafe for `UnshareFlags::FILES` only, which is not among the flags.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWIPC | UnshareFlags::NEWUTS) }?;
    Ok(())
}

/// Makes a descriptor one that tasks can wait on. Needs the runtime.
pub(crate) fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor must stay open and the same while it is registered. An `OwnedFd` is closed
    // only when it is dropped, and `AsyncFd` takes it off its poller before that.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}

/// Sends any signal, real-time ones included, to the process behind `pidfd`.
pub(crate) fn send_signal(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is passed: the siginfo pointer is null, which the kernel takes as "none".
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    check(result).map(|_| ())
}

/// Loads a program that decides on device access. The kernel's verifier judges it.
pub(crate) fn load_device_program(program: &[Instruction]) -> io::Result<OwnedFd> {
    let count = u32::try_from(program.len()).map_err(io::Error::other)?;
    let license = c"Apache-2.0";
    let attributes = ProgramLoad {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: count,
        insns: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
    };
    // SAFETY: `attributes` lives through the call and its size is passed; the pointers in it are to
    // `count` instructions and to a NUL-terminated string, which both live through the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size_of::<ProgramLoad>())
    };
    let fd = i32::try_from(check(result)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes `program` judge each device access of the processes in `cgroup`, replacing none.
pub(crate) fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
) -> io::Result<()> {
    let attributes = ProgramAttach {
        target_fd: descriptor(cgroup)?,
        attach_bpf_fd: descriptor(program)?,
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: 0,
    };
    // SAFETY: `attributes` lives through the call and its size is passed; it holds no pointers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            &raw const attributes,
            size_of::<ProgramAttach>(),
        )
    };
    check(result).map(|_| ())
}

/// One request to the device mapper: a `struct dm_ioctl` with what follows it. The answer replaces it.
pub(crate) fn device_mapper(
    control: BorrowedFd<'_>,
    command: u8,
    request: &mut [u8],
) -> io::Result<()> {
    let size = u32::try_from(request.len()).map_err(io::Error::other)?;
    if request.len() < DM_HEADER {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    request[DM_DATA_SIZE..DM_DATA_SIZE + 4].copy_from_slice(&size.to_ne_bytes());
    let number = libc::c_ulong::from(DM_IOCTL | u32::from(command));
    // SAFETY: the kernel reads and writes at most the request's length, which was just written into its
    // header, and that many bytes are there and ours. No pointers are in it.
    let result = unsafe { libc::ioctl(control.as_raw_fd(), number, request.as_mut_ptr()) };
    check(result.into()).map(|_| ())
}

/// The descriptor's number; it is the caller's to keep open.
fn descriptor(fd: BorrowedFd<'_>) -> io::Result<u32> {
    u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
