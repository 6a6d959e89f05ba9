//! What fails, at each phase of a pod's life: each time containerd's state is right within seconds, a
//! reason is told, and nothing is left.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::future::{Future, IntoFuture as _};
use std::time::Duration;

use nacre_tests::{Container, Image, Pod, PodBuilder, World, container};

/// A product that hangs must not hang the tests; the machine that runs them may be slow.
const LONGEST: Duration = Duration::from_secs(90);
/// For a request to get to the place where it must wait.
const UNDER_WAY: Duration = Duration::from_millis(1500);

/// Where in its life a pod is struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The machine's process is there, the guest is not.
    Booting,
    /// The sandbox is ready and has no container.
    Made,
    /// The guest pulls a container's image, from a registry that does not answer.
    Pulling,
    /// A container runs.
    Running,
    /// A container was asked to end, and does not want to.
    Stopping,
}

/// All phases with `cargo xtask test --long`; else those that differ most.
fn phases() -> &'static [Phase] {
    const SHORT: usize = 3;
    const ALL: [Phase; 5] =
        [Phase::Booting, Phase::Pulling, Phase::Running, Phase::Made, Phase::Stopping];
    if std::env::var_os("NACRE_LONG").is_some() { &ALL } else { &ALL[..SHORT] }
}

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Machine,
    Shim,
    Containerd,
}

async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LONGEST, work).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not within {LONGEST:?}"),
    }
}

async fn nothing_left(world: &World, when: &str) {
    assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new(), "{when}");
}

fn pod<'w>(world: &'w World, name: &str, image: &str) -> PodBuilder<'w> {
    world.pod(name).exec_allowed().with(container("app", image).idle())
}

fn strike(world: &World, victim: Victim) {
    match victim {
        Victim::Machine => world.kill(&world.virtual_machines().unwrap()[0]).unwrap(),
        Victim::Shim => world.kill(&world.shims().unwrap()[0]).unwrap(),
        Victim::Containerd => world.kill_containerd().unwrap(),
    }
}

async fn until_not_ready(pod: &Pod<'_>) {
    while pod.ready().await.unwrap() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn until_no_shim(world: &World) {
    while !world.shims().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// What is there after the blow.
struct Struck<'w> {
    pod: Option<Pod<'w>>,
    app: Option<Container<'w>>,
    /// What containerd said of the request that was under way.
    said: String,
}

/// Kills the victim in that phase.
async fn kill_in<'w>(world: &'w World, victim: Victim, phase: Phase, image: &str) -> Struck<'w> {
    let name = format!("{victim:?}-{phase:?}").to_lowercase();
    let starting = pod(world, &name, image);
    if phase == Phase::Booting {
        let struck = async {
            world.new_machine(&[]).await.unwrap();
            strike(world, victim);
        };
        let (started, ()) = tokio::join!(starting.into_future(), struck);
        let said = format!("{:#}", started.unwrap_err());
        return Struck { pod: None, app: None, said };
    }
    let pod = starting.await.unwrap();
    let later = async {
        tokio::time::sleep(UNDER_WAY).await;
        strike(world, victim);
    };
    let mut app = None;
    let mut said = String::new();
    match phase {
        Phase::Booting | Phase::Made => strike(world, victim),
        Phase::Pulling => {
            let _frozen = world.freeze_registry().unwrap();
            let (started, ()) = tokio::join!(pod.start("app"), later);
            said = format!("{:#}", started.unwrap_err());
        }
        Phase::Running => {
            app = Some(pod.start("app").await.unwrap());
            strike(world, victim);
        }
        Phase::Stopping => {
            let started = pod.start("app").await.unwrap();
            let (stopped, ()) = tokio::join!(started.stop(600), later);
            said = stopped.err().map(|error| format!("{error:#}")).unwrap_or_default();
            app = Some(started);
        }
    }
    Struck { pod: Some(pod), app, said }
}

/// Why a sandbox is gone, as `nacre inspect` tells it.
fn reason(world: &World, id: &str) -> String {
    let nacre = world.products().nacre().display().to_string();
    // Exit status 1 says that something failed.
    let script = format!("{nacre} inspect {id} --output json || test $? = 1");
    let report = world.run(&["sh", "-c", &script]).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["run_directory"], serde_json::Value::Null, "it is gone: {report}");
    report["reason"].as_str().unwrap().to_owned()
}

