//! Unpacked layers on disk, named by the digest of their tar stream, for as long as an image uses them.
//!
//! A layer is written to `staging/` and renamed to `layers/<algorithm>/<hex>/fs` when it was proved to be
//! the right one, so whatever is in `layers/` is whole. Each image holds a [`Lease`] on each of its trees;
//! with the last lease the tree goes: renamed to `trash/` at once, removed by a thread of its own.
//!
//! What the tree cannot say is kept in memory. A store therefore begins empty: what an earlier process
//! left in the directory is removed.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nacre_trust::Digest;
use rustix::fs::{CWD, Mode, OFlags, RenameFlags, open, renameat_with};

use crate::PullError;
use crate::extract::Extracted;
use crate::layer::Proofs;
use crate::removal;

/// Directory that holds the layers of all images of this guest.
pub(crate) struct Store {
    root: PathBuf,
    serial: AtomicU64,
    /// One lock a tree: pulls that need the same one wait for the first.
    locks: Mutex<HashMap<Key, Weak<tokio::sync::Mutex<()>>>>,
    trees: Mutex<HashMap<Key, Kept>>,
    trash: Arc<Mutex<Trash>>,
}

/// What a tree is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// A layer. One that was encrypted is shared only with images that carry the same wrapped keys.
    Layer { diff_id: Digest, seal: Option<Digest> },
    /// Corrected parent directories of the image with this manifest.
    Parents(Digest),
}

/// A tree in the store.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tree {
    pub(crate) path: PathBuf,
    pub(crate) about: Extracted,
}

struct Kept {
    tree: Arc<Tree>,
    leases: usize,
}

/// The right to use a tree. It stays as long as there is one.
pub(crate) struct Lease {
    store: Arc<Store>,
    key: Key,
    tree: Arc<Tree>,
}

impl Lease {
    /// What names the tree.
    pub(crate) fn digest(&self) -> Digest {
        match self.key {
            Key::Layer { diff_id, .. } => diff_id,
            Key::Parents(manifest) => manifest,
        }
    }
}

impl std::ops::Deref for Lease {
    type Target = Tree;

    fn deref(&self) -> &Tree {
        &self.tree
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.tree.fmt(f)
    }
}

/// Trees that nobody can use any more.
#[derive(Default)]
struct Trash {
    waiting: Vec<PathBuf>,
    /// A thread takes what is waiting.
    emptied: bool,
}

impl Store {
    /// Makes the directories, and removes what was left in them.
    pub(crate) fn open(root: PathBuf) -> Result<Arc<Self>, PullError> {
        for kind in ["staging", "layers", "parents", "trash"] {
            remove(&root.join(kind))?;
        }
        for kind in [
            "staging",
            "trash",
            "layers/sha256",
            "layers/sha512",
            "parents/sha256",
            "parents/sha512",
        ] {
            let directory = root.join(kind);
            make_private(&directory)
                .map_err(|e| PullError::io(format!("failed to make {}", directory.display()), e))?;
        }
        Ok(Arc::new(Self {
            root,
            serial: AtomicU64::new(0),
            locks: Mutex::default(),
            trees: Mutex::default(),
            trash: Arc::default(),
        }))
    }

    /// Bytes that are free, and bytes that there are.
    pub(crate) fn room(&self) -> Result<(u64, u64), PullError> {
        let stat = rustix::fs::statvfs(&self.root).map_err(|e| {
            PullError::io(format!("failed to look at {}", self.root.display()), e.into())
        })?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok((bytes(stat.f_bavail), bytes(stat.f_blocks)))
    }

    /// Waits until nobody else makes this tree.
    pub(crate) async fn lock(&self, key: Key) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = lock(&self.locks);
            locks.retain(|_, lock| lock.strong_count() > 0);
            match locks.get(&key).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    let lock = Arc::new(tokio::sync::Mutex::new(()));
                    locks.insert(key, Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }

