//! What the host may give to a guest and what it may not, and what is closed in a guest that runs: in VMs.
//!
//! They need what `cargo xtask image` makes and are skipped without, as the stories of `vm.rs`.

#![allow(clippy::unwrap_used)]

#[path = "vm/guest.rs"]
#[allow(dead_code)] // for the tests of another file
mod guest;
#[path = "vm/registry.rs"]
mod registry;

use guest::{Guest, HOST_FROM_GUEST, Launch, container, image};

/// True, with a word about it, if there is nothing to test with.
fn skipped() -> bool {
    let missing = guest::missing();
    if let Some(missing) = &missing {
        eprintln!("SKIPPED: {} is absent; run `cargo xtask image`", missing.display());
    }
    missing.is_some()
}

/// Each as QEMU's arguments, and what the guest says about it.
const UNEXPECTED: [(&[&str], &str); 9] = [
    (&["-device", "e1000e,romfile="], "(8086:10d3, class 020000)"),
    (
        &["-blockdev", "null-co,node-name=n,size=1048576", "-device", "nvme,drive=n,serial=n"],
        "(1b36:0010, class 010802)",
    ),
    (&["-device", "edu"], "(1234:11e8, class 00ff00)"),
    (&["-device", "virtio-balloon-pci,disable-legacy=on"], "(1af4:1045, class 00ff00)"),
    (&["-device", "virtio-rng-pci,disable-legacy=on"], "(1af4:1044, class 00ff00)"),
    (
        &["-fsdev", "local,id=f,path=/usr,security_model=none", "-device"],
        "(1af4:1049, class 000200)",
    ),
    // Virtio's old form, which has no way to keep the device from the guest's memory.
    (&["-device", "virtio-net-pci,romfile="], "(1af4:1000, class 020000)"),
    // A place to plug more into, later.
    (&["-device", "pcie-root-port,id=further,slot=1"], "(1b36:000c, class 060400)"),
    (&["-device", "virtio-serial-pci,disable-legacy=on"], "at most 1 of its kind"),
];

#[tokio::test]
async fn a_device_that_nobody_expects_ends_the_boot() {
    if skipped() {
        return;
    }
    for (qemu, words) in UNEXPECTED {
        let mut qemu = qemu.to_vec();
        if qemu[0] == "-fsdev" {
            qemu.push("virtio-9p-pci,fsdev=f,mount_tag=f,disable-legacy=on");
        }
        let console = Guest::refuses(Launch { qemu: &qemu, ..Default::default() }).await;
        assert!(console.contains("unexpected PCI device"), "{qemu:?}: {console}");
        assert!(console.contains(words), "no {words:?} for {qemu:?} in {console}");
        assert!(!console.contains("serving"), "{console}");
    }
}

#[tokio::test]
async fn without_randomness_of_the_processor_no_guest_starts() {
    if skipped() {
        return;
    }
    let qemu = ["-cpu", "max,-rdrand,-rdseed"];
    let console = Guest::refuses(Launch { qemu: &qemu, ..Default::default() }).await;
    assert!(console.contains("has neither RDSEED nor RDRAND"), "{console}");
    // The host cannot say that its own would do, without another measurement; and then it is refused.
    let kernel_parameters = "random.trust_cpu=off";
    let launch = Launch { kernel_parameters, ..Default::default() };
    let console = Guest::refuses(launch).await;
    assert!(console.contains("random generator is not seeded"), "{console}");
}

/// A pod whose container may do what the agent lets any container do.
async fn pod(kernel_parameters: &str, qemu: &[&str]) -> Guest {
    let registry = format!("{HOST_FROM_GUEST}:{}", registry::serve().await);
    let parameters =
        format!("nacre.danger_plain_http={registry} nacre.danger_set_policy=1 {kernel_parameters}");
    let launch = Launch { kernel_parameters: &parameters, qemu, ..Default::default() };
    let guest = Guest::boot(launch).await;
    guest.allow_all().await;
    guest.create_sandbox().await;
    let image = format!("{registry}/busybox:latest");
    let mut request = container("app", &image, &["sleep", "1000"]);
    privilege(request.OCI.mut_or_insert_default().Process.mut_or_insert_default());
    guest.run(&request).await;
    guest
}

/// Capabilities with which root does harm to a kernel.
fn privilege(process: &mut nacre_protocol::oci::Process) {
    let capabilities = process.Capabilities.mut_or_insert_default();
    let all = [
        "CAP_SYS_ADMIN",
        "CAP_SYS_MODULE",
        "CAP_SYS_RAWIO",
        "CAP_SYSLOG",
        "CAP_SYS_BOOT",
        "CAP_SYS_PTRACE",
        "CAP_SYS_TIME",
        "CAP_MKNOD",
        "CAP_DAC_OVERRIDE",
        "CAP_PERFMON",
        "CAP_BPF",
    ]
    .map(String::from);
    capabilities.Bounding = all.to_vec();
    capabilities.Effective = all.to_vec();
    capabilities.Permitted = all.to_vec();
}

