//! The node's cache of image blobs, as the guest sees it: another source of bytes whose digests it knows.
//!
//! The cache is the host's. What it sends is bounded here and hashed by whoever asked for it; at the first
//! frame that breaks the protocol (`nacre_protocol::blob_cache`) the port is closed for good, and images
//! come from their registries alone. One task reads the port and sorts what comes to the requests, which
//! hold no more than they gave credit for; another one writes.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use nacre_image_pull::{BlobCache, BlobSink, BlobStream};
use nacre_protocol::blob_cache::{
    Allowance, BLOB_LIMIT, Blob, FromCache, FromGuest, HEADER_SIZE, Header, PIECE_LIMIT,
    REQUESTS_LIMIT, Violation,
};
use nacre_protocol::channel::CACHE_PORT_NAME;
use nacre_trust::Digest;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;

use crate::port::{self, Port};

/// Bytes that a blob may be ahead of its reader.
const WINDOW: u32 = 512 * 1024;
/// Credit is given in steps of at least so many bytes.
const CREDIT_STEP: u32 = WINDOW / 4;
/// How long the host may take to take anything from the port, or to send the rest of a frame.
const PORT_PATIENCE: Duration = Duration::from_secs(30);
/// After so many questions in a row without an answer the cache is not asked any more.
const MOST_UNANSWERED: u32 = 3;
/// Pieces of blobs for the cache that wait for the port.
const WAITING_PIECES: usize = 4;
/// Small frames are read together.
const READ_AHEAD: usize = 16 * 1024;

/// Opens the port, if the VM has it. Needs the runtime.
pub(crate) fn open() -> Option<Arc<dyn BlobCache>> {
    let device = port::find(CACHE_PORT_NAME)?;
    let opened = Port::open(&device).and_then(|port| {
        let connected = port.host_is_connected()?;
        connected.then(|| port.into_stream(())).transpose()
    });
    match opened {
        Ok(Some(stream)) => Some(Arc::new(NodeCache::on(stream, Patience::default()))),
        Ok(None) => {
            tracing::info!("the node's cache is gone: images come from their registries");
            None
        }
        Err(cause) => {
            tracing::warn!("the port of the node's cache cannot be used: {cause}");
            None
        }
    }
}

/// A stream to the cache.
#[derive(Debug)]
struct NodeCache {
    link: Arc<Link>,
    patience: Patience,
}

/// How long pulls wait for the cache.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// Until it says whether it has a blob, or wants one.
    answer: Duration,
    /// Until it takes a piece of a blob that it wants.
    put: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { answer: Duration::from_secs(4), put: Duration::from_secs(2) }
    }
}

/// What the tasks and the requests share.
#[derive(Debug)]
struct Link {
    state: Mutex<State>,
    /// Room for requests.
    places: Arc<Semaphore>,
    /// Small frames. A request sends one at its begin, one at its end, and one for each step of credit,
    /// which the cache must have used up before; so their number is bounded.
    control: mpsc::UnboundedSender<Vec<u8>>,
    /// Pieces of blobs for the cache, and their ends.
    pieces: mpsc::Sender<Vec<u8>>,
    /// The cache has left too many questions without an answer.
    silent: Notify,
}

#[derive(Debug, Default)]
struct State {
    last: u32,
    /// Questions without an answer since anything has come.
    unanswered: u32,
    open: HashMap<u32, Arc<Request>>,
    closed: bool,
}

/// A request under way.
#[derive(Debug)]
struct Request {
    number: u32,
    progress: Mutex<Progress>,
    /// There is one waiter at a time.
    changed: Notify,
}

#[derive(Debug)]
struct Progress {
    kind: Kind,
    answer: Option<Answer>,
    /// For a get, what the cache may send; for a put, what this side may.
    allowance: Allowance,
    over: Option<Over>,
}

#[derive(Debug)]
enum Kind {
    Get {
        /// What has come and was not taken yet.
        inbox: BytesMut,
        /// Bytes that have not come yet.
        missing: u64,
    },
    Put,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Yes,
    No,
}

/// Why nothing more comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    End,
    Cancelled,
    /// The port is closed.
    Closed,
}

