//! What becomes of volumes when the host changes them or kills the machine that writes: what was written, or an
//! error, and never anything else.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::path::Path;
use std::process::Command;

use nacre_tests::{Broker, Image, Pod, Volume, World, container};

const KEY: &str = "kbs:///default/volumes/data";
const DISK: &str = "/run/world/data.img";
const RAW: &str = "/run/world/raw.img";
const MEBIBYTE: u64 = 1 << 20;
/// Unit of the cipher, in bytes.
const SECTOR: usize = 4096;

/// A broker with the key of a blank disk's volume, and its initdata with the declaration; with `raw` also that of a
/// device.
async fn prepared(world: &World, raw: bool) -> Broker<'_> {
    const FILE: &str = "/run/world/volumes.toml";
    let broker = world.start_broker_for_guests().await.unwrap();
    broker.set_secret(KEY, "0123456789abcdef0123456789abcdef").unwrap();
    fs::File::create(world.path(DISK)).unwrap().set_len(64 * MEBIBYTE).unwrap();
    let entry = |name: &str, mount: &str| {
        format!(
            "[[volume]]\nname = \"{name}\"\nmounts = [\"{mount}\"]\nkey = \"{KEY}\"\nformat = \"blank\"\n"
        )
    };
    let mut text = entry("data", "app:/data");
    if raw {
        text += &entry("raw", "/dev/xvda");
    }
    fs::write(world.path(FILE), text).unwrap();
    broker.add_to_initdata(&["--file", &format!("volumes.toml={FILE}")]).unwrap();
    broker
}

/// A block device of the node, while this lives.
struct Loop(String);

impl Loop {
    /// The disk's image, made or cut to that size. None where the node has no loop devices.
    fn attach(world: &World, mebibytes: u64) -> Option<Loop> {
        let file = world.path(RAW);
        let options = fs::OpenOptions::new().write(true).create(true).truncate(false).open(&file);
        options.unwrap().set_len(mebibytes * MEBIBYTE).unwrap();
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
        let device = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && !device.is_empty()).then_some(Loop(device))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

/// A pod of the volume's owner that runs `script`, with a second container that has `raw` as a device.
async fn pod<'w>(
    world: &'w World,
    broker: &Broker<'_>,
    image: &str,
    name: &'static str,
    script: &str,
    raw: Option<&Loop>,
) -> Pod<'w> {
    let app = container("app", image).volume(&Volume::disk("data", DISK), "/data").script(script);
    let mut pod = world.pod(name).with(app);
    if let Some(Loop(device)) = raw {
        let volume = Volume::block_device("raw", device);
        pod = pod.with(container("raw", image).volume(&volume, "/dev/xvda").idle());
    }
    let pod = pod.exec_allowed().secrets_of(broker).with_policy().unwrap();
    broker.grant(name, pod.annotation_text(), ["default/volumes/*"]).unwrap();
    pod.await.unwrap()
}

async fn end(pod: Pod<'_>) {
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
}

/// The longest part of the disk, in whole sectors, that differs from what it was: first and last sector.
fn longest_change(before: &[u8], after: &[u8]) -> (usize, usize) {
    let mut longest = (0, 0);
    let mut start = None;
    let sectors = before.chunks(SECTOR).zip(after.chunks(SECTOR)).map(|(old, new)| old != new);
    for (at, is_changed) in sectors.chain([false]).enumerate() {
        match (start, is_changed) {
            (None, true) => start = Some(at),
            (Some(first), false) => {
                if at - first > longest.1 - longest.0 {
                    longest = (first, at);
                }
                start = None;
            }
            _ => {}
        }
    }
    longest
}

