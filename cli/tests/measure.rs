//! `nacre measure`, on small images and firmware: each byte of what is launched counts, and what cannot be
//! measured is said.
#![allow(clippy::unwrap_used)]

#[path = "../../attestation/measurement/tests/synthetic/mod.rs"]
mod synthetic;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

const TEES: [&str; 3] = ["emulated-snp", "snp", "tdx"];

/// Exit code, standard output, standard error.
type Done = (i32, String, String);

/// A node: image, firmware, configuration.
struct Node(tempfile::TempDir);

impl Node {
    fn new() -> Node {
        let node = Node(tempfile::tempdir().unwrap());
        for directory in ["image", "ovmf", "qemu"] {
            fs::create_dir(node.path(directory)).unwrap();
        }
        node.put("ovmf/OVMF.amdsev.fd", &synthetic::snp(8192, 0x81_0c00, 0x80_b004));
        node.put("ovmf/OVMF.inteltdx.fd", &synthetic::tdx(8192));
        node.put("qemu/qboot.rom", &[1; 65536]);
        node.put("image/vmlinux", b"an ELF kernel");
        node.put("image/vmlinuz", &synthetic::program(b"signed"));
        node.put("image/initrd.img", b"an initrd");
        node.put("image/initrd-development.img", b"an initrd for development");
        node.describe_image();
        node.configure("");
        node
    }

