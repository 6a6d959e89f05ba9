//! A blob while a guest brings it: written, hashed, and readable for those who follow.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use nacre_protocol::blob_cache::Blob;
use nacre_trust::{DigestMatch, DigestMismatch, Hasher};
use tokio::sync::watch;

use super::StoreError;
use super::shelf::{NoRoom, Shelf};

/// Why a blob is not kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IngestError {
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    #[error("more than the announced bytes")]
    TooMuch,
    #[error(transparent)]
    Digest(#[from] DigestMismatch),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot write: {0}")]
    Write(#[from] std::io::Error),
}

/// How far an ingest has come, and what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// So many bytes can be read.
    Growing(u64),
    /// All bytes can be read, and they have the digest.
    Whole,
    /// No more will come.
    Lost,
}

/// The file of a blob that is being put, and news of it.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    pub(crate) file: Arc<File>,
    pub(crate) outcome: watch::Receiver<Outcome>,
}

/// A blob that is being put. Dropped before it is whole, it is gone.
pub(crate) struct Ingest {
    shelf: Arc<Shelf>,
    blob: Blob,
    path: PathBuf,
    file: Arc<File>,
    hasher: Hasher,
    received: u64,
    /// Of the whole blob.
    proof: Option<DigestMatch>,
    kept: bool,
    outcome: watch::Sender<Outcome>,
}

impl Ingest {
    pub(super) fn new(
        shelf: Arc<Shelf>,
        blob: Blob,
        path: PathBuf,
        file: File,
    ) -> (Ingest, Progress) {
        let file = Arc::new(file);
        let (outcome, news) = watch::channel(Outcome::Growing(0));
        let progress = Progress { file: Arc::clone(&file), outcome: news };
        let hasher = Hasher::new(blob.digest.algorithm());
        let ingest = Ingest {
            shelf,
            blob,
            path,
            file,
            hasher,
            received: 0,
            proof: None,
            kept: false,
            outcome,
        };
        (ingest, progress)
    }

    /// Bytes that are missing.
    pub(crate) fn missing(&self) -> u64 {
        self.blob.size - self.received
    }

    /// Adds a piece; the last one is followed by the check of the digest, and followers have their end.
    /// Waits for the disk.
    pub(crate) fn write(&mut self, piece: &[u8]) -> Result<(), IngestError> {
        let bytes = piece.len() as u64;
        if bytes > self.missing() {
            return Err(IngestError::TooMuch);
        }
        self.shelf.receive(&self.blob, bytes)?;
        self.file.write_all_at(piece, self.received)?;
        self.hasher.update(piece);
        self.received += bytes;
        let mut outcome = Outcome::Growing(self.received);
        if self.missing() == 0 {
            self.proof = Some(self.hasher.clone().verify(&self.blob.digest)?);
            outcome = Outcome::Whole;
        }
        self.outcome.send_replace(outcome);
        Ok(())
    }

    /// Keeps the blob, if it is whole. Waits for the disk.
    pub(crate) fn keep(mut self) -> Result<(), IngestError> {
        if let Some(proof) = &self.proof {
            self.file.sync_data()?;
            self.shelf.keep(proof, self.blob.size, &self.path)?;
            self.kept = true;
        }
        Ok(())
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        self.outcome.send_if_modified(|outcome| {
            let lost = *outcome != Outcome::Whole;
            if lost {
                *outcome = Outcome::Lost;
            }
            lost
        });
        // Gone already if it was kept.
        let _ = std::fs::remove_file(&self.path);
        self.shelf.settle(&self.blob, self.kept);
    }
}
