//! Encryption at rest: AES-256-GCM under the store key, each value bound to its place.

use std::path::Path;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest;
use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::Zeroizing;

use crate::config::{ConfigError, read_text};

/// Why a value cannot be read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// It was changed, moved, or is of another key.
    #[error("a value in the store was changed, or is of another key")]
    Broken,
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    Random,
}

/// The key of a store. Its values are only worth as much as this is kept secret.
pub(crate) struct StoreKey {
    cipher: LessSafeKey,
    id: String,
    random: SystemRandom,
}

impl StoreKey {
    /// From a file with 64 hexadecimal digits.
    pub(crate) fn read(path: &Path) -> Result<StoreKey, ConfigError> {
        let text = Zeroizing::new(read_text(path)?);
        let wrong = || ConfigError::Value {
            path: path.to_owned(),
            key: "store.key_file",
            problem: "it holds 64 hexadecimal digits, and nothing else".to_owned(),
        };
        let mut key = Zeroizing::new([0; 32]);
        hex::decode_to_slice(text.trim(), key.as_mut_slice()).map_err(|_| wrong())?;
        StoreKey::new(&key).ok_or_else(wrong)
    }

    pub(crate) fn new(key: &[u8; 32]) -> Option<StoreKey> {
        let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).ok()?);
        let mut hash = digest::Context::new(&digest::SHA256);
        hash.update(b"nacre-kbs store key id");
        hash.update(key);
        let id = hex::encode(&hash.finish().as_ref()[..8]);
        Some(StoreKey { cipher, id, random: SystemRandom::new() })
    }

    /// Tells keys apart and tells nothing about them.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Encrypts a value for its place: nonce, ciphertext, tag.
    pub(crate) fn seal(&self, table: &str, key: &str, value: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| SealError::Random)?;
        let mut sealed = Zeroizing::new(value.to_vec());
        let tag = self
            .cipher
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                place(table, key),
                &mut sealed,
            )
            .map_err(|_| SealError::Random)?;
        Ok([nonce.as_slice(), &sealed, tag.as_ref()].concat())
    }

    /// Decrypts a value of that place.
    pub(crate) fn open(
        &self,
        table: &str,
        key: &str,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(SealError::Broken)?;
        let mut buffer = Zeroizing::new(rest.to_vec());
        let length = self
            .cipher
            .open_in_place(Nonce::assume_unique_for_key(*nonce), place(table, key), &mut buffer)
            .map_err(|_| SealError::Broken)?
            .len();
        buffer.truncate(length);
        Ok(buffer)
    }
}

/// Table names hold no zero byte, so no two places are written alike.
fn place(table: &str, key: &str) -> Aad<Vec<u8>> {
    Aad::from([table.as_bytes(), &[0], key.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_read_at_its_place_under_its_key_and_unchanged() {
        let key = StoreKey::new(&[1; 32]).unwrap();
        let sealed = key.seal("resources", "a/b/c", b"secret").unwrap();
        assert_eq!(key.open("resources", "a/b/c", &sealed).unwrap().as_slice(), b"secret");
        assert_ne!(sealed, key.seal("resources", "a/b/c", b"secret").unwrap());
        assert_eq!(key.open("resources", "a/b/d", &sealed), Err(SealError::Broken));
        assert_eq!(key.open("resource", "sa/b/c", &sealed), Err(SealError::Broken));
        let other = StoreKey::new(&[2; 32]).unwrap();
        assert_eq!(other.open("resources", "a/b/c", &sealed), Err(SealError::Broken));
        assert_ne!(other.id(), key.id());
        for place in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[place] ^= 1;
            assert_eq!(key.open("resources", "a/b/c", &changed), Err(SealError::Broken));
        }
        assert_eq!(key.open("resources", "a/b/c", &sealed[..11]), Err(SealError::Broken));
    }

    #[test]
    fn a_key_file_holds_64_digits() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.key");
        for (text, good) in [
            (format!("{}\n", "0f".repeat(32)), true),
            ("0f".repeat(31), false),
            ("0g".repeat(32), false),
            (String::new(), false),
        ] {
            std::fs::write(&path, &text).unwrap();
            assert_eq!(StoreKey::read(&path).is_ok(), good, "{text}");
        }
    }
}
