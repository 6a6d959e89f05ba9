//! Runs `nacre check` on the machine that the tests run on, whatever it is.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

fn check(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nacre")).arg("check").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A configuration in a directory of its own, so that the machine's is not taken.
fn configuration(content: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.toml");
    std::fs::write(&path, content).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (directory, path)
}

fn document(arguments: &[&str]) -> (Value, i32) {
    let output = check(arguments);
    let code = output.status.code().expect("it ends by itself");
    (serde_json::from_slice(&output.stdout).expect("JSON"), code)
}

fn finding<'a>(report: &'a Value, id: &str) -> &'a Value {
    report["findings"].as_array().unwrap().iter().find(|found| found["id"] == id).expect(id)
}

#[test]
fn this_machine_gets_a_verdict_on_every_question_and_the_exit_status_says_it() {
    let (all, code) = document(&["--output", "json"]);
    assert_eq!(all["format"], 1);
    let reports = all["reports"].as_array().unwrap();
    let tees: Vec<&str> = reports.iter().map(|report| report["tee"].as_str().unwrap()).collect();
    assert_eq!(tees, ["none", "emulated-snp", "snp", "tdx"]);
    let asked = reports.iter().find(|report| report["tee"] == all["asked"]).unwrap();
    assert_eq!(code, expected_code(asked), "{asked:#}");
    for report in reports {
        let (one, code) = document(&["--output", "json", "--tee", report["tee"].as_str().unwrap()]);
        assert_eq!(code, expected_code(report));
        let one = &one["reports"].as_array().unwrap()[0];
        assert_eq!(one["verdict"], report["verdict"]);
        judge(report);
    }
}

fn expected_code(report: &Value) -> i32 {
    match report["verdict"].as_str().unwrap() {
        "ready" => 0,
        "not-ready" => 1,
        "unknown" => 2,
        other => panic!("verdict {other}"),
    }
}

/// A verdict is what the findings say, and the findings are what this machine is.
fn judge(report: &Value) {
    let findings = report["findings"].as_array().unwrap();
    let statuses: Vec<&str> =
        findings.iter().map(|finding| finding["status"].as_str().unwrap()).collect();
    let verdict = match &statuses {
        all if all.contains(&"fail") => "not-ready",
        all if all.contains(&"unknown") => "unknown",
        _ => "ready",
    };
    assert_eq!(report["verdict"], verdict);
    for finding in findings {
        let advised = !finding["advice"].as_str().unwrap().is_empty();
        let status = finding["status"].as_str().unwrap();
        assert_eq!(advised, ["warn", "unknown", "fail"].contains(&status), "{finding:#}");
    }
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap();
    let found = finding(report, "cpu.model")["found"].as_str().unwrap().to_owned();
    assert!(found.starts_with(model.trim()), "{found}");
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(finding(report, "kernel.version")["found"], release.trim());
    if !Path::new("/dev/kvm").exists() {
        assert_eq!(finding(report, "kvm.device")["found"], "/dev/kvm is absent");
    }
    if !Path::new("/dev/sev").exists() && report["tee"] == "snp" {
        assert_ne!(verdict, "ready", "SEV-SNP without a secure processor");
    }
}

