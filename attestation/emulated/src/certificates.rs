//! The three certificates of a development root, in the form of AMD's (VCEK Certificate and KDS
//! Interface Specification, 57230): root key (ARK), its intermediate (ASK), and the key of one chip
//! (VCEK), whose extensions say which chip it is and which firmware it runs.
//!
//! Names say that this is no AMD key. The keys of ARK and ASK are gone once the VCEK is signed.

use std::time::{Duration, SystemTime};

use der::asn1::{BitString, GeneralizedTime, OctetString, SetOfVec, Utf8StringRef};
use der::oid::db::{rfc4519, rfc5280, rfc5912};
use der::{Any, Decode, Encode};
use nacre_evidence::snp::Tcb;
use p384::ecdsa::SigningKey;
use p384::pkcs8::EncodePublicKey;
use rand_core::{OsRng, RngCore};
use rsa::RsaPrivateKey;
use rsa::pss;
use rsa::signature::{RandomizedSigner, SignatureEncoding};
use sha2::Sha384;
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::certificate::{Certificate, TbsCertificate, Version};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage, KeyUsages};
use x509_cert::name::{Name, RdnSequence, RelativeDistinguishedName};
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{AlgorithmIdentifierOwned, ObjectIdentifier, SubjectPublicKeyInfoOwned};
use x509_cert::time::{Time, Validity};

use crate::root::RsaBits;
use crate::{CHIP_ID_SIZE, PRODUCT};

/// Arc of AMD's certificate extensions.
const AMD: &str = "1.3.6.1.4.1.3704.1";
/// `structVersion`, `productName1` and `hwID` beneath [`AMD`].
const STRUCT_VERSION: &str = "1";
const PRODUCT_NAME: &str = "2";
const HARDWARE_ID: &str = "4";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// As AMD's.
const AUTHORITY_LIFE: Duration = Duration::from_secs(25 * 365 * 24 * 60 * 60);
const CHIP_KEY_LIFE: Duration = Duration::from_secs(7 * 365 * 24 * 60 * 60);

/// RSASSA-PSS with SHA-384, MGF1 with SHA-384 and a salt of 48 bytes (RFC 4055, section 3.1).
const PSS_SHA384_PARAMETERS: &[u8] = &[
    0x30, 0x34, // SEQUENCE
    0xa0, 0x0f, 0x30, 0x0d, // [0] hash: id-sha384, NULL
    0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05, 0x00, //
    0xa1, 0x1c, 0x30, 0x1a, // [1] mask: id-mgf1
    0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08, //
    0x30, 0x0d, // of id-sha384, NULL
    0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05, 0x00, //
    0xa2, 0x03, 0x02, 0x01, 0x30, // [2] salt: 48
];

