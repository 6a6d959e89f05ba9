//! Where signatures and keys come from.

use async_trait::async_trait;
use nacre_trust::Digest;
use zeroize::Zeroizing;

/// What a decision may ask for, of the repository that the image was resolved in. Every answer but
/// [`Sources::resource`] is hostile; an implementation only has to keep the bounds. An `Err` tells in
/// one line what failed; it refuses the image.
#[async_trait]
pub trait Sources: Send + Sync {
    /// A manifest by tag or by digest, at most 4 MiB; by digest: verified. `None`: there is none.
    async fn manifest(&self, tag_or_digest: &str) -> Result<Option<Vec<u8>>, String>;

    /// The answer of the referrers API (OCI distribution-spec 1.1, "Listing Referrers"), at most
    /// 4 MiB. `None`: the registry does not have the API.
    async fn referrers(&self, digest: &Digest) -> Result<Option<Vec<u8>>, String>;

    /// A blob, verified, of at most 1 MiB.
    async fn blob(&self, digest: &Digest, size: u64) -> Result<Vec<u8>, String>;

    /// A signature from the signature store that the policy names, at most 1 MiB. `None`: not found.
    async fn lookaside(&self, url: &str) -> Result<Option<Vec<u8>>, String>;

    /// What the key broker holds under a `kbs:///repository/type/tag`.
    async fn resource(&self, uri: &str) -> Result<Zeroizing<Vec<u8>>, String>;
}
