//! X.509 as the vendors' hierarchies need it: certificates and revocation lists signed with
//! RSASSA-PSS and SHA-384 (RFC 5280, RFC 4055).

use der::asn1::OctetString;
use der::oid::ObjectIdentifier;
use der::{Decode as _, Reader as _, SliceReader};
use ring::signature::{RSA_PSS_2048_8192_SHA384, UnparsedPublicKey};
use time::OffsetDateTime;
use x509_cert::crl::CertificateList;
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, KeyUsage, SubjectKeyIdentifier,
};
use x509_cert::name::Name;
use x509_cert::spki::AlgorithmIdentifierOwned;
use x509_cert::time::Time;

/// Largest certificate, in bytes.
pub(crate) const CERTIFICATE_LIMIT: usize = 8 * 1024;
/// Largest revocation list, in bytes.
pub(crate) const CRL_LIMIT: usize = 1024 * 1024;

const RSASSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");
const SUBJECT_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.14");
const AUTHORITY_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.35");
const CRL_NUMBER: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.20");

/// Critical extensions that are looked at; others refuse a certificate.
const UNDERSTOOD: [ObjectIdentifier; 4] =
    [BASIC_CONSTRAINTS, KEY_USAGE, SUBJECT_KEY, AUTHORITY_KEY];

/// Why a certificate or revocation list is no good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum X509Error {
    #[error("larger than {0} bytes")]
    TooLarge(usize),
    #[error("not DER of X.509: {0}")]
    Der(der::Error),
    #[error("the extension {0} is there twice")]
    Duplicate(ObjectIdentifier),
    #[error("the critical extension {0} is not understood")]
    Critical(ObjectIdentifier),
    #[error("signed with {0}, not with RSASSA-PSS")]
    Algorithm(ObjectIdentifier),
    #[error("the signature algorithms inside and outside differ")]
    AlgorithmMismatch,
    #[error("the issuer has no RSA key")]
    IssuerKey,
    #[error("the signature is not the issuer's")]
    Signature,
    #[error("issued by {found:?}, not by {expected:?}")]
    Issuer { expected: String, found: String },
    #[error("issued by none of the roots")]
    NoIssuer,
    #[error("its authority key identifier is not the issuer's key identifier")]
    KeyIdentifier,
    #[error("the issuer may not sign {0}")]
    NotAuthority(&'static str),
    #[error("the issuer may not have authorities below it")]
    PathLength,
}

impl From<der::Error> for X509Error {
    fn from(error: der::Error) -> X509Error {
        X509Error::Der(error)
    }
}

/// When something is valid; both ends belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Period {
    pub(crate) from: OffsetDateTime,
    pub(crate) to: OffsetDateTime,
}

impl Period {
    pub(crate) fn contains(&self, now: OffsetDateTime) -> bool {
        self.from <= now && now <= self.to
    }
}

impl std::fmt::Display for Period {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} to {}", self.from.date(), self.to.date())
    }
}

/// The signed part of a certificate or list, as its bytes are, and the signature over it.
#[derive(Debug, Clone)]
struct Signed {
    content: Vec<u8>,
    signature: Vec<u8>,
}

impl Signed {
    /// The first element of the outer sequence is what is signed.
    fn new(
        der: &[u8],
        inside: &AlgorithmIdentifierOwned,
        outside: &AlgorithmIdentifierOwned,
        signature: &[u8],
    ) -> Result<Signed, X509Error> {
        if inside != outside {
            return Err(X509Error::AlgorithmMismatch);
        }
        if outside.oid != RSASSA_PSS {
            return Err(X509Error::Algorithm(outside.oid));
        }
        let mut reader = SliceReader::new(der)?;
        der::Header::decode(&mut reader)?;
        Ok(Signed { content: reader.tlv_bytes()?.to_vec(), signature: signature.to_vec() })
    }

