//! How a layer is encrypted: the public options stand in an annotation, the private ones are what is wrapped
//! for each recipient. Both are the JSON of `ocicrypt`'s package `blockcipher`; byte strings are base64.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use crate::EncryptionError;
use crate::encoding::{base64, to_base64};

/// The one layer cipher of the format.
const CIPHER: &str = "AES_256_CTR_HMAC_SHA256";
const SUPPORTED: &str = "AES_256_CTR_HMAC_SHA256 is";
/// Largest public options, in bytes.
pub(crate) const PUBLIC_LIMIT: usize = 4 * 1024;
/// Largest private options, in bytes.
pub(crate) const PRIVATE_LIMIT: usize = 4 * 1024;
pub(crate) const KEY: usize = 32;
pub(crate) const NONCE: usize = 16;
pub(crate) const HMAC: usize = 32;

/// What everybody may know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Public {
    pub(crate) hmac: [u8; HMAC],
}

#[derive(Serialize, Deserialize)]
struct PublicJson {
    cipher: String,
    hmac: String,
    /// Options of future ciphers.
    #[serde(default)]
    cipheroptions: BTreeMap<String, String>,
}

impl Public {
    pub(crate) fn parse(annotation: &str) -> Result<Public, EncryptionError> {
        const WHAT: &str = "the annotation enc.pubopts";
        let json = base64(WHAT, annotation, PUBLIC_LIMIT)?;
        let json: PublicJson =
            serde_json::from_slice(&json).map_err(|_| EncryptionError::Malformed(WHAT))?;
        if json.cipher != CIPHER {
            return Err(EncryptionError::unsupported("the cipher", &json.cipher, SUPPORTED));
        }
        if !json.cipheroptions.is_empty() {
            return Err(EncryptionError::Malformed(WHAT));
        }
        let hmac = base64("the HMAC in the annotation enc.pubopts", &json.hmac, HMAC)?;
        let hmac = hmac.as_slice().try_into().map_err(|_| EncryptionError::Malformed(WHAT))?;
        Ok(Public { hmac })
    }

    pub(crate) fn to_annotation(&self) -> Result<String, EncryptionError> {
        let json = PublicJson {
            cipher: CIPHER.to_owned(),
            hmac: to_base64(self.hmac),
            cipheroptions: BTreeMap::new(),
        };
        let json = serde_json::to_vec(&json).map_err(|_| EncryptionError::Library)?;
        Ok(to_base64(json))
    }
}

/// What only recipients may know. No `Debug`.
pub(crate) struct Private {
    pub(crate) key: Zeroizing<[u8; KEY]>,
    pub(crate) nonce: [u8; NONCE],
}

#[derive(Deserialize)]
struct PrivateJson<'a> {
    #[serde(borrow)]
    symkey: Cow<'a, str>,
    #[serde(borrow)]
    cipheroptions: NonceJson<'a>,
}

#[derive(Deserialize)]
struct NonceJson<'a> {
    #[serde(borrow)]
    nonce: Cow<'a, str>,
}

impl Private {
    /// The member `digest`, that of the layer before it was encrypted, is not read: the image's
    /// configuration names the digest of what is in the layer, and that is verified.
    pub(crate) fn parse(json: &[u8]) -> Result<Private, EncryptionError> {
        const WHAT: &str = "the unwrapped key of the layer";
        let malformed = || EncryptionError::Malformed(WHAT);
        let PrivateJson { symkey, cipheroptions: NonceJson { nonce } } =
            serde_json::from_slice(json).map_err(|_| malformed())?;
        let key = base64(WHAT, &symkey, KEY);
        if let Cow::Owned(mut symkey) = symkey {
            symkey.zeroize();
        }
        let key = Zeroizing::new(<[u8; KEY]>::try_from(key?.as_slice()).map_err(|_| malformed())?);
        let nonce = base64(WHAT, &nonce, NONCE)?;
        let nonce = nonce.as_slice().try_into().map_err(|_| malformed())?;
        Ok(Private { key, nonce })
    }

    /// `digest` is that of the layer before it was encrypted, as `ocicrypt` notes it.
    pub(crate) fn to_json(&self, digest: &nacre_trust::Digest) -> Zeroizing<Vec<u8>> {
        // By hand, into a buffer that never moves: a serializer leaves copies of the key behind.
        let key = Zeroizing::new(to_base64(self.key.as_slice()));
        let mut json = Zeroizing::new(Vec::with_capacity(512));
        for part in [
            r#"{"symkey":""#,
            key.as_str(),
            r#"","digest":""#,
            &digest.to_string(),
            r#"","cipheroptions":{"nonce":""#,
            &to_base64(self.nonce),
            r#""}}"#,
        ] {
            json.extend_from_slice(part.as_bytes());
        }
        json
    }
}

#[cfg(test)]
mod tests {
    use nacre_trust::{Algorithm, Digest};

    use super::*;

    #[test]
    fn private_options_go_both_ways() {
        let private = Private { key: Zeroizing::new([7; KEY]), nonce: [9; NONCE] };
        let json = private.to_json(&Digest::of(Algorithm::Sha512, b""));
        assert!(json.len() <= 512);
        let read = Private::parse(&json).unwrap();
        assert_eq!((*read.key, read.nonce), (*private.key, private.nonce));
        // Escapes, as other writers of JSON may have them.
        let text = String::from_utf8(json.to_vec()).unwrap().replace('=', r"\u003d");
        assert_eq!(*Private::parse(text.as_bytes()).unwrap().key, *private.key);
    }

    #[test]
    fn short_and_long_keys_are_refused() {
        for (key, nonce) in [(31, 16), (33, 16), (32, 15), (32, 17), (0, 0)] {
            let (key, nonce) = (to_base64(vec![1; key]), to_base64(vec![1; nonce]));
            let json = format!(r#"{{"symkey":"{key}","cipheroptions":{{"nonce":"{nonce}"}}}}"#);
            assert!(Private::parse(json.as_bytes()).is_err(), "{json}");
        }
    }

    #[test]
    fn public_options() {
        let public = Public { hmac: [3; HMAC] };
        assert_eq!(Public::parse(&public.to_annotation().unwrap()), Ok(public));
        for (json, expected) in [
            (r#"{"cipher":"AEAD_AES_256_GCM","hmac":""}"#, "not supported"),
            (r#"{"cipher":"AES_256_CTR_HMAC_SHA256"}"#, "malformed"),
            (r#"{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"AAAA"}"#, "malformed"),
            ("{}", "malformed"),
            ("", "malformed"),
        ] {
            let error = Public::parse(&to_base64(json)).unwrap_err().to_string();
            assert!(error.contains(expected), "{json}: {error}");
        }
    }
}
