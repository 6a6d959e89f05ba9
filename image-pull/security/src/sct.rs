//! Signed certificate timestamps that a certificate carries (RFC 6962, section 3.3): that a log of
//! certificates saw it before it was issued.

use ring::digest::{SHA256, digest};
use x509_cert::der::asn1::OctetStringRef;
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::{Decode as _, Encode as _};

use crate::certificate::Certificate;
use crate::transparency::Log;

const SCT_LIST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.11129.2.4.2");
/// Timestamps in one certificate that are tried.
const SCT_LIMIT: usize = 8;

/// That one of the logs promised to list `certificate`, issued by one of `issuers`.
pub(crate) fn check<'a>(
    certificate: &Certificate,
    issuers: impl Iterator<Item = &'a Certificate>,
    logs: &[Log],
) -> Result<(), String> {
    let extension = certificate.extension(SCT_LIST).ok_or("its certificate was not logged")?;
    let malformed = "the log's promise in its certificate is malformed";
    let list = OctetStringRef::from_der(extension).map_err(|_| malformed)?;
    let mut list = Reader(list.as_bytes());
    let mut list = Reader(list.sized::<2>().ok_or(malformed)?);
    let precertificate = precertificate(certificate)?;
    let issuer_name = &certificate.inner().tbs_certificate.issuer;
    let issuers: Vec<&Certificate> =
        issuers.filter(|issuer| issuer.inner().tbs_certificate.subject == *issuer_name).collect();
    for _ in 0..SCT_LIMIT {
        if list.0.is_empty() {
            break;
        }
        let sct = Sct::read(list.sized::<2>().ok_or(malformed)?).ok_or(malformed)?;
        let log = logs.iter().find(|log| log.id == sct.log_id);
        let time = i64::try_from(sct.timestamp / 1000).unwrap_or(i64::MAX);
        let Some(log) = log.filter(|log| log.valid.contains(time)) else { continue };
        let signed = |issuer: &&Certificate| {
            log.key.verifies(&sct.signed_bytes(issuer, &precertificate), sct.signature)
        };
        if issuers.iter().any(signed) {
            return Ok(());
        }
    }
    Err("no known log of certificates promised to list its certificate".into())
}

/// What the log saw: the certificate's content without this extension.
fn precertificate(certificate: &Certificate) -> Result<Vec<u8>, String> {
    let mut tbs = certificate.inner().tbs_certificate.clone();
    if let Some(extensions) = &mut tbs.extensions {
        extensions.retain(|extension| extension.extn_id != SCT_LIST);
    }
    tbs.to_der().map_err(|error| error.to_string())
}

struct Sct<'a> {
    log_id: [u8; 32],
    /// Milliseconds since 1970.
    timestamp: u64,
    extensions: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Sct<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        if reader.take(1)? != [0] {
            return None;
        }
        let log_id = reader.take(32)?.try_into().ok()?;
        let timestamp = u64::from_be_bytes(reader.take(8)?.try_into().ok()?);
        let extensions = reader.sized::<2>()?;
        // Hash and signature algorithms; the log's key decides.
        reader.take(2)?;
        let signature = reader.sized::<2>()?;
        reader.0.is_empty().then_some(Self { log_id, timestamp, extensions, signature })
    }

    /// Version 1, certificate timestamp, time, precertificate entry.
    fn signed_bytes(&self, issuer: &Certificate, precertificate: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0];
        bytes.extend_from_slice(&self.timestamp.to_be_bytes());
        bytes.extend_from_slice(&[0, 1]);
        bytes.extend_from_slice(digest(&SHA256, issuer.key.spki()).as_ref());
        // Certificates are bounded far below 24 bits of length.
        bytes.extend_from_slice(&precertificate.len().to_be_bytes()[5..]);
        bytes.extend_from_slice(precertificate);
        bytes.extend_from_slice(&self.extensions.len().to_be_bytes()[6..]);
        bytes.extend_from_slice(self.extensions);
        bytes
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(length)?;
        self.0 = tail;
        Some(head)
    }

    /// Bytes after their length in `N` bytes.
    fn sized<const N: usize>(&mut self) -> Option<&'a [u8]> {
        let length =
            self.take(N)?.iter().fold(0, |length, byte| (length << 8) | usize::from(*byte));
        self.take(length)
    }
}
