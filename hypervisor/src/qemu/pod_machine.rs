//! What the virtual machine of a pod is made of.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use super::command_line::{
    Accel, Chardev, CommandLine, ConsolePort, Cpu, FdSet, Firmware, FirmwareDir, Initrd, Kernel,
    KernelCommandLine, Machine, MemoryBackend, MemorySize, Name, NoDisplay, Processors, QmpMonitor,
    RawFile, Sandbox, ScratchFile, SerialPort, TapNetdev, VhostVsock, VirtioBlk, VirtioNet,
    VirtioSerial, Without,
};
use crate::{AGENT_SERIAL_PORT, AGENT_VSOCK_PORT, AcceleratorChoice, AgentChannel};
use crate::{DiskImage, LaunchError, VmConfig};

/// Firmware of every VM: it loads the kernel and nothing else.
pub(super) const FIRMWARE: &str = "qboot.rom";

/// Ports of the virtio-serial device that every VM has.
const CONSOLE_AND_AGENT: usize = 2;

const VCPUS_MAX: u32 = 255;
const MEMORY_MIB_MIN: u32 = 128;
const MEMORY_MIB_MAX: u32 = 4 * 1024 * 1024;
const DISKS_MAX: usize = 8;
const NICS_MAX: usize = 8;
const MTU_MIN: u16 = 68;
const ID_MAX: usize = 128;
/// The console and the agent take two of a virtio-serial device's 31 ports.
const SERIAL_PORTS_MAX: usize = 8;
const PORT_NAME_MAX: usize = 64;
/// VIRTIO 1.2, 5.2.6: `VIRTIO_BLK_T_GET_ID` answers with 20 bytes.
const SERIAL_MAX: usize = 20;
const SECTOR: u64 = 512;
/// `sockaddr_un.sun_path` has 108 bytes with its end (unix(7)).
const SOCKET_PATH_MAX: usize = 107;
/// `COMMAND_LINE_SIZE` of x86 Linux is 2048 with its end.
const KERNEL_COMMAND_LINE_MAX: usize = 2047;

/// A configuration that was checked: everything in it can be given to QEMU.
pub(super) struct PodMachine {
    config: VmConfig,
    netns: Option<File>,
}

/// How the guest's agent will be reached.
pub(super) enum AgentTransport {
    VirtioSerial,
    Vsock { cid: u32, vhost: OwnedFd },
}

/// QEMU's ends of the connections that it inherits.
pub(super) struct QemuEnds {
    pub(super) console: OwnedFd,
    pub(super) qmp: OwnedFd,
}

impl PodMachine {
    /// Checks `config`; an error names the field and what to do.
    pub(super) fn check(config: VmConfig) -> Result<PodMachine, LaunchError> {
        check_id(&config.id)?;
        check_run_dir(&config.run_dir)?;
        check_range("vcpus", config.vcpus, 1, VCPUS_MAX, "")?;
        check_range("memory_mib", config.memory_mib, MEMORY_MIB_MIN, MEMORY_MIB_MAX, " MiB")?;
        check_file("kernel", &config.kernel)?;
        let initrd = check_file("initrd", &config.initrd)?;
        let memory = u64::from(config.memory_mib) * 1024 * 1024;
        if initrd > memory / 2 {
            return refuse(
                "memory_mib",
                format!(
                    "is {}, too little for an initrd of {} MiB; give at least {}",
                    config.memory_mib,
                    initrd.div_ceil(1024 * 1024),
                    (2 * initrd).div_ceil(1024 * 1024),
                ),
            );
        }
        check_disks(&config)?;
        check_nics(&config)?;
        check_serial_ports(&config)?;
        let netns = config.netns.as_deref().map(open_netns).transpose()?;
        check_command_line(&config.command_line)?;
        Ok(PodMachine { config, netns })
    }

    pub(super) fn take_netns(&mut self) -> Option<File> {
        self.netns.take()
    }

