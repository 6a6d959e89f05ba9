//! What the probe says of hosts that are described.

mod containerd;
mod fake;
mod headers;
pub(crate) mod hosts;

use fake::FakeHost;
use hosts::question;

use super::*;

fn report(host: &FakeHost, tee: Tee) -> Report {
    Facts::gather(host, &question()).report(&question(), tee)
}

fn verdict(host: &FakeHost, tee: Tee) -> Verdict {
    report(host, tee).verdict()
}

fn finding(host: &FakeHost, tee: Tee, id: &str) -> Finding {
    let report = report(host, tee);
    report.findings.into_iter().find(|finding| finding.id == id).expect(id)
}

fn labels(host: &FakeHost, asked: Tee) -> Vec<Label> {
    let facts = Facts::gather(host, &question());
    facts.labels(asked, &Tee::ALL.map(|tee| facts.report(&question(), tee)))
}

fn failing(host: &FakeHost, tee: Tee) -> Vec<&'static str> {
    report(host, tee).of(Status::Fail).map(|finding| finding.id).collect()
}

#[test]
fn a_milan_host_runs_all_but_tdx() {
    let host = hosts::milan();
    for (tee, expected) in [
        (Tee::None, Verdict::Ready),
        (Tee::EmulatedSnp, Verdict::Ready),
        (Tee::Snp, Verdict::Ready),
        (Tee::Tdx, Verdict::NotReady),
    ] {
        assert_eq!(verdict(&host, tee), expected, "{tee}: {:?}", failing(&host, tee));
    }
    let report = report(&host, Tee::Snp);
    assert_eq!(report.of(Status::Warn).count(), 0, "{report:?}");
    let said = |id| finding(&host, Tee::Snp, id).found;
    assert_eq!(said("snp.firmware"), "SEV firmware 1.55 build 21, state 1, 0 SEV guests");
    assert_eq!(
        said("snp.platform"),
        "SEV-SNP firmware 1.55 build 21, TCB db18000000000004, 3 guests"
    );
    assert_eq!(said("snp.asids"), "3 of 99 ASIDs for SEV-ES and SEV-SNP guests in use");
    assert!(said("snp.cpu").contains("C-bit 51, 5 address bits reduced, 509 ASIDs, 99 of them"));
    assert_eq!(said("kvm.vm-types"), "default, software-protected, SEV, SEV-ES, SEV-SNP");
}

#[test]
fn devices_are_asked_what_the_kernels_headers_say_and_nothing_else() {
    let host = hosts::milan();
    let _ = Facts::gather(&host, &question());
    // linux/kvm.h: KVM_CAP_VM_TYPES 235, KVM_CAP_MEMORY_ATTRIBUTES 233, KVM_CAP_GUEST_MEMFD 234.
    // linux/psp-sev.h: SEV_PLATFORM_STATUS 1 with 12 bytes, SNP_PLATFORM_STATUS 9 with 32.
    assert_eq!(
        host.recorded(),
        [
            "KVM_GET_API_VERSION",
            "KVM_CREATE_VM",
            "KVM_CHECK_EXTENSION 235",
            "KVM_CHECK_EXTENSION 233",
            "KVM_CHECK_EXTENSION 234",
            "SEV_ISSUE_CMD 1 12",
            "SEV_ISSUE_CMD 9 32",
            "open /dev/vhost-vsock",
            "open /dev/vhost-net",
            "open /dev/net/tun",
        ]
    );
}

#[test]
fn snp_that_is_off_in_the_firmware_setup_is_told_from_a_processor_without_it() {
    let host = hosts::genoa_with_snp_off();
    assert_eq!(verdict(&host, Tee::None), Verdict::Ready);
    assert_eq!(
        failing(&host, Tee::Snp),
        [
            "kvm.vm-types",
            "kvm.guest-memfd",
            "kvm.memory-attributes",
            "snp.cpu",
            "snp.kernel",
            "snp.platform",
            "snp.asids"
        ]
    );
    let cpu = finding(&host, Tee::Snp, "snp.cpu");
    assert!(
        cpu.found.starts_with("the processor has SEV-SNP, the kernel does not show"),
        "{cpu:?}"
    );
    assert!(cpu.advice.contains("SMEE"), "{cpu:?}");
    // The question alone would initialise the platform.
    assert!(!host.recorded().contains(&"SEV_ISSUE_CMD 9 32".to_owned()));
    assert!(finding(&host, Tee::Snp, "snp.asids").advice.contains("ASID space limit"));

    let mut passthrough = hosts::milan_with_old_firmware();
    passthrough.write("/proc/cmdline", "quiet iommu=pt");
    let kernel = finding(&passthrough, Tee::Snp, "snp.kernel");
    assert!(kernel.found.contains("iommu=pt") && kernel.advice.contains("remove"), "{kernel:?}");
}