/// Kills the machine or the shim in each phase.
async fn kill_in_each_phase(victim: Victim, named: &[&str]) {
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    world.pull(&image).await.unwrap();
    for &phase in phases() {
        let when = format!("{victim:?} killed while {phase:?}");
        let Struck { pod, app, said } = soon(&when, kill_in(&world, victim, phase, &image)).await;
        println!("{when}: {said}");
        if matches!(phase, Phase::Booting | Phase::Pulling) {
            assert!(named.iter().any(|word| said.contains(word)), "{when}: {said}");
        }
        if let Some(app) = app {
            assert_ne!(soon(&when, app.wait_exit()).await.unwrap().code, 0, "{when}");
        }
        if let Some(pod) = pod {
            soon(&when, until_not_ready(&pod)).await;
            soon(&when, pod.stop()).await.unwrap();
            pod.remove().await.unwrap();
            let reason = reason(&world, pod.id());
            println!("{when}: {reason}");
            let told = if victim == Victim::Shim { "NACRE-1205: " } else { "killed by signal 9" };
            assert!(reason.contains(told), "{when}: {reason}");
        }
        nothing_left(&world, &when).await;
    }
    // The world is as good as new.
    let pod = pod(&world, "afterwards", &image).await.unwrap();
    let app = pod.start("app").await.unwrap();
    assert_eq!(app.sh("echo fine").await.unwrap(), "fine");
}

#[tokio::test]
async fn a_machine_killed_in_any_phase_is_told_and_leaves_nothing() {
    kill_in_each_phase(Victim::Machine, &["killed by signal 9"]).await;
}

#[tokio::test]
async fn a_shim_killed_in_any_phase_takes_its_machine_along_and_leaves_nothing() {
    kill_in_each_phase(Victim::Shim, &["ttrpc: closed", "shim", "connection"]).await;
}

#[tokio::test]
async fn containerd_killed_in_any_phase_finds_its_pods_again_and_leaves_nothing() {
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    world.pull(&image).await.unwrap();
    for &phase in phases() {
        let when = format!("containerd killed while {phase:?}");
        let struck = kill_in(&world, Victim::Containerd, phase, &image);
        let Struck { pod, app, said } = soon(&when, struck).await;
        println!("{when}: {said}");
        world.revive_containerd().await.unwrap();
        if let Some(pod) = &pod
            && phase != Phase::Pulling
        {
            assert!(pod.ready().await.unwrap(), "{when}: its pod lives on");
        }
        if let Some(app) = &app {
            assert_eq!(app.sh("echo alive").await.unwrap(), "alive", "{when}");
        }
        soon(&when, world.remove_all_pods()).await.unwrap();
        if phase == Phase::Booting {
            // containerd 1.6 has forgotten the pod: its shim gives up by itself. What containerd keeps of it
            // in its state directory it removes when it starts again.
            soon(&when, until_no_shim(&world)).await;
            world.restart_containerd().await.unwrap();
        }
        nothing_left(&world, &when).await;
    }
}

#[tokio::test]
async fn a_guest_that_hangs_can_be_stopped_all_the_same() {
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let pod = pod(&world, "hung", &image).await.unwrap();
    let app = pod.start("app").await.unwrap();
    let _frozen = world.freeze(&world.virtual_machines().unwrap()[0]).unwrap();
    soon("stop", pod.stop()).await.unwrap();
    assert_ne!(app.wait_exit().await.unwrap().code, 0);
    pod.remove().await.unwrap();
    assert!(world.containerd_log().unwrap().contains("does not answer"), "the reason is logged");
    nothing_left(&world, "hung").await;
}

