//! `nacre image build` and `nacre image verify`: with images of a few bytes, and with the real one where
//! `cargo xtask image` has made it.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nacre_image_manifest::cpio::{Archive, Node};
use nacre_image_manifest::{
    Artifact, Entry, FORMAT, GuestImage, Initrd, Kernel, MANIFEST, MEASUREMENTS, Manifest, Origin,
    Sha256Hex, development_archive,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};
use serde_json::Value;

const FILES: [&str; 5] =
    ["vmlinux", "vmlinuz", "initrd.img", "initrd-development.img", "manifest.json"];

/// Exit code, standard output, standard error.
type Done = (i32, String, String);

/// A directory with certificates, and with images.
struct World(tempfile::TempDir);

impl World {
    fn new() -> World {
        let world = World(tempfile::tempdir().unwrap());
        world.small_image("base");
        let certificate = |name: &str, is_ca| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = is_ca;
            params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
        };
        let authority = |name| certificate(name, IsCa::Ca(BasicConstraints::Unconstrained));
        world.put("one.pem", authority("One").as_bytes());
        world.put("two.pem", authority("Two").as_bytes());
        world.put("server.pem", certificate("server", IsCa::ExplicitNoCa).as_bytes());
        let mut old = CertificateParams::default();
        old.distinguished_name.push(DnType::CommonName, "Old");
        old.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        old.not_after = rcgen::date_time_ymd(2001, 1, 1);
        let old = old.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
        world.put("old.pem", old.as_bytes());
        world
    }

    /// An image as `cargo xtask image` makes it, of a few bytes.
    fn small_image(&self, name: &str) {
        let mut archive = Archive::default();
        for directory in ["etc", "etc/ssl", "etc/ssl/certs"] {
            archive.add(directory, 0o755, Node::Directory).unwrap();
        }
        archive.add("etc/ssl/certs/ca-certificates.crt", 0o644, Node::File(Vec::new())).unwrap();
        archive.add("init", 0o755, Node::File(b"agent".to_vec())).unwrap();
        let initrd = archive.to_bytes();
        let development = [initrd.as_slice(), &development_archive(None)].concat();
        let origin = || Origin {
            package: "package".into(),
            version: "1".into(),
            sha256: Sha256Hex::of(b"package"),
        };
        let manifest = Manifest {
            format: FORMAT,
            kernel: Kernel {
                release: "6.12-test".into(),
                package: origin(),
                vmlinux: Artifact::new("vmlinux", b"kernel"),
                bzimage: Artifact::new("vmlinuz", b"compressed"),
            },
            initrd: Initrd {
                file: Artifact::new("initrd.img", &initrd),
                zstd_size: 1,
                development: Artifact::new("initrd-development.img", &development),
                development_shell: None,
            },
            command_line: "console=hvc0 quiet".into(),
            certificates: origin(),
            extensions: Vec::new(),
            files: Entry::list(&archive),
        };
        fs::create_dir(self.path(name)).unwrap();
        let contents: [&[u8]; 5] =
            [b"kernel", b"compressed", &initrd, &development, &manifest.to_bytes()];
        for (file, content) in FILES.into_iter().zip(contents) {
            self.put(&format!("{name}/{file}"), content);
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, content: &[u8]) {
        fs::write(self.path(name), content).unwrap();
    }

    fn files(&self, image: &str) -> BTreeMap<String, Vec<u8>> {
        let entry = |entry: Result<fs::DirEntry, _>| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
        };
        fs::read_dir(self.path(image)).unwrap().map(entry).collect()
    }

    /// Runs `nacre image` in the world's directory.
    fn nacre(&self, words: &[&str]) -> Done {
        done(
            Command::new(env!("CARGO_BIN_EXE_nacre")).current_dir(&self.0).arg("image").args(words),
        )
    }

    fn good(&self, words: &[&str]) -> String {
        let (code, out, error) = self.nacre(words);
        assert_eq!(code, 0, "{words:?}: {error}{out}");
        out
    }

    fn fails(&self, words: &[&str], expected: &str) {
        let (code, out, error) = self.nacre(words);
        assert!(code == 2 && error.contains(expected), "{words:?}: {code} {error}{out}");
    }

    /// The lines of a verification that has to find something.
    fn problems(&self, image: &str) -> Vec<String> {
        let (code, out, error) = self.nacre(&["verify", image]);
        assert_eq!(code, 1, "{error}{out}");
        out.lines().filter(|line| line.contains(": ")).map(str::to_owned).collect()
    }
}