#[test]
fn old_firmware_of_the_secure_processor_fails() {
    let host = hosts::milan_with_old_firmware();
    assert_eq!(verdict(&host, Tee::Snp), Verdict::NotReady);
    let firmware = finding(&host, Tee::Snp, "snp.firmware");
    assert_eq!(firmware.status, Status::Fail);
    assert!(firmware.found.contains("1.49") && firmware.advice.contains("1.51"), "{firmware:?}");
}

#[test]
fn doubts_about_the_snp_platform_are_told() {
    let mut host = hosts::milan();
    let snp = host.sev.get_mut(&9).unwrap();
    // mask_chip_id, mask_chip_key, vlek_en; a reported TCB that is older.
    snp[8] = 0b111;
    snp[31] = 210;
    let platform = finding(&host, Tee::Snp, "snp.platform");
    assert_eq!(platform.status, Status::Warn);
    for text in ["VLEK", "chip id masked", "chip key masked", "reported TCB d218000000000004"] {
        assert!(platform.found.contains(text), "{text}: {platform:?}");
    }
    host.write("/sys/fs/cgroup/misc.current", "sev_es 99\n");
    assert_eq!(finding(&host, Tee::Snp, "snp.asids").status, Status::Warn);
    // Without the controller the processor's own number counts.
    host.remove("/sys/fs/cgroup/misc.capacity");
    host.remove("/sys/fs/cgroup/misc.current");
    assert_eq!(
        finding(&host, Tee::Snp, "snp.asids").found,
        "99 ASIDs for SEV-ES and SEV-SNP guests"
    );
}

#[test]
fn a_tdx_host_runs_all_but_snp() {
    let mut host = hosts::tdx();
    assert_eq!(verdict(&host, Tee::Tdx), Verdict::Ready, "{:?}", failing(&host, Tee::Tdx));
    assert_eq!(verdict(&host, Tee::None), Verdict::Ready);
    assert_eq!(verdict(&host, Tee::Snp), Verdict::NotReady);
    assert_eq!(finding(&host, Tee::Tdx, "tdx.module").found, "TDX module 1.5.24");
    assert_eq!(finding(&host, Tee::Tdx, "tdx.keys").found, "1 of 63 key ids for TDX guests in use");
    // Before Linux 7.2 the version is not shown; that KVM offers the type tells enough.
    host.remove("/sys/devices/faux/tdx_host/version");
    assert_eq!(finding(&host, Tee::Tdx, "tdx.module").status, Status::Pass);
    assert_eq!(verdict(&host, Tee::Tdx), Verdict::Ready);

    hosts::install_qemu(&mut host, hosts::QEMU_10, "sev-snp-guest\n");
    assert_eq!(failing(&host, Tee::Tdx), ["qemu.version", "qemu.objects"]);
    assert_eq!(verdict(&host, Tee::None), Verdict::Ready);
}