    pub(super) fn run_dir(&self) -> &Path {
        &self.config.run_dir
    }

    pub(super) fn agent_channel(&self, transport: &AgentTransport) -> AgentChannel {
        match transport {
            AgentTransport::VirtioSerial => AgentChannel::Unix(agent_socket(&self.config.run_dir)),
            AgentTransport::Vsock { cid, .. } => {
                AgentChannel::Vsock { cid: *cid, port: AGENT_VSOCK_PORT }
            }
        }
    }

    /// The whole machine as QEMU's command line.
    pub(super) fn command_line(
        self,
        accelerator: &AcceleratorChoice,
        firmware_dirs: &[PathBuf],
        transport: AgentTransport,
        ends: QemuEnds,
    ) -> CommandLine {
        const MEMORY: &str = "memory";
        let config = self.config;
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
        let (accel, cpu) = match accelerator {
            AcceleratorChoice::Kvm { .. } => (Accel::Kvm, Cpu::Host),
            AcceleratorChoice::Tcg { .. } => (Accel::Tcg, Cpu::Emulated),
        };
        line.add(&Machine { memory_backend: MEMORY })
            .add(&MemoryBackend { id: MEMORY, size_mib: config.memory_mib })
            .add(&MemorySize(config.memory_mib))
            .add(&accel)
            .add(&cpu)
            .add(&Processors(config.vcpus))
            .add(&Firmware(FIRMWARE));

        let qmp = line.inherit(ends.qmp);
        line.add(&Chardev::Connected { id: "qmp".into(), fd: qmp })
            .add(&QmpMonitor { chardev: "qmp" });
        let console = line.inherit(ends.console);
        line.add(&VirtioSerial { ports: CONSOLE_AND_AGENT + config.serial_ports.len() })
            .add(&Chardev::Connected { id: "console".into(), fd: console })
            .add(&ConsolePort { chardev: "console" });
        match transport {
            AgentTransport::VirtioSerial => {
                let path = agent_socket(&config.run_dir);
                line.add(&Chardev::Listening { id: "agent", path })
                    .add(&SerialPort { chardev: "agent".into(), name: AGENT_SERIAL_PORT.into() });
            }
            AgentTransport::Vsock { cid, vhost } => {
                let fd = line.inherit(vhost);
                line.add(&VhostVsock { guest_cid: cid, fd });
            }
        }
        for (index, port) in config.serial_ports.into_iter().enumerate() {
            let chardev = format!("port{index}");
            let fd = line.inherit(port.socket.into());
            line.add(&Chardev::Connected { id: chardev.clone(), fd })
                .add(&SerialPort { chardev, name: port.name });
        }
        for (index, disk) in config.disks.into_iter().enumerate() {
            let node = format!("disk{index}");
            match disk.image {
                DiskImage::ReadOnly(path) => line.add(&RawFile { node: node.clone(), path }),
                DiskImage::Scratch(file) => {
                    let fd = line.inherit(file);
                    line.add(&FdSet { set: index, fd })
                        .add(&ScratchFile { node: node.clone(), set: index })
                }
            };
            line.add(&VirtioBlk { node, serial: disk.serial });
        }
        for (index, nic) in config.nics.into_iter().enumerate() {
            let id = format!("net{index}");
            let fd = line.inherit(nic.tap);
            line.add(&TapNetdev { id: id.clone(), fd }).add(&VirtioNet {
                netdev: id,
                mac: nic.mac,
                mtu: nic.mtu,
            });
        }
        line.add(&Kernel(config.kernel))
            .add(&Initrd(config.initrd))
            .add(&KernelCommandLine(config.command_line));
        line
    }
}

/// The socket behind the agent's virtio-serial port.
pub(super) fn agent_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("agent.sock")
}

fn refuse<T>(field: &'static str, problem: impl Into<String>) -> Result<T, LaunchError> {
    Err(LaunchError::Config { field, problem: problem.into() })
}