    /// Writes the manifest of the files that are there.
    fn describe_image(&self) {
        let names = ["vmlinux", "vmlinuz", "initrd.img", "initrd-development.img"];
        let artifact = |name: &str| {
            let bytes = fs::read(self.path("image").join(name)).unwrap();
            json!({ "name": name, "size": bytes.len(), "sha256": sha256(&bytes) })
        };
        let origin = json!({ "package": "p", "version": "1", "sha256": "00".repeat(32) });
        let [vmlinux, vmlinuz, initrd, development] = names.map(artifact);
        let manifest = json!({
            "format": 2,
            "kernel": {
                "release": "6.12", "package": origin, "vmlinux": vmlinux, "bzimage": vmlinuz,
            },
            "initrd": { "file": initrd, "zstd_size": 1, "development": development },
            "command_line": "console=hvc0 quiet",
            "certificates": origin,
            "files": [],
        });
        self.put("image/manifest.json", manifest.to_string().as_bytes());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    /// Keys of `[vm]` first, then sections.
    fn configure(&self, more: &str) {
        let (image, qemu) = (self.path("image"), self.path("qemu"));
        let (snp, tdx) = (self.path("ovmf/OVMF.amdsev.fd"), self.path("ovmf/OVMF.inteltdx.fd"));
        let text = format!(
            "[tdx]\nfirmware = {tdx:?}\n[snp]\nfirmware = {snp:?}\n{}\n[vm]\nimage = {image:?}\n\
             firmware_dirs = [{qemu:?}]\nmax_vcpus = 4\n{}\n",
            more.split_once("[vm]").map_or(more, |(before, _)| before),
            more.split_once("[vm]").map_or("", |(_, after)| after),
        );
        self.put("node.toml", text.as_bytes());
    }

    fn measure(&self, arguments: &[&str]) -> Done {
        let config = self.path("node.toml").display().to_string();
        run(&[&["measure", "--config", &config], arguments].concat())
    }

    /// The document that is written for a TEE.
    fn document(&self, tee: &str, more: &[&str]) -> Value {
        let needed: &[&str] = match tee {
            "snp" => &["--tcb-minimum", "any"],
            "tdx" => &["--rtmr0", "any"],
            _ => &[],
        };
        let (code, out, error) = self.measure(&[&["--tee", tee], needed, more].concat());
        assert_eq!(code, 0, "{tee}: {error}");
        serde_json::from_str(&out).unwrap()
    }

    fn refusal(&self, arguments: &[&str]) -> String {
        refused(self.measure(arguments))
    }

    fn refused_release(&self, arguments: &[&str]) -> String {
        refused(run(&[&["measure"], arguments].concat()))
    }
}

/// Runs `nacre`.
fn run(arguments: &[&str]) -> Done {
    let output = Command::new(env!("CARGO_BIN_EXE_nacre")).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn refused((code, out, error): Done) -> String {
    assert_eq!((code, out.as_str()), (2, ""), "{error}");
    assert!(!error.contains("panicked"), "{error}");
    error
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    hex::encode(sha2::Sha256::digest(bytes))
}

/// What differs between documents, which have different names if their values differ.
fn differing(one: &Value, other: &Value) -> BTreeSet<String> {
    let (one, other) = (one.as_object().unwrap(), other.as_object().unwrap());
    let keys = one.keys().chain(other.keys());
    let mut keys: BTreeSet<_> =
        keys.filter(|key| one.get(*key) != other.get(*key)).cloned().collect();
    assert_eq!(keys.remove("id"), keys.iter().any(|key| key != "note"), "{one:?} {other:?}");
    keys
}

#[test]
fn one_flipped_byte_changes_what_is_measured() {
    let node = Node::new();
    let before = TEES.map(|tee| node.document(tee, &[]));
    assert_eq!(before[1]["measurements"].as_array().unwrap().len(), 4);
    // What changes of the three documents: nothing, or these members.
    let cases: [(&str, usize, [&str; 3]); 7] = [
        ("image/vmlinux", 5, ["measurements", "", ""]),
        ("image/vmlinuz", 0x500, ["", "measurements", "rtmr1"]),
        ("image/initrd.img", 3, ["measurements", "measurements", "rtmr2"]),
        ("image/initrd-development.img", 3, ["", "", ""]),
        ("ovmf/OVMF.amdsev.fd", 100, ["", "measurements", ""]),
        ("ovmf/OVMF.inteltdx.fd", 6000, ["", "", "mr_td"]),
        ("qemu/qboot.rom", 9, ["measurements", "", ""]),
    ];
    for (file, at, expected) in cases {
        let original = fs::read(node.path(file)).unwrap();
        let mut changed = original.clone();
        changed[at] ^= 1;
        node.put(file, &changed);
        node.describe_image();
        for (tee, (before, expected)) in TEES.iter().zip(before.iter().zip(expected)) {
            let found = differing(before, &node.document(tee, &[]));
            let expected = if expected.is_empty() { vec![] } else { vec![expected.to_owned()] };
            assert_eq!(found, BTreeSet::from_iter(expected), "{file}, {tee}");
        }
        node.put(file, &original);
        node.describe_image();
    }
    let manifest = fs::read_to_string(node.path("image/manifest.json")).unwrap();
    node.put("image/manifest.json", manifest.replace("quiet", "quieT").as_bytes());
    for (tee, (before, expected)) in
        TEES.iter().zip(before.iter().zip(["measurements", "measurements", "rtmr2"]))
    {
        let found = differing(before, &node.document(tee, &[]));
        assert_eq!(found, BTreeSet::from([expected.to_owned()]), "command line, {tee}");
    }
}

#[test]
fn the_configuration_counts_where_it_is_measured() {
    let node = Node::new();
    let before = TEES.map(|tee| node.document(tee, &[]));
    node.configure("[vm]\nkernel_parameters = \"nokaslr\"");
    for (tee, before) in TEES.iter().zip(&before) {
        assert!(differing(before, &node.document(tee, &["--danger-accept"])).len() >= 2, "{tee}");
    }
    node.configure("cpu = \"EPYC-Genoa-v1\"\nsmt = false");
    let found = node.document("snp", &[]);
    assert_eq!(found["policy"]["smt"], false);
    assert_eq!(
        differing(&before[1], &found),
        BTreeSet::from(["measurements".to_owned(), "policy".to_owned()])
    );
    node.configure("[vm]\ndanger_development_image = true");
    assert_eq!(
        differing(&before[2], &node.document("tdx", &["--danger-accept"])),
        BTreeSet::from(["note".into(), "rtmr2".into()])
    );
}

#[test]
fn guests_that_protect_less_are_measured_only_if_that_is_accepted() {
    let node = Node::new();
    for (settings, key) in [
        ("[vm]\ndanger_development_image = true", "vm.danger_development_image"),
        ("[vm]\nkernel_parameters = \"nokaslr\"", "vm.kernel_parameters"),
        ("[pod]\ndanger_set_policy = \"/p\"", "pod.danger_set_policy"),
        ("[registry]\ndanger_plain_http = [\"r:5000\"]", "registry.danger_plain_http"),
        ("[agent]\ndanger_record = \"/r\"", "agent.danger_record"),
    ] {
        node.configure(settings);
        let snp = ["--tee", "snp", "--tcb-minimum", "any"];
        for arguments in [&snp[..], &["--tee", "tdx", "--rtmr0", "any"], &["--tee", "emulated-snp"]]
        {
            let error = node.refusal(arguments);
            assert!(error.contains(key) && error.contains("--danger-accept"), "{key}: {error}");
            let (code, out, said) = node.measure(&[arguments, &["--danger-accept"]].concat());
            assert_eq!(code, 0, "{key}: {said}");
            assert!(said.contains("warning") && said.contains(key), "{key}: {said}");
            let document: Value = serde_json::from_str(&out).unwrap();
            let note = document["note"].as_str().unwrap();
            assert!(note.ends_with(&format!("; accepted with {key}")), "{note}");
        }
        let json = ["--danger-accept", "--explain", "--output", "json"];
        let (_, _, said) = node.measure(&[&snp[..], &json].concat());
        let explained: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(explained["dangers"], json!([key]));
    }
    node.configure("[vm]\ndanger_development_image = true\nkernel_parameters = \"nokaslr\"");
    let error = node.refusal(&["--tee", "emulated-snp"]);
    assert!(error.contains("vm.danger_development_image, vm.kernel_parameters"), "{error}");
    // Nothing to accept, nothing to say.
    node.configure("");
    let (code, out, said) = node.measure(&["--tee", "emulated-snp", "--danger-accept"]);
    assert_eq!((code, said.as_str()), (0, ""));
    assert!(!out.contains("accepted with"), "{out}");
}

#[test]
fn files_that_are_not_the_manifests_are_not_measured() {
    let node = Node::new();
    for (file, changed, tees) in [
        ("image/initrd.img", &b"an initrD"[..], &TEES[..]),
        ("image/initrd.img", b"an initrd and more", &TEES),
        ("image/vmlinux", b"an elf kernel", &TEES[..1]),
        ("image/vmlinuz", b"MZ", &TEES[1..]),
    ] {
        let original = fs::read(node.path(file)).unwrap();
        node.put(file, changed);
        for tee in TEES {
            let arguments: &[&str] = match tee {
                "snp" => &["--tee", tee, "--tcb-minimum", "any"],
                "tdx" => &["--tee", tee, "--rtmr0", "any"],
                _ => &["--tee", tee],
            };
            if tees.contains(&tee) {
                let error = node.refusal(arguments);
                let (_, name) = file.split_once('/').unwrap();
                assert!(
                    error.contains(&format!("{name} is not what the image's manifest says")),
                    "{error}"
                );
                assert!(error.contains("nacre image verify"), "{error}");
            } else {
                // It is not launched.
                node.document(tee, &[]);
            }
        }
        let image = node.path("image").display().to_string();
        let firmware = node.path("ovmf").display().to_string();
        if file != "image/vmlinux" {
            let error = node.refused_release(&["--release", &image, "--firmware", &firmware]);
            assert!(error.contains("is not what the image's manifest says"), "{error}");
        }
        node.put(file, &original);
    }
}

#[test]
fn documents_of_other_values_have_other_names() {
    let node = Node::new();
    let name = |more: &[&str]| node.document("snp", more)["id"].as_str().unwrap().to_owned();
    let all = name(&[]);
    let (front, hash) = all.rsplit_once('-').unwrap();
    assert_eq!(front, format!("nacre-{}-snp", env!("CARGO_PKG_VERSION")));
    assert!(hash.len() == 8 && hash.bytes().all(|digit| digit.is_ascii_hexdigit()), "{hash}");
    assert_eq!(name(&[]), all, "the same values, the same name");
    assert_ne!(name(&["--vcpus", "1"]), all);
    assert_eq!(name(&["--id", "mine"]), "mine");
}

#[test]
fn the_configuration_that_was_read_is_named() {
    let node = Node::new();
    let file = node.path("node.toml").display().to_string();
    let (_, _, said) = node.measure(&["--tee", "emulated-snp", "--explain"]);
    assert!(said.contains(&format!("measured with {file}")), "{said}");
    let json = ["--tee", "emulated-snp", "--explain", "--output", "json"];
    let explained: Value = serde_json::from_str(&node.measure(&json).2).unwrap();
    assert_eq!(explained["configuration"], file);
    // Without --config it is looked for, and said.
    let without = run(&["measure", "--tee", "emulated-snp", "--vcpus", "0"]);
    if !PathBuf::from("/etc/nacre/config.toml").exists() {
        assert!(without.2.contains("/etc/nacre/config.toml"), "{}", without.2);
    }
}

#[test]
fn shapes_are_those_of_the_pods() {
    let node = Node::new();
    let all = node.document("snp", &[]);
    let pod = |name: &str, cpu: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name}, namespace: default }}\nspec:\n  \
             containers:\n  - {{ name: app, image: \"r.example/app@sha256:{}\", resources: {{ limits: \
             {{ cpu: \"{cpu}\" }} }} }}\n---\n",
            "0".repeat(64)
        )
    };
    node.put("pods.yaml", format!("{}{}", pod("a", "2500m"), pod("b", "1")).as_bytes());
    let pods = node.path("pods.yaml").display().to_string();
    let found = node.document("snp", &[&pods]);
    assert_eq!(found["measurements"], json!([all["measurements"][0], all["measurements"][2]]));
    let found = node.document("snp", &[&pods, "--vcpus", "4", "--vcpus", "1"]);
    let measurements = &all["measurements"];
    assert_eq!(found["measurements"], json!([measurements[0], measurements[2], measurements[3]]));
    node.put("large.yaml", pod("large", "9").as_bytes());
    let large = node.path("large.yaml").display().to_string();
    let error = node.refusal(&["--tee", "snp", "--tcb-minimum", "any", &large]);
    assert!(error.contains("Pod/large") && error.contains("vm.max_vcpus"), "{error}");
    for count in ["0", "5"] {
        let error = node.refusal(&["--tee", "snp", "--tcb-minimum", "any", "--vcpus", count]);
        assert!(error.contains("give 1 to 4"), "{error}");
    }
}

