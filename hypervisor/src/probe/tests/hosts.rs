//! Hosts that are not here.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::fake::{FakeHost, FakeKvm, sev_replies};
use crate::probe::{
    ContainerdPaths, FirmwarePaths, ImagePaths, ImageSummary, Kind, Needs, Ownership, Question, Tee,
};
use crate::{Accelerator, QuoteService};

pub(crate) const QEMU: &str = "/opt/nacre/bin/qemu-system-x86_64";
pub(crate) const CONTAINERD_CONFIG: &str = "/etc/containerd/config.toml";
pub(crate) const SHIM: &str = "/usr/local/bin/containerd-shim-nacre-v2";
pub(crate) const SNAPSHOTTER: &str = "/run/nacre/snapshotter.sock";
pub(crate) const QUOTES: &str = "/run/tdx-qgs/qgs.socket";

pub(crate) const QEMU_10: &str = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright";
pub(crate) const QEMU_11: &str = "QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1)\nCopyright";

/// The default configuration of a node.
pub(crate) fn question() -> Question {
    Question {
        configuration: Some("/etc/nacre/config.toml".into()),
        qemu: QEMU.into(),
        user: String::new(),
        accelerator: Accelerator::Auto,
        firmware: FirmwarePaths {
            plain: vec![
                "/opt/nacre/share/qemu/qboot.rom".into(),
                "/usr/share/qemu/qboot.rom".into(),
            ],
            snp: "/opt/nacre/share/ovmf/OVMF.amdsev.fd".into(),
            tdx: "/opt/nacre/share/ovmf/OVMF.inteltdx.fd".into(),
        },
        image: ImagePaths {
            directory: "/opt/nacre/share/nacre".into(),
            manifest: "manifest.json",
            read: |bytes| match bytes {
                b"manifest" => Ok(ImageSummary {
                    summary: "kernel 6.12.95".to_owned(),
                    files: vec![("vmlinuz".to_owned(), 7), ("initrd.img".to_owned(), 6)],
                }),
                _ => Err("no manifest".to_owned()),
            },
        },
        quote_generation: Some(QuoteService::Unix(QUOTES.into())),
        storage: "/var/lib/nacre/scratch".into(),
        needs: Needs { memory_mib: 512, host_mib: 64, scratch_disk_mib: 1024 },
        containerd: ContainerdPaths {
            config: CONTAINERD_CONFIG.into(),
            program_dirs: vec!["/usr/local/bin".into(), "/usr/bin".into()],
            default_shim_config: "/etc/nacre/config.toml".into(),
            shim_config: None,
            read: |bytes| {
                let tee = Tee::ALL.into_iter().find(|tee| tee.name().as_bytes() == bytes);
                tee.ok_or_else(|| "no tee".to_owned())
            },
        },
    }
}

/// An image with the table of an OVMF that has these entries.
fn ovmf(entries: &[(u128, &[u8])]) -> Vec<u8> {
    let mut table = Vec::new();
    let add = |table: &mut Vec<u8>, guid: u128, data: &[u8], length: usize| {
        table.extend_from_slice(data);
        table.extend_from_slice(&u16::try_from(length).unwrap().to_le_bytes());
        let bytes = guid.to_be_bytes();
        let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
        table.extend(order.map(|at: usize| bytes[at]));
    };
    for (guid, data) in entries {
        add(&mut table, *guid, data, data.len() + 18);
    }
    let length = table.len() + 18;
    add(&mut table, 0x96b5_82de_1fb2_45f7_baea_a366_c55a_082d, &[], length);
    [vec![0; 9000], table, vec![0x90; 32]].concat()
}

pub(crate) const HASHES: u128 = 0x7255_371f_3a3b_4b04_927b_1da6_efa8_d454;
const METADATA: u128 = 0xdc88_6566_984a_4798_a75e_5585_a7bf_67cc;
const RESET_BLOCK: u128 = 0x00f7_71de_1a7e_4fcb_890e_68c7_7e2f_b44e;
const TDX: u128 = 0xe47a_6535_984a_4798_865e_4685_a7bf_8ec2;

pub(crate) fn amdsev() -> Vec<u8> {
    let place = [0, 0xc, 0x81, 0, 0, 4, 0, 0];
    ovmf(&[(METADATA, &[1, 0, 0, 0]), (HASHES, &place), (RESET_BLOCK, &[4, 0xb0, 0x80, 0])])
}

/// What knows SEV-SNP and TDX, and has no place for the kernel's hashes.
pub(crate) fn inteltdx() -> Vec<u8> {
    ovmf(&[
        (TDX, &[1, 0, 0, 0]),
        (METADATA, &[1, 0, 0, 0]),
        (HASHES, &[0; 8]),
        (RESET_BLOCK, &[4, 0xb0, 0x80, 0]),
    ])
}

