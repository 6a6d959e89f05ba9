//! Untrusted values, the checks that let them out, and the witnesses these leave behind.

use std::fmt;

use crate::{Digest, Hasher};

/// A value from outside. Nothing can be done with it but check it; it does not even print.
pub struct Untrusted<T>(T);

impl<T> Untrusted<T> {
    /// Marks a value as coming from outside.
    pub const fn new(value: T) -> Self {
        Self(value)
    }
}

impl<T: AsRef<[u8]>> Untrusted<T> {
    /// Lets content out if it is exactly what `expected` names.
    ///
    /// # Errors
    /// [`DigestMismatch`] if it is not; the content is dropped.
    pub fn verify_digest(
        self,
        expected: &Digest,
    ) -> Result<Verified<T, DigestMatch>, DigestMismatch> {
        let mut hasher = Hasher::new(expected.algorithm());
        hasher.update(self.0.as_ref());
        let witness = hasher.verify(expected)?;
        Ok(Verified { value: self.0, witness })
    }

    /// The digest that names this content. It says nothing about who made the content: a caller that
    /// was given a tag and no digest learns here what the tag stands for, and stays with it.
    #[must_use]
    pub fn digest(&self, algorithm: crate::Algorithm) -> Digest {
        Digest::of(algorithm, self.0.as_ref())
    }
}

impl<T> fmt::Debug for Untrusted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Untrusted(..)")
    }
}

/// Says that a `Self` proves something about values of type `T`. The crate that makes such witnesses
/// implements it, and must make one only together with the value that it checked.
pub trait Attests<T> {}

/// A value and the witness `W` of what was proved about it. Only a check can make one.
#[derive(Debug)]
pub struct Verified<T, W> {
    value: T,
    witness: W,
}

impl<T, W: Attests<T>> Verified<T, W> {
    /// Lets a value out together with the witness that its check has made.
    pub fn attested(value: Untrusted<T>, witness: W) -> Self {
        Self { value: value.0, witness }
    }
}

impl<T, W> Verified<T, W> {
    /// The value.
    pub const fn get(&self) -> &T {
        &self.value
    }

    /// What was proved about it.
    pub const fn witness(&self) -> &W {
        &self.witness
    }
}

/// Witness that some content is exactly what a digest names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DigestMatch(Digest);

impl DigestMatch {
    /// The digest that was matched.
    #[must_use]
    pub const fn digest(&self) -> &Digest {
        &self.0
    }

    pub(crate) fn compare(expected: Digest, actual: Digest) -> Result<Self, DigestMismatch> {
        if expected == actual {
            Ok(Self(expected))
        } else {
            Err(DigestMismatch(Box::new([expected, actual])))
        }
    }
}

/// Content is not what its digest names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("digest mismatch: expected {}, got {}", .0[0], .0[1])]
pub struct DigestMismatch(Box<[Digest; 2]>);

impl DigestMismatch {
    /// The digest that was asked for.
    #[must_use]
    pub fn expected(&self) -> &Digest {
        &self.0[0]
    }

    /// The digest of what came.
    #[must_use]
    pub fn actual(&self) -> &Digest {
        &self.0[1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Algorithm;

    #[test]
    fn content_leaves_by_its_digest_only() {
        let digest = Digest::of(Algorithm::Sha256, b"manifest");
        let verified = Untrusted::new(b"manifest".to_vec()).verify_digest(&digest).expect("same");
        assert_eq!(verified.get(), b"manifest");
        assert_eq!(verified.witness().digest(), &digest);

        let mismatch = Untrusted::new(b"tampered").verify_digest(&digest).expect_err("tampered");
        assert_eq!(mismatch.actual(), &Digest::of(Algorithm::Sha256, b"tampered"));
        assert!(mismatch.to_string().contains(&digest.to_string()));
    }

    #[test]
    fn untrusted_content_does_not_print() {
        assert_eq!(format!("{:?}", Untrusted::new("token")), "Untrusted(..)");
    }
}
