//! The first block of an encrypted volume, and the keys that come with it. docs/volume-format.md has the format.
//!
//! The header says little, because its reader trusts nothing in it: cipher and layout are fixed by the version,
//! and all of it is authenticated under the owner's key before anything is done with it. A format whose header
//! chose the cipher could be told by the host to use none.

use hkdf::Hkdf;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

/// Length of the header, in bytes; one sector of the volume.
pub const LENGTH: usize = 4096;
/// Length of the salt, in bytes.
pub const SALT: usize = 32;
/// Length of the authentication code, in bytes.
const CODE: usize = 32;

const MAGIC: &[u8; 16] = b"nacre-volume\0\0\0\x01";
const CONTENT_AT: usize = 16;
const STATE_AT: usize = 20;
const SALT_AT: usize = 32;
const CODE_AT: usize = SALT_AT + SALT;

/// Shorter secrets are no keys, in bytes.
pub const LEAST_SECRET: usize = 32;
/// Longer ones are a mistake, in bytes.
pub const MOST_SECRET: usize = 4096;

/// What a volume holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Content {
    /// ext4, which the guest has made.
    FileSystem = 1,
    /// Whatever a container writes to the block device.
    Raw = 2,
}

/// How far a volume was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// Not to the end: it holds nothing yet.
    Making = 1,
    /// It may hold data.
    Ready = 2,
}

/// The keys of a volume.
pub struct Keys {
    header: Zeroizing<[u8; 32]>,
    /// Of the sectors: two of AES-256, and that of the HMAC.
    pub sectors: Zeroizing<[u8; 96]>,
    /// Of dm-integrity's journal: HMAC.
    pub journal: Zeroizing<[u8; 32]>,
}

/// An authenticated header.
#[derive(Debug, PartialEq, Eq)]
pub struct Header {
    /// What the volume holds.
    pub content: Content,
    /// How far it was made.
    pub state: State,
    /// What its keys are derived with, beside the secret.
    pub salt: [u8; SALT],
}

/// What is at the beginning of a disk.
#[derive(Debug, PartialEq, Eq)]
pub enum Beginning {
    /// Zeros.
    Blank,
    /// A header, not yet authenticated, with this salt.
    Volume([u8; SALT]),
    /// Something else, which is left alone.
    Foreign,
}

/// Why a header cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Wrong key, wrong name, or changed.
    #[error(
        "its header does not fit the key and the volume's name: this is another volume, another key, or the \
         host has changed it"
    )]
    Unauthentic,
    /// Authentic, but not of this version.
    #[error("its header is of a later version of this guest")]
    Unknown,
}

impl From<HeaderError> for String {
    fn from(error: HeaderError) -> Self {
        error.to_string()
    }
}

impl Keys {
    /// Derives the keys. Each volume has its own, by its salt and its name, even where two have one secret.
    #[must_use]
    pub fn derive(secret: &[u8], salt: &[u8; SALT], volume: &str) -> Self {
        let extracted = Hkdf::<Sha256>::new(Some(salt), secret);
        Self {
            header: expand(&extracted, "header", volume),
            sectors: expand(&extracted, "sectors", volume),
            journal: expand(&extracted, "journal", volume),
        }
    }
}

fn expand<const N: usize>(
    extracted: &Hkdf<Sha256>,
    what: &str,
    volume: &str,
) -> Zeroizing<[u8; N]> {
    let mut key = Zeroizing::new([0; N]);
    let info = [b"nacre volume 1 ", what.as_bytes(), b"\0", volume.as_bytes()];
    // HKDF gives up to 255 hashes; the longest key has three.
    extracted.expand_multi_info(&info, &mut *key).expect("three hashes at most");
    key
}

impl Beginning {
    /// Looks at the first bytes of a disk.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        if bytes.iter().all(|byte| *byte == 0) {
            return Self::Blank;
        }
        let salt = bytes.get(SALT_AT..CODE_AT).and_then(|salt| salt.try_into().ok());
        match salt {
            Some(salt) if bytes.starts_with(MAGIC) => Self::Volume(salt),
            _ => Self::Foreign,
        }
    }
}

