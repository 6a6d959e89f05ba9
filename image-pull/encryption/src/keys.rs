//! Keys of recipients of JSON web encryption, in the forms that `ocicrypt` takes.

use p256::NistP256;
use p256::elliptic_curve::ecdh::diffie_hellman;
use p256::elliptic_curve::sec1::{FromEncodedPoint, ModulusSize, ToEncodedPoint};
use p256::elliptic_curve::{self, AffinePoint, CurveArithmetic, FieldBytesSize};
use p256::pkcs8::{DecodePrivateKey as _, DecodePublicKey as _, SecretDocument};
use p384::NistP384;
use p521::NistP521;
use rand_core::OsRng;
use rsa::pkcs1::{DecodeRsaPrivateKey as _, DecodeRsaPublicKey as _};
use rsa::traits::PublicKeyParts as _;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::EncryptionError;
use crate::encoding::base64url;

/// Largest file with a key, in bytes.
const KEY_FILE_LIMIT: usize = 16 * 1024;
/// Longest member of a JSON web key, in bytes: a modulus of 4096 bits.
const MEMBER_LIMIT: usize = 512;
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

const PRIVATE_FORMS: &str = "a private key is PKCS#8, SEC 1 or PKCS#1 (PEM or DER) or a JSON web key, on \
                             P-256, P-384 or P-521 or RSA";
const PUBLIC_FORMS: &str = "a public key is a SubjectPublicKeyInfo (PEM or DER), PKCS#1 or a JSON web key, \
                            on P-256, P-384 or P-521 or RSA";
const LOCKED: &str =
    "it is encrypted with a passphrase; decrypt it first (openssl pkcs8 -in KEY -out NEW)";
const SIZE: &str = "an RSA key has 2048 to 4096 bits";
const OTHER_KEY: EncryptionError = EncryptionError::Key("it is of another kind");
const OPENS_NOTHING: EncryptionError = EncryptionError::Key("it opens nothing");

pub(crate) const P256: &str = "P-256";
pub(crate) const P384: &str = "P-384";
pub(crate) const P521: &str = "P-521";

type SecretKey<C> = elliptic_curve::SecretKey<C>;

/// Opens layers. No `Debug`; every kind wipes itself.
pub(crate) enum PrivateKey {
    P256(SecretKey<NistP256>),
    P384(SecretKey<NistP384>),
    P521(SecretKey<NistP521>),
    Rsa(Box<rsa::RsaPrivateKey>),
}

/// Public key of a recipient, to whom layers are encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(pub(crate) Public);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Public {
    P256(elliptic_curve::PublicKey<NistP256>),
    P384(elliptic_curve::PublicKey<NistP384>),
    P521(elliptic_curve::PublicKey<NistP521>),
    Rsa(rsa::RsaPublicKey),
}

/// Padding of RSA-OAEP: the hash tells two algorithms of JOSE apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Oaep {
    /// RSA-OAEP, which `ocicrypt` writes.
    Sha1,
    /// RSA-OAEP-256.
    Sha256,
}

impl Oaep {
    fn padding(self) -> rsa::Oaep {
        match self {
            Oaep::Sha1 => rsa::Oaep::new::<sha1::Sha1>(),
            Oaep::Sha256 => rsa::Oaep::new::<sha2::Sha256>(),
        }
    }
}

/// The sender's ephemeral public key: a point that is not yet known to be on its curve.
pub(crate) struct Point<'a> {
    pub(crate) curve: &'a str,
    pub(crate) x: &'a [u8],
    pub(crate) y: &'a [u8],
}

/// What a new ephemeral key and a recipient agree on.
pub(crate) struct Agreement {
    pub(crate) curve: &'static str,
    /// Of the ephemeral key, as long as its curve's field.
    pub(crate) x: Vec<u8>,
    pub(crate) y: Vec<u8>,
    pub(crate) z: Zeroizing<Vec<u8>>,
}

impl PrivateKey {
    pub(crate) fn parse(file: &[u8]) -> Result<PrivateKey, EncryptionError> {
        match Form::of(file)? {
            Form::Jwk(json) => json.private(),
            Form::Pem(label, der) => match label.as_str() {
                "PRIVATE KEY" => PrivateKey::from_pkcs8(&der),
                "EC PRIVATE KEY" => PrivateKey::from_sec1(&der),
                "RSA PRIVATE KEY" => PrivateKey::from_pkcs1(&der),
                "ENCRYPTED PRIVATE KEY" => Err(EncryptionError::Key(LOCKED)),
                _ => Err(EncryptionError::Key(PRIVATE_FORMS)),
            },
            Form::Der(der) => PrivateKey::from_pkcs8(der)
                .or_else(|_| PrivateKey::from_sec1(der))
                .or_else(|_| PrivateKey::from_pkcs1(der)),
        }
    }

