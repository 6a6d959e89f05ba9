//! Unpacked layers on disk, named by the digest of their tar stream.
//!
//! A layer is written to `staging/` and renamed to `layers/<algorithm>/<hex>/` when both its digests
//! have been proved, so whatever is in `layers/` is whole. Beside the tree (`fs/`), `notes.json` keeps
//! what the tree cannot say.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use nacre_trust::{Digest, DigestMatch};
use rustix::fs::{CWD, Mode, OFlags, RenameFlags, open, renameat_with};
use serde::{Deserialize, Serialize};

use crate::PullError;
use crate::extract::Extracted;
use crate::removal;

/// Directory that holds the layers of all images of this guest.
#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
    serial: AtomicU64,
    /// One lock a layer: pulls that need the same one wait for the first.
    locks: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
}

/// A layer whose digests were proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredLayer {
    /// The tree.
    pub(crate) tree: PathBuf,
    /// See [`Extracted`].
    pub(crate) implied: Vec<PathBuf>,
    pub(crate) opaque_root: bool,
}

#[derive(Serialize, Deserialize)]
struct Notes {
    implied: Vec<Vec<u8>>,
    opaque_root: bool,
}

impl Store {
    /// Makes the directories, and removes what an interrupted pull left in staging.
    pub(crate) fn open(root: PathBuf) -> Result<Self, PullError> {
        let staging = root.join("staging");
        remove(&staging)?;
        for kind in
            ["staging", "layers/sha256", "layers/sha512", "parents/sha256", "parents/sha512"]
        {
            let directory = root.join(kind);
            make_private(&directory)
                .map_err(|e| PullError::io(format!("failed to make {}", directory.display()), e))?;
        }
        Ok(Self { root, serial: AtomicU64::new(0), locks: Mutex::default() })
    }

    /// Waits until nobody else works on the layer.
    pub(crate) async fn lock(&self, diff_id: &Digest) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().expect("no panic under lock");
            locks.retain(|_, lock| lock.strong_count() > 0);
            match locks.get(diff_id).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    let lock = Arc::new(tokio::sync::Mutex::new(()));
                    locks.insert(*diff_id, Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }

    /// The layer, if it is here.
    pub(crate) fn find(&self, diff_id: &Digest) -> Result<Option<StoredLayer>, PullError> {
        let layer = self.layer(diff_id);
        match std::fs::read(layer.join("notes.json")) {
            Ok(notes) => Self::read(&layer, &notes).map(Some),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(PullError::io(format!("failed to read {}", layer.display()), e)),
        }
    }

    fn read(layer: &Path, notes: &[u8]) -> Result<StoredLayer, PullError> {
        let notes: Notes = serde_json::from_slice(notes)
            .map_err(|e| PullError::io(format!("failed to read {}", layer.display()), e.into()))?;
        let path = |bytes| PathBuf::from(std::ffi::OsString::from_vec(bytes));
        Ok(StoredLayer {
            tree: layer.join("fs"),
            implied: notes.implied.into_iter().map(path).collect(),
            opaque_root: notes.opaque_root,
        })
    }

    /// An empty tree to unpack into.
    pub(crate) fn stage(&self) -> Result<Staging, PullError> {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let directory = self.root.join("staging").join(serial.to_string());
        let failed = |e| PullError::io(format!("failed to make {}", directory.display()), e);
        make_private(&directory).map_err(failed)?;
        let staging = Staging { directory: directory.clone(), kept: false };
        std::fs::create_dir(staging.tree()).map_err(failed)?;
        Ok(staging)
    }

    /// Takes a staged tree in as the layer `diff_id` names. Both proofs are demanded: that the blob was
    /// what the manifest names, and that the tar stream was what the configuration names.
    pub(crate) fn keep(
        &self,
        mut staging: Staging,
        extracted: Extracted,
        _blob: &DigestMatch,
        diff_id: &DigestMatch,
    ) -> Result<StoredLayer, PullError> {
        let layer = self.layer(diff_id.digest());
        let failed = |e: io::Error| PullError::io(format!("failed to make {}", layer.display()), e);
        let notes = Notes { implied: extracted.implied, opaque_root: extracted.opaque_root };
        let notes = serde_json::to_vec(&notes).map_err(|e| failed(e.into()))?;
        std::fs::write(staging.directory.join("notes.json"), &notes).map_err(failed)?;
        match renameat_with(CWD, &staging.directory, CWD, &layer, RenameFlags::NOREPLACE) {
            Ok(()) => staging.kept = true,
            // The same digest was proved for what is there.
            Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(failed(e.into())),
        }
        Self::read(&layer, &notes)
    }

    /// Where the corrected parent directories of an image go.
    pub(crate) fn parents(&self, manifest: &Digest) -> PathBuf {
        self.root.join("parents").join(manifest.algorithm().name()).join(manifest.hex())
    }

    fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.algorithm().name()).join(diff_id.hex())
    }
}

/// A tree that nobody has vouched for yet. Removed unless it is kept.
pub(crate) struct Staging {
    directory: PathBuf,
    kept: bool,
}

impl Staging {
    pub(crate) fn tree(&self) -> PathBuf {
        self.directory.join("fs")
    }

    /// Moves the bare tree to `target`, or leaves what another pull put there.
    pub(crate) fn keep_tree(self, target: &Path) -> Result<(), PullError> {
        match renameat_with(CWD, self.tree(), CWD, target, RenameFlags::NOREPLACE) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
            Err(e) => Err(PullError::io(format!("failed to make {}", target.display()), e.into())),
        }
    }

    /// Descriptor of the tree's root.
    pub(crate) fn open(&self) -> Result<OwnedFd, PullError> {
        let tree = self.tree();
        let failed = |e: io::Error| PullError::io(format!("failed to open {}", tree.display()), e);
        let root = open(&tree, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| failed(e.into()))?;
        // Whatever the umask was: a root that has no entry in the layer is readable by all.
        rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755)).map_err(|e| failed(e.into()))?;
        Ok(root)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.kept
            && let Err(e) = remove(&self.directory)
        {
            tracing::warn!(error = %e, "a failed layer could not be removed");
        }
    }
}

fn make_private(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

pub(crate) fn remove(path: &Path) -> Result<(), PullError> {
    removal::remove(CWD, path.as_os_str().as_bytes())
        .map_err(|e| PullError::io(format!("failed to remove {}", path.display()), e.into()))
}
