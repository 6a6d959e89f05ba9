//! Where the image policy finds signatures: the repository of the image, by way of the registry client.
//!
//! Signatures vouch for themselves, so mirrors may answer; what a mirror does not have is asked of the
//! registry. The node's cache is not asked: it could only hide something.

use async_trait::async_trait;
use nacre_image_security::Sources;
use nacre_trust::{Digest, Untrusted};
use zeroize::Zeroizing;

use crate::reference::{Reference, Target};
use crate::registry::Registry;
use crate::registry::endpoint::Endpoint;
use crate::{PullError, Resources};

/// Largest signature or attestation, in bytes.
const MAX_SIGNATURE: u64 = 1 << 20;
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// One image's repository.
pub(crate) struct Repository<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) reference: &'a Reference,
    pub(crate) resources: &'a dyn Resources,
}

#[async_trait]
impl Sources for Repository<'_> {
    async fn manifest(&self, tag_or_digest: &str) -> Result<Option<Vec<u8>>, String> {
        let target = match tag_or_digest.parse::<Digest>() {
            Ok(digest) => Target::Digest(digest),
            // It becomes part of a path.
            Err(_) if !is_tag(tag_or_digest) => return Err("this is no tag".into()),
            Err(_) => Target::Tag(tag_or_digest),
        };
        let what = format!("signature manifest {target}");
        let fetched = self.registry.fetch_manifest(self.reference, target, &what).await;
        present(fetched.map(|fetched| fetched.document.get().clone()))
    }

    async fn referrers(&self, digest: &Digest) -> Result<Option<Vec<u8>>, String> {
        let (resource, what) = (format!("referrers/{digest}"), "referrers");
        let limit = self.registry.limits().manifest_bytes;
        for endpoint in self.registry.endpoints(self.reference) {
            let listed = self.registry.document(&endpoint, &resource, what, INDEX, limit).await;
            match listed.map_err(|error| self.registry.pass_over(&endpoint, error)) {
                Ok((body, _)) => return Ok(Some(body)),
                Err(Ok(())) => {}
                Err(Err(error)) => return present(Err(error)),
            }
        }
        Ok(None)
    }

    async fn blob(&self, digest: &Digest, size: u64) -> Result<Vec<u8>, String> {
        if size > MAX_SIGNATURE {
            return Err(format!("a signature of {size} bytes is above {MAX_SIGNATURE}"));
        }
        for endpoint in self.registry.endpoints(self.reference) {
            match self.blob_of(&endpoint, digest, size).await {
                Ok(blob) => return Ok(blob),
                Err(error) => {
                    self.registry.pass_over(&endpoint, error).map_err(|error| error.to_string())?;
                }
            }
        }
        Err("nobody has it".into())
    }

    async fn lookaside(&self, url: &str) -> Result<Option<Vec<u8>>, String> {
        self.registry.page(url, MAX_SIGNATURE).await.map_err(|error| error.to_string())
    }

    async fn resource(&self, uri: &str) -> Result<Zeroizing<Vec<u8>>, String> {
        self.resources.resource(uri).await
    }
}

impl Repository<'_> {
    async fn blob_of(
        &self,
        endpoint: &Endpoint,
        digest: &Digest,
        size: u64,
    ) -> Result<Vec<u8>, PullError> {
        let (resource, what) = (format!("blobs/{digest}"), format!("signature {digest}"));
        let (body, _) = self.registry.document(endpoint, &resource, &what, "*/*", size).await?;
        let actual = body.len() as u64;
        if actual != size {
            let actual = format!("it has {actual}");
            return Err(PullError::SizeMismatch { what, expected: size, actual });
        }
        let verified = Untrusted::new(body).verify_digest(digest);
        let verified = verified.map_err(|error| PullError::digest(what, error))?;
        Ok(verified.get().clone())
    }
}

fn present<T>(found: Result<T, PullError>) -> Result<Option<T>, String> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(PullError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}` (distribution-spec, "Pulling manifests").
fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= 128
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}