fn is_name(text: &str, longest: usize) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !text.is_empty() && text.len() <= longest && text.bytes().all(fits)
}

fn check_id(id: &str) -> Result<(), LaunchError> {
    if !is_name(id, ID_MAX) {
        return refuse("id", format!("must be 1 to {ID_MAX} characters of A-Z a-z 0-9 . _ -"));
    }
    Ok(())
}

fn check_command_line(line: &str) -> Result<(), LaunchError> {
    const FIELD: &str = "command_line";
    if !line.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
        return refuse(FIELD, format!("is {line:?}; give words of printable ASCII"));
    }
    if line.len() > KERNEL_COMMAND_LINE_MAX {
        let surplus = line.len() - KERNEL_COMMAND_LINE_MAX;
        return refuse(FIELD, format!("has {surplus} bytes more than a kernel takes"));
    }
    Ok(())
}

fn check_run_dir(dir: &Path) -> Result<(), LaunchError> {
    const OTHERS: u32 = 0o077;
    let metadata = match fs::symlink_metadata(dir) {
        Ok(metadata) => metadata,
        Err(error) => {
            return refuse("run_dir", format!("{} cannot be used: {error}", dir.display()));
        }
    };
    if !metadata.is_dir() || metadata.mode() & OTHERS != 0 {
        let problem = format!("{} must be a directory with mode 0700", dir.display());
        return refuse("run_dir", problem);
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return refuse("run_dir", format!("{} belongs to another user", dir.display()));
    }
    let length = agent_socket(dir).as_os_str().as_bytes().len();
    if length > SOCKET_PATH_MAX {
        return refuse(
            "run_dir",
            format!(
                "{} is {} bytes too long for a Unix socket in it; choose a shorter path",
                dir.display(),
                length - SOCKET_PATH_MAX
            ),
        );
    }
    Ok(())
}

fn check_range(
    field: &'static str,
    value: u32,
    least: u32,
    most: u32,
    unit: &str,
) -> Result<(), LaunchError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    refuse(field, format!("is {value}{unit}; give {least} to {most}{unit}"))
}

/// Returns the size of the file in bytes.
fn check_file(field: &'static str, path: &Path) -> Result<u64, LaunchError> {
    let opened = File::open(path).and_then(|file| file.metadata());
    match opened {
        Ok(metadata) if metadata.is_file() && metadata.len() > 0 => Ok(metadata.len()),
        Ok(_) => refuse(field, format!("{} is not a file, or empty", path.display())),
        Err(error) => refuse(
            field,
            format!(
                "{} cannot be read: {error}; build the guest image or correct the path",
                path.display()
            ),
        ),
    }
}

fn check_disks(config: &VmConfig) -> Result<(), LaunchError> {
    const FIELD: &str = "disks";
    if config.disks.len() > DISKS_MAX {
        let count = config.disks.len();
        return refuse(FIELD, format!("has {count} disks; give {DISKS_MAX} at most"));
    }
    for (index, disk) in config.disks.iter().enumerate() {
        if !is_name(&disk.serial, SERIAL_MAX) {
            let form = format!("1 to {SERIAL_MAX} characters of A-Z a-z 0-9 . _ -");
            return refuse(FIELD, format!("[{index}].serial must be {form}"));
        }
        if config.disks[..index].iter().any(|other| other.serial == disk.serial) {
            return refuse(FIELD, format!("[{index}].serial is another disk's: give each its own"));
        }
        let size = match &disk.image {
            DiskImage::ReadOnly(path) => check_file(FIELD, path)?,
            DiskImage::Scratch(file) => match rustix::fs::fstat(file) {
                Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_file() => {
                    u64::try_from(stat.st_size).unwrap_or(0)
                }
                _ => return refuse(FIELD, format!("[{index}].image is not a file")),
            },
        };
        if size == 0 {
            return refuse(FIELD, format!("[{index}].image is empty"));
        }
        if !size.is_multiple_of(SECTOR) {
            let problem = format!("[{index}].image has {size} bytes, no multiple of {SECTOR}");
            return refuse(FIELD, problem);
        }
    }
    Ok(())
}

