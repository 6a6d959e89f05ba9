//! Base64url without padding, which all of JOSE uses, with limits.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::JoseError;

pub(crate) fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// At most `limit` bytes.
pub(crate) fn decode(what: &'static str, text: &str, limit: usize) -> Result<Vec<u8>, JoseError> {
    if text.len() > limit.div_ceil(3) * 4 {
        return Err(JoseError::TooLarge { what, limit });
    }
    URL_SAFE_NO_PAD.decode(text).map_err(|_| JoseError::Malformed(what))
}

/// Exactly `N` bytes.
pub(crate) fn decode_array<const N: usize>(
    what: &'static str,
    text: &str,
) -> Result<[u8; N], JoseError> {
    decode(what, text, N)?.try_into().map_err(|_| JoseError::Malformed(what))
}
