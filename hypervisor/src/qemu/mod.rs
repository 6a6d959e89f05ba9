//! The QEMU backend.

mod check;
mod command_line;
mod exit;
mod platform;
mod pod_machine;
mod process;
mod qmp;
mod vm;
mod volume;
mod vsock;

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use async_trait::async_trait;
use rustix::process::Gid;

use crate::accelerator::HostCapabilities;
use crate::bounded_log::BoundedLog;
use crate::host_clock;
use crate::memory_encryption::MemoryEncryption;
use crate::socket_access::group_for;
use crate::{
    Accelerator, AcceleratorChoice, HostUser, How, Hypervisor, KvmProbe, LaunchError, Opened, Vm,
    VmConfig,
};
pub use check::longest_command_line;
use platform::PLAIN_FIRMWARE;
use pod_machine::{PodMachine, QemuEnds, agent_socket};
use process::{QemuProcess, host};
use vm::QemuVm;

/// Where QEMU and its data are.
#[derive(Debug, Clone)]
pub struct QemuPaths {
    /// The program `qemu-system-x86_64`.
    pub binary: PathBuf,
    /// Directories with QEMU's firmware (`qboot.rom`, `pvh.bin` ...), in the order of search; empty for
    /// those QEMU was built with.
    pub firmware_dirs: Vec<PathBuf>,
}

/// Runs VMs with QEMU: the q35 machine with virtio devices and nothing else.
#[derive(Debug)]
pub struct QemuBackend {
    paths: QemuPaths,
    version: QemuVersion,
    host: HostCapabilities,
    user: Option<HostUser>,
}

/// Version of a QEMU program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct QemuVersion {
    /// As in 10 of 10.0.2.
    pub major: u32,
    /// As in 0 of 10.0.2.
    pub minor: u32,
}

/// Why QEMU cannot be used on this host.
#[derive(Debug, thiserror::Error)]
pub enum QemuError {
    /// The program does not run.
    #[error("failed to run {binary} --version: {source}; is QEMU installed there?", binary = .binary.display())]
    Unrunnable {
        /// The program.
        binary: PathBuf,
        /// What the host answered.
        source: io::Error,
    },
    /// The program runs but does not tell its version as QEMU does.
    #[error("{binary} --version does not answer like QEMU: {answer:?}", binary = .binary.display())]
    NotQemu {
        /// The program.
        binary: PathBuf,
        /// The beginning of what it said.
        answer: String,
    },
    /// Earlier versions crash now and then when they emulate current kernels, and know no SEV-SNP.
    #[error("{binary} is QEMU {found}; version {needed} or later is needed", binary = .binary.display(), needed = QemuVersion::LEAST)]
    TooOld {
        /// The program.
        binary: PathBuf,
        /// Its version.
        found: QemuVersion,
    },
    /// KVM was asked for and cannot work.
    #[error(
        "KVM cannot be used: {why}; choose the accelerator \"auto\" or \"tcg\" to run with slow software emulation"
    )]
    KvmUnusable {
        /// What stands against it.
        why: String,
    },
}

/// Where Debian's and most other builds of QEMU keep their own data.
const BUILT_IN_FIRMWARE_DIR: &str = "/usr/share/qemu";

impl QemuPaths {
    /// The firmware that VMs start with unless they are confidential: the first file of its name in the directories.
    ///
    /// # Errors
    /// If no directory has it.
    pub fn firmware(&self) -> io::Result<PathBuf> {
        self.firmware_places().into_iter().find(|path| path.is_file()).ok_or_else(|| {
            let problem = format!(
                "no {PLAIN_FIRMWARE} in {:?} or {BUILT_IN_FIRMWARE_DIR}",
                self.firmware_dirs
            );
            io::Error::new(io::ErrorKind::NotFound, problem)
        })
    }

    /// Where that firmware is looked for, in this order.
    #[must_use]
    pub fn firmware_places(&self) -> Vec<PathBuf> {
        let own = Path::new(BUILT_IN_FIRMWARE_DIR);
        let dirs = self.firmware_dirs.iter().map(PathBuf::as_path).chain([own]);
        dirs.map(|dir| dir.join(PLAIN_FIRMWARE)).collect()
    }
}

impl QemuVersion {
    /// The earliest version that is used.
    pub const LEAST: QemuVersion = QemuVersion { major: 9, minor: 1 };

