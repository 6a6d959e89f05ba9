//! Many pods, one after the other and at once: nothing grows, nothing is left.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use nacre_tests::{Image, World, container};

/// How many pods; `cargo xtask soak --pods` says another number.
const PODS: usize = 4;
/// Pods before the count begins: daemons load and open things when they are first used.
const WARM_UP: usize = 2;
/// How much a daemon may grow over all pods, in KiB: caches, and the Go programs' heaps, are not leaks, but
/// a leak of 100 KiB a pod shows in 200 of them.
const MOST_GROWTH_KIB: u64 = 20 * 1024;

async fn one_pod(world: &World, image: &str, number: usize) {
    let app = container("app", image).script("echo here; sleep 1000");
    let pod = world.pod(&format!("soak-{number}")).exec_allowed().with(app).await.unwrap();
    let app = pod.start("app").await.unwrap();
    app.wait_for("here").await.unwrap();
    assert_eq!(app.sh("echo fine").await.unwrap(), "fine");
    app.stop(0).await.unwrap();
    app.remove().await.unwrap();
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new(), "pod {number}");
}

#[tokio::test]
async fn pods_in_a_loop_leave_the_node_as_it_was() {
    let pods = std::env::var("NACRE_SOAK_PODS").ok().map_or(PODS, |pods| pods.parse().unwrap());
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    for number in 0..WARM_UP {
        one_pod(&world, &image, number).await;
    }
    let before = world.holdings().unwrap();
    let daemons = ["containerd", "nacre-snapshott"].map(|name| world.daemon(name).unwrap());
    let memory = || daemons.iter().map(|daemon| world.resident_kib(daemon).unwrap());
    let memory_before: Vec<u64> = memory().collect();
    for number in 0..pods {
        one_pod(&world, &image, WARM_UP + number).await;
    }
    let after = world.holdings().unwrap();
    println!("after {pods} pods: {after:?}");
    assert_eq!(after.without_descriptors(), before.without_descriptors());
    for ((name, was), (_, is)) in before.descriptors.iter().zip(&after.descriptors) {
        // It is no part of the node, and keeps connections of guests whose machine has ended for a while.
        if name == "docker-registry" {
            continue;
        }
        // Connections that were idle at the one time or the other.
        assert!(*is <= was + 4, "{name} had {was} open descriptors and has {is} after {pods} pods");
    }
    for ((daemon, was), is) in daemons.iter().zip(memory_before).zip(memory()) {
        println!("{}: {was} KiB before, {is} KiB after {pods} pods", daemon.name);
        assert!(is < was + MOST_GROWTH_KIB, "{} grew from {was} to {is} KiB", daemon.name);
    }
}

#[tokio::test]
async fn ten_pods_at_once_and_a_shim_that_does_much_do_not_grow() {
    const AT_ONCE: usize = 10;
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    world.pull(&image).await.unwrap();
    let before = world.holdings().unwrap();
    let names: Vec<String> = (0..AT_ONCE).map(|number| format!("many-{number}")).collect();
    let starting = names.iter().map(|name| async {
        let app = container("app", &image).script("echo here; sleep 1000");
        let pod = world.pod(name).annotation("io.nacre.vm.memory_mib", "256");
        let pod = pod.exec_allowed().with(app).await.unwrap();
        let app = pod.start("app").await.unwrap();
        app.wait_for("here").await.unwrap();
        (pod, app)
    });
    let pods = futures_util::future::join_all(starting).await;
    assert_eq!(world.virtual_machines().unwrap().len(), AT_ONCE);

    // One of the shims does a hundred times what it did before.
    let shims = world.shims().unwrap();
    let descriptors = || -> Vec<usize> {
        let open = |pid: i32| std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        shims.iter().map(|shim| open(shim.pid)).collect()
    };
    let app = &pods[0].1;
    assert_eq!(app.sh("echo warm").await.unwrap(), "warm");
    let (open, memory) = (descriptors(), shims.iter().map(|s| world.resident_kib(s).unwrap()));
    let memory: Vec<u64> = memory.collect();
    for _ in 0..100 {
        assert_eq!(app.sh("echo again").await.unwrap(), "again");
    }
    assert_eq!(descriptors(), open, "a shim keeps something of each exec");
    for (shim, was) in shims.iter().zip(memory) {
        let is = world.resident_kib(shim).unwrap();
        println!("shim {}: {was} KiB, then {is} KiB", shim.inner_pid);
        assert!(is < was + 2048, "a shim grew from {was} to {is} KiB");
    }

    let ending = pods.iter().map(|(pod, _)| async {
        pod.stop().await.unwrap();
        pod.remove().await.unwrap();
    });
    futures_util::future::join_all(ending).await;
    assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new());
    assert_eq!(world.holdings().unwrap().without_descriptors(), before.without_descriptors());
}
