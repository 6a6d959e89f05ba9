//! The image from the real, pinned packages: the same bytes twice, and all that is promised in it.
//!
//! The packages come from the store of `cargo xtask image`. Where they were never fetched the tests
//! say so and pass; nothing is downloaded from here.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::slice::from_ref;

use nacre_guest_image::debian::Store;
use nacre_guest_image::{Inputs, Pins, build};
use nacre_image_manifest::cpio::Archive;
use nacre_image_manifest::{DEVELOPMENT_MARK, DEVELOPMENT_SHELL, GuestImage, Manifest, Sha256Hex};

const SILENT: &dyn Fn(&str) = &|_| {};

/// The smallest file that passes for a static program: an ELF header without segments.
fn stand_in(path: &Path, mark: u8) {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(64, 0);
    file[18] = 62;
    file.push(mark);
    fs::write(path, file).unwrap();
}

struct World {
    root: tempfile::TempDir,
    pins: Pins,
}

impl World {
    /// Unpacked packages and stand-in programs in a new directory, or `None` with a line that says so.
    fn new() -> Option<Self> {
        let pins = Pins::shipped().unwrap();
        let prefix = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/nacre");
        let store = Store::new(&prefix, Path::new("/nonexistent"));
        let root = tempfile::tempdir().unwrap();
        for (package, name) in [
            (&pins.kernel.package, "kernel"),
            (&pins.certificates, "ca"),
            (&pins.development_shell, "shell"),
        ] {
            if store.fetched(package).unwrap().is_none() {
                println!("SKIPPED: {package} was not fetched; run `cargo xtask image` first");
                return None;
            }
            store.unpack(from_ref(package), &root.path().join(name), SILENT).unwrap();
        }
        stand_in(&root.path().join("agent"), 1);
        stand_in(&root.path().join("pause"), 2);
        Some(Self { root, pins })
    }

    fn build(&self, out: &str) -> (Manifest, PathBuf) {
        let at = |name: &str| self.root.path().join(name);
        let (kernel, certificates, shell) = (at("kernel"), at("ca"), at("shell"));
        let (agent, pause, out) = (at("agent"), at("pause"), at(out));
        let inputs = Inputs {
            pins: &self.pins,
            kernel: &kernel,
            certificates: &certificates,
            agent: &agent,
            pause: &pause,
            development_shell: &shell,
        };
        (build(inputs, &out, SILENT).unwrap(), out)
    }
}

fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect()
}

#[test]
fn two_builds_give_the_same_bytes_and_the_manifest_describes_them() {
    let Some(world) = World::new() else { return };
    let (manifest, first) = world.build("first");
    let (_, second) = world.build("second");
    assert_eq!(GuestImage::open(&first).unwrap().manifest(), &manifest);
    let (first, second) = (files(&first), files(&second));
    assert!(first == second, "two builds of the same inputs differ");

    let names: Vec<_> = first.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["initrd-development.img", "initrd.img", "manifest.json", "vmlinux", "vmlinuz"]
    );
    let written: Manifest = serde_json::from_slice(&first["manifest.json"]).unwrap();
    assert_eq!(written, manifest);
    assert_eq!(manifest.initrd.file.sha256, Sha256Hex::of(&first["initrd.img"]));
    let development = &first["initrd-development.img"];
    assert_eq!(manifest.initrd.development.sha256, Sha256Hex::of(development));
    let mark = development.strip_prefix(first["initrd.img"].as_slice()).unwrap();
    let mark = Archive::parse(mark).unwrap();
    let paths: Vec<_> = mark.entries().map(|(path, ..)| path).collect();
    assert_eq!(paths, ["bin", DEVELOPMENT_SHELL, "etc", "etc/nacre", DEVELOPMENT_MARK]);
    let shell = manifest.initrd.development_shell.as_ref().unwrap();
    assert_eq!(shell.sha256, Sha256Hex::of(mark.file(DEVELOPMENT_SHELL).unwrap()));
    assert_eq!(manifest.kernel.vmlinux.sha256, Sha256Hex::of(&first["vmlinux"]));
    assert_eq!(manifest.kernel.bzimage.sha256, Sha256Hex::of(&first["vmlinuz"]));
    assert!(manifest.command_line.starts_with("console=hvc0 "));

    let paths: Vec<_> = manifest.files.iter().map(|file| file.path.as_str()).collect();
    for expected in [
        "/init",
        "/dev/console",
        "/pause_bundle/rootfs/pause",
        "/etc/ssl/certs/ca-certificates.crt",
        "/lib/modules/nacre/modules.order",
        "/lib/modules/nacre/virtio_blk.ko",
        "/lib/modules/nacre/virtio_net.ko",
        "/lib/modules/nacre/net_failover.ko",
        "/lib/modules/nacre/vsock.ko",
    ] {
        assert!(paths.contains(&expected), "{expected} is not in {paths:?}");
    }
    for development in [DEVELOPMENT_MARK, DEVELOPMENT_SHELL] {
        assert!(!paths.contains(&format!("/{development}").as_str()));
    }
}

#[test]
fn another_agent_changes_the_initrd_and_nothing_else() {
    let Some(world) = World::new() else { return };
    let (before, _) = world.build("image");
    stand_in(&world.root.path().join("agent"), 3);
    let (after, _) = world.build("image");
    assert_ne!(before.initrd.file.sha256, after.initrd.file.sha256);
    let changed = before.files.iter().zip(&after.files).filter(|(a, b)| a != b);
    let changed: Vec<_> = changed.map(|(file, _)| file.path.as_str()).collect();
    assert_eq!(changed, ["/init"]);
    assert_eq!(before.kernel, after.kernel);
}