#[test]
fn tdx_without_its_module_or_quotes_is_told() {
    let host = hosts::tdx_without_module();
    let failing = failing(&host, Tee::Tdx);
    for id in ["kvm.vm-types", "tdx.kernel", "tdx.module"] {
        assert!(failing.contains(&id), "{failing:?}");
    }
    assert_eq!(finding(&host, Tee::Tdx, "tdx.cpu").status, Status::Pass);
    assert_eq!(finding(&host, Tee::Tdx, "tdx.keys").status, Status::Warn);

    let mut silent = hosts::tdx();
    let path = Path::new(hosts::QUOTES);
    let service = finding(&silent, Tee::Tdx, "tdx.quote-service");
    assert_eq!(service.status, Status::Pass);
    assert!(service.found.contains("uid 998, gid 997, mode 0660"), "{service:?}");
    // QEMU connects as root without capabilities, and can be given the socket's group.
    silent.owners.insert(path.into(), Ownership { uid: 998, gid: 997, mode: 0o755 });
    let service = finding(&silent, Tee::Tdx, "tdx.quote-service");
    assert_eq!(service.status, Status::Fail);
    assert!(service.found.contains("mode 0755: QEMU may not connect"), "{service:?}");
    assert!(service.advice.contains("let its group write to it"), "{service:?}");
    silent.others.insert(path.into(), Kind::Directory);
    assert!(finding(&silent, Tee::Tdx, "tdx.quote-service").found.contains("is no socket"));
    silent.others.remove(path);
    assert_eq!(self::failing(&silent, Tee::Tdx), ["tdx.quote-service"]);
    let mut without = question();
    without.quote_generation = None;
    let report = Facts::gather(&silent, &without).report(&without, Tee::Tdx);
    assert_eq!(report.verdict(), Verdict::Ready);
    assert!(report.of(Status::Warn).any(|finding| finding.id == "tdx.quote-service"));
}

#[test]
fn a_bare_machine_lacks_what_is_not_installed() {
    let host = hosts::bare_machine();
    assert_eq!(
        failing(&host, Tee::None),
        ["qemu.version", "firmware.plain", "image", "containerd.config", "storage"]
    );
    let cpu = finding(&host, Tee::None, "cpu.virtualization");
    assert_eq!(cpu.status, Status::Warn);
    assert!(cpu.advice.contains("nested virtualization"), "{cpu:?}");
    assert_eq!(verdict(&host, Tee::Snp), Verdict::NotReady);
}

#[test]
fn without_kvm_only_unprotected_pods_run_unless_the_configuration_forbids_emulation() {
    let mut host = hosts::server();
    host.kvm = None;
    assert_eq!(verdict(&host, Tee::None), Verdict::Ready);
    let device = finding(&host, Tee::None, "kvm.device");
    assert_eq!((device.status, device.found.as_str()), (Status::Warn, "/dev/kvm is absent"));
    assert_eq!(finding(&host, Tee::Snp, "kvm.device").status, Status::Fail);
    for (accelerator, expected) in
        [(Accelerator::Kvm, Status::Fail), (Accelerator::Tcg, Status::NotApplicable)]
    {
        let question = Question { accelerator, ..question() };
        let report = Facts::gather(&host, &question).report(&question, Tee::None);
        let device = report.findings.iter().find(|finding| finding.id == "kvm.device").unwrap();
        assert_eq!(device.status, expected);
    }
    let mut odd = hosts::server();
    odd.kvm.as_mut().unwrap().api_version = 13;
    assert!(finding(&odd, Tee::None, "kvm.device").found.contains("API version 13"));
}

#[test]
fn what_only_root_may_see_is_unknown_and_never_ready() {
    let mut host = hosts::milan();
    host.denied = vec!["/dev/sev".into(), "/dev/kvm".into(), "/dev/vhost-vsock".into()];
    let report = report(&host, Tee::Snp);
    assert_eq!(report.verdict(), Verdict::Unknown);
    let unknown: Vec<&str> = report.of(Status::Unknown).map(|finding| finding.id).collect();
    assert_eq!(unknown, ["kvm.device", "snp.firmware", "snp.platform", "device.vhost-vsock"]);
    assert!(report.of(Status::Unknown).all(|f| f.advice.starts_with("run as root to see /dev/")));
    host.denied = vec![hosts::CONTAINERD_CONFIG.into()];
    assert_eq!(verdict(&host, Tee::Snp), Verdict::Unknown);
    let labels = labels(&host, Tee::Snp);
    assert!(labels.contains(&Label { name: "nacre.io/ready".into(), value: "false".into() }));
}

