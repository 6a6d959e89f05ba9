//! A shelf: blobs that belong together, up to a size. The one that was not used for the longest time goes
//! first.

use std::collections::HashMap;
use std::fs::{File, FileTimes, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use nacre_protocol::blob_cache::{Blob, Refusal};
use nacre_trust::{Algorithm, Digest, DigestMatch};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Found, Ingest, Progress, StoreError, failed, make_private, open_blob};
use crate::statistics::Counters;

/// What a blob takes at least: small ones cost an inode and an entry in the index, too.
const LEAST_CHARGE: u64 = 4096;
/// Most blobs of a shelf.
const MOST_BLOBS: usize = 65536;
/// Most blobs that are being put at once.
const MOST_INGESTS: usize = 64;
/// How long a guest may take to bring what it was told is not there: others that ask for the same blob
/// wait for it so long, and no longer. It covers the time to connect to a registry.
const EXPECTATION: Duration = Duration::from_millis(1500);
/// Most blobs that are waited for.
const MOST_EXPECTED: usize = 1024;

/// Blobs on one shelf.
#[derive(Debug)]
pub(crate) struct Shelf {
    directory: PathBuf,
    ingest: PathBuf,
    limit: u64,
    counters: Arc<Counters>,
    state: Mutex<State>,
    /// Told when a blob begins to come or was kept.
    news: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    kept: HashMap<Digest, Kept>,
    /// What `kept` takes, in bytes.
    used: u64,
    growing: HashMap<Blob, Growing>,
    /// What was received of `growing`, in bytes.
    received: u64,
    /// When a guest was told that the blob is not there.
    expected: HashMap<Blob, Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Kept {
    size: u64,
    used: SystemTime,
}

#[derive(Debug)]
struct Growing {
    progress: Progress,
    received: u64,
}

/// What an [`Ingest`] cannot have.
#[derive(Debug, thiserror::Error)]
#[error("there is no room for {0} bytes more beside the other blobs that are being put")]
pub(crate) struct NoRoom(u64);

impl Shelf {
    pub(super) fn open(
        directory: PathBuf,
        ingest: &Path,
        limit: u64,
        counters: &Arc<Counters>,
    ) -> Result<Shelf, StoreError> {
        let mut state = State::default();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let directory = directory.join(algorithm.name());
            make_private(&directory)?;
            for entry in directory.read_dir().map_err(failed("list", &directory))? {
                let entry = entry.map_err(failed("list", &directory))?;
                let metadata = entry.metadata().map_err(failed("look at", &entry.path()))?;
                let name = entry.file_name().into_string().unwrap_or_default();
                let digest = format!("{}:{name}", algorithm.name()).parse();
                match digest {
                    Ok(digest) if metadata.is_file() && metadata.len() > 0 => {
                        let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                        let kept = Kept { size: metadata.len(), used };
                        state.used += charge(kept.size);
                        state.kept.insert(digest, kept);
                    }
                    _ => tracing::warn!("{} is no blob: left alone", entry.path().display()),
                }
            }
        }
        let (counters, ingest) = (Arc::clone(counters), ingest.to_owned());
        let (state, news) = (Mutex::new(state), watch::Sender::new(()));
        let shelf = Shelf { directory, ingest, limit, counters, state, news };
        // The limit may be lower than it was.
        let _ = shelf.make_room(&mut shelf.lock(), 0);
        let (blobs, bytes) = shelf.kept();
        tracing::info!("{}: {blobs} blobs, {bytes} bytes", shelf.directory.display());
        Ok(shelf)
    }

    /// Number and size of the blobs.
    pub(super) fn kept(&self) -> (u64, u64) {
        let state = self.lock();
        (state.kept.len() as u64, state.kept.values().map(|kept| kept.size).sum())
    }

    /// Finds a blob, or waits for the guest that is likely to bring it.
    pub(super) async fn find(self: &Arc<Self>, blob: &Blob) -> Option<Found> {
        let mut news = self.news.subscribe();
        // Who has waited once does not wait for the next who was told that it is not there.
        let mut patience = None;
        loop {
            let shelf = Arc::clone(self);
            let wanted = *blob;
            let look = move || shelf.look(&wanted);
            match tokio::task::spawn_blocking(look).await.unwrap_or(Look::Absent) {
                Look::Found(found) => return Some(found),
                Look::Absent => return None,
                Look::Expected(until) => {
                    let until = *patience.get_or_insert(until);
                    if Instant::now() >= until {
                        return None;
                    }
                    let _ = tokio::time::timeout_at(until, news.changed()).await;
                }
            }
        }
    }

