//! Directories in the OCI image layout (image-spec, image-layout.md), read and written.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use nacre_trust::{Algorithm, Digest, Hasher};

use super::manifest::{Descriptor, Index};
use crate::input::read;

/// What names an image in the index of its directory.
const NAME: &str = "org.opencontainers.image.ref.name";
const VERSION: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// A directory.
pub(super) struct Layout {
    directory: PathBuf,
}

impl Layout {
    /// One that exists.
    pub(super) fn open(directory: &Path) -> anyhow::Result<Layout> {
        let layout = Layout { directory: directory.to_owned() };
        ensure!(
            directory.join("oci-layout").exists(),
            "{} is no directory in the OCI image layout: it has no file oci-layout",
            directory.display()
        );
        Ok(layout)
    }

    /// One that exists, or a new one.
    pub(super) fn open_or_make(directory: &Path) -> anyhow::Result<Layout> {
        if directory.join("oci-layout").exists() {
            return Layout::open(directory);
        }
        let making = || format!("failed to make {}", directory.display());
        let others = fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some());
        ensure!(!others, "{} has files of other things in it", directory.display());
        fs::create_dir_all(directory.join("blobs/sha256")).with_context(making)?;
        let layout = Layout { directory: directory.to_owned() };
        layout.write_index(&Index::new())?;
        fs::write(directory.join("oci-layout"), VERSION).with_context(making)?;
        Ok(layout)
    }

    fn index(&self) -> anyhow::Result<Index> {
        let file = self.directory.join("index.json");
        Index::parse(&read(&file)?).with_context(|| file.display().to_string())
    }

    fn write_index(&self, index: &Index) -> anyhow::Result<()> {
        let file = self.directory.join("index.json");
        let new = self.directory.join(".index.json.new");
        fs::write(&new, serde_json::to_vec(index)?)
            .and_then(|()| fs::rename(&new, &file))
            .with_context(|| format!("failed to write {}", file.display()))
    }

    /// What a tag, or the only image, is.
    pub(super) fn find(&self, tag: Option<&str>) -> anyhow::Result<Descriptor> {
        let index = self.index()?;
        let named = |entry: &&Descriptor| entry.annotations.get(NAME).map(String::as_str) == tag;
        match (tag, index.manifests.as_slice()) {
            (None, [only]) => Ok(only.clone()),
            (None, several) => bail!(
                "{} has {} images; name one: oci:DIRECTORY:TAG",
                self.directory.display(),
                several.len()
            ),
            (Some(tag), entries) => entries
                .iter()
                .find(named)
                .cloned()
                .with_context(|| format!("{} has no image {tag}", self.directory.display())),
        }
    }

    pub(super) fn tagged(&self, tag: Option<&str>) -> Option<String> {
        let index = self.index().ok()?;
        let named = |entry: &&Descriptor| entry.annotations.get(NAME).map(String::as_str) == tag;
        index.manifests.iter().find(named).map(|entry| entry.digest.clone())
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.directory.join("blobs").join(digest.algorithm().name()).join(digest.hex())
    }

    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.blob(digest).exists()
    }

    /// Passes a blob on, piece by piece, and verifies it.
    pub(super) fn read(
        &self,
        digest: &Digest,
        size: u64,
        sink: &mut dyn FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let path = self.blob(digest);
        let reading = || format!("failed to read {}", path.display());
        let mut file = File::open(&path).with_context(reading)?;
        let mut hasher = Hasher::new(digest.algorithm());
        let mut piece = vec![0; 256 * 1024];
        let mut left = size;
        loop {
            let length = file.read(&mut piece).with_context(reading)?;
            if length == 0 {
                break;
            }
            left = left
                .checked_sub(length as u64)
                .with_context(|| format!("{} has more than {size} bytes", path.display()))?;
            hasher.update(&piece[..length]);
            sink(&piece[..length])?;
        }
        ensure!(left == 0, "{} has less than {size} bytes", path.display());
        hasher.verify(digest).with_context(|| path.display().to_string())?;
        Ok(())
    }

    /// Takes a file of these bytes.
    pub(super) fn put_file(&self, digest: &Digest, file: &mut File) -> anyhow::Result<()> {
        let path = self.blob(digest);
        let new = path.with_extension("new");
        let writing = || format!("failed to write {}", path.display());
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).with_context(writing)?;
        }
        let mut to = File::create(&new).with_context(writing)?;
        std::io::copy(file, &mut to)
            .and_then(|_| to.sync_all())
            .and_then(|()| fs::rename(&new, &path))
            .with_context(writing)
    }

    pub(super) fn put(&self, content: &[u8]) -> anyhow::Result<Digest> {
        let digest = Digest::of(Algorithm::Sha256, content);
        let path = self.blob(&digest);
        let writing = || format!("failed to write {}", path.display());
        let new = path.with_extension("new");
        let mut to = File::create(&new).with_context(writing)?;
        to.write_all(content).and_then(|()| fs::rename(&new, &path)).with_context(writing)?;
        Ok(digest)
    }

    /// Gives an image its name, in place of one that had it.
    pub(super) fn name(&self, tag: Option<&str>, mut image: Descriptor) -> anyhow::Result<()> {
        let mut index = self.index()?;
        index.manifests.retain(|entry| entry.annotations.get(NAME).map(String::as_str) != tag);
        if let Some(tag) = tag {
            image.annotations.insert(NAME.to_owned(), tag.to_owned());
        }
        index.manifests.push(image);
        self.write_index(&index)
    }
}
