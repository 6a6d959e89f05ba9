//! The few calls that Rust's type system cannot vouch for.
#![allow(unsafe_code)]

use std::arch::x86_64::{__cpuid, CpuidResult};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Gid, Pid, Resource, Rlimit, Signal, Uid};
use seccompiler::sock_filter;

use crate::probe::SevCommand;

/// What a child process is and may do, once it is started.
#[derive(Default)]
pub(crate) struct Confinement {
    /// What it inherits beside its standard streams.
    pub(crate) inherited: Vec<OwnedFd>,
    /// The user and group that it runs as; `None` for this process's own.
    pub(crate) user: Option<(Uid, Gid)>,
    /// Its groups beside its own. Without a user, and if there are none here, it keeps this process's.
    pub(crate) groups: Vec<Gid>,
    /// A program for the kernel that judges its system calls; empty for none.
    pub(crate) filter: Vec<sock_filter>,
}

/// Most files that a child may have open: a machine has some dozens.
const MOST_FILES: u64 = 1024;

/// Arranges that the child of `command`
///
/// - is killed when the *thread* that spawns it ends (and so when the process ends),
/// - leads its own session, so that no terminal signal reaches it,
/// - inherits what `confinement` says and nothing else but its standard streams,
/// - is the user and in the groups that `confinement` says, as far as this process may decide that,
/// - can neither gain privileges nor use any capability, leaves no core dump, and has at most
///   [`MOST_FILES`] files open,
/// - is not spared when memory runs out, as containerd and its shims are.
pub(crate) fn confine(command: &mut Command, confinement: Confinement) {
    let parent = rustix::process::getpid();
    let Confinement { inherited, user, groups, filter } = confinement;
    // SAFETY: the closure runs in the child between fork and exec, where only async-signal-safe calls
    // are sound. It makes plain system calls on values captured before the fork; it neither
    // allocates, nor takes locks, nor frees (a raw errno becomes an io::Error without allocation).
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            let no_core = Rlimit { current: Some(0), maximum: Some(0) };
            rustix::process::setrlimit(Resource::Core, no_core)?;
            let few_files = Rlimit { current: Some(MOST_FILES), maximum: Some(MOST_FILES) };
            rustix::process::setrlimit(Resource::Nofile, few_files)?;
            be_expendable();
            rustix::thread::set_no_new_privs(true)?;
            if user.is_some() || !groups.is_empty() {
                match rustix::thread::set_thread_groups(&groups) {
                    Ok(()) => {}
                    // Who may not do this is not root, and keeps the groups it was given.
                    Err(rustix::io::Errno::PERM) if user.is_none() => {}
                    Err(error) => return Err(error.into()),
                }
            }
            drop_bounding_set();
            if let Some((uid, gid)) = user {
                rustix::thread::set_thread_res_gid(gid, gid, gid)?;
                rustix::thread::set_thread_res_uid(uid, uid, uid)?;
            }
            // Only now: a change of user would undo it (prctl(2)).
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the line above took effect.
            if rustix::process::getppid() != Some(parent) {
                return Err(rustix::io::Errno::SRCH.into());
            }
            for fd in &inherited {
                rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
            }
            load(&filter)
        });
    }
}

/// Takes back what containerd gives itself and its shims: the kernel would end every other process first.
fn be_expendable() {
    const ORDINARY: &[u8] = b"0";
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    // Fails where /proc is not mounted, or the process may not lower what it was given: it keeps that.
    if let Ok(file) = rustix::fs::open(c"/proc/self/oom_score_adj", flags, Mode::empty()) {
        let _ = rustix::io::write(&file, ORDINARY);
    }
}

/// Lets `filter` judge this process's system calls from now on (seccomp(2)).
fn load(filter: &[sock_filter]) -> std::io::Result<()> {
    let Ok(len) = u16::try_from(filter.len()) else { return Err(rustix::io::Errno::INVAL.into()) };
    if len == 0 {
        return Ok(());
    }
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel reads `len` instructions through the pointer, which `filter` has and which outlive the
    // call. seccompiler's `sock_filter` is the kernel's structure, as libc's is (asserted below).
    let result = unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program, 0, 0)
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

const _: () = assert!(
    size_of::<sock_filter>() == size_of::<libc::sock_filter>()
        && std::mem::offset_of!(sock_filter, k) == std::mem::offset_of!(libc::sock_filter, k)
);

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

