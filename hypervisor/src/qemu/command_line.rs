//! QEMU's command line as values: one per machine, object, backend and device.

mod confidential;

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

pub(super) use confidential::{SnpGuest, TdxGuest};

use crate::SnpCpu;

/// A command line, and the file descriptors that QEMU inherits because it names them.
#[derive(Debug, Default)]
pub(super) struct CommandLine {
    arguments: Vec<OsString>,
    inherited: Vec<OwnedFd>,
}

impl CommandLine {
    pub(super) fn add(&mut self, argument: &impl Argument) -> &mut Self {
        let (flag, value) = argument.render();
        self.arguments.push(flag.into());
        self.arguments.extend(value);
        self
    }

    /// Lets QEMU inherit `fd`; the number is what devices name it by.
    pub(super) fn inherit(&mut self, fd: OwnedFd) -> RawFd {
        let number = fd.as_raw_fd();
        self.inherited.push(fd);
        number
    }

    pub(super) fn into_parts(self) -> (Vec<OsString>, Vec<OwnedFd>) {
        (self.arguments, self.inherited)
    }
}

/// One argument with its flag, such as `-device virtio-net-pci,...`.
pub(super) trait Argument {
    fn render(&self) -> (&'static str, Option<OsString>);
}

/// What QEMU does by itself and shall not.
pub(super) enum Without {
    /// Devices that nobody asked for.
    DefaultDevices,
    /// Configuration files of the host.
    UserConfig,
    /// Starting again when the guest resets: QEMU ends instead.
    Reboot,
}

/// `-sandbox`: what QEMU, once running, may not ask of the kernel.
pub(super) struct Sandbox;

/// `-name`: shown in the host's process list.
pub(super) struct Name(pub(super) String);

/// `-L`: where firmware is looked for.
pub(super) struct FirmwareDir(pub(super) PathBuf);

/// `-bios`.
pub(super) enum Firmware {
    /// Looked for in each [`FirmwareDir`].
    Named(&'static str),
    /// This file and no other: confidential guests measure it.
    File(PathBuf),
}

/// `-display none`.
pub(super) struct NoDisplay;

/// `-M q35` without the parts of a PC that a pod has no use for.
pub(super) struct Machine {
    /// Id of the [`MemoryBackend`].
    pub(super) memory_backend: &'static str,
    /// Id of the [`SnpGuest`] or [`TdxGuest`].
    pub(super) confidential: Option<&'static str>,
    /// Whether it has an interval timer (i8254), by which a kernel measures other clocks.
    pub(super) interval_timer: bool,
}

/// `-accel`.
pub(super) enum Accel {
    Kvm,
    Tcg,
}

/// `-cpu`.
pub(super) enum Cpu {
    /// The host's own, for KVM.
    Host,
    /// All that emulation can do, but the string instructions that are slow when emulated.
    Emulated,
    /// One that is the same on every host: its signature is measured.
    Snp(SnpCpu),
    /// What the TDX module makes of the host's. QEMU knows no other for TDX.
    Td,
}

/// `-smp`: processors, none to be plugged in later.
pub(super) struct Processors(pub(super) u32);

/// `-m`: size of the memory in MiB.
pub(super) struct MemorySize(pub(super) u32);

/// `-object memory-backend-*`: where the guest's memory comes from.
pub(super) struct MemoryBackend {
    pub(super) id: &'static str,
    pub(super) size_mib: u32,
    /// Whether it holds only what a confidential guest shares with the host; its private memory is
    /// then in a place that QEMU cannot map (`guest_memfd`), which it makes by itself.
    pub(super) shared: bool,
}

/// What virtio devices reach of the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeviceMemory {
    /// All of it.
    All,
    /// What the guest has shared with them: it goes through its DMA interface, which copies to and from
    /// shared pages, and does not take a device's word for an address (`VIRTIO_F_ACCESS_PLATFORM`).
    Shared,
}

/// `-chardev`: one end of a byte stream.
pub(super) enum Chardev {
    /// A connected socket that QEMU inherits.
    Connected { id: String, fd: RawFd },
    /// A bound socket that QEMU inherits and listens on.
    Listening { id: &'static str, fd: RawFd },
}

/// `-mon`: QMP on a chardev.
pub(super) struct QmpMonitor {
    pub(super) chardev: &'static str,
}

/// `-device virtio-serial-pci`: carries [`ConsolePort`] and [`SerialPort`].
pub(super) struct VirtioSerial {
    /// Of both kinds; each costs the guest two virtqueues.
    pub(super) ports: usize,
    pub(super) memory: DeviceMemory,
}

/// `-device virtconsole`: the guest's hvc0.
pub(super) struct ConsolePort {
    pub(super) chardev: &'static str,
}

/// `-device virtserialport`: a named byte stream between guest and host.
pub(super) struct SerialPort {
    pub(super) chardev: String,
    pub(super) name: String,
}

/// `-blockdev`: the file of an [`FdSet`] as it is, for reading only.
pub(super) struct RawFile {
    pub(super) node: String,
    pub(super) set: usize,
}

/// `-add-fd`: gives an inherited file a set of its own, as which it can be opened.
pub(super) struct FdSet {
    pub(super) set: usize,
    pub(super) fd: RawFd,
}

/// `-blockdev`: the file of an [`FdSet`], whose contents need not outlive the guest.
pub(super) struct ScratchFile {
    pub(super) node: String,
    pub(super) set: usize,
}

/// `-blockdev`: a node without contents, whose file is exchanged later.
pub(super) struct EmptyDisk {
    pub(super) node: String,
}

/// `-device virtio-blk-pci`.
pub(super) struct VirtioBlk {
    /// [`RawFile::node`], [`ScratchFile::node`] or [`EmptyDisk::node`].
    pub(super) node: String,
    pub(super) serial: String,
    pub(super) memory: DeviceMemory,
}

/// `-netdev tap` on an inherited tap device.
pub(super) struct TapNetdev {
    pub(super) id: String,
    pub(super) fd: RawFd,
}

/// `-device virtio-net-pci`.
pub(super) struct VirtioNet {
    pub(super) netdev: String,
    pub(super) mac: [u8; 6],
    pub(super) mtu: u16,
    pub(super) memory: DeviceMemory,
}

/// `-device vhost-vsock-pci` on an inherited `/dev/vhost-vsock`.
pub(super) struct VhostVsock {
    pub(super) guest_cid: u32,
    pub(super) fd: RawFd,
    pub(super) memory: DeviceMemory,
}

/// `-kernel`.
pub(super) struct Kernel(pub(super) PathBuf);

/// `-initrd`.
pub(super) struct Initrd(pub(super) PathBuf);

/// `-append`: the kernel command line.
pub(super) struct KernelCommandLine(pub(super) String);

impl Argument for Without {
    fn render(&self) -> (&'static str, Option<OsString>) {
        let flag = match self {
            Without::DefaultDevices => "-nodefaults",
            Without::UserConfig => "-no-user-config",
            Without::Reboot => "-no-reboot",
        };
        (flag, None)
    }
}

impl Argument for Sandbox {
    fn render(&self) -> (&'static str, Option<OsString>) {
        let denied = Options::of("on")
            .value("obsolete", "deny")
            .value("elevateprivileges", "deny")
            .value("spawn", "deny")
            .value("resourcecontrol", "deny");
        ("-sandbox", denied.done())
    }
}

impl Argument for Name {
    fn render(&self) -> (&'static str, Option<OsString>) {
        ("-name", Options::named("guest", &self.0).done())
    }
}

impl Argument for FirmwareDir {
    fn render(&self) -> (&'static str, Option<OsString>) {
        ("-L", Some(self.0.clone().into()))
    }
}

impl Argument for Firmware {
    fn render(&self) -> (&'static str, Option<OsString>) {
        let firmware = match self {
            Firmware::Named(name) => OsString::from(name),
            Firmware::File(path) => path.clone().into(),
        };
        ("-bios", Some(firmware))
    }
}

impl Argument for NoDisplay {
    fn render(&self) -> (&'static str, Option<OsString>) {
        ("-display", Some("none".into()))
    }
}

impl Argument for Machine {
    fn render(&self) -> (&'static str, Option<OsString>) {
        let machine = Options::of("q35").value("memory-backend", self.memory_backend);
        let machine = match self.confidential {
            None => machine,
            Some(id) => machine
                .value("confidential-guest-support", id)
                // The host's kernel cannot emulate an I/O APIC whose guest's state it cannot see: TDX
                // demands this, and SNP has no use for more.
                .value("kernel-irqchip", "split"),
        };
        // System management mode would be code that runs above the guest's kernel; confidential guests
        // cannot have it.
        let machine = machine
            .switch("smm", false)
            .switch("sata", false)
            .switch("smbus", false)
            .switch("usb", false)
            .switch("i8042", false)
            .switch("vmport", false)
            .switch("hpet", false)
            .switch("graphics", false)
            // The memory of one pod is neither compared with that of another nor dumped.
            .switch("mem-merge", false)
            .switch("dump-guest-core", false);
        let machine = match self.interval_timer {
            true => machine,
            false => machine.switch("pit", false),
        };
        ("-machine", machine.done())
    }
}

impl Argument for Accel {
    fn render(&self) -> (&'static str, Option<OsString>) {
        let accel = match self {
            Accel::Kvm => Options::of("kvm"),
            Accel::Tcg => Options::of("tcg").value("thread", "multi"),
        };
        ("-accel", accel.done())
    }
}

impl Argument for Cpu {
    fn render(&self) -> (&'static str, Option<OsString>) {
        let model = match self {
            Cpu::Host => Options::of("host"),
            Cpu::Emulated => Options::of("max").switch("erms", false).switch("fsrm", false),
            Cpu::Snp(cpu) => Options::of(cpu.name()),
            // Both would set attributes of the TD on some hosts and not on others; verifiers compare them.
            Cpu::Td => Options::of("host").switch("pmu", false).switch("pks", false),
        };
        ("-cpu", model.done())
    }
}

impl Argument for Processors {
    fn render(&self) -> (&'static str, Option<OsString>) {
        ("-smp", Options::named("cpus", self.0.to_string()).done())
    }
}

impl Argument for MemorySize {
    fn render(&self) -> (&'static str, Option<OsString>) {
        ("-m", Options::named("size", format!("{}M", self.0)).done())
    }
}

impl Argument for MemoryBackend {
    fn render(&self) -> (&'static str, Option<OsString>) {
        let kind = if self.shared { "memory-backend-memfd" } else { "memory-backend-ram" };
        let object = Options::of(kind)
            .value("id", self.id)
            .value("size", format!("{}M", self.size_mib))
            .switch("share", self.shared)
            .switch("merge", false)
            .switch("dump", false)
            .switch("prealloc", false);
        ("-object", object.done())
    }
}

impl Argument for Chardev {
    fn render(&self) -> (&'static str, Option<OsString>) {
        let chardev = match self {
            Chardev::Connected { id, fd } => {
                Options::of("socket").value("id", id).value("fd", fd.to_string())
            }
            Chardev::Listening { id, fd } => Options::of("socket")
                .value("id", id)
                .value("fd", fd.to_string())
                .switch("server", true)
                .switch("wait", false),
        };
        ("-chardev", chardev.done())
    }
}

impl Argument for QmpMonitor {
    fn render(&self) -> (&'static str, Option<OsString>) {
        ("-mon", Options::named("chardev", self.chardev).value("mode", "control").done())
    }
}

impl Argument for VirtioSerial {
    fn render(&self) -> (&'static str, Option<OsString>) {
        let device = Options::of("virtio-serial-pci")
            .value("id", "serial")
            .value("max_ports", self.ports.to_string())
            .virtio(self.memory);
        ("-device", device.done())
    }
}

impl Argument for ConsolePort {
    fn render(&self) -> (&'static str, Option<OsString>) {
        let device =
            Options::of("virtconsole").value("bus", "serial.0").value("chardev", self.chardev);
        ("-device", device.done())
    }
}

impl Argument for SerialPort {
    fn render(&self) -> (&'static str, Option<OsString>) {
        let device = Options::of("virtserialport")
            .value("bus", "serial.0")
            .value("chardev", &self.chardev)
            .value("name", &self.name);
        ("-device", device.done())
    }
}

impl Argument for RawFile {
    fn render(&self) -> (&'static str, Option<OsString>) {
        let blockdev = Options::named("driver", "raw")
            .value("node-name", &self.node)
            .switch("read-only", true)
            .value("file.driver", "file")
            .value("file.filename", format!("/dev/fdset/{}", self.set));
        ("-blockdev", blockdev.done())
    }
}

impl Argument for FdSet {
    fn render(&self) -> (&'static str, Option<OsString>) {
        let set = Options::named("set", self.set.to_string()).value("fd", self.fd.to_string());
        ("-add-fd", set.done())
    }
}

impl Argument for ScratchFile {
    fn render(&self) -> (&'static str, Option<OsString>) {
        let blockdev = Options::named("driver", "raw")
            .value("node-name", &self.node)
            .switch("read-only", false)
            // The guest's flushes are answered at once.
            .switch("cache.no-flush", true)
            .value("file.driver", "file")
            .value("file.filename", format!("/dev/fdset/{}", self.set));
        ("-blockdev", blockdev.done())
    }
}

impl Argument for EmptyDisk {
    fn render(&self) -> (&'static str, Option<OsString>) {
        let blockdev = Options::named("driver", "raw")
            .value("node-name", &self.node)
            .switch("read-only", false)
            .value("file.driver", "null-co")
            .value("file.size", "0")
            .switch("file.read-zeroes", true);
        ("-blockdev", blockdev.done())
    }
}

impl Argument for VirtioBlk {
    fn render(&self) -> (&'static str, Option<OsString>) {
        let device = Options::of("virtio-blk-pci")
            .value("drive", &self.node)
            .value("serial", &self.serial)
            // By default one for each processor.
            .value("num-queues", "1")
            // The guest is told of a failure, such as a host's disk that is full, and may go on. By default
            // QEMU would stop it.
            .value("rerror", "report")
            .value("werror", "report")
            .virtio(self.memory);
        ("-device", device.done())
    }
}

impl Argument for TapNetdev {
    fn render(&self) -> (&'static str, Option<OsString>) {
        let netdev = Options::of("tap")
            .value("id", &self.id)
            .value("fd", self.fd.to_string())
            .switch("vhost", false);
        ("-netdev", netdev.done())
    }
}

impl Argument for VirtioNet {
    fn render(&self) -> (&'static str, Option<OsString>) {
        let mac: Vec<String> = self.mac.iter().map(|byte| format!("{byte:02x}")).collect();
        let device = Options::of("virtio-net-pci")
            .value("netdev", &self.netdev)
            .value("mac", mac.join(":"))
            .value("host_mtu", self.mtu.to_string())
            .value("romfile", "")
            .virtio(self.memory);
        ("-device", device.done())
    }
}

impl Argument for VhostVsock {
    fn render(&self) -> (&'static str, Option<OsString>) {
        let device = Options::of("vhost-vsock-pci")
            .value("guest-cid", self.guest_cid.to_string())
            .value("vhostfd", self.fd.to_string())
            .virtio(self.memory);
        ("-device", device.done())
    }
}

impl Argument for Kernel {
    fn render(&self) -> (&'static str, Option<OsString>) {
        ("-kernel", Some(self.0.clone().into()))
    }
}

impl Argument for Initrd {
    fn render(&self) -> (&'static str, Option<OsString>) {
        ("-initrd", Some(self.0.clone().into()))
    }
}

impl Argument for KernelCommandLine {
    fn render(&self) -> (&'static str, Option<OsString>) {
        ("-append", Some(self.0.clone().into()))
    }
}

/// QEMU's `kind,key=value,...`: a comma within a value is written twice (docs: "qemu-option").
struct Options(Vec<u8>);

impl Options {
    fn of(kind: &str) -> Options {
        Options(kind.into())
    }

