//! Why a VM ended, in words.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use super::qmp::Events;
use crate::VmExit;
use crate::bounded_log::{Panic, Tail};

/// Linux, kernel/exit.c, `do_exit`.
const INIT_ENDED: &str = "Attempted to kill init!";

/// What the host did to end the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HostAction {
    /// Nothing.
    None,
    /// QEMU was asked to quit.
    Quit,
    /// QEMU was killed, for it did not quit.
    Kill,
    /// QEMU was killed, for it had stopped the guest's processors by itself.
    KillHalted,
}

/// Puts together what is known of the end.
pub(super) fn explain(
    status: &io::Result<ExitStatus>,
    action: HostAction,
    events: &Events,
    console: &Tail,
    stderr: &Tail,
) -> VmExit {
    let last_words = stderr.last_line().map(|line| format!(": {line}")).unwrap_or_default();
    let unclean = |reason: String| VmExit { reason, clean: false };
    match action {
        HostAction::KillHalted => {
            return unclean(format!("QEMU stopped the guest after an internal error{last_words}"));
        }
        HostAction::Kill => {
            return unclean("the VM did not stop when asked to, and was killed".to_owned());
        }
        HostAction::None | HostAction::Quit => {}
    }
    let status = match status {
        Ok(status) => status,
        Err(error) => {
            return unclean(format!("QEMU is gone, and its exit status is not known: {error}"));
        }
    };
    if let Some(signal) = status.signal() {
        let name = signal_name(signal).map(|name| format!(" ({name})")).unwrap_or_default();
        return unclean(format!("QEMU was killed by signal {signal}{name}{last_words}"));
    }
    if let Some(code @ 1..) = status.code() {
        return unclean(format!("QEMU exited with status {code}{last_words}"));
    }
    match events.shutdown.as_deref() {
        Some("guest-shutdown") => {
            VmExit { reason: "the guest powered off".to_owned(), clean: true }
        }
        Some("host-qmp-quit") if action == HostAction::Quit => {
            VmExit { reason: "the VM was stopped on request".to_owned(), clean: true }
        }
        Some("guest-reset" | "guest-panic") => unclean(match console.kernel_panic() {
            // The guest's first program has ended, and may have said why.
            Some(Panic { reason, before }) if reason.starts_with(INIT_ENDED) => {
                format!("the guest's kernel panicked: {reason}; its console before: {before}")
            }
            Some(Panic { reason, .. }) => format!("the guest's kernel panicked: {reason}"),
            None if events.panicked => "the guest's kernel panicked".to_owned(),
            None => "the guest reset itself (an early kernel panic, a triple fault or a reboot)"
                .to_owned(),
        }),
        Some(other) => unclean(format!("QEMU ended ({other}){last_words}")),
        None => unclean(format!("QEMU ended without telling why{last_words}")),
    }
}

fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS, as when the host has no memory left",
        libc::SIGHUP => "SIGHUP",
        libc::SIGILL => "SIGILL",
        libc::SIGINT => "SIGINT",
        libc::SIGKILL => "SIGKILL",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGSYS => "SIGSYS, a system call that its sandbox denies",
        libc::SIGTERM => "SIGTERM",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bounded_log::BoundedLog;

    fn ended(raw_status: i32, action: HostAction, shutdown: Option<&str>) -> VmExit {
        let events = Events { shutdown: shutdown.map(str::to_owned), ..Events::default() };
        let status = Ok(ExitStatus::from_raw(raw_status));
        explain(&status, action, &events, &Tail::default(), &Tail::default())
    }

    #[test]
    fn only_a_power_off_and_a_requested_stop_are_clean() {
        use HostAction::{Kill, KillHalted, None as Nothing, Quit};
        assert!(ended(0, Nothing, Some("guest-shutdown")).clean);
        assert!(ended(0, Quit, Some("host-qmp-quit")).clean);
        assert!(!ended(0, Nothing, Some("host-qmp-quit")).clean);
        assert!(!ended(0, Nothing, Some("guest-reset")).clean);
        assert!(!ended(0, Nothing, None).clean);
        assert!(!ended(9, Kill, None).clean);
        assert!(!ended(9, KillHalted, None).clean);
        assert_eq!(ended(9, Nothing, None).reason, "QEMU was killed by signal 9 (SIGKILL)");
        assert_eq!(ended(1 << 8, Nothing, None).reason, "QEMU exited with status 1");
    }

    #[test]
    fn what_the_first_program_said_before_its_end_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = BoundedLog::create(&dir.path().join("console.log")).unwrap();
        log.append(b"ERROR the scratch disk lies\n");
        log.append(
            b"[ 9.1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\n",
        );
        log.append(b"[ 9.2] Call Trace:\n");
        let events = Events { shutdown: Some("guest-reset".to_owned()), ..Events::default() };
        let status = Ok(ExitStatus::from_raw(0));
        let exit = explain(&status, HostAction::None, &events, &log.tail(), &Tail::default());
        assert!(!exit.clean);
        let why = "the guest's kernel panicked: Attempted to kill init! exitcode=0x00000100; its console \
                   before: ERROR the scratch disk lies";
        assert_eq!(exit.reason, why);
    }
}