#[test]
fn decisions_are_the_owners() {
    let node = Node::new();
    let error = node.refusal(&["--tee", "snp"]);
    assert!(error.contains("--tcb-minimum FILE"), "{error}");
    let minimum = json!({ "genoa": { "bootloader": 10, "tee": 0, "snp": 23, "microcode": 84 } });
    node.put("tcb.json", minimum.to_string().as_bytes());
    let file = node.path("tcb.json").display().to_string();
    let (code, out, error) = node.measure(&["--tee", "snp", "--tcb-minimum", &file]);
    assert_eq!(code, 0, "{error}");
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(document["tcb_minimum"]["genoa"]["snp"], 23);
    node.put("tcb.json", b"{ \"rome\": {} }");
    let error = node.refusal(&["--tee", "snp", "--tcb-minimum", &file]);
    assert!(error.contains("no least security versions"), "{error}");

    let error = node.refusal(&["--tee", "tdx"]);
    assert!(error.contains("RTMR0 is unpredictable") && error.contains("--rtmr0"), "{error}");
    let error = node.refusal(&["--tee", "tdx", "--rtmr0", "ab"]);
    assert!(error.contains("96 hexadecimal digits"), "{error}");
    let error = node.refusal(&["--tee", "tdx", "--rtmr0", "any", "--rtmr0", &"ab".repeat(48)]);
    assert!(error.contains("\"any\" alone"), "{error}");
    let (one, two) = ("ab".repeat(48), "cd".repeat(48));
    let (code, out, error) =
        node.measure(&["--tee", "tdx", "--rtmr0", &one, "--rtmr0", &two, "--rtmr3", "any"]);
    assert_eq!(code, 0, "{error}");
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(document["rtmr0"], json!([one, two]));
    assert_eq!(document["rtmr3"], "any");
    assert_eq!(document["tcb_status"], json!(["UpToDate"]));
    assert_eq!(node.document("tdx", &[])["rtmr3"], json!(["00".repeat(48)]));

    for wrong in [["--tee", "tdx", "--tcb-minimum", "any"], ["--tee", "snp", "--rtmr0", "any"]] {
        assert!(node.refusal(&wrong).contains("no meaning"), "{wrong:?}");
    }
}

