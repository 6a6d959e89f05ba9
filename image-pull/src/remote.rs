//! One image in its registry, with its documents as they are: for the owner's tools, which show, copy and
//! judge images. Nothing is unpacked.

use std::sync::Arc;

use nacre_image_security::{Sources, Subject};
use nacre_trust::{Digest, Hasher};

use crate::blob::Blob;
use crate::inspect::InspectConfig;
use crate::manifest::{Manifest, for_this_guest};
use crate::reference::{Reference, Target};
use crate::registry::{Fetched, Registry};
use crate::signatures::Repository;
use crate::{NoResources, PullError, Resources};

/// An image whose manifest was found and read as a guest reads it.
pub struct RemoteImage {
    registry: Registry,
    reference: Reference,
    documents: Vec<RemoteDocument>,
}

/// A verified index or manifest.
#[derive(Clone, Debug)]
pub struct RemoteDocument {
    /// What names it.
    pub digest: Digest,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl RemoteImage {
    /// Finds the image for linux/amd64 that `reference` names now. A tag is asked for once.
    ///
    /// # Errors
    /// [`PullError`], as of a pull.
    pub async fn open(config: InspectConfig, reference: &str) -> Result<Self, PullError> {
        let reference: Reference = reference.parse()?;
        let registry = Registry::new(config.limits, config.registries, Arc::new(NoResources));
        let what = format!("manifest {} of {}", reference.target(), reference.path());
        let first = registry.fetch_manifest(&reference, reference.target(), &what).await?;
        let read = Manifest::parse(&first.document, first.content_type.as_deref(), None)?;
        let mut documents = vec![RemoteDocument::of(&first)];
        if let Manifest::Index(entries) = read {
            let (child, _) = for_this_guest(&entries)?;
            let target = Target::Digest(child.digest);
            let what = format!("manifest {target} of {}", reference.path());
            let image = registry.fetch_manifest(&reference, target, &what).await?;
            let (kind, said) = (image.content_type.as_deref(), child.media_type.as_str());
            if let Manifest::Index(_) = Manifest::parse(&image.document, kind, Some(said))? {
                return Err(PullError::Document {
                    document: "index",
                    field: "manifests",
                    problem: "names another index; name an image".into(),
                });
            }
            documents.push(RemoteDocument::of(&image));
        }
        Ok(Self { registry, reference, documents })
    }

    /// The reference, normalised: with its host, and a tag or digest.
    #[must_use]
    pub fn reference(&self) -> String {
        self.reference.to_string()
    }

    /// The index, if there is one, then the image's manifest.
    #[must_use]
    pub fn documents(&self) -> &[RemoteDocument] {
        &self.documents
    }

    /// What an image policy decides about.
    #[must_use]
    pub fn subject(&self) -> Subject {
        Subject {
            host: self.reference.host().to_owned(),
            path: self.reference.path().to_owned(),
            tag: self.reference.tag().map(ToOwned::to_owned),
            digest: self.reference.digest().copied(),
            manifests: self.documents.iter().map(|document| document.digest).collect(),
        }
    }

    /// Where a policy finds signatures, and keys among `resources`.
    pub fn sources<'a>(&'a self, resources: &'a dyn Resources) -> impl Sources + 'a {
        Repository { registry: &self.registry, reference: &self.reference, resources }
    }

    /// Passes a blob on, piece by piece, until `sink` says false. It was what `digest` names only if
    /// there is no error.
    ///
    /// # Errors
    /// [`PullError`], as of a pull; [`PullError::Abandoned`] if `sink` said false.
    pub async fn read_blob(
        &self,
        digest: &Digest,
        size: u64,
        sink: &mut (dyn FnMut(&[u8]) -> bool + Send),
    ) -> Result<(), PullError> {
        let what = format!("blob {digest}");
        // Not from a mirror: what it sends wrongly would show only at the end.
        let mut blob = Blob::from_origin(&self.registry, &self.reference, *digest, size, &what);
        let mut hasher = Hasher::new(digest.algorithm());
        while let Some(piece) = blob.next().await? {
            hasher.update(&piece);
            if !sink(&piece) {
                return Err(PullError::Abandoned);
            }
        }
        hasher.verify(digest).map_err(|mismatch| PullError::digest(what, mismatch))?;
        Ok(())
    }
}

impl RemoteDocument {
    fn of(fetched: &Fetched) -> Self {
        Self { digest: fetched.digest, bytes: fetched.document.get().clone() }
    }
}
