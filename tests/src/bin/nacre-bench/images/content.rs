//! Images like those that are pulled every day: many small files, some large ones, text and programs.
//! Always the same bytes.

use std::io::{self, Write};

use anyhow::Context as _;
use flate2::write::GzEncoder;
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// An image, ready to be pushed.
pub(super) struct Made {
    pub(super) name: &'static str,
    pub(super) layers: Vec<Blob>,
    pub(super) config: Blob,
    pub(super) manifest: Vec<u8>,
    /// Bytes of the archives.
    pub(super) unpacked: u64,
    pub(super) entries: u32,
}

pub(super) struct Blob {
    pub(super) digest: String,
    pub(super) bytes: Vec<u8>,
}

impl Made {
    /// Bytes that travel.
    pub(super) fn packed(&self) -> u64 {
        self.layers.iter().map(|layer| layer.bytes.len() as u64).sum()
    }
}

/// Entries and bytes of the layers of the larger image.
const LAYERS: [(u32, u64); 4] =
    [(6000, 200_000_000), (2500, 80_000_000), (1500, 42_000_000), (500, 20_000_000)];

/// The larger image in gzip and zstd, and one of a single small layer.
pub(super) fn make() -> anyhow::Result<Vec<Made>> {
    let (mut gzip, mut zstd) = (Vec::new(), Vec::new());
    for (number, (entries, bytes)) in (1..).zip(LAYERS) {
        let [one, other] = Packer::pack(|tar| tree(tar, number, entries, bytes))?;
        gzip.push(one);
        zstd.push(other);
    }
    let [small, _] = Packer::pack(busybox)?;
    Ok(vec![
        image("large-gzip", "gzip", gzip),
        image("large-zstd", "zstd", zstd),
        image("busybox", "gzip", vec![small]),
    ])
}

struct Packed {
    blob: Blob,
    diff_id: String,
    unpacked: u64,
    entries: u32,
}

fn image(name: &'static str, compression: &str, layers: Vec<Packed>) -> Made {
    let ids: Vec<&str> = layers.iter().map(|layer| &*layer.diff_id).collect();
    let config = blob(
        json!({
            "os": "linux",
            "architecture": "amd64",
            "config": { "Cmd": ["/bin/sh"] },
            "rootfs": { "type": "layers", "diff_ids": ids },
        })
        .to_string()
        .into_bytes(),
    );
    let kind = format!("application/vnd.oci.image.layer.v1.tar+{compression}");
    let describe = |kind: &str, blob: &Blob| json!({ "mediaType": kind, "digest": blob.digest, "size": blob.bytes.len() });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": describe("application/vnd.oci.image.config.v1+json", &config),
        "layers": layers.iter().map(|layer| describe(&kind, &layer.blob)).collect::<Vec<_>>(),
    });
    Made {
        name,
        unpacked: layers.iter().map(|layer| layer.unpacked).sum(),
        entries: layers.iter().map(|layer| layer.entries).sum(),
        layers: layers.into_iter().map(|layer| layer.blob).collect(),
        config,
        manifest: manifest.to_string().into_bytes(),
    }
}

fn blob(bytes: Vec<u8>) -> Blob {
    Blob { digest: format!("sha256:{}", hex::encode(Sha256::digest(&bytes))), bytes }
}

/// Takes an archive and packs it in both ways at once.
struct Packer {
    gzip: GzEncoder<Vec<u8>>,
    zstd: zstd::Encoder<'static, Vec<u8>>,
    hasher: Sha256,
    unpacked: u64,
}

impl Packer {
    fn pack(
        fill: impl FnOnce(&mut tar::Builder<Self>) -> anyhow::Result<u32>,
    ) -> anyhow::Result<[Packed; 2]> {
        let mut tar = tar::Builder::new(Self {
            gzip: GzEncoder::new(Vec::new(), flate2::Compression::default()),
            zstd: zstd::Encoder::new(Vec::new(), 3)?,
            hasher: Sha256::new(),
            unpacked: 0,
        });
        let entries = fill(&mut tar)?;
        let this = tar.into_inner()?;
        let (unpacked, diff_id) =
            (this.unpacked, format!("sha256:{}", hex::encode(this.hasher.finalize())));
        Ok([this.gzip.finish()?, this.zstd.finish()?].map(|bytes| Packed {
            blob: blob(bytes),
            diff_id: diff_id.clone(),
            unpacked,
            entries,
        }))
    }
}

