//! The key-provider form, as the key provider of Confidential Containers writes it under the name
//! `attestation-agent`: the layer's private options encrypted under a symmetric key that a broker keeps.

use aes::Aes256;
use ctr::Ctr128BE;
use ctr::cipher::{KeyIvInit as _, StreamCipher as _};
use nacre_protocol::kbs::ResourceUri;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::EncryptionError;
use crate::encoding::{base64, to_base64};
use crate::options::{PRIVATE_LIMIT, Private};

/// Name of the one provider that is known.
pub(crate) const ATTESTATION_AGENT: &str = "attestation-agent";
/// A key that wraps keys of layers, in bytes.
pub const PROVIDER_KEY_LENGTH: usize = 32;

const WHAT: &str = "the annotation enc.keys.provider.attestation-agent";
const A256GCM: &str = "A256GCM";
const A256CTR: &str = "A256CTR";
const GCM_TAG: usize = 16;
const CTR_IV: usize = 16;
/// The version of packets that name one.
const VERSION: &str = "0.1.0";
/// The kind of provider whose keys are with a key broker.
const KBS: &str = "kbs";

/// A wrapped key.
pub(crate) struct Packet {
    pub(crate) key_id: ResourceUri,
    wrapping: Wrapping,
    wrapped: Vec<u8>,
}

enum Wrapping {
    Gcm([u8; NONCE_LEN]),
    /// Not authenticated: whoever changes it gets another key of the layer, under which the layer's HMAC
    /// is wrong.
    Ctr([u8; CTR_IV]),
}

/// The members of the first version; later ones add `version`, `provider` and maps for key management
/// services, which are empty for a key broker.
#[derive(Deserialize)]
struct PacketJson {
    kid: String,
    wrapped_data: String,
    iv: Option<String>,
    wrap_type: Option<String>,
    version: Option<String>,
    provider: Option<String>,
}

#[derive(Serialize)]
struct NewPacketJson<'a> {
    kid: &'a ResourceUri,
    wrapped_data: String,
    iv: String,
    wrap_type: &'a str,
}

impl Packet {
    pub(crate) fn parse(json: &[u8]) -> Result<Packet, EncryptionError> {
        let malformed = EncryptionError::Malformed;
        let json: PacketJson = serde_json::from_slice(json).map_err(|_| malformed(WHAT))?;
        if let Some(version) = json.version.filter(|version| version != VERSION) {
            return Err(EncryptionError::unsupported("the packet version", &version, "0.1.0 is"));
        }
        if let Some(provider) = json.provider.filter(|provider| provider != KBS) {
            return Err(EncryptionError::unsupported("the key store", &provider, "kbs is"));
        }
        let (Some(iv), Some(wrap_type)) = (json.iv, json.wrap_type) else {
            return Err(malformed(WHAT));
        };
        let iv = base64(WHAT, &iv, CTR_IV)?;
        let wrapping = match wrap_type.as_str() {
            A256GCM => Wrapping::Gcm(iv.as_slice().try_into().map_err(|_| malformed(WHAT))?),
            A256CTR => Wrapping::Ctr(iv.as_slice().try_into().map_err(|_| malformed(WHAT))?),
            other => {
                let supported = "A256GCM and A256CTR are";
                return Err(EncryptionError::unsupported("the wrap_type", other, supported));
            }
        };
        let wrapped = base64(WHAT, &json.wrapped_data, PRIVATE_LIMIT + GCM_TAG)?;
        Ok(Packet { key_id: resource(&json.kid)?, wrapping, wrapped: wrapped.to_vec() })
    }

    /// # Errors
    /// If it was wrapped under another key.
    pub(crate) fn unwrap(&self, key: &ProviderKey) -> Result<Private, EncryptionError> {
        let mut buffer = Zeroizing::new(self.wrapped.clone());
        match &self.wrapping {
            Wrapping::Gcm(iv) => {
                let nonce = Nonce::assume_unique_for_key(*iv);
                let opened = key.gcm()?.open_in_place(nonce, Aad::empty(), &mut buffer);
                let length = opened.map_err(|_| EncryptionError::Key("it opens nothing"))?.len();
                buffer.truncate(length);
            }
            Wrapping::Ctr(iv) => {
                Ctr128BE::<Aes256>::new(key.0.as_slice().into(), iv.into())
                    .apply_keystream(&mut buffer);
            }
        }
        Private::parse(&buffer)
    }

