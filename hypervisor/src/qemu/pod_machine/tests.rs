//! Whole command lines, and configurations that are refused.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::memory_encryption::MemoryEncryption;
use crate::{
    AcceleratorChoice, Confidential, Disk, GuestPolicy, IdBlock, Nic, QuoteService, SnpCpu,
    SnpLaunch, TdAttributes, TdxLaunch,
};

const QEMU: QemuVersion = QemuVersion { major: 10, minor: 1 };

/// Some ID authentication information.
const AUTHENTICATION: [u8; IdBlock::AUTHENTICATION] = [0x33; IdBlock::AUTHENTICATION];

fn host(kvm: bool) -> HostCapabilities {
    let why = String::new();
    HostCapabilities {
        accelerator: if kvm {
            AcceleratorChoice::Kvm { why }
        } else {
            AcceleratorChoice::Tcg { why }
        },
        memory_encryption: Some(MemoryEncryption { c_bit: 51, reduced_address_bits: 5 }),
    }
}

fn config(dir: &Path) -> VmConfig {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
    for name in ["vmlinux", "initrd.img"] {
        fs::write(dir.join(name), b"x").unwrap();
    }
    let mut bzimage = [0; 0x206];
    bzimage[0x202..].copy_from_slice(b"HdrS");
    fs::write(dir.join("vmlinuz"), bzimage).unwrap();
    fs::write(dir.join("OVMF.fd"), vec![0; 64 * 1024]).unwrap();
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
        confidential: None,
        disks: vec![
            Disk { serial: "data".into(), image: DiskImage::ReadOnly(dir.join("data.disk")) },
            Disk { serial: "scratch".into(), image: DiskImage::Scratch(scratch.into()) },
        ],
        nics: vec![Nic { tap, mac: [2, 0, 0, 0, 0, 7], mtu: 1500 }],
        serial_ports: vec![],
        netns: None,
    }
}

fn snp(dir: &Path) -> SnpLaunch {
    SnpLaunch {
        firmware: dir.join("OVMF.fd"),
        policy: GuestPolicy::new(true),
        host_data: [0x11; 32],
        cpu: SnpCpu::EpycV4,
        id_block: None,
    }
}

fn tdx(dir: &Path, quote_generation: Option<QuoteService>) -> TdxLaunch {
    TdxLaunch {
        firmware: dir.join("OVMF.fd"),
        attributes: TdAttributes::default(),
        mr_config_id: [0x11; 48],
        mr_owner: [0x22; 48],
        mr_owner_config: [0; 48],
        quote_generation,
    }
}

fn confidential(dir: &Path, confidential: Confidential) -> VmConfig {
    VmConfig { kernel: dir.join("vmlinuz"), confidential: Some(confidential), ..config(dir) }
}

fn refusal_of(config: VmConfig) -> String {
    PodMachine::check(config, &host(true), QEMU).map(|_| ()).unwrap_err().to_string()
}

/// The command line of the machine that `make` configures in a directory, with names in place of what differs
/// between runs.
fn rendered(kvm: bool, transport: AgentTransport, make: impl FnOnce(&Path) -> VmConfig) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (console, qmp) = UnixStream::pair().unwrap();
    let ends = QemuEnds { console: console.into(), qmp: qmp.into() };
    let mut replaced = vec![
        (format!("fd={}", ends.console.as_raw_fd()), "fd=CONSOLE"),
        (format!("fd={}", ends.qmp.as_raw_fd()), "fd=QMP"),
        (dir.path().to_str().unwrap().to_owned(), "DIR"),
        (format!("id-auth={}", STANDARD.encode(AUTHENTICATION)), "id-auth=AUTHENTICATION"),
    ];
    let machine = PodMachine::check(make(dir.path()), &host(kvm), QEMU).unwrap();
    replaced.push((format!("fd={}", machine.config.nics[0].tap.as_raw_fd()), "fd=TAP"));
    if let DiskImage::Scratch(file) = &machine.config.disks[1].image {
        replaced.push((format!("fd={}", file.as_raw_fd()), "fd=SCRATCH"));
    }
    replaced.push((format!("fd={}", machine.read_only_disks[0].as_raw_fd()), "fd=DATA"));
    replaced.push(match &transport {
        AgentTransport::Vsock { vhost, .. } => (format!("fd={}", vhost.as_raw_fd()), "fd=VHOST"),
        AgentTransport::VirtioSerial { socket } => {
            (format!("fd={}", socket.as_raw_fd()), "fd=AGENT")
        }
    });
    let firmware = [PathBuf::from("/firmware")];
    let counter_khz = machine.is_told_its_counter().then_some(2_100_000);
    let line = machine.command_line(&firmware, transport, ends, counter_khz);
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
    text.trim_start().to_owned()
}