fn cpuinfo(vendor: &str, model: &str, flags: &str) -> String {
    let processor = format!(
        "processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: {model}\nflags\t\t: fpu {flags} avx2\n\n"
    );
    processor.repeat(64)
}

/// A server without protection for guests, with all of Nacre's parts.
pub(crate) fn server() -> FakeHost {
    let mut host = FakeHost { clock: true, free: 100 << 30, ..FakeHost::default() };
    host.write("/proc/cpuinfo", cpuinfo("GenuineIntel", "Intel(R) Xeon(R) Gold 6230", "vmx"));
    host.write("/proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/sda1 quiet");
    host.write("/proc/sys/kernel/osrelease", "6.18.4-amd64\n");
    host.write(
        "/proc/meminfo",
        "MemTotal: 263843212 kB\nMemFree: 1 kB\nMemAvailable: 201326592 kB\nHugePages_Total: 0\n\
         HugePages_Free: 0\nHugepagesize: 2048 kB\n",
    );
    host.write("/sys/fs/cgroup/cgroup.controllers", "cpu memory misc\n");
    host.write("/opt/nacre/share/qemu/qboot.rom", "qboot");
    host.write("/opt/nacre/share/ovmf/OVMF.amdsev.fd", amdsev());
    host.write("/opt/nacre/share/ovmf/OVMF.inteltdx.fd", inteltdx());
    host.write("/opt/nacre/share/nacre/manifest.json", "manifest");
    host.write("/opt/nacre/share/nacre/vmlinuz", "vmlinuz");
    host.write("/opt/nacre/share/nacre/initrd.img", "initrd");
    host.write(CONTAINERD_CONFIG, include_str!("../../../../deploy/containerd/2.1.toml"));
    host.write("/etc/nacre/config.toml", "none");
    host.others.insert("/var/lib".into(), Kind::Directory);
    host.others.insert(SNAPSHOTTER.into(), Kind::Socket);
    host.programs.insert(SHIM.into(), BTreeMap::new());
    install_qemu(&mut host, QEMU_11, "sev-guest\n  sev-snp-guest\n  tdx-guest\n");
    install_containerd(
        &mut host,
        "containerd github.com/containerd/containerd/v2 2.1.9+unknown \n",
    );
    host.devices = vec!["/dev/net/tun", "/dev/vhost-net", "/dev/vhost-vsock"];
    host.kvm = Some(FakeKvm { api_version: 12, extensions: BTreeMap::from([(235, 1), (234, 1)]) });
    host
}

pub(crate) fn install_qemu(host: &mut FakeHost, version: &'static str, objects: &'static str) {
    let answers = BTreeMap::from([("--version", version), ("-object help", objects)]);
    host.programs.insert(PathBuf::from(QEMU), answers);
}

pub(crate) fn install_containerd(host: &mut FakeHost, version: &'static str) {
    host.programs.insert("/usr/bin/containerd".into(), BTreeMap::from([("--version", version)]));
}

/// Configurations for the handlers that are shipped, and a handler for the emulated secure processor.
fn add_handlers(host: &mut FakeHost) {
    for tee in [Tee::EmulatedSnp, Tee::Snp, Tee::Tdx] {
        host.write(&format!("/etc/nacre/{tee}.toml"), tee.name());
    }
    let emulated = "\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.emulated]\n\
                    runtime_type = \"io.containerd.nacre.v2\"\nsnapshotter = \"nacre\"\n\
                    pod_annotations = [\"io.*\"]\n\
                    options.ConfigPath = \"/etc/nacre/emulated-snp.toml\"\n";
    let shipped = include_str!("../../../../deploy/containerd/2.1.toml");
    host.write(CONTAINERD_CONFIG, format!("{shipped}{emulated}"));
}

