//! From a reference to a verified manifest, to the policy's word about it, and to the configuration.

use std::sync::Arc;

use nacre_image_security::{Admitted, ImagePolicy, Subject};
use nacre_trust::{Digest, DigestMatch, Untrusted, Verified};
use oci_spec::image::ImageConfiguration;

use crate::blob::{Blob, Cache};
use crate::manifest::{Descriptor, LayerBlob, Manifest, for_this_guest, read_config};
use crate::platform::Level;
use crate::reference::{Reference, Target};
use crate::registry::Registry;
use crate::signatures::Repository;
use crate::{PullError, Resources};

/// What a reference turned out to be.
pub(crate) struct Resolved {
    /// The index, if there is one, then the manifest for linux/amd64.
    manifests: Vec<Digest>,
    digest: Digest,
    level: Level,
    config: Descriptor,
    layers: Vec<LayerBlob>,
}

/// An image whose configuration is known.
pub(crate) struct Described {
    pub(crate) digest: Digest,
    pub(crate) config: ImageConfiguration,
    /// Bottom first: the blob, and what it must be once unpacked.
    pub(crate) layers: Vec<(LayerBlob, Digest)>,
}

impl Registry {
    /// Asks for the tag once; from its answer on, everything is named by digest.
    pub(crate) async fn resolve(&self, reference: &Reference) -> Result<Resolved, PullError> {
        let (digest, manifest) = self.manifest(reference, reference.target(), None).await?;
        let mut manifests = vec![digest];
        let (digest, manifest, level) = match manifest {
            Manifest::Index(entries) => {
                let (child, level) = for_this_guest(&entries)?;
                let target = Target::Digest(child.digest);
                let (digest, manifest) = self.manifest(reference, target, Some(child)).await?;
                manifests.push(digest);
                (digest, manifest, level)
            }
            image @ Manifest::Image { .. } => (digest, image, Level::V1),
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
        Ok(Resolved { manifests, digest, level, config, layers })
    }

    /// A manifest or index, verified.
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
        let size = fetched.document.get().len() as u64;
        if let Some(expected) = expected.filter(|expected| expected.size != size) {
            let actual = format!("it has {size}");
            return Err(PullError::SizeMismatch { what, expected: expected.size, actual });
        }
        let kind = expected.map(|expected| expected.media_type.as_str());
        let manifest = Manifest::parse(&fetched.document, fetched.content_type.as_deref(), kind)?;
        Ok((fetched.digest, manifest))
    }

    /// The configuration, which decides what each layer unpacks to.
    pub(crate) async fn describe(
        &self,
        reference: &Reference,
        resolved: Resolved,
        processor: Level,
        cache: Option<&Cache>,
    ) -> Result<Described, PullError> {
        resolved.level.check(processor)?;
        let Resolved { digest, config, layers, .. } = resolved;
        let (config, diff_ids) = {
            let document = self.config(reference, &config, cache).await?;
            read_config(&document, layers.len())?
        };
        let variant = config.variant().as_deref().and_then(Level::of_variant);
        variant.unwrap_or(Level::V1).check(processor)?;
        let layers = layers.into_iter().zip(diff_ids).collect();
        Ok(Described { digest, config, layers })
    }

    async fn config(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        cache: Option<&Cache>,
    ) -> Result<Verified<Vec<u8>, DigestMatch>, PullError> {
        let what = format!("image configuration {}", descriptor.digest);
        let limit = self.limits().config_bytes;
        if descriptor.size > limit {
            return Err(PullError::Limit { what, limit, unit: "bytes" });
        }
        let mut detour = true;
        loop {
            let (digest, size) = (descriptor.digest, descriptor.size);
            let mut blob = match detour {
                true => Blob::new(self, reference, digest, size, &what).with_cache(cache, false),
                false => Blob::from_origin(self, reference, digest, size, &what),
            };
            let mut content = Vec::new();
            while let Some(piece) = blob.next().await? {
                content.extend_from_slice(&piece);
            }
            match Untrusted::new(content).verify_digest(&digest) {
                Err(error) if blob.took_a_detour() => {
                    tracing::warn!(%error, %digest, "fetched again from the registry itself");
                    detour = false;
                }
                other => return other.map_err(|error| PullError::digest(what, error)),
            }
        }
    }
}

impl Resolved {
    /// Asks the policy, by the reference that was asked for.
    pub(crate) async fn admit(
        &self,
        policy: &ImagePolicy,
        registry: &Registry,
        reference: &Reference,
        resources: &Arc<dyn Resources>,
    ) -> Result<Admitted, PullError> {
        let subject = Subject {
            host: reference.host().to_owned(),
            path: reference.path().to_owned(),
            tag: reference.tag().map(ToOwned::to_owned),
            digest: reference.digest().copied(),
            manifests: self.manifests.clone(),
        };
        let sources = Repository { registry, reference, resources: &**resources };
        let admitted = policy
            .admit(&subject, &sources)
            .await
            .map_err(|refused| PullError::Policy(Box::new(refused)))?;
        tracing::info!(image = %reference, manifest = %self.digest, reason = admitted.reason(), "admitted");
        Ok(admitted)
    }
}
