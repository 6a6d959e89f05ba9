//! What the virtual machine of a pod is made of.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::QemuVersion;
use super::check::{check, open_netns};
use super::command_line::{
    Chardev, CommandLine, ConsolePort, EmptyDisk, FdSet, Firmware, FirmwareDir, Initrd, Kernel,
    KernelCommandLine, Machine, MemoryBackend, MemorySize, Name, NoDisplay, Processors, QmpMonitor,
    RawFile, Sandbox, ScratchFile, SerialPort, SnpGuest, TapNetdev, TdxGuest, VhostVsock,
    VirtioBlk, VirtioNet, VirtioSerial, Without,
};
use super::platform::Platform;
use crate::accelerator::HostCapabilities;
use crate::{
    AGENT_SERIAL_PORT, AGENT_VSOCK_PORT, AcceleratorChoice, AgentChannel, DiskImage, LaunchError,
    QuoteService, TdxLaunch, VmConfig,
};

/// Ports of the virtio-serial device that every VM has.
const CONSOLE_AND_AGENT: usize = 2;

/// What the machine and its parts call each other.
const MEMORY: &str = "memory";
const TEE: &str = "tee";
/// Tells a guest's kernel how many kHz its time stamp counter counts.
pub(super) const COUNTER_PARAMETER: &str = "tsc_early_khz=";

/// A configuration that was checked: everything in it can be given to QEMU.
pub(super) struct PodMachine {
    config: VmConfig,
    netns: Option<File>,
    /// The disks that are only read, in their order. QEMU inherits them: its user need not be able to
    /// open them.
    read_only_disks: Vec<File>,
    platform: Platform,
}

/// How the guest's agent will be reached.
pub(super) enum AgentTransport {
    /// A bound socket, at which nobody listens yet.
    VirtioSerial {
        socket: OwnedFd,
    },
    Vsock {
        cid: u32,
        vhost: OwnedFd,
    },
}

/// QEMU's ends of the connections that it inherits.
pub(super) struct QemuEnds {
    pub(super) console: OwnedFd,
    pub(super) qmp: OwnedFd,
}

impl PodMachine {
    /// Checks `config`; an error names the field and what to do, or what this host lacks.
    pub(super) fn check(
        config: VmConfig,
        host: &HostCapabilities,
        qemu: QemuVersion,
    ) -> Result<PodMachine, LaunchError> {
        // What no setting can change is told first.
        let platform = Platform::settle(config.confidential.clone(), host, qemu)?;
        check(&config)?;
        let netns = config.netns.as_deref().map(open_netns).transpose()?;
        let read_only_disks = open_read_only_disks(&config)?;
        Ok(PodMachine { config, netns, read_only_disks, platform })
    }

    pub(super) fn take_netns(&mut self) -> Option<File> {
        self.netns.take()
    }

    /// The Unix socket to which QEMU will connect for each quote of the guest's.
    pub(super) fn quote_socket(&self) -> Option<&Path> {
        match &self.platform {
            Platform::Tdx(TdxLaunch {
                quote_generation: Some(QuoteService::Unix(path)), ..
            }) => Some(path),
            Platform::Emulated
            | Platform::Virtualized
            | Platform::Snp { .. }
            | Platform::Tdx(_) => None,
        }
    }

