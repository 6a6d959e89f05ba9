//! Public keys of version 4 (RFC 9580, section 5.5.2), and what their signatures are.

use std::fmt;

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, SHA384, SHA512, digest};
use ring::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey};

use super::packet::Reader;

/// Hash functions that are accepted (section 9.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    pub(super) fn of_number(number: u8) -> Result<Self, String> {
        match number {
            8 => Ok(Self::Sha256),
            9 => Ok(Self::Sha384),
            10 => Ok(Self::Sha512),
            1..=3 => Err("it uses a hash function that is broken (SHA-1 or older)".into()),
            _ => Err(format!("it uses hash function {number}, which is not supported")),
        }
    }
}

/// Material of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PublicKey {
    material: Material,
    body: Vec<u8>,
    /// Seconds since 1970.
    pub(super) created: i64,
    pub(super) fingerprint: Fingerprint,
}

/// SHA-1 of the key (section 5.5.4.2). Only tells keys apart: which of them are trusted, the policy
/// says by giving them whole.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint([u8; 20]);

impl Fingerprint {
    pub(super) fn key_id(&self) -> &[u8] {
        &self.0[12..]
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode_upper(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
const ED25519: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x0f, 0x01];

impl PublicKey {
    /// `None`: of a kind that is not supported, for example one that only decrypts.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let mut reader = Reader(body);
        if reader.byte()? != 4 {
            return None;
        }
        let created = i64::try_from(reader.number(4)?).ok()?;
        let material = match reader.byte()? {
            1 | 3 => {
                let (n, e) = (reader.mpi()?.to_vec(), reader.mpi()?.to_vec());
                Material::Rsa { n, e }
            }
            19 => {
                let curve = oid(&mut reader)?;
                let point = reader.mpi()?.to_vec();
                match (curve, point.len()) {
                    (P256, 65) => Material::P256(point),
                    (P384, 97) => Material::P384(point),
                    _ => return None,
                }
            }
            22 if oid(&mut reader)? == ED25519 => {
                // 0x40: the point is as Ed25519 has it.
                let [0x40, point @ ..] = reader.mpi()? else { return None };
                Material::Ed25519(point.to_vec())
            }
            27 => Material::Ed25519(reader.take(32)?.to_vec()),
            _ => return None,
        };
        if !reader.0.is_empty() {
            return None;
        }
        let fingerprint = digest(&SHA1_FOR_LEGACY_USE_ONLY, &prefixed(body)?);
        let fingerprint = Fingerprint(fingerprint.as_ref().try_into().ok()?);
        Some(Self { material, body: body.to_vec(), created, fingerprint })
    }

    /// As signatures over keys have it.
    pub(super) fn hashed(&self) -> Vec<u8> {
        prefixed(&self.body).unwrap_or_default()
    }

    /// Whether the signature, whose numbers are `numbers`, is this key's over `message`.
    pub(super) fn verifies(&self, hash: Hash, message: &[u8], numbers: &[u8]) -> bool {
        self.check(hash, message, numbers).is_some()
    }

    fn check(&self, hash: Hash, message: &[u8], numbers: &[u8]) -> Option<()> {
        let mut reader = Reader(numbers);
        match &self.material {
            Material::Rsa { n, e } => {
                let signature = padded(reader.mpi()?, n.len())?;
                let algorithm: &RsaParameters = match hash {
                    Hash::Sha256 => &signature::RSA_PKCS1_2048_8192_SHA256,
                    Hash::Sha384 => &signature::RSA_PKCS1_2048_8192_SHA384,
                    Hash::Sha512 => &signature::RSA_PKCS1_2048_8192_SHA512,
                };
                RsaPublicKeyComponents { n, e }.verify(algorithm, message, &signature).ok()
            }
            Material::P256(point) if hash == Hash::Sha256 => {
                let signature = pair(&mut reader, 32)?;
                let key = UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point);
                key.verify(message, &signature).ok()
            }
            Material::P384(point) if hash == Hash::Sha384 => {
                let signature = pair(&mut reader, 48)?;
                let key = UnparsedPublicKey::new(&signature::ECDSA_P384_SHA384_FIXED, point);
                key.verify(message, &signature).ok()
            }
            Material::P256(_) | Material::P384(_) => None,
            Material::Ed25519(point) => {
                // Native signatures are 64 bytes; the older form has two numbers.
                let signature = match numbers.len() {
                    64 => numbers.to_vec(),
                    _ => pair(&mut reader, 32)?,
                };
                let digest = match hash {
                    Hash::Sha256 => digest(&SHA256, message),
                    Hash::Sha384 => digest(&SHA384, message),
                    Hash::Sha512 => digest(&SHA512, message),
                };
                let key = UnparsedPublicKey::new(&signature::ED25519, point);
                key.verify(digest.as_ref(), &signature).ok()
            }
        }
    }
}

/// `0x99`, the length in two bytes, the body (section 5.2.4).
fn prefixed(body: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(body.len()).ok()?.to_be_bytes();
    Some([&[0x99], length.as_slice(), body].concat())
}

fn oid<'a>(reader: &mut Reader<'a>) -> Option<&'a [u8]> {
    let length = reader.number(1)?;
    reader.take(length)
}

/// Numbers are written without leading zeros.
fn padded(number: &[u8], length: usize) -> Option<Vec<u8>> {
    let zeros = length.checked_sub(number.len())?;
    Some([vec![0; zeros].as_slice(), number].concat())
}

fn pair(reader: &mut Reader<'_>, length: usize) -> Option<Vec<u8>> {
    let first = padded(reader.mpi()?, length)?;
    let second = padded(reader.mpi()?, length)?;
    Some([first, second].concat())
}