    /// With SHA-384, its mask function and a salt of 48 bytes, whatever the parameters say.
    fn verify(&self, issuer: &Certificate) -> Result<(), X509Error> {
        let key = &issuer.inner.tbs_certificate.subject_public_key_info;
        if key.algorithm.oid != RSA {
            return Err(X509Error::IssuerKey);
        }
        let key = key.subject_public_key.as_bytes().ok_or(X509Error::IssuerKey)?;
        UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA384, key)
            .verify(&self.content, &self.signature)
            .map_err(|_| X509Error::Signature)
    }
}

/// A certificate, parsed.
#[derive(Debug, Clone)]
pub(crate) struct Certificate {
    inner: x509_cert::Certificate,
    signed: Signed,
    period: Period,
}

impl Certificate {
    pub(crate) fn parse(der: &[u8]) -> Result<Certificate, X509Error> {
        if der.len() > CERTIFICATE_LIMIT {
            return Err(X509Error::TooLarge(CERTIFICATE_LIMIT));
        }
        let inner = x509_cert::Certificate::from_der(der)?;
        let tbs = &inner.tbs_certificate;
        extensions(tbs.extensions.as_deref().unwrap_or_default(), &UNDERSTOOD)?;
        let signature = inner.signature.as_bytes().ok_or(X509Error::Signature)?;
        let signed = Signed::new(der, &tbs.signature, &inner.signature_algorithm, signature)?;
        let validity = tbs.validity;
        let period = Period { from: time(validity.not_before), to: time(validity.not_after) };
        Ok(Certificate { inner, signed, period })
    }

    /// Whether the two are one certificate.
    pub(crate) fn is(&self, other: &Certificate) -> bool {
        self.signed.content == other.signed.content
    }

    pub(crate) const fn subject(&self) -> &Name {
        &self.inner.tbs_certificate.subject
    }

    pub(crate) const fn issuer(&self) -> &Name {
        &self.inner.tbs_certificate.issuer
    }

    /// Big-endian, without leading zeros beyond the sign.
    pub(crate) fn serial(&self) -> &[u8] {
        self.inner.tbs_certificate.serial_number.as_bytes()
    }

    pub(crate) const fn period(&self) -> Period {
        self.period
    }

    /// Contents of an extension.
    pub(crate) fn extension(&self, oid: ObjectIdentifier) -> Option<&[u8]> {
        let extensions = self.inner.tbs_certificate.extensions.as_deref().unwrap_or_default();
        let extension = extensions.iter().find(|extension| extension.extn_id == oid)?;
        Some(extension.extn_value.as_bytes())
    }

    /// The point of a P-384 key, uncompressed.
    pub(crate) fn p384_key(&self) -> Option<&[u8]> {
        let key = &self.inner.tbs_certificate.subject_public_key_info;
        let curve = key.algorithm.parameters.as_ref()?.decode_as::<ObjectIdentifier>().ok()?;
        let is_p384 = key.algorithm.oid == EC_KEY && curve == P384;
        if is_p384 { key.subject_public_key.as_bytes() } else { None }
    }

    pub(crate) fn is_authority(&self) -> Result<bool, X509Error> {
        Ok(self.constraints()?.is_some_and(|constraints| constraints.ca))
    }

    /// That `issuer` is an authority, and signed this certificate.
    pub(crate) fn verify_issued_by(&self, issuer: &Certificate) -> Result<(), X509Error> {
        issued_by(self.issuer(), issuer)?;
        if !issuer.is_authority()? {
            return Err(X509Error::NotAuthority("certificates"));
        }
        if issuer.key_usage()?.is_some_and(|usage| !usage.key_cert_sign()) {
            return Err(X509Error::NotAuthority("certificates"));
        }
        let path_length =
            issuer.constraints()?.and_then(|constraints| constraints.path_len_constraint);
        if path_length == Some(0) && self.is_authority()? {
            return Err(X509Error::PathLength);
        }
        if let Some(bytes) = self.extension(AUTHORITY_KEY) {
            let named = AuthorityKeyIdentifier::from_der(bytes)?.key_identifier;
            issuer.has_key_identifier(named.as_ref().map(OctetString::as_bytes))?;
        }
        self.signed.verify(issuer)
    }

