//! Where images and what containers write live, in VMs: on a disk of the host's, encrypted and checked, and
//! in memory, within a quota.
//!
//! They need what `cargo xtask image` makes and are skipped without, as the stories of `vm.rs`.

#![allow(clippy::unwrap_used)]

#[path = "vm/guest.rs"]
#[allow(dead_code)] // for the tests of another file
mod guest;
#[path = "vm/registry.rs"]
mod registry;

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use guest::{Guest, HOST_FROM_GUEST, Launch, container, context, message, shell_process};

const MIB: usize = 1 << 20;
/// What the host encrypts, and checks, as one.
const SECTOR: usize = 4096;

/// True, with a word about it, if there is nothing to test with.
fn skipped() -> bool {
    let missing = guest::missing();
    if let Some(missing) = &missing {
        eprintln!("skipped: {} is absent; run `cargo xtask image`", missing.display());
    }
    missing.is_some()
}

/// A pod that allows everything, before its first container; and an image for it.
async fn pod(scratch_disk: Option<&Path>) -> (Guest, String) {
    let registry = format!("{HOST_FROM_GUEST}:{}", registry::serve().await);
    let parameters = format!("nacre.danger_plain_http={registry} nacre.danger_set_policy=1");
    let launch = Launch { kernel_parameters: &parameters, scratch_disk, ..Default::default() };
    let guest = Guest::boot(launch).await;
    guest.allow_all().await;
    guest.create_sandbox().await;
    (guest, format!("{registry}/busybox:latest"))
}

/// A sparse file for a disk.
fn disk_of(directory: &Path, bytes: usize) -> PathBuf {
    let path = directory.join("disk");
    File::create(&path).unwrap().set_len(bytes as u64).unwrap();
    path
}

/// Output of a shell command that must succeed.
async fn shell(guest: &Guest, command: &str) -> String {
    let (status, output, error) = guest.shell("app", command).await;
    assert_eq!(status, 0, "{command}: {output}{error}");
    output.trim().to_owned()
}

#[tokio::test]
async fn a_disk_of_the_hosts_is_encrypted_and_checked() {
    const MARKER: &str = "what only the guest may know";
    if skipped() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let disk = disk_of(directory.path(), 256 * MIB);
    // What an earlier user left is not taken for anything.
    File::options().write(true).open(&disk).unwrap().write_all_at(&[0xa5; 64 << 10], 0).unwrap();
    let (guest, image) = pod(Some(&disk)).await;
    guest.run(&container("pod", "pause", &["/pause"])).await;
    guest.run(&container("app", &image, &["sleep", "1000"])).await;
    let console = guest.console();
    let line = console.lines().find(|line| line.contains("EncryptedDisk")).unwrap_or(&console);
    eprintln!("{line}");

    // An overlay on it can do what overlays do.
    let whole = "df=$(busybox df -m / | tail -1) && set -- $df && echo $2";
    let size: usize = shell(&guest, whole).await.parse().unwrap();
    assert!((220..256).contains(&size), "{size} MiB");
    let script = format!(
        "cd /tmp && for i in $(busybox seq 500); do echo {MARKER} > file$i; done && \
         busybox ln file1 link && busybox mkfifo fifo && busybox ln -s file2 symlink && \
         busybox rm -r /etc && busybox mkdir /etc && busybox mv /tmp/file3 /bin/file3 && \
         busybox sync"
    );
    shell(&guest, &script).await;
    let check = "cd /tmp && cat link symlink /bin/file3 | busybox uniq -c && ls /etc | wc -l && \
                 test -p fifo && ls | grep -c file";
    let seen = shell(&guest, check).await;
    let seen: Vec<_> = seen.split_whitespace().collect();
    assert_eq!(seen.join(" "), format!("3 {MARKER} 0 499"));

    // The host finds as much as was written, and nothing that it could read.
    let before = fs::read(&disk).unwrap();
    assert!(disk.metadata().unwrap().blocks() * 512 > 1 << 20);
    let contains = |text| {
        let mut grep = Command::new("grep");
        grep.args(["--text", "--fixed-strings", "--quiet", text]).arg(&disk);
        grep.status().unwrap().success()
    };
    for text in [MARKER, "busybox", "root:x:0:0", "lost+found", "file499"] {
        assert!(!contains(text), "the host can read {text:?}");
    }

    // A file that lies in one piece.
    let write = "dd if=/dev/urandom of=/tmp/large bs=1M count=24 2>/dev/null && busybox sync && \
                 busybox md5sum /tmp/large";
    let sum = shell(&guest, write).await;
    let run = longest_change(&before, &fs::read(&disk).unwrap());
    assert!(run.len() * SECTOR >= MIB, "the file lies in one piece, mostly: {run:?}");
    // Past the page cache.
    let read = "dd if=/tmp/large of=/dev/null bs=4k iflag=direct";
    shell(&guest, read).await;
    assert_eq!(shell(&guest, "busybox md5sum /tmp/large").await, sum);

    // A full one is an error, of which the agent lives on.
    let fill = "dd if=/dev/zero of=/tmp/fill bs=1M; busybox rm /tmp/fill";
    let (_, _, error) = guest.shell("app", fill).await;
    assert!(error.contains("No space left on device"), "{error}");
    guest.remove("app").await;
    guest.run(&container("app", &image, &["sleep", "1000"])).await;
    let used = used(&guest, "app").await;
    assert!(used < 16, "what a removed container wrote is freed: {used} MiB are not");
}

