use nacre_protocol::kbs::Jwk;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
};
use zeroize::Zeroizing;

use crate::encoding::encode;
use crate::{JoseError, jws, pem};

const PRIVATE: &str = "PRIVATE KEY";
const PUBLIC: &str = "PUBLIC KEY";

/// A private key on P-256 that signs by ES256.
pub struct Es256Key {
    pkcs8: Zeroizing<Vec<u8>>,
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

impl Es256Key {
    /// A new key.
    ///
    /// # Errors
    /// If the system gives no random bytes.
    pub fn generate() -> Result<Es256Key, JoseError> {
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
                .map_err(|_| JoseError::Library)?;
        Es256Key::from_pkcs8(pkcs8.as_ref())
    }

    /// A key in PKCS#8 with its public half.
    ///
    /// # Errors
    /// If it is none.
    pub fn from_pkcs8(der: &[u8]) -> Result<Es256Key, JoseError> {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &random)
            .map_err(|_| JoseError::Key("a key for ES256 is PKCS#8 of a key on P-256"))?;
        Ok(Es256Key { pkcs8: Zeroizing::new(der.to_vec()), pair, random })
    }

    /// A key in PKCS#8 PEM.
    ///
    /// # Errors
    /// If it is none.
    pub fn from_pem(text: &str) -> Result<Es256Key, JoseError> {
        Es256Key::from_pkcs8(&pem::decode(PRIVATE, text)?)
    }

    /// PKCS#8. A secret.
    #[must_use]
    pub fn to_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        self.pkcs8.clone()
    }

    /// PKCS#8 PEM. A secret.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        pem::encode(PRIVATE, &self.pkcs8)
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> Jwk {
        // Uncompressed: 04, x, y.
        let point = self.pair.public_key().as_ref();
        let (x, y) = point[1..].split_at((point.len() - 1) / 2);
        Jwk::Ec { crv: "P-256".to_owned(), alg: jws::ES256.to_owned(), x: encode(x), y: encode(y) }
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Result<[u8; 64], JoseError> {
        let signature = self.pair.sign(&self.random, message).map_err(|_| JoseError::Library)?;
        signature.as_ref().try_into().map_err(|_| JoseError::Library)
    }
}

/// A private key that signs by `EdDSA` with Ed25519.
pub struct Ed25519Key {
    pkcs8: Zeroizing<Vec<u8>>,
    pair: Ed25519KeyPair,
}

impl Ed25519Key {
    /// A new key.
    ///
    /// # Errors
    /// If the system gives no random bytes.
    pub fn generate() -> Result<Ed25519Key, JoseError> {
        let pkcs8 =
            Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| JoseError::Library)?;
        Ed25519Key::from_pkcs8(pkcs8.as_ref())
    }

    /// A key in PKCS#8, with its public half or without.
    ///
    /// # Errors
    /// If it is none.
    pub fn from_pkcs8(der: &[u8]) -> Result<Ed25519Key, JoseError> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der)
            .map_err(|_| JoseError::Key("a key for EdDSA is PKCS#8 of an Ed25519 key"))?;
        Ok(Ed25519Key { pkcs8: Zeroizing::new(der.to_vec()), pair })
    }

    /// A key in PKCS#8 PEM.
    ///
    /// # Errors
    /// If it is none.
    pub fn from_pem(text: &str) -> Result<Ed25519Key, JoseError> {
        Ed25519Key::from_pkcs8(&pem::decode(PRIVATE, text)?)
    }

    /// PKCS#8 PEM. A secret.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        pem::encode(PRIVATE, &self.pkcs8)
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> Ed25519Public {
        Ed25519Public(self.pair.public_key().as_ref().try_into().expect("32 bytes (RFC 8032)"))
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.pair.sign(message).as_ref().try_into().expect("64 bytes (RFC 8032)")
    }

    /// RFC 8410, section 7.
    #[cfg(test)]
    pub(crate) fn from_seed(seed: &[u8; 32]) -> Result<Ed25519Key, JoseError> {
        let start = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
        Ed25519Key::from_pkcs8(&[start.as_slice(), seed].concat())
    }
}

/// The public half of an [`Ed25519Key`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ed25519Public([u8; 32]);

/// What precedes the 32 bytes in a `SubjectPublicKeyInfo` (RFC 8410, section 4).
const ED25519_INFO: [u8; 12] = [0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];

impl Ed25519Public {
    /// A key in PEM (`SubjectPublicKeyInfo`).
    ///
    /// # Errors
    /// If it is none.
    pub fn from_pem(text: &str) -> Result<Ed25519Public, JoseError> {
        let der = pem::decode(PUBLIC, text)?;
        let key = der.strip_prefix(&ED25519_INFO).and_then(|key| key.try_into().ok());
        key.map(Ed25519Public).ok_or(JoseError::Key("it is no public key of Ed25519"))
    }

    /// PEM.
    #[must_use]
    pub fn to_pem(&self) -> String {
        pem::encode(PUBLIC, &[ED25519_INFO.as_slice(), &self.0].concat()).to_string()
    }

    /// The bytes (RFC 8032, section 5.1.5).
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}
