//! `nacre image` with a real registry, and with skopeo reading and writing the other side.
#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::Digest as _;

const PASSWORD: &str = "only the guest knows";
/// By bcrypt.
const PASSWORD_HASH: &str = "$2b$04$LfXYViKOwL8CFY/HSZAqlOXIO31CfmSRGWVWRrrePoIqRlQZnrO6u";

/// A directory with an image in the OCI layout (`oci:plain:t`), and a registry.
struct World {
    directory: tempfile::TempDir,
    registry: Option<(Child, String)>,
}

impl World {
    fn new() -> World {
        let world = World { directory: tempfile::tempdir().unwrap(), registry: None };
        world.make_image();
        world
    }

    /// None, and a visible line, where it is not installed.
    fn with_registry() -> Option<World> {
        World::new().serve("")
    }

    /// A registry over https, with a certificate of its own (tls.crt), for who has a password (login.json).
    fn with_private_registry() -> Option<World> {
        let world = World::new();
        let subject = [
            "-subj",
            "/CN=registry",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ];
        let make = ["req", "-x509", "-nodes", "-newkey", "rsa:2048", "-days", "2"];
        let files = ["-keyout", "tls.key", "-out", "tls.crt"];
        let (code, _, error) = world.run("openssl", &[&make[..], &subject, &files].concat());
        assert_eq!(code, 0, "{error}");
        std::fs::write(world.path("htpasswd"), format!("owner:{PASSWORD_HASH}\n")).unwrap();
        let path = |name: &str| world.path(name).display().to_string();
        let more = format!(
            "  tls:\n    certificate: {}\n    key: {}\nauth:\n  htpasswd:\n    realm: private\n    \
             path: {}\n",
            path("tls.crt"),
            path("tls.key"),
            path("htpasswd")
        );
        let world = world.serve(&more)?;
        let login = json!({"auths": {world.host(): {"username": "owner", "password": PASSWORD}}});
        std::fs::write(world.path("login.json"), login.to_string()).unwrap();
        Some(world)
    }

