//! One guest: its stream, read frame by frame, and its requests, each a task.
//!
//! Everything that comes is the guest's word. Data is taken only within the credit that was given for it,
//! so a guest costs one buffer to write from, one to read into, and what its puts were credited.

mod get;
mod put;

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nacre_protocol::blob_cache::{
    Blob, FromCache, FromGuest, HEADER_SIZE, Header, PIECE_LIMIT, REQUESTS_LIMIT, Refusal,
    Violation,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::statistics::Counters;
use crate::store::View;
use get::Get;
use put::Put;

/// How long a guest may take to read what it has asked for, or to end a frame that it has begun.
const PATIENCE: Duration = Duration::from_secs(60);
/// Small frames are read together.
const READ_AHEAD: usize = 16 * 1024;

/// Why a guest's stream ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("it broke the protocol: {0}")]
    Violation(#[from] Violation),
    #[error("its stream broke: {0}")]
    Io(#[from] io::Error),
    #[error("it took longer than {PATIENCE:?} to {0}")]
    Slow(&'static str),
}

/// A guest that is connected.
#[derive(Debug)]
struct Guest {
    view: View,
    counters: Arc<Counters>,
    outgoing: tokio::sync::Mutex<Outgoing>,
    requests: Mutex<HashMap<u32, Request>>,
    /// Bytes that it may still put.
    put_allowance: AtomicU64,
    /// A task could not write.
    broken: Notify,
}

#[derive(Debug)]
struct Outgoing {
    half: OwnedWriteHalf,
    buffer: Vec<u8>,
}

#[derive(Debug, Clone)]
enum Request {
    Get(Arc<Get>),
    Put(Arc<Put>),
}

/// Serves a guest until it goes.
pub(crate) async fn serve(
    stream: UnixStream,
    view: View,
    put_allowance: u64,
    counters: Arc<Counters>,
) -> Result<(), StreamError> {
    let (incoming, half) = stream.into_split();
    let outgoing = Outgoing { half, buffer: Vec::new() };
    let guest = Arc::new(Guest {
        view,
        counters,
        outgoing: tokio::sync::Mutex::new(outgoing),
        requests: Mutex::default(),
        put_allowance: AtomicU64::new(put_allowance),
        broken: Notify::new(),
    });
    // Dropped at the end, it ends the tasks.
    let mut tasks = JoinSet::new();
    tokio::select! {
        ended = listen(&guest, incoming, &mut tasks) => ended,
        () = guest.broken.notified() => Err(StreamError::Slow("read what it asked for, or is gone")),
    }
}

async fn listen(
    guest: &Arc<Guest>,
    incoming: OwnedReadHalf,
    tasks: &mut JoinSet<()>,
) -> Result<(), StreamError> {
    let mut incoming = BufReader::with_capacity(READ_AHEAD, incoming);
    let mut payload = vec![0; PIECE_LIMIT];
    let mut last = 0;
    // A guest may be silent for as long as it likes between two frames.
    while !incoming.fill_buf().await?.is_empty() {
        let whole = async {
            let mut head = [0; HEADER_SIZE];
            incoming.read_exact(&mut head).await?;
            let header = Header::parse(&head)?;
            incoming.read_exact(&mut payload[..header.size()]).await?;
            Ok::<_, StreamError>(header)
        };
        let header = timeout(PATIENCE, whole)
            .await
            .map_err(|_| StreamError::Slow("send a whole frame"))??;
        let frame = FromGuest::parse(&header, &payload[..header.size()])?;
        while tasks.try_join_next().is_some() {}
        match frame {
            FromGuest::Get { .. } | FromGuest::Put { .. } => {
                if header.request() <= last {
                    return Err(Violation::Request(header.request()).into());
                }
                last = header.request();
                guest.begin(last, frame, tasks).await?;
            }
            frame if header.request() <= last => guest.go_on(&header, frame)?,
            _ => return Err(Violation::Request(header.request()).into()),
        }
    }
    Ok(())
}

impl Guest {
    /// A new request.
    async fn begin(
        self: &Arc<Self>,
        number: u32,
        frame: FromGuest<'_>,
        tasks: &mut JoinSet<()>,
    ) -> Result<(), StreamError> {
        let guest = Arc::clone(self);
        let busy = self.requests().len() >= REQUESTS_LIMIT;
        match frame {
            FromGuest::Get { blob, offset, credit } => {
                self.counters.gets.count();
                if busy {
                    self.counters.gets_refused.count();
                    return self.send(number, FromCache::Refuse(Refusal::Busy)).await;
                }
                let get = Arc::new(Get::new(credit)?);
                self.requests().insert(number, Request::Get(Arc::clone(&get)));
                tasks.spawn(async move {
                    let ended = get::run(&guest, number, blob, offset, &get).await;
                    guest.end(number, ended);
                });
            }
            FromGuest::Put { blob } => {
                if let Some(why) = busy.then_some(Refusal::Busy).or_else(|| self.charge(&blob)) {
                    self.counters.puts_refused.count();
                    return self.send(number, FromCache::Refuse(why)).await;
                }
                let put = Arc::new(Put::default());
                self.requests().insert(number, Request::Put(Arc::clone(&put)));
                tasks.spawn(async move {
                    let ended = put::run(&guest, number, blob, &put).await;
                    guest.end(number, ended);
                });
            }
            _ => {}
        }
        Ok(())
    }

    /// A frame of a request that was made. It means nothing if the request is over.
    fn go_on(&self, header: &Header, frame: FromGuest<'_>) -> Result<(), Violation> {
        let Some(request) = self.requests().get(&header.request()).cloned() else {
            return Ok(());
        };
        match (request, frame) {
            (Request::Get(get), FromGuest::Credit(credit)) => get.give(credit),
            (Request::Get(get), FromGuest::Cancel) => {
                get.cancel();
                Ok(())
            }
            (Request::Put(put), FromGuest::Data(piece)) => put.receive(piece),
            (Request::Put(put), FromGuest::End | FromGuest::Cancel) => {
                put.end();
                Ok(())
            }
            _ => Err(header.out_of_order()),
        }
    }

    /// Takes a put from what the guest may put in its life.
    fn charge(&self, blob: &Blob) -> Option<Refusal> {
        self.put_allowance
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(blob.size))
            .is_err()
            .then_some(Refusal::Spent)
    }

    /// A request is over: the guest may make another one.
    fn close(&self, number: u32) {
        self.requests().remove(&number);
    }

    fn end(&self, number: u32, ended: Result<(), StreamError>) {
        self.close(number);
        if let Err(error) = ended {
            tracing::debug!("request {number}: {error}");
            self.broken.notify_one();
        }
    }

    async fn send(&self, number: u32, frame: FromCache<'_>) -> Result<(), StreamError> {
        let mut outgoing = self.outgoing.lock().await;
        outgoing.buffer.clear();
        frame.write(number, &mut outgoing.buffer)?;
        outgoing.flush().await
    }

    fn requests(&self) -> MutexGuard<'_, HashMap<u32, Request>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outgoing {
    /// Writes the buffer. Must not be cut short while the stream is to live on.
    async fn flush(&mut self) -> Result<(), StreamError> {
        let written = timeout(PATIENCE, self.half.write_all(&self.buffer)).await;
        Ok(written.map_err(|_| StreamError::Slow("read what it asked for"))??)
    }
}