/// Why the port is closed.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("it broke the protocol: {0}")]
    Violation(#[from] Violation),
    #[error("the port failed: {0}")]
    Io(#[from] io::Error),
    #[error("nothing moved for {PORT_PATIENCE:?} in the middle of a frame")]
    Stuck,
    #[error("it did not answer {MOST_UNANSWERED} times in a row")]
    Silent,
}

impl NodeCache {
    fn on(stream: impl AsyncRead + AsyncWrite + Send + 'static, patience: Patience) -> NodeCache {
        let (control, control_queue) = mpsc::unbounded_channel();
        let (pieces, piece_queue) = mpsc::channel(WAITING_PIECES);
        let link = Arc::new(Link {
            state: Mutex::default(),
            places: Arc::new(Semaphore::new(REQUESTS_LIMIT)),
            control,
            pieces,
            silent: Notify::new(),
        });
        let (incoming, outgoing) = tokio::io::split(stream);
        let reading = Arc::clone(&link);
        tokio::spawn(async move {
            let ended = tokio::select! {
                ended = reading.read(incoming) => ended,
                ended = write(outgoing, control_queue, piece_queue) => ended,
                () = reading.silent.notified() => Err(LinkError::Silent),
            };
            match ended {
                Ok(()) => tracing::info!("the node's cache has closed its port"),
                Err(error) => tracing::warn!(
                    "the node's cache is not used any more, images come from their registries: \
                     {error}"
                ),
            }
            reading.close();
        });
        NodeCache { link, patience }
    }

    /// Sends a request and waits for its answer; none if that is not yes.
    async fn ask(&self, kind: Kind, allowance: Allowance, frame: FromGuest<'_>) -> Option<Open> {
        let asking = async {
            let place = Arc::clone(&self.link.places).acquire_owned().await.ok()?;
            let progress = Progress { kind, answer: None, allowance, over: None };
            let open = Open::new(&self.link, progress, place)?;
            open.control(&frame);
            loop {
                {
                    let progress = open.request.lock();
                    match progress.answer {
                        Some(Answer::Yes) => break,
                        Some(Answer::No) => return None,
                        None if progress.over.is_some() => return None,
                        None => {}
                    }
                }
                open.request.changed.notified().await;
            }
            Some(open)
        };
        let asked = timeout(self.patience.answer, asking).await;
        asked.unwrap_or_else(|_| {
            let mut state = self.link.lock();
            state.unanswered += 1;
            if state.unanswered >= MOST_UNANSWERED {
                self.link.silent.notify_one();
            }
            None
        })
    }
}

#[async_trait]
impl BlobCache for NodeCache {
    async fn get(&self, digest: &Digest, size: u64, offset: u64) -> Option<Box<dyn BlobStream>> {
        if size > BLOB_LIMIT || offset >= size {
            return None;
        }
        let missing = size - offset;
        let credit = u32::try_from(missing).unwrap_or(WINDOW).min(WINDOW);
        let mut allowance = Allowance::default();
        allowance.give(credit).ok()?;
        let blob = Blob { digest: *digest, size };
        let kind = Kind::Get { inbox: BytesMut::new(), missing };
        let open = self.ask(kind, allowance, FromGuest::Get { blob, offset, credit }).await?;
        let unasked = missing - u64::from(credit);
        Some(Box::new(Download { open, unasked, owed: 0 }))
    }

    async fn put(&self, digest: &Digest, size: u64) -> Option<Box<dyn BlobSink>> {
        if size > BLOB_LIMIT || size == 0 {
            return None;
        }
        let blob = Blob { digest: *digest, size };
        let open = self.ask(Kind::Put, Allowance::default(), FromGuest::Put { blob }).await?;
        Some(Box::new(Upload { open, missing: size, patience: self.patience.put }))
    }
}

/// A request that is under way. Dropped before it is over, it is cancelled.
#[derive(Debug)]
struct Open {
    link: Arc<Link>,
    request: Arc<Request>,
    _place: OwnedSemaphorePermit,
}

impl Open {
    fn new(link: &Arc<Link>, progress: Progress, place: OwnedSemaphorePermit) -> Option<Open> {
        let mut state = link.lock();
        if state.closed {
            return None;
        }
        state.last = state.last.checked_add(1)?;
        let (progress, changed) = (Mutex::new(progress), Notify::new());
        let request = Arc::new(Request { number: state.last, progress, changed });
        state.open.insert(request.number, Arc::clone(&request));
        Some(Open { link: Arc::clone(link), request, _place: place })
    }

    /// Sends a frame of this request. Does not wait.
    fn control(&self, frame: &FromGuest<'_>) {
        let mut bytes = Vec::new();
        if let Err(violation) = frame.write(self.request.number, &mut bytes) {
            // Cannot be: the values were checked when they came in.
            tracing::warn!("a frame for the node's cache is not sent: {violation}");
            return;
        }
        // Fails only when the port is closed, which all requests are told.
        let _ = self.link.control.send(bytes);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.link.lock().open.remove(&self.request.number);
        let over = self.request.lock().over.is_some();
        if !over {
            self.control(&FromGuest::Cancel);
        }
    }
}

/// A blob that comes from the cache.
#[derive(Debug)]
struct Download {
    open: Open,
    /// Bytes that no credit was given for yet.
    unasked: u64,
    /// Bytes that were taken since credit was given.
    owed: u32,
}

#[async_trait]
impl BlobStream for Download {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            {
                let mut progress = self.open.request.lock();
                let over = progress.over;
                if let Kind::Get { inbox, .. } = &mut progress.kind
                    && !inbox.is_empty()
                {
                    let piece = inbox.split().freeze();
                    drop(progress);
                    self.give_credit(piece.len())?;
                    return Ok(Some(piece));
                }
                match over {
                    None => {}
                    Some(Over::End) => return Ok(None),
                    Some(over) => return Err(over.into()),
                }
            }
            self.open.request.changed.notified().await;
        }
    }
}