#[test]
fn firmware_that_is_made_for_something_else_fails() {
    let mut host = hosts::milan();
    let path = "/opt/nacre/share/ovmf/OVMF.amdsev.fd";
    host.write(path, hosts::inteltdx());
    let firmware = finding(&host, Tee::Snp, "firmware.snp");
    assert_eq!(firmware.status, Status::Fail);
    assert!(firmware.found.contains("does not check the kernel's hashes"), "{firmware:?}");
    host.write(path, vec![0; 4 << 20]);
    assert!(finding(&host, Tee::Snp, "firmware.snp").found.contains("not made for SEV-SNP"));
    host.remove(path);
    assert!(finding(&host, Tee::Snp, "firmware.snp").found.contains("is absent"));
    // Nobody asks for it here.
    assert_eq!(finding(&host, Tee::None, "firmware.snp").status, Status::NotApplicable);
    // Root reads neither better.
    for kind in [Kind::Directory, Kind::Other] {
        host.others.insert(path.into(), kind);
        let firmware = finding(&host, Tee::Snp, "firmware.snp");
        assert_eq!(firmware.status, Status::Fail, "{firmware:?}");
        assert!(firmware.found.contains("it is no file"), "{firmware:?}");
    }
    host.others.remove(Path::new(path));
    host.write(path, hosts::amdsev());
    host.denied = vec![path.into()];
    assert_eq!(finding(&host, Tee::Snp, "firmware.snp").status, Status::Unknown);
}

#[test]
fn images_that_are_not_as_their_manifest_says_fail() {
    let mut host = hosts::server();
    host.write("/opt/nacre/share/nacre/vmlinuz", "vmlinu");
    let image = finding(&host, Tee::None, "image");
    assert!(image.found.contains("has 6 bytes, in the manifest 7"), "{image:?}");
    host.remove("/opt/nacre/share/nacre/vmlinuz");
    assert!(finding(&host, Tee::None, "image").found.contains("vmlinuz is absent"));
    host.write("/opt/nacre/share/nacre/manifest.json", "{");
    assert_eq!(finding(&host, Tee::None, "image").found, "no manifest");
}

#[test]
fn scarce_resources_are_told() {
    let mut host = hosts::server();
    host.clock = false;
    host.free = 1536 << 20;
    host.write(
        "/proc/meminfo",
        "MemTotal: 4000000 kB\nMemAvailable: 600000 kB\nHugePages_Total: 1200\nHugePages_Free: 7\n\
         Hugepagesize: 2048 kB\n",
    );
    host.remove("/sys/fs/cgroup/cgroup.controllers");
    host.write("/proc/sys/kernel/osrelease", "6.1.0-28-amd64\n");
    for id in ["memory", "huge-pages", "storage", "clock", "cgroup.version"] {
        assert_eq!(finding(&host, Tee::None, id).status, Status::Warn, "{id}");
    }
    assert_eq!(finding(&host, Tee::Snp, "kernel.version").status, Status::Warn);
    host.free = 1023 << 20;
    assert_eq!(failing(&host, Tee::None), ["storage"]);
}

/// Other pods take memory and give it back: labels must not follow.
#[test]
fn only_a_host_that_is_too_small_fails_for_its_memory() {
    // A pod takes 512 MiB and 64 on the host.
    for (total_mib, available_mib, expected) in [
        (4000, 1152, Status::Pass),
        (4000, 1151, Status::Warn),
        (4000, 575, Status::Warn),
        (576, 0, Status::Warn),
        (575, 575, Status::Fail),
    ] {
        let mut host = hosts::server();
        let (total, available) = (total_mib * 1024, available_mib * 1024);
        host.write(
            "/proc/meminfo",
            format!("MemTotal: {total} kB\nMemAvailable: {available} kB\n"),
        );
        let memory = finding(&host, Tee::None, "memory");
        assert_eq!(memory.status, expected, "{memory:?}");
        let pods = available_mib / 576;
        assert!(memory.found.contains(&format!("{pods} pods of 576 MiB")), "{memory:?}");
    }
}

#[test]
fn the_findings_are_the_same_for_every_question() {
    let ids = |tee| -> Vec<&str> {
        report(&hosts::milan(), tee).findings.iter().map(|finding| finding.id).collect()
    };
    let expected = ids(Tee::None);
    let unique: std::collections::BTreeSet<&str> = expected.iter().copied().collect();
    assert_eq!(unique.len(), expected.len(), "{expected:?}");
    for tee in Tee::ALL {
        assert_eq!(ids(tee), expected, "{tee}");
        for finding in report(&hosts::bare_machine(), tee).findings {
            let silent = finding.status <= Status::NotApplicable;
            assert_eq!(finding.advice.is_empty(), silent, "{finding:?}");
            assert!(!finding.found.is_empty(), "{finding:?}");
        }
    }
}

