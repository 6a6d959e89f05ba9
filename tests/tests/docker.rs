//! `docker run` with Nacre as the runtime.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::time::{Duration, Instant};

use nacre_tests::{Image, PATIENCE, World};

#[tokio::test]
async fn docker_runs_a_container_in_a_machine_of_its_own() {
    let world = World::new().await.unwrap();
    world.danger_allow_all_by_default().unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let Some(docker) = world.docker().await.unwrap() else { return };
    let pulled = docker.run(&["pull", &image]).unwrap();
    assert_eq!(pulled.code, 0, "{pulled:?}");
    let annotation = format!("io.kubernetes.cri.image-name={image}");
    let run = |options: &[&str], command: &[&str]| {
        let usual = ["run", "--rm", "--runtime", "nacre"];
        docker.run(&[&usual, options, &[image.as_str()], command].concat()).unwrap()
    };

    let script = "uname -r; id -u; hostname; cat /etc/hostname; echo bad >&2; exit 7";
    let named = ["--annotation", &annotation, "--hostname", "here"];
    let ran = run(&named, &["sh", "-c", script]);
    assert_eq!(ran.code, 7, "{ran:?} {}", docker.log().unwrap());
    let text = ran.text();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].contains("cloud-amd64"), "not the guest's kernel: {text}");
    assert_eq!(lines[1..], ["0", "here", "here"]);
    // Docker itself warns of a node without forwarding.
    assert!(ran.stderr.ends_with(b"bad\n"), "{ran:?}");

    let refused = run(&[], &["true"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.code, 125, "{said}");
    assert!(said.contains("--annotation io.kubernetes.cri.image-name="), "{said}");

    let started = docker
        .run(&[
            "run",
            "--detach",
            "--name",
            "long",
            "--runtime",
            "nacre",
            "--annotation",
            &annotation,
            &image,
            "sleep",
            "1000",
        ])
        .unwrap();
    assert_eq!(started.code, 0, "{started:?}");
    let inside = docker.run(&["exec", "long", "sh", "-c", "cat /proc/1/comm; exit 4"]).unwrap();
    assert_eq!((inside.code, inside.text().as_str()), (4, "sleep"), "{inside:?}");
    let removed = docker.run(&["rm", "--force", "long"]).unwrap();
    assert_eq!(removed.code, 0, "{removed:?}");
    docker.stop().unwrap();
    // Docker does not wait for the shim's end.
    let begun = Instant::now();
    loop {
        let left = [world.shims().unwrap(), world.virtual_machines().unwrap()].concat();
        if left.is_empty() {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{left:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