#[test]
fn an_id_block_is_part_of_the_document() {
    let node = Node::new();
    let all = node.document("snp", &[]);
    let digest = hex::decode(all["measurements"][1].as_str().unwrap()).unwrap();
    let write = |digest: &[u8], policy: u64| {
        let mut block = digest.to_vec();
        block.resize(0x58, 0);
        block.extend(policy.to_le_bytes());
        node.put("block", base64(&block).as_bytes());
    };
    let mut authentication = vec![0; 4096];
    authentication[0x240..0x644].fill(5);
    node.put("auth", base64(&authentication).as_bytes());
    node.configure(&format!(
        "id_block = {:?}\nid_auth = {:?}",
        node.path("block"),
        node.path("auth")
    ));
    write(&digest, 0x3_0000);
    let found = node.document("snp", &[]);
    assert_eq!(found["measurements"], json!([all["measurements"][1]]), "no other would start");
    let key = {
        use sha2::Digest as _;
        hex::encode(sha2::Sha384::digest([5; 0x404]))
    };
    assert_eq!(found["id_key_digests"], json!([key]));
    assert_eq!(found.get("author_key_digests"), None);
    let any = ["--tee", "snp", "--tcb-minimum", "any"];
    write(&digest, 0x2_0000);
    assert!(node.refusal(&any).contains("signed for guest policy 0x20000"));
    write(&[7; 48], 0x3_0000);
    assert!(node.refusal(&any).contains("none would start"));
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = bytes.chunks(3).flat_map(|chunk| {
        let number = chunk.iter().fold(0_usize, |number, byte| number << 8 | usize::from(*byte));
        let number = number << (8 * (3 - chunk.len()));
        (0..4).map(move |digit| match digit <= chunk.len() {
            true => char::from(DIGITS[number >> (18 - 6 * digit) & 63]),
            false => '=',
        })
    });
    digits.collect()
}

