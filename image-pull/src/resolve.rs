//! From a reference to a verified manifest and image configuration.

use nacre_trust::{Algorithm, Digest, DigestMatch, Untrusted, Verified};
use oci_spec::image::ImageConfiguration;

use crate::PullError;
use crate::blob::Blob;
use crate::manifest::{Descriptor, LayerBlob, Manifest, for_this_guest, read_config};
use crate::reference::{Reference, Target};
use crate::registry::Registry;

/// What a reference turned out to be.
pub(crate) struct Resolved {
    pub(crate) digest: Digest,
    pub(crate) config: ImageConfiguration,
    /// Bottom first: the blob, and what it must be once unpacked.
    pub(crate) layers: Vec<(LayerBlob, Digest)>,
}

impl Registry {
    /// Asks for the tag once; from its answer on, everything is named by digest.
    pub(crate) async fn resolve(&self, reference: &Reference) -> Result<Resolved, PullError> {
        let (digest, manifest) = self.manifest(reference, reference.target(), None).await?;
        let (digest, manifest) = match manifest {
            Manifest::Index(entries) => {
                let child = for_this_guest(&entries)?;
                self.manifest(reference, Target::Digest(child.digest), Some(child)).await?
            }
            image @ Manifest::Image { .. } => (digest, image),
        };
        let Manifest::Image { config, layers } = manifest else {
            return Err(PullError::Document {
                document: "index",
                field: "manifests",
                problem: "names another index; name an image".into(),
            });
        };
        if layers.len() > self.limits().layers {
            return Err(PullError::Limit {
                what: format!("image {reference}"),
                limit: self.limits().layers as u64,
                unit: "layers",
            });
        }
        let (config, diff_ids) = {
            let document = self.config(reference, &config).await?;
            read_config(&document, layers.len())?
        };
        let layers = layers.into_iter().zip(diff_ids).collect();
        Ok(Resolved { digest, config, layers })
    }

    /// A manifest or index, verified: against the digest that names it, or, for a tag, against the one
    /// the registry claims if it claims any.
    async fn manifest(
        &self,
        reference: &Reference,
        target: Target<'_>,
        expected: Option<&Descriptor>,
    ) -> Result<(Digest, Manifest), PullError> {
        let what = format!("manifest {target} of {}", reference.path());
        let limit = self.limits().manifest_bytes;
        if expected.is_some_and(|expected| expected.size > limit) {
            return Err(PullError::Limit { what, limit, unit: "bytes" });
        }
        let fetched = self.fetch_manifest(reference, target, &what).await?;
        let digest = match (target, fetched.claimed) {
            (Target::Digest(digest), _) => digest,
            (Target::Tag(_), Some(claimed)) => claimed,
            (Target::Tag(_), None) => fetched.body.digest(Algorithm::Sha256),
        };
        let document = fetched
            .body
            .verify_digest(&digest)
            .map_err(|mismatch| PullError::digest(&what, mismatch))?;
        let size = document.get().len() as u64;
        if let Some(expected) = expected.filter(|expected| expected.size != size) {
            let actual = format!("it has {size}");
            return Err(PullError::SizeMismatch { what, expected: expected.size, actual });
        }
        let kind = expected.map(|expected| expected.media_type.as_str());
        let manifest = Manifest::parse(&document, fetched.content_type.as_deref(), kind)?;
        Ok((digest, manifest))
    }

    async fn config(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
    ) -> Result<Verified<Vec<u8>, DigestMatch>, PullError> {
        let what = format!("image configuration {}", descriptor.digest);
        let limit = self.limits().config_bytes;
        if descriptor.size > limit {
            return Err(PullError::Limit { what, limit, unit: "bytes" });
        }
        let mut blob = Blob::new(self, reference, descriptor.digest, descriptor.size, &what);
        let mut content = Vec::new();
        while let Some(piece) = blob.next().await? {
            content.extend_from_slice(&piece);
        }
        Untrusted::new(content)
            .verify_digest(&descriptor.digest)
            .map_err(|mismatch| PullError::digest(what, mismatch))
    }
}