    fn serve(mut self, more: &str) -> Option<World> {
        let world = &mut self;
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n  \
             delete:\n    enabled: true\nhttp:\n  addr: {host}\n{more}",
            world.path("storage").display()
        );
        std::fs::write(world.path("registry.yml"), config).unwrap();
        let server = Command::new("docker-registry")
            .args(["serve", "registry.yml"])
            .current_dir(&world.directory)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(server) = server else {
            eprintln!(
                "SKIPPED: docker-registry is not installed (apt-get install docker-registry)"
            );
            return None;
        };
        let started = Instant::now();
        world.registry = Some((server, host.clone()));
        while TcpStream::connect(&host).is_err() {
            assert!(started.elapsed() < Duration::from_secs(20), "docker-registry does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(self)
    }

    fn host(&self) -> &str {
        &self.registry.as_ref().unwrap().1
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Exit code, standard output, standard error.
    fn run(&self, program: &str, words: &[&str]) -> (i32, String, String) {
        let output = Command::new(program)
            .args(words)
            .current_dir(&self.directory)
            .env("DOCKER_CONFIG", self.directory.path())
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    fn nacre(&self, words: &[&str]) -> (i32, String, String) {
        let mut all = vec!["image"];
        all.extend(words);
        if let Some((_, host)) = &self.registry {
            all.extend(["--danger-plain-http", host]);
        }
        self.run(env!("CARGO_BIN_EXE_nacre"), &all)
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

    fn inspect(&self, image: &str) -> Value {
        serde_json::from_str(&self.good(&["inspect", image, "--output", "json"])).unwrap()
    }

    fn keygen(&self, name: &str) {
        let public = self
            .run(env!("CARGO_BIN_EXE_nacre"), &["image", "keygen", "-o", &format!("{name}.pem")]);
        assert_eq!(public.0, 0, "{}", public.2);
        std::fs::write(self.path(&format!("{name}.pub")), public.1).unwrap();
    }

    /// False, and a visible line, where it is not installed.
    fn skopeo(&self, words: &[&str]) -> Option<Result<(), String>> {
        if Command::new("skopeo").arg("--version").output().is_err() {
            eprintln!("SKIPPED: skopeo is not installed (apt-get install skopeo)");
            return None;
        }
        let (code, _, error) = self.run("skopeo", words);
        Some(if code == 0 { Ok(()) } else { Err(error) })
    }

    fn make_image(&self) {
        let layers: Vec<Vec<u8>> = [("etc/one", b"one".repeat(1000)), ("etc/two", b"2".repeat(90))]
            .iter()
            .map(|(name, content)| layer(name, content))
            .collect();
        std::fs::create_dir_all(self.path("plain/blobs/sha256")).unwrap();
        let put = |content: &[u8], kind: &str| {
            let hex = hex(content);
            std::fs::write(self.path("plain/blobs/sha256").join(&hex), content).unwrap();
            json!({"mediaType": kind, "digest": format!("sha256:{hex}"), "size": content.len()})
        };
        let diff_ids: Vec<String> =
            layers.iter().map(|layer| format!("sha256:{}", hex(layer))).collect();
        let config = json!({"architecture": "amd64", "os": "linux", "config": {"Env": ["A=b"]},
            "created": "2026-01-01T00:00:00Z", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = put(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
        let layers: Vec<Value> = layers
            .iter()
            .map(|layer| put(layer, "application/vnd.oci.image.layer.v1.tar"))
            .collect();
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config,
            "layers": layers});
        let mut entry = put(manifest.to_string().as_bytes(), kind);
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": "t"});
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        std::fs::write(self.path("plain/index.json"), index.to_string()).unwrap();
        std::fs::write(self.path("plain/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }

    /// The layers' digests of an image in a directory.
    fn layers(&self, layout: &str) -> Vec<String> {
        let shown = self.inspect(&format!("oci:{layout}:t"));
        let layers = shown["layers"].as_array().unwrap().iter();
        layers.map(|layer| layer["digest"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some((server, _)) = &mut self.registry {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

fn hex(content: &[u8]) -> String {
    sha2::Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn layer(name: &str, content: &[u8]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, name, content).unwrap();
    archive.into_inner().unwrap()
}

/// From a directory to a registry, shown, and back with skopeo.
#[test]
fn images_are_encrypted_for_a_public_key_and_read_by_skopeo() {
    let Some(world) = World::with_registry() else { return };
    world.keygen("layers");
    let image = format!("{}/web:1", world.host());
    let out = world.good(&["encrypt", "oci:plain:t", &image, "--recipient", "jwe:layers.pub"]);
    let (printed, digest) = out.trim().split_once('@').unwrap();
    assert_eq!(printed, image);

    let shown = world.inspect(&image);
    assert_eq!(shown["manifest"], digest);
    assert_eq!(shown["platform"], "linux/amd64");
    for layer in shown["layers"].as_array().unwrap() {
        assert_eq!(layer["encrypted_for"], json!(["jwe (P-256)"]));
        assert_eq!(layer["media_type"], "application/vnd.oci.image.layer.v1.tar+encrypted");
    }
    let table = world.good(&["inspect", &format!("{image}@{digest}")]);
    assert!(table.contains("jwe (P-256)") && table.contains("no signatures found"), "{table}");

    let from = format!("docker://{image}");
    let copy = ["copy", "--src-tls-verify=false", "--decryption-key", "layers.pem"];
    let Some(copied) = world.skopeo(&[&copy[..], &[&from, "dir:decrypted"]].concat()) else {
        return;
    };
    copied.unwrap();
    for digest in world.layers("plain") {
        let hex = digest.strip_prefix("sha256:").unwrap();
        let [was, is] = ["plain/blobs/sha256", "decrypted"]
            .map(|directory| std::fs::read(world.path(directory).join(hex)).unwrap());
        assert_eq!(was, is);
    }
    world.keygen("other");
    let wrong = ["copy", "--src-tls-verify=false", "--decryption-key", "other.pem"];
    let refused = world.skopeo(&[&wrong[..], &[&from, "oci:refused:t"]].concat()).unwrap();
    assert!(refused.unwrap_err().contains("decrypt"));
}

/// What skopeo encrypted is shown, and further layers of it are left as they are.
#[test]
fn what_skopeo_encrypted_is_shown_and_kept() {
    let Some(world) = World::with_registry() else { return };
    world.keygen("layers");
    let image = format!("{}/web:skopeo", world.host());
    let to = format!("docker://{image}");
    let copy = ["copy", "--dest-tls-verify=false", "--encryption-key", "jwe:layers.pub"];
    let one = ["--encrypt-layer", "0", "oci:plain:t", &to];
    let Some(copied) = world.skopeo(&[&copy[..], &one].concat()) else { return };
    copied.unwrap();
    let shown = world.inspect(&image);
    assert_eq!(shown["layers"][0]["encrypted_for"], json!(["jwe (P-256)"]));
    assert_eq!(shown["layers"][1].get("encrypted_for"), None);

    let second = format!("{}/web:both", world.host());
    let key = ["--key-id", "kbs:///default/web/key", "--generate-key", "image.key"];
    world.good(&[&["encrypt", &image, &second], &key[..]].concat());
    let both = world.inspect(&second);
    assert_eq!(both["layers"][0], shown["layers"][0]);
    assert_eq!(both["layers"][1]["encrypted_for"], json!(["kbs:///default/web/key"]));
    world.fails(
        &[&["encrypt", &second, &image], &key[..2], &["--key-file", "image.key"]].concat(),
        "encrypted already",
    );
}

/// Keys are made, kept from others and never overwritten; layers are chosen; tags are not lost by mistake.
#[test]
fn layers_are_encrypted_under_a_key_of_the_broker() {
    let world = World::new();
    fn encrypt<'a>(more: &[&'a str]) -> Vec<&'a str> {
        [&["encrypt", "oci:plain:t", "--key-id", "kbs:///default/web/key"], more].concat()
    }
    world.good(&encrypt(&["oci:last:t", "--generate-key", "image.key", "--layer", "-1"]));
    let key = std::fs::metadata(world.path("image.key")).unwrap();
    assert_eq!((key.len(), key.permissions().mode() & 0o777), (32, 0o600));
    let shown = world.inspect("oci:last:t");
    assert_eq!(shown["layers"][0].get("encrypted_for"), None);
    assert_eq!(shown["layers"][1]["encrypted_for"], json!(["kbs:///default/web/key"]));
    assert_eq!(world.layers("last")[0], world.layers("plain")[0]);

    world.fails(&encrypt(&["oci:x:t", "--generate-key", "image.key"]), "failed to write image.key");
    world.fails(&encrypt(&["oci:x:t"]), "--generate-key");
    world.fails(&encrypt(&["oci:x:t", "--key-file", "plain/index.json"]), "a key has 32");
    world.fails(&encrypt(&["oci:x:t", "--key-file", "image.key", "--layer", "2"]), "has 2 layers");
    world.fails(&encrypt(&["oci:plain:t", "--key-file", "image.key"]), "--replace");
    world.fails(&["encrypt", "oci:plain:t", "oci:x:t", "--recipient", "pkcs7:x"], "only jwe:FILE");
    world.fails(&["encrypt", "oci:plain:no", "oci:x:t", "--recipient", "jwe:no"], "no");
    let before = world.layers("plain");
    world.good(&encrypt(&["oci:plain:t", "--key-file", "image.key", "--replace"]));
    assert_ne!(world.layers("plain"), before);
    let (code, _, error) = world.nacre(&["encrypt", "oci:plain:t", "oci:y:t"]);
    assert!(code == 2 && error.contains("--key-id"), "{error}");
}

/// Layers for recipients that guests cannot be are shown for what they are.
#[test]
fn unreadable_layers_are_shown() {
    let world = World::new();
    let recipients = ["--recipient", "jwe:layers.pub"];
    world.keygen("layers");
    world.good(&[&["encrypt", "oci:plain:t", "oci:other:t"], &recipients[..]].concat());
    let read = |name: &str| std::fs::read_to_string(world.path("other").join(name)).unwrap();
    let index: Value = serde_json::from_str(&read("index.json")).unwrap();
    let entry = &index["manifests"][0];
    let name = entry["digest"].as_str().unwrap().replace(':', "/");
    let manifest = read(&format!("blobs/{name}")).replace("enc.keys.jwe", "enc.keys.pkcs7");
    let digest = hex(manifest.as_bytes());
    std::fs::write(world.path("other/blobs/sha256").join(&digest), &manifest).unwrap();
    let mut entry = entry.clone();
    entry["digest"] = format!("sha256:{digest}").into();
    entry["size"] = manifest.len().into();
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    std::fs::write(world.path("other/index.json"), index.to_string()).unwrap();
    let shown = world.good(&["inspect", "oci:other:t"]);
    assert!(shown.contains("unreadable: the layer is encrypted for PKCS#7 recipients"), "{shown}");
}

/// A directory whose content was exchanged is not passed on.
#[test]
fn changed_blobs_are_found() {
    let world = World::new();
    let first = world.layers("plain")[0].clone();
    let blob = world.path("plain/blobs/sha256").join(first.strip_prefix("sha256:").unwrap());
    let mut file = std::fs::OpenOptions::new().write(true).open(blob).unwrap();
    file.write_all(b"X").unwrap();
    world.keygen("layers");
    let words = ["encrypt", "oci:plain:t", "oci:x:t", "--recipient", "jwe:layers.pub"];
    world.fails(&words, "sha256");
}

/// The decision is the guest's.
#[test]
fn policies_decide() {
    let Some(world) = World::with_registry() else { return };
    world.keygen("layers");
    let image = format!("{}/web:1", world.host());
    world.good(&["encrypt", "oci:plain:t", &image, "--recipient", "jwe:layers.pub"]);
    for (kind, verdict, word) in
        [("insecureAcceptAnything", 0, "policy: admitted"), ("reject", 1, "policy: refused")]
    {
        let policy = json!({"default": [{"type": kind}]});
        std::fs::write(world.path("policy.json"), policy.to_string()).unwrap();
        let (code, out, error) = world.nacre(&["inspect", &image, "--policy", "policy.json"]);
        assert!(code == verdict && out.contains(word), "{kind}: {code} {out}{error}");
    }
    std::fs::write(world.path("policy.json"), r#"{"default": [{"type": "reject"}]}"#).unwrap();
    let layout = ["inspect", "oci:plain:t", "--policy", "policy.json"];
    world.fails(&layout, "is a directory");
    world.fails(&["inspect", &format!("{}/none:1", world.host())], "none");
}

/// Both forms, by the guest's verifier; the older one by skopeo too.
#[test]
fn signatures_are_found_good_by_guests_and_by_skopeo() {
    let Some(world) = World::with_registry() else { return };
    for name in ["signing", "other", "layers"] {
        world.keygen(name);
    }
    let private = std::fs::metadata(world.path("signing.pem")).unwrap();
    assert_eq!(private.permissions().mode() & 0o777, 0o600);
    for (tag, format) in [("classic", "cosign-legacy"), ("bundle", "bundle")] {
        let image = format!("{}/team/web:{tag}", world.host());
        world.good(&["encrypt", "oci:plain:t", &image, "--recipient", "jwe:layers.pub"]);
        let admitted = |key: &str| {
            let policy = "default = \"reject\"\n[[image]]\nmatch = \"**\"\n\
                          require = [{ cosign-key = \"kbs:///default/web/signing\" }]\n";
            std::fs::write(world.path("policy.toml"), policy).unwrap();
            let key = format!("kbs:///default/web/signing={key}.pub");
            let words = ["inspect", &image, "--policy", "policy.toml", "--resource", &key];
            let (code, out, error) = world.nacre(&words);
            assert!(code < 2, "{error}");
            (code == 0, out)
        };
        assert!(!admitted("signing").0);
        let printed = world.good(&["sign", &image, "--key", "signing.pem", "--format", format]);
        assert!(printed.starts_with(&format!("{}/team/web", world.host())), "{printed}");
        let (good, out) = admitted("signing");
        assert!(good, "{format}: {out}");
        assert!(out.contains("sha256-") || out.contains("sigstore.bundle"), "{format}: {out}");
        let (good, out) = admitted("other");
        assert!(!good, "{format}: {out}");
        // A second signature leaves the first.
        world.good(&["sign", &image, "--key", "other.pem", "--format", format]);
        assert!(admitted("signing").0 && admitted("other").0, "{format}");
    }
    let (code, out, _) = {
        let image = format!("{}/team/web:classic", world.host());
        world.nacre(&["inspect", &image, "--policy", "policy.toml"])
    };
    assert!(code == 1 && out.contains("kbs:///default/web/signing"), "{out}");
    world.fails(&["sign", "oci:plain:t", "--key", "signing.pem"], "signed in a registry");
    let image = format!("{}/team/web:classic", world.host());
    world.fails(&["sign", &image, "--key", "signing.pub"], "PKCS#8 PEM");
    verify_with_openssl(&world, &image);
    verify_with_skopeo(&world, &image);
}

/// The signature under the tag, as OpenSSL sees it: a signature of the payload, which names the image.
fn verify_with_openssl(world: &World, image: &str) {
    let digest = world.inspect(image)["manifest"].as_str().unwrap().to_owned();
    let repository = image.strip_suffix(":classic").unwrap();
    let classic = format!("docker://{repository}:{}.sig", digest.replace(':', "-"));
    let words = ["copy", "--src-tls-verify=false", &classic, "dir:signature"];
    let Some(copied) = world.skopeo(&words) else { return };
    copied.unwrap();
    let read = |name: &str| std::fs::read(world.path("signature").join(name)).unwrap();
    let manifest: Value = serde_json::from_slice(&read("manifest.json")).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2);
    for (layer, key) in layers.iter().zip(["signing", "other"]) {
        let payload = layer["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let content: Value = serde_json::from_slice(&read(payload)).unwrap();
        let critical = &content["critical"];
        assert_eq!(critical["image"]["docker-manifest-digest"], digest);
        assert_eq!(critical["identity"]["docker-reference"], image);
        assert_eq!(critical["type"], "cosign container image signature");
        let signature = &layer["annotations"]["dev.cosignproject.cosign/signature"];
        std::fs::write(world.path("base64"), signature.as_str().unwrap()).unwrap();
        let decode = ["base64", "-d", "-A", "-in", "base64", "-out", "raw"];
        assert_eq!(world.run("openssl", &decode).0, 0);
        let (key, payload) = (format!("{key}.pub"), format!("signature/{payload}"));
        let verify = ["dgst", "-sha256", "-verify", &key, "-signature", "raw", &payload];
        let (code, out, error) = world.run("openssl", &verify);
        assert!(code == 0 && out.contains("Verified OK"), "{out}{error}");
    }
}

/// containers-policy.json(5) with "sigstoreSigned", and containers-registries.d(5).
fn verify_with_skopeo(world: &World, image: &str) {
    let host = world.host();
    std::fs::create_dir_all(world.path("registries.d")).unwrap();
    let attachments = format!("docker:\n  {host}:\n    use-sigstore-attachments: true\n");
    std::fs::write(world.path("registries.d/here.yaml"), attachments).unwrap();
    for (key, good) in [("signing", true), ("other", true), ("layers", false)] {
        let key = world.path(&format!("{key}.pub"));
        let demand = json!([{"type": "sigstoreSigned", "keyPath": key}]);
        let policy =
            json!({"default": [{"type": "reject"}], "transports": {"docker": {host: demand}}});
        std::fs::write(world.path("containers.json"), policy.to_string()).unwrap();
        let options = ["--policy", "containers.json", "--registries.d", "registries.d", "copy"];
        let (from, to) = (format!("docker://{image}"), format!("dir:verified-{good}"));
        let words = [&options[..], &["--src-tls-verify=false", &from, &to]].concat();
        let Some(copied) = world.skopeo(&words) else { return };
        if copied.as_ref().is_err_and(|error| error.contains("sigstore disabled")) {
            eprintln!("SKIPPED: this skopeo was built without sigstore's signatures (Debian 12)");
            return;
        }
        assert_eq!(copied.is_ok(), good, "{copied:?}");
    }
}

/// Certificates and credentials are those that were named, for reading and for writing.
#[test]
fn private_registries_are_read_and_written() {
    let Some(world) = World::with_private_registry() else { return };
    world.keygen("layers");
    let image = format!("{}/web:1", world.host());
    let nacre = |words: &[&str], access: &[&str]| {
        let all = [&["image"], words, access].concat();
        world.run(env!("CARGO_BIN_EXE_nacre"), &all)
    };
    let encrypt = ["encrypt", "oci:plain:t", &image, "--recipient", "jwe:layers.pub"];
    let access = ["--ca", "tls.crt", "--authfile", "login.json"];
    let (code, _, error) = nacre(&encrypt, &access[..2]);
    assert!(code == 2 && error.contains("demands credentials"), "{error}");
    let (code, _, error) = nacre(&encrypt, &access[2..]);
    assert!(code == 2 && !error.contains("panicked"), "{error}");
    for words in [&encrypt[..], &["sign", &image, "--key", "layers.pem"], &["inspect", &image]] {
        let (code, out, error) = nacre(words, &access);
        assert_eq!(code, 0, "{words:?}: {error}");
        assert!(!error.contains(PASSWORD) && !out.contains(PASSWORD));
    }
    let login = json!({"auths": {world.host(): {"username": "owner", "password": "wrong"}}});
    std::fs::write(world.path("login.json"), login.to_string()).unwrap();
    let (code, _, error) = nacre(&encrypt, &access);
    assert!(code == 2 && error.contains("refuses the credentials"), "{error}");
    // Where docker keeps its logins.
    std::fs::rename(world.path("login.json"), world.path("config.json")).unwrap();
    let (code, _, error) = nacre(&encrypt, &access[..2]);
    assert!(code == 2 && error.contains("refuses the credentials"), "{error}");
}
