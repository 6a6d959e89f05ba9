//! Claims whose contents are a disk of the node: block devices and file systems, plain and encrypted. What is
//! written there outlives the pod, and of an encrypted volume the node sees nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use nacre_tests::{Image, Volume, World, container};

const KEY: &str = "kbs:///default/volumes/data";
const MEBIBYTE: u64 = 1 << 20;

/// An image of a disk on the node; returns its path inside.
fn disk(world: &World, name: &str, mib: u64) -> String {
    let inside = format!("/run/world/{name}.img");
    fs::File::create(world.path(&inside)).unwrap().set_len(mib * MEBIBYTE).unwrap();
    inside
}

/// A block device of the node, while this lives.
struct Loop(String);

impl Loop {
    /// None where the node has no loop devices.
    fn attach(file: &str) -> Option<Loop> {
        let output = Command::new("losetup").args(["--find", "--show", file]).output().ok()?;
        let device = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && !device.is_empty()).then_some(Loop(device))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

/// Initdata with a volumes.toml; returns its path inside.
fn declared(world: &World, volumes: &str) -> String {
    const FILE: &str = "/run/world/volumes.toml";
    const INITDATA: &str = "/run/world/volumes-initdata.toml";
    fs::write(world.path(FILE), volumes).unwrap();
    let file = format!("volumes.toml={FILE}");
    world.nacre(&["initdata", "create", "--file", &file, "-o", INITDATA]).unwrap();
    INITDATA.to_owned()
}

fn contains(file: &PathBuf, text: &str) -> bool {
    fs::read(file).unwrap().windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn a_plain_disk_is_mounted_in_the_guest_and_keeps_what_was_written() {
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let file = disk(&world, "data", 64);
    // A device is opened for the machine alone, which the second container must not meet; without loop devices a
    // file has to do.
    let device = Loop::attach(world.path(&file).to_str().unwrap());
    let volume = Volume::disk("data", device.as_ref().map_or(&file, |device| &device.0));
    let initdata = declared(
        &world,
        "[[volume]]\nname = \"data\"\nmounts = [\"app:/data\", \"reader:/in\"]\n\
         danger_plaintext = true\nformat = \"blank\"\n",
    );
    let app = container("app", &image)
        .volume(&volume, "/data")
        .script("echo kept > /data/file && mount | grep ' /data ' && sleep 1000");
    let reader = container("reader", &image).volume_read_only(&volume, "/in");
    let reader = reader.script("cat /in/file; touch /in/x || echo refused");
    let pod = world.pod("plain").with(app).with(reader).exec_allowed().initdata(&initdata);
    let pod = pod.await.unwrap();
    let app = pod.start("app").await.unwrap();
    app.wait_for("type ext4").await.unwrap();
    // A second container of the pod has the same volume.
    let reader = pod.start("reader").await.unwrap();
    reader.wait_exit().await.unwrap();
    assert_eq!(reader.stdout().unwrap(), "kept\nrefused\n");
    app.sh("echo last > /data/last").await.unwrap();
    // Nothing asks for it to be written: the end of the pod does.
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    drop(device);
    let path = world.path(&file);
    let check = Command::new("e2fsck").args(["-f", "-n"]).arg(&path).output();
    match check {
        Ok(check) => assert!(check.status.success(), "{check:?}"),
        Err(error) => eprintln!("SKIPPED: e2fsck of the volume: {error}"),
    }
    assert!(contains(&path, "last\n"), "what was written last is not on the disk");
    assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_block_device_is_the_containers_and_what_the_owner_did_not_declare_is_refused() {
    let world = World::new().await.unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let file = disk(&world, "raw", 64);
    let path = world.path(&file);
    let Some(device) = Loop::attach(path.to_str().unwrap()) else {
        eprintln!("SKIPPED: this machine has no loop devices");
        return;
    };
    let volume = Volume::block_device("raw", &device.0);
    let other = disk(&world, "other", 64);
    let other = Volume::disk("other", &other);
    let initdata = declared(
        &world,
        "[[volume]]\nname = \"raw\"\nmounts = [\"app:/dev/xvda\"]\ndanger_plaintext = true\n",
    );
    let app = container("app", &image).volume(&volume, "/dev/xvda").idle();
    let stranger = container("stranger", &image).volume(&other, "/data").idle();
    let pod = world.pod("raw").with(app).with(stranger).exec_allowed().initdata(&initdata);
    let pod = pod.await.unwrap();
    let app = pod.start("app").await.unwrap();
    let size = "blockdev --getsize64 /dev/xvda || wc -c < /dev/xvda";
    assert_eq!(app.sh(size).await.unwrap().trim(), "67108864");
    let write = "printf 'on the device' | dd of=/dev/xvda bs=1M seek=3 conv=notrunc 2>&1";
    app.sh(write).await.unwrap();
    assert_eq!(
        app.sh("dd if=/dev/xvda bs=1M skip=3 count=1 2>/dev/null | head -c 6").await.unwrap(),
        "on the"
    );
    let error = format!("{:#}", pod.start("stranger").await.unwrap_err());
    assert!(error.contains("stranger:/data") && error.contains("volumes.toml"), "{error}");
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    let bytes = fs::read(&path).unwrap();
    assert!(bytes[usize::try_from(3 * MEBIBYTE).unwrap()..].starts_with(b"on the device"));
    drop(device);
    assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn an_encrypted_volume_opens_with_its_key_and_shows_the_node_nothing() {
    const SECRET: &str = "nobody on this node is to read this";
    let world = World::new().await.unwrap();
    let broker = world.start_broker_for_guests().await.unwrap();
    broker.set_secret(KEY, "0123456789abcdef0123456789abcdef").unwrap();
    let image = world.push(&Image::busybox("app")).unwrap();
    let file = disk(&world, "data", 64);
    let path = world.path(&file);
    // The broker's own, before anything of volumes is in it.
    const BASE: &str = "/run/world/without-volumes.toml";
    fs::copy(world.path(broker.initdata()), world.path(BASE)).unwrap();
    let declare = |format: &str, key: &str| {
        const FILE: &str = "/run/world/volumes.toml";
        let text = format!(
            "[[volume]]\nname = \"data\"\nmounts = [\"app:/data\"]\nkey = \"{key}\"\n\
             format = \"{format}\"\n"
        );
        fs::write(world.path(FILE), text).unwrap();
        let (file, all) = (format!("volumes.toml={FILE}"), broker.initdata());
        let words = ["initdata", "create", "--from", BASE, "--file", &file, "-o", all];
        world.nacre(&words).unwrap();
    };
    let volume = Volume::disk("data", &file);
    let run = |name: &'static str, script: String| {
        let app = container("app", &image).volume(&volume, "/data").script(&script);
        let pod = world.pod(name).with(app).secrets_of(&broker).with_policy().unwrap();
        broker.grant(name, pod.annotation_text(), ["default/volumes/*"]).unwrap();
        pod
    };
    // A blank disk is made a volume only where the owner says so.
    declare("never", KEY);
    let pod = run("first", "sleep 1000".into()).await.unwrap();
    let error = format!("{:#}", pod.start("app").await.unwrap_err());
    assert!(error.contains("blank") && error.contains("volumes.toml"), "{error}");
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();

    declare("blank", KEY);
    let write = format!("echo '{SECRET}' > /data/file && echo written; sleep 1000");
    let pod = run("second", write).await.unwrap();
    let app = pod.start("app").await.unwrap();
    app.wait_for("written").await.unwrap();
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    assert!(!contains(&path, SECRET) && contains(&path, "nacre-volume"), "ciphertext");

    // Another pod of the owner's, with the same key; it does not have to make anything.
    declare("never", KEY);
    let pod = run("third", "cat /data/file; sleep 1000".into()).await.unwrap();
    let app = pod.start("app").await.unwrap();
    app.wait_for(SECRET).await.unwrap();
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();

    // Another key opens nothing, and nothing is made anew.
    const OTHER: &str = "kbs:///default/volumes/other";
    broker.set_secret(OTHER, "abcdefghijklmnopqrstuvwxyz012345").unwrap();
    declare("blank", OTHER);
    let pod = run("fourth", "sleep 1000".into()).await.unwrap();
    let error = format!("{:#}", pod.start("app").await.unwrap_err());
    assert!(error.contains("does not fit the key"), "{error}");
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new());
}
