//! What the image is made of, for people and for programs: `manifest.json`.

use serde::{Deserialize, Serialize};

use crate::Sha256Hex;
use crate::cpio::{Archive, Node};

/// The version of the format that this crate reads and writes.
pub const FORMAT: u32 = 2;

/// The whole manifest; the order of fields is the order in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The kernel and where it comes from.
    pub kernel: Kernel,
    /// The initrd as it is booted.
    pub initrd: Initrd,
    /// The kernel's parameters, the same for every pod. A node's configuration may add words, which are
    /// measured like these.
    pub command_line: String,
    /// Where the certificate authorities come from.
    pub certificates: Origin,
    /// What owners put in, step by step; the first step's base is an image of this project.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub extensions: Vec<Extension>,
    /// Every entry of the initrd, sorted by path.
    pub files: Vec<Entry>,
}

/// An image made from another one by `nacre image build`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extension {
    /// Hash of the manifest of the image that this one was made from.
    pub base: Sha256Hex,
    /// Certificate authorities, sorted by their hashes.
    pub certificates: Vec<AddedCertificate>,
    /// Kernel modules, in the order in which they can be loaded.
    pub modules: Vec<AddedModule>,
}

/// A certificate authority that TLS in the guest trusts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddedCertificate {
    /// Its subject's distinguished name (RFC 4514).
    pub subject: String,
    /// Hash of the certificate (DER): what is called its fingerprint.
    pub sha256: Sha256Hex,
}

/// A module of the guest's kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddedModule {
    /// Its name, with underscores.
    pub name: String,
    /// Whether the guest loads it at its start; the others are what such modules depend on.
    pub loaded: bool,
    /// Hash of the file as it was given; the initrd holds it uncompressed and without signature.
    pub sha256: Sha256Hex,
}

/// The kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// What `uname -r` says.
    pub release: String,
    /// Its Debian package.
    pub package: Origin,
    /// The uncompressed ELF kernel, which a machine without firmware of its own starts directly.
    pub vmlinux: Artifact,
    /// The same kernel as its package has it, which UEFI firmware starts: in SEV-SNP and TDX guests.
    pub bzimage: Artifact,
}

/// The initrd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Initrd {
    /// The file that is booted: an uncompressed cpio archive.
    pub file: Artifact,
    /// What it would be, compressed with zstd, in bytes: for transport, and for comparison.
    pub zstd_size: u64,
    /// The same with an archive behind it that holds [`crate::DEVELOPMENT_MARK`], by which the agent takes
    /// itself for a development image's, and the shell. Its measurement is another, so no owner mistakes the
    /// one for the other.
    pub development: Artifact,
    /// The development image's shell. Absent, it has none, and the mark is its only difference.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub development_shell: Option<DevelopmentShell>,
}

/// The program behind `nacre exec-vm`, [`crate::DEVELOPMENT_SHELL`] in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DevelopmentShell {
    /// Its Debian package.
    pub package: Origin,
    /// Hash of its bytes.
    pub sha256: Sha256Hex,
}

/// A file beside the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// Its name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Hash of its bytes.
    pub sha256: Sha256Hex,
}

/// A Debian package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Its name.
    pub package: String,
    /// Its full version.
    pub version: String,
    /// Hash of the .deb file.
    pub sha256: Sha256Hex,
}

/// An entry of the initrd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Absolute path in the guest.
    pub path: String,
    /// `file`, `directory` or `character device MAJOR:MINOR`.
    pub kind: String,
    /// Permission bits, octal.
    pub mode: String,
    /// Bytes, for files.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub size: Option<u64>,
    /// Hash of the bytes, for files.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sha256: Option<Sha256Hex>,
}

impl Manifest {
    /// Reads a manifest's bytes.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Manifest, String> {
        crate::image::parse(bytes)
    }

    /// The files beside the manifest.
    #[must_use]
    pub fn artifacts(&self) -> [&Artifact; 4] {
        let Manifest { kernel, initrd, .. } = self;
        [&kernel.vmlinux, &kernel.bzimage, &initrd.file, &initrd.development]
    }

    /// As it is written: the same bytes for the same content.
    ///
    /// # Panics
    /// Never: a manifest is plain data.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let json = serde_json::to_string_pretty(self).expect("a manifest is plain data");
        (json + "\n").into_bytes()
    }
}

impl Artifact {
    /// Describes a file of these bytes.
    #[must_use]
    pub fn new(name: &str, bytes: &[u8]) -> Self {
        Self { name: name.to_owned(), size: bytes.len() as u64, sha256: Sha256Hex::of(bytes) }
    }
}

impl Entry {
    /// One entry for each of the archive, in its order.
    #[must_use]
    pub fn list(archive: &Archive) -> Vec<Entry> {
        let entry = |(path, mode, node): (&str, u32, &Node)| {
            let (kind, bytes) = match node {
                Node::Directory => ("directory".to_owned(), None),
                Node::File(bytes) => ("file".to_owned(), Some(bytes)),
                Node::CharDevice(major, minor) => {
                    (format!("character device {major}:{minor}"), None)
                }
            };
            Entry {
                path: format!("/{path}"),
                kind,
                mode: format!("{mode:04o}"),
                size: bytes.map(|bytes| bytes.len() as u64),
                sha256: bytes.map(|bytes| Sha256Hex::of(bytes)),
            }
        };
        archive.entries().map(entry).collect()
    }
}