    /// Reads the first line of `--version`: `QEMU emulator version 10.0.2 (...)`.
    fn parse(answer: &str) -> Option<QemuVersion> {
        let version = answer.strip_prefix("QEMU emulator version ")?;
        let version = version.split_whitespace().next()?;
        let mut numbers = version.split('.').map(str::parse);
        let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
            return None;
        };
        Some(QemuVersion { major, minor })
    }
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

impl QemuBackend {
    /// Checks QEMU's version and settles the accelerator. Software emulation that was not asked for is
    /// logged as a warning with its cause.
    pub fn new(paths: QemuPaths, accelerator: Accelerator) -> Result<QemuBackend, QemuError> {
        let version = usable_version(&paths)?;
        let choice = accelerator.choose(&KvmProbe::of_this_host())?;
        match &choice {
            AcceleratorChoice::Kvm { why } => tracing::info!(why, "VMs run with KVM"),
            AcceleratorChoice::Tcg { why } if accelerator == Accelerator::Auto => {
                tracing::warn!(
                    why,
                    "VMs run with slow software emulation and are not isolated by hardware"
                );
            }
            AcceleratorChoice::Tcg { why } => {
                tracing::info!(why, "VMs run with software emulation");
            }
        }
        let host = HostCapabilities {
            accelerator: choice,
            memory_encryption: MemoryEncryption::of_this_host(),
        };
        Ok(QemuBackend { paths, version, host, user: None })
    }

    /// A backend that takes the caller's word for what the host can do, and asks only QEMU for its version.
    ///
    /// It is for tests that run QEMU on something that answers like a platform this host is not. A wrong word
    /// makes no guest weaker: QEMU and the platform refuse what they cannot do, and what a guest was
    /// launched as is for its owner to see in the hardware's reports.
    pub fn on_host(paths: QemuPaths, host: HostCapabilities) -> Result<QemuBackend, QemuError> {
        let version = usable_version(&paths)?;
        Ok(QemuBackend { paths, version, host, user: None })
    }

    /// Runs VMs as this user of the host instead of the caller's, who must be root. The user must be able to
    /// read QEMU, its firmware and the guest image; everything else is inherited, or reached by the groups
    /// that devices and the quote generation service's socket are of (`/dev/kvm`, `/dev/sev`). What it may not
    /// open is an error of the launch, before there is a process.
    #[must_use]
    pub fn run_as(self, user: HostUser) -> QemuBackend {
        QemuBackend { user: Some(user), ..self }
    }

    /// The groups in which QEMU reaches the devices of its platform, and the service of its quotes.
    fn groups(&self, machine: &PodMachine) -> Vec<Gid> {
        let user = self.user.unwrap_or_else(HostUser::of_this_process);
        let devices =
            machine.devices(&self.host).into_iter().filter_map(|path| user.group_of(path));
        let mut groups: Vec<_> = match self.user {
            Some(_) => devices.collect(),
            None => Vec::new(),
        };
        groups.extend(machine.quote_socket().and_then(|socket| group_for(socket, user)));
        groups
    }

    /// Whether the user may open what QEMU will open by its name.
    fn check_user(&self, machine: &PodMachine, groups: &[Gid]) -> Result<(), LaunchError> {
        let Some(user) = self.user else { return Ok(()) };
        let mut opened = vec![Opened { path: self.paths.binary.clone(), how: How::Run }];
        let firmware = machine.firmware().or_else(|| self.paths.firmware().ok());
        let files = firmware.into_iter().chain(machine.boot_files());
        opened.extend(files.map(|path| Opened { path, how: How::Read }));
        let devices = machine.devices(&self.host).into_iter().map(|path| (path, How::Use));
        // Where the service is absent, guests run without quotes, as for any user.
        let socket = machine.quote_socket().filter(|socket| socket.exists());
        let used = devices.chain(socket.map(|path| (path, How::Connect)));
        opened.extend(used.map(|(path, how)| Opened { path: path.to_owned(), how }));
        user.may_open(groups.to_vec(), &opened)?;
        Ok(())
    }

    /// The accelerator that is used, and why.
    #[must_use]
    pub fn accelerator(&self) -> &AcceleratorChoice {
        &self.host.accelerator
    }

    /// QEMU's version.
    #[must_use]
    pub fn version(&self) -> QemuVersion {
        self.version
    }
}

