//! What this program may still ask of the host's kernel once its pod's machine runs.
//!
//! Until then it starts a program, enters a network namespace and makes devices. From then on it moves
//! bytes between containerd and the guest, reads volumes, and at the end undoes what it made. So it gives up
//! the rest: a guest that took this process over by its answers could make no process, no mount and no namespace, trace
//! nobody and load nothing into the kernel *by a system call for it*.
//!
//! What this does not bound is files. The process remains root with a root's capabilities, which reading any pod's
//! volumes and leaving network namespaces takes, and it may open and write any path: `/proc/<pid>/mem`, a
//! service's unit or `/proc/sys/kernel/core_pattern` lead to the whole host. This narrows the ways, it does not
//! make the shim harmless.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};

use crate::error::{Code, Coded};

/// Why the shim could not be confined.
#[derive(Debug, thiserror::Error)]
#[error("the shim cannot give up system calls: {0}; the kernel needs CONFIG_SECCOMP_FILTER")]
pub(crate) struct ConfinementError(#[from] seccompiler::Error);

impl Coded for ConfinementError {
    fn code(&self) -> Code {
        Code::FAILED_PRECONDITION
    }
}

/// What stays allowed, by what it is for.
const ALLOWED: &[libc::c_long] = &[
    // Files.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_stat,
    libc::SYS_fstat,
    libc::SYS_lstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_chmod,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_umask,
    libc::SYS_flock,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_ioctl,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_select,
    libc::SYS_pselect6,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    // Connections: containerd, the guest, the node's services, netlink. Their making has a rule of its own.
    libc::SYS_socketpair,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    // Memory.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_brk,
    libc::SYS_membarrier,
    // Threads; their making has a rule of its own.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_tid_address,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_prctl,
    libc::SYS_arch_prctl,
    // Processes: the machine is watched and ended, what dead shims left, too.
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_kill,
    libc::SYS_tgkill,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrlimit,
    libc::SYS_prlimit64,
    libc::SYS_getrusage,
    // Signals.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // About the host.
    libc::SYS_getrandom,
    libc::SYS_uname,
    libc::SYS_sysinfo,
];

/// Flags of clone(2) that make a namespace.
const NEW_NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// Families of sockets: containerd, the node's services and the console; the collector of spans and the pod's
/// ports; redirects; the guest.
const FAMILIES: [libc::c_int; 5] =
    [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_VSOCK];

fn bits(flag: libc::c_int) -> u64 {
    flag.unsigned_abs().into()
}

/// Gives up, for all threads and for ever, what the shim does not need beside a running machine. Everything else
/// fails with `ENOSYS`, which libc takes for an older kernel and works around where it can.
pub(crate) fn confine() -> Result<(), ConfinementError> {
    apply_filter_all_threads(&filter()?)?;
    Ok(())
}

fn filter() -> Result<BpfProgram, seccompiler::Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|&call| (call, Vec::new())).collect();
    // Threads, but no processes and no namespaces. clone3, whose flags a filter cannot read, fails like the rest.
    let thread = bits(libc::CLONE_THREAD);
    let judged = NEW_NAMESPACES.iter().fold(thread, |all, &flag| all | bits(flag));
    let is_thread =
        SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(judged), thread)?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![is_thread])?]);
    // The pod's network namespace, to take the redirects out of it.
    let of_network = bits(libc::CLONE_NEWNET);
    let of_network =
        SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, of_network)?;
    rules.insert(libc::SYS_setns, vec![SeccompRule::new(vec![of_network])?]);
    let families = FAMILIES.iter().map(|&family| {
        let is_it =
            SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, bits(family))?;
        Ok(SeccompRule::new(vec![is_it])?)
    });
    rules.insert(libc::SYS_socket, families.collect::<Result<_, seccompiler::Error>>()?);
    let absent = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let filter = SeccompFilter::new(rules, absent, SeccompAction::Allow, TargetArch::x86_64)?;
    Ok(filter.try_into()?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::Command;

    use nacre_run_directory::history::History;
    use nacre_run_directory::{ProcessRef, RunDir};
    use rustix::net::{AddressFamily, SocketType, socket};
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

    use super::*;

    /// Set where this test is run once more, as a process that confines itself.
    const CONFINED: &str = "NACRE_TEST_CONFINED";

    #[test]
    fn a_confined_shim_starts_no_programs_and_still_serves() {
        if std::env::var_os(CONFINED).is_none() {
            let test = "confinement::tests::a_confined_shim_starts_no_programs_and_still_serves";
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", test, "--nocapture"])
                .env(CONFINED, "1")
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // What a dead shim has left, its machine with it; the sweep of a confined one is to remove it.
        let (root, history) = (dir.path().join("run"), History::at(&dir.path().join("history")));
        let mut machine = Command::new("sleep").arg("600").spawn().unwrap();
        let dead = runtime.block_on(RunDir::create(&root, &history, "dead"));
        let left = dead.unwrap().update(|record| record.machine = ProcessRef::of(machine.id()));
        left.unwrap();
        confine().unwrap();
        assert!(Command::new("true").spawn().is_err(), "a program was started");
        let refused = |errno: rustix::io::Errno| errno == rustix::io::Errno::NOSYS;
        let flags = rustix::mount::MountFlags::empty();
        let mounted = rustix::mount::mount("t", dir.path(), "tmpfs", flags, None);
        assert!(mounted.is_err_and(refused));
        let changed = rustix::process::chroot(dir.path());
        assert!(changed.is_err_and(refused));
        let own = |kind: &str| std::fs::File::open(format!("/proc/self/ns/{kind}")).unwrap();
        for (kind, type_) in [
            ("mnt", LinkNameSpaceType::Mount),
            ("user", LinkNameSpaceType::User),
            ("pid", LinkNameSpaceType::ProcessID),
        ] {
            let entered = move_into_link_name_space(own(kind).as_fd(), Some(type_));
            assert!(entered.is_err_and(refused), "{kind}");
        }
        let entered = move_into_link_name_space(own("net").as_fd(), None);
        assert!(entered.is_err_and(refused), "a namespace of any kind");
        let network = Some(LinkNameSpaceType::Network);
        let entered = move_into_link_name_space(own("net").as_fd(), network);
        // Who is not root is told so by the kernel itself.
        assert!(!entered.is_err_and(refused));
        let packets = socket(AddressFamily::PACKET, SocketType::RAW, None);
        assert!(packets.is_err_and(refused));
        for family in [AddressFamily::INET6, AddressFamily::NETLINK, AddressFamily::UNIX] {
            let kind =
                if family == AddressFamily::NETLINK { SocketType::RAW } else { SocketType::STREAM };
            let made = socket(family, kind, None);
            assert!(!made.is_err_and(refused), "{family:?}");
        }
        // A thread, files, sockets, time: a runtime as the shim's.
        runtime.block_on(async {
            let path = dir.path().join("file");
            tokio::fs::write(&path, b"text").await.unwrap();
            let read = tokio::task::spawn_blocking(move || std::fs::read(path)).await.unwrap();
            assert_eq!(read.unwrap(), b"text");
            let listener = tokio::net::UnixListener::bind(dir.path().join("socket")).unwrap();
            let (client, served) = tokio::join!(
                tokio::net::UnixStream::connect(dir.path().join("socket")),
                listener.accept()
            );
            assert!(client.is_ok() && served.is_ok());
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            let swept = nacre_run_directory::sweep(&root, &history).await.unwrap();
            let removal = &swept.first().unwrap().removal;
            assert_eq!((removal.removed.len(), &removal.failed), (2, &Vec::new()), "{removal:?}");
        });
        assert!(!machine.wait().unwrap().success());
    }
}