impl Header {
    /// The header's block.
    #[must_use]
    pub fn render(&self, keys: &Keys) -> Vec<u8> {
        let mut block = vec![0; LENGTH];
        block[..MAGIC.len()].copy_from_slice(MAGIC);
        block[CONTENT_AT..STATE_AT].copy_from_slice(&(self.content as u32).to_le_bytes());
        block[STATE_AT..STATE_AT + 4].copy_from_slice(&(self.state as u32).to_le_bytes());
        block[SALT_AT..CODE_AT].copy_from_slice(&self.salt);
        let code = code(keys, &block[..CODE_AT]).finalize().into_bytes();
        block[CODE_AT..CODE_AT + CODE].copy_from_slice(&code);
        block
    }

    /// Authenticates a block that [`Beginning::of`] took for a header.
    ///
    /// # Errors
    /// If it does not fit the keys, or is of a version that is not known.
    pub fn open(block: &[u8], keys: &Keys) -> Result<Self, HeaderError> {
        let said = block.get(..CODE_AT).ok_or(HeaderError::Unauthentic)?;
        let given = block.get(CODE_AT..CODE_AT + CODE).ok_or(HeaderError::Unauthentic)?;
        code(keys, said).verify_slice(given).map_err(|_| HeaderError::Unauthentic)?;
        let word = |at: usize| {
            said.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes)
        };
        let content = match word(CONTENT_AT) {
            Some(1) => Content::FileSystem,
            Some(2) => Content::Raw,
            _ => return Err(HeaderError::Unknown),
        };
        let state = match word(STATE_AT) {
            Some(1) => State::Making,
            Some(2) => State::Ready,
            _ => return Err(HeaderError::Unknown),
        };
        let salt = said.get(SALT_AT..).and_then(|salt| salt.try_into().ok());
        let salt = salt.ok_or(HeaderError::Unauthentic)?;
        Ok(Self { content, state, salt })
    }
}

fn code(keys: &Keys, said: &[u8]) -> Hmac<Sha256> {
    let mut code = Hmac::new_from_slice(&*keys.header).expect("HMAC takes keys of any length");
    code.update(said);
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: [u8; 32] = [7; 32];
    const SALTED: [u8; 32] = [9; 32];

    fn keys(volume: &str) -> Keys {
        Keys::derive(&SECRET, &SALTED, volume)
    }

    #[test]
    fn a_header_is_read_by_who_has_key_and_name() {
        let header = Header { content: Content::Raw, state: State::Ready, salt: SALTED };
        let block = header.render(&keys("data"));
        assert_eq!(block.len(), LENGTH);
        assert_eq!(Beginning::of(&block), Beginning::Volume(SALTED));
        assert_eq!(Header::open(&block, &keys("data")), Ok(header));
        assert_eq!(Header::open(&block, &keys("data2")), Err(HeaderError::Unauthentic));
        let other = Keys::derive(&[8; 32], &SALTED, "data");
        assert_eq!(Header::open(&block, &other), Err(HeaderError::Unauthentic));
    }

    #[test]
    fn every_changed_bit_is_seen() {
        let header = Header { content: Content::FileSystem, state: State::Making, salt: SALTED };
        let keys = keys("data");
        let block = header.render(&keys);
        for bit in 0..(CODE_AT + CODE) * 8 {
            let mut changed = block.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let known = matches!(Beginning::of(&changed), Beginning::Volume(_));
            assert!(!known || Header::open(&changed, &keys).is_err(), "bit {bit}");
        }
        for length in 0..CODE_AT + CODE {
            assert!(Header::open(&block[..length], &keys).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn what_is_no_header_is_left_alone() {
        assert_eq!(Beginning::of(&[0; LENGTH]), Beginning::Blank);
        assert_eq!(Beginning::of(b"LUKS\xba\xbe\0\x02"), Beginning::Foreign);
        assert_eq!(Beginning::of(MAGIC), Beginning::Foreign);
    }

    #[test]
    fn keys_are_the_documented_ones() {
        // Python: HKDF (RFC 5869) with SHA-256 of the same secret, salt and information.
        let keys = keys("data");
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(hex(&*keys.header), HEADER_KEY);
        assert!(hex(&*keys.sectors).starts_with(SECTORS_KEY_BEGINS));
        assert_eq!(hex(&*keys.journal), JOURNAL_KEY);
    }

    const HEADER_KEY: &str = "13eb175b5a87b16accb6d5a22f979266bc0c1340d813889976d7deb02cdc4ee9";
    const SECTORS_KEY_BEGINS: &str =
        "5088c28f1e373af1cfe133badc46a61b1548b7c873f673d83fd86b04fb64f8e2";
    const JOURNAL_KEY: &str = "ba978a377d9daa20f6b30df9548b45d12f25a6c8ef307f7178bb69bd983be624";
}
