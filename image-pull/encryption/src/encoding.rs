//! Base64 in the two alphabets that the formats mix, with limits.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

use crate::EncryptionError;

/// As annotations and Go's JSON have it: padded.
pub(crate) fn to_base64(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}

/// As JOSE has it.
pub(crate) fn to_base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(crate) fn base64(
    what: &'static str,
    text: &str,
    limit: usize,
) -> Result<Zeroizing<Vec<u8>>, EncryptionError> {
    decode(&STANDARD, what, text, limit)
}

pub(crate) fn base64url(
    what: &'static str,
    text: &str,
    limit: usize,
) -> Result<Zeroizing<Vec<u8>>, EncryptionError> {
    decode(&URL_SAFE_NO_PAD, what, text, limit)
}

fn decode(
    engine: &impl base64::Engine,
    what: &'static str,
    text: &str,
    limit: usize,
) -> Result<Zeroizing<Vec<u8>>, EncryptionError> {
    if text.len() > limit.div_ceil(3) * 4 {
        return Err(EncryptionError::TooLarge { what, limit });
    }
    engine.decode(text).map(Zeroizing::new).map_err(|_| EncryptionError::Malformed(what))
}
