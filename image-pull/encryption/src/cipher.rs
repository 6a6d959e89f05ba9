use aes::Aes256;
use ctr::Ctr128BE;
use ctr::cipher::{KeyIvInit as _, StreamCipher as _};
use ring::hmac;
use subtle::ConstantTimeEq as _;

use crate::EncryptionError;
use crate::options::{HMAC, Private, Public};

/// Decrypts one layer, piece by piece, in the order of the stream.
///
/// The plaintext is hostile until [`LayerCipher::finish`] has returned [`Authentic`]. Decrypts up to 2^68
/// bytes, more than there are in any blob. No `Debug`.
pub struct LayerCipher {
    stream: Ctr128BE<Aes256>,
    mac: hmac::Context,
    expected: [u8; HMAC],
}

/// Proof that all of a layer's ciphertext was made by who had its key: only [`LayerCipher::finish`] makes it.
#[derive(Debug)]
#[must_use = "a decrypted layer counts only with this proof"]
pub struct Authentic(());

impl LayerCipher {
    pub(crate) fn new(private: &Private, public: &Public) -> LayerCipher {
        let (stream, mac) = ciphers(private);
        LayerCipher { stream, mac, expected: public.hmac }
    }

    /// Decrypts the next piece of the blob, whatever its length, in place.
    pub fn decrypt(&mut self, data: &mut [u8]) {
        self.mac.update(data);
        self.stream.apply_keystream(data);
    }

    /// To be called when all of the blob has been decrypted.
    ///
    /// # Errors
    /// [`EncryptionError::Changed`] if the blob is not what the owner of the key made.
    pub fn finish(self) -> Result<Authentic, EncryptionError> {
        let found = self.mac.sign();
        if bool::from(found.as_ref().ct_eq(&self.expected)) {
            Ok(Authentic(()))
        } else {
            Err(EncryptionError::Changed)
        }
    }
}

/// The format uses one key for both.
pub(crate) fn ciphers(private: &Private) -> (Ctr128BE<Aes256>, hmac::Context) {
    let stream = Ctr128BE::new(private.key.as_slice().into(), &private.nonce.into());
    let mac = hmac::Key::new(hmac::HMAC_SHA256, private.key.as_slice());
    (stream, hmac::Context::with_key(&mac))
}
