//! One layer in one pass, on a thread of its own: bytes from the network are hashed, decompressed,
//! hashed again and unpacked as they come. Nothing is buffered beyond a few pieces, nothing is read
//! twice, and what was written counts only when both digests have matched.

use std::io::{self, BufRead, Read};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use flate2::bufread::MultiGzDecoder;
use nacre_trust::{Digest, DigestMatch, Hasher};
use tokio::sync::{OwnedMutexGuard, mpsc};

use crate::PullError;
use crate::archive::{Archive, ArchiveError};
use crate::budget::Budget;
use crate::extract::{ExtractError, extract};
use crate::manifest::{Compression, LayerBlob};
use crate::store::{Staging, Store, StoredLayer};

/// Pieces that may wait for the unpacking thread. The network stops when they are that many.
pub(crate) const PIECES: usize = 8;

/// A piece of a blob, or the word that it is whole. A channel that closes without it was cut.
pub(crate) enum Piece {
    Data(Bytes),
    End,
}

/// What one layer's thread needs.
pub(crate) struct LayerJob {
    pub(crate) layer: LayerCheck,
    pub(crate) store: Arc<Store>,
    /// Held until the thread is done, even if nobody waits for it any more.
    pub(crate) lock: OwnedMutexGuard<()>,
}

impl LayerJob {
    /// Unpacks the blob that comes through `pieces` and takes it into the store. Blocks.
    pub(crate) fn run(self, pieces: mpsc::Receiver<Piece>) -> Result<StoredLayer, PullError> {
        let staging = self.store.stage()?;
        let stored = self.unpack(staging, pieces);
        drop(self.lock);
        stored
    }

    fn unpack(
        &self,
        staging: Staging,
        pieces: mpsc::Receiver<Piece>,
    ) -> Result<StoredLayer, PullError> {
        let root = staging.open()?;
        let budget = &self.layer.budget;
        let (extracted, blob, diff_id) =
            self.layer.read(pieces, |archive| extract(archive, root, budget))?;
        self.store.keep(staging, extracted, &blob, &diff_id)
    }
}

/// What a layer must be, packed and unpacked, and what reading it may spend.
pub(crate) struct LayerCheck {
    pub(crate) blob: LayerBlob,
    pub(crate) diff_id: Digest,
    pub(crate) budget: Arc<Budget>,
    pub(crate) zstd_window_log: u32,
}

impl LayerCheck {
    /// Gives `work` the archive that comes through `pieces`, which has to read it to its end. What it
    /// made of it comes with the proofs that blob and archive were the right ones. Blocks.
    pub(crate) fn read<T>(
        &self,
        pieces: mpsc::Receiver<Piece>,
        work: impl FnOnce(&mut Archive<TarReader>) -> Result<T, ExtractError>,
    ) -> Result<(T, DigestMatch, DigestMatch), PullError> {
        let blob = BlobReader {
            pieces,
            current: Bytes::new(),
            hasher: Hasher::new(self.blob.digest.algorithm()),
            ended: false,
        };
        let tar = TarReader {
            inner: Decompressor::new(self.blob.compression, self.zstd_window_log, blob)
                .map_err(|e| self.read_error(e))?,
            hasher: Hasher::new(self.diff_id.algorithm()),
            budget: self.budget.clone(),
        };
        let mut archive = Archive::new(tar);
        let result = work(&mut archive).map_err(|e| self.extract_error(e));
        let tar = archive.into_inner();
        let mut blob = tar.inner.into_inner();
        let result = match result {
            // What was changed on its way mostly breaks the stream first. Name the cause, not that.
            Err(error @ PullError::Layer { .. }) => {
                blob.drain().map_err(|e| self.read_error(e))?;
                self.verify_blob(blob)?;
                return Err(error);
            }
            other => other?,
        };
        // A gzip or zstd stream can end before the blob does.
        let trailing = blob.drain().map_err(|e| self.read_error(e))?;
        let blob = self.verify_blob(blob)?;
        if trailing {
            return Err(self.problem("there is data after the compressed stream"));
        }
        let diff_id = tar.hasher.verify(&self.diff_id).map_err(|mismatch| {
            let what = format!("layer {} unpacked (diff_id)", self.blob.digest);
            PullError::digest(what, mismatch)
        })?;
        Ok((result, blob, diff_id))
    }