#[test]
fn labels_say_what_a_scheduler_needs() {
    let labels = labels(&hosts::milan(), Tee::Snp);
    let lines: Vec<String> =
        labels.iter().map(|label| format!("{}={}", label.name, label.value)).collect();
    assert_eq!(
        lines,
        [
            "nacre.io/kernel.version=6.18.4-amd64",
            "nacre.io/kvm=true",
            "nacre.io/qemu.version=11.1.3",
            "nacre.io/ready=true",
            "nacre.io/snp.firmware=1.55.21",
            "nacre.io/tee=snp",
            "nacre.io/tee-emulated-snp=true",
            "nacre.io/tee-none=true",
            "nacre.io/tee-snp=true",
            "nacre.io/tee-tdx=false",
        ]
    );
    let labels = self::labels(&hosts::tdx(), Tee::Snp);
    let value = |name: &str| labels.iter().find(|label| label.name == name).unwrap().value.as_str();
    assert_eq!(value("nacre.io/ready"), "false");
    assert_eq!(value("nacre.io/tee-tdx"), "true");
    assert_eq!(value("nacre.io/tdx.module"), "1.5.24");

    // The configuration of one TEE alone may name firmware that is not there.
    let (host, mut of_snp) = (hosts::milan(), question());
    of_snp.firmware.snp = "/nowhere".into();
    let facts = Facts::gather(&host, &question());
    let mut reports = [Tee::None, Tee::Snp].map(|tee| facts.report(&question(), tee));
    reports[1] = Facts::gather(&host, &of_snp).report(&of_snp, Tee::Snp);
    let labels = facts.labels(Tee::None, &reports);
    let value = |name: &str| labels.iter().find(|label| label.name == name).unwrap().value.as_str();
    assert_eq!((value("nacre.io/tee-none"), value("nacre.io/tee-snp")), ("true", "false"));
    assert_eq!((value("nacre.io/ready"), value("nacre.io/tee-emulated-snp")), ("true", "false"));
}

/// Whatever is in the files and whatever programs print, there is a report, it is bounded, and nothing that
/// is needed counts as found.
#[test]
fn odd_contents_are_judged_within_bounds() {
    let garbage: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"-1".to_vec(),
        b"sev_es -5\ntdx 99999999999999999999999\nMemAvailable: -1 kB\nflags: svm".to_vec(),
        b"MemTotal: 18446744073709551615 kB\nMemAvailable: 18446744073709551615 kB\n\
          HugePages_Total: 18446744073709551615\nHugepagesize: 18446744073709551615 kB\n"
            .to_vec(),
        vec![0xff; 3 << 20],
        b"\x1b]0;x\x07\xe2\x80\xae\n".repeat(1000),
        b"[".repeat(100_000),
        [b"a=".to_vec(), b"[".repeat(100_000)].concat(),
        b"imports = [\"/etc/containerd/config.toml\", \"*\", \"/*/x\"]\nversion = -3".to_vec(),
    ];
    for content in garbage {
        let mut host = hosts::milan();
        for bytes in host.files.values_mut() {
            bytes.clone_from(&content);
        }
        for program in host.programs.values_mut() {
            for answer in program.values_mut() {
                *answer = "QEMU emulator version -1.-2.\u{1b}[2J 99999999999999.1\n";
            }
        }
        host.sev.values_mut().for_each(|reply| reply.fill(0xff));
        host.cpuid.values_mut().for_each(|registers| *registers = [u32::MAX; 4]);
        host.kvm.as_mut().unwrap().extensions.values_mut().for_each(|answer| *answer = -22);
        let facts = Facts::gather(&host, &question());
        for tee in Tee::ALL {
            let report = facts.report(&question(), tee);
            assert_eq!(report.verdict(), Verdict::NotReady, "{tee}");
            for finding in report.findings {
                for text in [&finding.found, &finding.advice] {
                    assert!(text.chars().count() <= 401 && !text.chars().any(char::is_control));
                }
            }
        }
        for label in labels(&host, Tee::Snp) {
            let value = label.value.as_bytes();
            assert!(value.len() <= 63 && value.first().is_some_and(u8::is_ascii_alphanumeric));
            assert!(value.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte)));
        }
    }
}
