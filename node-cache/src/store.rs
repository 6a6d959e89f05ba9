//! Where blobs are: containerd's content stores, and shelves of the daemon's own.
//!
//! Own blobs are files named by their digests, beneath `shared/` or `namespaces/NAME/`. A blob gets its
//! name when its size and digest were found right and its bytes are on the disk (`fdatasync`); before
//! that it is a file in `ingest/`, which is emptied at the start. The modification time of a blob is that
//! of its last use, so the order in which blobs go survives a restart.

mod ingest;
mod shelf;

use std::collections::{BTreeMap, HashSet};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nacre_protocol::blob_cache::{Blob, Refusal};
use nacre_trust::Digest;
use rustix::fs::{FlockOperation, OFlags};

use crate::config::Config;
use crate::statistics::{Counters, Statistics};

pub(crate) use ingest::{Ingest, Outcome, Progress};
pub(crate) use shelf::Shelf;

/// Subdirectory with the blobs that are being put.
const INGEST: &str = "ingest";
/// Most blobs of containerd's that are remembered to be corrupt.
const MOST_CORRUPT: usize = 4096;

/// Why the daemon cannot use its directory.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system says no.
    #[error("cannot {doing} {path}: {cause}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system answered.
        cause: io::Error,
    },
    /// Others may write there.
    #[error(
        "{0} belongs to another user, or others may write there: give it to this one alone (mode 0700)"
    )]
    Open(PathBuf),
    /// Another daemon uses it.
    #[error("another nacre-cache uses {0}")]
    Taken(PathBuf),
}

/// The blobs of this node.
#[derive(Debug)]
pub(crate) struct Store {
    /// By namespace; all the same one where blobs are shared.
    shelves: BTreeMap<String, Arc<Shelf>>,
    content: Vec<PathBuf>,
    content_namespaces: HashSet<String>,
    /// Blobs in containerd's stores that do not have their digests.
    corrupt: Mutex<HashSet<Digest>>,
    /// Held as long as the daemon lives.
    _lock: File,
}

/// What one guest sees of the [`Store`].
#[derive(Debug, Clone)]
pub(crate) struct View {
    store: Arc<Store>,
    shelf: Arc<Shelf>,
    sees_content: bool,
}

/// Where a blob comes from.
#[derive(Debug)]
pub(crate) enum Found {
    /// containerd's store.
    Containerd(Arc<File>),
    /// The daemon's own.
    Own(Arc<File>),
    /// Another guest, at this moment.
    Growing(Progress),
}

impl Store {
    /// Takes the directory, and looks what is in it.
    pub(crate) fn open(config: &Config, counters: &Arc<Counters>) -> Result<Store, StoreError> {
        let directory = &config.directory;
        make_private(directory)?;
        let lock = lock(directory)?;
        let ingest = directory.join(INGEST);
        empty(&ingest)?;
        let open = |name: &str| {
            let shelf = Shelf::open(directory.join(name), &ingest, config.max_bytes, counters)?;
            Ok(Arc::new(shelf))
        };
        let shared = if config.namespaces.shared { Some(open("shared")?) } else { None };
        let shelf_of = |name: &String| match &shared {
            Some(shelf) => Ok((name.clone(), Arc::clone(shelf))),
            None => Ok((name.clone(), open(&format!("namespaces/{name}"))?)),
        };
        Ok(Store {
            shelves: config.namespaces.allow.iter().map(shelf_of).collect::<Result<_, _>>()?,
            content: config.containerd_content.clone(),
            content_namespaces: config.namespaces.containerd.iter().cloned().collect(),
            corrupt: Mutex::default(),
            _lock: lock,
        })
    }

    /// What pods of a namespace see; none if they are not served.
    pub(crate) fn view(self: &Arc<Self>, namespace: &str) -> Option<View> {
        Some(View {
            store: Arc::clone(self),
            shelf: Arc::clone(self.shelves.get(namespace)?),
            sees_content: self.content_namespaces.contains(namespace),
        })
    }

