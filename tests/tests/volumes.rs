//! Volumes that are copied into the guest or made there: what a kubelet prepares on the node, and what the
//! containers of a pod see of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::time::Duration;

use nacre_tests::{Container, Image, Volume, World, container};

/// Waits until a script in the container prints this.
async fn until(container: &Container<'_>, script: &str, expected: &str) {
    let mut said = String::new();
    for _ in 0..300 {
        said = container.sh(script).await.unwrap_or_else(|error| error.to_string());
        if said == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{script}: {said:?} and not {expected:?}");
}

#[tokio::test]
async fn volumes_are_shared_in_the_guest_and_follow_their_sources() {
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let (work, fast) = (Volume::empty_dir("work"), Volume::in_memory("fast", 24));
    let (config, secret) = (Volume::config_map("config"), Volume::secret("secret"));
    let (token, fixed) = (Volume::token("token"), Volume::config_map("fixed"));
    let pod = "volumes";
    world.exchange_files(pod, &config, 1, &[("a", "1"), ("gone", "1"), ("sub/b", "1")]).unwrap();
    world.exchange_files(pod, &fixed, 1, &[("a", "1")]).unwrap();
    world.exchange_files(pod, &secret, 1, &[("password", "1")]).unwrap();
    world.exchange_files(pod, &token, 1, &[("token", "1")]).unwrap();

    let app = container("app", &image)
        .idle()
        .volume(&work, "/work")
        .volume(&fast, "/dev/shm")
        .volume(&fixed, "/fixed")
        .volume(&config, "/config")
        .volume(&secret, "/secret")
        .volume(&token, "/token")
        .volume_part(&config, "a", "/one-file");
    let side = container("side", &image)
        .idle()
        .user(1000)
        .volume(&fast, "/fast")
        .volume_part(&work, "in/here", "/part")
        .volume_read_only(&work, "/work");
    let started = world
        .pod(pod)
        .with(app)
        .with(side)
        .settings("volume_updates = [\"config\", \"secret\", \"token\"]")
        .exec_allowed()
        .await
        .unwrap();
    let app = started.start("app").await.unwrap();
    let side = started.start("side").await.unwrap();

    // Shared between containers, and only in the guest.
    app.sh("echo from app > /work/file; echo quick > /dev/shm/file").await.unwrap();
    assert_eq!(side.sh("cat /work/file /fast/file").await.unwrap(), "from app\nquick");
    side.sh("echo from side > /part/file; echo x > /fast/side").await.unwrap();
    assert_eq!(app.sh("cat /work/in/here/file").await.unwrap(), "from side");
    assert!(side.sh("echo x > /work/no 2>&1").await.is_err(), "it is read-only there");
    let on_node = world.in_volume(pod, &work).unwrap() + &world.in_volume(pod, &fast).unwrap();
    assert!(!on_node.contains("file"), "{on_node}");
    // As large as the pod says; where it says nothing, 64 MiB.
    let blocks = "df -k /dev/shm | tail -1 | awk '{print $2}'";
    assert_eq!(app.sh(blocks).await.unwrap().trim(), (24 * 1024).to_string());
    assert_eq!(side.sh(blocks).await.unwrap().trim(), (64 * 1024).to_string());

    // New files come all at once; what is gone goes.
    let seen = "cat /config/a /config/sub/b /secret/password /token/token /fixed/a /one-file";
    assert_eq!(app.sh(seen).await.unwrap(), "111111");
    assert_eq!(app.sh("ls /config").await.unwrap(), "a\ngone\nsub");
    world.exchange_files(pod, &fixed, 2, &[("a", "2")]).unwrap();
    world.exchange_files(pod, &secret, 2, &[("password", "2")]).unwrap();
    world.exchange_files(pod, &token, 2, &[("token", "2")]).unwrap();
    world.exchange_files(pod, &config, 2, &[("a", "2"), ("sub/b", "2"), ("new", "2")]).unwrap();
    until(&app, "cat /config/new /secret/password /token/token", "222").await;
    // The policy names the volumes that may change, and a subPath does not.
    assert_eq!(app.sh(seen).await.unwrap(), "222211");
    assert_eq!(app.sh("ls /config").await.unwrap(), "a\nnew\nsub");
    let generations = "ls -d /config/..2026* | wc -l; readlink /config/..data";
    assert_eq!(app.sh(generations).await.unwrap(), "1\n..2026_01_01_00_00_00.2");
    // Again and again.
    for number in 3..8 {
        let text = number.to_string();
        world.exchange_files(pod, &token, number, &[("token", &text)]).unwrap();
        until(&app, "cat /token/token", &text).await;
    }
    assert_eq!(app.sh("ls -A /token | wc -l").await.unwrap().trim(), "3");
    started.stop().await.unwrap();
    started.remove().await.unwrap();
    world.unmount_volumes(pod).unwrap();
    assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn what_a_copy_cannot_be_is_refused() {
    let world = World::new().await.unwrap();
    world.danger_allow_all_by_default().unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    world.run(&["mkdir", "-p", "/run/world/node"]).unwrap();
    world.run(&["sh", "-c", "echo from the node > /run/world/node/file"]).unwrap();
    let node = Volume::host_path("node", "/run/world/node");
    let huge = Volume::huge_pages("huge");
    let pod = world
        .pod("refused")
        .with(container("writer", &image).idle().volume(&node, "/node"))
        .with(container("huge", &image).idle().volume(&huge, "/huge"))
        .with(container("reader", &image).idle().volume_read_only(&node, "/node"))
        .without_policy()
        .await
        .unwrap();
    let error = pod.start("writer").await.unwrap_err().to_string();
    assert!(error.contains("/run/world/node") && error.contains("would be lost"), "{error}");
    let reader = pod.start("reader").await.unwrap();
    assert_eq!(reader.sh("cat /node/file").await.unwrap(), "from the node");
    assert!(reader.sh("echo x > /node/file 2>&1").await.is_err());
    match pod.start("huge").await {
        Err(error) => {
            let error = error.to_string();
            if error.contains("mount -t hugetlbfs") {
                println!("SKIPPED: this machine has no huge pages: {error}");
            } else {
                assert!(error.contains("huge pages"), "{error}");
            }
        }
        Ok(_) => panic!("huge pages"),
    }
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    world.unmount_volumes("refused").unwrap();
    assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new());
}
