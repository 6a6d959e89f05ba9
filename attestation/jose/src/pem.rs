//! PEM (RFC 7468) of one block.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::JoseError;

/// Largest PEM text, in bytes.
const LIMIT: usize = 16 * 1024;

pub(crate) fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    let body = Zeroizing::new(STANDARD.encode(der));
    let mut text = Zeroizing::new(String::with_capacity(body.len() * 2 + 128));
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// The first block, which must have this label.
pub(crate) fn decode(label: &'static str, text: &str) -> Result<Zeroizing<Vec<u8>>, JoseError> {
    if text.len() > LIMIT {
        return Err(JoseError::TooLarge { what: "a PEM file", limit: LIMIT });
    }
    let begin = format!("-----BEGIN {label}-----");
    let end = format!("-----END {label}-----");
    let body = text.split_once(&begin).and_then(|(_, rest)| rest.split_once(&end));
    let (body, _) = body.ok_or(JoseError::Malformed("the PEM file"))?;
    let body: Zeroizing<String> =
        Zeroizing::new(body.chars().filter(|c| !c.is_ascii_whitespace()).collect());
    let der = STANDARD.decode(body.as_bytes());
    der.map(Zeroizing::new).map_err(|_| JoseError::Malformed("the PEM file"))
}
