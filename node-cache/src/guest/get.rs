//! A guest gets a blob: as fast as it gives credit, and as far as the blob has come.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nacre_protocol::blob_cache::{
    Allowance, Blob, FromCache, HEADER_SIZE, Header, PIECE_LIMIT, Violation,
};
use nacre_trust::Hasher;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Guest, StreamError};
use crate::store::{Found, Outcome};

/// A follower gets its share of the blob in each of these, or is sent to the registry, where it goes on:
/// the guest that brings the blob may be hostile, and must not hold up others for minutes.
const FOLLOW_PATIENCE: Duration = Duration::from_secs(4);
/// The share: all of it in four minutes, and not less than so many bytes.
const FOLLOW_SHARES: u64 = 60;
const FOLLOW_LEAST: u64 = 128 * 1024;

/// What the guest has said about a get.
#[derive(Debug)]
pub(super) struct Get {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    allowance: Allowance,
    cancelled: bool,
}

impl Get {
    pub(super) fn new(credit: u32) -> Result<Get, Violation> {
        let mut state = State::default();
        state.allowance.give(credit)?;
        Ok(Get { state: Mutex::new(state), changed: Notify::new() })
    }

    pub(super) fn give(&self, credit: u32) -> Result<(), Violation> {
        self.lock().allowance.give(credit)?;
        self.changed.notify_one();
        Ok(())
    }

    pub(super) fn cancel(&self) {
        self.lock().cancelled = true;
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What to do next.
enum Step {
    Send(usize),
    /// All of it was sent, and whoever brought it was right.
    End,
    /// No more will come.
    Cut(&'static str),
    /// The guest wants no more.
    Cancelled,
}

/// A get under way.
struct Serving<'a> {
    get: &'a Get,
    blob: Blob,
    found: Found,
    at: u64,
    /// Since when, and from where on, a follower waits for more.
    starving: Option<(Instant, u64)>,
}

pub(super) async fn run(
    guest: &Guest,
    number: u32,
    blob: Blob,
    offset: u64,
    get: &Get,
) -> Result<(), StreamError> {
    let Some(found) = guest.view.find(&blob).await else {
        guest.counters.misses.count();
        guest.close(number);
        return guest.send(number, FromCache::Miss).await;
    };
    let counters = &guest.counters;
    let (hits, bytes, file) = match &found {
        Found::Containerd(file) => (&counters.hits_containerd, &counters.bytes_containerd, file),
        Found::Own(file) => (&counters.hits_own, &counters.bytes_own, file),
        Found::Growing(news) => (&counters.hits_followed, &counters.bytes_followed, &news.file),
    };
    hits.count();
    guest.send(number, FromCache::Accept(0)).await?;
    let file = Arc::clone(file);
    // A file may rot. Whoever reads all of it learns that; what is being put is hashed by its putter.
    let rots = offset == 0 && !matches!(found, Found::Growing(_));
    let mut hasher = rots.then(|| Hasher::new(blob.digest.algorithm()));
    let mut serving = Serving { get, blob, found, at: offset, starving: None };
    let why = loop {
        match serving.next().await {
            Step::Send(size) => {
                get.lock().allowance.spend(size)?;
                match guest.send_piece(number, &file, serving.at, size, hasher.take()).await? {
                    Ok(hashed) => hasher = hashed,
                    Err(cause) => {
                        tracing::warn!("cannot read {}: {cause}", blob.digest);
                        break "it cannot be read";
                    }
                }
                serving.at += size as u64;
                bytes.add(size as u64);
            }
            Step::Cancelled => return Ok(()),
            Step::Cut(why) => break why,
            Step::End => {
                if hasher.is_none_or(|hasher| hasher.verify(&blob.digest).is_ok()) {
                    guest.close(number);
                    return guest.send(number, FromCache::End).await;
                }
                tracing::warn!("{} is corrupt, and is not served any more", blob.digest);
                counters.corrupt.count();
                guest.view.discard(&blob, &serving.found);
                break "it is corrupt";
            }
        }
    };
    tracing::debug!("{} is cut short: {why}", blob.digest);
    counters.gets_cut.count();
    guest.close(number);
    guest.send(number, FromCache::Cancel).await
}

impl Serving<'_> {
    async fn next(&mut self) -> Step {
        loop {
            let (credit, cancelled) = {
                let state = self.get.lock();
                (state.allowance.left(), state.cancelled)
            };
            let (available, whole) = match &mut self.found {
                Found::Growing(news) => match *news.outcome.borrow_and_update() {
                    Outcome::Growing(bytes) => (bytes, false),
                    Outcome::Whole => (self.blob.size, true),
                    Outcome::Lost => return Step::Cut("the guest that brought it has given up"),
                },
                Found::Containerd(_) | Found::Own(_) => (self.blob.size, true),
            };
            let ready = available.saturating_sub(self.at);
            if ready == 0 && whole {
                // Also for a guest that does not wait for the end: what was read may be corrupt.
                return Step::End;
            }
            if cancelled {
                return Step::Cancelled;
            }
            let size = ready.min(credit.into()).min(PIECE_LIMIT as u64);
            if size > 0 {
                return Step::Send(usize::try_from(size).unwrap_or(PIECE_LIMIT));
            }
            let all_sent = self.at == self.blob.size;
            let Some(deadline) = self.deadline(credit > 0 || all_sent) else {
                self.get.changed.notified().await;
                continue;
            };
            let Found::Growing(news) = &mut self.found else { continue };
            tokio::select! {
                () = self.get.changed.notified() => {}
                _ = news.outcome.changed() => {}
                () = tokio::time::sleep_until(deadline) => {
                    return Step::Cut("the guest that brings it is too slow");
                }
            }
        }
    }

    /// Until when enough must have come; none while the guest itself holds things up.
    fn deadline(&mut self, starving: bool) -> Option<Instant> {
        if !starving || !matches!(self.found, Found::Growing(_)) {
            self.starving = None;
            return None;
        }
        let (since, from) = *self.starving.get_or_insert_with(|| (Instant::now(), self.at));
        if self.at - from < (self.blob.size / FOLLOW_SHARES).max(FOLLOW_LEAST) {
            return Some(since + FOLLOW_PATIENCE);
        }
        let now = Instant::now();
        self.starving = Some((now, self.at));
        Some(now + FOLLOW_PATIENCE)
    }
}

impl Guest {
    /// Reads a piece of a file into the stream's one buffer, hashes it and sends it. The inner error is the
    /// file's.
    async fn send_piece(
        &self,
        number: u32,
        file: &Arc<File>,
        at: u64,
        size: usize,
        mut hasher: Option<Hasher>,
    ) -> Result<io::Result<Option<Hasher>>, StreamError> {
        let header = Header::of_data(number, size)?;
        let mut outgoing = self.outgoing.lock().await;
        let mut buffer = std::mem::take(&mut outgoing.buffer);
        let file = Arc::clone(file);
        let reading = tokio::task::spawn_blocking(move || {
            buffer.resize(HEADER_SIZE + size, 0);
            let (head, piece) = buffer.split_at_mut(HEADER_SIZE);
            head.copy_from_slice(&header);
            file.read_exact_at(piece, at)?;
            if let Some(hasher) = &mut hasher {
                hasher.update(piece);
            }
            io::Result::Ok((buffer, hasher))
        });
        let (buffer, hasher) = match reading.await.map_err(io::Error::other)? {
            Ok(read) => read,
            Err(cause) => return Ok(Err(cause)),
        };
        outgoing.buffer = buffer;
        outgoing.flush().await?;
        Ok(Ok(hasher))
    }
}
