//! What the key broker holds for a pull: credentials, layer keys, keys of signers.

use async_trait::async_trait;
use zeroize::Zeroizing;

/// Fetches resources of the key broker. The guest's agent implements it.
#[async_trait]
pub trait Resources: Send + Sync {
    /// The resource under `kbs:///repository/type/tag`.
    ///
    /// # Errors
    /// Why it cannot be had, in words for people, without its content.
    async fn resource(&self, uri: &str) -> Result<Zeroizing<Vec<u8>>, String>;
}

/// For pulls that need nothing from a key broker: every resource is refused.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoResources;

#[async_trait]
impl Resources for NoResources {
    async fn resource(&self, uri: &str) -> Result<Zeroizing<Vec<u8>>, String> {
        Err(format!("{uri} is needed, but no key broker is configured"))
    }
}
