//! What the engine asks of the node's cache of blobs.
//!
//! The cache is the host's, so nothing it does is believed: it answers digests only, never tags; the
//! engine bounds what comes by the descriptor, hashes all of it, and goes on at the registry when the
//! cache has nothing, stops, fails or lies. What a digest names is no secret from the host here: a blob
//! is offered only if it came without credentials, or is encrypted.

use std::io;

use async_trait::async_trait;
use bytes::Bytes;
use nacre_trust::Digest;

/// The node's cache: untrusted in everything but its existence.
#[async_trait]
pub trait BlobCache: Send + Sync {
    /// The bytes of a blob of `size` bytes, from `offset` on. `None`: it has none.
    async fn get(&self, digest: &Digest, size: u64, offset: u64) -> Option<Box<dyn BlobStream>>;

    /// Offers a blob that is on its way from a registry. `None`: it is not wanted.
    async fn put(&self, digest: &Digest, size: u64) -> Option<Box<dyn BlobSink>>;
}

/// A blob that comes from the cache.
#[async_trait]
pub trait BlobStream: Send {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// Whatever ends the stream early.
    async fn next(&mut self) -> io::Result<Option<Bytes>>;
}

/// A blob that goes to the cache. Dropped without [`BlobSink::finish`] it is given up.
#[async_trait]
pub trait BlobSink: Send {
    /// Adds a piece.
    ///
    /// # Errors
    /// The cache wants no more of it.
    async fn write(&mut self, piece: Bytes) -> io::Result<()>;

    /// That was all of it.
    ///
    /// # Errors
    /// The cache did not keep it.
    async fn finish(self: Box<Self>) -> io::Result<()>;
}