impl Download {
    fn give_credit(&mut self, taken: usize) -> io::Result<()> {
        self.owed = self.owed.saturating_add(u32::try_from(taken).unwrap_or(u32::MAX));
        if self.unasked == 0 || self.owed < CREDIT_STEP {
            return Ok(());
        }
        let credit = u32::try_from(self.unasked).unwrap_or(u32::MAX).min(self.owed);
        self.open.request.lock().allowance.give(credit).map_err(io::Error::other)?;
        self.open.control(&FromGuest::Credit(credit));
        self.owed -= credit;
        self.unasked -= u64::from(credit);
        Ok(())
    }
}

/// A blob that goes to the cache.
#[derive(Debug)]
struct Upload {
    open: Open,
    /// Bytes that were not sent yet.
    missing: u64,
    patience: Duration,
}

#[async_trait]
impl BlobSink for Upload {
    async fn write(&mut self, mut piece: Bytes) -> io::Result<()> {
        while !piece.is_empty() {
            let patience = self.patience;
            timeout(patience, self.send(&mut piece))
                .await
                .map_err(|_| io::ErrorKind::TimedOut)??;
        }
        Ok(())
    }

    async fn finish(self: Box<Self>) -> io::Result<()> {
        if self.missing > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the blob is not complete"));
        }
        // It went out behind the pieces; what the cache makes of it does not matter here.
        self.frame(FromGuest::End).await?;
        self.open.request.lock().over = Some(Over::End);
        Ok(())
    }
}

impl Upload {
    /// Sends the first part of `piece`, as much as there is credit for.
    async fn send(&mut self, piece: &mut Bytes) -> io::Result<()> {
        let size = loop {
            {
                let mut progress = self.open.request.lock();
                if let Some(over) = progress.over {
                    return Err(over.into());
                }
                let credit = usize::try_from(progress.allowance.left()).unwrap_or(usize::MAX);
                let size = piece.len().min(credit).min(PIECE_LIMIT);
                if size > 0 {
                    progress.allowance.spend(size).map_err(io::Error::other)?;
                    break size;
                }
            }
            self.open.request.changed.notified().await;
        };
        let part = piece.split_to(size);
        self.missing = self.missing.checked_sub(part.len() as u64).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "more than the blob's size")
        })?;
        self.frame(FromGuest::Data(&part)).await
    }

    async fn frame(&self, frame: FromGuest<'_>) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(HEADER_SIZE + PIECE_LIMIT);
        frame.write(self.open.request.number, &mut bytes).map_err(io::Error::other)?;
        let closed = |_| io::Error::from(Over::Closed);
        self.open.link.pieces.send(bytes).await.map_err(closed)
    }
}