/// Runs a command as root with all that; what it printed, both ways.
async fn as_root(guest: &Guest, command: &str) -> (i32, String) {
    let mut process = guest::shell_process(command);
    privilege(&mut process);
    guest.exec("app", "root", process).await.unwrap();
    let mut text = guest.read_all("app", "root", guest::Stream::Stdout).await;
    text.extend(guest.read_all("app", "root", guest::Stream::Stderr).await);
    let status = guest.wait("app", "root").await;
    (status, String::from_utf8_lossy(&text).trim().to_owned())
}

#[tokio::test]
async fn a_guest_that_serves_is_closed() {
    if skipped() {
        return;
    }
    let guest = pod("", &["-smp", "2"]).await;
    assert!(guest.console().contains("closed: no modules"), "{}", guest.console());
    for (setting, value) in [
        ("kernel/modules_disabled", "1"),
        ("kernel/kexec_load_disabled", "1"),
        ("kernel/sysrq", "0"),
        ("kernel/panic_on_oops", "1"),
        ("kernel/kptr_restrict", "2"),
        ("kernel/dmesg_restrict", "1"),
        ("kernel/unprivileged_bpf_disabled", "1"),
        ("kernel/modprobe", ""),
    ] {
        let (_, text) = as_root(&guest, &format!("cat /proc/sys/{setting}")).await;
        assert_eq!(text, value, "{setting}");
    }
    let (_, text) = as_root(&guest, "busybox sed -n s/^CapEff:.//p /proc/self/status").await;
    let capabilities = u64::from_str_radix(&text, 16).unwrap();
    assert!(capabilities >> 16 & 1 == 1, "CAP_SYS_MODULE is not in {text}");
    // A process with the capability is refused for the guest's sake, not for its own.
    let module = "busybox insmod /bin/busybox";
    let (status, text) = as_root(&guest, module).await;
    assert!(status != 0 && text.contains("not permitted"), "{text}");
    let lockdown = "busybox mkdir -p /s && busybox mount -t securityfs s /s && cat /s/lockdown";
    assert_eq!(as_root(&guest, lockdown).await.1, "none integrity [confidentiality]");
    let (status, text) = as_root(&guest, "echo none > /s/lockdown").await;
    assert!(status != 0, "{text}");
    for window in ["mount -t debugfs d /d", "mount -t tracefs t /d && cat /d/trace"] {
        let look = format!("busybox mkdir -p /d && busybox {window}");
        let (status, text) = as_root(&guest, &look).await;
        assert!(status != 0, "{window}: {text}");
    }
    let (_, text) = as_root(&guest, "busybox head -c 4 /proc/kcore").await;
    assert!(text.contains("not permitted") || text.contains("denied") || text.is_empty(), "{text}");
    // Under TCG, as here, no clock of the host's is there to be read. KVM may add kvm-clock.
    let clocks = "cat /sys/devices/system/clocksource/clocksource0/available_clocksource; ls /dev";
    let (_, text) = as_root(&guest, clocks).await;
    assert_eq!(text.lines().next().map(str::trim), Some("tsc"), "{text}");
    let devices = "cat /sys/bus/pci/drivers_autoprobe /sys/bus/virtio/drivers_autoprobe; \
                   ls /sys/bus/pci/drivers /sys/bus/acpi/drivers /sys/bus/virtio/drivers";
    let (_, text) = as_root(&guest, devices).await;
    assert!(text.starts_with("0\n0\n"), "{text}");
    for driver in ["nvme", "serial", "pcieport", "tpm_crb", "virtiofs"] {
        assert!(!text.lines().any(|line| line == driver), "{driver}: {text}");
    }
}

#[tokio::test]
async fn a_clock_before_the_image_is_set_to_its_date() {
    if skipped() {
        return;
    }
    let guest = pod("", &["-rtc", "base=2020-02-20T20:20:20"]).await;
    let console = guest.console();
    assert!(console.contains("the host's clock is before the date of this image"), "{console}");
    let (_, year) = as_root(&guest, "busybox date -u +%Y").await;
    assert!(year.parse::<u32>().unwrap() >= 2026, "{year}");
    // One that can be is believed.
    let guest = pod("", &["-rtc", "base=2031-02-20T20:20:20"]).await;
    assert!(!guest.console().contains("before the date of this image"), "{}", guest.console());
    assert_eq!(as_root(&guest, "busybox date -u +%Y").await.1, "2031");
}

#[test]
fn the_measured_line_closes_what_only_it_can() {
    if skipped() {
        return;
    }
    let image = image();
    for word in ["random.trust_cpu=on", "random.trust_bootloader=off", "acpiphp.disable=1"] {
        assert!(image.command_line().split(' ').any(|other| other == word), "{word}");
    }
}
