//! What the image is made of, for people and for programs: `manifest.json` beside it.

use serde::{Deserialize, Serialize};

use crate::cpio::{Archive, Node};
use crate::pins::{Package, Sha256Hex};

/// The whole manifest; the order of fields is the order in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The kernel and where it comes from.
    pub kernel: Kernel,
    /// The initrd as it is booted.
    pub initrd: Initrd,
    /// Where the certificate authorities come from.
    pub certificates: Origin,
    /// Every entry of the initrd, sorted by path.
    pub files: Vec<Entry>,
}

/// The kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// What `uname -r` says.
    pub release: String,
    /// Its Debian package.
    pub package: Origin,
    /// The uncompressed ELF kernel that is booted.
    pub vmlinux: Artifact,
}

/// The initrd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Initrd {
    /// The file that is booted: an uncompressed cpio archive.
    pub file: Artifact,
    /// What it would be, compressed with zstd, in bytes: for transport, and for comparison.
    pub zstd_size: u64,
    /// The same and one file more, [`crate::DEVELOPMENT_MARK`], by which the agent takes itself for a
    /// development image's. Its measurement is another, so no owner mistakes the one for the other.
    pub development: Artifact,
}

/// A file beside the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

impl Artifact {
    pub(crate) fn new(name: &str, bytes: &[u8]) -> Self {
        Self { name: name.to_owned(), size: bytes.len() as u64, sha256: Sha256Hex::of(bytes) }
    }
}

impl From<&Package> for Origin {
    fn from(package: &Package) -> Self {
        let Package { name, version, sha256, .. } = package.clone();
        Self { package: name, version, sha256 }
    }
}

/// One entry for each of the archive, in its order.
pub(crate) fn list(archive: &Archive) -> Vec<Entry> {
    let entry = |(path, mode, node): (&str, u32, &Node)| {
        let (kind, bytes) = match node {
            Node::Directory => ("directory".to_owned(), None),
            Node::File(bytes) => ("file".to_owned(), Some(bytes)),
            Node::CharDevice(major, minor) => (format!("character device {major}:{minor}"), None),
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
