//! JSON web encryption (RFC 7516) of a layer's private options, as `ocicrypt` writes it: general or flattened
//! JSON, content encrypted by A256GCM, its key for each recipient by ECDH-ES+A256KW (RFC 7518, section 4.6)
//! or RSA-OAEP (section 4.3).

use nacre_jose::jwe::{ECDH_ES_A256KW, RSA_OAEP_256};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::encoding::{base64url, to_base64url};
use crate::keys::{Oaep, Point, PrivateKey, Public, PublicKey, wrap_rsa};
use crate::options::{PRIVATE_LIMIT, Private};
use crate::{EncryptionError, RECIPIENT_LIMIT};

const RSA_OAEP: &str = "RSA-OAEP";
const A256GCM: &str = "A256GCM";
const SUPPORTED: &str = "ECDH-ES+A256KW, RSA-OAEP and RSA-OAEP-256 with A256GCM are";
const WHAT: &str = "the annotation enc.keys.jwe";
const TAG: usize = 16;
/// Largest protected header, in bytes.
const HEADER_LIMIT: usize = 1024;
/// Longest coordinate: P-521.
const COORDINATE_LIMIT: usize = 66;
/// Longest wrapped key: RSA of 4096 bits.
const WRAPPED_LIMIT: usize = 512;
/// Longest name of a key, in bytes.
const KEY_ID_LIMIT: usize = 256;

/// One message, read but not opened.
pub(crate) struct Jwe {
    /// As it came: it is what the tag is over.
    protected: String,
    aad: Option<String>,
    recipients: Vec<Recipient>,
    iv: [u8; NONCE_LEN],
    /// With the tag.
    ciphertext: Vec<u8>,
}

struct Recipient {
    algorithm: Algorithm,
    wrapped: Vec<u8>,
    key_id: Option<String>,
}

enum Algorithm {
    Agreement { curve: String, x: Vec<u8>, y: Vec<u8> },
    Rsa(Oaep),
}

/// Both serializations. `ocicrypt` writes `encrypted_key` beside `recipients` too, a copy of the first
/// recipient's.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JweJson {
    protected: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unprotected: Option<Header>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    header: Option<Header>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    encrypted_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recipients: Option<Vec<RecipientJson>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    aad: Option<String>,
    iv: String,
    ciphertext: String,
    tag: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecipientJson {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    header: Option<Header>,
    encrypted_key: String,
}

/// The header parameters that are understood. All others are refused: some change what a message means
/// (`zip`, `apu`, `crit`), and none is ever written by `ocicrypt`.
#[derive(Default, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    alg: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    enc: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    epk: Option<Epk>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Epk {
    kty: String,
    crv: String,
    x: String,
    y: String,
}

impl Header {
    /// The parameters of both, which must not repeat each other (RFC 7516, section 7.2.1).
    fn and(self, other: Option<Header>) -> Result<Header, EncryptionError> {
        fn one<T>(a: Option<T>, b: Option<T>) -> Result<Option<T>, EncryptionError> {
            match (a, b) {
                (Some(_), Some(_)) => Err(EncryptionError::Malformed(WHAT)),
                (a, b) => Ok(a.or(b)),
            }
        }
        let Some(other) = other else { return Ok(self) };
        Ok(Header {
            alg: one(self.alg, other.alg)?,
            enc: one(self.enc, other.enc)?,
            kid: one(self.kid, other.kid)?,
            epk: one(self.epk, other.epk)?,
        })
    }
}

impl Jwe {
    pub(crate) fn parse(json: &[u8]) -> Result<Jwe, EncryptionError> {
        let malformed = || EncryptionError::Malformed(WHAT);
        let json: JweJson = serde_json::from_slice(json).map_err(|_| malformed())?;
        let recipients = match (json.recipients, json.encrypted_key) {
            (Some(recipients), _) if json.header.is_none() => recipients,
            (None, Some(encrypted_key)) => {
                vec![RecipientJson { header: json.header, encrypted_key }]
            }
            _ => return Err(malformed()),
        };
        if recipients.len() > RECIPIENT_LIMIT {
            return Err(EncryptionError::TooMany { what: "recipients", limit: RECIPIENT_LIMIT });
        }
        if json.aad.as_ref().is_some_and(|aad| aad.len() > HEADER_LIMIT) {
            return Err(EncryptionError::TooLarge { what: "the aad", limit: HEADER_LIMIT });
        }
        let shared = base64url("the protected header", &json.protected, HEADER_LIMIT)?;
        let shared: Header = serde_json::from_slice(&shared).map_err(|_| malformed())?;
        let shared = shared.and(json.unprotected)?;
        let recipients: Vec<Recipient> = recipients
            .into_iter()
            .map(|recipient| Recipient::of(shared.clone(), recipient))
            .collect::<Result<_, _>>()?;
        let iv = base64url(WHAT, &json.iv, NONCE_LEN)?;
        let tag = base64url(WHAT, &json.tag, TAG)?;
        let ciphertext = base64url(WHAT, &json.ciphertext, PRIVATE_LIMIT)?;
        if recipients.is_empty() || tag.len() != TAG {
            return Err(malformed());
        }
        Ok(Jwe {
            protected: json.protected,
            aad: json.aad,
            recipients,
            iv: iv.as_slice().try_into().map_err(|_| malformed())?,
            ciphertext: [ciphertext.as_slice(), tag.as_slice()].concat(),
        })
    }

