//! Small test images, made on the spot from BusyBox.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use anyhow::Context as _;
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// gzip, what most registries hold.
    Gzip,
    /// zstd.
    Zstd,
}

/// An image to be pushed.
#[derive(Debug, Clone)]
pub struct Image {
    pub(crate) name: String,
    layers: Vec<Layer>,
    entrypoint: Vec<String>,
    command: Vec<String>,
    environment: Vec<String>,
    user: String,
    directory: String,
    stop_signal: String,
}

/// One layer: files of a tar archive.
#[derive(Debug, Clone)]
pub struct Layer {
    compression: Compression,
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone)]
enum Entry {
    Directory { mode: u32 },
    File { mode: u32, content: Vec<u8> },
    Link { target: String },
    Zeros { size: u64 },
}

/// A blob as the registry holds it.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) bytes: Vec<u8>,
}

/// All that is pushed for an image.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) layers: Vec<Blob>,
    pub(crate) config: Blob,
    pub(crate) manifest: Blob,
}

impl Image {
    /// BusyBox with links for its commands, users root and tester (1000), and `/tmp`.
    pub fn busybox(name: &str) -> Image {
        Image {
            name: name.to_owned(),
            layers: Vec::new(),
            entrypoint: Vec::new(),
            command: vec!["sh".into()],
            environment: vec!["PATH=/bin".into()],
            user: String::new(),
            directory: String::new(),
            stop_signal: String::new(),
        }
    }

    /// What holds a pod's namespaces: `/pause`, as in the images that clusters use.
    pub(crate) fn pause() -> Image {
        let program = b"#!/bin/sh\nexec sleep 2147483647\n";
        let layer = Layer::new(Compression::Gzip).file("pause", 0o755, program);
        Image::busybox("pause").layer(layer).command(["/pause"])
    }

    /// Adds a layer on top.
    #[must_use]
    pub fn layer(mut self, layer: Layer) -> Image {
        self.layers.push(layer);
        self
    }

    /// What always runs.
    #[must_use]
    pub fn entrypoint<const N: usize>(mut self, words: [&str; N]) -> Image {
        self.entrypoint = words.map(str::to_owned).to_vec();
        self
    }

    /// What runs if the container names nothing.
    #[must_use]
    pub fn command<const N: usize>(mut self, words: [&str; N]) -> Image {
        self.command = words.map(str::to_owned).to_vec();
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Image {
        self.environment.push(format!("{name}={value}"));
        self
    }

    /// `name`, `uid`, `name:group` or `uid:gid`.
    #[must_use]
    pub fn user(mut self, user: &str) -> Image {
        user.clone_into(&mut self.user);
        self
    }

    /// Working directory.
    #[must_use]
    pub fn directory(mut self, path: &str) -> Image {
        path.clone_into(&mut self.directory);
        self
    }

    /// The signal that ends it politely, by name.
    #[must_use]
    pub fn stop_signal(mut self, name: &str) -> Image {
        name.clone_into(&mut self.stop_signal);
        self
    }

    pub(crate) fn build(&self) -> anyhow::Result<Built> {
        let busybox = busybox()?;
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        layers.push(busybox.0.clone());
        diff_ids.push(busybox.1.clone());
        for layer in &self.layers {
            let (blob, diff_id) = layer.build().context("failed to build a layer")?;
            layers.push(blob);
            diff_ids.push(diff_id);
        }
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "Cmd": self.command,
                "Env": self.environment,
                "User": self.user,
                "WorkingDir": self.directory,
                "StopSignal": self.stop_signal,
            },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = Blob::json("application/vnd.oci.image.config.v1+json", &config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config.descriptor(),
            "layers": layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
        });
        let manifest = Blob::json("application/vnd.oci.image.manifest.v1+json", &manifest);
        Ok(Built { layers, config, manifest })
    }
}

impl Layer {
    /// An empty layer.
    pub fn new(compression: Compression) -> Layer {
        Layer { compression, entries: BTreeMap::new() }
    }

    /// Adds a file; the path is relative to the root.
    #[must_use]
    pub fn file(mut self, path: &str, mode: u32, content: &[u8]) -> Layer {
        self.entries.insert(path.into(), Entry::File { mode, content: content.into() });
        self
    }