    /// The devices that QEMU opens by their names.
    pub(super) fn devices(&self, host: &HostCapabilities) -> Vec<&'static Path> {
        let kvm = matches!(host.accelerator, AcceleratorChoice::Kvm { .. });
        let sev = matches!(self.platform, Platform::Snp { .. });
        let devices = [(kvm, "/dev/kvm"), (sev, "/dev/sev")];
        devices.into_iter().filter(|(used, _)| *used).map(|(_, path)| Path::new(path)).collect()
    }

    /// The firmware that QEMU opens by a path; `None`: it looks for its own.
    pub(super) fn firmware(&self) -> Option<PathBuf> {
        match self.platform.firmware() {
            Firmware::File(path) => Some(path),
            Firmware::Named(_) => None,
        }
    }

    /// What else is booted, and opened by its name.
    pub(super) fn boot_files(&self) -> [PathBuf; 2] {
        [self.config.kernel.clone(), self.config.initrd.clone()]
    }

    /// Whether the guest has to be told how fast its time stamp counter counts ([`crate::host_clock`]).
    pub(super) fn is_told_its_counter(&self) -> bool {
        matches!(self.platform, Platform::Emulated)
    }

    pub(super) fn run_dir(&self) -> &Path {
        &self.config.run_dir
    }

    /// Disks that wait for a volume: serial number and QEMU's name of the node.
    pub(super) fn empty_disks(&self) -> Vec<(String, String)> {
        let disks = self.config.disks.iter().enumerate();
        let empty = disks.filter(|(_, disk)| matches!(disk.image, DiskImage::Empty));
        empty.map(|(index, disk)| (disk.serial.clone(), disk_node(index))).collect()
    }

    pub(super) fn agent_channel(&self, transport: &AgentTransport) -> AgentChannel {
        match transport {
            AgentTransport::VirtioSerial { .. } => {
                AgentChannel::Unix(agent_socket(&self.config.run_dir))
            }
            AgentTransport::Vsock { cid, .. } => {
                AgentChannel::Vsock { cid: *cid, port: AGENT_VSOCK_PORT }
            }
        }
    }

    /// The whole machine as QEMU's command line.
    pub(super) fn command_line(
        self,
        firmware_dirs: &[PathBuf],
        transport: AgentTransport,
        ends: QemuEnds,
        counter_khz: Option<u32>,
    ) -> CommandLine {
        let PodMachine { config, platform, read_only_disks, .. } = self;
        let confidential = platform.is_confidential();
        let memory = platform.device_memory();
        let mut line = CommandLine::default();
        line.add(&Name(config.id))
            .add(&Without::DefaultDevices)
            .add(&Without::UserConfig)
            .add(&Without::Reboot)
            .add(&NoDisplay)
            .add(&Sandbox);
        for dir in firmware_dirs {
            line.add(&FirmwareDir(dir.clone()));
        }
        let machine = Machine {
            memory_backend: MEMORY,
            confidential: confidential.then_some(TEE),
            interval_timer: counter_khz.is_none(),
        };
        line.add(&machine).add(&MemoryBackend {
            id: MEMORY,
            size_mib: config.memory_mib,
            shared: confidential,
        });
        match &platform {
            Platform::Emulated | Platform::Virtualized => {}
            Platform::Snp { launch, host } => {
                line.add(&SnpGuest { id: TEE, host: *host, launch });
            }
            Platform::Tdx(launch) => {
                line.add(&TdxGuest { id: TEE, launch });
            }
        }
        line.add(&MemorySize(config.memory_mib))
            .add(&platform.accel())
            .add(&platform.cpu())
            .add(&Processors(config.vcpus))
            .add(&platform.firmware());

        let qmp = line.inherit(ends.qmp);
        line.add(&Chardev::Connected { id: "qmp".into(), fd: qmp })
            .add(&QmpMonitor { chardev: "qmp" });
        let console = line.inherit(ends.console);
        line.add(&VirtioSerial { ports: CONSOLE_AND_AGENT + config.serial_ports.len(), memory })
            .add(&Chardev::Connected { id: "console".into(), fd: console })
            .add(&ConsolePort { chardev: "console" });
        match transport {
            AgentTransport::VirtioSerial { socket } => {
                let fd = line.inherit(socket);
                line.add(&Chardev::Listening { id: "agent", fd })
                    .add(&SerialPort { chardev: "agent".into(), name: AGENT_SERIAL_PORT.into() });
            }
            AgentTransport::Vsock { cid, vhost } => {
                let fd = line.inherit(vhost);
                line.add(&VhostVsock { guest_cid: cid, fd, memory });
            }
        }
        for (index, port) in config.serial_ports.into_iter().enumerate() {
            let chardev = format!("port{index}");
            let fd = line.inherit(port.socket.into());
            line.add(&Chardev::Connected { id: chardev.clone(), fd })
                .add(&SerialPort { chardev, name: port.name });
        }
        let mut read_only_disks = read_only_disks.into_iter();
        for (index, disk) in config.disks.into_iter().enumerate() {
            let node = disk_node(index);
            match disk.image {
                DiskImage::ReadOnly(_) => {
                    let file = read_only_disks.next().expect("each was opened by the check");
                    let fd = line.inherit(file.into());
                    line.add(&FdSet { set: index, fd })
                        .add(&RawFile { node: node.clone(), set: index })
                }
                DiskImage::Scratch(file) => {
                    let fd = line.inherit(file);
                    line.add(&FdSet { set: index, fd })
                        .add(&ScratchFile { node: node.clone(), set: index })
                }
                DiskImage::Empty => line.add(&EmptyDisk { node: node.clone() }),
            };
            line.add(&VirtioBlk { node, serial: disk.serial, memory });
        }
        for (index, nic) in config.nics.into_iter().enumerate() {
            let id = format!("net{index}");
            let fd = line.inherit(nic.tap);
            line.add(&TapNetdev { id: id.clone(), fd }).add(&VirtioNet {
                netdev: id,
                mac: nic.mac,
                mtu: nic.mtu,
                memory,
            });
        }
        line.add(&Kernel(config.kernel)).add(&Initrd(config.initrd)).add(&KernelCommandLine(
            match counter_khz {
                None => config.command_line,
                Some(khz) => format!("{COUNTER_PARAMETER}{khz} {}", config.command_line),
            },
        ));
        line
    }
}

fn open_read_only_disks(config: &VmConfig) -> Result<Vec<File>, LaunchError> {
    let paths = config.disks.iter().filter_map(|disk| match &disk.image {
        DiskImage::ReadOnly(path) => Some(path),
        DiskImage::Scratch(_) | DiskImage::Empty => None,
    });
    let open = |path: &PathBuf| {
        File::open(path).map_err(|source| {
            let doing = format!("open the disk {}", path.display());
            LaunchError::Host { doing, source }
        })
    };
    paths.map(open).collect()
}

fn disk_node(index: usize) -> String {
    format!("disk{index}")
}

/// The socket behind the agent's virtio-serial port.
pub(super) fn agent_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("agent.sock")
}
