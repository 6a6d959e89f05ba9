//! The snapshotter behind a real containerd: what the host stores, and what it does not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use nacre_tests::{Compression, ContainerdVersion, Image, Layer, World};

fn three_layers(name: &str) -> Image {
    Image::busybox(name)
        .layer(Layer::new(Compression::Zstd).file("one", 0o644, b"1"))
        .layer(Layer::new(Compression::Gzip).file("two", 0o644, b"2"))
}

#[tokio::test]
async fn a_pull_brings_manifest_and_config_but_no_layer() {
    let world = World::new().await.unwrap();
    let image = world.push(&three_layers("app")).unwrap();
    world.pull(&image).await.unwrap();
    assert_eq!(world.host_layers().unwrap(), Vec::<String>::new());
    assert_eq!(world.host_blobs().unwrap(), 2);
    let snapshots = world.ctr().in_pods().check(&["snapshots", "--snapshotter", "nacre", "ls"]);
    assert_eq!(snapshots.unwrap().matches("Committed").count(), 3);
}

#[tokio::test]
async fn a_container_gets_an_empty_directory_that_goes_with_it() {
    let world = World::new().await.unwrap();
    world.pull(&world.push(&three_layers("app")).unwrap()).await.unwrap();
    snapshots(&world, &["prepare", "box", &top_layer(&world)]).unwrap();
    assert_eq!(mounted(&world, "box").unwrap(), "");
    world.run(&["touch", "/run/world/mounted/written"]).unwrap();
    let written = world.run(&["find", "/run/world/snapshotter/fs", "-name", "written"]).unwrap();
    assert_eq!(written.lines().count(), 1);
    world.run(&["umount", "/run/world/mounted"]).unwrap();
    snapshots(&world, &["rm", "box"]).unwrap();
    wait_until_empty(&world, "/run/world/snapshotter/fs").await;
}

#[tokio::test]
async fn a_view_is_mounted_read_only() {
    let world = World::new().await.unwrap();
    world.pull(&world.push(&three_layers("app")).unwrap()).await.unwrap();
    let top = top_layer(&world);
    let mount =
        snapshots(&world, &["view", "--target", "/run/world/mounted", "look", &top]).unwrap();
    assert!(mount.contains("mount -t bind") && mount.contains("rbind,ro"), "{mount}");
}

#[tokio::test]
async fn a_killed_snapshotter_knows_everything_when_it_is_back() {
    let world = World::new().await.unwrap();
    let image = world.push(&three_layers("app")).unwrap();
    world.pull(&image).await.unwrap();
    snapshots(&world, &["prepare", "box", &top_layer(&world)]).unwrap();
    let before = snapshots(&world, &["ls"]).unwrap();
    world.restart_snapshotter().await.unwrap();
    while snapshots(&world, &["ls"]).is_err() {
        // containerd connects again within a second or two.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    assert_eq!(snapshots(&world, &["ls"]).unwrap(), before);
    assert_eq!(mounted(&world, "box").unwrap(), "");
}

#[tokio::test]
async fn a_layer_in_use_stays_and_an_unused_one_is_collected() {
    let world = World::new().await.unwrap();
    let image = world.push(&three_layers("app")).unwrap();
    world.pull(&image).await.unwrap();
    let top = top_layer(&world);
    snapshots(&world, &["prepare", "box", &top]).unwrap();
    let error = snapshots(&world, &["rm", &top]).unwrap_err().to_string();
    assert!(error.contains("failed precondition") || error.contains("child"), "{error}");
    assert!(
        snapshots(&world, &["prepare", "box", &top]).unwrap_err().to_string().contains("exists")
    );
    assert!(
        snapshots(&world, &["prepare", "new", "gone"])
            .unwrap_err()
            .to_string()
            .contains("not found")
    );
    snapshots(&world, &["rm", "box"]).unwrap();
    snapshots(&world, &["rm", &top]).unwrap();
    wait_until_empty(&world, "/run/world/snapshotter/records").await;
}

#[tokio::test]
async fn what_ctr_of_1_6_unpacks_unasked_is_dropped() {
    let world = World::new().await.unwrap();
    let image = world.push(&three_layers("app")).unwrap();
    world.ctr().pull(&image).unwrap();
    let list = world.ctr().check(&["snapshots", "--snapshotter", "nacre", "ls"]).unwrap();
    assert_eq!(list.matches("Committed").count(), 3);
    assert_eq!(world.run(&["ls", "-A", "/run/world/snapshotter/fs"]).unwrap(), "");
}

async fn layers_stay_away_with(version: ContainerdVersion) {
    let world = World::builder().containerd(version).start().await.unwrap();
    let image = world.push(&three_layers("app")).unwrap();
    world.pull(&image).await.unwrap();
    assert_eq!(world.host_layers().unwrap(), Vec::<String>::new());
    assert_eq!(world.host_blobs().unwrap(), 2);
}

#[tokio::test]
async fn containerd_1_7_keeps_layers_off_the_host() {
    layers_stay_away_with(ContainerdVersion::V1_7).await;
}

#[tokio::test]
async fn containerd_2_1_keeps_layers_off_the_host() {
    layers_stay_away_with(ContainerdVersion::V2_1).await;
}

fn snapshots(world: &World, words: &[&str]) -> anyhow::Result<String> {
    world.ctr().in_pods().check(&[&["snapshots", "--snapshotter", "nacre"], words].concat())
}

/// The one layer that is no other's parent.
fn top_layer(world: &World) -> String {
    let list = snapshots(world, &["ls"]).unwrap();
    let rows: Vec<Vec<&str>> =
        list.lines().skip(1).map(|l| l.split_whitespace().collect()).collect();
    let is_parent = |name: &str| rows.iter().any(|row| row.len() == 3 && row[1] == name);
    rows.iter().map(|row| row[0]).find(|name| !is_parent(name)).unwrap().to_owned()
}

/// Mounts a snapshot as containerd would, and lists what it holds.
fn mounted(world: &World, key: &str) -> anyhow::Result<String> {
    let mount = snapshots(world, &["mounts", "/run/world/mounted", key])?;
    world.run(&["sh", "-c", &format!("mkdir -p /run/world/mounted && {mount}")])?;
    world.run(&["ls", "-A", "/run/world/mounted"])
}

async fn wait_until_empty(world: &World, directory: &str) {
    for _ in 0..100 {
        if world.run(&["ls", "-A", directory]).unwrap().is_empty() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("{directory} is not empty");
}
