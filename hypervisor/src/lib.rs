//! Launches, watches and stops the virtual machine of one pod.
//!
//! A [`Hypervisor`] turns a [`VmConfig`] into a running [`Vm`]. [`QemuBackend`] is the backend that
//! runs QEMU, with KVM where the host has hardware virtualization and with software emulation
//! elsewhere.
//!
//! This crate runs on the host. It distrusts the guest: a hostile guest may fill its console, may
//! send anything through its devices, and may have taken QEMU over. So every byte that comes from
//! QEMU (console, standard error, QMP) is bounded in memory and on disk and is shown to people
//! without control characters. The guest's owner does not trust this crate either: what it promises
//! (which kernel, how much memory) is only believed once the guest is attested.
//!
//! A VM never outlives the process that launched it, nor the [`Vm`] value it was launched into.
//! Nothing here looks at what runs in the guest, talks to the guest agent, or changes the host's
//! network.

mod accelerator;
mod bounded_log;
mod confidential;
mod host_clock;
mod host_user;
mod memory_encryption;
pub mod probe;
mod qemu;
mod socket_access;
mod sys;
mod system_calls;
mod user_access;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use accelerator::{Accelerator, AcceleratorChoice, HostCapabilities, KvmProbe};
pub use confidential::{
    Confidential, GuestPolicy, IdBlock, IdBlockError, QuoteService, SnpCpu, SnpLaunch,
    TdAttributes, TdxLaunch, UnknownCpu, UnknownQuoteService,
};
pub use host_user::{HostUser, UnknownUser};
pub use memory_encryption::MemoryEncryption;
pub use qemu::{QemuBackend, QemuError, QemuPaths, QemuVersion, longest_command_line};
pub use user_access::{How, Opened, UserError};

/// Name of the virtio-serial port that carries the agent channel where the host has no vhost-vsock.
/// The guest agent looks for it by this name.
pub const AGENT_SERIAL_PORT: &str = "org.nacre.agent.0";

/// vsock port on which the guest agent listens.
pub const AGENT_VSOCK_PORT: u32 = 1024;

/// The least memory of a confidential guest, in MiB: its firmware, and the memory that it shares with its
/// devices (64 MiB at least), leave less for its kernel.
pub const LEAST_CONFIDENTIAL_MIB: u32 = 256;

/// Something that can run virtual machines.
#[async_trait]
pub trait Hypervisor: Send + Sync {
    /// Launches one VM and returns as soon as its processors run; the guest is still booting then.
    ///
    /// The VM is killed when the last reference to the returned [`Vm`] goes away. Must be called
    /// within a tokio runtime with I/O and time enabled. When it fails nothing is left but the log
    /// files in [`VmConfig::run_dir`].
    async fn launch(&self, config: VmConfig) -> Result<Arc<dyn Vm>, LaunchError>;
}

/// A virtual machine that was launched.
#[async_trait]
pub trait Vm: Send + Sync {
    /// Process id of the VM on the host. Valid until [`Vm::wait`] returns.
    fn pid(&self) -> u32;

    /// Where the host reaches the guest's agent.
    fn agent_channel(&self) -> &AgentChannel;

    /// Waits until the VM is gone. Any number of callers may wait, also after the end.
    async fn wait(&self) -> VmExit;

    /// Waits up to `grace` for a VM that was asked to power off, then ends it: politely, and by
    /// SIGKILL if that does not help. A `grace` of zero does not wait. Always returns with the VM gone.
    async fn stop(&self, grace: Duration) -> VmExit;

    /// Puts a volume into a disk that was [`DiskImage::Empty`], and tells the guest its size. What the guest asks to
    /// be on stable storage is, once it is told so. The volume stays until the VM's end. What fails is undone, or
    /// [`InsertError::Lost`].
    async fn insert(&self, serial: &str, volume: Volume) -> Result<(), InsertError>;

    /// The last 2 KiB of the guest's console, without control characters: text written by
    /// the guest, for error messages and people only.
    fn console_tail(&self) -> String;
}

/// One VM to launch.
#[derive(Debug)]
pub struct VmConfig {
    /// Name of the VM, shown in the host's process list: 1 to 128 characters of `A-Z a-z 0-9 . _ -`.
    pub id: String,
    /// Directory for sockets and logs. It must exist, belong to the caller alone (mode 0700) and have
    /// a path short enough for a Unix socket beneath it. `console.log` (what the guest wrote) and the
    /// backend's own log appear here and are kept, at most 256 KiB each.
    pub run_dir: PathBuf,
    /// Guest kernel: an uncompressed ELF with a PVH entry point, or a bzImage; for a confidential guest a
    /// bzImage, which is what UEFI firmware starts.
    pub kernel: PathBuf,
    /// Initial RAM disk of the guest.
    pub initrd: PathBuf,
    /// The guest kernel's parameters, whole, as they are measured: printable ASCII, at most
    /// [`longest_command_line`] bytes.
    pub command_line: String,
    /// Virtual processors, 1 to 255.
    pub vcpus: u32,
    /// Guest memory in MiB, at least 128, or [`LEAST_CONFIDENTIAL_MIB`] for a confidential guest.
    pub memory_mib: u32,
    /// What makes the guest confidential; `None` for one that its host can look into.
    pub confidential: Option<Confidential>,
    /// Disks, in the order in which the guest finds them.
    pub disks: Vec<Disk>,
    /// Network interfaces, in the order in which the guest numbers them.
    pub nics: Vec<Nic>,
    /// Byte streams between host and guest beside the agent's.
    pub serial_ports: Vec<SerialPort>,
    /// Network namespace to run the VM's process in, such as `/run/netns/NAME`; `None` for the caller's.
    pub netns: Option<PathBuf>,
}

