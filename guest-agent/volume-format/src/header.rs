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

const MAGIC: &[u8; 12] = b"nacre-volume";
const VERSION_AT: usize = 12;
const VERSION: u32 = 1;
const CONTENT_AT: usize = 16;
const STATE_AT: usize = 20;
const SIZE_AT: usize = 24;
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
pub enum State {
    /// Not to the end: it holds nothing yet.
    Making,
    /// It may hold data.
    Ready {
        /// Its size, in bytes. A disk that now has room for less was cut short.
        bytes: u64,
    },
}

const MAKING: u32 = 1;
const READY: u32 = 2;

/// What a volume is bound to, beside its secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whose<'a> {
    /// The owner's name for it.
    pub volume: &'a str,
    /// The name of its pod, where the owner binds it to one.
    pub pod: Option<&'a str>,
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
    /// A header of another version.
    OtherVersion(u32),
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
    /// Authentic, and yet with words that this version does not have.
    #[error("its header says what this guest does not know: it was made by a later one")]
    Unknown,
}

impl From<HeaderError> for String {
    fn from(error: HeaderError) -> Self {
        error.to_string()
    }
}

impl Keys {
    /// Derives the keys. Each volume has its own, by its salt and whose it is, even where two have one secret.
    #[must_use]
    pub fn derive(secret: &[u8], salt: &[u8; SALT], whose: Whose<'_>) -> Self {
        let extracted = Hkdf::<Sha256>::new(Some(salt), secret);
        Self {
            header: expand(&extracted, "header", whose),
            sectors: expand(&extracted, "sectors", whose),
            journal: expand(&extracted, "journal", whose),
        }
    }
}

