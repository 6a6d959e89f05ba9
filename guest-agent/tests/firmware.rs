//! The way on which confidential guests start, as far as it goes without their processors: the firmware of
//! SEV-SNP and of TDX guests, as it is shipped, takes kernel, initrd and command line from QEMU, and our
//! guest comes up on it and serves. Emulated, so nothing is encrypted and nothing is attested.
//!
//! OVMF's build for SNP starts nothing but what a table of hashes names, which is measured at launch.
//! Without a launch there is no table; the tests put it where the firmware looks for it, so that the check
//! runs as it will.
//!
//! They need what `cargo xtask setup` and `cargo xtask image` make, and are skipped without.

#![allow(clippy::unwrap_used)]

#[path = "vm/guest.rs"]
#[allow(dead_code)] // for the tests of another file
mod guest;

use std::path::{Path, PathBuf};

use guest::{Guest, Launch, command_line, image};
use nacre_evidence::snp::{KernelHashes, kernel_hashes_page};

/// Where OVMF.amdsev.fd has the table, as its own table of GUIDs says (`SEV_HASH_TABLE_RV_GUID`).
const HASHES: u64 = 0x81_0c00;
const PAGE: u64 = 4096;

/// QEMU 11 and a firmware, which `cargo xtask setup` fetches; or a word about what is missing.
fn parts(firmware: &str) -> Option<(PathBuf, PathBuf)> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/nacre");
    // Older ones change the kernel's header on its way, and with it the hash.
    let qemu = target.join("qemu-11/qemu-system-x86_64");
    let firmware = target.join("firmware/usr/share/ovmf").join(firmware);
    let fetched = [&qemu, &firmware].into_iter().find(|path| !path.exists()).cloned();
    if let Some(missing) = guest::missing().or(fetched) {
        eprintln!("SKIPPED: {} is absent; run `cargo xtask setup` and image", missing.display());
        return None;
    }
    Some((qemu, firmware))
}

/// The table for our image, for `-device`.
fn hashes(directory: &Path) -> String {
    let [kernel, initrd] =
        [image().bzimage(), image().initrd()].map(|path| std::fs::read(path).unwrap());
    let hashes = KernelHashes::of(&kernel, &initrd, &command_line(""));
    let offset = usize::try_from(HASHES % PAGE).unwrap();
    let path = directory.join("hashes");
    std::fs::write(&path, kernel_hashes_page(&hashes, offset).unwrap()).unwrap();
    format!("loader,file={},addr={:#x},force-raw=on", path.display(), HASHES - HASHES % PAGE)
}

#[tokio::test]
async fn firmware_of_snp_guests_starts_ours() {
    let Some((qemu, firmware)) = parts("OVMF.amdsev.fd") else { return };
    let directory = tempfile::tempdir().unwrap();
    let table = hashes(directory.path());
    let guest = Guest::boot(Launch {
        firmware: Some((&qemu, &firmware)),
        qemu: &["-device", &table],
        ..Default::default()
    })
    .await;
    assert!(guest.console().contains("closed: no modules"), "{}", guest.console());
}

/// A host that leaves the table out. (With another hash in it the firmware was seen to go no further either, but
/// it says nothing then by which a test could tell a refusal from slowness.)
#[tokio::test]
async fn firmware_of_snp_guests_starts_nothing_without_a_table() {
    let Some((qemu, firmware)) = parts("OVMF.amdsev.fd") else { return };
    let directory = tempfile::tempdir().unwrap();
    let serial = directory.path().join("serial");
    let log = format!("file:{}", serial.display());
    let launch = Launch {
        firmware: Some((&qemu, &firmware)),
        qemu: &["-serial", &log],
        ..Default::default()
    };
    let refused = "No bootable option was found";
    let (firmware, console) = Guest::until(launch, &serial, refused).await;
    assert!(firmware.contains(refused) && console.is_empty(), "{firmware}\n{console}");
}

#[tokio::test]
async fn firmware_of_tdx_guests_starts_ours() {
    let Some((qemu, firmware)) = parts("OVMF.inteltdx.fd") else { return };
    let launch = Launch { firmware: Some((&qemu, &firmware)), ..Default::default() };
    let guest = Guest::boot(launch).await;
    assert!(guest.console().contains("closed: no modules"), "{}", guest.console());
}
