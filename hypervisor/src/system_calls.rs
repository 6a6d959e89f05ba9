//! What QEMU may ask of the host's kernel, beside what its own `-sandbox` denies.
//!
//! QEMU loads its filter once its machine is complete, and allows what that filter does not name; this one holds
//! from its first instruction, and names what no virtual machine has a use for: the ways to other
//! processes, to mounts and namespaces, to the kernel's own configuration, and the network. Its packets go
//! through tap devices and sockets that it inherits, so it makes no sockets but local ones and vsock.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

/// Calls that always fail with `EPERM`.
const DENIED: &[libc::c_long] = &[
    // Mounts, roots and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mknod,
    libc::SYS_mknodat,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_quotactl,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_kcmp,
    // Programs in the kernel, and large doors into it that machines do not need.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // The host as a whole.
    libc::SYS_reboot,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_personality,
];

/// Families of sockets that QEMU may make: local ones, and vsock for the quotes of a TDX guest.
const FAMILIES: [libc::c_int; 2] = [libc::AF_UNIX, libc::AF_VSOCK];

/// Flags of clone(2) that make a namespace. The newest, of clocks, only clone3 and unshare can make.
const NEW_NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// `__X32_SYSCALL_BIT` of asm/unistd.h: another numbering of the same calls, which no list here has.
const X32: u32 = 0x4000_0000;

/// The filter, as a program for the kernel.
pub(crate) fn qemu_filter() -> Result<BpfProgram, seccompiler::Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        DENIED.iter().map(|&call| (call, Vec::new())).collect();
    let foreign = FAMILIES.iter().map(|family| {
        let family = u64::from(family.unsigned_abs());
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, family)
    });
    let foreign = SeccompRule::new(foreign.collect::<Result<_, _>>()?)?;
    rules.insert(libc::SYS_socket, vec![foreign]);
    let namespaces = NEW_NAMESPACES.iter().map(|flag| {
        let flag = u64::from(flag.unsigned_abs());
        let has =
            SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(flag), flag)?;
        SeccompRule::new(vec![has])
    });
    rules.insert(libc::SYS_clone, namespaces.collect::<Result<_, _>>()?);
    let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, TargetArch::x86_64)?;
    let program: BpfProgram = filter.try_into()?;
    Ok(first().into_iter().chain(program).collect())
}

/// Kills who uses the other numbering, and has no clone3, whose flags a filter cannot read: libc falls back to clone.
/// Runs before the filter; jumps are relative.
fn first() -> [sock_filter; 5] {
    // linux/bpf_common.h and linux/seccomp.h: BPF_LD | BPF_W | BPF_ABS of seccomp_data.nr; BPF_JMP | BPF_JGE |
    // BPF_K; BPF_JMP | BPF_JEQ | BPF_K; BPF_RET | BPF_K.
    const LOAD: u16 = 0x20;
    const JUMP_IF_LESS: u16 = 0x35;
    const JUMP_IF_OTHER: u16 = 0x15;
    const RETURN: u16 = 0x06;
    // asm/unistd_64.h
    const CLONE3: u32 = 435;
    let absent = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    [
        sock_filter { code: LOAD, jt: 0, jf: 0, k: 0 },
        sock_filter { code: JUMP_IF_LESS, jt: 0, jf: 1, k: X32 },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_KILL_PROCESS },
        sock_filter { code: JUMP_IF_OTHER, jt: 0, jf: 1, k: CLONE3 },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: absent },
    ]
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus};

    use rustix::net::{AddressFamily, SocketType, socket};

    use super::*;
    use crate::sys::{self, Confinement};

    /// Set where a test is run once more, as a process under the filter.
    const UNDER_FILTER: &str = "NACRE_TEST_UNDER_FILTER";

    fn is_under_filter() -> bool {
        std::env::var_os(UNDER_FILTER).is_some()
    }

    /// Runs one of these tests once more, under the filter.
    fn again(test: &str) -> (ExitStatus, String) {
        let test = format!("system_calls::tests::{test}");
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", &test, "--nocapture"]).env(UNDER_FILTER, "1");
        let filter = qemu_filter().unwrap();
        sys::confine(&mut command, Confinement { filter, ..Default::default() });
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status, said + &String::from_utf8_lossy(&output.stderr))
    }

    #[test]
    fn what_is_denied_fails_and_local_sockets_do_not() {
        if !is_under_filter() {
            let (status, said) = again("what_is_denied_fails_and_local_sockets_do_not");
            assert!(status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        for &call in DENIED {
            assert_eq!(sys::call(call, 0), Some(libc::EPERM), "{call}");
        }
        for family in [
            AddressFamily::INET,
            AddressFamily::INET6,
            AddressFamily::NETLINK,
            AddressFamily::PACKET,
            AddressFamily::KEY,
        ] {
            let made = socket(family, SocketType::RAW, None);
            assert_eq!(made.err(), Some(rustix::io::Errno::PERM), "{family:?}");
        }
        socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        std::os::unix::net::UnixStream::pair().unwrap();
        for flag in NEW_NAMESPACES {
            let flags = u64::from((flag | libc::CLONE_THREAD).unsigned_abs());
            assert_eq!(sys::call(libc::SYS_clone, flags), Some(libc::EPERM), "{flag:x}");
        }
        assert_eq!(sys::call(libc::SYS_clone3, 0), Some(libc::ENOSYS));
        assert_eq!(std::thread::spawn(|| 1).join().unwrap(), 1);
    }

    #[test]
    fn the_other_numbering_of_calls_ends_the_process() {
        if !is_under_filter() {
            let (status, said) = again("the_other_numbering_of_calls_ends_the_process");
            assert_eq!(status.signal(), Some(libc::SIGSYS), "{said}");
            return;
        }
        // getpid by its x32 number.
        sys::call(libc::SYS_getpid | libc::c_long::from(X32), 0);
    }
}
