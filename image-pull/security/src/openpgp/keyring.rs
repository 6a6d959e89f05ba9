//! Public keys that may sign, from a keyring: what `gpg --export` writes, with or without armor.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::message::SignedMessage;
use super::packet::{self, Packet, packets};
use super::public_key::{Fingerprint, PublicKey};
use super::signature::{
    CERTIFICATIONS, DIRECT_KEY, KEY_REVOCATION, MAY_SIGN, PRIMARY_BINDING, SUBKEY_BINDING,
    SUBKEY_REVOCATION, Signature,
};

/// Largest keyring, in bytes.
const KEYRING_LIMIT: usize = 1024 * 1024;
/// Keys that may sign in one keyring.
const KEYS_LIMIT: usize = 64;

const BEGIN: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----";
const END: &str = "-----END PGP PUBLIC KEY BLOCK-----";

/// Keys that may sign data.
#[derive(Debug)]
pub(crate) struct Keyring(Vec<SigningKey>);

/// A primary key, or a subkey that both sides have bound.
#[derive(Debug)]
struct SigningKey {
    key: PublicKey,
    primary: Fingerprint,
    /// Seconds since 1970; `None`: never.
    expires: Option<i64>,
}

impl Keyring {
    /// Keys that are revoked, not bound or not for signing are left out; if none is left, an error.
    pub(crate) fn parse(file: &[u8]) -> Result<Self, String> {
        if file.len() > KEYRING_LIMIT {
            return Err(format!("a keyring has at most {KEYRING_LIMIT} bytes"));
        }
        let bytes = match std::str::from_utf8(file) {
            Ok(text) if text.contains(BEGIN) => dearmored(text)?,
            _ => file.to_vec(),
        };
        let packets = packets(&bytes)?;
        let mut keys = Vec::new();
        let starts: Vec<usize> =
            (0..packets.len()).filter(|at| packets[*at].tag == packet::PUBLIC_KEY).collect();
        if starts.first() != Some(&0) {
            return Err("not a keyring: gpg --export KEY writes one".into());
        }
        for (at, start) in starts.iter().enumerate() {
            let end = starts.get(at + 1).copied().unwrap_or(packets.len());
            keys.extend(certificate(&packets[*start..end]));
            if keys.len() > KEYS_LIMIT {
                return Err(format!("a keyring with more than {KEYS_LIMIT} keys that sign"));
            }
        }
        if keys.is_empty() {
            return Err("no key of the keyring may sign: unsupported kind, revoked or without a \
                        self-signature that uses SHA-2"
                .into());
        }
        Ok(Self(keys))
    }

    /// Content of a signed message, and the fingerprint of who signed it.
    pub(crate) fn verify(&self, message: &SignedMessage, now: i64) -> Result<String, Unsigned> {
        let signature = &message.signature;
        let by = |one: &&SigningKey| {
            signature.names(&one.key) && signature.is_by(&one.key, &[&message.content])
        };
        let Some(signer) = self.0.iter().find(by) else {
            return Err(Unsigned::Stranger(signature.issuer()));
        };
        if signature.is_expired(now) {
            return Err(Unsigned::Invalid("the signature is expired".into()));
        }
        if signer.expires.is_some_and(|expires| expires <= now) {
            return Err(Unsigned::Invalid(format!("key {} is expired", signer.key.fingerprint)));
        }
        if signature.created < signer.key.created {
            return Err(Unsigned::Invalid("the signature is older than its key".into()));
        }
        Ok(signer.primary.to_string())
    }

    /// Fingerprints, for messages.
    pub(crate) fn describe(&self) -> String {
        match self.0.as_slice() {
            [one] => format!("GPG key {}", one.primary),
            several => format!("one of {} GPG keys", several.len()),
        }
    }

    /// Keys of several keyrings.
    pub(crate) fn join(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }
}

/// Why a message does not count.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unsigned {
    /// Signed by the key of this identifier, or not signed at all.
    Stranger(String),
    Invalid(String),
}

/// Keys that may sign of one primary key with all that belongs to it.
fn certificate(packets: &[Packet<'_>]) -> Vec<SigningKey> {
    let mut keys = Vec::new();
    let Some(primary) = packets.first().and_then(|packet| PublicKey::parse(&packet.body)) else {
        return keys;
    };
    let sections = sections(packets);
    let Some(own) = self_signature(&primary, &sections) else { return keys };
    let expires = expiry(&primary, &own);
    if own.key_flags.is_none_or(|flags| flags & MAY_SIGN != 0) {
        keys.push(SigningKey { key: primary.clone(), primary: primary.fingerprint, expires });
    }
    for section in sections.iter().filter(|one| one.head.tag == packet::PUBLIC_SUBKEY) {
        let Some(subkey) = PublicKey::parse(&section.head.body) else { continue };
        if let Some(bound_until) = bound(&primary, &subkey, &section.signatures) {
            let expires = [expires, bound_until].into_iter().flatten().min();
            keys.push(SigningKey { key: subkey, primary: primary.fingerprint, expires });
        }
    }
    keys
}

/// A key, user or subkey, and the signatures that follow it.
struct Section<'a> {
    head: &'a Packet<'a>,
    signatures: Vec<Signature>,
}