    fn look(&self, blob: &Blob) -> Look {
        let mut state = self.lock();
        if let Some(kept) = state.kept.get(&blob.digest).copied() {
            if let Some(file) = open_blob(&self.path(&blob.digest), kept.size) {
                if kept.size != blob.size {
                    return Look::Absent;
                }
                let now = SystemTime::now();
                if let Err(cause) = file.set_times(FileTimes::new().set_modified(now)) {
                    tracing::debug!("the last use of {} is not kept: {cause}", blob.digest);
                }
                state.kept.insert(blob.digest, Kept { used: now, ..kept });
                return Look::Found(Found::Own(Arc::new(file)));
            }
            // Somebody has removed the file, or made it another one.
            self.remove(&mut state, &blob.digest);
        }
        if let Some(growing) = state.growing.get(blob) {
            return Look::Found(Found::Growing(growing.progress.clone()));
        }
        let now = Instant::now();
        match state.expected.get(blob) {
            Some(told) if *told + EXPECTATION > now => Look::Expected(*told + EXPECTATION),
            _ => {
                state.expected.retain(|_, told| *told + EXPECTATION > now);
                if state.expected.len() < MOST_EXPECTED {
                    state.expected.insert(*blob, now);
                }
                Look::Absent
            }
        }
    }

    /// Begins to keep a blob.
    pub(super) fn ingest(self: &Arc<Self>, blob: &Blob) -> Result<Ingest, Refusal> {
        let mut state = self.lock();
        if state.kept.contains_key(&blob.digest) || state.growing.contains_key(blob) {
            return Err(Refusal::Present);
        }
        let announced: u64 = state.growing.keys().map(|blob| blob.size).sum();
        if charge(blob.size) > self.limit {
            return Err(Refusal::TooLarge);
        }
        if state.growing.len() >= MOST_INGESTS || announced + charge(blob.size) > self.limit {
            return Err(Refusal::Busy);
        }
        let (path, file) = self.new_file().map_err(|error| {
            tracing::warn!("{error}");
            Refusal::Failed
        })?;
        let (ingest, progress) = Ingest::new(Arc::clone(self), *blob, path, file);
        state.expected.remove(blob);
        state.growing.insert(*blob, Growing { progress, received: 0 });
        self.news.send_replace(());
        Ok(ingest)
    }

    fn new_file(&self) -> Result<(PathBuf, File), StoreError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let path = self.ingest.join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("make", &path))?;
        Ok((path, file))
    }

    /// Makes room for what an ingest has received, before it is written.
    pub(super) fn receive(&self, blob: &Blob, bytes: u64) -> Result<(), NoRoom> {
        let mut state = self.lock();
        self.make_room(&mut state, bytes)?;
        let before = state.growing.get(blob).map_or(0, |growing| growing.received);
        state.count_received(blob, before + bytes);
        Ok(())
    }

    /// Gives a blob its name. It has its digest, and is on the disk.
    pub(super) fn keep(
        &self,
        proof: &DigestMatch,
        size: u64,
        file: &Path,
    ) -> Result<(), StoreError> {
        let digest = *proof.digest();
        let path = self.path(&digest);
        let mut state = self.lock();
        std::fs::rename(file, &path).map_err(failed("name", &path))?;
        let kept = Kept { size, used: SystemTime::now() };
        if state.kept.insert(digest, kept).is_none() {
            state.used += charge(size);
        }
        state.count_received(&Blob { digest, size }, 0);
        Ok(())
    }

    /// An ingest is over.
    pub(super) fn settle(&self, blob: &Blob, kept: bool) {
        if kept {
            self.counters.puts.count();
            self.counters.bytes_put.add(blob.size);
        } else {
            self.counters.puts_lost.count();
        }
        let mut state = self.lock();
        state.count_received(blob, 0);
        state.growing.remove(blob);
        // A small blob is charged more than was received of it.
        let _ = self.make_room(&mut state, 0);
        drop(state);
        self.news.send_replace(());
    }

    /// Removes a blob that does not have its digest.
    pub(super) fn discard(&self, blob: &Blob) {
        self.remove(&mut self.lock(), &blob.digest);
    }

    fn make_room(&self, state: &mut State, bytes: u64) -> Result<(), NoRoom> {
        let fits = |state: &State| {
            state.used + state.received + bytes <= self.limit && state.kept.len() <= MOST_BLOBS
        };
        while !fits(state) {
            let oldest = state.kept.iter().min_by_key(|(_, kept)| kept.used);
            let Some((digest, size)) = oldest.map(|(digest, kept)| (*digest, kept.size)) else {
                return Err(NoRoom(bytes));
            };
            self.remove(state, &digest);
            self.counters.evictions.count();
            self.counters.bytes_evicted.add(size);
            tracing::debug!("{digest} ({size} bytes) makes room");
        }
        Ok(())
    }

    fn remove(&self, state: &mut State, digest: &Digest) {
        let path = self.path(digest);
        if let Some(kept) = state.kept.remove(digest) {
            state.used -= charge(kept.size);
        }
        match std::fs::remove_file(&path) {
            Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!("cannot remove {}: {cause}", path.display());
            }
            _ => {}
        }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(digest.algorithm().name()).join(digest.hex())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Of `blob`, which is being put, `bytes` take room.
    fn count_received(&mut self, blob: &Blob, bytes: u64) {
        if let Some(growing) = self.growing.get_mut(blob) {
            self.received = self.received - growing.received + bytes;
            growing.received = bytes;
        }
    }
}

enum Look {
    Found(Found),
    Absent,
    Expected(Instant),
}

fn charge(size: u64) -> u64 {
    size.max(LEAST_CHARGE)
}