    fn from_pkcs8(der: &[u8]) -> Result<PrivateKey, EncryptionError> {
        if let Ok(key) = SecretKey::from_pkcs8_der(der) {
            Ok(PrivateKey::P256(key))
        } else if let Ok(key) = SecretKey::from_pkcs8_der(der) {
            Ok(PrivateKey::P384(key))
        } else if let Ok(key) = SecretKey::from_pkcs8_der(der) {
            Ok(PrivateKey::P521(key))
        } else {
            PrivateKey::rsa(rsa::RsaPrivateKey::from_pkcs8_der(der).ok())
        }
    }

    /// The length tells the curve.
    fn from_sec1(der: &[u8]) -> Result<PrivateKey, EncryptionError> {
        if let Ok(key) = SecretKey::from_sec1_der(der) {
            Ok(PrivateKey::P256(key))
        } else if let Ok(key) = SecretKey::from_sec1_der(der) {
            Ok(PrivateKey::P384(key))
        } else {
            let key = SecretKey::from_sec1_der(der);
            key.map(PrivateKey::P521).map_err(|_| EncryptionError::Key(PRIVATE_FORMS))
        }
    }

    fn from_pkcs1(der: &[u8]) -> Result<PrivateKey, EncryptionError> {
        PrivateKey::rsa(rsa::RsaPrivateKey::from_pkcs1_der(der).ok())
    }

    fn rsa(key: Option<rsa::RsaPrivateKey>) -> Result<PrivateKey, EncryptionError> {
        let key = key.ok_or(EncryptionError::Key(PRIVATE_FORMS))?;
        if !RSA_BITS.contains(&key.n().bits()) {
            return Err(EncryptionError::Key(SIZE));
        }
        Ok(PrivateKey::Rsa(Box::new(key)))
    }

    pub(crate) fn curve(&self) -> Option<&'static str> {
        match self {
            PrivateKey::P256(_) => Some(P256),
            PrivateKey::P384(_) => Some(P384),
            PrivateKey::P521(_) => Some(P521),
            PrivateKey::Rsa(_) => None,
        }
    }

    /// Z of ECDH with the sender's key (SEC 1, section 3.3.1): the x coordinate.
    pub(crate) fn agree(&self, peer: &Point<'_>) -> Result<Zeroizing<Vec<u8>>, EncryptionError> {
        match (self, peer.curve) {
            (PrivateKey::P256(key), P256) => agree(key, peer),
            (PrivateKey::P384(key), P384) => agree(key, peer),
            (PrivateKey::P521(key), P521) => agree(key, peer),
            _ => Err(OTHER_KEY),
        }
    }

    /// Blinded. All failures are one error.
    pub(crate) fn unwrap_rsa(
        &self,
        oaep: Oaep,
        wrapped: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, EncryptionError> {
        let PrivateKey::Rsa(key) = self else { return Err(OTHER_KEY) };
        let opened = key.decrypt_blinded(&mut OsRng, oaep.padding(), wrapped);
        opened.map(Zeroizing::new).map_err(|_| OPENS_NOTHING)
    }
}

impl PublicKey {
    /// A public key in PEM or DER (`SubjectPublicKeyInfo`, PKCS#1) or as a JSON web key: P-256, P-384, P-521,
    /// or RSA of 2048 to 4096 bits.
    ///
    /// # Errors
    /// If it is none of these.
    pub fn parse(file: &[u8]) -> Result<PublicKey, EncryptionError> {
        let key = match Form::of(file)? {
            Form::Jwk(json) => json.public(),
            Form::Pem(label, der) => match label.as_str() {
                "PUBLIC KEY" => Public::from_spki(&der),
                "RSA PUBLIC KEY" => Public::rsa(rsa::RsaPublicKey::from_pkcs1_der(&der).ok()),
                _ => Err(EncryptionError::Key(PUBLIC_FORMS)),
            },
            Form::Der(der) => Public::from_spki(der)
                .or_else(|_| Public::rsa(rsa::RsaPublicKey::from_pkcs1_der(der).ok())),
        };
        key.map(PublicKey)
    }