/// Signatures that are not understood are left out: other people's, or made with SHA-1.
fn sections<'a>(packets: &'a [Packet<'a>]) -> Vec<Section<'a>> {
    let mut sections: Vec<Section<'a>> = Vec::new();
    for one in packets {
        match one.tag {
            packet::SIGNATURE => {
                if let (Some(section), Ok(signature)) =
                    (sections.last_mut(), Signature::parse(&one.body))
                {
                    section.signatures.push(signature);
                }
            }
            packet::PUBLIC_KEY
            | packet::PUBLIC_SUBKEY
            | packet::USER_ID
            | packet::USER_ATTRIBUTE => {
                sections.push(Section { head: one, signatures: Vec::new() });
            }
            _ => {}
        }
    }
    sections
}

/// The newest statement of the key about itself; `None`: there is none, or it is revoked.
fn self_signature(primary: &PublicKey, sections: &[Section<'_>]) -> Option<Statement> {
    let key = primary.hashed();
    let mut newest: Option<Statement> = None;
    for section in sections {
        let body = &section.head.body;
        let length = u32::try_from(body.len()).ok()?.to_be_bytes();
        for signature in &section.signatures {
            let valid = match (section.head.tag, signature.kind) {
                (packet::PUBLIC_KEY, KEY_REVOCATION) if signature.is_by(primary, &[&key]) => {
                    return None;
                }
                (packet::PUBLIC_KEY, DIRECT_KEY) => signature.is_by(primary, &[&key]),
                (packet::USER_ID, kind) if CERTIFICATIONS.contains(&kind) => {
                    signature.is_by(primary, &[&key, &[0xb4], &length, body])
                }
                _ => false,
            };
            if valid && newest.as_ref().is_none_or(|one| one.created <= signature.created) {
                newest = Some(Statement {
                    created: signature.created,
                    key_expires_after: signature.key_expires_after,
                    key_flags: signature.key_flags,
                });
            }
        }
    }
    newest
}

/// What a key says about itself.
struct Statement {
    created: i64,
    key_expires_after: i64,
    key_flags: Option<u8>,
}

fn expiry(key: &PublicKey, own: &Statement) -> Option<i64> {
    (own.key_expires_after != 0).then(|| key.created + own.key_expires_after)
}

/// Until when a subkey is bound for signing: by the primary key, and for signing subkeys the other
/// way too, lest somebody adopts another's subkey (RFC 9580, section 5.2.1.9).
fn bound(primary: &PublicKey, subkey: &PublicKey, signatures: &[Signature]) -> Option<Option<i64>> {
    let both = [primary.hashed(), subkey.hashed()];
    let both: Vec<&[u8]> = both.iter().map(Vec::as_slice).collect();
    let by_primary = |kind: u8| {
        let both = &both;
        signatures.iter().filter(move |one| one.kind == kind && one.is_by(primary, both))
    };
    if by_primary(SUBKEY_REVOCATION).next().is_some() {
        return None;
    }
    let binding = by_primary(SUBKEY_BINDING).max_by_key(|one| one.created)?;
    if binding.key_flags.is_none_or(|flags| flags & MAY_SIGN == 0) {
        return None;
    }
    let back = Signature::parse(binding.embedded.as_ref()?).ok()?;
    if back.kind != PRIMARY_BINDING || !back.is_by(subkey, &both) {
        return None;
    }
    let after = binding.key_expires_after;
    Some((after != 0).then(|| subkey.created + after))
}

/// Text between the lines of an armor (RFC 9580, section 6). Its checksum protects from nothing that
/// signatures do not protect from, and is ignored as the RFC demands.
fn dearmored(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((_, block)) = rest.split_once(BEGIN) {
        let (block, after) = block.split_once(END).ok_or("the armor of a keyring has no end")?;
        let block = block.replace('\r', "");
        // Headers end with an empty line.
        let (_, data) = block.split_once("\n\n").ok_or("the armor of a keyring is malformed")?;
        let data: String = data.lines().filter(|line| !line.starts_with('=')).collect();
        let data = STANDARD.decode(data.trim()).map_err(|_| "a keyring is not base64")?;
        bytes.extend_from_slice(&data);
        rest = after;
    }
    Ok(bytes)
}
