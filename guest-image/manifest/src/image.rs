//! An image in its directory.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::manifest::{FORMAT, Manifest};
use crate::{Artifact, MANIFEST, MEASUREMENTS};

/// A manifest beyond this size is none, in bytes; the shipped one has about 10 KiB.
const MANIFEST_LIMIT: u64 = 4 * 1024 * 1024;
/// A file beyond this size is no kernel and no initrd, in bytes.
const ARTIFACT_LIMIT: u64 = 512 * 1024 * 1024;
/// More steps than anybody makes from a released image.
const EXTENSIONS_LIMIT: usize = 64;
/// `COMMAND_LINE_SIZE` of x86 Linux is 2048 with its end.
const COMMAND_LINE_LIMIT: usize = 2047;

/// Why there is no image in a directory.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The manifest cannot be read.
    #[error("there is no guest image in {directory}: {name} cannot be read: {source}; `cargo xtask image` builds one, and `nacre image build` another from it", name = MANIFEST)]
    Read {
        /// The directory.
        directory: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// The manifest that was named cannot be read.
    #[error("the manifest {path} cannot be read: {source}")]
    ReadManifest {
        /// The file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// It is no manifest.
    #[error("{path} is no manifest of a guest image: {problem}")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// An image whose manifest was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestImage {
    directory: PathBuf,
    manifest: Manifest,
    manifest_file: Artifact,
}

impl GuestImage {
    /// Reads the manifest of the image in `directory`, and nothing else.
    ///
    /// # Errors
    /// If there is none, or it is not one that this crate reads.
    pub fn open(directory: &Path) -> Result<GuestImage, OpenError> {
        let path = directory.join(MANIFEST);
        let bytes = match fs::metadata(&path) {
            // A pipe would have no end.
            Ok(found) if !found.is_file() => Err(io::Error::other("it is no regular file")),
            _ => read(&path),
        };
        let bytes =
            bytes.map_err(|source| OpenError::Read { directory: directory.to_owned(), source })?;
        Self::of(directory, path, &bytes)
    }

    /// The image in `directory`, to be judged by a manifest that stands elsewhere: the owner's own copy,
    /// which nobody exchanged together with the files.
    ///
    /// # Errors
    /// If it cannot be read, or it is not one that this crate reads.
    pub fn open_by(directory: &Path, manifest: &Path) -> Result<GuestImage, OpenError> {
        let path = manifest.to_owned();
        match read(manifest) {
            Ok(bytes) => Self::of(directory, path, &bytes),
            Err(source) => Err(OpenError::ReadManifest { path, source }),
        }
    }

    fn of(directory: &Path, path: PathBuf, bytes: &[u8]) -> Result<GuestImage, OpenError> {
        let manifest = parse(bytes).map_err(|problem| OpenError::Manifest { path, problem })?;
        let manifest_file = Artifact::new(MANIFEST, bytes);
        Ok(GuestImage { directory: directory.to_owned(), manifest, manifest_file })
    }

    /// What the manifest says.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The manifest as a file. Its hash stands for the whole image, since it has the hash of all else.
    #[must_use]
    pub fn manifest_file(&self) -> &Artifact {
        &self.manifest_file
    }

    /// Where it is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The uncompressed kernel.
    #[must_use]
    pub fn vmlinux(&self) -> PathBuf {
        self.path(&self.manifest.kernel.vmlinux)
    }

    /// The kernel that UEFI firmware starts.
    #[must_use]
    pub fn bzimage(&self) -> PathBuf {
        self.path(&self.manifest.kernel.bzimage)
    }

    /// The initrd.
    #[must_use]
    pub fn initrd(&self) -> PathBuf {
        self.path(&self.manifest.initrd.file)
    }

    /// The development image's initrd.
    #[must_use]
    pub fn development_initrd(&self) -> PathBuf {
        self.path(&self.manifest.initrd.development)
    }

    /// The kernel's parameters, without what a node's configuration adds.
    #[must_use]
    pub fn command_line(&self) -> &str {
        &self.manifest.command_line
    }

    fn path(&self, artifact: &Artifact) -> PathBuf {
        self.directory.join(&artifact.name)
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MANIFEST_LIMIT + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

pub(crate) fn parse(bytes: &[u8]) -> Result<Manifest, String> {
    /// What every version has.
    #[derive(serde::Deserialize)]
    struct Header {
        format: Option<u32>,
    }
    if bytes.len() as u64 > MANIFEST_LIMIT {
        return Err(format!("it has more than {MANIFEST_LIMIT} bytes"));
    }
    let header: Header = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if header.format != Some(FORMAT) {
        let found =
            header.format.map_or("no format".to_owned(), |format| format!("format {format}"));
        return Err(format!("it has {found}, this program reads {FORMAT}: build the image anew"));
    }
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let command_line = &manifest.command_line;
    let mut names = BTreeSet::from([MANIFEST, MEASUREMENTS]);
    for artifact in manifest.artifacts() {
        let name = artifact.name.as_str();
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
            return Err(format!("{name:?} is no plain file name"));
        }
        if !names.insert(name) {
            return Err(format!("it names {name:?} for two things"));
        }
        if artifact.size > ARTIFACT_LIMIT {
            return Err(format!("{name:?} has more than {ARTIFACT_LIMIT} bytes"));
        }
    }
    let printable = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
    if command_line.len() > COMMAND_LINE_LIMIT || !command_line.bytes().all(printable) {
        return Err(format!(
            "its command_line is not printable ASCII of at most {COMMAND_LINE_LIMIT} bytes"
        ));
    }
    if manifest.extensions.len() > EXTENSIONS_LIMIT {
        return Err(format!("it was made in more than {EXTENSIONS_LIMIT} steps"));
    }
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn manifest() -> Value {
        let hash = "ab".repeat(32);
        let artifact = |name: &str| json!({ "name": name, "size": 1, "sha256": hash });
        let origin = json!({ "package": "p", "version": "1", "sha256": hash });
        json!({
            "format": 2,
            "kernel": {
                "release": "6", "package": origin,
                "vmlinux": artifact("vmlinux"), "bzimage": artifact("vmlinuz"),
            },
            "initrd": {
                "file": artifact("initrd.img"), "zstd_size": 1,
                "development": artifact("initrd-development.img"),
            },
            "command_line": "quiet panic=-1",
            "certificates": origin,
            "files": [{ "path": "/init", "kind": "file", "mode": "0755", "size": 1, "sha256": hash }],
        })
    }

    fn opened(bytes: &[u8]) -> Result<GuestImage, String> {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(MANIFEST), bytes).unwrap();
        GuestImage::open(directory.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn an_image_is_its_manifest_and_the_files_beside_it() {
        let image = opened(manifest().to_string().as_bytes()).unwrap();
        assert_eq!(image.command_line(), "quiet panic=-1");
        let paths = [image.vmlinux(), image.bzimage(), image.initrd(), image.development_initrd()];
        let names = ["vmlinux", "vmlinuz", "initrd.img", "initrd-development.img"];
        assert_eq!(paths, names.map(|name| image.directory().join(name)));
    }

    #[test]
    fn what_is_no_manifest_is_refused_with_the_reason() {
        let changed = |pointer: &str, value: Value| {
            let mut manifest = manifest();
            *manifest.pointer_mut(pointer).unwrap() = value;
            opened(manifest.to_string().as_bytes()).unwrap_err()
        };
        assert!(changed("/format", json!(3)).contains("format 3, this program reads 2"));
        assert!(opened(b"{}").unwrap_err().contains("no format"));
        for name in ["", "../vmlinux", "/vmlinux", "a/b", ".hidden", "a\nb"] {
            let error = changed("/kernel/vmlinux/name", json!(name));
            assert!(error.contains("no plain file name"), "{error}");
        }
        assert!(changed("/kernel/vmlinux/name", json!("vmlinuz")).contains("for two things"));
        assert!(changed("/kernel/vmlinux/name", json!(MANIFEST)).contains("for two things"));
        assert!(changed("/initrd/file/size", json!(ARTIFACT_LIMIT + 1)).contains("more than"));
        assert!(changed("/command_line", json!("a\nb")).contains("printable ASCII"));
        assert!(changed("/command_line", json!("a".repeat(2048))).contains("at most 2047"));
        assert!(changed("/initrd/file/sha256", json!("AB")).contains("64 lowercase"));
        assert!(opened(b"\xff").unwrap_err().contains("no manifest of a guest image"));
        let large = vec![b' '; usize::try_from(MANIFEST_LIMIT).unwrap() + 1];
        assert!(opened(&large).unwrap_err().contains("more than"));
        let absent = GuestImage::open(Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(absent.contains("no guest image in /nonexistent"), "{absent}");
    }
}