#[test]
fn what_was_measured_can_be_explained() {
    let node = Node::new();
    let (_, _, said) = node.measure(&["--tee", "snp", "--tcb-minimum", "any", "--explain"]);
    for words in [
        "vmlinuz (",
        "OVMF.amdsev.fd (8192 bytes, sha256 ",
        "\"console=hvc0 quiet nacre.log=info nacre.tee=snp\"",
        "EPYC-v4, hyper-threads allowed",
        "  4 vcpus ",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let tdx = ["--tee", "tdx", "--rtmr0", "any", "--explain"];
    let (_, _, said) = node.measure(&tdx);
    assert!(said.contains("predicted by rule, never compared with hardware"), "{said}");
    assert!(said.contains("rtmr0     unpredictable: the firmware measures"), "{said}");
    assert!(said.contains("load options \"initrd=initrd console=hvc0"), "{said}");
    let (_, out, said) = node.measure(&[&tdx[..], &["--output", "json"]].concat());
    let (document, explained): (Value, Value) =
        (serde_json::from_str(&out).unwrap(), serde_json::from_str(&said).unwrap());
    assert_eq!(document["mr_td"][0], explained["mr_td"]);
    assert_eq!(document["rtmr1"][0], explained["rtmr"][1]["value"]);
    assert_eq!(explained["rtmr"][2]["events"][1]["what"], "initrd");
    assert_eq!(explained["firmware"]["size"], 8192);
}

#[test]
fn what_cannot_be_measured_is_said() {
    let any = ["--tee", "snp", "--tcb-minimum", "any"];
    let tdx = ["--tee", "tdx", "--rtmr0", "any"];
    let unmeasured = |file: &str, content: Option<&[u8]>, arguments: &[&str], expected: &str| {
        let node = Node::new();
        match content {
            Some(content) => {
                node.put(file, content);
                if file.starts_with("image/") && !file.ends_with(".json") {
                    node.describe_image();
                }
            }
            None => fs::remove_file(node.path(file)).unwrap(),
        }
        let error = node.refusal(arguments);
        assert!(error.contains(expected), "{file}: {error}");
    };
    unmeasured("ovmf/OVMF.amdsev.fd", None, &any, "OVMF.amdsev.fd");
    unmeasured("ovmf/OVMF.amdsev.fd", Some(&[0; 4097]), &any, "firmware of 4097 bytes");
    unmeasured("ovmf/OVMF.amdsev.fd", Some(&vec![0; 17 << 20]), &any, "16 MiB at most");
    unmeasured("ovmf/OVMF.amdsev.fd", Some(&synthetic::tdx(8192)), &any, "AmdSev");
    unmeasured("ovmf/OVMF.inteltdx.fd", Some(&[0xff; 8192]), &tdx, "table of GUIDs");
    let amd = synthetic::snp(8192, 0x81_0c00, 0x80_b004);
    unmeasured("ovmf/OVMF.inteltdx.fd", Some(&amd), &tdx, "give a TDVF image");
    unmeasured("image/vmlinuz", Some(b"\x7fELF"), &tdx, "EFI stub");
    unmeasured("image/vmlinuz", None, &any, "vmlinuz");
    unmeasured("image/initrd.img", None, &any, "initrd.img");
    unmeasured("image/manifest.json", Some(b"{}"), &any, "no manifest");
    unmeasured("image/manifest.json", None, &any, "there is no guest image");
    unmeasured("qemu/qboot.rom", Some(&[1; 100]), &["--tee", "emulated-snp"], "100 bytes");
    let node = Node::new();
    let error = node.refusal(&["--tee", "snp", "--tcb-minimum", "any", "/dev/zero"]);
    assert!(error.contains("/dev/zero has more than"), "{error}");
    fs::File::create(node.path("image/initrd.img")).unwrap().set_len(300 << 20).unwrap();
    let error = node.refusal(&any);
    assert!(error.contains("initrd.img has more than"), "{error}");
}

#[test]
fn a_release_carries_its_measurements() {
    let node = Node::new();
    let release_with = |more: &[&str]| {
        let image = node.path("image").display().to_string();
        run(&[&["measure", "--release", image.as_str()], more].concat())
    };
    let firmware = node.path("ovmf").display().to_string();
    let (code, said, error) = release_with(&["--firmware", &firmware]);
    assert_eq!(code, 0, "{error}");
    let read = || -> Value {
        serde_json::from_slice(&fs::read(node.path("image/measurements.json")).unwrap()).unwrap()
    };
    let release = read();
    // The default configuration: as the node's, but for its limit of processors.
    let snp = node.document("snp", &[]);
    assert_eq!(release["snp"]["measurements"]["3"], snp["measurements"][2]);
    assert_eq!(release["snp"]["measurements"].as_object().unwrap().len(), 16);
    assert_eq!(release["snp"]["firmware"]["name"], "OVMF.amdsev.fd");
    assert_eq!(release["tdx"]["rtmr"][1]["value"], node.document("tdx", &[])["rtmr1"][0]);
    assert!(release["tdx"]["rtmr"][0]["unpredictable"].is_string());
    assert!(!release.to_string().contains(node.0.path().to_str().unwrap()), "{release}");
    let digest = snp["measurements"][2].as_str().unwrap();
    assert!(said.contains(&format!("snp 3 vcpus {digest}")), "{said}");
    // Whoever does not trust the file compares, and writes nothing over it.
    node.put("image/measurements.json", b"somebody's");
    let (code, out, error) = release_with(&["--firmware", &firmware, "-o", "-"]);
    assert_eq!((code, error.as_str()), (0, ""));
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), release);
    let elsewhere = node.path("again.json").display().to_string();
    let (code, said, error) = release_with(&["--firmware", &firmware, "-o", &elsewhere]);
    assert_eq!(code, 0, "{error}");
    assert!(said.contains("again.json"), "{said}");
    assert_eq!(fs::read(&elsewhere).unwrap(), out.as_bytes());
    assert_eq!(fs::read(node.path("image/measurements.json")).unwrap(), b"somebody's");
    node.put("image/measurements.json", out.as_bytes());
    // It is of the default configuration: what would change that is a mistake.
    for wrong in [
        ["--config", "node.toml"],
        ["--tcb-minimum", "any"],
        ["--rtmr0", "any"],
        ["--rtmr3", "any"],
        ["--vcpus", "1"],
        ["--id", "x"],
    ] {
        let (code, _, error) = release_with(&wrong);
        assert!(code == 2 && error.contains("cannot be used with"), "{wrong:?}: {error}");
    }
    let (code, _, error) = release_with(&["--danger-accept"]);
    assert!(code == 2 && error.contains("cannot be used with"), "{error}");
    // Without a firmware its part is left out, visibly.
    fs::remove_file(node.path("ovmf/OVMF.inteltdx.fd")).unwrap();
    let (code, out, said) = release_with(&["--firmware", &firmware, "-o", "-"]);
    assert_eq!(code, 0);
    assert!(said.contains("tdx: not measured, ") && said.contains("is not there"), "{said}");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["snp"], release["snp"]);
    assert_eq!(read(), release, "it was printed, not written");
    let (code, said, _) = release_with(&["--firmware", &firmware]);
    assert_eq!(code, 0);
    assert!(said.contains("tdx: not measured, ") && said.contains("is not there"), "{said}");
    assert_eq!(read().get("tdx"), None);
}
