//! skopeo and this crate open what the other one encrypted.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nacre_image_encryption::{
    EncryptedLayer, EncryptionError, KeyRing, LayerEncryptor, MEDIA_TYPE_SUFFIX, PublicKey,
    Recipient, is_encrypted,
};
use nacre_trust::{Algorithm, Digest};
use serde_json::{Value, json};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A directory with keys and images in it.
struct World(tempfile::TempDir);

impl World {
    /// None, and a visible line, where the tools are not installed.
    fn new() -> Option<World> {
        for tool in ["skopeo", "openssl"] {
            if Command::new(tool).arg("version").output().is_err() {
                eprintln!("SKIPPED: {tool} is not installed (apt-get install {tool})");
                return None;
            }
        }
        Some(World(tempfile::tempdir().unwrap()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<(), String> {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&self.0).stdin(Stdio::null());
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(error) }
    }

    fn good(&self, program: &str, arguments: &[&str]) {
        self.run(program, arguments).unwrap_or_else(|e| panic!("{program} {arguments:?}: {e}"));
    }

    /// A key pair made by OpenSSL: NAME.pem (PKCS#8) and NAME.pub.
    fn key(&self, name: &str, options: &[&str]) {
        let (private, public) = (format!("{name}.pem"), format!("{name}.pub"));
        self.good("openssl", &[&["genpkey", "-out", &private], options].concat());
        self.good("openssl", &["pkey", "-in", &private, "-pubout", "-out", &public]);
    }

    fn keys(&self) {
        self.key("rsa", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]);
        for (name, curve) in [("p256", "P-256"), ("p384", "P-384"), ("p521", "P-521")] {
            let curve = format!("ec_paramgen_curve:{curve}");
            self.key(name, &["-algorithm", "EC", "-pkeyopt", &curve]);
        }
    }

    fn layout(&self, name: &str) -> Layout {
        Layout(self.path(name))
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    fn ring(&self, private: &str) -> KeyRing {
        let mut ring = KeyRing::new();
        ring.add_private_key(&self.read(private)).unwrap();
        ring
    }
}

/// A directory in the OCI image layout with one image, tagged `t`.
struct Layout(PathBuf);

impl Layout {
    fn make(self, layers: &[Value], blobs: &[Vec<u8>]) -> Layout {
        std::fs::create_dir_all(self.0.join("blobs/sha256")).unwrap();
        for blob in blobs {
            self.put(blob);
        }
        let diff_ids: Vec<String> =
            layers.iter().map(|layer| layer["digest"].as_str().unwrap().to_owned()).collect();
        let config = json!({"architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = self.put(config.to_string().as_bytes());
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": layers, "config":
            {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.0, "size": config.1}});
        let manifest = self.put(manifest.to_string().as_bytes());
        let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": MANIFEST, "digest": manifest.0,
            "size": manifest.1, "annotations": {"org.opencontainers.image.ref.name": "t"}}]});
        std::fs::write(self.0.join("index.json"), index.to_string()).unwrap();
        std::fs::write(self.0.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        self
    }

    fn put(&self, blob: &[u8]) -> (String, usize) {
        let digest = Digest::of(Algorithm::Sha256, blob);
        std::fs::write(self.0.join("blobs/sha256").join(digest.hex()), blob).unwrap();
        (digest.to_string(), blob.len())
    }

    fn get(&self, digest: &Value) -> Vec<u8> {
        let hex = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
        std::fs::read(self.0.join("blobs/sha256").join(hex)).unwrap()
    }

    /// Media type, annotations and blob of each layer.
    fn layers(&self) -> Vec<(String, BTreeMap<String, String>, Vec<u8>)> {
        let read = |bytes: &[u8]| -> Value { serde_json::from_slice(bytes).unwrap() };
        let index = read(&std::fs::read(self.0.join("index.json")).unwrap());
        let manifest = read(&self.get(&index["manifests"][0]["digest"]));
        let layers = manifest["layers"].as_array().unwrap().iter();
        let layer = |layer: &Value| {
            let annotations = layer.get("annotations").cloned().unwrap_or(json!({}));
            let annotations = serde_json::from_value(annotations).unwrap();
            let media_type = layer["mediaType"].as_str().unwrap().to_owned();
            (media_type, annotations, self.get(&layer["digest"]))
        };
        layers.map(layer).collect()
    }
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    writer.write_all(content).unwrap();
    writer.finish().unwrap()
}