impl Write for Packer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.gzip.write_all(bytes)?;
        self.zstd.write_all(bytes)?;
        self.hasher.update(bytes);
        self.unpacked += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Numbers that look random and are the same in every run (Marsaglia's xorshift).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Words as they repeat in sources, texts and symbol tables.
fn words(numbers: &mut Numbers) -> Vec<Vec<u8>> {
    let mut word = || {
        let len = 3 + numbers.below(8);
        let mut word: Vec<u8> =
            (0..len).map(|_| LETTERS[usize::from(numbers.below(16).to_le_bytes()[0])]).collect();
        word.push(if numbers.below(9) == 0 { b'\n' } else { b' ' });
        word
    };
    (0..2048).map(|_| word()).collect()
}

const LETTERS: &[u8; 16] = b"etaoinshrdlucm_(";

/// Of 256 pieces of a file, so many do not compress: chosen so that gzip packs 342 MB into 125.
const INCOMPRESSIBLE: u64 = 20;

fn fill(content: &mut Vec<u8>, len: usize, words: &[Vec<u8>], numbers: &mut Numbers) {
    content.clear();
    while content.len() < len {
        let end = len.min(content.len() + 512);
        let dense = numbers.below(256) < INCOMPRESSIBLE;
        while content.len() < end {
            if dense {
                content.extend_from_slice(&numbers.next().to_le_bytes());
            } else {
                // Few words make most of a text.
                let rank = (0..4).fold(2048, |rank, _| rank * numbers.below(2048) / 2048);
                content.extend_from_slice(&words[usize::try_from(rank).unwrap_or_default()]);
            }
        }
        content.truncate(end);
    }
}

fn header(kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header
}

fn tree(
    tar: &mut tar::Builder<Packer>,
    number: u64,
    entries: u32,
    bytes: u64,
) -> anyhow::Result<u32> {
    let mut numbers = Numbers(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let words = words(&mut numbers);
    let mut content = Vec::new();
    // One file in 64 is a hundred times as large as the others.
    let weight = |i: u32| if i % 64 == 63 { 100 } else { 1 };
    let is_file = |i: u32| !i.is_multiple_of(12) && i % 25 != 7 && i % 100 != 13;
    let total: u64 = (0..entries).filter(|i| is_file(*i)).map(weight).sum();
    let (mut directory, mut last) = (String::new(), String::new());
    for i in 0..entries {
        if i.is_multiple_of(12) {
            directory = format!("usr/lib/{number}/package-{}/part-{}", i / 120, i / 12);
            let name = format!("{directory}/");
            tar.append_data(&mut header(tar::EntryType::Directory, 0, 0o755), name, io::empty())?;
        } else if i % 25 == 7 {
            let mut link = header(tar::EntryType::Symlink, 0, 0o777);
            tar.append_link(&mut link, format!("{directory}/link-{i}"), "../target")?;
        } else if i % 100 == 13 {
            let mut link = header(tar::EntryType::Link, 0, 0o644);
            tar.append_link(&mut link, format!("{directory}/same-{i}"), &last)?;
        } else {
            let share = bytes * weight(i) / total;
            let len = share / 2 + numbers.below(share + 1);
            fill(&mut content, usize::try_from(len)?, &words, &mut numbers);
            last = format!("{directory}/file-{i}.so");
            tar.append_data(&mut header(tar::EntryType::Regular, len, 0o644), &last, &*content)?;
        }
    }
    Ok(entries)
}

/// `BusyBox` and a link for each of its commands, as its image on Docker Hub has them.
fn busybox(tar: &mut tar::Builder<Packer>) -> anyhow::Result<u32> {
    let program = std::fs::read("/bin/busybox").context("package busybox-static is not here")?;
    let size = program.len() as u64;
    tar.append_data(&mut header(tar::EntryType::Directory, 0, 0o755), "bin/", io::empty())?;
    tar.append_data(&mut header(tar::EntryType::Regular, size, 0o755), "bin/busybox", &*program)?;
    for i in 0..400 {
        let mut link = header(tar::EntryType::Link, 0, 0o755);
        tar.append_link(&mut link, format!("bin/command-{i}"), "bin/busybox")?;
    }
    for name in ["dev/", "etc/", "home/", "root/", "tmp/", "usr/", "var/"] {
        tar.append_data(&mut header(tar::EntryType::Directory, 0, 0o755), name, io::empty())?;
    }
    Ok(409)
}
