//! What becomes of volumes when the host changes them or kills the machine that writes: what was written, or an
//! error, and never anything else.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::path::Path;

use nacre_tests::{Broker, Image, Pod, Volume, World, container};

const KEY: &str = "kbs:///default/volumes/data";
const DISK: &str = "/run/world/data.img";
const MEBIBYTE: u64 = 1 << 20;
/// Unit of the cipher, in bytes.
const SECTOR: usize = 4096;

/// A broker with the key of a blank disk's volume, and its initdata with the declaration.
async fn prepared(world: &World) -> Broker<'_> {
    const FILE: &str = "/run/world/volumes.toml";
    let broker = world.start_broker_for_guests().await.unwrap();
    broker.set_secret(KEY, "0123456789abcdef0123456789abcdef").unwrap();
    fs::File::create(world.path(DISK)).unwrap().set_len(64 * MEBIBYTE).unwrap();
    let text = format!(
        "[[volume]]\nname = \"data\"\nmounts = [\"app:/data\"]\nkey = \"{KEY}\"\nformat = \"blank\"\n"
    );
    fs::write(world.path(FILE), text).unwrap();
    broker.add_to_initdata(&["--file", &format!("volumes.toml={FILE}")]).unwrap();
    broker
}

/// A pod of the volume's owner that runs `script`.
async fn pod<'w>(
    world: &'w World,
    broker: &Broker<'_>,
    image: &str,
    name: &'static str,
    script: &str,
) -> Pod<'w> {
    let app = container("app", image).volume(&Volume::disk("data", DISK), "/data").script(script);
    let pod = world.pod(name).with(app).exec_allowed().secrets_of(broker).with_policy().unwrap();
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
    let broker = prepared(&world).await;
    let image = world.push(&Image::busybox("app")).unwrap();
    let path = world.path(DISK);
    let first =
        pod(&world, &broker, &image, "first", "echo kept > /data/kept; echo made; sleep 1000");
    let first = first.await;
    first.start("app").await.unwrap().wait_for("made").await.unwrap();
    end(first).await;
    let before = fs::read(&path).unwrap();

    // Some 8 MiB of known text, larger than anything else that is written beside it.
    let script = "seq 1 1200000 > /data/large && echo written; sleep 1000";
    let second = pod(&world, &broker, &image, "second", script).await;
    second.start("app").await.unwrap().wait_for("written").await.unwrap();
    end(second).await;
    let (from, to) = longest_change(&before, &fs::read(&path).unwrap());
    assert!((to - from) * SECTOR > 512 * 1024, "the file lies in sectors {from} to {to}");
    flip(&path, from.midpoint(to));

    let script = "dd if=/data/large of=/copy bs=4096 2>/errors; cat /errors; cat /data/kept; echo read; sleep 1000";
    let third = pod(&world, &broker, &image, "third", script).await;
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
    end(third).await;
    assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_machine_killed_while_it_writes_leaves_what_it_had_synced() {
    let world = World::new().await.unwrap();
    let broker = prepared(&world).await;
    let image = world.push(&Image::busybox("app")).unwrap();
    let script = "i=0; while :; do i=$((i+1)); seq $i $((i+9999)) > /data/new && sync && mv /data/new /data/$i \
                  && sync && echo synced $i; rm -f /data/$((i-4)); done";
    let first = pod(&world, &broker, &image, "first", script).await;
    let app = first.start("app").await.unwrap();
    app.wait_for("synced 6\n").await.unwrap();
    let machine = world.virtual_machines().unwrap().remove(0);
    world.kill(&machine).unwrap();
    app.wait_exit().await.unwrap();
    let said = app.stdout().unwrap();
    let synced = said.lines().filter_map(|line| line.strip_prefix("synced "));
    let last: u32 = synced.last().unwrap().parse().unwrap();
    end(first).await;

    let script = format!(
        "for f in /data/[0-9]*; do n=${{f##*/}}; seq $n $((n+9999)) | cmp - $f || echo wrong $f; done; \
         test -e /data/{last} && echo last is there; echo more > /data/more && sync && echo checked; sleep 1000"
    );
    let second = pod(&world, &broker, &image, "second", &script).await;
    let app = second.start("app").await.unwrap();
    app.wait_for("checked").await.unwrap();
    let said = app.stdout().unwrap();
    assert!(said.contains("last is there") && !said.contains("wrong"), "{last}: {said}");
    end(second).await;
    assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new());
}
