//! Signature packets of version 4 (RFC 9580, section 5.2).

use super::packet::Reader;
use super::public_key::{Hash, PublicKey};

/// Kinds of signatures (section 5.2.1).
pub(super) const BINARY: u8 = 0x00;
pub(super) const CERTIFICATIONS: std::ops::RangeInclusive<u8> = 0x10..=0x13;
pub(super) const SUBKEY_BINDING: u8 = 0x18;
pub(super) const PRIMARY_BINDING: u8 = 0x19;
pub(super) const DIRECT_KEY: u8 = 0x1f;
pub(super) const KEY_REVOCATION: u8 = 0x20;
pub(super) const SUBKEY_REVOCATION: u8 = 0x28;

/// Key flag: may sign data (section 5.2.3.29).
pub(super) const MAY_SIGN: u8 = 0x02;

/// A signature, parsed.
#[derive(Debug)]
pub(super) struct Signature {
    pub(super) kind: u8,
    hash: Hash,
    /// All of it up to the hashed subpackets, as it is signed.
    hashed: Vec<u8>,
    numbers: Vec<u8>,
    /// Seconds since 1970.
    pub(super) created: i64,
    /// Seconds after its creation; 0: never.
    expires_after: i64,
    /// Seconds after the creation of the key that it is about; 0: never.
    pub(super) key_expires_after: i64,
    pub(super) key_flags: Option<u8>,
    /// Key identifier or fingerprint; a hint, not verified.
    issuer: Vec<u8>,
    pub(super) embedded: Option<Vec<u8>>,
}

impl Signature {
    pub(super) fn parse(body: &[u8]) -> Result<Self, String> {
        let malformed = || "an OpenPGP signature is malformed".to_owned();
        let mut reader = Reader(body);
        if reader.byte().ok_or_else(malformed)? != 4 {
            return Err("an OpenPGP signature is not of version 4".into());
        }
        let kind = reader.byte().ok_or_else(malformed)?;
        reader.byte().ok_or_else(malformed)?;
        let hash = reader.byte().ok_or_else(malformed)?;
        let length = reader.number(2).ok_or_else(malformed)?;
        let subpackets = reader.take(length).ok_or_else(malformed)?;
        let hashed = body.get(..6 + length).ok_or_else(malformed)?.to_vec();
        let length = reader.number(2).ok_or_else(malformed)?;
        let unhashed = reader.take(length).ok_or_else(malformed)?;
        // The first two bytes of the hash: a quick check that proves nothing.
        reader.take(2).ok_or_else(malformed)?;
        let mut signature = Self {
            kind,
            hash: Hash::of_number(hash)?,
            hashed,
            numbers: reader.rest().to_vec(),
            created: -1,
            expires_after: 0,
            key_expires_after: 0,
            key_flags: None,
            issuer: Vec::new(),
            embedded: None,
        };
        signature.subpackets(subpackets, true)?;
        signature.subpackets(unhashed, false)?;
        if signature.created < 0 {
            return Err("an OpenPGP signature does not say when it was made".into());
        }
        Ok(signature)
    }

    /// Section 5.2.3.7. What is not hashed, anybody could have written: only hints are taken.
    fn subpackets(&mut self, area: &[u8], hashed: bool) -> Result<(), String> {
        let malformed = || "an OpenPGP signature is malformed".to_owned();
        let mut reader = Reader(area);
        while let Some(first) = reader.byte() {
            let length = reader.length(first).ok_or_else(malformed)?;
            let mut body = Reader(reader.take(length).ok_or_else(malformed)?);
            let kind = body.byte().ok_or_else(malformed)?;
            let seconds = |body: &mut Reader<'_>| {
                body.number(4).and_then(|one| i64::try_from(one).ok()).ok_or_else(malformed)
            };
            match kind & 0x7f {
                2 if hashed => self.created = seconds(&mut body)?,
                3 if hashed => self.expires_after = seconds(&mut body)?,
                9 if hashed => self.key_expires_after = seconds(&mut body)?,
                27 if hashed => self.key_flags = Some(body.byte().unwrap_or_default()),
                16 if self.issuer.is_empty() => self.issuer = body.rest().to_vec(),
                33 => self.issuer = body.rest().get(1..).unwrap_or_default().to_vec(),
                32 => self.embedded = Some(body.rest().to_vec()),
                // Preferences, features, reasons, names; and what may be ignored (bit 7 is clear).
                2 | 3 | 9 | 27 | 4..=7 | 11 | 16 | 21..=26 | 28..=30 | 34 | 39 => {}
                _ if kind & 0x80 == 0 => {}
                other => {
                    return Err(format!(
                        "an OpenPGP signature demands {other}, which is not known"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Whether `key` made this signature over `content`.
    pub(super) fn is_by(&self, key: &PublicKey, content: &[&[u8]]) -> bool {
        let length = u32::try_from(self.hashed.len()).unwrap_or(u32::MAX).to_be_bytes();
        let mut message = content.concat();
        message.extend_from_slice(&self.hashed);
        message.extend_from_slice(&[4, 0xff]);
        message.extend_from_slice(&length);
        key.verifies(self.hash, &message, &self.numbers)
    }

    /// Whether it may be of that key, by what it says itself.
    pub(super) fn names(&self, key: &PublicKey) -> bool {
        let fingerprint = &key.fingerprint;
        self.issuer.is_empty()
            || self.issuer == fingerprint.key_id()
            || self.issuer == fingerprint.as_bytes()
    }

    /// The key that it names, for messages.
    pub(super) fn issuer(&self) -> String {
        if self.issuer.is_empty() { "nobody".to_owned() } else { hex::encode_upper(&self.issuer) }
    }

    pub(super) fn is_expired(&self, now: i64) -> bool {
        self.expires_after != 0 && self.created + self.expires_after <= now
    }
}
