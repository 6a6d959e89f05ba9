//! Certificates of signers, as Fulcio issues them (sigstore/fulcio, docs/certificate-specification.md
//! and docs/oid-info.md). Chains are verified by rustls-webpki, at the time of the signature.

use std::time::Duration;

use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_cert::der::asn1::Utf8StringRef;
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::{Decode as _, Encode as _};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{ExtendedKeyUsage, SubjectAltName};

use crate::key::PublicKey;
use crate::time::{Period, seconds};

/// Largest certificate, in bytes.
const CERTIFICATE_LIMIT: usize = 16 * 1024;

/// What a key may be used for (RFC 5280, section 4.2.1.12), in both notations.
#[derive(Clone, Copy)]
pub(crate) struct Usage {
    oid: ObjectIdentifier,
    der: &'static [u8],
}

pub(crate) const CODE_SIGNING: Usage = Usage {
    oid: ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.3"),
    der: &[0x2b, 6, 1, 5, 5, 7, 3, 3],
};
pub(crate) const TIME_STAMPING: Usage = Usage {
    oid: ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.8"),
    der: &[0x2b, 6, 1, 5, 5, 7, 3, 8],
};

const EXTENDED_KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37");
const SUBJECT_ALT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");
const ISSUER: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.57264.1.8");
const ISSUER_OLD: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.57264.1.1");
const USER_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.57264.1.7");

/// A certificate, parsed.
#[derive(Debug)]
pub(crate) struct Certificate {
    der: Vec<u8>,
    inner: x509_cert::Certificate,
    pub(crate) key: PublicKey,
}

/// A name that an authority vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SignerName {
    Email(String),
    /// A URI, or a user name of a provider that has no better one.
    Other(String),
}

impl SignerName {
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Email(text) | Self::Other(text) => text,
        }
    }
}

impl Certificate {
    pub(crate) fn parse(der: &[u8]) -> Result<Self, String> {
        if der.len() > CERTIFICATE_LIMIT {
            return Err(format!("a certificate is larger than {CERTIFICATE_LIMIT} bytes"));
        }
        let inner = x509_cert::Certificate::from_der(der)
            .map_err(|error| format!("not a certificate: {error}"))?;
        let tbs = &inner.tbs_certificate;
        let extensions = tbs.extensions.as_deref().unwrap_or_default();
        for (at, extension) in extensions.iter().enumerate() {
            if extensions[..at].iter().any(|earlier| earlier.extn_id == extension.extn_id) {
                return Err("a certificate has an extension twice".into());
            }
        }
        let spki = tbs.subject_public_key_info.to_der().map_err(|error| error.to_string())?;
        Ok(Self { der: der.to_vec(), key: PublicKey::from_spki(&spki)?, inner })
    }

    pub(crate) fn der(&self) -> &[u8] {
        &self.der
    }

    pub(crate) fn inner(&self) -> &x509_cert::Certificate {
        &self.inner
    }

    pub(crate) fn extension(&self, oid: ObjectIdentifier) -> Option<&[u8]> {
        let extensions = self.inner.tbs_certificate.extensions.as_deref().unwrap_or_default();
        let extension = extensions.iter().find(|one| one.extn_id == oid)?;
        Some(extension.extn_value.as_bytes())
    }

    pub(crate) fn valid(&self) -> Period {
        let validity = &self.inner.tbs_certificate.validity;
        Period {
            from: seconds(validity.not_before.to_date_time()),
            to: seconds(validity.not_after.to_date_time()),
        }
    }

    fn check_usage(&self, usage: Usage) -> Result<(), String> {
        let allowed = match self.extension(EXTENDED_KEY_USAGE) {
            Some(list) => ExtendedKeyUsage::from_der(list)
                .map_err(|_| "the usages of its certificate are malformed")?
                .0
                .contains(&usage.oid),
            None => false,
        };
        if allowed {
            Ok(())
        } else {
            Err(format!("its certificate is not for usage {}", usage.oid))
        }
    }

