//! Content of blobs: in memory, or described so shortly that gigabytes of it cost nothing to make.

use std::io::{self, Write};
use std::sync::Arc;

use nacre_trust::{Algorithm, Digest, Hasher};

/// A blob's bytes.
#[derive(Clone)]
pub struct Content {
    head: Arc<[u8]>,
    piece: Arc<[u8]>,
    times: u64,
    tail: Arc<[u8]>,
}

impl Content {
    /// `head`, then `piece` as often as `times`, then `tail`.
    #[must_use]
    pub fn repeated(head: &[u8], piece: &[u8], times: u64, tail: &[u8]) -> Self {
        Self { head: head.into(), piece: piece.into(), times, tail: tail.into() }
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        (self.head.len() + self.tail.len()) as u64 + self.piece.len() as u64 * self.times
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes all from the byte `offset` on, `limit` bytes at most.
    ///
    /// # Errors
    /// Those of `sink`.
    pub fn write(&self, sink: &mut dyn Write, offset: u64, limit: u64) -> io::Result<()> {
        let (mut skip, mut left) = (offset, limit);
        let mut part = |bytes: &[u8]| {
            let start = usize::try_from(skip).map_or(bytes.len(), |skip| skip.min(bytes.len()));
            skip -= start as u64;
            let rest = &bytes[start..];
            let len = usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
            left -= len as u64;
            sink.write_all(&rest[..len]).map(|()| left > 0)
        };
        if !part(&self.head)? {
            return Ok(());
        }
        for _ in 0..self.times {
            if !part(&self.piece)? {
                return Ok(());
            }
        }
        part(&self.tail).map(drop)
    }

    /// Digest of all of it.
    #[must_use]
    pub fn digest(&self, algorithm: Algorithm) -> Digest {
        struct Sink(Hasher);
        impl Write for Sink {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.update(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut sink = Sink(Hasher::new(algorithm));
        self.write(&mut sink, 0, u64::MAX).expect("hashing does not fail");
        sink.0.finish()
    }
}

impl<T: AsRef<[u8]>> From<T> for Content {
    fn from(bytes: T) -> Self {
        Self::repeated(bytes.as_ref(), &[], 0, &[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_can_be_written() {
        let content = Content::repeated(b"<", b"ab", 3, b">");
        assert_eq!(content.len(), 8);
        for (offset, limit, expected) in
            [(0, 99, "<ababab>"), (1, 99, "ababab>"), (2, 4, "baba"), (7, 1, ">"), (8, 9, "")]
        {
            let mut bytes = Vec::new();
            content.write(&mut bytes, offset, limit).expect("written");
            assert_eq!(bytes, expected.as_bytes());
        }
        assert_eq!(content.digest(Algorithm::Sha256), Digest::of(Algorithm::Sha256, b"<ababab>"));
    }
}