/// EPYC 7003 with SEV-SNP, ready.
pub(crate) fn milan() -> FakeHost {
    let mut host = server();
    add_handlers(&mut host);
    let flags = "svm sev sev_es sev_snp";
    host.write("/proc/cpuinfo", cpuinfo("AuthenticAMD", "AMD EPYC 7763 64-Core Processor", flags));
    host.cpuid.insert(0x8000_0000, [0x8000_0023, 0, 0, 0]);
    // C-bit 51, 5 address bits, 509 ASIDs, the first for plain SEV is 100.
    host.cpuid.insert(0x8000_001f, [0x1_780f | 1 << 4, 0x4173, 509, 100]);
    for parameter in ["sev", "sev_es", "sev_snp"] {
        host.write(&format!("/sys/module/kvm_amd/parameters/{parameter}"), "Y\n");
    }
    host.write("/sys/fs/cgroup/misc.capacity", "sev 410\nsev_es 99\n");
    host.write("/sys/fs/cgroup/misc.current", "sev 0\nsev_es 3\n");
    host.devices.push("/dev/sev");
    host.sev = sev_replies((1, 55), true);
    // Default, software-protected, SEV, SEV-ES, SEV-SNP.
    let extensions = BTreeMap::from([(235, 0b1_1111), (234, 1), (233, 8)]);
    host.kvm = Some(FakeKvm { api_version: 12, extensions });
    host
}

/// EPYC 9004 whose firmware setup leaves SEV-SNP off.
pub(crate) fn genoa_with_snp_off() -> FakeHost {
    let mut host = milan();
    host.write("/proc/cpuinfo", cpuinfo("AuthenticAMD", "AMD EPYC 9554 64-Core Processor", "svm"));
    host.cpuid.insert(0x8000_001f, [0x1_780f | 1 << 4, 0x4173, 1006, 1]);
    for parameter in ["sev", "sev_es", "sev_snp"] {
        host.write(&format!("/sys/module/kvm_amd/parameters/{parameter}"), "N\n");
    }
    host.remove("/sys/fs/cgroup/misc.capacity");
    host.remove("/sys/fs/cgroup/misc.current");
    host.sev = sev_replies((1, 55), false);
    host.kvm = Some(FakeKvm { api_version: 12, extensions: BTreeMap::from([(235, 1)]) });
    host
}

/// EPYC 7003 whose secure processor has firmware from before SEV-SNP's Linux support.
pub(crate) fn milan_with_old_firmware() -> FakeHost {
    let mut host = milan();
    host.write("/sys/module/kvm_amd/parameters/sev_snp", "N\n");
    host.sev = sev_replies((1, 49), false);
    host.kvm = Some(FakeKvm { api_version: 12, extensions: BTreeMap::from([(235, 0b1111)]) });
    host
}

/// Xeon with TDX, ready.
pub(crate) fn tdx() -> FakeHost {
    let mut host = server();
    add_handlers(&mut host);
    let flags = "vmx tdx_host_platform";
    host.write("/proc/cpuinfo", cpuinfo("GenuineIntel", "INTEL(R) XEON(R) PLATINUM 8592+", flags));
    host.write("/sys/module/kvm_intel/parameters/tdx", "Y\n");
    host.write("/sys/devices/faux/tdx_host/version", "1.5.24\n");
    host.write("/sys/fs/cgroup/misc.capacity", "tdx 63\n");
    host.write("/sys/fs/cgroup/misc.current", "tdx 1\n");
    host.others.insert(QUOTES.into(), Kind::Socket);
    // As Intel's service makes it: qgsd:qgsd.
    host.owners.insert(QUOTES.into(), Ownership { uid: 998, gid: 997, mode: 0o660 });
    let extensions = BTreeMap::from([(235, 0b10_0001), (234, 1), (233, 8)]);
    host.kvm = Some(FakeKvm { api_version: 12, extensions });
    host
}

/// Xeon whose firmware setup has TDX on, and whose kernel found no TDX module.
pub(crate) fn tdx_without_module() -> FakeHost {
    let mut host = tdx();
    host.write("/sys/module/kvm_intel/parameters/tdx", "N\n");
    host.remove("/sys/devices/faux/tdx_host/version");
    host.remove("/sys/fs/cgroup/misc.capacity");
    host.remove("/sys/fs/cgroup/misc.current");
    host.kvm = Some(FakeKvm { api_version: 12, extensions: BTreeMap::from([(235, 1)]) });
    host
}

/// A virtual machine with a `/dev/kvm` that is no good for stock kernels, without any of Nacre's parts.
pub(crate) fn bare_machine() -> FakeHost {
    let mut host = FakeHost { free: 1 << 30, ..FakeHost::default() };
    host.write(
        "/proc/cpuinfo",
        cpuinfo("GenuineIntel", "Intel(R) Xeon(R) Processor", "hypervisor"),
    );
    host.write("/proc/sys/kernel/osrelease", "6.18.44\n");
    host.write("/proc/meminfo", "MemTotal: 8000000 kB\nMemAvailable: 4000000 kB\n");
    host.devices = vec!["/dev/net/tun"];
    host.kvm = Some(FakeKvm { api_version: 12, extensions: BTreeMap::from([(235, 1), (234, 1)]) });
    host
}
