use std::collections::BTreeMap;

use crate::cipher::LayerCipher;
use crate::encoding::{base64, to_base64};
use crate::error::printable;
use crate::jwe::Jwe;
use crate::key_ring::KeyRing;
use crate::options::Public;
use crate::provider::{ATTESTATION_AGENT, Packet};
use crate::{ANNOTATION_LIMIT, EncryptionError, RECIPIENT_LIMIT};

/// What media types of encrypted layers end in; without it, the rest is the media type of what is in them.
pub const MEDIA_TYPE_SUFFIX: &str = "+encrypted";

const PREFIX: &str = "org.opencontainers.image.enc.";
const KEYS: &str = "org.opencontainers.image.enc.keys.";
pub(crate) const JWE: &str = "org.opencontainers.image.enc.keys.jwe";
pub(crate) const PROVIDER: &str = "org.opencontainers.image.enc.keys.provider.attestation-agent";
pub(crate) const PUBLIC_OPTIONS: &str = "org.opencontainers.image.enc.pubopts";

/// Whether a layer's media type says that it is encrypted.
#[must_use]
pub fn is_encrypted(media_type: &str) -> bool {
    media_type.ends_with(MEDIA_TYPE_SUFFIX)
}

/// How a layer is encrypted and for whom, from the annotations of its descriptor.
pub struct EncryptedLayer {
    public: Public,
    packets: Vec<Packet>,
    messages: Vec<Jwe>,
    /// Recipients that cannot be served, by name.
    others: Vec<String>,
}

impl EncryptedLayer {
    /// Reads the annotations of a layer whose media type says that it is encrypted. Annotations about other
    /// things are ignored.
    ///
    /// # Errors
    /// If they are malformed or too large, use another cipher, or if no recipient is of a kind that is read.
    pub fn parse(
        annotations: &BTreeMap<String, String>,
    ) -> Result<EncryptedLayer, EncryptionError> {
        let mut packets = Vec::new();
        let mut messages = Vec::new();
        let mut others = Vec::new();
        for (name, value) in annotations.range(KEYS.to_owned()..) {
            let Some(scheme) = name.strip_prefix(KEYS) else { break };
            match scheme.strip_prefix("provider.") {
                None if scheme == "jwe" => {
                    for json in wrapped(value)? {
                        messages.push(Jwe::parse(&json)?);
                    }
                }
                Some(ATTESTATION_AGENT) => {
                    for json in wrapped(value)? {
                        packets.push(Packet::parse(&json)?);
                    }
                }
                Some(provider) => others.push(format!("the key provider {}", printable(provider))),
                None => others.push(match scheme {
                    "pkcs7" => "PKCS#7 recipients".to_owned(),
                    "pkcs11" => "PKCS#11 recipients".to_owned(),
                    "pgp" => "PGP recipients".to_owned(),
                    unknown => format!("recipients of the unknown kind {}", printable(unknown)),
                }),
            }
            let read = packets.len() + messages.iter().map(Jwe::recipients).sum::<usize>();
            if read + others.len() > RECIPIENT_LIMIT {
                return Err(EncryptionError::TooMany {
                    what: "recipients",
                    limit: RECIPIENT_LIMIT,
                });
            }
        }
        if packets.is_empty() && messages.is_empty() {
            return Err(if others.is_empty() {
                EncryptionError::NoRecipients
            } else {
                EncryptionError::Scheme(others.join(" and "))
            });
        }
        let public = annotations.get(PUBLIC_OPTIONS);
        let public = public
            .ok_or(EncryptionError::Malformed("the annotation enc.pubopts (it is absent)"))?;
        Ok(EncryptedLayer { public: Public::parse(public)?, packets, messages, others })
    }

    /// The keys of the broker, each of which opens the layer: `kbs:///repository/type/tag`.
    #[must_use]
    pub fn key_ids(&self) -> Vec<String> {
        self.packets.iter().map(|packet| packet.key_id.to_string()).collect()
    }

    /// Whether private keys may open the layer: it is encrypted for somebody by JSON web encryption.
    #[must_use]
    pub fn takes_private_keys(&self) -> bool {
        !self.messages.is_empty()
    }

    /// Whom it is encrypted for, to be shown. The names are the sender's words.
    #[must_use]
    pub fn recipients(&self) -> Vec<String> {
        let keys = self.packets.iter().map(|packet| packet.key_id.to_string());
        let messages = self.messages.iter().flat_map(Jwe::describe);
        keys.chain(messages).chain(self.others.iter().cloned()).collect()
    }

    /// The cipher of the layer, by the first key that opens it.
    ///
    /// # Errors
    /// If none does.
    pub fn unwrap(&self, keys: &KeyRing) -> Result<LayerCipher, EncryptionError> {
        let mut tried = 0;
        for packet in &self.packets {
            if let Some(key) = keys.provider_key(&packet.key_id) {
                tried += 1;
                if let Ok(private) = packet.unwrap(key) {
                    return Ok(LayerCipher::new(&private, &self.public));
                }
            }
        }
        for message in &self.messages {
            let (private, attempts) = message.unwrap(keys.private_keys());
            tried += attempts;
            if let Some(private) = private {
                return Ok(LayerCipher::new(&private, &self.public));
            }
        }
        Err(EncryptionError::NoKey { recipients: self.recipients().join(", "), tried })
    }
}

/// `annotations` without those about encryption: what a layer keeps that is decrypted or encrypted anew.
pub(crate) fn without_encryption(
    annotations: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let others = annotations.iter().filter(|(name, _)| !name.starts_with(PREFIX));
    others.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The values of one annotation: base64, with commas between them.
fn wrapped(value: &str) -> Result<Vec<Vec<u8>>, EncryptionError> {
    const WHAT: &str = "an annotation enc.keys";
    if value.len() > ANNOTATION_LIMIT {
        return Err(EncryptionError::TooLarge { what: WHAT, limit: ANNOTATION_LIMIT });
    }
    let values: Vec<&str> = value.split(',').collect();
    if values.len() > RECIPIENT_LIMIT {
        return Err(EncryptionError::TooMany { what: "recipients", limit: RECIPIENT_LIMIT });
    }
    let decode = |value: &&str| Ok(base64(WHAT, value, ANNOTATION_LIMIT)?.to_vec());
    values.iter().map(decode).collect()
}

/// The value of an annotation with these wrapped keys.
pub(crate) fn value(wrapped: &[Vec<u8>]) -> String {
    let encoded: Vec<String> = wrapped.iter().map(to_base64).collect();
    encoded.join(",")
}