    /// Adds a directory.
    #[must_use]
    pub fn directory(mut self, path: &str, mode: u32) -> Layer {
        self.entries.insert(path.into(), Entry::Directory { mode });
        self
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn link(mut self, path: &str, target: &str) -> Layer {
        self.entries.insert(path.into(), Entry::Link { target: target.into() });
        self
    }

    /// Adds a file of the digit zero: small in the registry, big where it is unpacked.
    #[must_use]
    pub fn zeros(mut self, path: &str, size: u64) -> Layer {
        self.entries.insert(path.into(), Entry::Zeros { size });
        self
    }

    /// The compressed archive, and the digest of what is inside.
    fn build(&self) -> anyhow::Result<(Blob, String)> {
        let (media_type, sink) = match self.compression {
            Compression::Gzip => (
                "tar+gzip",
                Sink::Gzip(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(4))),
            ),
            Compression::Zstd => ("tar+zstd", Sink::Zstd(zstd::Encoder::new(Vec::new(), 3)?)),
        };
        let mut archive = tar::Builder::new(Hashed { hash: Sha256::new(), sink });
        for (path, entry) in &self.entries {
            entry.append(&mut archive, path)?;
        }
        let Hashed { hash, sink } = archive.into_inner()?;
        let bytes = match sink {
            Sink::Gzip(encoder) => encoder.finish()?,
            Sink::Zstd(encoder) => encoder.finish()?,
        };
        let blob = Blob::new(&format!("application/vnd.oci.image.layer.v1.{media_type}"), bytes);
        Ok((blob, format!("sha256:{}", hex::encode(hash.finalize()))))
    }
}

/// The lowest layer of every image, made once.
fn busybox() -> anyhow::Result<&'static (Blob, String)> {
    static LAYER: OnceLock<(Blob, String)> = OnceLock::new();
    if let Some(made) = LAYER.get() {
        return Ok(made);
    }
    let program = std::fs::read("/bin/busybox").context("package busybox-static is not here")?;
    let mut layer = Layer::new(Compression::Gzip)
        .directory("bin", 0o755)
        .directory("etc", 0o755)
        .directory("root", 0o700)
        .directory("tmp", 0o1777)
        .file("etc/passwd", 0o644, PASSWD.as_bytes())
        .file("etc/group", 0o644, GROUP.as_bytes())
        .file("bin/busybox", 0o755, &program);
    for command in COMMANDS.split_whitespace() {
        layer = layer.link(&format!("bin/{command}"), "busybox");
    }
    let made = layer.build()?;
    Ok(LAYER.get_or_init(|| made))
}

const PASSWD: &str = "root:x:0:0::/root:/bin/sh\ntester:x:1000:1000::/tmp:/bin/sh\n";
const GROUP: &str = "root:x:0:\ntester:x:1000:\nextra:x:2000:tester\n";
const COMMANDS: &str = "awk cat chmod cp cut date dd df dmesg echo env false free grep head hostname \
    httpd id ip kill ln ls mkdir mount mv nc nproc nslookup ping ping6 printf ps pwd rm sed seq sh \
    sha256sum sleep stat stty sync tail tee test touch tr true tty umount uname wc wget yes";

impl Entry {
    fn append(&self, archive: &mut tar::Builder<Hashed>, path: &str) -> anyhow::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        match self {
            Entry::Directory { mode } => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(*mode);
                header.set_size(0);
                archive.append_data(&mut header, format!("{path}/"), std::io::empty())?;
            }
            Entry::File { mode, content } => {
                header.set_mode(*mode);
                header.set_size(content.len() as u64);
                archive.append_data(&mut header, path, content.as_slice())?;
            }
            Entry::Link { target } => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                header.set_size(0);
                archive.append_link(&mut header, path, target)?;
            }
            Entry::Zeros { size } => {
                header.set_mode(0o644);
                header.set_size(*size);
                // The digit: bytes of value zero would be left out, as holes, where it is unpacked.
                let zeros = std::io::Read::take(std::io::repeat(b'0'), *size);
                archive.append_data(&mut header, path, zeros)?;
            }
        }
        Ok(())
    }
}

enum Sink {
    Gzip(flate2::write::GzEncoder<Vec<u8>>),
    Zstd(zstd::Encoder<'static, Vec<u8>>),
}

/// Hashes what it passes on.
struct Hashed {
    hash: Sha256,
    sink: Sink,
}

impl std::io::Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = match &mut self.sink {
            Sink::Gzip(encoder) => encoder.write(bytes)?,
            Sink::Zstd(encoder) => encoder.write(bytes)?,
        };
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match &mut self.sink {
            Sink::Gzip(encoder) => encoder.flush(),
            Sink::Zstd(encoder) => encoder.flush(),
        }
    }
}

impl Blob {
    fn new(media_type: &str, bytes: Vec<u8>) -> Blob {
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(&bytes)));
        Blob { media_type: media_type.to_owned(), digest, bytes }
    }

    fn json(media_type: &str, value: &serde_json::Value) -> Blob {
        Blob::new(media_type, value.to_string().into_bytes())
    }

    fn descriptor(&self) -> serde_json::Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len() })
    }
}
