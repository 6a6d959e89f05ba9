//! A guest puts a blob: as fast as it is written and hashed.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nacre_protocol::blob_cache::{Allowance, Blob, FromCache, Violation};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::{Guest, StreamError};
use crate::store::Ingest;

/// Bytes that a guest may be ahead of the disk with.
const WINDOW: u64 = 512 * 1024;
/// How long a put may stand still.
const STALL: Duration = Duration::from_secs(15);
/// A put brings at least [`LEAST`] bytes in each of these, or ends: it takes a place from others.
const PERIOD: Duration = Duration::from_secs(60);
const LEAST: u64 = 256 * 1024;

/// What the guest has sent of a put.
#[derive(Debug, Default)]
pub(super) struct Put {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    allowance: Allowance,
    /// Within what was allowed.
    inbox: Vec<u8>,
    ended: bool,
}

impl Put {
    pub(super) fn receive(&self, piece: &[u8]) -> Result<(), Violation> {
        let mut state = self.lock();
        state.allowance.spend(piece.len())?;
        state.inbox.extend_from_slice(piece);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// No more will come.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_one();
    }

    fn allow(&self, credit: u32) -> Result<(), Violation> {
        self.lock().allowance.give(credit)
    }

    /// What has come, once something has; nothing at the end.
    async fn next(&self) -> Option<Vec<u8>> {
        loop {
            {
                let mut state = self.lock();
                if !state.inbox.is_empty() {
                    return Some(std::mem::take(&mut state.inbox));
                }
                if state.ended {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) async fn run(
    guest: &Guest,
    number: u32,
    blob: Blob,
    put: &Put,
) -> Result<(), StreamError> {
    let view = guest.view.clone();
    let beginning = tokio::task::spawn_blocking(move || view.ingest(&blob));
    let ingest = match beginning.await.map_err(std::io::Error::other)? {
        Ok(ingest) => ingest,
        Err(why) => {
            guest.counters.puts_refused.count();
            guest.close(number);
            return guest.send(number, FromCache::Refuse(why)).await;
        }
    };
    match receive(guest, number, blob.size, put, ingest).await? {
        Ok(()) => {
            tracing::debug!("{} ({} bytes) is kept", blob.digest, blob.size);
            Ok(())
        }
        Err(why) => {
            tracing::info!("a put of {} is lost: {why}", blob.digest);
            guest.close(number);
            guest.send(number, FromCache::Cancel).await
        }
    }
}

/// Writes all of a blob. The inner error says why it is lost.
async fn receive(
    guest: &Guest,
    number: u32,
    size: u64,
    put: &Put,
    mut ingest: Ingest,
) -> Result<Result<(), String>, StreamError> {
    let mut unasked = size;
    let mut credit = credit(WINDOW, &mut unasked);
    put.allow(credit)?;
    guest.send(number, FromCache::Accept(credit)).await?;
    let mut period = (Instant::now() + PERIOD, ingest.missing());
    loop {
        let now = Instant::now();
        if now >= period.0 {
            if period.1 - ingest.missing() < LEAST {
                return Ok(Err(format!("fewer than {LEAST} bytes came in {PERIOD:?}")));
            }
            period = (now + PERIOD, ingest.missing());
        }
        let bytes = match timeout_at(now + STALL, put.next()).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(Err("the guest has given up".to_owned())),
            Err(_) => return Ok(Err(format!("nothing came for {STALL:?}"))),
        };
        let taken = bytes.len() as u64;
        let writing = tokio::task::spawn_blocking(move || {
            let written = ingest.write(&bytes);
            (ingest, written)
        });
        let (writing, written) = writing.await.map_err(std::io::Error::other)?;
        ingest = writing;
        if let Err(cause) = written {
            return Ok(Err(cause.to_string()));
        }
        if ingest.missing() == 0 {
            // The guest has nothing more to say; who follows has all of it.
            guest.close(number);
            let keeping = tokio::task::spawn_blocking(move || ingest.keep());
            let kept = keeping.await.map_err(std::io::Error::other)?;
            return Ok(kept.map_err(|cause| cause.to_string()));
        }
        credit = self::credit(taken, &mut unasked);
        if credit > 0 {
            put.allow(credit)?;
            guest.send(number, FromCache::Credit(credit)).await?;
        }
    }
}

/// Asks for up to so many bytes of those that were not asked for yet.
fn credit(bytes: u64, unasked: &mut u64) -> u32 {
    let bytes = bytes.min(*unasked).min(WINDOW);
    *unasked -= bytes;
    u32::try_from(bytes).unwrap_or_default()
}