impl From<Over> for io::Error {
    fn from(over: Over) -> Self {
        let (kind, text) = match over {
            Over::End => (io::ErrorKind::UnexpectedEof, "the node's cache wants no more of it"),
            Over::Cancelled => (io::ErrorKind::UnexpectedEof, "the node's cache ended it early"),
            Over::Closed => (io::ErrorKind::BrokenPipe, "the port of the node's cache is closed"),
        };
        io::Error::new(kind, text)
    }
}

impl Link {
    /// Sorts what comes to the requests until the stream ends.
    async fn read(&self, incoming: impl AsyncRead + Unpin) -> Result<(), LinkError> {
        let mut incoming = BufReader::with_capacity(READ_AHEAD, incoming);
        let mut payload = vec![0; PIECE_LIMIT];
        while !incoming.fill_buf().await?.is_empty() {
            let whole = async {
                let mut head = [0; HEADER_SIZE];
                incoming.read_exact(&mut head).await?;
                let header = Header::parse(&head)?;
                incoming.read_exact(&mut payload[..header.size()]).await?;
                Ok::<_, LinkError>(header)
            };
            let header = timeout(PORT_PATIENCE, whole).await.map_err(|_| LinkError::Stuck)??;
            let frame = FromCache::parse(&header, &payload[..header.size()])?;
            self.sort(&header, frame)?;
        }
        Ok(())
    }

    fn sort(&self, header: &Header, frame: FromCache<'_>) -> Result<(), Violation> {
        let request = {
            let mut state = self.lock();
            state.unanswered = 0;
            if header.request() > state.last {
                return Err(Violation::Request(header.request()));
            }
            state.open.get(&header.request()).cloned()
        };
        // What crossed the end of a request means nothing.
        let Some(request) = request else { return Ok(()) };
        request.lock().advance(header, frame)?;
        request.changed.notify_one();
        Ok(())
    }

    fn close(&self) {
        let open = {
            let mut state = self.lock();
            state.closed = true;
            std::mem::take(&mut state.open)
        };
        for request in open.into_values() {
            request.lock().over.get_or_insert(Over::Closed);
            request.changed.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Request {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress {
    /// Takes a frame, if it may come now.
    fn advance(&mut self, header: &Header, frame: FromCache<'_>) -> Result<(), Violation> {
        if self.over.is_some() {
            return Ok(());
        }
        match (&mut self.kind, self.answer, frame) {
            (Kind::Get { .. }, None, FromCache::Accept(0)) => self.answer = Some(Answer::Yes),
            (Kind::Put, None, FromCache::Accept(credit)) => {
                self.allowance.give(credit)?;
                self.answer = Some(Answer::Yes);
            }
            (Kind::Get { .. }, None, FromCache::Miss) => self.refuse(),
            (_, None, FromCache::Refuse(why)) => {
                tracing::debug!("request {} of the node's cache: {why}", header.request());
                self.refuse();
            }
            (Kind::Get { inbox, missing }, Some(Answer::Yes), FromCache::Data(piece)) => {
                self.allowance.spend(piece.len())?;
                // Credit is never given beyond what is missing.
                *missing -= piece.len() as u64;
                inbox.extend_from_slice(piece);
            }
            (Kind::Get { missing: 0, .. }, Some(Answer::Yes), FromCache::End) => {
                self.over = Some(Over::End);
            }
            (Kind::Put, Some(Answer::Yes), FromCache::Credit(credit)) => {
                self.allowance.give(credit)?;
            }
            (_, Some(Answer::Yes), FromCache::Cancel) => self.over = Some(Over::Cancelled),
            _ => return Err(header.out_of_order()),
        }
        Ok(())
    }

    fn refuse(&mut self) {
        self.answer = Some(Answer::No);
        self.over = Some(Over::End);
    }
}

/// Writes what is to be sent; small frames first, since blobs that come wait for them.
async fn write(
    mut outgoing: impl AsyncWrite + Unpin,
    mut control: mpsc::UnboundedReceiver<Vec<u8>>,
    mut pieces: mpsc::Receiver<Vec<u8>>,
) -> Result<(), LinkError> {
    loop {
        let frame = tokio::select! {
            biased;
            Some(frame) = control.recv() => frame,
            Some(frame) = pieces.recv() => frame,
            else => return Ok(()),
        };
        let written = timeout(PORT_PATIENCE, outgoing.write_all(&frame)).await;
        written.map_err(|_| LinkError::Stuck)??;
    }
}

#[cfg(test)]
mod tests;