fn expand<const N: usize>(
    extracted: &Hkdf<Sha256>,
    what: &str,
    whose: Whose<'_>,
) -> Zeroizing<[u8; N]> {
    let mut key = Zeroizing::new([0; N]);
    // The volume's name has no zero byte.
    let (separator, pod) = match whose.pod {
        Some(pod) => (&b"\0"[..], pod.as_bytes()),
        None => (&b""[..], &b""[..]),
    };
    let info =
        [b"nacre volume 1 ", what.as_bytes(), b"\0", whose.volume.as_bytes(), separator, pod];
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
        match (word(bytes, VERSION_AT), salt) {
            _ if !bytes.starts_with(MAGIC) => Self::Foreign,
            (Some(VERSION), Some(salt)) => Self::Volume(salt),
            (Some(version), Some(_)) => Self::OtherVersion(version),
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
        let (state, size) = match self.state {
            State::Making => (MAKING, 0),
            State::Ready { bytes } => (READY, bytes),
        };
        block[VERSION_AT..CONTENT_AT].copy_from_slice(&VERSION.to_le_bytes());
        block[CONTENT_AT..STATE_AT].copy_from_slice(&(self.content as u32).to_le_bytes());
        block[STATE_AT..SIZE_AT].copy_from_slice(&state.to_le_bytes());
        block[SIZE_AT..SALT_AT].copy_from_slice(&size.to_le_bytes());
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
        let content = match word(said, CONTENT_AT) {
            Some(1) => Content::FileSystem,
            Some(2) => Content::Raw,
            _ => return Err(HeaderError::Unknown),
        };
        let size = said.get(SIZE_AT..SALT_AT).and_then(|size| size.try_into().ok());
        let state = match (word(said, STATE_AT), size.map(u64::from_le_bytes)) {
            (Some(MAKING), Some(0)) => State::Making,
            (Some(READY), Some(bytes)) => State::Ready { bytes },
            _ => return Err(HeaderError::Unknown),
        };
        let salt = said.get(SALT_AT..).and_then(|salt| salt.try_into().ok());
        let salt = salt.ok_or(HeaderError::Unauthentic)?;
        Ok(Self { content, state, salt })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
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

    const READY_ONE: State = State::Ready { bytes: 60 << 20 };

    fn keys(volume: &str) -> Keys {
        Keys::derive(&SECRET, &SALTED, Whose { volume, pod: None })
    }

    #[test]
    fn a_header_is_read_by_who_has_key_and_name() {
        let header = Header { content: Content::Raw, state: READY_ONE, salt: SALTED };
        let block = header.render(&keys("data"));
        assert_eq!(block.len(), LENGTH);
        assert_eq!(Beginning::of(&block), Beginning::Volume(SALTED));
        assert_eq!(Header::open(&block, &keys("data")).as_ref(), Ok(&header));
        assert_eq!(Header::open(&block, &keys("data2")), Err(HeaderError::Unauthentic));
        let whose = Whose { volume: "data", pod: None };
        let other = Keys::derive(&[8; 32], &SALTED, whose);
        assert_eq!(Header::open(&block, &other), Err(HeaderError::Unauthentic));
        // Bound to a pod it is none of another's, and none without one.
        let bound = |pod| Keys::derive(&SECRET, &SALTED, Whose { pod: Some(pod), ..whose });
        let block = header.render(&bound("web-0"));
        assert_eq!(Header::open(&block, &bound("web-0")), Ok(header));
        for other in [bound("web-1"), keys("data"), keys("dataweb-0")] {
            assert_eq!(Header::open(&block, &other), Err(HeaderError::Unauthentic));
        }
    }

    fn header() -> Header {
        Header { content: Content::FileSystem, state: State::Making, salt: SALTED }
    }

    /// What is behind the code is not read.
    #[test]
    fn every_changed_bit_is_seen() {
        let keys = keys("data");
        let block = header().render(&keys);
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
    fn words_that_are_not_known_are_refused() {
        let keys = keys("data");
        for (at, value) in [(CONTENT_AT, 3), (STATE_AT, 3), (STATE_AT, READY), (SIZE_AT, 1)] {
            let mut block = header().render(&keys);
            block[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
            let code = code(&keys, &block[..CODE_AT]).finalize().into_bytes();
            block[CODE_AT..CODE_AT + CODE].copy_from_slice(&code);
            let opened = Header::open(&block, &keys);
            let is_ready = (at, value) == (STATE_AT, READY);
            assert_eq!(opened.is_ok(), is_ready, "{at} {value}: {opened:?}");
        }
    }

    #[test]
    fn what_is_no_header_is_left_alone() {
        assert_eq!(Beginning::of(&[0; LENGTH]), Beginning::Blank);
        assert_eq!(Beginning::of(b"LUKS\xba\xbe\0\x02"), Beginning::Foreign);
        assert_eq!(Beginning::of(MAGIC), Beginning::Foreign);
        let mut later = header().render(&keys("data"));
        later[VERSION_AT] = 2;
        assert_eq!(Beginning::of(&later), Beginning::OtherVersion(2));
    }

    #[test]
    fn keys_are_the_documented_ones() {
        // Python: HKDF (RFC 5869) with SHA-256 of the same secret, salt and information.
        let keys = keys("data");
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(hex(&*keys.header), HEADER_KEY);
        assert_eq!(hex(&*keys.sectors), SECTORS_KEY);
        assert_eq!(hex(&*keys.journal), JOURNAL_KEY);
        let whose = Whose { volume: "data", pod: Some("web-0") };
        let bound = Keys::derive(&SECRET, &SALTED, whose);
        assert_eq!(hex(&*bound.header), BOUND_HEADER_KEY);
    }

    const HEADER_KEY: &str = "13eb175b5a87b16accb6d5a22f979266bc0c1340d813889976d7deb02cdc4ee9";
    const SECTORS_KEY: &str = "5088c28f1e373af1cfe133badc46a61b1548b7c873f673d83fd86b04fb64f8e2\
                               b654fa9290739d462bf4eae888a28f59367ffa2707a83ac1989a792aa9428a1e\
                               ebb70710ef54f1452db7d628c32a1a154338d6e279df7601f984cbd8a5e41959";
    const BOUND_HEADER_KEY: &str =
        "2bd2bd3debe33d6d8388c738ad761235ec3244796064c64b98e5b7ff86c1577a";
    const JOURNAL_KEY: &str = "ba978a377d9daa20f6b30df9548b45d12f25a6c8ef307f7178bb69bd983be624";
}