fn virtio_serial() -> AgentTransport {
    AgentTransport::VirtioSerial { socket: File::open("/dev/null").unwrap().into() }
}

fn vsock() -> AgentTransport {
    AgentTransport::Vsock { cid: 77, vhost: File::open("/dev/null").unwrap().into() }
}

/// Compares line by line, so that a difference is one line of the test's output.
#[track_caller]
fn assert_same(rendered: &str, golden: &str) {
    for (rendered, golden) in rendered.lines().zip(golden.lines()) {
        assert_eq!(rendered, golden);
    }
    assert_eq!(rendered, golden);
}

#[test]
fn a_pod_under_software_emulation() {
    let line = rendered(false, virtio_serial(), config);
    assert_same(&line, include_str!("golden/emulated"));
}

#[test]
fn a_pod_under_kvm_with_vsock() {
    let line = rendered(true, vsock(), config);
    assert_same(&line, include_str!("golden/kvm"));
}

#[test]
fn an_snp_guest() {
    let line =
        rendered(true, virtio_serial(), |dir| confidential(dir, Confidential::Snp(snp(dir))));
    assert_same(&line, include_str!("golden/snp"));
}

#[test]
fn an_snp_guest_whose_owner_signed_it_with_vsock() {
    let line = rendered(true, vsock(), |dir| {
        let mut block = [7; 96];
        block[0x58..].copy_from_slice(&0x3_0000_u64.to_le_bytes());
        let signed = IdBlock::new(&block, &AUTHENTICATION).unwrap();
        let cpu = SnpCpu::EpycGenoaV1;
        let launch = SnpLaunch { cpu, id_block: Some(signed), ..snp(dir) };
        confidential(dir, Confidential::Snp(launch))
    });
    assert_same(&line, include_str!("golden/snp-id-block"));
}

#[test]
fn a_tdx_guest_whose_quotes_come_by_a_unix_socket() {
    let line = rendered(true, virtio_serial(), |dir| {
        let quotes = QuoteService::Unix("/var/run/tdx-qgs/qgs.socket".into());
        confidential(dir, Confidential::Tdx(tdx(dir, Some(quotes))))
    });
    assert_same(&line, include_str!("golden/tdx-unix"));
}

#[test]
fn a_tdx_guest_whose_quotes_come_by_vsock() {
    let line = rendered(true, vsock(), |dir| {
        let quotes = QuoteService::Vsock { cid: 2, port: 4050 };
        confidential(dir, Confidential::Tdx(tdx(dir, Some(quotes))))
    });
    assert_same(&line, include_str!("golden/tdx-vsock"));
}

#[test]
fn only_a_tdx_guest_with_a_unix_socket_has_one_for_quotes() {
    let dir = tempfile::tempdir().unwrap();
    let unix = QuoteService::Unix("/run/qgs".into());
    let td = |service| Some(Confidential::Tdx(tdx(dir.path(), service)));
    for (wish, expected) in [
        (None, None),
        (Some(Confidential::Snp(snp(dir.path()))), None),
        (td(None), None),
        (td(Some(QuoteService::Vsock { cid: 2, port: 4050 })), None),
        (td(Some(unix)), Some(Path::new("/run/qgs"))),
    ] {
        let kernel = dir.path().join(if wish.is_some() { "vmlinuz" } else { "vmlinux" });
        let config = VmConfig { kernel, confidential: wish, ..config(dir.path()) };
        let machine = PodMachine::check(config, &host(true), QEMU).unwrap();
        assert_eq!(machine.quote_socket(), expected);
    }
}

