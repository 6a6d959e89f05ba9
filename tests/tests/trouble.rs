//! Things go wrong: each time a clear error within seconds, and nothing left behind.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::time::{Duration, Instant};

use nacre_tests::{Compression, Image, Layer, World, container};

async fn nothing_left(world: &World) {
    assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new());
}

/// Seconds where the processor is real; an emulated one on a busy machine gets this long before it
/// counts as hung.
const PATIENCE: Duration = Duration::from_secs(120);

/// The error must come and contain one of the words.
fn clear(error: &anyhow::Error, started: Instant, words: &[&str]) {
    let text = format!("{error:#}");
    eprintln!("refused after {:.1} s: {text}", started.elapsed().as_secs_f64());
    assert!(started.elapsed() < PATIENCE, "it took {:?}", started.elapsed());
    assert!(words.iter().any(|w| text.to_lowercase().contains(w)), "none of {words:?} in: {text}");
}

#[tokio::test]
async fn a_killed_vm_is_seen_explained_and_can_be_deleted() {
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let pod = world.pod("victim").with(container("app", &image).idle()).await.unwrap();
    let app = pod.start("app").await.unwrap();
    let started = Instant::now();
    world.kill(&world.virtual_machines().unwrap()[0]).unwrap();
    let exit = app.wait_exit().await.unwrap();
    assert_ne!(exit.code, 0);
    assert!(started.elapsed() < PATIENCE);
    // containerd handles the ends of the container and of its pod side by side.
    while pod.ready().await.unwrap() {
        assert!(started.elapsed() < PATIENCE, "a pod without a VM is not ready");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(world.containerd_log().unwrap().contains("killed by signal 9"));
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    nothing_left(&world).await;
}

#[tokio::test]
async fn an_image_that_is_nowhere_or_gone_is_named() {
    let world = World::new().await.unwrap();
    let started = Instant::now();
    let error = world.pull("10.88.0.1:5000/absent:1").await.unwrap_err();
    clear(&error, started, &["absent:1"]);
    let app = Image::busybox("app").layer(Layer::new(Compression::Gzip).file("x", 0o644, b"x"));
    let image = world.push(&app).unwrap();
    world.pull(&image).await.unwrap();
    let pod = world.pod("gone").with(container("app", &image)).await.unwrap();
    world.registry().lose(&world.registry().layers(&app).unwrap()[1]).unwrap();
    let started = Instant::now();
    let error = pod.start("app").await.unwrap_err();
    clear(&error, started, &["not found", "404", "unknown"]);
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    nothing_left(&world).await;
}

#[tokio::test]
async fn a_tampered_layer_is_refused_by_its_digest() {
    let world = World::new().await.unwrap();
    let app = Image::busybox("app").layer(Layer::new(Compression::Gzip).file("x", 0o644, b"x"));
    let image = world.push(&app).unwrap();
    world.pull(&image).await.unwrap();
    let pod = world.pod("tampered").with(container("app", &image)).await.unwrap();
    let digest = world.registry().layers(&app).unwrap()[1].clone();
    world.registry().corrupt(&digest).unwrap();
    let started = Instant::now();
    let error = pod.start("app").await.unwrap_err();
    clear(&error, started, &["digest"]);
    assert!(
        format!("{error:#}").contains(&digest[..19]),
        "the error does not name the layer: {error:#}"
    );
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    nothing_left(&world).await;
}

#[tokio::test]
async fn a_registry_that_is_down_is_named() {
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    world.pull(&image).await.unwrap();
    let pod = world.pod("offline").with(container("app", &image)).await.unwrap();
    world.stop_registry().unwrap();
    let started = Instant::now();
    let error = pod.start("app").await.unwrap_err();
    clear(&error, started, &["10.88.0.1:5000"]);
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    nothing_left(&world).await;
}

#[tokio::test]
async fn an_image_larger_than_the_guest_is_refused_and_the_pod_lives_on() {
    let world = World::new().await.unwrap();
    let big = Layer::new(Compression::Zstd).zeros("big", 300 << 20);
    let big = world.push(&Image::busybox("big").layer(big)).unwrap();
    let small = world.push(&Image::busybox("small")).unwrap();
    let pod = world.pod("full").annotation("io.nacre.vm.memory_mib", "256");
    let small = container("small", &small).script("echo fine");
    let pod = pod.with(container("big", &big)).with(small).await.unwrap();
    let started = Instant::now();
    let error = pod.start("big").await.unwrap_err();
    clear(&error, started, &["space", "memory", "limit", "large"]);
    let app = pod.start("small").await.unwrap();
    assert_eq!(app.wait_exit().await.unwrap().code, 0);
}

#[tokio::test]
async fn a_vm_larger_than_the_host_is_refused() {
    let world = World::new().await.unwrap();
    let more = |text: String| text.replace("[vm]\n", "[vm]\nmax_memory_mib = 16777216\n");
    world.configure_shim(more).unwrap();
    let started = Instant::now();
    let error =
        world.pod("huge").annotation("io.nacre.vm.memory_mib", "8388608").await.unwrap_err();
    clear(&error, started, &["memory"]);
    nothing_left(&world).await;
}

#[tokio::test]
async fn annotations_out_of_bounds_or_unknown_are_refused_by_name() {
    let world = World::new().await.unwrap();
    for (name, value) in [
        ("io.nacre.vm.memory_mib", "99999999"),
        ("io.nacre.vm.memory_mib", "plenty"),
        ("io.nacre.vm.vcpus", "0"),
        ("io.nacre.vm.kernel", "/tmp/mine"),
    ] {
        let started = Instant::now();
        let error = world.pod("bounded").annotation(name, value).await.unwrap_err();
        clear(&error, started, &[name]);
    }
    nothing_left(&world).await;
}

#[tokio::test]
async fn a_mistaken_configuration_is_explained() {
    let world = World::new().await.unwrap();
    for (wrong, named) in [
        ("[vm]\nmemroy_mib = 512\n", "memroy_mib"),
        ("[vm]\nvcpus = \"two\"\n", "vcpus"),
        ("[vm]\nmax_vcpus = 0\n", "vcpus"),
    ] {
        let sane = std::fs::read_to_string(world.path("/run/world/shim.toml")).unwrap();
        world.configure_shim(|text| text.replace("[vm]\n", wrong)).unwrap();
        let started = Instant::now();
        let error = world.pod("mistaken").await.unwrap_err();
        clear(&error, started, &[named]);
        world.configure_shim(|_| sane).unwrap();
    }
    world.configure_shim(|text| text.replace("/image", "/not-there")).unwrap();
    clear(&world.pod("mistaken").await.unwrap_err(), Instant::now(), &["not-there"]);
    nothing_left(&world).await;
}
