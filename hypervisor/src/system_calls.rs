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
    let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, TargetArch::x86_64)?;
    let program: BpfProgram = filter.try_into()?;
    Ok(no_x32().into_iter().chain(program).collect())
}

/// Kills who uses the other numbering. Runs before the filter; jumps are relative.
fn no_x32() -> [sock_filter; 3] {
    // linux/bpf_common.h and linux/seccomp.h: BPF_LD | BPF_W | BPF_ABS of seccomp_data.nr; BPF_JMP | BPF_JGE |
    // BPF_K; BPF_RET | BPF_K.
    const LOAD: u16 = 0x20;
    const JUMP_IF_LESS: u16 = 0x35;
    const RETURN: u16 = 0x06;
    [
        sock_filter { code: LOAD, jt: 0, jf: 0, k: 0 },
        sock_filter { code: JUMP_IF_LESS, jt: 0, jf: 1, k: X32 },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_KILL_PROCESS },
    ]
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::sys::{self, Confinement};

    fn python(script: &str) -> Option<(Option<i32>, String)> {
        let mut command = Command::new("python3");
        command.args(["-c", script]);
        let filter = qemu_filter().unwrap();
        sys::confine(&mut command, Confinement { filter, ..Default::default() });
        match command.output() {
            Err(absent) if absent.kind() == std::io::ErrorKind::NotFound => {
                println!("SKIPPED: there is no python3 to make system calls with");
                None
            }
            other => {
                let output = other.unwrap();
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                Some((output.status.code(), said + &String::from_utf8_lossy(&output.stderr)))
            }
        }
    }

    #[test]
    fn what_is_denied_fails_and_local_sockets_do_not() {
        let script = format!(
            "import ctypes, socket\n\
             libc = ctypes.CDLL(None, use_errno=True)\n\
             for call in {DENIED:?}:\n\
             \x20   assert libc.syscall(call, 0, 0, 0, 0, 0) == -1, call\n\
             \x20   assert ctypes.get_errno() == 1, call\n\
             for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET, 38):\n\
             \x20   try:\n\
             \x20       socket.socket(family, socket.SOCK_RAW)\n\
             \x20       raise SystemExit(f'{{family}} is allowed')\n\
             \x20   except PermissionError: pass\n\
             socket.socketpair()\n\
             socket.socket(socket.AF_UNIX)\n\
             print('confined')"
        );
        let Some((status, said)) = python(&script) else { return };
        assert_eq!((status, said.trim()), (Some(0), "confined"));
    }

    #[test]
    fn the_other_numbering_of_calls_ends_the_process() {
        // getpid by its x32 number.
        let script = format!(
            "import ctypes\nctypes.CDLL(None).syscall({})\nprint('lives')",
            X32 | u32::try_from(libc::SYS_getpid).unwrap()
        );
        let Some((status, said)) = python(&script) else { return };
        assert_eq!((status, said.trim()), (None, ""), "killed by a signal");
    }
}
