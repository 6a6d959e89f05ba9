//! Timestamps of RFC 3161: a signed statement (RFC 5652) that some bytes existed at some time. Signers
//! keep the whole answer of the authority, a `TimeStampResp`.

use ring::digest::{Algorithm, SHA256, SHA384, SHA512, digest};
use x509_cert::der::asn1::{AnyRef, ObjectIdentifier};
use x509_cert::der::{Decode as _, Reader as _, SliceReader, Tag, TagNumber, Tagged as _};

use crate::certificate::{Authority, Certificate, TIME_STAMPING};
use crate::cosign::CERTIFICATES_LIMIT;
use crate::time::generalized;

/// Largest token, in bytes.
const TOKEN_LIMIT: usize = 64 * 1024;

const SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
const TST_INFO: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.16.1.4");
const CONTENT_TYPE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.3");
const MESSAGE_DIGEST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.4");

/// When one of the authorities saw `message`: seconds since 1970.
pub(crate) fn verified(
    token: &[u8],
    message: &[u8],
    authorities: &[Authority],
) -> Result<i64, String> {
    if token.len() > TOKEN_LIMIT {
        return Err(format!("its timestamp is larger than {TOKEN_LIMIT} bytes"));
    }
    let malformed = || "its timestamp is malformed".to_owned();
    let token = Token::parse(token).ok_or_else(malformed)?;
    let info = Info::parse(token.content).ok_or_else(malformed)?;
    if digest(info.algorithm, message).as_ref() != info.imprint {
        return Err("its timestamp is for another signature".into());
    }
    let mut embedded = Vec::new();
    for der in token.certificates.iter().take(CERTIFICATES_LIMIT) {
        embedded.push(Certificate::parse(der)?);
    }
    let mut problem = "its timestamp is of no known authority".to_owned();
    for authority in authorities {
        let signers = embedded.iter().chain(authority.issuers());
        for signer in signers.filter(|one| token.is_signed_by(one)) {
            match authority.check(signer, &embedded, TIME_STAMPING, info.time) {
                Ok(()) => return Ok(info.time),
                Err(why) => problem = format!("its timestamp: {why}"),
            }
        }
    }
    Err(problem)
}

/// The elements of a constructed value, in order; `None` unless all of them are definite-length DER.
fn elements(mut bytes: &[u8]) -> Option<Vec<Element<'_>>> {
    let mut list = Vec::new();
    while !bytes.is_empty() {
        let mut reader = SliceReader::new(bytes).ok()?;
        let whole = reader.tlv_bytes().ok()?;
        let any = AnyRef::from_der(whole).ok()?;
        list.push(Element { tag: any.tag(), value: any.value(), whole });
        bytes = bytes.get(whole.len()..)?;
        if list.len() > 64 {
            return None;
        }
    }
    Some(list)
}

#[derive(Clone, Copy)]
struct Element<'a> {
    tag: Tag,
    value: &'a [u8],
    whole: &'a [u8],
}

impl<'a> Element<'a> {
    fn within(self, tag: Tag) -> Option<Vec<Element<'a>>> {
        if self.tag == tag { elements(self.value) } else { None }
    }

    fn oid(self) -> Option<ObjectIdentifier> {
        ObjectIdentifier::from_der(self.whole).ok()
    }

    fn octets(self) -> Option<&'a [u8]> {
        (self.tag == Tag::OctetString).then_some(self.value)
    }

    /// `[number]`, constructed.
    fn is_context(self, number: TagNumber) -> bool {
        self.tag == Tag::ContextSpecific { constructed: true, number }
    }

    /// First element of an `AlgorithmIdentifier`.
    fn hash(self) -> Option<&'static Algorithm> {
        match self.within(Tag::Sequence)?.first()?.oid()?.to_string().as_str() {
            "2.16.840.1.101.3.4.2.1" => Some(&SHA256),
            "2.16.840.1.101.3.4.2.2" => Some(&SHA384),
            "2.16.840.1.101.3.4.2.3" => Some(&SHA512),
            _ => None,
        }
    }
}