/// A bit of one sector of a file, or two sectors that change places: the reader gets no data, and the guest
/// ends with the reason.
#[tokio::test]
async fn a_disk_that_the_host_changes_ends_the_guest() {
    if skipped() {
        return;
    }
    for flips in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let disk = disk_of(directory.path(), 64 * MIB);
        let (guest, image) = pod(Some(&disk)).await;
        guest.run(&container("app", &image, &["sleep", "1000"])).await;
        let before = fs::read(&disk).unwrap();
        shell(&guest, "dd if=/dev/urandom of=/tmp/f bs=1M count=8 2>/dev/null && busybox sync")
            .await;
        let run = longest_change(&before, &fs::read(&disk).unwrap());
        assert!(run.len() * SECTOR >= MIB, "the file lies in one piece, mostly: {run:?}");
        if flips {
            flip_bit(&disk, (run.start + run.len() / 2) * SECTOR + 77);
        } else {
            swap_sectors(&disk, run.start, run.start + run.len() / 2);
        }
        // Past the page cache.
        let read = shell_process("dd if=/tmp/f of=/dev/null bs=4k iflag=direct");
        guest.exec("app", "read", read).await.unwrap();
        let console = guest.ended().await;
        assert!(console.contains("something else than this guest has written"), "{console}");
        assert!(console.contains("INTEGRITY AEAD ERROR, sector"), "{console}");
        // The end is the kernel's own, not a request to the host.
        assert!(console.contains("Attempted to kill init"), "{console}");
    }
}

#[tokio::test]
async fn a_disk_that_cannot_be_used_is_told_and_nothing_takes_its_place() {
    if skipped() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let disk = disk_of(directory.path(), MIB);
    let (guest, _) = pod(Some(&disk)).await;
    for _ in 0..2 {
        let request = container("pod", "pause", &["/pause"]);
        let error = message(guest.agent.create_container(context(60), &request).await);
        assert!(error.contains("the scratch disk has 1048576 bytes; give it at least"), "{error}");
    }
}

#[tokio::test]
async fn memory_that_is_full_is_an_error_of_whoever_writes() {
    if skipped() {
        return;
    }
    let (guest, image) = pod(None).await;
    guest.run(&container("app", &image, &["sleep", "1000"])).await;
    let (_, _, error) = guest.shell("app", "dd if=/dev/zero of=/tmp/fill bs=1M").await;
    assert!(error.contains("No space left on device"), "{error}");
    let written = shell(&guest, "busybox du -m /tmp/fill | cut -f1").await;
    let written: usize = written.parse().unwrap();
    assert!((220..330).contains(&written), "{written} MiB of 512 MiB of memory");
    // The agent lives on: another container of the image needs no space. What the first one wrote is freed
    // with it.
    guest.run(&container("other", &image, &["sleep", "1000"])).await;
    guest.remove("app").await;
    assert!(used(&guest, "other").await < 16);
}

/// What is used of a container's root and all that lives beside it, in MiB.
async fn used(guest: &Guest, container: &str) -> usize {
    let command = "df=$(busybox df -m / | tail -1) && set -- $df && echo $3";
    let (_, output, error) = guest.shell(container, command).await;
    output.trim().parse().unwrap_or_else(|_| panic!("{output}{error}"))
}

/// The sectors of the longest run in which all differ.
fn longest_change(before: &[u8], after: &[u8]) -> Range<usize> {
    let (mut longest, mut start) = (0..0, 0);
    let pairs = before.chunks(SECTOR).zip(after.chunks(SECTOR));
    for (index, (before, after)) in pairs.enumerate() {
        if before == after {
            start = index + 1;
        } else if index + 1 - start > longest.len() {
            longest = start..index + 1;
        }
    }
    longest
}

fn flip_bit(disk: &Path, at: usize) {
    let file = File::options().read(true).write(true).open(disk).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).unwrap();
    byte[0] ^= 1;
    file.write_all_at(&byte, at as u64).unwrap();
}

fn swap_sectors(disk: &Path, one: usize, other: usize) {
    let file = File::options().read(true).write(true).open(disk).unwrap();
    let places = [one, other].map(|sector| (sector * SECTOR) as u64);
    let sectors = places.map(|at| {
        let mut sector = vec![0; SECTOR];
        file.read_exact_at(&mut sector, at).unwrap();
        sector
    });
    file.write_all_at(&sectors[1], places[0]).unwrap();
    file.write_all_at(&sectors[0], places[1]).unwrap();
}
