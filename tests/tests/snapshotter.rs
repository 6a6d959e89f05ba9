//! The snapshotter behind a real containerd: what the host stores, and what it does not.

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
async fn a_containers_snapshot_is_an_empty_directory_and_can_be_removed() {
    let world = World::new().await.unwrap();
    let image = world.push(&three_layers("app")).unwrap();
    let ctr = world.ctr();
    ctr.pull(&image).unwrap();
    world.run(&["mkdir", "/run/world/mounted"]).unwrap();
    ctr.check(&["image", "mount", "--snapshotter", "nacre", "--rw", &image, "/run/world/mounted"])
        .unwrap();
    assert_eq!(world.run(&["ls", "-A", "/run/world/mounted"]).unwrap(), "");
    world.run(&["touch", "/run/world/mounted/written"]).unwrap();
    assert_eq!(
        world.run(&["sh", "-c", "find /run/world/snapshotter/fs -name written | wc -l"]).unwrap(),
        "1\n"
    );
    ctr.check(&["image", "unmount", "--snapshotter", "nacre", "--rm", "/run/world/mounted"])
        .unwrap();
    assert_eq!(world.run(&["ls", "-A", "/run/world/snapshotter/fs"]).unwrap(), "");
}

#[tokio::test]
async fn a_read_only_view_cannot_be_written() {
    let world = World::new().await.unwrap();
    let image = world.push(&three_layers("app")).unwrap();
    world.ctr().pull(&image).unwrap();
    world.run(&["mkdir", "/run/world/mounted"]).unwrap();
    let words = ["image", "mount", "--snapshotter", "nacre", &image, "/run/world/mounted"];
    world.ctr().check(&words).unwrap();
    let error = world.run(&["touch", "/run/world/mounted/x"]).unwrap_err().to_string();
    assert!(error.contains("Read-only"), "{error}");
}

#[tokio::test]
async fn a_killed_snapshotter_knows_everything_when_it_is_back() {
    let world = World::new().await.unwrap();
    let image = world.push(&three_layers("app")).unwrap();
    world.ctr().pull(&image).unwrap();
    let list = ["snapshots", "--snapshotter", "nacre", "ls"];
    let before = world.ctr().check(&list).unwrap();
    world.restart_snapshotter().await.unwrap();
    assert_eq!(world.ctr().check(&list).unwrap(), before);
    world.ctr().check(&["image", "rm", "--sync", &image]).unwrap();
    assert_eq!(world.ctr().check(&list).unwrap().lines().count(), 1, "only the heading is left");
}

#[tokio::test]
async fn two_namespaces_share_layers_and_one_may_leave() {
    let world = World::new().await.unwrap();
    let image = world.push(&three_layers("app")).unwrap();
    world.ctr().pull(&image).unwrap();
    world.ctr().in_pods().pull(&image).unwrap();
    world.ctr().check(&["image", "rm", "--sync", &image]).unwrap();
    let snapshots = world.ctr().in_pods().check(&["snapshots", "--snapshotter", "nacre", "ls"]);
    assert_eq!(snapshots.unwrap().matches("Committed").count(), 3);
    world.run(&["mkdir", "/run/world/mounted"]).unwrap();
    let words = ["image", "mount", "--snapshotter", "nacre", &image, "/run/world/mounted"];
    world.ctr().in_pods().check(&words).unwrap();
}

#[tokio::test]
async fn newer_containerds_keep_layers_off_the_host_too() {
    for version in [ContainerdVersion::V1_7, ContainerdVersion::V2_1] {
        let world = World::builder().containerd(version).start().await.unwrap();
        let image = world.push(&three_layers("app")).unwrap();
        world.pull(&image).await.unwrap();
        assert_eq!(world.host_layers().unwrap(), Vec::<String>::new(), "{version:?}");
        assert_eq!(world.host_blobs().unwrap(), 2, "{version:?}");
    }
}
