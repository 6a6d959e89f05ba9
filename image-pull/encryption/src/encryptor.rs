use std::collections::BTreeMap;
use std::io::{self, Write};

use aes::Aes256;
use ctr::Ctr128BE;
use ctr::cipher::StreamCipher as _;
use nacre_protocol::kbs::ResourceUri;
use nacre_trust::{Algorithm, Digest, Hasher};
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::Zeroizing;

use crate::annotations::{JWE, PROVIDER, PUBLIC_OPTIONS, value};
use crate::cipher::ciphers;
use crate::jwe::Jwe;
use crate::keys::PublicKey;
use crate::options::{KEY, NONCE, Private, Public};
use crate::provider::{Packet, ProviderKey};
use crate::{EncryptionError, PROVIDER_KEY_LENGTH, RECIPIENT_LIMIT};

/// Encrypts a layer under a new key: what is written to it goes on, encrypted, to the inner writer. No `Debug`.
pub struct LayerEncryptor<W> {
    ciphertext: W,
    private: Private,
    stream: Ctr128BE<Aes256>,
    mac: hmac::Context,
    before: Hasher,
    after: Hasher,
    size: u64,
    piece: Vec<u8>,
}

/// Most bytes that are encrypted at once.
const PIECE: usize = 64 * 1024;

impl<W: Write> LayerEncryptor<W> {
    /// Takes the layer's blob as it was, compressed or not. `algorithm` is that of its digest.
    ///
    /// # Errors
    /// If the system gives no random bytes.
    pub fn new(ciphertext: W, algorithm: Algorithm) -> Result<LayerEncryptor<W>, EncryptionError> {
        let mut private = Private { key: Zeroizing::new([0; KEY]), nonce: [0; NONCE] };
        let random = SystemRandom::new();
        random.fill(private.key.as_mut_slice()).map_err(|_| EncryptionError::Library)?;
        random.fill(&mut private.nonce).map_err(|_| EncryptionError::Library)?;
        let (stream, mac) = ciphers(&private);
        Ok(LayerEncryptor {
            ciphertext,
            private,
            stream,
            mac,
            before: Hasher::new(algorithm),
            after: Hasher::new(Algorithm::Sha256),
            size: 0,
            piece: Vec::with_capacity(PIECE),
        })
    }

    /// To be called when all of the blob was written: what wraps the key, and the inner writer.
    ///
    /// # Errors
    /// If a computation fails that cannot.
    pub fn finish(self) -> Result<(Sealed, W), EncryptionError> {
        let hmac = self.mac.sign();
        let hmac = hmac.as_ref().try_into().map_err(|_| EncryptionError::Library)?;
        let sealed = Sealed {
            private: self.private,
            public: Public { hmac },
            before: self.before.finish(),
            after: self.after.finish(),
            size: self.size,
        };
        Ok((sealed, self.ciphertext))
    }
}

impl<W: Write> Write for LayerEncryptor<W> {
    /// All or an error: what was encrypted cannot be taken back.
    fn write(&mut self, plaintext: &[u8]) -> io::Result<usize> {
        let length = plaintext.len().min(PIECE);
        self.piece.clear();
        self.piece.extend_from_slice(&plaintext[..length]);
        self.before.update(&self.piece);
        self.stream.apply_keystream(&mut self.piece);
        self.mac.update(&self.piece);
        self.after.update(&self.piece);
        self.size += length as u64;
        self.ciphertext.write_all(&self.piece)?;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.ciphertext.flush()
    }
}

/// A new symmetric key for the key-provider form.
///
/// # Errors
/// If the system gives no random bytes.
pub fn new_provider_key() -> Result<Zeroizing<[u8; PROVIDER_KEY_LENGTH]>, EncryptionError> {
    let mut key = Zeroizing::new([0; PROVIDER_KEY_LENGTH]);
    SystemRandom::new().fill(key.as_mut_slice()).map_err(|_| EncryptionError::Library)?;
    Ok(key)
}

/// A layer that has been encrypted, with its key. No `Debug`.
pub struct Sealed {
    private: Private,
    public: Public,
    before: Digest,
    after: Digest,
    size: u64,
}

/// Who shall be able to open a layer. No `Debug`.
pub enum Recipient {
    /// The holder of a private key.
    Jwe(PublicKey),
    /// Whoever gets the key that a broker keeps.
    Provider {
        /// Where it keeps it.
        key_id: ResourceUri,
        /// The key itself.
        key: Zeroizing<[u8; PROVIDER_KEY_LENGTH]>,
    },
}

impl Sealed {
    /// Of the plaintext, to be compared with what the layer's descriptor said.
    #[must_use]
    pub fn plaintext_digest(&self) -> &Digest {
        &self.before
    }

    /// Of the ciphertext: the new blob.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.after
    }

    /// Of the ciphertext, in bytes; as many as the plaintext.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The annotations of the new layer's descriptor: those of the old one, and the key wrapped for each
    /// recipient.
    ///
    /// # Errors
    /// If there is no recipient or too many.
    pub fn annotations(
        &self,
        recipients: &[Recipient],
        old: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, String>, EncryptionError> {
        if recipients.is_empty() {
            return Err(EncryptionError::NoRecipients);
        }
        if recipients.len() > RECIPIENT_LIMIT {
            return Err(EncryptionError::TooMany { what: "recipients", limit: RECIPIENT_LIMIT });
        }
        let private = self.private.to_json(&self.before);
        let mut holders = Vec::new();
        let mut packets = Vec::new();
        for recipient in recipients {
            match recipient {
                Recipient::Jwe(key) => holders.push(key),
                Recipient::Provider { key_id, key } => {
                    let key = ProviderKey::new(key.as_slice())?;
                    packets.push(Packet::wrap(&private, key_id, &key)?);
                }
            }
        }
        let mut annotations = crate::annotations::without_encryption(old);
        if !holders.is_empty() {
            annotations.insert(JWE.to_owned(), value(&[Jwe::wrap(&private, &holders)?]));
        }
        if !packets.is_empty() {
            annotations.insert(PROVIDER.to_owned(), value(&packets));
        }
        annotations.insert(PUBLIC_OPTIONS.to_owned(), self.public.to_annotation()?);
        Ok(annotations)
    }
}