    pub(crate) fn recipients(&self) -> usize {
        self.recipients.len()
    }

    /// Whom it is for, to be shown.
    pub(crate) fn describe(&self) -> impl Iterator<Item = String> {
        self.recipients.iter().map(|recipient| {
            let kind = match &recipient.algorithm {
                Algorithm::Agreement { curve, .. } => curve.as_str(),
                Algorithm::Rsa(_) => "RSA",
            };
            match &recipient.key_id {
                Some(id) => format!("jwe ({kind}, key {id})"),
                None => format!("jwe ({kind})"),
            }
        })
    }

    /// The options, if one of `keys` opens them, and how many wrapped keys were tried.
    pub(crate) fn unwrap(&self, keys: &[PrivateKey]) -> (Option<Private>, usize) {
        let mut tried = 0;
        for key in keys {
            for recipient in &self.recipients {
                if !recipient.is_for(key) {
                    continue;
                }
                tried += 1;
                if let Some(private) = self.open(recipient, key) {
                    return (Some(private), tried);
                }
            }
        }
        (None, tried)
    }

    /// Why it does not open is nobody's business.
    fn open(&self, recipient: &Recipient, key: &PrivateKey) -> Option<Private> {
        let content_key = recipient.content_key(key).ok()?;
        // RFC 7516, section 5.1, step 14.
        let authenticated = match &self.aad {
            None => self.protected.clone(),
            Some(aad) => format!("{}.{aad}", self.protected),
        };
        let mut buffer = Zeroizing::new(self.ciphertext.clone());
        let opened = cipher(&content_key).ok()?.open_in_place(
            Nonce::assume_unique_for_key(self.iv),
            Aad::from(authenticated.as_bytes()),
            &mut buffer,
        );
        Private::parse(opened.ok()?).ok()
    }

    /// The JSON of a new message: flattened for one recipient, general for several.
    pub(crate) fn wrap(private: &[u8], keys: &[&PublicKey]) -> Result<Vec<u8>, EncryptionError> {
        let mut content_key = Zeroizing::new([0; 32]);
        let mut iv = [0; NONCE_LEN];
        let random = SystemRandom::new();
        random.fill(content_key.as_mut_slice()).map_err(|_| EncryptionError::Library)?;
        random.fill(&mut iv).map_err(|_| EncryptionError::Library)?;

        let mut recipients = keys
            .iter()
            .map(|key| RecipientJson::wrap(&content_key, key))
            .collect::<Result<Vec<_>, _>>()?;
        let mut shared = Header { enc: Some(A256GCM.to_owned()), ..Header::default() };
        let mut encrypted_key = None;
        let recipients = if recipients.len() == 1 {
            let RecipientJson { header, encrypted_key: wrapped } = recipients.remove(0);
            shared = shared.and(header)?;
            encrypted_key = Some(wrapped);
            None
        } else {
            Some(recipients)
        };

        let protected = serde_json::to_vec(&shared).map_err(|_| EncryptionError::Library)?;
        let protected = to_base64url(protected);
        let mut buffer = Zeroizing::new(private.to_vec());
        let tag = cipher(&content_key)?
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(iv),
                Aad::from(protected.as_bytes()),
                &mut buffer,
            )
            .map_err(|_| EncryptionError::Library)?;
        let json = JweJson {
            protected,
            unprotected: None,
            header: None,
            encrypted_key,
            recipients,
            aad: None,
            iv: to_base64url(iv),
            ciphertext: to_base64url(buffer.as_slice()),
            tag: to_base64url(tag),
        };
        serde_json::to_vec(&json).map_err(|_| EncryptionError::Library)
    }
}