#[tokio::test]
async fn what_the_node_lacks_is_named_and_nothing_is_left() {
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();

    // CNI: a plugin that fails.
    let network = world.path("/run/world/cni/10-world.conflist");
    let sane = std::fs::read_to_string(&network).unwrap();
    let insane = sane.replace("10.88.0.0/16", "10.88.0.0/33");
    assert_ne!(sane, insane);
    std::fs::write(&network, insane).unwrap();
    let failing = async {
        loop {
            // containerd reads it when it changes, which takes a moment.
            match pod(&world, "unconnected", &image).await {
                Ok(pod) => {
                    pod.stop().await.unwrap();
                    pod.remove().await.unwrap();
                }
                Err(error) => return format!("{error:#}"),
            }
        }
    };
    let said = soon("CNI", failing).await;
    assert!(said.contains("10.88.0.0/33"), "{said}");
    std::fs::write(&network, sane).unwrap();
    // The plugin that could not add could not remove either: containerd keeps the pod for the kubelet.
    soon("CNI is well again", world.remove_all_pods()).await.unwrap();
    nothing_left(&world, "CNI fails").await;

    // /run is full.
    world.run(&["mkdir", "-p", "/run/nacre"]).unwrap();
    world.run(&["mount", "-t", "tmpfs", "-o", "size=4k,mode=700", "full", "/run/nacre"]).unwrap();
    world.run(&["sh", "-c", "head -c 4096 /dev/zero > /run/nacre/lock"]).unwrap();
    let said =
        format!("{:#}", soon("full", pod(&world, "full", &image).into_future()).await.unwrap_err());
    assert!(said.contains("No space left") && said.contains("/run/nacre"), "{said}");
    world.run(&["umount", "/run/nacre"]).unwrap();
    nothing_left(&world, "disk full").await;

    // The registry dies while the guest pulls.
    let pod = pod(&world, "alone", &image).await.unwrap();
    world.pull(&image).await.unwrap();
    let registry = world.daemon("docker-registry").unwrap();
    let frozen = world.freeze(&registry).unwrap();
    let gone = async {
        tokio::time::sleep(UNDER_WAY).await;
        world.kill(&registry).unwrap();
    };
    let (started, ()) = soon("pull", async { tokio::join!(pod.start("app"), gone) }).await;
    drop(frozen);
    let said = format!("{:#}", started.unwrap_err());
    assert!(said.contains("10.88.0.1:5000"), "{said}");
    assert!(pod.ready().await.unwrap(), "the pod lives on, the kubelet tries again");
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    nothing_left(&world, "the registry is gone").await;
}

#[tokio::test]
async fn leftovers_are_found_told_and_removed_beside_a_pod_that_lives() {
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let nacre = world.products().nacre().display().to_string();
    let gc = |more: &[&str]| {
        let words = [&[nacre.as_str(), "gc", "--output", "json"], more].concat();
        // Exit status 1 says that there is something.
        let text = world.run(&["sh", "-c", &format!("{} || true", words.join(" "))]).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["sandboxes"].clone()
    };
    let living = pod(&world, "living", &image).await.unwrap();
    let app = living.start("app").await.unwrap();
    assert_eq!(gc(&[]), serde_json::json!([]), "nobody is dead");

    // Shim and containerd die together: nobody is there to clean up.
    let before = world.shims().unwrap();
    let dead = pod(&world, "dead", &image).await.unwrap();
    let shim = world.new_shim(&before).await.unwrap();
    world.kill_containerd().unwrap();
    world.kill(&shim).unwrap();
    // And this is from before a reboot.
    let stale = world.path("/run/nacre/stale");
    std::fs::create_dir(&stale).unwrap();
    std::fs::write(
        stale.join("record.json"),
        r#"{"boot":"earlier","machine":{"pid":1,"started":1}}"#,
    )
    .unwrap();

    let found = gc(&["--dry-run"]);
    let ids: Vec<_> = found.as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap()).collect();
    let mut expected = [dead.id(), "stale"];
    expected.sort_unstable();
    assert_eq!(ids, expected);
    let ours = found.as_array().unwrap().iter().find(|s| s["id"] == dead.id()).unwrap();
    assert_eq!(ours["pod"]["name"], "dead", "{ours}");
    for kind in ["redirect", "socket", "directory"] {
        let has = |thing: &serde_json::Value| thing["kind"] == kind;
        assert!(ours["things"].as_array().unwrap().iter().any(has), "no {kind} in {ours}");
    }
    let removed = gc(&[]);
    for sandbox in removed.as_array().unwrap() {
        assert_eq!(sandbox["failed"], serde_json::json!([]), "{sandbox}");
    }
    assert_eq!(gc(&["--dry-run"]), serde_json::json!([]));
    let told = reason(&world, dead.id());
    assert!(
        told.starts_with("NACRE-1205: ") && told.contains(&format!("process {}", shim.inner_pid)),
        "{told}"
    );
    world.revive_containerd().await.unwrap();
    assert_eq!(app.sh("echo alive").await.unwrap(), "alive");
    soon("not ready", until_not_ready(&dead)).await;
    dead.stop().await.unwrap();
    dead.remove().await.unwrap();

    // A pod that starts sweeps as well.
    std::fs::create_dir(&stale).unwrap();
    living.stop().await.unwrap();
    living.remove().await.unwrap();
    let next = pod(&world, "next", &image).await.unwrap();
    let swept = async {
        while stale.exists() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon("the sweep", swept).await;
    next.stop().await.unwrap();
    next.remove().await.unwrap();
    nothing_left(&world, "gc").await;
}