    /// What kind of key it is, to be shown.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.0 {
            Public::P256(_) => P256,
            Public::P384(_) => P384,
            Public::P521(_) => P521,
            Public::Rsa(_) => "RSA",
        }
    }
}

impl Public {
    fn from_spki(der: &[u8]) -> Result<Public, EncryptionError> {
        if let Ok(key) = elliptic_curve::PublicKey::from_public_key_der(der) {
            Ok(Public::P256(key))
        } else if let Ok(key) = elliptic_curve::PublicKey::from_public_key_der(der) {
            Ok(Public::P384(key))
        } else if let Ok(key) = elliptic_curve::PublicKey::from_public_key_der(der) {
            Ok(Public::P521(key))
        } else {
            Public::rsa(rsa::RsaPublicKey::from_public_key_der(der).ok())
        }
    }

    fn rsa(key: Option<rsa::RsaPublicKey>) -> Result<Public, EncryptionError> {
        let key = key.ok_or(EncryptionError::Key(PUBLIC_FORMS))?;
        if RSA_BITS.contains(&key.n().bits()) {
            Ok(Public::Rsa(key))
        } else {
            Err(EncryptionError::Key(SIZE))
        }
    }

    /// With a new ephemeral key. `None` for RSA.
    pub(crate) fn agree(&self) -> Option<Agreement> {
        match self {
            Public::P256(key) => Some(agree_anew(P256, key)),
            Public::P384(key) => Some(agree_anew(P384, key)),
            Public::P521(key) => Some(agree_anew(P521, key)),
            Public::Rsa(_) => None,
        }
    }
}

pub(crate) fn wrap_rsa(
    key: &rsa::RsaPublicKey,
    oaep: Oaep,
    content_key: &[u8],
) -> Result<Vec<u8>, EncryptionError> {
    key.encrypt(&mut OsRng, oaep.padding(), content_key).map_err(|_| EncryptionError::Library)
}

/// `peer` is checked to be on the curve; the curves have a cofactor of one.
fn agree<C>(key: &SecretKey<C>, peer: &Point<'_>) -> Result<Zeroizing<Vec<u8>>, EncryptionError>
where
    C: CurveArithmetic,
    FieldBytesSize<C>: ModulusSize,
    AffinePoint<C>: FromEncodedPoint<C> + ToEncodedPoint<C>,
{
    let peer = point::<C>(peer.x, peer.y)?;
    let z = diffie_hellman(key.to_nonzero_scalar(), peer.as_affine());
    Ok(Zeroizing::new(z.raw_secret_bytes().to_vec()))
}

fn agree_anew<C>(curve: &'static str, peer: &elliptic_curve::PublicKey<C>) -> Agreement
where
    C: CurveArithmetic,
    FieldBytesSize<C>: ModulusSize,
    AffinePoint<C>: FromEncodedPoint<C> + ToEncodedPoint<C>,
{
    let own = SecretKey::<C>::random(&mut OsRng);
    let z = diffie_hellman(own.to_nonzero_scalar(), peer.as_affine());
    let public = own.public_key().to_encoded_point(false);
    // Uncompressed: 04, x, y.
    let (x, y) = public.as_bytes()[1..].split_at((public.as_bytes().len() - 1) / 2);
    let (x, y) = (x.to_vec(), y.to_vec());
    Agreement { curve, x, y, z: Zeroizing::new(z.raw_secret_bytes().to_vec()) }
}

fn point<C>(x: &[u8], y: &[u8]) -> Result<elliptic_curve::PublicKey<C>, EncryptionError>
where
    C: CurveArithmetic,
    FieldBytesSize<C>: ModulusSize,
    AffinePoint<C>: FromEncodedPoint<C> + ToEncodedPoint<C>,
{
    // SEC 1, section 2.3.3.
    let encoded = [&[4], x, y].concat();
    let malformed = EncryptionError::Key("it is no point of its curve");
    if x.len() != y.len() {
        return Err(malformed);
    }
    elliptic_curve::PublicKey::from_sec1_bytes(&encoded).map_err(|_| malformed)
}

enum Form<'a> {
    Jwk(JwkJson),
    Pem(String, Zeroizing<Vec<u8>>),
    Der(&'a [u8]),
}

impl Form<'_> {
    fn of(file: &[u8]) -> Result<Form<'_>, EncryptionError> {
        const BEGIN: &str = "-----BEGIN ";
        if file.len() > KEY_FILE_LIMIT {
            return Err(EncryptionError::TooLarge { what: "a key", limit: KEY_FILE_LIMIT });
        }
        let Ok(text) = str::from_utf8(file) else { return Ok(Form::Der(file)) };
        if text.trim_start().starts_with('{') {
            let json = serde_json::from_str(text);
            return json.map(Form::Jwk).map_err(|_| EncryptionError::Malformed("the key (JWK)"));
        }
        // Parameters of a curve may precede its key.
        let mut blocks = text.match_indices(BEGIN).map(|(at, _)| &text[at..]);
        let block = blocks.find(|block| !block.starts_with("-----BEGIN EC PARAMETERS"));
        let Some(block) = block else { return Ok(Form::Der(file)) };
        let malformed = || EncryptionError::Malformed("the key (PEM)");
        let end = block.find("-----END ").ok_or_else(malformed)?;
        let end = block[end..].find('\n').map_or(block.len(), |line| end + line);
        let (label, document) =
            SecretDocument::from_pem(block[..end].trim_end()).map_err(|_| malformed())?;
        Ok(Form::Pem(label.to_owned(), Zeroizing::new(document.as_bytes().to_vec())))
    }
}

