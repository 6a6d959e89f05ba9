//! Content digests as OCI writes them (image-spec, descriptor.md, "Digests").

use std::fmt;
use std::str::FromStr;

use sha2::Digest as _;

use crate::proof::{DigestMatch, DigestMismatch};

/// Hash function of a [`Digest`]. Others are refused: a digest that cannot be checked proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, written `sha256`.
    Sha256,
    /// SHA-512, written `sha512`.
    Sha512,
}

impl Algorithm {
    /// Name in front of the colon.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

/// Digest of some content, of a fixed length for its algorithm: there is no constructor that pads or
/// truncates. Text form: `sha256:` or `sha512:` and lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    /// 32 bytes of SHA-256.
    Sha256([u8; 32]),
    /// 64 bytes of SHA-512.
    Sha512([u8; 64]),
}

impl Digest {
    /// Digest of bytes that are at hand; [`Hasher`] takes them piece by piece.
    #[must_use]
    pub fn of(algorithm: Algorithm, content: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(content);
        hasher.finish()
    }

    /// The hash function.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The digits after the colon: 64 or 128 of `0-9a-f`, so safe as a file name.
    #[must_use]
    pub fn hex(&self) -> String {
        match self {
            Self::Sha256(bytes) => hex::encode(bytes),
            Self::Sha512(bytes) => hex::encode(bytes),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm().name(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not a [`Digest`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// No `algorithm:` in front.
    #[error("a digest is written algorithm:hex, such as sha256:<64 hexadecimal digits>")]
    Form,
    /// Another algorithm than those in [`Algorithm`].
    #[error("digest algorithm is not supported; use sha256 or sha512")]
    Algorithm,
    /// Wrong number of digits, or characters other than `0-9a-f`.
    #[error("a {0} digest has {1} lower-case hexadecimal digits after the colon")]
    Hex(&'static str, usize),
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (algorithm, digits) = text.split_once(':').ok_or(DigestError::Form)?;
        match algorithm {
            "sha256" => parse_hex(digits).map(Self::Sha256).ok_or(DigestError::Hex("sha256", 64)),
            "sha512" => parse_hex(digits).map(Self::Sha512).ok_or(DigestError::Hex("sha512", 128)),
            _ => Err(DigestError::Algorithm),
        }
    }
}

/// Lower case only: the text form is compared and used as a file name, so there must be one.
fn parse_hex<const N: usize>(digits: &str) -> Option<[u8; N]> {
    if digits.bytes().any(|b| b.is_ascii_uppercase()) {
        return None;
    }
    let mut bytes = [0; N];
    hex::decode_to_slice(digits, &mut bytes).ok()?;
    Some(bytes)
}

/// Computes a [`Digest`] of content that streams by.
#[derive(Clone)]
pub struct Hasher(State);

#[derive(Clone)]
enum State {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// Starts with no content.
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => State::Sha512(sha2::Sha512::new()),
        })
    }

    /// Appends a piece of the content.
    pub fn update(&mut self, piece: &[u8]) {
        match &mut self.0 {
            State::Sha256(state) => state.update(piece),
            State::Sha512(state) => state.update(piece),
        }
    }

    /// Digest of all pieces.
    #[must_use]
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(state) => Digest::Sha256(state.finalize().into()),
            State::Sha512(state) => Digest::Sha512(state.finalize().into()),
        }
    }

    /// Ends the stream with the proof that its content is what `expected` names.
    ///
    /// # Errors
    /// [`DigestMismatch`] if it is not; also if this hasher was made for another algorithm.
    pub fn verify(self, expected: &Digest) -> Result<DigestMatch, DigestMismatch> {
        DigestMatch::compare(*expected, self.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn text_form_round_trips() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        assert_eq!(digest.to_string(), EMPTY);
        assert_eq!(EMPTY.parse(), Ok(digest));
        let long = Digest::of(Algorithm::Sha512, b"abc");
        assert_eq!(long.to_string().parse(), Ok(long));
        assert_eq!(long.hex().len(), 128);
    }

    #[test]
    fn hostile_texts_are_refused() {
        let upper = EMPTY.to_uppercase().replace("SHA256", "sha256");
        for (text, problem) in [
            ("", DigestError::Form),
            ("e3b0c442", DigestError::Form),
            ("md5:d41d8cd98f00b204e9800998ecf8427e", DigestError::Algorithm),
            ("SHA256:e3b0", DigestError::Algorithm),
            ("sha256:", DigestError::Hex("sha256", 64)),
            ("sha256:../../etc/passwd", DigestError::Hex("sha256", 64)),
            (&EMPTY[..EMPTY.len() - 1], DigestError::Hex("sha256", 64)),
            (&format!("{EMPTY}0"), DigestError::Hex("sha256", 64)),
            (&upper, DigestError::Hex("sha256", 64)),
            (&EMPTY.replace("sha256", "sha512"), DigestError::Hex("sha512", 128)),
        ] {
            assert_eq!(text.parse::<Digest>(), Err(problem), "{text}");
        }
    }

    #[test]
    fn pieces_hash_as_the_whole() {
        let mut hasher = Hasher::new(Algorithm::Sha512);
        hasher.update(b"a");
        hasher.update(b"bc");
        assert_eq!(hasher.finish(), Digest::of(Algorithm::Sha512, b"abc"));
    }

    #[test]
    fn a_stream_is_verified_or_not() {
        let digest = Digest::of(Algorithm::Sha256, b"abc");
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(b"abc");
        assert_eq!(hasher.clone().verify(&digest).map(|proof| *proof.digest()), Ok(digest));
        hasher.update(b"d");
        let mismatch = hasher.verify(&digest).expect_err("other content");
        assert_eq!(mismatch.expected(), &digest);
        let other = Hasher::new(Algorithm::Sha512).verify(&digest);
        assert!(other.is_err(), "another algorithm never matches");
    }
}
