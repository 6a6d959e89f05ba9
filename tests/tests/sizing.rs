//! How large a pod's machine is, what it costs the node, and that limits are really there for the containers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use nacre_configuration::Config;
use nacre_configuration::sizing::annotation::{IMAGES_MIB, MEMORY_MIB, SCRATCH_DISK_MIB, VCPUS};
use nacre_configuration::sizing::{
    ContainerRole, ContainerShare, HOST_MIB, Machine, PodShare, RuntimeClass, Wishes,
};
use nacre_tests::{
    Compression, Container, ContainerdVersion, Image, Layer, Process, World, container,
};

/// What the shim must come to for a pod of such containers: thousandths of a CPU and MiB of memory of each.
fn machine(annotations: &[(&str, &str)], containers: &[(u64, u64)]) -> Machine {
    let config = Config::default();
    let annotations: HashMap<String, String> =
        annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let shares: Vec<_> = containers
        .iter()
        .map(|(cpu, mib)| ContainerShare {
            role: ContainerRole::App,
            cpu_limit: *cpu,
            cpu_request: *cpu,
            memory_limit: mib << 20,
        })
        .collect();
    let wishes = Wishes::read(&annotations, &config).unwrap();
    Machine::of(&wishes, &PodShare::of_containers(&shares), &config).unwrap()
}