/// `struct sev_issue_cmd` of `linux/psp-sev.h`.
#[repr(C, packed)]
struct SevIssueCommand {
    command: u32,
    data: u64,
    error: u32,
}

/// `SEV_ISSUE_CMD` of `linux/psp-sev.h`: `_IOWR('S', 0x0, struct sev_issue_cmd)`.
pub(crate) const SEV_ISSUE_CMD: libc::c_ulong = 0xc010_5300;

/// Lets AMD's secure processor carry out a command that only asks. `reply` must have exactly the size of the
/// command's structure.
pub(crate) fn issue_sev_command(
    sev: &File,
    command: SevCommand,
    reply: &mut [u8],
) -> std::io::Result<()> {
    if reply.len() != command.reply_size() {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    let mut issue =
        SevIssueCommand { command: command.number(), data: reply.as_mut_ptr() as u64, error: 0 };
    // SAFETY: the request reads and writes one SevIssueCommand through the pointer, which outlives the call,
    // and writes through `data` the structure of the command, for which `reply` is large enough (checked
    // above) and borrowed mutably for the whole call. Both are plain bytes: any value is valid.
    let result = unsafe { libc::ioctl(sev.as_raw_fd(), SEV_ISSUE_CMD, &raw mut issue) };
    if result == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    match issue.error {
        0 => Err(error),
        // Its firmware's status codes: SEV_RET_* in linux/psp-sev.h.
        code => Err(std::io::Error::other(format!("the secure processor answered {code:#x}"))),
    }
}

/// The processor's time stamp counter (AMD64 Architecture Programmer's Manual, volume 3, RDTSC).
pub(crate) fn time_stamp() -> u64 {
    // SAFETY: the instruction reads a counter and touches no memory.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Whether the kernel counts its clock as synchronised (adjtimex(2)).
pub(crate) fn clock_synchronised() -> std::io::Result<bool> {
    // SAFETY: `timex` is a C structure of integers, for which zero is valid.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the call reads and writes one `timex` through the pointer; `modes` is 0, so it only asks.
    match unsafe { libc::adjtimex(&raw mut timex) } {
        -1 => Err(std::io::Error::last_os_error()),
        state => Ok(state != libc::TIME_ERROR),
    }
}

/// Makes the system call of that number, whose arguments are `first` and zeros; the error, if it fails.
#[cfg(test)]
pub(crate) fn call(number: libc::c_long, first: u64) -> Option<i32> {
    // SAFETY: for tests of a filter that lets none of these calls through; those that would be let through
    // get no pointer but null.
    let result = unsafe { libc::syscall(number, first, 0_u64, 0_u64, 0_u64, 0_u64, 0_u64) };
    (result == -1).then(|| std::io::Error::last_os_error().raw_os_error()).flatten()
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use super::*;

    #[test]
    fn sev_commands_are_laid_out_as_in_the_kernels_header() {
        // linux/psp-sev.h: struct sev_issue_cmd { __u32 cmd; __u64 data; __u32 error; } packed.
        assert_eq!(size_of::<SevIssueCommand>(), 16);
        assert_eq!(offset_of!(SevIssueCommand, command), 0);
        assert_eq!(offset_of!(SevIssueCommand, data), 4);
        assert_eq!(offset_of!(SevIssueCommand, error), 12);
        // asm-generic/ioctl.h: direction (read and write) << 30 | size << 16 | type << 8 | number.
        let number = 3 << 30 | 16 << 16 | libc::c_ulong::from(b'S') << 8;
        assert_eq!(SEV_ISSUE_CMD, number);
    }

    #[test]
    fn a_command_whose_reply_has_another_size_is_not_issued() {
        let null = File::open("/dev/null").unwrap();
        let mut reply = [0; 13];
        let mut issue = |size: usize| {
            issue_sev_command(&null, SevCommand::PlatformStatus, &mut reply[..size]).unwrap_err()
        };
        assert_eq!(issue(11).kind(), std::io::ErrorKind::InvalidInput);
        assert_eq!(issue(13).kind(), std::io::ErrorKind::InvalidInput);
        // Of the right size it reaches the device, which is none of AMD's.
        assert_eq!(issue(12).raw_os_error(), Some(libc::ENOTTY));
    }
}