/// A disk of the guest's.
#[derive(Debug)]
pub struct Disk {
    /// Serial number by which the guest finds it: 1 to 20 characters of `A-Z a-z 0-9 . _ -`, each
    /// disk's own.
    pub serial: String,
    /// Its contents as they are: a file of a multiple of 512 bytes.
    pub image: DiskImage,
}

/// The file behind a disk.
#[derive(Debug)]
pub enum DiskImage {
    /// A file that this process may read; the guest may not write it.
    ReadOnly(PathBuf),
    /// An open file, which may have no name any more, that the guest may read and write. Nothing of it is
    /// to be kept: what the guest asks to be on stable storage may be lost with the host.
    Scratch(OwnedFd),
    /// Nothing yet: a disk of no size, until [`Vm::insert`] puts a volume there. Machines have no port into which
    /// a disk could be plugged later, and guests take none.
    Empty,
}

/// A disk of somebody else's that outlives the VM.
#[derive(Debug)]
pub struct Volume {
    /// The open file or block device, to be read and written.
    pub file: OwnedFd,
    /// Which of both it is.
    pub kind: VolumeKind,
    /// Its size in bytes, a multiple of 512.
    pub size: u64,
}

/// What a [`Volume`] is on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeKind {
    /// A file.
    File,
    /// A block device.
    BlockDevice,
}

/// A virtio-serial port: one byte stream between guest and host.
#[derive(Debug)]
pub struct SerialPort {
    /// Name by which the guest finds it: 1 to 64 characters of `A-Z a-z 0-9 . _ -`, each port's own.
    pub name: String,
    /// The VM's end of a connected stream socket. Whoever holds the other end serves the guest; bytes
    /// that the guest sends wait in the socket's buffer, then in the guest.
    pub socket: UnixStream,
}

/// A network interface of a VM, connected to a tap device.
#[derive(Debug)]
pub struct Nic {
    /// The open tap device (from `/dev/net/tun`, with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`).
    pub tap: OwnedFd,
    /// Hardware address that the guest sees.
    pub mac: [u8; 6],
    /// MTU in bytes that the guest is told, 68 to 65535.
    pub mtu: u16,
}

/// Where the host reaches the guest's agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentChannel {
    /// A Unix socket of the VM's process; bytes sent early are held until the guest opens the port
    /// [`AGENT_SERIAL_PORT`]. It serves one connection at a time.
    Unix(PathBuf),
    /// A vsock address.
    Vsock {
        /// Context id of the guest.
        cid: u32,
        /// Port the agent listens on.
        port: u32,
    },
}

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmExit {
    /// For people, such as "QEMU was killed by signal 9 (SIGKILL)". May quote the guest's console.
    pub reason: String,
    /// Whether the guest powered off by itself or was stopped on request.
    pub clean: bool,
}

/// Why a VM could not be launched. Each message names the field and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A field of [`VmConfig`] cannot be used.
    #[error("VM setting `{field}` {problem}")]
    Config {
        /// The field of [`VmConfig`].
        field: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The host refused something that a VM needs.
    #[error("failed to {doing}: {source}")]
    Host {
        /// What was being done.
        doing: String,
        /// What the host answered.
        source: std::io::Error,
    },
    /// QEMU cannot run as the user that was chosen.
    #[error(transparent)]
    User(#[from] UserError),
    /// The VM's process ended before the guest's processors ran.
    #[error("the VM ended while it was being launched: {reason}")]
    Ended {
        /// The reason, as in [`VmExit::reason`].
        reason: String,
    },
    /// Confidential guests of this kind cannot run here. Nothing else is launched in their place.
    #[error("this host cannot launch {tee} guests: {problem}")]
    Unsupported {
        /// "SEV-SNP" or "TDX".
        tee: &'static str,
        /// What is missing and what to do.
        problem: String,
    },
    /// The VM's process runs, but cannot be controlled as documented.
    #[error(
        "the VM's process started but its control channel failed: {0}; see its log in the VM's run \
         directory"
    )]
    Control(String),
}

/// Why a volume was not put into a VM.
#[derive(Debug, thiserror::Error)]
pub enum InsertError {
    /// No such disk, or it has contents.
    #[error("the VM has no empty disk {serial}")]
    NoPlace {
        /// Serial number that was asked for.
        serial: String,
    },
    /// The VM's process refused a step. The disk is empty as before, and may be tried again.
    #[error("failed to {doing}: {problem}")]
    Refused {
        /// The step.
        doing: &'static str,
        /// What it said.
        problem: String,
    },
    /// A step failed that cannot be undone: the disk is of no use any more, and the VM's process may hold the volume
    /// until it ends.
    #[error("failed to {doing}: {problem}; the disk is lost to this VM")]
    Lost {
        /// The step.
        doing: &'static str,
        /// What it said.
        problem: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_agent_looks_where_this_crate_puts_the_channel() {
        assert_eq!(AGENT_SERIAL_PORT, nacre_protocol::channel::SERIAL_PORT_NAME);
        assert_eq!(AGENT_VSOCK_PORT, nacre_protocol::channel::VSOCK_PORT);
    }
}