/// RFC 7518, section 6. What a key is said to be for is not read: it is used for what it is given for.
#[derive(Deserialize)]
struct JwkJson {
    kty: String,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
    d: Option<Wiped>,
    p: Option<Wiped>,
    q: Option<Wiped>,
}

#[derive(Deserialize)]
#[serde(from = "String")]
struct Wiped(Zeroizing<String>);

impl From<String> for Wiped {
    fn from(text: String) -> Wiped {
        Wiped(Zeroizing::new(text))
    }
}

fn member(text: Option<&str>) -> Result<Zeroizing<Vec<u8>>, EncryptionError> {
    const WHAT: &str = "the key (JWK)";
    base64url(WHAT, text.ok_or(EncryptionError::Malformed(WHAT))?, MEMBER_LIMIT)
}

impl JwkJson {
    fn private(&self) -> Result<PrivateKey, EncryptionError> {
        let secret = |wiped: &Option<Wiped>| member(wiped.as_ref().map(|wiped| wiped.0.as_str()));
        let invalid = |_| EncryptionError::Key(PRIVATE_FORMS);
        match (self.kty.as_str(), self.crv.as_deref()) {
            ("EC", Some(P256)) => {
                SecretKey::from_slice(&secret(&self.d)?).map(PrivateKey::P256).map_err(invalid)
            }
            ("EC", Some(P384)) => {
                SecretKey::from_slice(&secret(&self.d)?).map(PrivateKey::P384).map_err(invalid)
            }
            ("EC", Some(P521)) => {
                SecretKey::from_slice(&secret(&self.d)?).map(PrivateKey::P521).map_err(invalid)
            }
            ("RSA", None) => {
                let number = |bytes: &[u8]| rsa::BigUint::from_bytes_be(bytes);
                let key = rsa::RsaPrivateKey::from_components(
                    number(&member(self.n.as_deref())?),
                    number(&member(self.e.as_deref())?),
                    number(&secret(&self.d)?),
                    vec![number(&secret(&self.p)?), number(&secret(&self.q)?)],
                );
                PrivateKey::rsa(key.ok())
            }
            _ => Err(EncryptionError::Key(PRIVATE_FORMS)),
        }
    }

    fn public(&self) -> Result<Public, EncryptionError> {
        let xy = || Ok((member(self.x.as_deref())?, member(self.y.as_deref())?));
        match (self.kty.as_str(), self.crv.as_deref()) {
            ("EC", Some(P256)) => xy().and_then(|(x, y)| point(&x, &y)).map(Public::P256),
            ("EC", Some(P384)) => xy().and_then(|(x, y)| point(&x, &y)).map(Public::P384),
            ("EC", Some(P521)) => xy().and_then(|(x, y)| point(&x, &y)).map(Public::P521),
            ("RSA", None) => {
                let n = rsa::BigUint::from_bytes_be(&member(self.n.as_deref())?);
                let e = rsa::BigUint::from_bytes_be(&member(self.e.as_deref())?);
                Public::rsa(rsa::RsaPublicKey::new(n, e).ok())
            }
            _ => Err(EncryptionError::Key(PUBLIC_FORMS)),
        }
    }
}