    fn verify_blob(&self, blob: BlobReader) -> Result<DigestMatch, PullError> {
        blob.hasher
            .verify(&self.blob.digest)
            .map_err(|mismatch| PullError::digest(format!("layer {}", self.blob.digest), mismatch))
    }

    fn problem(&self, problem: impl Into<String>) -> PullError {
        PullError::Layer { digest: self.blob.digest, problem: problem.into() }
    }

    fn extract_error(&self, error: ExtractError) -> PullError {
        match error {
            ExtractError::Refused(problem) => self.problem(problem),
            ExtractError::Write(what, errno) => {
                PullError::io(format!("failed to unpack {what}"), errno.into())
            }
            ExtractError::Archive(ArchiveError::Refused(problem)) => self.problem(problem),
            ExtractError::Archive(ArchiveError::Read(e)) => self.read_error(e),
            ExtractError::Budget(error) => error,
        }
    }

    /// Our own errors travel through the decompressor as they are; its own mean a bad stream.
    fn read_error(&self, error: io::Error) -> PullError {
        match error.downcast::<PullError>() {
            Ok(error) => error,
            Err(error) => self.problem(match self.blob.compression {
                Compression::None => error.to_string(),
                Compression::Gzip => format!("its gzip stream is broken: {error}"),
                Compression::Zstd => format!(
                    "its zstd stream is broken, or needs a window above {} MiB: {error}",
                    (1_u64 << self.zstd_window_log) >> 20
                ),
            }),
        }
    }
}

/// The blob as it comes, hashed. Hands out the network's own buffers.
struct BlobReader {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    hasher: Hasher,
    ended: bool,
}

impl BlobReader {
    /// Reads and hashes the rest; whether there was any.
    fn drain(&mut self) -> io::Result<bool> {
        let mut any = false;
        while !self.fill_buf()?.is_empty() {
            any = true;
            self.current.clear();
        }
        Ok(any)
    }
}

impl BufRead for BlobReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(piece)) => {
                    self.hasher.update(&piece);
                    self.current = piece;
                }
                Some(Piece::End) => self.ended = true,
                None => return Err(io::Error::other(PullError::Abandoned)),
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.current.advance(amount);
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let len = available.len().min(buffer.len());
        buffer[..len].copy_from_slice(&available[..len]);
        self.consume(len);
        Ok(len)
    }
}

/// The media type decides, not the first bytes: what is called gzip must be gzip.
enum Decompressor {
    None(Box<BlobReader>),
    Gzip(Box<MultiGzDecoder<BlobReader>>),
    Zstd(Box<zstd::Decoder<'static, BlobReader>>),
}

impl Decompressor {
    fn new(compression: Compression, window_log: u32, blob: BlobReader) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::None(Box::new(blob)),
            Compression::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(blob))),
            Compression::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(blob)?;
                decoder.window_log_max(window_log)?;
                Self::Zstd(Box::new(decoder))
            }
        })
    }

    fn into_inner(self) -> BlobReader {
        match self {
            Self::None(blob) => *blob,
            Self::Gzip(decoder) => (*decoder).into_inner(),
            Self::Zstd(decoder) => decoder.finish(),
        }
    }
}

/// The tar stream, hashed and counted.
pub(crate) struct TarReader {
    inner: Decompressor,
    hasher: Hasher,
    budget: Arc<Budget>,
}

impl Read for TarReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = match &mut self.inner {
            Decompressor::None(reader) => reader.read(buffer),
            Decompressor::Gzip(reader) => reader.read(buffer),
            Decompressor::Zstd(reader) => reader.read(buffer),
        }?;
        self.budget.take_bytes(len as u64).map_err(io::Error::other)?;
        self.hasher.update(&buffer[..len]);
        Ok(len)
    }
}