fn check_nics(config: &VmConfig) -> Result<(), LaunchError> {
    const GROUP_ADDRESS: u8 = 1;
    if config.nics.len() > NICS_MAX {
        let count = config.nics.len();
        return refuse("nics", format!("has {count} interfaces; give {NICS_MAX} at most"));
    }
    for (index, nic) in config.nics.iter().enumerate() {
        if nic.mac[0] & GROUP_ADDRESS != 0 || nic.mac == [0; 6] {
            return refuse("nics", format!("[{index}].mac must be a unicast hardware address"));
        }
        if nic.mtu < MTU_MIN {
            let problem = format!("[{index}].mtu is {}; give at least {MTU_MIN}", nic.mtu);
            return refuse("nics", problem);
        }
        let character_device = rustix::fs::fstat(&nic.tap)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_char_device());
        if !character_device {
            let problem = format!("[{index}].tap (fd {}) is no tap device", nic.tap.as_raw_fd());
            return refuse("nics", problem);
        }
    }
    Ok(())
}

fn open_netns(path: &Path) -> Result<File, LaunchError> {
    File::open(path).map_err(|error| LaunchError::Config {
        field: "netns",
        problem: format!("{} cannot be opened: {error}", path.display()),
    })
}

fn check_serial_ports(config: &VmConfig) -> Result<(), LaunchError> {
    const FIELD: &str = "serial_ports";
    let ports = &config.serial_ports;
    if ports.len() > SERIAL_PORTS_MAX {
        let count = ports.len();
        return refuse(FIELD, format!("has {count} ports; give {SERIAL_PORTS_MAX} at most"));
    }
    for (index, port) in ports.iter().enumerate() {
        if !is_name(&port.name, PORT_NAME_MAX) {
            let form = format!("1 to {PORT_NAME_MAX} characters of A-Z a-z 0-9 . _ -");
            return refuse(FIELD, format!("[{index}].name must be {form}"));
        }
        let taken = ports[..index].iter().any(|other| other.name == port.name);
        if taken || port.name == AGENT_SERIAL_PORT {
            return refuse(FIELD, format!("[{index}].name is another port's: give each its own"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::{Disk, Nic};

    fn config(dir: &Path) -> VmConfig {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
        for name in ["vmlinux", "initrd.img"] {
            fs::write(dir.join(name), b"x").unwrap();
        }
        fs::write(dir.join("data.disk"), [0; 512]).unwrap();
        let tap = File::open("/dev/null").unwrap().into();
        let scratch = File::open(dir.join("data.disk")).unwrap();
        VmConfig {
            id: "pod-1".into(),
            run_dir: dir.to_owned(),
            kernel: dir.join("vmlinux"),
            initrd: dir.join("initrd.img"),
            command_line: "console=hvc0 nacre.log=info".into(),
            vcpus: 2,
            memory_mib: 512,
            disks: vec![
                Disk { serial: "data".into(), image: DiskImage::ReadOnly(dir.join("data.disk")) },
                Disk { serial: "scratch".into(), image: DiskImage::Scratch(scratch.into()) },
            ],
            nics: vec![Nic { tap, mac: [2, 0, 0, 0, 0, 7], mtu: 1500 }],
            serial_ports: vec![],
            netns: None,
        }
    }

    /// The command line with names in place of what differs between runs.
    fn rendered(accelerator: &AcceleratorChoice, transport: AgentTransport) -> String {
        let dir = tempfile::tempdir().unwrap();
        let (console, qmp) = UnixStream::pair().unwrap();
        let ends = QemuEnds { console: console.into(), qmp: qmp.into() };
        let mut replaced = vec![
            (format!("fd={}", ends.console.as_raw_fd()), "fd=CONSOLE"),
            (format!("fd={}", ends.qmp.as_raw_fd()), "fd=QMP"),
            (dir.path().to_str().unwrap().to_owned(), "DIR"),
        ];
        let machine = PodMachine::check(config(dir.path())).unwrap();
        replaced.push((format!("fd={}", machine.config.nics[0].tap.as_raw_fd()), "fd=TAP"));
        if let DiskImage::Scratch(file) = &machine.config.disks[1].image {
            replaced.push((format!("fd={}", file.as_raw_fd()), "fd=SCRATCH"));
        }
        if let AgentTransport::Vsock { vhost, .. } = &transport {
            replaced.push((format!("fd={}", vhost.as_raw_fd()), "fd=VHOST"));
        }
        let firmware = [PathBuf::from("/firmware")];
        let line = machine.command_line(accelerator, &firmware, transport, ends);
        let (arguments, _inherited) = line.into_parts();
        let mut text = String::new();
        for argument in arguments {
            let argument = argument.into_string().unwrap();
            text.push_str(if argument.starts_with('-') { "\n" } else { " " });
            text.push_str(&argument);
        }
        text.push('\n');
        for (from, to) in replaced {
            text = text.replace(&format!("{from},"), &format!("{to},"));
            text = text.replace(&format!("{from}\n"), &format!("{to}\n"));
            text = text.replace(&format!("{from}/"), &format!("{to}/"));
        }
        text
    }

    #[test]
    fn a_pod_under_software_emulation() {
        let tcg = AcceleratorChoice::Tcg { why: String::new() };
        assert_eq!(
            rendered(&tcg, AgentTransport::VirtioSerial),
            "
-name guest=pod-1
-nodefaults
-no-user-config
-no-reboot
-display none
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-L /firmware
-machine q35,memory-backend=memory,smm=off,sata=off,smbus=off,usb=off,i8042=off,vmport=off,hpet=off,graphics=off,mem-merge=off,dump-guest-core=off
-object memory-backend-ram,id=memory,size=512M,share=off,merge=off,dump=off,prealloc=off
-m size=512M
-accel tcg,thread=multi
-cpu max,erms=off,fsrm=off
-smp cpus=2
-bios qboot.rom
-chardev socket,id=qmp,fd=QMP
-mon chardev=qmp,mode=control
-device virtio-serial-pci,id=serial,max_ports=2,disable-legacy=on
-chardev socket,id=console,fd=CONSOLE
-device virtconsole,bus=serial.0,chardev=console
-chardev socket,id=agent,path=DIR/agent.sock,server=on,wait=off
-device virtserialport,bus=serial.0,chardev=agent,name=org.nacre.agent.0
-blockdev driver=raw,node-name=disk0,read-only=on,file.driver=file,file.filename=DIR/data.disk
-device virtio-blk-pci,drive=disk0,serial=data,num-queues=1,rerror=report,werror=report,disable-legacy=on
-add-fd set=1,fd=SCRATCH
-blockdev driver=raw,node-name=disk1,read-only=off,cache.no-flush=on,file.driver=file,file.filename=/dev/fdset/1
-device virtio-blk-pci,drive=disk1,serial=scratch,num-queues=1,rerror=report,werror=report,disable-legacy=on
-netdev tap,id=net0,fd=TAP,vhost=off
-device virtio-net-pci,netdev=net0,mac=02:00:00:00:00:07,host_mtu=1500,romfile=,disable-legacy=on
-kernel DIR/vmlinux
-initrd DIR/initrd.img
-append console=hvc0 nacre.log=info
"
        );
    }

    #[test]
    fn a_pod_under_kvm_with_vsock() {
        let kvm = AcceleratorChoice::Kvm { why: String::new() };
        let vhost = File::open("/dev/null").unwrap().into();
        let text = rendered(&kvm, AgentTransport::Vsock { cid: 77, vhost });
        for line in [
            "-accel kvm",
            "-cpu host",
            "-device vhost-vsock-pci,guest-cid=77,vhostfd=VHOST,disable-legacy=on",
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "no {line:?} in {text}");
        }
        assert!(!text.contains("agent.sock"));
    }

    #[test]
    fn further_ports_are_sockets_that_qemu_inherits() {
        let dir = tempfile::tempdir().unwrap();
        let port = |name: &str| {
            let (socket, _other) = UnixStream::pair().unwrap();
            crate::SerialPort { name: name.into(), socket }
        };
        let refusal = |names: &[&str]| {
            let serial_ports = names.iter().copied().map(port).collect();
            let config = VmConfig { serial_ports, ..config(dir.path()) };
            PodMachine::check(config).map(|_| ()).unwrap_err().to_string()
        };
        for name in ["", "a,b", &"n".repeat(65)] {
            let error = refusal(&[name]);
            assert!(error.contains("`serial_ports` [0].name must be 1 to 64"), "{error}");
        }
        assert!(refusal(&["a", "a"]).contains("[1].name is another port's"));
        assert!(refusal(&[AGENT_SERIAL_PORT]).contains("[0].name is another port's"));
        assert!(refusal(&["a"; 9]).contains("has 9 ports"));

        let serial_ports = vec![port("org.nacre.processor.0")];
        let number = serial_ports[0].socket.as_raw_fd();
        let machine = PodMachine::check(VmConfig { serial_ports, ..config(dir.path()) }).unwrap();
        let (console, qmp) = UnixStream::pair().unwrap();
        let ends = QemuEnds { console: console.into(), qmp: qmp.into() };
        let tcg = AcceleratorChoice::Tcg { why: String::new() };
        let line = machine.command_line(&tcg, &[], AgentTransport::VirtioSerial, ends);
        let (arguments, inherited) = line.into_parts();
        let arguments: Vec<_> =
            arguments.iter().map(|argument| argument.to_str().unwrap()).collect();
        assert!(inherited.iter().any(|fd| fd.as_raw_fd() == number));
        let chardev = format!("socket,id=port0,fd={number}");
        for wanted in [
            "virtio-serial-pci,id=serial,max_ports=3,disable-legacy=on",
            &chardev,
            "virtserialport,bus=serial.0,chardev=port0,name=org.nacre.processor.0",
        ] {
            assert!(arguments.contains(&wanted), "no {wanted:?} in {arguments:?}");
        }
    }

    #[test]
    fn disks_that_the_guest_could_not_tell_apart_or_read_whole_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let refusal = |disks: &[(&str, &str)]| {
            let disk = |(serial, image): &(&str, &str)| Disk {
                serial: (*serial).into(),
                image: DiskImage::ReadOnly(dir.path().join(image)),
            };
            let disks = disks.iter().map(disk).collect();
            let config = VmConfig { disks, ..config(dir.path()) };
            PodMachine::check(config).map(|_| ()).unwrap_err().to_string()
        };
        for serial in ["", "a,b", "123456789012345678901"] {
            let error = refusal(&[(serial, "data.disk")]);
            assert!(error.contains("`disks` [0].serial must be 1 to 20"), "{error}");
        }
        let twins = [("a", "data.disk"), ("a", "data.disk")];
        assert!(refusal(&twins).contains("[1].serial is another disk's"));
        assert!(refusal(&[("a", "vmlinux")]).contains("[0].image has 1 bytes"));
        assert!(refusal(&[("a", "absent")]).contains("absent cannot be read"));
        assert!(refusal(&[("a", "data.disk"); 9]).contains("has 9 disks"));
        let scratch = |file: File| {
            let disk = Disk { serial: "a".into(), image: DiskImage::Scratch(file.into()) };
            let config = VmConfig { disks: vec![disk], ..config(dir.path()) };
            PodMachine::check(config).map(|_| ()).unwrap_err().to_string()
        };
        assert!(scratch(tempfile::tempfile().unwrap()).contains("[0].image is empty"));
        assert!(scratch(File::open("/dev/null").unwrap()).contains("[0].image is not a file"));
    }
}