fn done(command: &mut Command) -> Done {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn an_image_is_built_verified_and_built_upon() {
    let world = World::new();
    let out = world.good(&["build", "--from", "base", "--ca", "one.pem", "-o", "own"]);
    assert!(out.contains("certificate authority") && out.contains("CN=One"), "{out}");
    world.good(&[
        "build",
        "--from",
        "base",
        "--ca",
        "one.pem",
        "--firmware",
        ".",
        "-o",
        "measured",
    ]);
    let measured = fs::read_to_string(world.path("measured/measurements.json")).unwrap();
    assert!(measured.contains("\"format\": 1"), "{measured}");
    let note =
        "not checked: the values in measurements.json: compare with `nacre measure --release`";
    let said = world.good(&["verify", "measured"]);
    assert!(said.contains(note), "{said}");
    let shown: Value =
        serde_json::from_str(&world.good(&["verify", "measured", "--output", "json"])).unwrap();
    assert_eq!(shown["not_checked"][0]["file"], MEASUREMENTS);
    assert_eq!(shown["not_checked"][0]["instead"], "compare with `nacre measure --release`");
    fs::remove_file(world.path("measured/measurements.json")).unwrap();
    let said = world.good(&["verify", "measured"]);
    assert!(!said.contains("not checked"), "{said}");
    for (name, bytes) in world.files("own") {
        // What guests measure is printed itself.
        if name == MEASUREMENTS {
            assert!(out.contains("own/measurements.json"), "{out}");
            continue;
        }
        assert!(out.contains(&Sha256Hex::of(&bytes).to_string()), "{name} is not in {out}");
    }
    let out = world.good(&["verify", "own"]);
    assert!(out.contains("verified: 4 files, 5 entries") && out.contains("CN=One"), "{out}");
    world.good(&["build", "--from", "own", "--ca", "two.pem", "-o", "second"]);
    let second = GuestImage::open(&world.path("second")).unwrap();
    let bases: Vec<_> = second.manifest().extensions.iter().map(|step| &step.base).collect();
    let manifests = ["base", "own"].map(|name| Sha256Hex::of(&world.files(name)[MANIFEST]));
    assert_eq!(bases, manifests.each_ref());
}

#[test]
fn the_bytes_depend_on_nothing_but_what_is_built() {
    let world = World::new();
    world.good(&["build", "--from", "base", "--ca", "one.pem", "--ca", "two.pem", "-o", "first"]);
    // Another directory, umask, time zone, language, order; the same certificate twice.
    let elsewhere = tempfile::tempdir().unwrap();
    let line = "umask 077; exec \"$0\" image build --ca \"$1/two.pem\" --ca \"$1/one.pem\" \
                --ca \"$1/two.pem\" --from \"$1/base\" -o \"$1/second\"";
    let mut shell = Command::new("sh");
    shell.args(["-c", line, env!("CARGO_BIN_EXE_nacre")]).arg(world.0.path());
    shell.current_dir(&elsewhere).env("TZ", "Pacific/Apia").env("LC_ALL", "tr_TR.UTF-8");
    let (code, _, error) = done(&mut shell);
    assert_eq!(code, 0, "{error}");
    assert!(world.files("first") == world.files("second"));
}

#[test]
fn what_cannot_be_added_is_told_and_leaves_nothing() {
    let world = World::new();
    let fails = |words: &[&str], expected: &str| {
        let mut all = vec!["build", "--from", "base", "-o", "new"];
        all.extend(words);
        world.fails(&all, expected);
        assert!(!world.path("new").exists());
    };
    fails(&[], "nothing is to be added");
    fails(&["--ca", "absent.pem"], "absent.pem");
    fails(&["--ca", "server.pem"], "server.pem: \"CN=server\" is no certificate authority");
    fails(&["--ca", "base/vmlinux"], "no certificate in PEM");
    fails(&["--module", "one.pem"], "one.pem is no kernel module");
    fails(&["--driver", "nfs"], "--kernel-package");
    fails(
        &["--driver", "nfs", "--kernel-package", "one.pem"],
        "the image's kernel is from package 1",
    );
    world.fails(
        &["build", "--from", "base", "--ca", "one.pem", "-o", "base"],
        "base is there already",
    );
    world
        .fails(&["build", "--from", "absent", "--ca", "one.pem", "-o", "new"], "no guest image in");
    assert_eq!(fs::read_dir(world.0.path()).unwrap().count(), 5, "something was left behind");
}

#[test]
fn a_base_that_is_not_what_its_manifest_says_is_not_built_on() {
    let world = World::new();
    world.put("base/vmlinux", b"Kernel");
    let words = ["build", "--from", "base", "--ca", "one.pem", "-o", "new"];
    world.fails(&words, "is not what its manifest says\n  vmlinux: its SHA-256 is");
}

#[test]
fn an_authority_that_has_expired_is_added_with_a_warning() {
    let world = World::new();
    let (code, _, error) =
        world.nacre(&["build", "--from", "base", "--ca", "old.pem", "-o", "own"]);
    assert!(code == 0 && error.contains("warning: old.pem: the certificate of CN=Old has expired"));
}

#[test]
fn verification_lists_all_and_its_status_tells() {
    let world = World::new();
    world.put("base/vmlinux", b"Kernel");
    fs::remove_file(world.path("base/vmlinuz")).unwrap();
    world.put("base/initrd.img", b"garbage");
    world.put("base/notes", b"");
    let problems = world.problems("base");
    let files: Vec<_> = problems.iter().map(|line| line.split(':').next().unwrap()).collect();
    let expected =
        ["vmlinux", "vmlinuz", "initrd.img", "initrd.img", "initrd-development.img", "notes"];
    assert_eq!(files, [&expected[..], &["NOT what its manifest says"]].concat());

    let (code, out, _) = world.nacre(&["verify", "base", "--output", "json"]);
    let shown: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &shown["verified"]), (1, &Value::Bool(false)));
    assert_eq!(shown["problems"].as_array().unwrap().len(), expected.len());
    assert_eq!(shown["problems"][1]["problem"], "it is absent");
    assert_eq!(shown["command_line"], "console=hvc0 quiet");

    world.fails(&["verify", "absent"], "no guest image in absent");
    world.put("base/manifest.json", b"{}");
    world.fails(&["verify", "base"], "it has no format");
}