/// A line such as `MemTotal: 123 kB`.
fn kib(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap().trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

async fn memory_info(container: &Container<'_>) -> String {
    container.sh("cat /proc/meminfo").await.unwrap()
}

/// The guest has the processors and, but for what its kernel may take, the memory of the machine.
async fn is_in(container: &Container<'_>, machine: Machine) {
    assert_eq!(container.sh("nproc").await.unwrap(), machine.vcpus.to_string());
    let total = kib(&memory_info(container).await, "MemTotal") >> 10;
    eprintln!("{} MiB of {} are left by the kernel", total, machine.memory_mib);
    assert!(total < u64::from(machine.memory_mib), "{total} MiB of {machine:?}");
    assert!(total >= machine.left_by_kernel_mib(), "{total} MiB of {machine:?}");
}

async fn limits_make_the_machine(version: ContainerdVersion) {
    let world = World::builder().containerd(version).start().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let first = container("first", &image).cpu_thousandths(1500).memory_mib(150).idle();
    let second = container("second", &image).cpu_thousandths(250).memory_mib(50).idle();
    let pod = world.pod("limited").with(first).with(second).exec_allowed().await.unwrap();
    let expected = machine(&[], &[(1500, 150), (250, 50)]);
    assert_eq!((expected.vcpus, expected.memory_mib), (2, 496));
    is_in(&pod.start("first").await.unwrap(), expected).await;
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
}

#[tokio::test]
async fn limits_make_the_machine_with_containerd_1_6() {
    limits_make_the_machine(ContainerdVersion::V1_6).await;
}

#[tokio::test]
async fn limits_make_the_machine_with_containerd_1_7() {
    limits_make_the_machine(ContainerdVersion::V1_7).await;
}

#[tokio::test]
async fn limits_make_the_machine_with_containerd_2_1() {
    limits_make_the_machine(ContainerdVersion::V2_1).await;
}

#[tokio::test]
async fn without_limits_the_configuration_decides_and_the_owner_over_both() {
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let chosen = [(VCPUS, "2"), (MEMORY_MIB, "384")];
    for (annotations, limit) in [(&[][..], None), (&chosen[..], Some(2048))] {
        let mut app = container("app", &image).idle();
        if let Some(mib) = limit {
            app = app.memory_mib(mib);
        }
        let mut pod = world.pod("chosen").with(app).exec_allowed();
        for (name, value) in annotations {
            pod = pod.annotation(name, value);
        }
        let pod = pod.await.unwrap();
        is_in(&pod.start("app").await.unwrap(), machine(annotations, &[])).await;
        pod.stop().await.unwrap();
        pod.remove().await.unwrap();
    }
}

/// A group as a kubelet makes it for a pod, with a memory limit. `None` where this machine lets nobody make one.
fn group_of_pod(world: &World, name: &str, mib: u64) -> Option<PathBuf> {
    let root = world.path("/sys/fs/cgroup");
    let (hierarchy, file) = match root.join("cgroup.controllers").exists() {
        true => (root, "memory.max"),
        false => (root.join("memory"), "memory.limit_in_bytes"),
    };
    let group = hierarchy.join(name);
    fs::create_dir(&group).ok()?;
    // Where the controller is not to be had the file does not exist.
    let mut limit = fs::File::options().write(true).open(group.join(file)).ok()?;
    limit.write_all((mib << 20).to_string().as_bytes()).ok()?;
    Some(group)
}

#[tokio::test]
async fn what_cannot_fit_is_refused_before_it_boots() {
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let app = || container("app", &image).idle();
    for (declared, annotations, words) in [
        (
            app().memory_mib(20_000),
            &[][..],
            &["vm.max_memory_mib is 16384", "20000 (memory limit) + 128 (images, pod.images_mib)"]
                [..],
        ),
        (app().cpu_thousandths(16_500), &[], &["CPU limit of 16500m needs 17 vCPUs"]),
        (
            app().memory_mib(64),
            &[(IMAGES_MIB, "16000")],
            &["16000 (images, annotation io.nacre.vm.images_mib)"],
        ),
        (
            app(),
            &[(IMAGES_MIB, "600"), (SCRATCH_DISK_MIB, "512")],
            &["of a scratch disk of 512 MiB: give one of 704 MiB"],
        ),
        (
            app(),
            &[(IMAGES_MIB, "300"), (MEMORY_MIB, "400")],
            &["of a machine with 400 MiB of memory", "give it 544 MiB"],
        ),
    ] {
        let mut pod = world.pod("large").with(declared).with_policy().unwrap();
        for (name, value) in annotations {
            pod = pod.annotation(name, value);
        }
        let error = pod.await.unwrap_err().to_string();
        eprintln!("refused: {error}");
        for word in words {
            assert!(error.contains(word), "no {word:?} in: {error}");
        }
        // What an event of Kubernetes holds.
        assert!(error.len() < 1024, "{} bytes: {error}", error.len());
    }
    // More than this node has, where the configuration allows it.
    let more = |text: String| text.replace("[vm]\n", "[vm]\nmax_memory_mib = 16777216\n");
    world.configure_shim(more).unwrap();
    let huge = world.pod("huge").with(app().memory_mib(4_000_000));
    let error = huge.await.unwrap_err().to_string();
    assert!(error.contains("but this node has"), "{error}");
    assert_eq!(world.virtual_machines().unwrap().len(), 0);
    assert!(!world.containerd_log().unwrap().contains("phase=vmm"), "a machine was started");
    assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_pod_runs_in_its_group_and_one_that_takes_more_than_that_was_given_is_refused() {
    let limit = 256;
    let overhead = RuntimeClass::all(&Config::default(), 4096).unwrap()[0].memory_mib;
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let in_group = |name: &str| {
        let app = container("app", &image).memory_mib(limit).idle();
        world.pod(name).with(app).control_group(&format!("/{name}"))
    };
    // As from a kubelet without the RuntimeClass' overhead.
    if group_of_pod(&world, "narrow", limit.unsigned_abs()).is_none() {
        eprintln!("SKIPPED: no control group with a memory limit can be made here");
        return;
    }
    let error = in_group("narrow").await.unwrap_err().to_string();
    eprintln!("refused: {error}");
    let expected = machine(&[], &[(0, limit.unsigned_abs())]);
    let missing = expected.memory_mib + HOST_MIB - 256;
    for words in ["limited to 256 MiB", &format!("raise the overhead by {missing} MiB")] {
        assert!(error.contains(words), "no {words:?} in {error:?}");
    }
    // And with it: all that the pod costs the node is in the group.
    let group = group_of_pod(&world, "wide", limit.unsigned_abs() + u64::from(overhead)).unwrap();
    let pod = in_group("wide").await.unwrap();
    pod.start("app").await.unwrap();
    let own = group.join(format!("nacre-{}", pod.id()));
    let inside = fs::read_to_string(own.join("cgroup.procs")).unwrap();
    let mut inside: Vec<i32> = inside.lines().map(|pid| pid.parse().unwrap()).collect();
    let processes = [world.virtual_machines().unwrap(), world.shims().unwrap()].concat();
    let mut expected: Vec<_> = processes.iter().map(|process| process.pid).collect();
    inside.sort_unstable();
    expected.sort_unstable();
    assert_eq!(inside, expected);
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    assert!(!own.exists());
}

/// Takes that much memory, says so, and keeps it.
fn holding(mib: u64) -> String {
    format!(
        "exec 3>&1; {{ dd if=/dev/zero bs=1M count={mib} 2>/dev/null; echo held >&3; sleep 1000; }} | \
         tail -c {mib}m >/dev/null"
    )
}

#[tokio::test]
async fn containers_have_their_limits_at_once_and_not_more() {
    let world = World::new().await.unwrap();
    // As much in files as is counted for images; and a machine that is not larger than the sum demands.
    let files = Layer::new(Compression::Zstd).zeros("files", 120 << 20);
    let image = world.push(&Image::busybox("app").layer(files)).unwrap();
    let large = container("large", &image).memory_mib(80).script(&holding(70));
    let small = container("small", &image).memory_mib(50).script(&holding(40));
    let greedy = container("greedy", &image).memory_mib(20).args(["tail", "/dev/zero"]);
    let pod = world.pod("full").with(large).with(small).with(greedy).exec_allowed();
    let pod = pod.await.unwrap();
    let large = pod.start("large").await.unwrap();
    large.wait_for("held").await.unwrap();
    let small = pod.start("small").await.unwrap();
    small.wait_for("held").await.unwrap();
    is_in(&small, machine(&[], &[(0, 80), (0, 50), (0, 20)])).await;
    let exit = pod.start("greedy").await.unwrap().wait_exit().await.unwrap();
    assert_eq!((exit.code, exit.reason.as_str()), (137, "OOMKilled"));
    assert!(large.runs().await.unwrap() && small.runs().await.unwrap());
    // Its own limit ends a container, and nobody else.
    let _ = large.exec(["sh", "-c", "head -c 30m /dev/zero | tail -c 30m | wc -c"]).await;
    let exit = large.wait_exit().await.unwrap();
    assert_eq!((exit.code, exit.reason.as_str()), (137, "OOMKilled"));
    assert!(small.runs().await.unwrap());
    assert_eq!(small.sh("echo here").await.unwrap(), "here");
}

#[tokio::test]
async fn an_image_as_large_as_was_said_fits() {
    let world = World::new().await.unwrap();
    let files = Layer::new(Compression::Zstd).zeros("files", 180 << 20);
    let image = world.push(&Image::busybox("app").layer(files)).unwrap();
    let app = || container("app", &image).memory_mib(32).script("wc -c < /files");
    let pod = || world.pod("image").with(app());
    let small = pod().await.unwrap();
    let error = small.start("app").await.unwrap_err().to_string();
    eprintln!("refused: {error}");
    assert!(error.contains("does not fit"), "{error}");
    small.stop().await.unwrap();
    small.remove().await.unwrap();
    // What `nacre policy generate` says of it: 180 MiB, and BusyBox.
    let pod = pod().annotation(IMAGES_MIB, "183").await.unwrap();
    let app = pod.start("app").await.unwrap();
    assert_eq!(app.wait_exit().await.unwrap().code, 0);
    assert_eq!(app.stdout().unwrap(), format!("{}\n", 180 << 20));
}

/// Memory of a process that nobody shares and that cannot be reclaimed, in KiB: without the guest's, and
/// without instructions that software emulation has translated.
fn own_kib(process: &Process, guest_kib: u64) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{}/smaps", process.pid)).unwrap();
    let (mut own, mut counts, mut size) = (0, false, 0);
    for line in maps.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap();
        if !first.ends_with(':') {
            counts = words.next().is_some_and(|permissions| !permissions.starts_with("rwx"));
        } else if first == "Size:" {
            size = kib(line, "Size");
        } else if first == "Anonymous:" && counts && size != guest_kib {
            own += kib(line, "Anonymous");
        }
    }
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap();
    own + kib(&status, "VmPTE")
}

