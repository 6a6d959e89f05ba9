//! Public keys of signers, logs and authorities. Verification is ring's.

use std::fmt;

use nacre_trust::{Algorithm, Digest};
use ring::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject as _;
use x509_cert::der::Decode as _;
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::spki::SubjectPublicKeyInfoRef;

/// Largest key file, in bytes.
const KEY_LIMIT: usize = 16 * 1024;

const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// Kinds of keys, and what their signatures may be. Signers differ in the hash function that they
/// take for one kind of key, and no signature says which, so the usual ones are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    P256,
    P384,
    Ed25519,
    Rsa,
}

static P256_SIGNATURES: [&dyn VerificationAlgorithm; 2] =
    [&signature::ECDSA_P256_SHA256_ASN1, &signature::ECDSA_P256_SHA384_ASN1];
static P384_SIGNATURES: [&dyn VerificationAlgorithm; 2] =
    [&signature::ECDSA_P384_SHA384_ASN1, &signature::ECDSA_P384_SHA256_ASN1];
static ED25519_SIGNATURES: [&dyn VerificationAlgorithm; 1] = [&signature::ED25519];
static RSA_SIGNATURES: [&dyn VerificationAlgorithm; 6] = [
    &signature::RSA_PKCS1_2048_8192_SHA256,
    &signature::RSA_PSS_2048_8192_SHA256,
    &signature::RSA_PKCS1_2048_8192_SHA384,
    &signature::RSA_PSS_2048_8192_SHA384,
    &signature::RSA_PKCS1_2048_8192_SHA512,
    &signature::RSA_PSS_2048_8192_SHA512,
];

impl Kind {
    fn signatures(self) -> &'static [&'static dyn VerificationAlgorithm] {
        match self {
            Self::P256 => &P256_SIGNATURES,
            Self::P384 => &P384_SIGNATURES,
            Self::Ed25519 => &ED25519_SIGNATURES,
            Self::Rsa => &RSA_SIGNATURES,
        }
    }
}

/// A public key.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct PublicKey {
    kind: Kind,
    /// As ring takes it: a point, or an `RSAPublicKey`.
    bytes: Vec<u8>,
    spki: Vec<u8>,
}

impl PublicKey {
    /// A `PUBLIC KEY` in PEM, and nothing else beside it; or DER.
    pub(crate) fn from_file(file: &[u8]) -> Result<Self, String> {
        if file.len() > KEY_LIMIT {
            return Err(format!("a key file has at most {KEY_LIMIT} bytes"));
        }
        if file.first() == Some(&0x30) {
            return Self::from_spki(file);
        }
        let mut keys = SubjectPublicKeyInfoDer::pem_slice_iter(file);
        let form = || "not a public key: -----BEGIN PUBLIC KEY----- is expected".to_owned();
        let key = keys.next().ok_or_else(form)?.map_err(|_| form())?;
        if keys.next().is_some() {
            return Err("more than one public key in one file; name each by itself".into());
        }
        Self::from_spki(&key)
    }

    /// A `SubjectPublicKeyInfo` (RFC 5280, section 4.1.2.7).
    pub(crate) fn from_spki(spki: &[u8]) -> Result<Self, String> {
        let info = SubjectPublicKeyInfoRef::from_der(spki)
            .map_err(|error| format!("not a public key: {error}"))?;
        let curve = || info.algorithm.parameters_oid();
        let bytes = info.subject_public_key.as_bytes().ok_or("not a public key: odd bits")?;
        let oid = info.algorithm.oid;
        let (kind, fits) = if oid == EC && curve() == Ok(P256) {
            (Kind::P256, bytes.len() == 65)
        } else if oid == EC && curve() == Ok(P384) {
            (Kind::P384, bytes.len() == 97)
        } else if oid == ED25519 {
            (Kind::Ed25519, bytes.len() == 32)
        } else if oid == RSA {
            (Kind::Rsa, bytes.len() <= 1100)
        } else {
            return Err("not a supported key: ECDSA P-256 or P-384, Ed25519 or RSA".into());
        };
        if !fits {
            return Err("not a public key: of a wrong length".into());
        }
        Ok(Self { kind, bytes: bytes.to_vec(), spki: spki.to_vec() })
    }

    /// Whether `signature` is this key's over `message`.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.kind.signatures().iter().any(|algorithm| {
            UnparsedPublicKey::new(*algorithm, &self.bytes).verify(message, signature).is_ok()
        })
    }

    /// As `SubjectPublicKeyInfo`.
    pub(crate) fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// SHA-256 of the key: how transparency logs name themselves.
    pub(crate) fn id(&self) -> [u8; 32] {
        match Digest::of(Algorithm::Sha256, &self.spki) {
            Digest::Sha256(id) => id,
            Digest::Sha512(_) => unreachable!("asked for SHA-256"),
        }
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {}..", hex::encode(&self.id()[..6]))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::PublicKey;
    use rcgen::PublicKeyData as _;
    use ring::rand::SystemRandom;
    use ring::signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair,
        Ed25519KeyPair,
    };

    #[test]
    fn each_kind_verifies_its_own_signatures_only() {
        let random = SystemRandom::new();
        let mut keys = Vec::new();
        for algorithm in
            [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519]
        {
            let pair = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let der = pair.serialize_der();
            let signature = if algorithm == &rcgen::PKCS_ECDSA_P256_SHA256 {
                let alg = &ECDSA_P256_SHA256_ASN1_SIGNING;
                let pair = EcdsaKeyPair::from_pkcs8(alg, &der, &random).unwrap();
                pair.sign(&random, b"message").unwrap().as_ref().to_vec()
            } else if algorithm == &rcgen::PKCS_ECDSA_P384_SHA384 {
                let alg = &ECDSA_P384_SHA384_ASN1_SIGNING;
                let pair = EcdsaKeyPair::from_pkcs8(alg, &der, &random).unwrap();
                pair.sign(&random, b"message").unwrap().as_ref().to_vec()
            } else {
                let pair = Ed25519KeyPair::from_pkcs8(&der).unwrap();
                pair.sign(b"message").as_ref().to_vec()
            };
            let key = PublicKey::from_file(pair.public_key_pem().as_bytes()).unwrap();
            assert_eq!(key, PublicKey::from_file(&pair.subject_public_key_info()).unwrap());
            keys.push((key, signature));
        }
        for (at, (key, _)) in keys.iter().enumerate() {
            for (by, (_, signature)) in keys.iter().enumerate() {
                assert_eq!(key.verifies(b"message", signature), at == by);
                assert!(!key.verifies(b"massage", signature));
            }
        }
    }

    #[test]
    fn files_hold_one_supported_key() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let pem = pair.public_key_pem();
        for (file, problem) in [
            (format!("{pem}{pem}"), "more than one"),
            (String::new(), "not a public key"),
            (pair.serialize_pem(), "not a public key"),
            (pem.replace('M', "N"), "not a public key"),
            ("x".repeat(20_000), "at most"),
        ] {
            let error = PublicKey::from_file(file.as_bytes()).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }
}
