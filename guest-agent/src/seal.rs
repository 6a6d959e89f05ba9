//! Closes the guest, as the last step before anything is served.
//!
//! Four things cannot be undone until the guest ends, by nobody: `modules_disabled`, `kexec_load_disabled`,
//! `unprivileged_bpf_disabled` and lockdown. The read-only root, the end of probing and the other settings
//! stand against requests and ordinary containers; whoever has become root outside of a container can turn
//! them back.

use std::fs;
use std::io;

use nacre_protocol::start_report::HOST_VISIBLE;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount_remount};

use crate::devices::{self, DeviceError};
use crate::lockdown::Lockdown;
use crate::modules::Modules;

/// Settings of the kernel, relative to `/proc/sys`: Documentation/admin-guide/sysctl/kernel.rst, net.rst and
/// fs.rst. None takes something from an ordinary pod.
const SETTINGS: [(&str, &str); 14] = [
    // Addresses and messages of the kernel help who attacks it.
    ("kernel/kptr_restrict", "2"),
    ("kernel/dmesg_restrict", "1"),
    ("kernel/perf_event_paranoid", "3"),
    ("kernel/unprivileged_bpf_disabled", "1"),
    ("net/core/bpf_jit_harden", "2"),
    ("kernel/yama/ptrace_scope", "1"),
    ("fs/protected_symlinks", "1"),
    ("fs/protected_hardlinks", "1"),
    // No other kernel, and no programs or line disciplines that the kernel would ask for by itself.
    ("kernel/kexec_load_disabled", "1"),
    ("kernel/modprobe", ""),
    ("dev/tty/ldisc_autoload", "0"),
    // The host may press these keys on the console.
    ("kernel/sysrq", "0"),
    // An inconsistent kernel ends, with all that it holds. The command line says so too, for the start.
    ("kernel/panic_on_oops", "1"),
    ("kernel/panic", "-1"),
];

/// Why the guest could not be closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SealError {
    /// A setting was not taken.
    #[error("failed to set {setting} to {value:?}: {source}")]
    Setting {
        /// Path beneath `/proc/sys`.
        setting: &'static str,
        /// What was written.
        value: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Drivers could still take devices.
    #[error(transparent)]
    Devices(#[from] DeviceError),
    /// Modules could still be loaded.
    #[error("failed to end the loading of kernel modules: {0}")]
    Modules(io::Error),
    /// Root could still reach into the kernel.
    #[error("failed to lock the kernel down: {0}")]
    Lockdown(io::Error),
    /// The agent's own files could still be written.
    #[error("failed to make the root file system read-only: {0}")]
    Root(io::Error),
    /// The kernel said yes before, and does not keep to it.
    #[error("this guest is not closed: {what} still succeeds, or fails otherwise than it should")]
    Open {
        /// What was tried.
        what: &'static str,
    },
}

/// Proof that the guest is closed. Nobody is served without.
#[derive(Debug)]
pub(crate) struct Sealed(());

/// Closes the guest. `modules` have all been loaded.
pub(crate) fn seal(modules: Modules) -> Result<Sealed, SealError> {
    for (setting, value) in SETTINGS {
        // An empty write would not reach the kernel.
        fs::write(format!("/proc/sys/{setting}"), format!("{value}\n"))
            .map_err(|source| SealError::Setting { setting, value, source })?;
    }
    devices::stop_probing(&modules.loaded())?;
    modules.close().map_err(SealError::Modules)?;
    Lockdown::raise_to_confidentiality().map_err(SealError::Lockdown)?;
    // The file system itself and not only this mount of it: no other mount can write either.
    mount_remount("/", MountFlags::RDONLY, c"").map_err(|e| SealError::Root(e.into()))?;
    try_what_must_fail()?;
    tracing::info!(target: HOST_VISIBLE, "closed: no modules, no further devices, kernel locked down, root read-only");
    Ok(Sealed(()))
}

/// Root's ways into the kernel and the agent's files, each tried once.
fn try_what_must_fail() -> Result<(), SealError> {
    let memory = fs::File::open("/dev/mem").map(|_| ()).map_err(|e| e.raw_os_error());
    let module = rustix::system::init_module(&[], c"").map_err(|e| Some(e.raw_os_error()));
    let file = fs::File::create("/written").map(|_| ()).map_err(|e| e.raw_os_error());
    let tries = [
        ("opening /dev/mem", memory, Errno::PERM),
        ("loading a module", module, Errno::PERM),
        ("writing to the root file system", file, Errno::ROFS),
    ];
    for (what, outcome, expected) in tries {
        if outcome != Err(Some(expected.raw_os_error())) {
            return Err(SealError::Open { what });
        }
    }
    Ok(())
}