#[test]
fn every_virtio_device_of_a_confidential_guest_goes_through_its_dma_interface() {
    for tee in ["snp", "tdx"] {
        let line = rendered(true, vsock(), |dir| {
            let launch = match tee {
                "snp" => Confidential::Snp(snp(dir)),
                _ => Confidential::Tdx(tdx(dir, None)),
            };
            let (socket, _other) = UnixStream::pair().unwrap();
            let port = crate::SerialPort { name: "further".into(), socket };
            VmConfig { serial_ports: vec![port], ..confidential(dir, launch) }
        });
        let devices: Vec<_> = line.lines().filter(|line| line.starts_with("-device")).collect();
        let on_pci: Vec<_> = devices.iter().filter(|device| device.contains("-pci,")).collect();
        assert_eq!(on_pci.len(), 5, "serial, vsock, two disks and a network: {devices:?}");
        for device in on_pci {
            assert!(device.ends_with(",disable-legacy=on,iommu_platform=on"), "{device}");
        }
        // What is left are ports of the serial device.
        let others = devices.iter().filter(|device| !device.contains("-pci,"));
        for device in others {
            assert!(device.contains(",bus=serial.0,"), "{device}");
        }
    }
}

#[test]
fn what_a_confidential_guest_cannot_be_launched_from_is_refused_by_field() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let with = |launch| confidential(dir, launch);
    let snp = || snp(dir);
    let tdx = || tdx(dir, None);

    let elf = VmConfig { kernel: dir.join("vmlinux"), ..with(Confidential::Snp(snp())) };
    assert!(refusal_of(elf).contains("`kernel`"));
    let small = VmConfig { memory_mib: 255, ..with(Confidential::Tdx(tdx())) };
    assert!(refusal_of(small).contains("`memory_mib` is 255 MiB; give 256 to"));
    let crowd = VmConfig { vcpus: 256, ..with(Confidential::Tdx(tdx())) };
    assert!(refusal_of(crowd).contains("`vcpus` is 256; give 1 to 255"));

    let absent = SnpLaunch { firmware: dir.join("absent"), ..snp() };
    let error = refusal_of(with(Confidential::Snp(absent)));
    assert!(error.contains("`confidential.snp.firmware`") && error.contains("absent"), "{error}");
    let odd = TdxLaunch { firmware: dir.join("vmlinuz"), ..tdx() };
    let error = refusal_of(with(Confidential::Tdx(odd)));
    assert!(error.contains("`confidential.tdx.firmware`"), "{error}");
    assert!(error.contains("has 518 bytes; firmware has a multiple of 65536"), "{error}");
    let signed = IdBlock::new(&[0; 96], &[0; 4096]).unwrap();
    let other = SnpLaunch { id_block: Some(signed), ..snp() };
    let error = refusal_of(with(Confidential::Snp(other)));
    assert!(error.contains("`confidential.snp.id_block` was signed for the guest policy 0x0"));

    for path in ["qgs.socket".into(), format!("/{}", "x".repeat(107))] {
        let quote_generation = Some(QuoteService::Unix(path.into()));
        let error = refusal_of(with(Confidential::Tdx(TdxLaunch { quote_generation, ..tdx() })));
        assert!(error.contains("`confidential.tdx.quote_generation` must be"), "{error}");
    }
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
        refusal_of(VmConfig { serial_ports, ..config(dir.path()) })
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
    let machine =
        PodMachine::check(VmConfig { serial_ports, ..config(dir.path()) }, &host(false), QEMU)
            .unwrap();
    let (console, qmp) = UnixStream::pair().unwrap();
    let ends = QemuEnds { console: console.into(), qmp: qmp.into() };
    let line = machine.command_line(&[], virtio_serial(), ends, None);
    let (arguments, inherited) = line.into_parts();
    let arguments: Vec<_> = arguments.iter().map(|argument| argument.to_str().unwrap()).collect();
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
        refusal_of(VmConfig { disks, ..config(dir.path()) })
    };
    for serial in ["", "a,b", "123456789012345678901"] {
        let error = refusal(&[(serial, "data.disk")]);
        assert!(error.contains("`disks` [0].serial must be 1 to 20"), "{error}");
    }
    let twins = [("a", "data.disk"), ("a", "data.disk")];
    assert!(refusal(&twins).contains("[1].serial is another disk's"));
    assert!(refusal(&[("a", "vmlinux")]).contains("[0].image has 1 bytes"));
    assert!(refusal(&[("a", "absent")]).contains("absent cannot be read"));
    assert!(refusal(&[("a", "data.disk"); 11]).contains("has 11 disks"));
    let scratch = |file: File| {
        let disk = Disk { serial: "a".into(), image: DiskImage::Scratch(file.into()) };
        refusal_of(VmConfig { disks: vec![disk], ..config(dir.path()) })
    };
    assert!(scratch(tempfile::tempfile().unwrap()).contains("[0].image is empty"));
    assert!(scratch(File::open("/dev/null").unwrap()).contains("[0].image is not a file"));
}