    fn has_key_identifier(&self, named: Option<&[u8]>) -> Result<(), X509Error> {
        let own = self.extension(SUBJECT_KEY).map(SubjectKeyIdentifier::from_der).transpose()?;
        match (own, named) {
            (Some(own), Some(named)) if own.0.as_bytes() != named => Err(X509Error::KeyIdentifier),
            _ => Ok(()),
        }
    }

    fn constraints(&self) -> Result<Option<BasicConstraints>, X509Error> {
        Ok(self.extension(BASIC_CONSTRAINTS).map(BasicConstraints::from_der).transpose()?)
    }

    fn key_usage(&self) -> Result<Option<KeyUsage>, X509Error> {
        Ok(self.extension(KEY_USAGE).map(KeyUsage::from_der).transpose()?)
    }
}

/// A revocation list, parsed.
#[derive(Debug, Clone)]
pub(crate) struct RevocationList {
    issuer: Name,
    signed: Signed,
    period: Period,
    serials: Vec<Vec<u8>>,
}

impl RevocationList {
    pub(crate) fn parse(der: &[u8]) -> Result<RevocationList, X509Error> {
        if der.len() > CRL_LIMIT {
            return Err(X509Error::TooLarge(CRL_LIMIT));
        }
        let inner = CertificateList::from_der(der)?;
        let tbs = inner.tbs_cert_list;
        // A critical extension would say that the list covers less than it seems, or more.
        let understood = [CRL_NUMBER, AUTHORITY_KEY];
        extensions(tbs.crl_extensions.as_deref().unwrap_or_default(), &understood)?;
        let signature = inner.signature.as_bytes().ok_or(X509Error::Signature)?;
        let signed = Signed::new(der, &tbs.signature, &inner.signature_algorithm, signature)?;
        let from = time(tbs.this_update);
        // A list that does not say when the next one comes is good at its own moment only.
        let period = Period { from, to: tbs.next_update.map_or(from, time) };
        let mut serials = Vec::new();
        for entry in tbs.revoked_certificates.unwrap_or_default() {
            extensions(entry.crl_entry_extensions.as_deref().unwrap_or_default(), &[])?;
            serials.push(entry.serial_number.as_bytes().to_vec());
        }
        Ok(RevocationList { issuer: tbs.issuer, signed, period, serials })
    }

    pub(crate) fn verify_issued_by(&self, issuer: &Certificate) -> Result<(), X509Error> {
        issued_by(&self.issuer, issuer)?;
        if !issuer.is_authority()? {
            return Err(X509Error::NotAuthority("revocation lists"));
        }
        self.signed.verify(issuer)
    }

    pub(crate) const fn period(&self) -> Period {
        self.period
    }

    /// Whether the issuer's certificate of this serial number is revoked.
    pub(crate) fn revokes(&self, serial: &[u8]) -> bool {
        self.serials.iter().any(|revoked| revoked == serial)
    }
}

fn issued_by(named: &Name, issuer: &Certificate) -> Result<(), X509Error> {
    if named == issuer.subject() {
        return Ok(());
    }
    Err(X509Error::Issuer { expected: issuer.subject().to_string(), found: named.to_string() })
}

fn extensions(list: &[Extension], understood: &[ObjectIdentifier]) -> Result<(), X509Error> {
    for (index, extension) in list.iter().enumerate() {
        let oid = extension.extn_id;
        if list[..index].iter().any(|earlier| earlier.extn_id == oid) {
            return Err(X509Error::Duplicate(oid));
        }
        if extension.critical && !understood.contains(&oid) {
            return Err(X509Error::Critical(oid));
        }
    }
    Ok(())
}

pub(crate) fn time(time: Time) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + time.to_unix_duration()
}