#[test]
fn the_owners_manifest_decides_if_it_is_given() {
    let world = World::new();
    world.good(&["build", "--from", "base", "--ca", "one.pem", "-o", "own"]);
    world.good(&["verify", "own", "--manifest", "own/manifest.json"]);
    let (code, out, _) = world.nacre(&["verify", "own", "--manifest", "base/manifest.json"]);
    assert_eq!(code, 1);
    assert!(out.contains("manifest.json: it has") && out.contains("initrd.img: it has"), "{out}");
    world.fails(&["verify", "own", "--manifest", "absent"], "the manifest absent cannot be read");
}

#[test]
fn the_two_kinds_of_images_are_told_apart() {
    let help = World::new().good(&["--help"]);
    for (command, kind) in [
        ("inspect", "container image"),
        ("encrypt", "container image"),
        ("sign", "container image"),
        ("build", "guest image"),
        ("verify", "guest image"),
    ] {
        let line = help.lines().find(|line| line.trim_start().starts_with(&format!("{command} ")));
        assert!(line.is_some_and(|line| line.contains(kind)), "{help}");
    }
}

/// The image and the kernel's package, where they were made and fetched.
fn real_image() -> Option<(PathBuf, PathBuf)> {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/nacre");
    let image = made.join("image");
    let Ok(open) = GuestImage::open(&image) else {
        eprintln!("SKIPPED: {} holds no guest image; run `cargo xtask image`", image.display());
        return None;
    };
    let expected = &open.manifest().kernel.package.sha256;
    let packages = fs::read_dir(made.join("debs")).into_iter().flatten().flatten();
    let mut packages = packages.map(|entry| entry.path()).filter(|path| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("linux-image-") && &Sha256Hex::of(&fs::read(path).unwrap()) == expected
    });
    let Some(package) = packages.next() else {
        eprintln!("SKIPPED: the kernel's package was not fetched; run `cargo xtask image`");
        return None;
    };
    Some((image, package))
}

#[test]
fn the_real_image_takes_authorities_and_drivers() {
    let Some((image, package)) = real_image() else { return };
    let world = World::new();
    let [image, package] = [&image, &package].map(|path| path.to_str().unwrap());
    world.good(&["verify", image]);
    let add = ["--kernel-package", package, "--driver", "wireguard", "--driver", "dummy"];
    let build = |out: &str| {
        let mut words = vec!["build", "--from", image, "--ca", "one.pem", "-o", out];
        words.extend(add);
        world.good(&words)
    };
    let said = build("first");
    assert!(said.contains("wireguard") && said.contains("udp_tunnel (needed by others)"), "{said}");
    build("second");
    for name in FILES {
        let read = |image: &str| fs::read(world.path(image).join(name)).unwrap();
        assert!(read("first") == read("second"), "{name} differs between two builds");
    }
    let built = GuestImage::open(&world.path("first")).unwrap().verify().unwrap();
    let load = built.archive().file("lib/modules/nacre/modules.load").unwrap();
    assert_eq!(load, b"dummy\nwireguard\n");
    let order = built.archive().file("lib/modules/nacre/modules.order").unwrap();
    let order = String::from_utf8(order.to_vec()).unwrap();
    let line = order.lines().find(|line| line.starts_with("wireguard ")).unwrap();
    assert!(line.contains("udp_tunnel"), "{line}");

    // One bit of 26 MB.
    let path = world.path("first/initrd.img");
    let mut initrd = fs::read(&path).unwrap();
    let middle = initrd.len() / 2;
    initrd[middle] ^= 1;
    fs::write(&path, initrd).unwrap();
    let problems = world.problems("first");
    assert!(
        problems.iter().any(|line| line.starts_with("initrd.img: its SHA-256")),
        "{problems:?}"
    );
    assert!(problems.iter().any(|line| line.starts_with("initrd.img /")), "{problems:?}");
}