    /// A lease on the tree, if it is here.
    pub(crate) fn find(self: &Arc<Self>, key: Key) -> Option<Lease> {
        let mut trees = lock(&self.trees);
        let kept = trees.get_mut(&key)?;
        kept.leases += 1;
        Some(Lease { store: self.clone(), key, tree: kept.tree.clone() })
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

    /// Takes a staged tree in as the layer that the proofs are about.
    pub(crate) fn keep_layer(
        self: &Arc<Self>,
        staging: Staging,
        about: Extracted,
        proofs: &Proofs,
        seal: Option<Digest>,
    ) -> Result<Lease, PullError> {
        self.keep(staging, about, Key::Layer { diff_id: *proofs.diff_id().digest(), seal })
    }

    /// Takes in the parent directories that were corrected for an image.
    pub(crate) fn keep_parents(
        self: &Arc<Self>,
        staging: Staging,
        manifest: Digest,
    ) -> Result<Lease, PullError> {
        self.keep(staging, Extracted::default(), Key::Parents(manifest))
    }

    fn keep(
        self: &Arc<Self>,
        mut staging: Staging,
        about: Extracted,
        key: Key,
    ) -> Result<Lease, PullError> {
        let place = self.place(key);
        let mut trees = lock(&self.trees);
        if !trees.contains_key(&key) {
            renameat_with(CWD, &staging.directory, CWD, &place, RenameFlags::NOREPLACE).map_err(
                |e| PullError::io(format!("failed to make {}", place.display()), e.into()),
            )?;
            staging.kept = true;
        }
        let kept = trees.entry(key).or_insert_with(|| Kept {
            tree: Arc::new(Tree { path: place.join("fs"), about }),
            leases: 0,
        });
        kept.leases += 1;
        Ok(Lease { store: self.clone(), key, tree: kept.tree.clone() })
    }

    fn place(&self, key: Key) -> PathBuf {
        let (kind, digest, seal) = match key {
            Key::Layer { diff_id, seal } => ("layers", diff_id, seal),
            Key::Parents(manifest) => ("parents", manifest, None),
        };
        let mut name = digest.hex();
        if let Some(seal) = seal {
            // Long enough to tell wrapped keys apart, short enough for a mount option.
            name = format!("{}-{}", &name[..64], &seal.hex()[..32]);
        }
        self.root.join(kind).join(digest.algorithm().name()).join(name)
    }

    fn release(&self, key: Key) {
        let mut trees = lock(&self.trees);
        let Some(kept) = trees.get_mut(&key) else { return };
        kept.leases -= 1;
        if kept.leases > 0 {
            return;
        }
        trees.remove(&key);
        // Under the lock: the next pull of this tree finds its place free.
        let place = self.place(key);
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let trash = self.root.join("trash").join(serial.to_string());
        let moved = renameat_with(CWD, &place, CWD, &trash, RenameFlags::NOREPLACE);
        drop(trees);
        match moved {
            Ok(()) => self.discard(trash),
            Err(error) => tracing::warn!(%error, "a layer could not be removed"),
        }
    }

    /// Removes `path` without anybody waiting for it.
    fn discard(&self, path: PathBuf) {
        let mut trash = lock(&self.trash);
        trash.waiting.push(path);
        if trash.emptied {
            return;
        }
        let shared = self.trash.clone();
        let thread = std::thread::Builder::new().name("remove-layers".into());
        match thread.spawn(move || empty(&shared)) {
            Ok(_) => trash.emptied = true,
            // The next one takes it along.
            Err(error) => tracing::warn!(%error, "layers are not removed yet"),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.store.release(self.key);
    }
}

fn empty(trash: &Mutex<Trash>) {
    loop {
        let next = {
            let mut trash = lock(trash);
            let next = trash.waiting.pop();
            trash.emptied = next.is_some();
            next
        };
        let Some(path) = next else { return };
        if let Err(error) = remove(&path) {
            tracing::warn!(%error, "a layer could not be removed");
        }
    }
}

/// Nobody panics under these locks; a poisoned one would only mean that somebody did elsewhere.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Removes a tree of any depth, such as a program in a container can make; a recursive removal would run
/// out of stack or descriptors. It is no error if there is none.
pub fn remove(path: &Path) -> Result<(), PullError> {
    removal::remove(CWD, path.as_os_str().as_bytes())
        .map_err(|e| PullError::io(format!("failed to remove {}", path.display()), e.into()))
}