fn flip(path: &Path, sector: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[sector * SECTOR + SECTOR / 2] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_changed_sector_of_an_encrypted_volume_is_an_error_and_never_other_data() {
    let world = World::new().await.unwrap();
    let device = Loop::attach(&world, 40);
    let broker = prepared(&world, device.is_some()).await;
    let image = world.push(&Image::busybox("app")).unwrap();
    let path = world.path(DISK);
    let script = "echo kept > /data/kept; echo made; sleep 1000";
    let first = pod(&world, &broker, &image, "first", script, device.as_ref()).await;
    first.start("app").await.unwrap().wait_for("made").await.unwrap();
    if device.is_some() {
        let raw = first.start("raw").await.unwrap();
        let script = "tr -d '\\0' < /dev/xvda | wc -c; echo secret | dd of=/dev/xvda bs=4096 seek=7 conv=notrunc,fsync \
                      2>/dev/null; dd if=/dev/xvda bs=4096 skip=7 count=1 2>/dev/null | head -c 6";
        assert_eq!(
            raw.sh(script).await.unwrap(),
            "0\nsecret",
            "all of it can be read, and is zero"
        );
    }
    end(first).await;
    let disk = fs::read(world.path(RAW)).unwrap();
    assert!(!disk.windows(6).any(|window| window == b"secret"), "ciphertext");
    let before = fs::read(&path).unwrap();

    // Some 8 MiB of known text, larger than anything else that is written beside it.
    let script = "seq 1 1200000 > /data/large && echo written; sleep 1000";
    let second = pod(&world, &broker, &image, "second", script, device.as_ref()).await;
    second.start("app").await.unwrap().wait_for("written").await.unwrap();
    end(second).await;
    let had_device = device.is_some();
    drop(device);
    let (from, to) = longest_change(&before, &fs::read(&path).unwrap());
    assert!((to - from) * SECTOR > 512 * 1024, "the file lies in sectors {from} to {to}");
    flip(&path, from.midpoint(to));

    let script = "dd if=/data/large of=/copy bs=4096 2>/errors; cat /errors; cat /data/kept; echo read; sleep 1000";
    // The node hands over less of the device than there was.
    let device = if had_device { Loop::attach(&world, 36) } else { None };
    let third = pod(&world, &broker, &image, "third", script, device.as_ref()).await;
    let app = third.start("app").await.unwrap();
    app.wait_for("read").await.unwrap();
    let said = app.stdout().unwrap();
    assert!(said.contains("I/O error") || said.contains("Input/output error"), "{said}");
    // What is elsewhere can be read, and all that was read of the file is what was written.
    assert!(said.contains("kept\n"), "{said}");
    let compare = "seq 1 1200000 | head -c $(wc -c < /copy) | cmp - /copy && wc -c < /copy";
    let good: usize = app.sh(compare).await.unwrap().trim().parse().unwrap();
    let whole = (1..=1_200_000_u32).map(|number| number.to_string().len() + 1).sum::<usize>();
    assert!(good < whole, "{good} of {whole} bytes");
    match &device {
        Some(_) => {
            let error = format!("{:#}", third.start("raw").await.unwrap_err());
            assert!(error.contains("cut short"), "{error}");
        }
        None => eprintln!("SKIPPED: this machine has no loop devices"),
    }
    end(third).await;
    drop(device);
    assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_machine_killed_while_it_writes_leaves_what_it_had_synced() {
    let world = World::new().await.unwrap();
    let broker = prepared(&world, false).await;
    let image = world.push(&Image::busybox("app")).unwrap();
    let script = "i=0; while :; do i=$((i+1)); seq $i $((i+9999)) > /data/new && sync && mv /data/new /data/$i \
                  && sync && echo synced $i; rm -f /data/$((i-100)); done";
    let first = pod(&world, &broker, &image, "first", script, None).await;
    let app = first.start("app").await.unwrap();
    app.wait_for("synced 6\n").await.unwrap();
    let machine = world.virtual_machines().unwrap().remove(0);
    world.kill(&machine).unwrap();
    app.wait_exit().await.unwrap();
    let said = app.stdout().unwrap();
    let mut synced = said.lines().filter_map(|line| line.strip_prefix("synced "));
    let last: u32 = synced.next_back().unwrap().parse().unwrap();
    end(first).await;

    let script = format!(
        "for f in /data/[0-9]*; do n=${{f##*/}}; seq $n $((n+9999)) | cmp - $f || echo wrong $f; done; \
         test -e /data/{last} && echo last is there; echo more > /data/more && sync && echo checked; sleep 1000"
    );
    let second = pod(&world, &broker, &image, "second", &script, None).await;
    let app = second.start("app").await.unwrap();
    app.wait_for("checked").await.unwrap();
    let said = app.stdout().unwrap();
    assert!(said.contains("last is there") && !said.contains("wrong"), "{last}: {said}");
    end(second).await;
    assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new());
}
