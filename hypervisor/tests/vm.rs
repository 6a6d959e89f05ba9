//! VMs that really boot.
#![allow(clippy::unwrap_used)]

mod lab;
mod tap;

use std::fs::{File, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::{Lab, PATIENCE, console_says, process_is_there};
use nacre_hypervisor::{
    AgentChannel, Disk, DiskImage, HostUser, Hypervisor, InsertError, LaunchError, Volume,
    VolumeKind,
};
use tokio::time::timeout;

#[tokio::test]
async fn a_guest_boots_speaks_and_powers_off() {
    let Some(lab) = Lab::open() else { return };
    let vm = lab.boot("echo hello from $($B uname -sm); $B poweroff -f").await;
    let exit = timeout(PATIENCE, vm.wait()).await.unwrap();
    assert_eq!(exit.reason, "the guest powered off");
    assert!(exit.clean);
    assert!(vm.console_tail().contains("hello from Linux x86_64"), "{}", vm.console_tail());
    assert_eq!(vm.wait().await, exit, "a late caller gets the same answer");
    assert!(!lab.run_dir().join("agent.sock").exists());
}

#[tokio::test]
async fn bytes_sent_before_the_guest_runs_reach_the_agents_port() {
    let Some(lab) = Lab::open() else { return };
    let script = "for p in /sys/class/virtio-ports/*; do
            [ \"$($B cat $p/name)\" = org.nacre.agent.0 ] && port=/dev/${p##*/}
        done
        exec 3<>$port; read line <&3; echo \"guest got $line\" >&3; $B sleep 600";
    let vm = lab.boot(script).await;
    let AgentChannel::Unix(path) = vm.agent_channel().clone() else {
        eprintln!("skipped: this host has vhost-vsock");
        return;
    };
    let mut channel = UnixStream::connect(path).unwrap();
    channel.set_read_timeout(Some(PATIENCE)).unwrap();
    channel.write_all(b"early words\n").unwrap();
    let mut answer = String::new();
    let answered = tokio::task::spawn_blocking(move || {
        BufReader::new(channel).read_line(&mut answer).map(|_| answer)
    });
    assert_eq!(answered.await.unwrap().unwrap(), "guest got early words\n");
    vm.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn a_further_port_is_a_stream_between_the_guest_and_whoever_holds_its_other_end() {
    let Some(lab) = Lab::open() else { return };
    let script = "for p in /sys/class/virtio-ports/*; do
            [ \"$($B cat $p/name)\" = org.nacre.test.0 ] && port=/dev/${p##*/}
        done
        exec 3<>$port; echo question >&3; read line <&3; echo the host says $line; $B sleep 600";
    let mut config = lab.config(script);
    let (ours, socket) = UnixStream::pair().unwrap();
    config.serial_ports =
        vec![nacre_hypervisor::SerialPort { name: "org.nacre.test.0".into(), socket }];
    let vm = lab.backend.launch(config).await.unwrap();
    let serving = tokio::task::spawn_blocking(move || {
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut reader = BufReader::new(ours);
        let mut question = String::new();
        reader.read_line(&mut question).unwrap();
        reader.get_mut().write_all(b"answer\n").unwrap();
        // QEMU's end closes with QEMU, and nobody else has it.
        (question, reader.read_line(&mut String::new()))
    });
    console_says(&vm, "the host says answer").await;
    vm.stop(Duration::ZERO).await;
    let (question, end) = serving.await.unwrap();
    assert_eq!((question.as_str(), end.unwrap()), ("question\n", 0));
}

#[tokio::test]
async fn a_scratch_disk_is_a_file_without_a_name_as_large_as_it_says() {
    let Some(lab) = Lab::open() else { return };
    // A virtio disk by its PCI identifiers (virtio 1.2, 4.1.2 and 5.2).
    let script = "$B cat /sys/bus/pci/devices/*/device | $B grep -c 0x1042; $B poweroff -f";
    let mut config = lab.config(script);
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 40).unwrap();
    let image = DiskImage::Scratch(file.try_clone().unwrap().into());
    config.disks = vec![Disk { serial: "scratch".into(), image }];
    let vm = lab.backend.launch(config).await.unwrap();
    let exit = timeout(PATIENCE, vm.wait()).await.unwrap();
    assert!(exit.clean, "{}", exit.reason);
    assert!(vm.console_tail().starts_with("1\n"), "{}", vm.console_tail());
    assert_eq!(file.metadata().unwrap().len(), 1 << 40);
}

#[tokio::test]
async fn a_volume_that_qemu_refuses_leaves_the_disk_empty_and_the_volume_free() {
    let Some(lab) = Lab::open() else { return };
    let mut config = lab.config("$B sleep 600");
    config.disks = vec![Disk { serial: "place".into(), image: DiskImage::Empty }];
    let vm = lab.backend.launch(config).await.unwrap();
    let path = lab.dir.path().join("volume");
    let volume = |kind| {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.unwrap();
        file.set_len(1 << 20).unwrap();
        Volume { file: file.into(), kind, size: 1 << 20 }
    };
    let held = || {
        let open = std::fs::read_dir(format!("/proc/{}/fd", vm.pid())).unwrap().flatten();
        open.filter(|fd| fd.path().read_link().is_ok_and(|to| to == path)).count()
    };
    // A file is no device: QEMU has taken it, and does not open it.
    for _ in 0..2 {
        let refused = vm.insert("place", volume(VolumeKind::BlockDevice)).await.unwrap_err();
        assert!(matches!(refused, InsertError::Refused { .. }), "{refused}");
        assert_eq!(held(), 0);
    }
    vm.insert("place", volume(VolumeKind::File)).await.unwrap();
    assert!(held() > 0);
    let full = vm.insert("place", volume(VolumeKind::File)).await.unwrap_err();
    assert!(matches!(full, InsertError::NoPlace { .. }), "{full}");
    vm.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn a_killed_qemu_is_reported_to_all_who_wait() {
    let Some(lab) = Lab::open() else { return };
    let vm = lab.boot("$B sleep 600").await;
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let vm = vm.clone();
            tokio::spawn(async move { vm.wait().await })
        })
        .collect();
    kill("-9", vm.pid());
    for waiter in waiting {
        let exit = timeout(PATIENCE, waiter).await.unwrap().unwrap();
        assert_eq!(exit.reason, "QEMU was killed by signal 9 (SIGKILL)");
        assert!(!exit.clean);
    }
    assert!(!process_is_there(vm.pid()));
}

#[tokio::test]
async fn a_terminated_qemu_says_who_asked() {
    let Some(lab) = Lab::open() else { return };
    let vm = lab.boot("$B sleep 600").await;
    kill("-TERM", vm.pid());
    let exit = timeout(PATIENCE, vm.wait()).await.unwrap();
    assert!(exit.reason.contains("terminating on signal 15"), "{}", exit.reason);
    assert!(!exit.clean);
}

#[tokio::test]
async fn a_guest_that_panics_is_quoted() {
    let Some(lab) = Lab::open() else { return };
    let vm = lab.boot("exit 3").await;
    let exit = timeout(PATIENCE, vm.wait()).await.unwrap();
    let expected = "the guest's kernel panicked: Attempted to kill init! exitcode=0x00000300";
    assert!(exit.reason.starts_with(expected), "{}: {}", exit.reason, vm.console_tail());
    assert!(!exit.clean);
}

#[tokio::test]
async fn stop_waits_for_a_guest_that_is_powering_off() {
    let Some(lab) = Lab::open() else { return };
    let vm = lab.boot("echo up; $B sleep 1; $B poweroff -f").await;
    console_says(&vm, "up").await;
    let exit = vm.stop(PATIENCE).await;
    assert_eq!(exit.reason, "the guest powered off");
}

#[tokio::test]
async fn stop_ends_a_guest_that_does_not_listen() {
    let Some(lab) = Lab::open() else { return };
    let vm = lab.boot("echo up; while :; do :; done").await;
    console_says(&vm, "up").await;
    let exit = vm.stop(Duration::from_millis(200)).await;
    assert_eq!(exit.reason, "the VM was stopped on request");
    assert!(exit.clean);
    assert_eq!(vm.stop(PATIENCE).await, exit, "stopping twice is harmless");
    assert!(!lab.run_dir().join("agent.sock").exists());
}

#[tokio::test]
async fn stop_kills_a_qemu_that_hangs() {
    let Some(lab) = Lab::open() else { return };
    let vm = lab.boot("$B sleep 600").await;
    kill("-STOP", vm.pid());
    let exit = vm.stop(Duration::ZERO).await;
    assert_eq!(exit.reason, "the VM did not stop when asked to, and was killed");
    assert!(!exit.clean && !process_is_there(vm.pid()));
}

#[tokio::test]
async fn a_vm_that_nobody_holds_is_killed() {
    let Some(lab) = Lab::open() else { return };
    let vm = lab.boot("$B sleep 600").await;
    let pid = vm.pid();
    drop(vm);
    gone_within(pid, Duration::from_secs(10));
}

#[tokio::test]
async fn a_flood_on_the_console_is_bounded() {
    let Some(lab) = Lab::open() else { return };
    let vm = lab.boot("$B yes flood-$$-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx").await;
    console_says(&vm, "flood-").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(vm.console_tail().len() <= 2048);
    for name in ["console.log", "console.log.1"] {
        let size = std::fs::metadata(lab.run_dir().join(name)).map_or(0, |data| data.len());
        assert!(size <= 128 * 1024, "{name} has {size} bytes");
    }
    assert!(vm.stop(Duration::ZERO).await.clean);
}

#[tokio::test]
async fn processors_and_memory_are_what_was_asked_for() {
    let Some(lab) = Lab::open() else { return };
    let mut config =
        lab.config("echo cpus=$($B nproc) $($B grep MemTotal /proc/meminfo); $B poweroff -f");
    config.vcpus = 2;
    config.memory_mib = 384;
    config.command_line.push_str(" nacre.test=a,b");
    let vm = lab.backend.launch(config).await.unwrap();
    assert!(timeout(PATIENCE, vm.wait()).await.unwrap().clean, "{}", vm.console_tail());
    let console = vm.console_tail();
    let memory: u64 = console
        .split_once("cpus=2 MemTotal:")
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .and_then(|kib| kib.parse().ok())
        .unwrap_or_else(|| panic!("{console}"));
    assert!((300 * 1024..384 * 1024).contains(&memory), "{memory} KiB");
}

#[tokio::test]
async fn qemu_runs_in_the_pods_network_without_capabilities_and_with_the_tap() {
    let Some(lab) = Lab::open() else { return };
    let Some((netns, tap)) = tap::in_new_namespace() else { return };
    let script = "for d in /sys/bus/pci/devices/*; do echo pci $($B cat $d/vendor $d/device); done
        echo end; $B sleep 600";
    let mut config = lab.config(script);
    config.netns = Some(netns.path());
    config.nics = vec![nacre_hypervisor::Nic { tap, mac: [2, 0, 0, 0, 0, 1], mtu: 1400 }];
    let vm = lab.backend.launch(config).await.unwrap();
    let proc = |file: &str| format!("/proc/{}/{file}", vm.pid());
    assert_eq!(
        std::fs::read_link(proc("ns/net")).unwrap(),
        std::fs::read_link(netns.path()).unwrap()
    );
    assert_ne!(
        std::fs::read_link(proc("ns/net")).unwrap(),
        std::fs::read_link("/proc/self/ns/net").unwrap()
    );
    let status = std::fs::read_to_string(proc("status")).unwrap();
    for line in
        ["CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"]
    {
        assert!(status.contains(line), "no {line:?} in {status}");
    }
    console_says(&vm, "pci 0x1af4 0x1041").await;
    assert!(vm.stop(Duration::ZERO).await.clean);
}

#[tokio::test]
async fn qemu_is_another_user_with_no_more_than_that_user_has() {
    const USER: &str = "64123:64124";
    let Some(lab) = Lab::open() else { return };
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: starting QEMU as another user takes root");
        return;
    }
    let lab = lab.run_as(HostUser::find(USER).unwrap());
    // The initrd is in a directory that is nobody else's.
    std::fs::set_permissions(lab.dir.path(), Permissions::from_mode(0o700)).unwrap();
    let error = lab.refused(|_| ()).await.to_string();
    let expected = format!("QEMU's user {USER} (vm.user) may not ");
    // QEMU itself may be where only root gets to, such as beneath root's home.
    let elsewhere = !error.contains(lab.dir.path().to_str().unwrap());
    if error.starts_with(&expected) && elsewhere {
        eprintln!("skipped: {error}");
        return;
    }
    assert!(error.starts_with(&expected) && error.contains("`chmod o+x /"), "{error}");
    assert!(!lab.run_dir().join("qemu.log").exists(), "nothing was started");

    std::fs::set_permissions(lab.dir.path(), Permissions::from_mode(0o711)).unwrap();
    let mut config = lab.config("echo up; $B sleep 600");
    // Disks are inherited: a file that only root may read can be one.
    let disk = lab.dir.path().join("initdata");
    std::fs::write(&disk, [b'x'; 512]).unwrap();
    std::fs::set_permissions(&disk, Permissions::from_mode(0o600)).unwrap();
    config.disks = vec![Disk { serial: "initdata".into(), image: DiskImage::ReadOnly(disk) }];
    let vm = lab.backend.launch(config).await.unwrap();
    console_says(&vm, "up").await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", vm.pid())).unwrap();
    for line in [
        "Uid:\t64123\t64123\t64123\t64123",
        "Gid:\t64124\t64124\t64124\t64124",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        assert!(status.contains(line), "no {line:?} in {status}");
    }
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap();
    let kvm = std::fs::metadata("/dev/kvm").ok().map(|device| device.gid().to_string());
    for group in groups.split_whitespace() {
        assert_eq!(Some(group), kvm.as_deref(), "a group that is no device's");
    }
    assert!(vm.stop(Duration::ZERO).await.clean, "QEMU obeys as that user");
}

#[tokio::test]
async fn qemu_dies_with_the_process_that_launched_it() {
    let Some(lab) = Lab::open() else { return };
    drop(lab);
    let mut launcher = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "launcher_that_gets_killed", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(launcher.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("qemu pid ") {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "the launcher ended early");
    }
    let pid: u32 = line.rsplit("qemu pid ").next().unwrap().trim().parse().unwrap();
    assert!(process_is_there(pid));
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    gone_within(pid, Duration::from_secs(10));
}

#[tokio::test]
#[ignore = "run as a process of its own by qemu_dies_with_the_process_that_launched_it"]
async fn launcher_that_gets_killed() {
    let Some(lab) = Lab::open() else { return };
    let vm = lab.boot("$B sleep 600").await;
    println!("qemu pid {}", vm.pid());
    vm.wait().await;
}

#[tokio::test]
async fn a_configuration_that_cannot_work_is_refused_by_field() {
    let Some(lab) = Lab::open() else { return };
    let refused = |error: LaunchError| match error {
        LaunchError::Config { field, problem } => format!("{field}: {problem}"),
        other => panic!("{other}"),
    };
    let cases: Vec<(&str, String)> = vec![
        ("vcpus: is 0; give 1 to 255", refused(lab.refused(|c| c.vcpus = 0).await)),
        ("vcpus: is 256", refused(lab.refused(|c| c.vcpus = 256).await)),
        ("memory_mib: is 64 MiB; give 128", refused(lab.refused(|c| c.memory_mib = 64).await)),
        (
            "kernel: /no/kernel cannot be read",
            refused(lab.refused(|c| c.kernel = "/no/kernel".into()).await),
        ),
        ("initrd: /tmp is not a file", refused(lab.refused(|c| c.initrd = "/tmp".into()).await)),
        ("id: must be", refused(lab.refused(|c| c.id = "a b".into()).await)),
        ("id: must be", refused(lab.refused(|c| c.id = String::new()).await)),
        (
            "run_dir: /no/dir cannot be used",
            refused(lab.refused(|c| c.run_dir = "/no/dir".into()).await),
        ),
        (
            "run_dir: /usr must be a directory with mode 0700",
            refused(lab.refused(|c| c.run_dir = "/usr".into()).await),
        ),
        (
            "netns: /no/netns cannot be opened",
            refused(lab.refused(|c| c.netns = Some("/no/netns".into())).await),
        ),
        (
            "netns: cannot be entered",
            refused(lab.refused(|c| c.netns = Some("/dev/null".into())).await),
        ),
        (
            "command_line: is \"a\\nb\"",
            refused(lab.refused(|c| c.command_line = "a\nb".into()).await),
        ),
        (
            "command_line: has 1 bytes more",
            refused(lab.refused(|c| c.command_line = "a".repeat(2023)).await),
        ),
        (
            "nics: [0].tap",
            refused(
                lab.refused(|c| {
                    let tap = File::open("/etc/passwd").unwrap().into();
                    c.nics =
                        vec![nacre_hypervisor::Nic { tap, mac: [2, 0, 0, 0, 0, 1], mtu: 1500 }];
                })
                .await,
            ),
        ),
    ];
    for (expected, message) in cases {
        assert!(message.starts_with(expected), "{message:?} does not begin with {expected:?}");
    }
}

#[tokio::test]
async fn what_qemu_itself_refuses_is_quoted() {
    let Some(lab) = Lab::open() else { return };
    let junk = lab.dir.path().join("junk");
    std::fs::write(&junk, vec![0xff; 8192]).unwrap();
    let error = lab.refused(|c| c.kernel = junk).await.to_string();
    assert!(error.contains("QEMU exited with status 1: "), "{error}");
    assert!(!lab.run_dir().join("agent.sock").exists());
    // A device that is no tap: /dev/null passes for one until QEMU asks.
    let error = lab.refused(|c| {
        let tap = File::open("/dev/null").unwrap().into();
        c.nics = vec![nacre_hypervisor::Nic { tap, mac: [2, 0, 0, 0, 0, 1], mtu: 1500 }];
    });
    let error = error.await.to_string();
    assert!(error.contains("TUNGETIFF"), "{error}");
}

#[tokio::test]
async fn more_memory_than_the_host_has_is_refused() {
    const ALWAYS_OVERCOMMIT: &str = "1";
    let policy = std::fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap();
    if policy.trim() == ALWAYS_OVERCOMMIT {
        eprintln!("skipped: this host promises any amount of memory (vm.overcommit_memory=1)");
        return;
    }
    let Some(lab) = Lab::open() else { return };
    let error = lab.refused(|c| c.memory_mib = 4 * 1024 * 1024).await.to_string();
    assert!(error.contains("cannot set up guest memory"), "{error}");
}

fn kill(signal: &str, pid: u32) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

fn gone_within(pid: u32, patience: Duration) {
    let start = Instant::now();
    while process_is_there(pid) {
        assert!(start.elapsed() < patience, "QEMU (pid {pid}) is still there");
        std::thread::sleep(Duration::from_millis(10));
    }
}
