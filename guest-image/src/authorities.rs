//! Certificate authorities that an owner adds to the guest's: each is checked to be one, and to be one that
//! TLS in the guest will take, because there what cannot be used is passed over in silence.

use std::collections::BTreeSet;
use std::time::SystemTime;

use nacre_image_manifest::Sha256Hex;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_cert::Certificate;
use x509_cert::der::pem::{LineEnding, encode_string};
use x509_cert::der::{Decode, Error as DerError};
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage};

/// The label of a certificate (RFC 7468, section 5.1).
const LABEL: &str = "CERTIFICATE";

/// More than any bundle of authorities has, in bytes.
pub const MAX_FILE: u64 = 4 << 20;

/// More than any certificate has, in bytes.
const MAX_CERTIFICATE: usize = 64 << 10;

/// A certificate that was checked to be a certificate authority's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    subject: String,
    not_after: SystemTime,
    sha256: Sha256Hex,
    der: Vec<u8>,
}

/// Why a file cannot be added.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// Too big to be one.
    #[error("it has more than {MAX_FILE} bytes")]
    TooBig,
    /// DER, PKCS#12, anything.
    #[error(
        "it holds no certificate in PEM (\"-----BEGIN {LABEL}-----\"); `openssl x509 -inform der` makes \
         PEM of DER"
    )]
    None,
    /// A key, most likely, that must not get into an image which everybody can read.
    #[error("it holds a {0:?}; give the certificates alone")]
    Label(String),
    /// Damaged.
    #[error("it is no PEM: {0}")]
    Pem(String),
    /// Damaged.
    #[error("certificate {number} in it is none: {source}")]
    Der {
        /// Counted from 1.
        number: usize,
        /// What is wrong.
        source: DerError,
    },
    /// Longer than any.
    #[error("certificate {0} in it has more than {MAX_CERTIFICATE} bytes")]
    Long(usize),
    /// A server's certificate, most likely.
    #[error(
        "{subject:?} is no certificate authority ({why}): TLS in the guest would not accept what it signs; \
         give the certificate of the authority that signed it"
    )]
    NoAuthority {
        /// Whose certificate it is.
        subject: String,
        /// What is missing.
        why: &'static str,
    },
    /// The guest's TLS cannot work with it.
    #[error("TLS in the guest cannot use the certificate of {subject:?}: {problem}")]
    Unusable {
        /// Whose certificate it is.
        subject: String,
        /// What TLS says.
        problem: String,
    },
}

impl Authority {
    /// All certificates of a PEM file. What stands around them is passed over, as everywhere; other blocks
    /// are not.
    ///
    /// # Errors
    /// If one of them is not a certificate authority's, or there is none.
    pub fn read(pem: &[u8]) -> Result<Vec<Authority>, AuthorityError> {
        if pem.len() as u64 > MAX_FILE {
            return Err(AuthorityError::TooBig);
        }
        for line in pem.split(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(line);
            let label =
                line.trim().strip_prefix("-----BEGIN ").and_then(|l| l.strip_suffix("-----"));
            if let Some(label) = label.filter(|label| *label != LABEL) {
                return Err(AuthorityError::Label(label.to_owned()));
            }
        }
        let mut found = Vec::new();
        for (number, der) in (1..).zip(certificates(pem)) {
            let der = der.map_err(AuthorityError::Pem)?;
            if der.len() > MAX_CERTIFICATE {
                return Err(AuthorityError::Long(number));
            }
            let certificate = Certificate::from_der(&der)
                .map_err(|source| AuthorityError::Der { number, source })?;
            found.push(Self::check(&certificate, &der)?);
        }
        if found.is_empty() { Err(AuthorityError::None) } else { Ok(found) }
    }

    /// RFC 5280, section 4.2.1.9 and 4.2.1.3.
    fn check(certificate: &Certificate, der: &[u8]) -> Result<Self, AuthorityError> {
        let content = &certificate.tbs_certificate;
        let subject = content.subject.to_string();
        let no = |why| AuthorityError::NoAuthority { subject: subject.clone(), why };
        let constraints = content.get::<BasicConstraints>().ok().flatten();
        let (_, constraints) = constraints.ok_or_else(|| no("it has no basic constraints"))?;
        if !constraints.ca {
            return Err(no("its basic constraints say CA:FALSE"));
        }
        let usage = content.get::<KeyUsage>();
        let signs = usage.map(|usage| usage.is_none_or(|(_, usage)| usage.key_cert_sign()));
        if !signs.unwrap_or(false) {
            return Err(no("its key usage does not include the signing of certificates"));
        }
        let trusted = CertificateDer::from(der);
        if let Err(error) = webpki::anchor_from_trusted_cert(&trusted) {
            return Err(AuthorityError::Unusable { subject, problem: error.to_string() });
        }
        let not_after = content.validity.not_after.to_system_time();
        Ok(Self { subject, not_after, sha256: Sha256Hex::of(der), der: der.to_owned() })
    }

    /// Whose certificate it is: the subject's distinguished name.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// Hash of the certificate (DER).
    #[must_use]
    pub fn sha256(&self) -> &Sha256Hex {
        &self.sha256
    }

    /// Whether TLS in a guest refuses it at that time.
    #[must_use]
    pub fn is_expired(&self, now: SystemTime) -> bool {
        self.not_after < now
    }

    fn to_pem(&self) -> Result<String, AuthorityError> {
        encode_string(LABEL, LineEnding::LF, &self.der)
            .map_err(|error| AuthorityError::Pem(error.to_string()))
    }
}