fn blobs() -> [Vec<u8>; 2] {
    [gzip(b"one layer"), gzip(&(0..300_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>())]
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    let digest = Digest::of(Algorithm::Sha256, blob).to_string();
    json!({"mediaType": media_type, "digest": digest, "size": blob.len()})
}

fn decrypt(
    annotations: &BTreeMap<String, String>,
    blob: &[u8],
    ring: &KeyRing,
) -> Result<Vec<u8>, EncryptionError> {
    let mut cipher = EncryptedLayer::parse(annotations)?.unwrap(ring)?;
    let mut plaintext = blob.to_vec();
    for piece in plaintext.chunks_mut(4099) {
        cipher.decrypt(piece);
    }
    let _proof = cipher.finish()?;
    Ok(plaintext)
}

fn jwe(public: &str) -> String {
    format!("jwe:{public}")
}

/// `skopeo copy --encryption-key jwe:...`, for each kind of key alone and for all of them.
#[test]
fn what_skopeo_encrypts_is_decrypted() {
    let Some(world) = World::new() else { return };
    world.keys();
    let blobs = blobs();
    let plain: Vec<Value> = blobs.iter().map(|blob| descriptor(LAYER, blob)).collect();
    world.layout("plain").make(&plain, &blobs);
    let all = ["rsa", "p256", "p384", "p521"];
    let cases: [&[&str]; 5] = [&["rsa"], &["p256"], &["p384"], &["p521"], &all];
    for (case, recipients) in cases.iter().enumerate() {
        let to = format!("encrypted{case}");
        let mut arguments = vec!["copy".to_owned()];
        for name in *recipients {
            arguments.extend(["--encryption-key".to_owned(), jwe(&format!("{name}.pub"))]);
        }
        arguments.extend(["oci:plain:t".to_owned(), format!("oci:{to}:t")]);
        world.good("skopeo", &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        for ((media_type, annotations, blob), expected) in
            world.layout(&to).layers().iter().zip(&blobs)
        {
            assert!(is_encrypted(media_type), "{media_type}");
            assert_ne!(blob, expected);
            let layer = EncryptedLayer::parse(annotations).unwrap();
            assert_eq!(layer.recipients().len(), recipients.len());
            for name in all {
                let read = decrypt(annotations, blob, &world.ring(&format!("{name}.pem")));
                if recipients.contains(&name) {
                    assert_eq!(read.as_ref(), Ok(expected), "{name}");
                } else {
                    let error = read.unwrap_err().to_string();
                    assert!(error.contains("no key opens the layer"), "{error}");
                }
            }
            let mut changed = blob.clone();
            *changed.last_mut().unwrap() ^= 1;
            let ring = world.ring(&format!("{}.pem", recipients[0]));
            assert_eq!(decrypt(annotations, &changed, &ring), Err(EncryptionError::Changed));
        }
    }
}

/// `skopeo copy --decryption-key`, for each kind of key alone and for all of them.
#[test]
fn skopeo_decrypts_what_was_encrypted() {
    let Some(world) = World::new() else { return };
    world.keys();
    let all = ["rsa", "p256", "p384", "p521"];
    let cases: [&[&str]; 5] = [&["rsa"], &["p256"], &["p384"], &["p521"], &all];
    for (case, recipients) in cases.iter().enumerate() {
        let from = format!("encrypted{case}");
        let mut to: Vec<Recipient> = recipients
            .iter()
            .map(|name| PublicKey::parse(&world.read(&format!("{name}.pub"))).unwrap())
            .map(Recipient::Jwe)
            .collect();
        // One that skopeo cannot use beside those that it can.
        let key_id = "kbs:///default/image/key".parse().unwrap();
        to.push(Recipient::Provider { key_id, key: [7; 32].into() });
        let mut descriptors = Vec::new();
        let mut encrypted = Vec::new();
        for blob in blobs() {
            let mut encryptor = LayerEncryptor::new(Vec::new(), Algorithm::Sha256).unwrap();
            encryptor.write_all(&blob).unwrap();
            let (sealed, ciphertext) = encryptor.finish().unwrap();
            assert_eq!(*sealed.plaintext_digest(), Digest::of(Algorithm::Sha256, &blob));
            let mut new = descriptor(&format!("{LAYER}{MEDIA_TYPE_SUFFIX}"), &ciphertext);
            assert_eq!(new["digest"], sealed.digest().to_string());
            assert_eq!(sealed.size(), ciphertext.len() as u64);
            new["annotations"] = json!(sealed.annotations(&to, &BTreeMap::new()).unwrap());
            descriptors.push(new);
            encrypted.push(ciphertext);
        }
        world.layout(&from).make(&descriptors, &encrypted);
        for name in all {
            let key = format!("{name}.pem");
            let into = format!("decrypted-{case}-{name}");
            let (source, target) = (format!("oci:{from}:t"), format!("oci:{into}:t"));
            let copied = world.run("skopeo", &["copy", "--decryption-key", &key, &source, &target]);
            if recipients.contains(&name) {
                copied.unwrap_or_else(|error| panic!("{name}: {error}"));
                for ((media_type, _, blob), expected) in
                    world.layout(&into).layers().iter().zip(blobs())
                {
                    assert!(!is_encrypted(media_type));
                    assert_eq!(*blob, expected, "{name}");
                }
            } else {
                let error = copied.unwrap_err();
                assert!(error.contains("decrypt"), "{error}");
            }
        }
    }
}

/// The forms in which OpenSSL and others write keys.
#[test]
fn keys_are_read_in_every_form() {
    let Some(world) = World::new() else { return };
    world.keys();
    let sec1 = |world: &World, name: &str| {
        let (key, out) = (format!("{name}.pem"), format!("{name}.sec1"));
        world.good("openssl", &["ec", "-in", &key, "-out", &out]);
    };
    for name in ["p256", "p384", "p521"] {
        sec1(&world, name);
    }
    // With the curve's parameters before the key.
    world.good("openssl", &["ecparam", "-name", "prime256v1", "-genkey", "-out", "ecparam.pem"]);
    world.good("openssl", &["rsa", "-in", "rsa.pem", "-traditional", "-out", "rsa.pkcs1"]);
    world.good("openssl", &["rsa", "-in", "rsa.pem", "-RSAPublicKey_out", "-out", "rsa.pub1"]);
    for (key, from) in [("rsa.der", "rsa.pem"), ("p256.der", "p256.pem")] {
        let words = ["pkcs8", "-topk8", "-nocrypt", "-outform", "DER", "-in", from, "-out", key];
        world.good("openssl", &words);
    }
    let private = ["p256.sec1", "p384.sec1", "p521.sec1", "ecparam.pem", "rsa.pkcs1", "rsa.der"];
    for name in private.into_iter().chain(["p256.der", "rsa.pem"]) {
        KeyRing::new().add_private_key(&world.read(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    for (name, kind) in [("rsa.pub", "RSA"), ("rsa.pub1", "RSA"), ("p521.pub", "P-521")] {
        assert_eq!(PublicKey::parse(&world.read(name)).unwrap().kind(), kind);
    }
    let locked = ["pkcs8", "-topk8", "-passout", "pass:x", "-in", "p256.pem", "-out", "locked.pem"];
    world.good("openssl", &locked);
    world.good("openssl", &["genpkey", "-algorithm", "ED25519", "-out", "ed25519.pem"]);
    world.good(
        "openssl",
        &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024", "-out", "short.pem"],
    );
    for (name, expected) in [
        ("locked.pem", "passphrase"),
        ("ed25519.pem", "P-256, P-384 or P-521 or RSA"),
        ("p256.pub", "P-256, P-384 or P-521 or RSA"),
        ("short.pem", "2048 to 4096"),
    ] {
        let error = KeyRing::new().add_private_key(&world.read(name)).unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
    assert!(PublicKey::parse(&world.read("p256.pem")).is_err(), "a private key was taken");
}