    /// Whom the certificate is for.
    pub(crate) fn names(&self) -> Result<Vec<SignerName>, String> {
        let extension = self.extension(SUBJECT_ALT_NAME).ok_or("its certificate names nobody")?;
        let names = SubjectAltName::from_der(extension)
            .map_err(|_| "the names in its certificate are malformed")?;
        let mut list = Vec::new();
        for name in names.0 {
            match name {
                GeneralName::Rfc822Name(name) => list.push(SignerName::Email(name.to_string())),
                GeneralName::UniformResourceIdentifier(name) => {
                    list.push(SignerName::Other(name.to_string()));
                }
                GeneralName::OtherName(name) if name.type_id == USER_NAME => {
                    let text = name
                        .value
                        .decode_as::<Utf8StringRef<'_>>()
                        .map_err(|_| "the names in its certificate are malformed")?;
                    list.push(SignerName::Other(text.as_str().to_owned()));
                }
                _ => {}
            }
        }
        Ok(list)
    }

    /// Who vouched for the signer to the authority: the OpenID issuer.
    pub(crate) fn issuer(&self) -> Result<String, String> {
        let malformed = |_| "the issuer in its certificate is malformed".to_owned();
        let new = match self.extension(ISSUER) {
            Some(value) => {
                let text = Utf8StringRef::from_der(value);
                Some(text.map_err(|error| malformed(error.to_string()))?.as_str().to_owned())
            }
            None => None,
        };
        let old = match self.extension(ISSUER_OLD) {
            Some(value) => Some(
                String::from_utf8(value.to_vec()).map_err(|error| malformed(error.to_string()))?,
            ),
            None => None,
        };
        match (new, old) {
            (Some(new), Some(old)) if new != old => Err("its certificate names two issuers".into()),
            (Some(issuer), _) | (None, Some(issuer)) => Ok(issuer),
            (None, None) => Err("its certificate names no issuer".into()),
        }
    }
}

/// A certificate authority that is trusted.
#[derive(Debug)]
pub(crate) struct Authority {
    /// Where chains may end.
    pub(crate) anchors: Vec<Certificate>,
    pub(crate) intermediates: Vec<Certificate>,
    pub(crate) valid: Period,
}

impl Authority {
    /// That this authority issued `certificate` for `usage`, and all of the chain was valid at `time`.
    /// `chain` came with the certificate and is trusted for nothing.
    pub(crate) fn check(
        &self,
        certificate: &Certificate,
        chain: &[Certificate],
        usage: Usage,
        time: i64,
    ) -> Result<(), String> {
        certificate.check_usage(usage)?;
        if !self.valid.contains(time) {
            return Err("its authority was not trusted then".into());
        }
        let anchors: Vec<_> =
            self.anchors.iter().filter(|anchor| anchor.valid().contains(time)).collect();
        let anchors: Vec<CertificateDer<'_>> =
            anchors.into_iter().map(|one| CertificateDer::from(one.der())).collect();
        let anchors: Vec<_> =
            anchors.iter().filter_map(|one| anchor_from_trusted_cert(one).ok()).collect();
        let intermediates: Vec<CertificateDer<'_>> = self
            .intermediates
            .iter()
            .chain(chain)
            .map(|one| CertificateDer::from(one.der()))
            .collect();
        let leaf = CertificateDer::from(certificate.der());
        let seconds = u64::try_from(time).map_err(|_| "a time before 1970")?;
        EndEntityCert::try_from(&leaf)
            .and_then(|leaf| {
                leaf.verify_for_usage(
                    webpki::ALL_VERIFICATION_ALGS,
                    &anchors,
                    &intermediates,
                    UnixTime::since_unix_epoch(Duration::from_secs(seconds)),
                    // Authorities need not say what they issue for; the signer's certificate must.
                    KeyUsage::required_if_present(usage.der),
                    None,
                    None,
                )
                .map(|_| ())
            })
            .map_err(|error| format!("its certificate: {error}"))
    }

    /// Certificates that may have issued one.
    pub(crate) fn issuers(&self) -> impl Iterator<Item = &Certificate> {
        self.intermediates.iter().chain(&self.anchors)
    }
}