/// Why certificates could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MakeError {
    #[error("an RSA key could not be made: {0}")]
    Rsa(#[from] rsa::Error),
    #[error("a certificate could not be encoded: {0}")]
    Der(#[from] der::Error),
    #[error("a public key could not be encoded: {0}")]
    Key(#[from] x509_cert::spki::Error),
    #[error("a certificate could not be signed: {0}")]
    Signature(#[from] rsa::signature::Error),
}

/// What a root consists of, in DER.
pub(crate) struct Chain {
    pub(crate) ark: Vec<u8>,
    pub(crate) ask: Vec<u8>,
    pub(crate) vcek: Vec<u8>,
    pub(crate) vcek_key: SigningKey,
}

/// Makes keys and certificates for a chip, valid from a day before `now`.
pub(crate) fn make(
    bits: RsaBits,
    chip_id: &[u8; CHIP_ID_SIZE],
    tcb: &Tcb,
    now: SystemTime,
) -> Result<Chain, MakeError> {
    let ark_key = RsaPrivateKey::new(&mut OsRng, bits.count())?;
    let ask_key = RsaPrivateKey::new(&mut OsRng, bits.count())?;
    let vcek_key = SigningKey::random(&mut OsRng);
    let ark_name = name(&format!("ARK-{PRODUCT}"))?;
    let ask_name = name(&format!("SEV-{PRODUCT}"))?;

    let ark = Subject {
        name: ark_name.clone(),
        life: AUTHORITY_LIFE,
        key: rsa_key(&ark_key)?,
        extensions: authority(None, KeyUsages::KeyCertSign | KeyUsages::CRLSign)?,
    };
    let ask = Subject {
        name: ask_name.clone(),
        life: AUTHORITY_LIFE,
        key: rsa_key(&ask_key)?,
        extensions: authority(Some(0), KeyUsages::KeyCertSign.into())?,
    };
    let vcek = Subject {
        name: name("SEV-VCEK")?,
        life: CHIP_KEY_LIFE,
        key: SubjectPublicKeyInfoOwned::from_key(*vcek_key.verifying_key())?,
        extensions: chip(chip_id, tcb)?,
    };
    Ok(Chain {
        ark: ark.signed_by(&ark_name, &ark_key, now)?,
        ask: ask.signed_by(&ark_name, &ark_key, now)?,
        vcek: vcek.signed_by(&ask_name, &ask_key, now)?,
        vcek_key,
    })
}

/// What a certificate says of its subject.
struct Subject {
    name: Name,
    life: Duration,
    key: SubjectPublicKeyInfoOwned,
    extensions: Vec<Extension>,
}

impl Subject {
    fn signed_by(
        self,
        issuer: &Name,
        key: &RsaPrivateKey,
        now: SystemTime,
    ) -> Result<Vec<u8>, MakeError> {
        let algorithm = AlgorithmIdentifierOwned {
            oid: rfc5912::ID_RSASSA_PSS,
            parameters: Some(Any::from_der(PSS_SHA384_PARAMETERS)?),
        };
        let tbs_certificate = TbsCertificate {
            version: Version::V3,
            serial_number: serial_number()?,
            signature: algorithm.clone(),
            issuer: issuer.clone(),
            validity: Validity { not_before: time(now - DAY)?, not_after: time(now + self.life)? },
            subject: self.name,
            subject_public_key_info: self.key,
            issuer_unique_id: None,
            subject_unique_id: None,
            extensions: Some(self.extensions),
        };
        let signer = pss::SigningKey::<Sha384>::new(key.clone());
        let signature = signer.try_sign_with_rng(&mut OsRng, &tbs_certificate.to_der()?)?;
        let certificate = Certificate {
            tbs_certificate,
            signature_algorithm: algorithm,
            signature: BitString::from_bytes(&signature.to_vec())?,
        };
        Ok(certificate.to_der()?)
    }
}

fn rsa_key(key: &RsaPrivateKey) -> Result<SubjectPublicKeyInfoOwned, MakeError> {
    let der = key.to_public_key().to_public_key_der()?;
    Ok(SubjectPublicKeyInfoOwned::from_der(der.as_bytes())?)
}

/// 16 random bytes, as a positive number.
fn serial_number() -> Result<SerialNumber, MakeError> {
    let mut bytes = [0; 16];
    OsRng.fill_bytes(&mut bytes);
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::new(&bytes)?)
}

/// RFC 5280, 4.1.2.5: two-digit years until 2049.
fn time(at: SystemTime) -> Result<Time, MakeError> {
    let at = Time::try_from(at)?;
    match at {
        Time::UtcTime(_) => Ok(at),
        Time::GeneralTime(time) => Ok(GeneralizedTime::from_date_time(time.to_date_time()).into()),
    }
}

fn name(common_name: &str) -> Result<Name, MakeError> {
    let parts = [
        (rfc4519::ORGANIZATION_NAME, "Nacre"),
        (rfc4519::ORGANIZATIONAL_UNIT_NAME, "Emulated secure processor, for development only"),
        (rfc4519::COMMON_NAME, common_name),
    ];
    let part = |(oid, text): (ObjectIdentifier, &str)| {
        let value = Any::from(Utf8StringRef::new(text)?);
        let set = SetOfVec::try_from(vec![AttributeTypeAndValue { oid, value }])?;
        Ok::<_, der::Error>(RelativeDistinguishedName(set))
    };
    Ok(RdnSequence(parts.into_iter().map(part).collect::<Result<_, _>>()?))
}

fn authority(
    path_len_constraint: Option<u8>,
    usage: der::flagset::FlagSet<KeyUsages>,
) -> Result<Vec<Extension>, MakeError> {
    let constraints = BasicConstraints { ca: true, path_len_constraint };
    Ok(vec![
        Extension {
            extn_id: rfc5280::ID_CE_BASIC_CONSTRAINTS,
            critical: true,
            extn_value: OctetString::new(constraints.to_der()?)?,
        },
        Extension {
            extn_id: rfc5280::ID_CE_KEY_USAGE,
            critical: true,
            extn_value: OctetString::new(KeyUsage(usage).to_der()?)?,
        },
    ])
}

/// AMD's extensions (57230, "VCEK Certificate"). Numbers are DER integers, the product's name is an
/// `IA5String`, and the chip id stands there as it is.
fn chip(chip_id: &[u8; CHIP_ID_SIZE], tcb: &Tcb) -> Result<Vec<Extension>, MakeError> {
    let extension = |oid: &str, value: Vec<u8>| {
        let extn_id = ObjectIdentifier::new(&format!("{AMD}.{oid}")).map_err(der::Error::from)?;
        Ok::<_, MakeError>(Extension {
            extn_id,
            critical: false,
            extn_value: OctetString::new(value)?,
        })
    };
    let name = der::asn1::Ia5StringRef::new(PRODUCT.name())?;
    let mut extensions =
        vec![extension(STRUCT_VERSION, 1_u8.to_der()?)?, extension(PRODUCT_NAME, name.to_der()?)?];
    for (part, version) in [
        ("3.1", tcb.bootloader),
        ("3.2", tcb.tee),
        // Parts that no product uses.
        ("3.4", 0),
        ("3.5", 0),
        ("3.6", 0),
        ("3.7", 0),
        ("3.3", tcb.snp),
        ("3.8", tcb.microcode),
    ] {
        extensions.push(extension(part, version.to_der()?)?);
    }
    extensions.push(extension(HARDWARE_ID, chip_id.to_vec())?);
    Ok(extensions)
}

/// The chip that a VCEK certificate is for, and its public key.
pub(crate) fn read_chip(vcek: &[u8]) -> Option<([u8; CHIP_ID_SIZE], SubjectPublicKeyInfoOwned)> {
    let certificate = Certificate::from_der(vcek).ok()?.tbs_certificate;
    let wanted = ObjectIdentifier::new(&format!("{AMD}.{HARDWARE_ID}")).ok()?;
    let extension = certificate.extensions?.into_iter().find(|e| e.extn_id == wanted)?;
    let chip_id = extension.extn_value.as_bytes().try_into().ok()?;
    Some((chip_id, certificate.subject_public_key_info))
}
