//! A blob on its way: exactly its size, from whoever has it, and across cut connections.
//!
//! The node's cache is asked first, then mirrors, then the registry. Cache and mirrors are detours:
//! whatever goes wrong with one (nothing there, too slow, early end, too much), the next goes on where it
//! stopped. That a detour brought wrong bytes shows only in the digest of all of them, which is for the
//! caller to check and, with [`Blob::from_origin`], to do again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nacre_trust::Digest;
use reqwest::{Response, StatusCode, header};
use tokio::time::timeout;

use crate::reference::Reference;
use crate::registry::endpoint::Endpoint;
use crate::registry::retry::{Failure, Patience};
use crate::registry::{Registry, Request, text};
use crate::{BlobCache, BlobSink, BlobStream, PullError};

/// What must have come since the last trouble for the next to count as a new one, in bytes.
const PROGRESS: u64 = 64 << 10;
/// What the cache must bring within the time that it may take for anything, in bytes.
const LEAST_FROM_CACHE: u64 = 256 << 10;

/// The node's cache, and what it may have.
#[derive(Clone)]
pub(crate) struct Cache {
    pub(crate) blobs: Arc<dyn BlobCache>,
    /// It is offered what comes from registries.
    pub(crate) share: bool,
}

/// A blob being fetched.
pub(crate) struct Blob<'a> {
    registry: &'a Registry,
    digest: Digest,
    what: &'a str,
    size: u64,
    done: u64,
    /// Who may still be asked. The first is.
    ways: VecDeque<Way<'a>>,
    current: Current,
    patience: Patience,
    since_trouble: u64,
    detour: bool,
    /// The content is no secret from the host even if credentials were needed for it.
    encrypted: bool,
    /// The cache that may be offered the blob, and then the offer.
    share: Option<&'a dyn BlobCache>,
    offer: Option<Offer>,
}

enum Way<'a> {
    Cache(&'a dyn BlobCache),
    Endpoint(Endpoint),
}

enum Current {
    Nothing,
    Cached {
        stream: Box<dyn BlobStream>,
        waited: Duration,
        came: u64,
    },
    /// With the bytes to drop because the registry started again from the first.
    Http {
        response: Box<Response>,
        skip: u64,
    },
}

/// A blob on its way to the cache, and how long that may still keep the pull waiting.
struct Offer {
    sink: Box<dyn BlobSink>,
    patience: Duration,
}

impl<'a> Blob<'a> {
    /// From mirrors and the registry. Nothing is asked for yet. The blob must have exactly `size` bytes.
    pub(crate) fn new(
        registry: &'a Registry,
        reference: &Reference,
        digest: Digest,
        size: u64,
        what: &'a str,
    ) -> Self {
        let endpoints = registry.endpoints(reference);
        Self::by(registry, endpoints.into_iter().map(Way::Endpoint).collect(), digest, size, what)
    }

    /// From the registry alone.
    pub(crate) fn from_origin(
        registry: &'a Registry,
        reference: &Reference,
        digest: Digest,
        size: u64,
        what: &'a str,
    ) -> Self {
        let origin = Way::Endpoint(registry.origin(reference));
        Self::by(registry, VecDeque::from([origin]), digest, size, what)
    }

    fn by(
        registry: &'a Registry,
        ways: VecDeque<Way<'a>>,
        digest: Digest,
        size: u64,
        what: &'a str,
    ) -> Self {
        Self {
            registry,
            digest,
            what,
            size,
            done: 0,
            ways,
            current: Current::Nothing,
            patience: Patience::new(),
            since_trouble: 0,
            detour: false,
            encrypted: false,
            share: None,
            offer: None,
        }
    }

    /// Before anybody else, asks the cache, and offers it what comes from elsewhere.
    pub(crate) fn with_cache(mut self, cache: Option<&'a Cache>, encrypted: bool) -> Self {
        if let Some(Cache { blobs, share }) = cache {
            self.ways.push_front(Way::Cache(&**blobs));
            self.share = share.then_some(&**blobs);
            self.encrypted = encrypted;
        }
        self
    }

    /// Something of it came from the cache or a mirror.
    pub(crate) fn took_a_detour(&self) -> bool {
        self.detour
    }

