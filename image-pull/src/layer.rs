//! One layer in one pass, on a thread of its own: bytes from the network are hashed, decrypted,
//! decompressed, hashed again and unpacked as they come. Nothing is buffered beyond a mebibyte, nothing
//! is read twice, and what was written counts only with [`Proofs`]: both digests have matched, and for an
//! encrypted layer its HMAC. Until then the stream is hostile.

use std::io::{self, BufRead, Read};
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use flate2::bufread::MultiGzDecoder;
use nacre_image_encryption::{Authentic, LayerCipher};
use nacre_trust::{Digest, DigestMatch, Hasher};

use crate::PullError;
use crate::archive::{Archive, ArchiveError};
use crate::budget::Share;
use crate::decryption::{Opened, refused};
use crate::extract::{ExtractError, extract};
use crate::manifest::{Compression, LayerBlob};
use crate::pieces::{Piece, Receiver};
use crate::store::{Lease, Staging, Store};

/// That a layer is the right one. Only [`LayerCheck::read`] makes it.
pub(crate) struct Proofs {
    diff_id: DigestMatch,
    _blob: DigestMatch,
    _authenticity: Authenticity,
}

/// That nobody without the key has made an encrypted layer.
enum Authenticity {
    NotEncrypted,
    Encrypted { _proof: Authentic },
}

impl Proofs {
    /// That the tar stream was what the configuration names.
    pub(crate) fn diff_id(&self) -> &DigestMatch {
        &self.diff_id
    }
}

/// What one layer's thread needs.
pub(crate) struct LayerJob {
    pub(crate) layer: LayerCheck,
    pub(crate) store: Arc<Store>,
}

impl LayerJob {
    /// Unpacks the blob that comes through `pieces` and takes it into the store. Blocks.
    pub(crate) fn run(self, pieces: Receiver) -> Result<Lease, PullError> {
        let staging = self.store.stage()?;
        self.unpack(staging, pieces)
    }

    fn unpack(self, staging: Staging, pieces: Receiver) -> Result<Lease, PullError> {
        let root = staging.open()?;
        let budget = &self.layer.budget;
        let unpacked = self.layer.read(pieces, |archive| extract(archive, root, budget));
        match unpacked {
            Ok((extracted, proofs)) => {
                let seal = self.layer.opened.as_ref().map(|opened| opened.seal);
                self.store.keep_layer(staging, extracted, &proofs, seal)
            }
            Err(error) => {
                // The layer may be fetched again from elsewhere.
                budget.give_back();
                Err(error)
            }
        }
    }
}

/// What a layer must be, packed and unpacked, and what reading it may spend.
pub(crate) struct LayerCheck {
    pub(crate) blob: LayerBlob,
    pub(crate) diff_id: Digest,
    /// For an encrypted layer.
    pub(crate) opened: Option<Arc<Opened>>,
    pub(crate) budget: Share,
    pub(crate) zstd_window_log: u32,
}

impl LayerCheck {
    /// Gives `work` the archive that comes through `pieces`, which has to read it to its end. What it
    /// made of it comes with the proofs that it was the right one. Blocks.
    pub(crate) fn read<T>(
        &self,
        pieces: Receiver,
        work: impl FnOnce(&mut Archive<TarReader<'_>>) -> Result<T, ExtractError>,
    ) -> Result<(T, Proofs), PullError> {
        if self.blob.encryption.is_some() != self.opened.is_some() {
            return Err(self.problem("is encrypted, and its key is not at hand"));
        }
        let blob = BlobReader {
            pieces,
            current: Bytes::new(),
            hasher: Hasher::new(self.blob.digest.algorithm()),
            cipher: self.opened.as_deref().map(Opened::cipher).transpose()?,
            ended: false,
        };
        let tar = TarReader {
            inner: Decompressor::new(self.blob.compression, self.zstd_window_log, blob)
                .map_err(|e| self.read_error(e))?,
            hasher: Hasher::new(self.diff_id.algorithm()),
            budget: &self.budget,
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
        let (blob, authenticity) = self.verify_blob(blob)?;
        if trailing {
            return Err(self.problem("there is data after the compressed stream"));
        }
        let diff_id = tar.hasher.verify(&self.diff_id).map_err(|mismatch| {
            let what = format!("layer {} unpacked (diff_id)", self.blob.digest);
            PullError::digest(what, mismatch)
        })?;
        Ok((result, Proofs { diff_id, _blob: blob, _authenticity: authenticity }))
    }

    fn verify_blob(&self, blob: BlobReader) -> Result<(DigestMatch, Authenticity), PullError> {
        let matched = blob.hasher.verify(&self.blob.digest).map_err(|mismatch| {
            PullError::digest(format!("layer {}", self.blob.digest), mismatch)
        })?;
        let authenticity = match blob.cipher.map(LayerCipher::finish) {
            None => Authenticity::NotEncrypted,
            Some(Ok(proof)) => Authenticity::Encrypted { _proof: proof },
            Some(Err(error)) => return Err(refused(&self.blob.digest, &error)),
        };
        Ok((matched, authenticity))
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

/// The blob as it comes, hashed and decrypted. Hands out the network's own buffers.
struct BlobReader {
    pieces: Receiver,
    current: Bytes,
    hasher: Hasher,
    cipher: Option<LayerCipher>,
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
            match self.pieces.next() {
                Some(Piece::Data(piece)) => {
                    self.hasher.update(&piece);
                    self.current = match &mut self.cipher {
                        None => piece,
                        Some(cipher) => {
                            let mut piece = piece
                                .try_into_mut()
                                .unwrap_or_else(|shared| BytesMut::from(&*shared));
                            cipher.decrypt(&mut piece);
                            piece.freeze()
                        }
                    };
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
pub(crate) struct TarReader<'a> {
    inner: Decompressor,
    hasher: Hasher,
    budget: &'a Share,
}

impl Read for TarReader<'_> {
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
