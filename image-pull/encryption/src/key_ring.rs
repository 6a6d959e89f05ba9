use std::collections::BTreeMap;

use nacre_protocol::kbs::ResourceUri;

use crate::keys::PrivateKey;
use crate::provider::{self, ProviderKey};
use crate::{EncryptionError, KEY_LIMIT};

/// Keys that open layers. No `Debug`.
#[derive(Default)]
pub struct KeyRing {
    provider: BTreeMap<ResourceUri, ProviderKey>,
    private: Vec<PrivateKey>,
}

impl KeyRing {
    /// No keys.
    #[must_use]
    pub fn new() -> KeyRing {
        KeyRing::default()
    }

    /// The symmetric key that the broker keeps at `uri` (`kbs:///repository/type/tag`; a host in it is
    /// ignored).
    ///
    /// # Errors
    /// If the URI names no resource, `key` is not 32 bytes, or there are too many.
    pub fn add_provider_key(&mut self, uri: &str, key: &[u8]) -> Result<(), EncryptionError> {
        let uri = provider::resource(uri)?;
        if self.provider.len() >= KEY_LIMIT && !self.provider.contains_key(&uri) {
            return Err(EncryptionError::TooMany { what: "keys of layers", limit: KEY_LIMIT });
        }
        self.provider.insert(uri, ProviderKey::new(key)?);
        Ok(())
    }

    /// A private key for layers that are encrypted by JSON web encryption: EC (P-256, P-384, P-521) or RSA
    /// of 2048 to 4096 bits, as PKCS#8, SEC 1 or PKCS#1 in PEM or DER, or as a JSON web key.
    ///
    /// # Errors
    /// If it is none of these, or there are too many.
    pub fn add_private_key(&mut self, key: &[u8]) -> Result<(), EncryptionError> {
        if self.private.len() >= KEY_LIMIT {
            return Err(EncryptionError::TooMany { what: "private keys", limit: KEY_LIMIT });
        }
        self.private.push(PrivateKey::parse(key)?);
        Ok(())
    }

    pub(crate) fn provider_key(&self, uri: &ResourceUri) -> Option<&ProviderKey> {
        self.provider.get(uri)
    }

    pub(crate) fn private_keys(&self) -> &[PrivateKey] {
        &self.private
    }
}