    /// The next piece; none after exactly the announced size.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, PullError> {
        loop {
            let piece = match std::mem::replace(&mut self.current, Current::Nothing) {
                Current::Nothing => {
                    self.open().await?;
                    continue;
                }
                Current::Cached { .. } if self.done == self.size => return Ok(None),
                Current::Cached { stream, waited, came } => self.cached(stream, waited, came).await,
                Current::Http { response, skip } => match self.fetched(response, skip).await? {
                    Fetched::Piece(piece) => Some(piece),
                    Fetched::End => {
                        self.close_offer().await;
                        return Ok(None);
                    }
                    Fetched::Nothing => None,
                },
            };
            if let Some(piece) = piece {
                self.done += piece.len() as u64;
                self.detour |= self.ways.len() > 1 || self.is_at_mirror();
                self.offer(&piece).await;
                return Ok(Some(piece));
            }
        }
    }

    fn is_at_mirror(&self) -> bool {
        match self.ways.front() {
            Some(Way::Endpoint(endpoint)) => endpoint.is_mirror,
            _ => true,
        }
    }

    /// Asks the first of the ways, or takes it off the list.
    async fn open(&mut self) -> Result<(), PullError> {
        let endpoint = match self.ways.front() {
            None => return Err(PullError::Abandoned),
            Some(Way::Cache(cache)) => {
                let asked = cache.get(&self.digest, self.size, self.done);
                match timeout(self.registry.limits().cache_stall, asked).await {
                    Ok(Some(stream)) => {
                        self.current = Current::Cached { stream, waited: Duration::ZERO, came: 0 };
                    }
                    // It has none.
                    Ok(None) => self.turn_back(None),
                    Err(_) => self.turn_back(Some("it does not answer".into())),
                }
                return Ok(());
            }
            Some(Way::Endpoint(endpoint)) => endpoint.clone(),
        };
        match self.ask(&endpoint).await {
            Ok(()) => Ok(()),
            Err(error) => {
                self.registry.pass_over(&endpoint, error)?;
                self.turn_back(None);
                Ok(())
            }
        }
    }

    async fn ask(&mut self, endpoint: &Endpoint) -> Result<(), PullError> {
        if endpoint.is_mirror {
            self.patience = Patience::with(endpoint);
        }
        let resource = format!("blobs/{}", self.digest);
        let request = Request {
            endpoint,
            resource: &resource,
            what: self.what,
            accept: None,
            offset: self.done,
        };
        let answer = self.registry.get(&request, &mut self.patience).await?;
        let response = answer.response;
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        if partial {
            let expected = format!("bytes {}-", self.done);
            let range = text(response.headers(), header::CONTENT_RANGE.as_str());
            if !range.is_some_and(|range| range.starts_with(&expected)) {
                return Err(request.problem("it resumed at another place than asked".into()));
            }
        }
        let skip = if partial { 0 } else { self.done };
        let before = self.done - skip;
        if let Some(length) = response.content_length()
            && length != self.size - before
        {
            return Err(self.size_mismatch(format!("the registry has {}", length + before)));
        }
        if answer.private && !self.encrypted {
            self.share = None;
            self.offer = None;
        }
        // What comes in the middle of a blob is of no use to the cache.
        if let Some(cache) = self.share.take_if(|_| self.done == 0) {
            let patience = self.registry.limits().cache_stall;
            let wanted = timeout(patience, cache.put(&self.digest, self.size)).await;
            self.offer = wanted.ok().flatten().map(|sink| Offer { sink, patience });
        }
        self.current = Current::Http { response: Box::new(response), skip };
        Ok(())
    }

    /// The next piece from the cache, if it is still good for one.
    async fn cached(
        &mut self,
        mut stream: Box<dyn BlobStream>,
        mut waited: Duration,
        mut came: u64,
    ) -> Option<Bytes> {
        let limit = self.registry.limits().cache_stall;
        let begin = Instant::now();
        let problem = match timeout(limit.saturating_sub(waited), stream.next()).await {
            Ok(Ok(Some(piece))) if piece.is_empty() => "it sends nothing".into(),
            Ok(Ok(Some(piece))) if piece.len() as u64 > self.size - self.done => {
                "it sends more than there is".into()
            }
            Ok(Ok(Some(piece))) => {
                waited += begin.elapsed();
                came += piece.len() as u64;
                if came >= LEAST_FROM_CACHE {
                    (waited, came) = (Duration::ZERO, 0);
                }
                self.current = Current::Cached { stream, waited, came };
                return Some(piece);
            }
            Ok(Ok(None)) => format!("it ended after {}", self.done),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it stalled".into(),
        };
        self.turn_back(Some(problem));
        None
    }

    /// The next piece over HTTP.
    async fn fetched(
        &mut self,
        mut response: Box<Response>,
        mut skip: u64,
    ) -> Result<Fetched, PullError> {
        let host = match self.ways.front() {
            Some(Way::Endpoint(endpoint)) => endpoint.host.as_str(),
            _ => "",
        };
        match self.registry.chunk(&mut response, host, self.what).await {
            Ok(Some(mut piece)) => {
                let dropped = usize::try_from(skip).map_or(piece.len(), |n| n.min(piece.len()));
                piece = piece.split_off(dropped);
                skip -= dropped as u64;
                if self.done + piece.len() as u64 > self.size {
                    return self
                        .troubled(self.size_mismatch("the registry sends more".into()).into())
                        .await;
                }
                self.current = Current::Http { response, skip };
                if piece.is_empty() {
                    return Ok(Fetched::Nothing);
                }
                self.since_trouble += piece.len() as u64;
                if self.since_trouble >= PROGRESS {
                    self.patience.renew();
                }
                Ok(Fetched::Piece(piece))
            }
            // Everything came; how the connection ended no longer matters.
            Ok(None) | Err(_) if self.done == self.size => Ok(Fetched::End),
            Ok(None) => {
                let ended = self.size_mismatch(format!("it ended after {}", self.done));
                self.troubled(ended.into()).await
            }
            Err(failure) => self.troubled(failure).await,
        }
    }

    /// A mirror is left; the registry is tried again, as often as makes sense.
    async fn troubled(&mut self, failure: Failure) -> Result<Fetched, PullError> {
        self.current = Current::Nothing;
        match self.ways.front() {
            Some(Way::Endpoint(endpoint)) if endpoint.is_mirror => {
                self.registry.pass_over(endpoint, failure.error)?;
                self.turn_back(None);
            }
            _ => {
                self.since_trouble = 0;
                self.patience.wait(failure).await?;
            }
        }
        Ok(Fetched::Nothing)
    }

    /// The next way goes on from here.
    fn turn_back(&mut self, problem: Option<String>) {
        let who = match self.ways.pop_front() {
            Some(Way::Endpoint(endpoint)) => endpoint.host,
            _ => "the node's cache".into(),
        };
        if let Some(problem) = problem {
            let (what, done) = (self.what, self.done);
            tracing::warn!(from = who, what, done, problem, "a blob is fetched elsewhere");
        }
        self.patience = Patience::new();
    }

    async fn offer(&mut self, piece: &Bytes) {
        let Some(mut offer) = self.offer.take() else { return };
        let begin = Instant::now();
        match timeout(offer.patience, offer.sink.write(piece.clone())).await {
            Ok(Ok(())) => {
                offer.patience = offer.patience.saturating_sub(begin.elapsed());
                self.offer = Some(offer);
            }
            Ok(Err(error)) => tracing::debug!(%error, what = self.what, "not kept by the cache"),
            Err(_) => tracing::debug!(what = self.what, "the cache is too slow for it"),
        }
    }

    async fn close_offer(&mut self) {
        if let Some(Offer { sink, patience }) = self.offer.take()
            && !matches!(timeout(patience, sink.finish()).await, Ok(Ok(())))
        {
            tracing::debug!(what = self.what, "not kept by the cache");
        }
    }

    fn size_mismatch(&self, actual: String) -> PullError {
        PullError::SizeMismatch { what: self.what.to_owned(), expected: self.size, actual }
    }
}

enum Fetched {
    Piece(Bytes),
    /// Nothing this time.
    Nothing,
    End,
}