    /// Adds what is kept now.
    pub(crate) fn describe(&self, statistics: &mut Statistics) {
        let mut seen: Vec<&Arc<Shelf>> = Vec::new();
        for shelf in self.shelves.values() {
            if !seen.iter().any(|other| Arc::ptr_eq(other, shelf)) {
                let (blobs, bytes) = shelf.kept();
                statistics.blobs_now += blobs;
                statistics.bytes_now += bytes;
                seen.push(shelf);
            }
        }
    }

    fn content(&self, blob: &Blob) -> Option<File> {
        let corrupt = self.corrupt.lock().unwrap_or_else(PoisonError::into_inner);
        if corrupt.contains(&blob.digest) {
            return None;
        }
        let name = Path::new("blobs").join(blob.digest.algorithm().name()).join(blob.digest.hex());
        self.content.iter().find_map(|content| open_blob(&content.join(&name), blob.size))
    }
}

impl View {
    /// Finds a blob. Waits a moment where a guest that was told that it is not there is likely to bring it.
    pub(crate) async fn find(&self, blob: &Blob) -> Option<Found> {
        let this = self.clone();
        let wanted = *blob;
        let content = move || this.sees_content.then(|| this.store.content(&wanted)).flatten();
        if let Ok(Some(file)) = tokio::task::spawn_blocking(content).await {
            return Some(Found::Containerd(Arc::new(file)));
        }
        self.shelf.find(blob).await
    }

    /// Begins to keep a blob.
    pub(crate) fn ingest(&self, blob: &Blob) -> Result<Ingest, Refusal> {
        self.shelf.ingest(blob)
    }

    /// A blob does not have its digest: it is not served again.
    pub(crate) fn discard(&self, blob: &Blob, found: &Found) {
        match found {
            Found::Containerd(_) => {
                let mut corrupt = self.store.corrupt.lock().unwrap_or_else(PoisonError::into_inner);
                if corrupt.len() < MOST_CORRUPT {
                    corrupt.insert(blob.digest);
                }
            }
            Found::Own(_) => self.shelf.discard(blob),
            Found::Growing(_) => {}
        }
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |cause| StoreError::Io { doing, path, cause }
}

/// Makes a directory for this user alone, and its parents; one that is there must be nobody else's.
pub(crate) fn make_private(directory: &Path) -> Result<(), StoreError> {
    const OTHERS_WRITE: u32 = 0o022;
    DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(directory)
        .map_err(failed("make the directory", directory))?;
    let metadata = directory.metadata().map_err(failed("look at", directory))?;
    let own = metadata.uid() == rustix::process::geteuid().as_raw();
    if !own || metadata.permissions().mode() & OTHERS_WRITE != 0 {
        return Err(StoreError::Open(directory.to_owned()));
    }
    Ok(())
}

fn lock(directory: &Path) -> Result<File, StoreError> {
    let path = directory.join("lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed("open", &path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Taken(directory.to_owned())),
        Err(errno) => Err(failed("lock", &path)(errno.into())),
    }
}

/// Makes the directory, or removes what a crash has left in it.
fn empty(directory: &Path) -> Result<(), StoreError> {
    make_private(directory)?;
    for entry in directory.read_dir().map_err(failed("list", directory))? {
        let path = entry.map_err(failed("list", directory))?.path();
        std::fs::remove_file(&path).map_err(failed("remove", &path))?;
    }
    Ok(())
}

/// Opens a blob: a regular file of exactly that size.
fn open_blob(path: &Path, size: u64) -> Option<File> {
    // Not to wait for a writer if it should be a FIFO.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match rustix::fs::open(path, flags, rustix::fs::Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT) => return None,
        Err(errno) => {
            tracing::warn!("cannot open {}: {}", path.display(), io::Error::from(errno));
            return None;
        }
    };
    let metadata = file.metadata().ok()?;
    (metadata.is_file() && metadata.len() == size).then_some(file)
}

#[cfg(test)]
mod tests;
