//! An image that is read: from a registry as a guest does, or from a directory.

use anyhow::{Context, ensure};
use nacre_image_pull::{InspectConfig, RemoteImage};
use nacre_trust::Digest;

use super::layout::Layout;
use super::manifest::{Descriptor, Index, Manifest};
use super::place::Place;

/// Largest manifest, index or configuration, in bytes.
const DOCUMENT_LIMIT: u64 = 4 << 20;

/// Where the blobs of an image come from.
pub(super) enum Source {
    Registry(Box<RemoteImage>),
    Layout(Layout),
}

/// An image and its documents.
pub(super) struct SourceImage {
    pub(super) source: Source,
    /// The list that names the image, if there is one.
    pub(super) index: Option<Digest>,
    pub(super) digest: Digest,
    pub(super) manifest: Manifest,
}

impl SourceImage {
    /// The image for linux/amd64 that `place` names.
    pub(super) async fn open(place: &Place, config: InspectConfig) -> anyhow::Result<SourceImage> {
        match place {
            Place::Registry(reference) => {
                let image = RemoteImage::open(config, reference).await?;
                let (last, before) =
                    image.documents().split_last().context("the registry gave no manifest")?;
                Ok(SourceImage {
                    index: before.first().map(|index| index.digest),
                    digest: last.digest,
                    manifest: Manifest::parse(&last.bytes)?,
                    source: Source::Registry(Box::new(image)),
                })
            }
            Place::Layout { directory, tag } => {
                let layout = Layout::open(directory)?;
                let mut found = layout.find(tag.as_deref())?;
                let mut index = None;
                if found.is_index() {
                    let list = document(&layout, &found)?;
                    index = Some(found.digest()?);
                    found = Index::parse(&list)?.for_guests()?.clone();
                }
                let manifest = Manifest::parse(&document(&layout, &found)?)?;
                let digest = found.digest()?;
                Ok(SourceImage { source: Source::Layout(layout), index, digest, manifest })
            }
        }
    }

    /// Passes a blob on, piece by piece. It was what its descriptor says only if there is no error.
    pub(super) async fn read(
        &self,
        blob: &Descriptor,
        sink: &mut (dyn FnMut(&[u8]) -> anyhow::Result<()> + Send),
    ) -> anyhow::Result<()> {
        let digest = blob.digest()?;
        match &self.source {
            Source::Layout(layout) => layout.read(&digest, blob.size, sink),
            Source::Registry(image) => {
                let mut failed = None;
                let read = image
                    .read_blob(&digest, blob.size, &mut |piece: &[u8]| {
                        sink(piece).map_err(|error| failed = Some(error)).is_ok()
                    })
                    .await;
                failed.map_or(Ok(()), Err)?;
                Ok(read?)
            }
        }
    }

    /// The image's configuration.
    pub(super) async fn config(&self) -> anyhow::Result<serde_json::Value> {
        let size = self.manifest.config.size;
        ensure!(size <= DOCUMENT_LIMIT, "the image's configuration has {size} bytes");
        let mut content = Vec::new();
        let mut sink = |piece: &[u8]| {
            content.extend_from_slice(piece);
            Ok(())
        };
        self.read(&self.manifest.config, &mut sink).await?;
        serde_json::from_slice(&content).context("the image's configuration is no JSON")
    }
}

fn document(layout: &Layout, descriptor: &Descriptor) -> anyhow::Result<Vec<u8>> {
    let size = descriptor.size;
    ensure!(size <= DOCUMENT_LIMIT, "manifest {} has {size} bytes", descriptor.digest);
    let mut content = Vec::new();
    layout.read(&descriptor.digest()?, size, &mut |piece| {
        content.extend_from_slice(piece);
        Ok(())
    })?;
    Ok(content)
}