#[test]
fn the_table_says_what_was_found_without_colours() {
    let (_kept, path) = configuration("vm.qemu = \"/nowhere/qemu\"\n");
    let output = check(&["--config", &path, "--containerd-config", "/nowhere/config.toml"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let table = text(&output.stdout);
    assert!(!table.contains('\u{1b}'), "{table}");
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let lines: Vec<String> = table.lines().map(words).collect();
    for line in [
        format!("pass configuration {path}"),
        "FAIL qemu.version /nowhere/qemu is absent".to_owned(),
        "FAIL containerd.config /nowhere/config.toml is absent".to_owned(),
    ] {
        assert!(lines.contains(&line), "{line}\n{table}");
    }
    assert!(table.lines().last().unwrap().starts_with("none: not ready"), "{table}");
    let summary = text(&check(&[]).stdout);
    assert!(summary.starts_with("CHECK "), "{summary}");
    for tee in ["\nnone: ", "\nemulated-snp: ", "\nsnp: ", "\ntdx: "] {
        assert!(summary.contains(tee), "{summary}");
    }
}

/// A node with all of its parts in one directory.
struct Node {
    directory: tempfile::TempDir,
    _snapshotter: UnixListener,
}

impl Node {
    fn new(containerd: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let write = |name: &str, content: &[u8], mode: u32| {
            std::fs::create_dir_all(at(name).parent().unwrap()).unwrap();
            std::fs::write(at(name), content).unwrap();
            std::fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
        };
        let qemu = "#!/bin/sh\ncase \"$1\" in --version) echo 'QEMU emulator version 11.1.3 (x)';; \
                    *) echo '  sev-snp-guest'; echo '  tdx-guest';; esac\n";
        write("bin/qemu-system-x86_64", qemu.as_bytes(), 0o755);
        let version = "#!/bin/sh\necho containerd github.com/containerd/containerd 1.7.24 x\n";
        write("bin/containerd", version.as_bytes(), 0o755);
        write("bin/containerd-shim-nacre-v2", b"#!/bin/sh\n", 0o755);
        write("firmware/qboot.rom", b"x", 0o644);
        let hash = "0".repeat(64);
        let artifact = |name: &str| json!({"name": name, "size": 3, "sha256": hash});
        for name in ["vmlinux", "vmlinuz", "initrd.img", "initrd-development.img"] {
            write(&format!("image/{name}"), b"abc", 0o644);
        }
        let origin = json!({"package": "p", "version": "1", "sha256": hash});
        let manifest = json!({
            "format": 2,
            "kernel": {
                "release": "6.12.1", "package": origin,
                "vmlinux": artifact("vmlinux"), "bzimage": artifact("vmlinuz"),
            },
            "initrd": {
                "file": artifact("initrd.img"), "zstd_size": 1,
                "development": artifact("initrd-development.img"),
            },
            "command_line": "quiet", "certificates": origin, "files": [],
        });
        write("image/manifest.json", manifest.to_string().as_bytes(), 0o644);
        let shown = directory.path().display();
        let config = format!(
            "[vm]\nqemu = \"{shown}/bin/qemu-system-x86_64\"\nfirmware_dirs = [\"{shown}/firmware\"]\n\
             image = \"{shown}/image\"\naccelerator = \"tcg\"\n"
        );
        write("config.toml", config.as_bytes(), 0o644);
        let containerd = containerd
            .replace("/etc/nacre/config.toml", &format!("{shown}/config.toml"))
            .replace("/run/nacre/snapshotter.sock", &format!("{shown}/snapshotter.sock"));
        write("containerd.toml", b"version = 2\nimports = [\"conf.d/*.toml\"]\n", 0o644);
        write("conf.d/nacre.toml", containerd.as_bytes(), 0o644);
        let snapshotter = UnixListener::bind(at("snapshotter.sock")).unwrap();
        Self { directory, _snapshotter: snapshotter }
    }

    fn report(&self) -> Value {
        let at = |name: &str| self.directory.path().join(name);
        let output = Command::new(env!("CARGO_BIN_EXE_nacre"))
            .args(["check", "--output", "json", "--config"])
            .arg(at("config.toml"))
            .arg("--containerd-config")
            .arg(at("containerd.toml"))
            .env("PATH", at("bin"))
            .output()
            .unwrap();
        let document: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        document["reports"][0].clone()
    }

    fn status(&self, id: &str) -> String {
        finding(&self.report(), id)["status"].as_str().unwrap().to_owned()
    }
}

#[test]
fn a_node_with_all_its_parts_passes_and_each_part_is_missed() {
    let node = Node::new(include_str!("../../deploy/containerd/1.7.toml"));
    let report = node.report();
    for id in [
        "configuration",
        "qemu.version",
        "firmware.plain",
        "image",
        "containerd.version",
        "containerd.config",
        "containerd.handler",
        "containerd.snapshotter",
        "containerd.shim",
    ] {
        assert_eq!(finding(&report, id)["status"], "pass", "{:#}", finding(&report, id));
    }
    assert!(finding(&report, "image")["found"].as_str().unwrap().contains("kernel 6.12.1"));
    // Software emulation was asked for.
    assert_eq!(finding(&report, "kvm.device")["status"], expected_kvm());
    for (part, id) in [
        ("bin/qemu-system-x86_64", "qemu.version"),
        ("firmware/qboot.rom", "firmware.plain"),
        ("image/vmlinuz", "image"),
        ("bin/containerd-shim-nacre-v2", "containerd.shim"),
        ("snapshotter.sock", "containerd.snapshotter"),
        ("conf.d/nacre.toml", "containerd.handler"),
        ("containerd.toml", "containerd.config"),
    ] {
        // This machine may have the part in a place that is always looked at.
        let elsewhere = ["/usr/share/qemu", "/usr/local/sbin", "/usr/local/bin", "/usr/bin"];
        let name = Path::new(part).file_name().unwrap();
        if elsewhere.iter().any(|dir| Path::new(dir).join(name).exists()) && !id.starts_with("q") {
            continue;
        }
        std::fs::remove_file(node.directory.path().join(part)).unwrap();
        assert_eq!(node.status(id), "fail", "without {part}");
    }
}

fn expected_kvm() -> &'static str {
    // It is told even where the configuration does without.
    let (document, _) = document(&["--output", "json", "--tee", "none"]);
    let status = finding(&document["reports"][0], "kvm.device")["status"].clone();
    if status == "pass" { "pass" } else { "not-applicable" }
}

#[test]
fn labels_are_a_feature_file() {
    let output = check(&["--labels", "--tee", "snp"]);
    assert_eq!(output.status.code(), Some(0));
    let file = text(&output.stdout);
    // Node Feature Discovery leaves files beyond 64 KiB out.
    assert!(file.len() < 64 * 1024);
    let mut names = BTreeSet::new();
    for line in file.lines() {
        let (name, value) = line.split_once('=').unwrap();
        let part = name.strip_prefix("nacre.io/").unwrap();
        for word in [part, value] {
            let edge = |c: char| c.is_ascii_alphanumeric();
            assert!(word.len() <= 63 && word.starts_with(edge) && word.ends_with(edge), "{line}");
            assert!(word.chars().all(|c| edge(c) || "-_.".contains(c)), "{line}");
        }
        assert!(names.insert(name.to_owned()), "{line}");
    }
    let in_order = file.lines().map(|line| line.split('=').next());
    assert!(in_order.is_sorted(), "{file}");
    for name in ["ready", "tee", "kvm", "tee-none", "tee-emulated-snp", "tee-snp", "tee-tdx"] {
        assert!(names.contains(&format!("nacre.io/{name}")), "{name}\n{file}");
    }
    assert!(file.contains("nacre.io/tee=snp\n"), "{file}");
}

#[test]
fn what_cannot_be_checked_is_said() {
    let (_kept, broken) = configuration("[vm]\ntee = \"sgx\"\n");
    let missing = "/nowhere/config.toml";
    for (arguments, expected) in [
        (vec!["--config", missing], "cannot read /nowhere/config.toml"),
        (vec!["--config", &broken], "is not a valid configuration"),
        (vec!["--tee", "sgx"], "possible values: none, emulated-snp, snp, tdx"),
        (vec!["--output", "json", "--labels"], "cannot be used with"),
    ] {
        let output = check(&arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let said = text(&output.stderr);
        assert!(said.contains(expected), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty());
    }
}
