//! The few calls that Rust's type system cannot vouch for.
#![allow(unsafe_code)]

use std::arch::x86_64::{__cpuid, CpuidResult};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Pid, Resource, Rlimit, Signal};

/// Arranges that the child of `command`
///
/// - is killed when the *thread* that spawns it ends (and so when the process ends),
/// - leads its own session, so that no terminal signal reaches it,
/// - inherits `inherited` and nothing else but its standard streams,
/// - can neither gain privileges nor use any capability, and leaves no core dump.
pub(crate) fn confine(command: &mut Command, inherited: Vec<OwnedFd>) {
    let parent = rustix::process::getpid();
    // SAFETY: the closure runs in the child between fork and exec, where only async-signal-safe calls
    // are sound. It makes plain system calls on values captured before the fork; it neither
    // allocates, nor takes locks, nor frees (a raw errno becomes an io::Error without allocation).
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the line above took effect.
            if rustix::process::getppid() != Some(parent) {
                return Err(rustix::io::Errno::SRCH.into());
            }
            let no_core = Rlimit { current: Some(0), maximum: Some(0) };
            rustix::process::setrlimit(Resource::Core, no_core)?;
            rustix::thread::set_no_new_privs(true)?;
            drop_bounding_set();
            for fd in &inherited {
                rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
            }
            Ok(())
        });
    }
}

/// Empties the capability bounding set, so that the next exec leaves root without capabilities.
/// A process that may not do this (EPERM) is not root: it has none to lose.
fn drop_bounding_set() {
    const MOST_CAPABILITIES: libc::c_ulong = 64;
    for capability in 0..MOST_CAPABILITIES {
        // SAFETY: PR_CAPBSET_DROP takes an integer and touches no memory of this process.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
}

/// Claims context id `cid` for the guest behind `vhost_vsock` (an open `/dev/vhost-vsock`).
/// Fails with `EADDRINUSE` if another guest has it.
pub(crate) fn set_guest_cid(vhost_vsock: &File, cid: u32) -> std::io::Result<()> {
    // linux/vhost.h: _IOW(0xAF, 0x60, __u64)
    const VHOST_VSOCK_SET_GUEST_CID: libc::c_ulong = 0x4008_af60;
    let cid = u64::from(cid);
    // SAFETY: the request reads one u64 through the pointer, which outlives the call.
    let result =
        unsafe { libc::ioctl(vhost_vsock.as_raw_fd(), VHOST_VSOCK_SET_GUEST_CID, &raw const cid) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// What the processor answers to `CPUID` with `leaf` in EAX, and 0 in ECX.
pub(crate) fn cpuid(leaf: u32) -> CpuidResult {
    // SAFETY: every x86-64 processor has the instruction; it touches registers only. (Newer compilers know.)
    #[allow(unused_unsafe)]
    unsafe {
        __cpuid(leaf)
    }
}

/// The process that [`std::process::Child::id`] names.
pub(crate) fn pid_of(child: &std::process::Child) -> Pid {
    Pid::from_child(child)
}