/// A constant covers what was measured, with a tenth to spare, and is not more than three times as much.
fn covers(what: &str, constant: u64, measured_mib: u64) {
    eprintln!("{what}: {measured_mib} MiB measured, {constant} MiB counted");
    assert!(
        constant * 10 >= measured_mib * 11,
        "{what}: {measured_mib} MiB, but {constant} are counted"
    );
    assert!(constant <= measured_mib * 3, "{what}: {measured_mib} MiB, but {constant} are counted");
}

#[tokio::test]
async fn what_is_counted_beside_limits_is_what_a_pod_takes() {
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    for (vcpus, limit) in [(1, 100), (4, 2500)] {
        let app = container("app", &image).memory_mib(limit).cpu_thousandths(vcpus * 1000).idle();
        let pod = world.pod("measured").with(app).exec_allowed().await.unwrap();
        let app = pod.start("app").await.unwrap();
        let expected = machine(&[], &[(vcpus.unsigned_abs() * 1000, limit.unsigned_abs())]);
        let memory_mib = u64::from(expected.memory_mib);
        let qemu = own_kib(&world.virtual_machines().unwrap()[0], memory_mib << 10);
        let shim = own_kib(&world.shims().unwrap()[0], 0);
        eprintln!("{memory_mib} MiB, {vcpus} vCPUs: VMM {qemu} KiB, shim {shim} KiB");
        covers("host", HOST_MIB.into(), (qemu + shim) >> 10);

        let info = memory_info(&app).await;
        let total = kib(&info, "MemTotal") >> 10;
        covers("kernel", memory_mib - expected.left_by_kernel_mib(), memory_mib - total);
        // With the pause program and an image of 2 MiB, which are the least of it. Free pages that wait in
        // lists of the processors are not in use.
        let kinds =
            ["Cached", "AnonPages", "Slab", "KernelStack", "PageTables", "Percpu", "VmallocUsed"];
        let used: u64 = kinds.iter().map(|kind| kib(&info, kind)).sum();
        covers("agent", nacre_protocol::guest_memory::RESERVED_MIB.into(), used >> 10);
        pod.stop().await.unwrap();
        pod.remove().await.unwrap();
    }
}
