//! What the probe asks of a host, so that tests can describe hosts that are not here.

use std::arch::x86_64::CpuidResult;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::Path;

use super::sev::SevCommand;
use super::user::UserAccess;
use crate::Opened;
use crate::socket_access::Ownership;

/// A host that can be asked. Nothing here changes it.
pub trait Host {
    /// Reads a regular file. Any other kind (a pipe, a device, a directory) is an error, and never waited for.
    ///
    /// # Errors
    /// What the system answers, and [`io::ErrorKind::FileTooLarge`] for more than [`Part::Whole`] may have.
    fn read(&self, path: &Path, part: Part) -> io::Result<Vec<u8>>;

    /// What is at a path, after symbolic links.
    ///
    /// # Errors
    /// What the system answers.
    fn look(&self, path: &Path) -> io::Result<Entry>;

    /// The names in a directory, sorted.
    ///
    /// # Errors
    /// What the system answers, and [`io::ErrorKind::FileTooLarge`] for more than `most` names.
    fn list(&self, directory: &Path, most: usize) -> io::Result<Vec<OsString>>;

    /// The processor's CPUID instruction with subleaf 0.
    fn cpuid(&self, leaf: u32) -> CpuidResult;

    /// Opens a device, and asks it one thing.
    ///
    /// # Errors
    /// What the system or the device answers.
    fn device(&self, call: DeviceCall<'_>) -> io::Result<i32>;

    /// Runs a program without input and environment, for a few seconds at most, and returns the beginning of
    /// what it printed.
    ///
    /// # Errors
    /// If it does not start, takes too long or fails.
    fn run(&self, program: &Path, arguments: &[&str]) -> io::Result<Vec<u8>>;

    /// Whether a user, by name or as `UID:GID`, may open this, in the group of the device or socket if need be.
    ///
    /// # Errors
    /// Why it may not, or why this process cannot know.
    fn may_open(&self, user: &str, opened: Opened) -> UserAccess;

    /// Whether the kernel counts its clock as synchronised.
    ///
    /// # Errors
    /// What the system answers.
    fn clock_synchronised(&self) -> io::Result<bool>;
}

/// How much of a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it, an error if that is more than this many bytes.
    Whole(usize),
    /// Its first bytes, at most this many.
    Beginning(usize),
    /// Its last bytes, at most this many.
    End(usize),
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Bytes of a regular file.
    pub size: u64,
    /// Whether somebody may execute it.
    pub executable: bool,
    /// Bytes that are free in its file system for those who are not root.
    pub free: u64,
    /// Whose it is.
    pub ownership: Ownership,
}

/// What something in the file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A socket.
    Socket,
    /// Anything else.
    Other,
}

/// A device that pods need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// Hardware virtualization.
    Kvm,
    /// AMD's secure processor.
    Sev,
    /// vsock between host and guests.
    VhostVsock,
    /// virtio-net in the host's kernel.
    VhostNet,
    /// Taps.
    Tun,
}

impl Device {
    /// Where it is.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Device::Kvm => "/dev/kvm",
            Device::Sev => "/dev/sev",
            Device::VhostVsock => "/dev/vhost-vsock",
            Device::VhostNet => "/dev/vhost-net",
            Device::Tun => "/dev/net/tun",
        }
    }
}

/// One question to a device.
#[derive(Debug)]
pub enum DeviceCall<'a> {
    /// Whether it opens for reading and writing.
    Open(Device),
    /// `KVM_GET_API_VERSION`.
    KvmApiVersion,
    /// `KVM_CREATE_VM` of the default type; the VM is closed again.
    KvmCreateVm,
    /// `KVM_CHECK_EXTENSION` of this capability.
    KvmExtension(u32),
    /// `SEV_ISSUE_CMD` of `linux/psp-sev.h`.
    Sev {
        /// The command.
        command: SevCommand,
        /// Its reply, of exactly its size.
        reply: &'a mut [u8],
    },
}

/// Why something could not be found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Missing {
    /// It is not there.
    Absent,
    /// It is there, and this process may not see it.
    Denied,
    /// It is there and of no use.
    Broken(String),
}

impl Missing {
    pub(crate) fn of(error: &io::Error) -> Missing {
        // The kernel has the node of a device, and no driver for it.
        const NO_SUCH_DEVICE: [i32; 2] = [libc::ENODEV, libc::ENXIO];
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Missing::Absent,
            io::ErrorKind::PermissionDenied => Missing::Denied,
            _ if error.raw_os_error().is_some_and(|code| NO_SUCH_DEVICE.contains(&code)) => {
                Missing::Absent
            }
            _ => Missing::Broken(error.to_string()),
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Missing::Absent => formatter.write_str("is absent"),
            Missing::Denied => formatter.write_str("may not be opened by this user"),
            Missing::Broken(problem) => write!(formatter, "is of no use: {problem}"),
        }
    }
}

/// A file of text; bytes that are no UTF-8 are replaced.
pub(crate) fn text(host: &dyn Host, path: &str, part: Part) -> Result<String, Missing> {
    let bytes = host.read(Path::new(path), part).map_err(|error| Missing::of(&error))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A file of sysfs or procfs with one short line.
pub(crate) fn line(host: &dyn Host, path: &str) -> Result<String, Missing> {
    const MOST: usize = 4096;
    Ok(text(host, path, Part::Whole(MOST))?.trim().to_owned())
}