    /// The JSON of a new packet. The nonce is random: one key may wrap 2^32 layers.
    pub(crate) fn wrap(
        private: &[u8],
        key_id: &ResourceUri,
        key: &ProviderKey,
    ) -> Result<Vec<u8>, EncryptionError> {
        let mut iv = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut iv).map_err(|_| EncryptionError::Library)?;
        // Room for the tag: growing would leave a copy behind.
        let mut buffer = Zeroizing::new(Vec::with_capacity(private.len() + GCM_TAG));
        buffer.extend_from_slice(private);
        let nonce = Nonce::assume_unique_for_key(iv);
        key.gcm()?
            .seal_in_place_append_tag(nonce, Aad::empty(), &mut *buffer)
            .map_err(|_| EncryptionError::Library)?;
        let packet = NewPacketJson {
            kid: key_id,
            wrapped_data: to_base64(buffer.as_slice()),
            iv: to_base64(iv),
            wrap_type: A256GCM,
        };
        serde_json::to_vec(&packet).map_err(|_| EncryptionError::Library)
    }
}

/// A symmetric key. No `Debug`.
pub(crate) struct ProviderKey(Zeroizing<[u8; PROVIDER_KEY_LENGTH]>);

impl ProviderKey {
    pub(crate) fn new(key: &[u8]) -> Result<ProviderKey, EncryptionError> {
        let key = key.try_into().map_err(|_| EncryptionError::Key("it has to have 32 bytes"))?;
        Ok(ProviderKey(Zeroizing::new(key)))
    }

    fn gcm(&self) -> Result<LessSafeKey, EncryptionError> {
        let key = UnboundKey::new(&AES_256_GCM, self.0.as_slice());
        Ok(LessSafeKey::new(key.map_err(|_| EncryptionError::Library)?))
    }
}

/// `kbs:///a/b/c`, `kbs://host/a/b/c`, and without the scheme, as old key providers wrote it: `/a/b/c`,
/// `host/a/b/c`.
pub(crate) fn resource(text: &str) -> Result<ResourceUri, EncryptionError> {
    let uri = if text.contains("://") { text.parse() } else { format!("kbs://{text}").parse() };
    uri.map_err(|_| EncryptionError::Malformed("the URI of a key (kbs:///repository/type/tag)"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{KEY, NONCE};

    fn private() -> Private {
        Private { key: Zeroizing::new([1; KEY]), nonce: [2; NONCE] }
    }

    fn json() -> Zeroizing<Vec<u8>> {
        private().to_json(&nacre_trust::Digest::of(nacre_trust::Algorithm::Sha256, b""))
    }

    #[test]
    fn wrapped_keys_are_unwrapped() {
        let key = ProviderKey::new(&[5; 32]).unwrap();
        let id = resource("kbs:///default/key/one").unwrap();
        let packet = Packet::parse(&Packet::wrap(&json(), &id, &key).unwrap()).unwrap();
        assert_eq!(packet.key_id, id);
        assert_eq!(*packet.unwrap(&key).unwrap().key, [1; 32]);
        assert!(packet.unwrap(&ProviderKey::new(&[6; 32]).unwrap()).is_err());
    }

    #[test]
    fn counter_mode_and_later_packets_are_read() {
        let mut wrapped = json().to_vec();
        Ctr128BE::<Aes256>::new(&[5; 32].into(), &[7; 16].into()).apply_keystream(&mut wrapped);
        let packet = serde_json::json!({
            "version": "0.1.0", "provider": "kbs", "provider_settings": {}, "annotations": {},
            "kid": "kbs://broker:8080/default/key/one", "wrap_type": "A256CTR",
            "iv": to_base64([7; 16]), "wrapped_data": to_base64(wrapped),
        });
        let packet = Packet::parse(packet.to_string().as_bytes()).unwrap();
        assert_eq!(packet.key_id, resource("/default/key/one").unwrap());
        let key = ProviderKey::new(&[5; 32]).unwrap();
        assert_eq!(packet.unwrap(&key).unwrap().nonce, [2; 16]);
    }

    #[test]
    fn other_packets_are_refused() {
        let good = serde_json::json!({
            "kid": "kbs:///default/key/one", "wrap_type": "A256GCM",
            "iv": to_base64([7; 12]), "wrapped_data": to_base64([0; 40]),
        });
        assert!(Packet::parse(good.to_string().as_bytes()).is_ok());
        for (member, value) in [
            ("kid", "https://example.com/a/b/c"),
            ("kid", "kbs:///default/key"),
            ("wrap_type", "A128GCM"),
            ("iv", "AAAA"),
            ("wrapped_data", "?"),
            ("version", "9"),
            ("provider", "aliyun"),
        ] {
            let mut other = good.clone();
            other[member] = value.into();
            assert!(Packet::parse(other.to_string().as_bytes()).is_err(), "{member}: {value}");
        }
        let large = to_base64(vec![0; PRIVATE_LIMIT + 32]);
        let mut other = good.clone();
        other["wrapped_data"] = large.into();
        assert!(matches!(
            Packet::parse(other.to_string().as_bytes()),
            Err(EncryptionError::TooLarge { .. })
        ));
    }
}