#[async_trait]
impl Hypervisor for QemuBackend {
    async fn launch(&self, config: VmConfig) -> Result<Arc<dyn Vm>, LaunchError> {
        let mut machine = PodMachine::check(config, &self.host, self.version)?;
        let groups = self.groups(&machine);
        self.check_user(&machine, &groups)?;
        let run_dir = machine.run_dir().to_owned();
        let create_log = |name| {
            BoundedLog::create(&run_dir.join(name))
                .map_err(|error| host("create a log file", error))
        };
        let console_log = create_log("console.log")?;
        let stderr_log = create_log("qemu.log")?;
        let pair = || UnixStream::pair().map_err(|error| host("make a socket pair", error));
        let (console, console_end) = pair()?;
        let (qmp, qmp_end) = pair()?;
        let transport = vsock::transport(&run_dir)?;

        let netns = machine.take_netns();
        let user = self.user;
        let channel = machine.agent_channel(&transport);
        let ends = QemuEnds { console: console_end.into(), qmp: qmp_end.into() };
        let empty_disks = machine.empty_disks();
        let counter_khz = match machine.is_told_its_counter() {
            true => host_clock::kilohertz().await,
            false => None,
        };
        let firmware_dirs = &self.paths.firmware_dirs;
        let command_line = machine.command_line(firmware_dirs, transport, ends, counter_khz);
        let logs = [console_log.tail(), stderr_log.tail()];
        let binary = self.paths.binary.clone();
        let process = QemuProcess {
            binary,
            command_line,
            netns,
            user,
            groups,
            console,
            console_log,
            stderr_log,
        };
        let vm = QemuVm::launch(process, qmp, channel, logs, agent_socket(&run_dir)).await?;
        Ok(Arc::new(vm.with_empty_disks(empty_disks)))
    }
}

fn usable_version(paths: &QemuPaths) -> Result<QemuVersion, QemuError> {
    let version = ask_version(paths)?;
    if version < QemuVersion::LEAST {
        return Err(QemuError::TooOld { binary: paths.binary.clone(), found: version });
    }
    Ok(version)
}

fn ask_version(paths: &QemuPaths) -> Result<QemuVersion, QemuError> {
    const QUOTED: usize = 100;
    let mut command = Command::new(&paths.binary);
    command.arg("--version").env_clear().stdin(Stdio::null());
    let binary = paths.binary.clone();
    match command.output() {
        Err(source) => Err(QemuError::Unrunnable { binary, source }),
        Ok(output) => {
            let answer = String::from_utf8_lossy(&output.stdout);
            QemuVersion::parse(&answer).ok_or_else(|| {
                let said = if answer.trim().is_empty() {
                    String::from_utf8_lossy(&output.stderr)
                } else {
                    answer
                };
                QemuError::NotQemu { binary, answer: said.trim().chars().take(QUOTED).collect() }
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared() {
        let parse = |answer| QemuVersion::parse(answer);
        let debian =
            parse("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright").unwrap();
        assert_eq!(debian, QemuVersion { major: 10, minor: 0 });
        assert!(debian > QemuVersion::LEAST);
        assert!(parse("QEMU emulator version 7.2.19").unwrap() < QemuVersion::LEAST);
        assert!(parse("QEMU emulator version 9.1.0").unwrap() >= QemuVersion::LEAST);
        assert_eq!(parse("QEMU emulator version ten"), None);
        assert_eq!(parse("bash 5.2"), None);
    }

    #[test]
    fn the_firmware_is_the_first_of_its_name() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let firmware_dirs: Vec<PathBuf> = dirs.iter().map(|dir| dir.path().to_owned()).collect();
        let paths = QemuPaths { binary: "qemu".into(), firmware_dirs };
        std::fs::write(dirs[1].path().join("qboot.rom"), b"second").unwrap();
        assert_eq!(paths.firmware().unwrap(), dirs[1].path().join("qboot.rom"));
        std::fs::write(dirs[0].path().join("qboot.rom"), b"first").unwrap();
        assert_eq!(paths.firmware().unwrap(), dirs[0].path().join("qboot.rom"));
    }

    #[test]
    fn a_program_that_is_not_there_or_not_qemu_is_named() {
        let open = |binary: &str| {
            let paths = QemuPaths { binary: binary.into(), firmware_dirs: vec![] };
            QemuBackend::new(paths, Accelerator::Auto).unwrap_err().to_string()
        };
        assert!(open("/nowhere/qemu").contains("failed to run /nowhere/qemu --version"));
        assert!(open("/bin/true").contains("does not answer like QEMU"));
    }
}