impl Recipient {
    fn of(shared: Header, json: RecipientJson) -> Result<Recipient, EncryptionError> {
        let malformed = || EncryptionError::Malformed(WHAT);
        let Header { alg, enc, kid, epk } = shared.and(json.header)?;
        let (alg, enc) = (alg.ok_or_else(malformed)?, enc.ok_or_else(malformed)?);
        if enc != A256GCM {
            return Err(EncryptionError::unsupported("the content encryption", &enc, SUPPORTED));
        }
        if kid.as_ref().is_some_and(|kid| kid.len() > KEY_ID_LIMIT) {
            return Err(EncryptionError::TooLarge {
                what: "the name of a key",
                limit: KEY_ID_LIMIT,
            });
        }
        let algorithm = match (alg.as_str(), epk) {
            (ECDH_ES_A256KW, Some(epk)) if epk.kty == "EC" => Algorithm::Agreement {
                x: base64url(WHAT, &epk.x, COORDINATE_LIMIT)?.to_vec(),
                y: base64url(WHAT, &epk.y, COORDINATE_LIMIT)?.to_vec(),
                curve: crate::error::printable(&epk.crv),
            },
            (RSA_OAEP, None) => Algorithm::Rsa(Oaep::Sha1),
            (RSA_OAEP_256, None) => Algorithm::Rsa(Oaep::Sha256),
            (ECDH_ES_A256KW | RSA_OAEP | RSA_OAEP_256, _) => return Err(malformed()),
            (other, _) => {
                return Err(EncryptionError::unsupported("the algorithm", other, SUPPORTED));
            }
        };
        Ok(Recipient {
            algorithm,
            wrapped: base64url(WHAT, &json.encrypted_key, WRAPPED_LIMIT)?.to_vec(),
            key_id: kid.as_deref().map(crate::error::printable),
        })
    }

    fn is_for(&self, key: &PrivateKey) -> bool {
        match (&self.algorithm, key) {
            (Algorithm::Rsa(_), PrivateKey::Rsa(_)) => true,
            (Algorithm::Agreement { curve, .. }, key) => key.curve() == Some(curve.as_str()),
            (Algorithm::Rsa(_), _) => false,
        }
    }

    fn content_key(&self, key: &PrivateKey) -> Result<Zeroizing<[u8; 32]>, EncryptionError> {
        match &self.algorithm {
            Algorithm::Agreement { curve, x, y } => {
                let z = key.agree(&Point { curve, x, y })?;
                let opened = nacre_jose::jwe::unwrap(&z, &self.wrapped);
                opened.map_err(|_| EncryptionError::Key("it opens nothing"))
            }
            Algorithm::Rsa(oaep) => {
                // RFC 7516, section 11.5: whether padding and length were right must not show, not in the
                // time it takes either; so the next step is done with some key in any case.
                let mut content_key = Zeroizing::new([0; 32]);
                let random = SystemRandom::new();
                random.fill(content_key.as_mut_slice()).map_err(|_| EncryptionError::Library)?;
                if let Ok(opened) = key.unwrap_rsa(*oaep, &self.wrapped)
                    && opened.len() == content_key.len()
                {
                    content_key.copy_from_slice(&opened);
                }
                Ok(content_key)
            }
        }
    }
}

impl RecipientJson {
    fn wrap(content_key: &[u8; 32], key: &PublicKey) -> Result<RecipientJson, EncryptionError> {
        if let Public::Rsa(key) = &key.0 {
            let wrapped = wrap_rsa(key, Oaep::Sha1, content_key)?;
            let header = Header { alg: Some(RSA_OAEP.to_owned()), ..Header::default() };
            return Ok(RecipientJson {
                header: Some(header),
                encrypted_key: to_base64url(wrapped),
            });
        }
        let agreed = key.0.agree().ok_or(EncryptionError::Library)?;
        let wrapped = nacre_jose::jwe::wrap(&agreed.z, content_key);
        let epk = Epk {
            kty: "EC".to_owned(),
            crv: agreed.curve.to_owned(),
            x: to_base64url(agreed.x),
            y: to_base64url(agreed.y),
        };
        let alg = Some(ECDH_ES_A256KW.to_owned());
        Ok(RecipientJson {
            header: Some(Header { alg, epk: Some(epk), ..Header::default() }),
            encrypted_key: to_base64url(wrapped.map_err(|_| EncryptionError::Library)?),
        })
    }
}

fn cipher(key: &[u8; 32]) -> Result<LessSafeKey, EncryptionError> {
    let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| EncryptionError::Library)?;
    Ok(LessSafeKey::new(key))
}