/// The bundle with the authorities that it does not have yet behind it, and these: sorted by hash, each once.
pub(crate) fn append(
    bundle: &[u8],
    authorities: &[Authority],
) -> Result<(Vec<u8>, Vec<Authority>), AuthorityError> {
    let mut known = BTreeSet::new();
    for der in certificates(bundle) {
        known.insert(String::from(Sha256Hex::of(&der.map_err(AuthorityError::Pem)?)));
    }
    let mut sorted: Vec<_> = authorities.iter().collect();
    sorted.sort_by_cached_key(|authority| authority.sha256.to_string());
    let mut bundle = bundle.to_vec();
    let mut added = Vec::new();
    for authority in sorted {
        if known.insert(authority.sha256.to_string()) {
            bundle.extend(authority.to_pem()?.as_bytes());
            added.push(authority.clone());
        }
    }
    Ok((bundle, added))
}

/// The certificates of a PEM text, by the reader that the guest's TLS has.
fn certificates(pem: &[u8]) -> impl Iterator<Item = Result<Vec<u8>, String>> {
    CertificateDer::pem_slice_iter(pem)
        .map(|der| der.map(|der| der.to_vec()).map_err(|error| error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};

    use super::*;

    fn certificate(name: &str, change: impl FnOnce(&mut CertificateParams)) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    }

    fn authority(name: &str) -> String {
        certificate(name, |_| {})
    }

    fn refused(pem: &str) -> String {
        Authority::read(pem.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn authorities_are_read_with_what_stands_around_them() {
        let pem = format!("# ours\n{}\r\nsubject=x\n{}", authority("One"), authority("Two"));
        let read = Authority::read(pem.replace('\n', "\r\n").as_bytes()).unwrap();
        let subjects: Vec<_> = read.iter().map(Authority::subject).collect();
        assert_eq!(subjects, ["CN=One", "CN=Two"]);
        assert!(!read[0].is_expired(SystemTime::now()));
        let years = Duration::from_secs(3600 * 24 * 366 * 3000);
        assert!(read[0].is_expired(SystemTime::now() + years));
    }

    #[test]
    fn what_is_no_authority_is_refused_with_the_reason() {
        let server = certificate("server", |params| params.is_ca = IsCa::ExplicitNoCa);
        assert!(refused(&server).contains("\"CN=server\" is no certificate authority (its basic"));
        let plain = certificate("plain", |params| params.is_ca = IsCa::NoCa);
        assert!(refused(&plain).contains("no basic constraints"));
        let signs_no_certificates = certificate("crl", |params| {
            params.key_usages = vec![KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        });
        assert!(refused(&signs_no_certificates).contains("key usage"));
        let signs =
            certificate("ca", |params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign]);
        Authority::read(signs.as_bytes()).unwrap();
        // One bad certificate among good ones.
        assert!(refused(&format!("{}{server}", authority("One"))).contains("CN=server"));
    }

    #[test]
    fn what_is_no_certificate_is_refused_with_the_reason() {
        assert!(refused("").contains("no certificate in PEM"));
        assert!(refused("\u{30}\u{82}").contains("no certificate in PEM"));
        let key = KeyPair::generate().unwrap().serialize_pem();
        assert!(refused(&format!("{}{key}", authority("One"))).contains("\"PRIVATE KEY\""));
        let good = authority("One");
        assert!(refused(&good.replace("-----END", "-----ENDE")).contains("no PEM"));
        assert!(refused(&good.replacen("MII", "M!I", 1)).contains("no PEM"));
        assert!(
            refused("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
                .contains("1 in")
        );
        let large = vec![b'#'; usize::try_from(MAX_FILE).unwrap() + 1];
        assert!(matches!(Authority::read(&large), Err(AuthorityError::TooBig)));
        let long = encode_string(LABEL, LineEnding::LF, &vec![0; MAX_CERTIFICATE + 1]).unwrap();
        assert!(refused(&long).contains("more than 65536 bytes"));
    }

    #[test]
    fn every_changed_byte_of_a_certificate_is_another_certificate_or_none() {
        let pem = authority("One");
        let [whole] = &Authority::read(pem.as_bytes()).unwrap()[..] else { panic!("one") };
        for at in 0..whole.der.len() {
            let mut der = whole.der.clone();
            der[at] ^= 0x81;
            let pem = encode_string(LABEL, LineEnding::LF, &der).unwrap();
            if let Ok(read) = Authority::read(pem.as_bytes()) {
                assert_ne!(read[0].sha256, whole.sha256);
            }
        }
    }

    #[test]
    fn a_bundle_gets_what_it_has_not_sorted_and_once() {
        let read = |pem: &str| Authority::read(pem.as_bytes()).unwrap().remove(0);
        let pems = ["Known", "One", "Two", "Three"].map(authority);
        let [known, one, two, three] = [0, 1, 2, 3].map(|index| read(&pems[index]));
        let bundle = format!("{}\n", pems[0].trim());
        let orders = [[&one, &two, &three, &known, &one], [&known, &three, &one, &two, &two]];
        let [first, second] =
            orders.map(|order| append(bundle.as_bytes(), &order.map(Clone::clone)).unwrap());
        assert_eq!(first, second);
        let (pem, added) = first;
        assert!(pem.starts_with(bundle.as_bytes()) && pem.ends_with(b"-----\n"));
        assert_eq!(added.len(), 3);
        assert!(added.is_sorted_by_key(|authority| authority.sha256.to_string()));
        let all = Authority::read(&pem).unwrap();
        assert_eq!(all[1..], added[..]);
    }
}