/// What of the answer and the `SignedData` in it is looked at.
struct Token<'a> {
    content: &'a [u8],
    certificates: Vec<&'a [u8]>,
    /// As they are signed: with the tag of a SET.
    attributes: Vec<u8>,
    signature: &'a [u8],
}

impl<'a> Token<'a> {
    fn parse(token: &'a [u8]) -> Option<Self> {
        let [response] = elements(token)?.try_into().ok()?;
        let [status, token] = response.within(Tag::Sequence)?.try_into().ok()?;
        // 0: granted, 1: granted with modifications. The signature is what counts.
        let status = *status.within(Tag::Sequence)?.first()?;
        if status.tag != Tag::Integer || !matches!(status.value, [0 | 1]) {
            return None;
        }
        let [kind, content] = token.within(Tag::Sequence)?.try_into().ok()?;
        if kind.oid()? != SIGNED_DATA || !content.is_context(TagNumber::N0) {
            return None;
        }
        let [signed_data] = elements(content.value)?.try_into().ok()?;
        let signed_data = signed_data.within(Tag::Sequence)?;
        let [_version, _algorithms, content, rest @ ..] = signed_data.as_slice() else {
            return None;
        };
        let [kind, content] = content.within(Tag::Sequence)?.try_into().ok()?;
        if kind.oid()? != TST_INFO || !content.is_context(TagNumber::N0) {
            return None;
        }
        let [content] = elements(content.value)?.try_into().ok()?;
        let content = content.octets()?;
        let certificates = match rest.iter().find(|one| one.is_context(TagNumber::N0)) {
            Some(set) => elements(set.value)?.into_iter().map(|one| one.whole).collect(),
            None => Vec::new(),
        };
        let [signer] = rest.last()?.within(Tag::Set)?.try_into().ok()?;
        let signer = signer.within(Tag::Sequence)?;
        let [_version, _name, hash, attributes, _algorithm, signature, ..] = signer.as_slice()
        else {
            return None;
        };
        if !attributes.is_context(TagNumber::N0) {
            return None;
        }
        let list = elements(attributes.value)?;
        if attribute(&list, CONTENT_TYPE)?.oid()? != TST_INFO
            || attribute(&list, MESSAGE_DIGEST)?.octets()? != digest(hash.hash()?, content).as_ref()
        {
            return None;
        }
        let mut retagged = attributes.whole.to_vec();
        *retagged.first_mut()? = 0x31;
        Some(Self { content, certificates, attributes: retagged, signature: signature.octets()? })
    }

    fn is_signed_by(&self, signer: &Certificate) -> bool {
        signer.key.verifies(&self.attributes, self.signature)
    }
}

/// The one value of an attribute that is there once.
fn attribute<'a>(list: &[Element<'a>], kind: ObjectIdentifier) -> Option<Element<'a>> {
    let mut values = Vec::new();
    for attribute in list {
        let [name, set] = attribute.within(Tag::Sequence)?.try_into().ok()?;
        if name.oid()? == kind {
            values.extend(set.within(Tag::Set)?);
        }
    }
    let [value] = values.try_into().ok()?;
    Some(value)
}

/// `TSTInfo` (RFC 3161, section 2.4.2).
struct Info<'a> {
    algorithm: &'static Algorithm,
    imprint: &'a [u8],
    time: i64,
}

impl<'a> Info<'a> {
    fn parse(info: &'a [u8]) -> Option<Self> {
        let [info] = elements(info)?.try_into().ok()?;
        let info = info.within(Tag::Sequence)?;
        let [_version, _policy, imprint, _serial, time, ..] = info.as_slice() else {
            return None;
        };
        let [algorithm, imprint] = imprint.within(Tag::Sequence)?.try_into().ok()?;
        if time.tag != Tag::GeneralizedTime {
            return None;
        }
        Some(Self {
            algorithm: algorithm.hash()?,
            imprint: imprint.octets()?,
            time: generalized(time.value)?,
        })
    }
}