    fn named(key: &str, value: impl AsRef<OsStr>) -> Options {
        Options(Vec::new()).value(key, value)
    }

    fn value(mut self, key: &str, value: impl AsRef<OsStr>) -> Options {
        if !self.0.is_empty() {
            self.0.push(b',');
        }
        self.0.extend_from_slice(key.as_bytes());
        self.0.push(b'=');
        for &byte in value.as_ref().as_bytes() {
            self.0.push(byte);
            if byte == b',' {
                self.0.push(b',');
            }
        }
        self
    }

    fn switch(self, key: &str, on: bool) -> Options {
        self.value(key, if on { "on" } else { "off" })
    }

    /// What all virtio devices on PCI have.
    fn virtio(self, memory: DeviceMemory) -> Options {
        let options = self.switch("disable-legacy", true);
        match memory {
            DeviceMemory::All => options,
            DeviceMemory::Shared => options.switch("iommu_platform", true),
        }
    }

    fn done(self) -> Option<OsString> {
        Some(OsString::from_vec(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(argument: &impl Argument) -> String {
        let (flag, value) = argument.render();
        format!("{flag} {}", value.unwrap_or_default().into_string().unwrap())
    }

    #[test]
    fn commas_in_values_are_doubled_and_add_no_option() {
        assert_eq!(rendered(&Name("a,server=off,b".into())), "-name guest=a,,server=off,,b");
    }

    #[test]
    fn plain_arguments_are_not_escaped() {
        assert_eq!(rendered(&Kernel("/boot/a,b".into())), "-kernel /boot/a,b");
        assert_eq!(rendered(&FirmwareDir("/fw,1".into())), "-L /fw,1");
    }

    #[test]
    fn a_disk_is_a_file_that_is_only_read() {
        let file = RawFile { node: "disk0".into(), set: 0 };
        assert_eq!(
            rendered(&file),
            "-blockdev driver=raw,node-name=disk0,read-only=on,file.driver=file,file.filename=/dev/fdset/0"
        );
        let device = VirtioBlk {
            node: "disk0".into(),
            serial: "nacre-initdata".into(),
            memory: DeviceMemory::All,
        };
        assert_eq!(
            rendered(&device),
            "-device virtio-blk-pci,drive=disk0,serial=nacre-initdata,num-queues=1,rerror=report,werror=report,disable-legacy=on"
        );
    }

    #[test]
    fn a_scratch_disk_is_an_inherited_file() {
        assert_eq!(rendered(&FdSet { set: 1, fd: 9 }), "-add-fd set=1,fd=9");
        assert_eq!(
            rendered(&ScratchFile { node: "disk1".into(), set: 1 }),
            "-blockdev driver=raw,node-name=disk1,read-only=off,cache.no-flush=on,file.driver=file,file.filename=/dev/fdset/1"
        );
    }

    #[test]
    fn an_empty_disk_has_no_size() {
        assert_eq!(
            rendered(&EmptyDisk { node: "disk2".into() }),
            "-blockdev driver=raw,node-name=disk2,read-only=off,file.driver=null-co,file.size=0,file.read-zeroes=on"
        );
    }

    #[test]
    fn a_nic_is_a_tap_by_number_and_a_device_without_option_rom() {
        let netdev = TapNetdev { id: "net0".into(), fd: 9 };
        assert_eq!(rendered(&netdev), "-netdev tap,id=net0,fd=9,vhost=off");
        let nic = VirtioNet {
            netdev: "net0".into(),
            mac: [0x02, 0xfd, 0, 0xab, 0x0c, 1],
            mtu: 1450,
            memory: DeviceMemory::All,
        };
        assert_eq!(
            rendered(&nic),
            "-device virtio-net-pci,netdev=net0,mac=02:fd:00:ab:0c:01,host_mtu=1450,romfile=,disable-legacy=on"
        );
    }

    #[test]
    fn vsock_is_the_hosts_device_by_number() {
        let vsock = VhostVsock { guest_cid: 4242, fd: 7, memory: DeviceMemory::All };
        assert_eq!(
            rendered(&vsock),
            "-device vhost-vsock-pci,guest-cid=4242,vhostfd=7,disable-legacy=on"
        );
    }
}
