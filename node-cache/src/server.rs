//! The socket: who may connect, how many, and until when.

use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nacre_protocol::blob_cache::{HELLO_SIZE, Hello, VERDICT_SIZE, Verdict, Violation};
use rustix::fs::Mode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::config::Config;
use crate::guest;
use crate::statistics::{Counters, Statistics};
use crate::store::{Store, StoreError, make_private};

/// How long somebody who connects may take to say who he is.
const GREETING_PATIENCE: Duration = Duration::from_secs(5);
/// Most connections beside those of guests.
const MOST_OTHERS: usize = 64;
/// Pause after the system had no room for another connection.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);
/// Most bytes of statistics that are read.
const STATISTICS_LIMIT: u64 = 64 * 1024;

/// Why the daemon does not serve, or cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Its directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its socket.
    #[error("cannot {doing} {path}: {cause}")]
    Socket {
        /// What was tried.
        doing: &'static str,
        /// The socket.
        path: PathBuf,
        /// What the system answered.
        cause: io::Error,
    },
    /// Somebody serves there.
    #[error("another daemon serves at {0}")]
    Taken(PathBuf),
    /// What answers is no daemon of this version.
    #[error("what answers at {path} is no nacre-cache of this version: {problem}")]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What is wrong with the answer.
        problem: String,
    },
}

/// The daemon.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    shared: Arc<Shared>,
    report: Duration,
    connections: usize,
}

#[derive(Debug)]
struct Shared {
    store: Arc<Store>,
    counters: Arc<Counters>,
    guests: Arc<Semaphore>,
    guests_now: AtomicU64,
    put_allowance: u64,
}

impl Server {
    /// Takes its directory and its socket. Needs the runtime; sets the process's umask.
    ///
    /// # Errors
    /// If either cannot be had.
    pub fn bind(config: &Config) -> Result<Server, ServerError> {
        // Whatever is made from here on is for this user alone.
        rustix::process::umask(Mode::from_raw_mode(0o077));
        let counters = Arc::new(Counters::default());
        let store = Arc::new(Store::open(config, &counters)?);
        let guests = usize::try_from(config.max_guests).unwrap_or(usize::MAX);
        Ok(Server {
            listener: listen(&config.socket)?,
            path: config.socket.clone(),
            shared: Arc::new(Shared {
                store,
                counters,
                guests: Arc::new(Semaphore::new(guests)),
                guests_now: AtomicU64::new(0),
                put_allowance: config.max_put_bytes,
            }),
            report: Duration::from_secs(config.report_seconds.into()),
            connections: guests + MOST_OTHERS,
        })
    }

    /// Serves until `end`. Guests that are connected then go on at their registries.
    pub async fn run(self, end: impl Future<Output = ()>) {
        tracing::info!("serving at {}", self.path.display());
        let mut guests = JoinSet::new();
        tokio::select! {
            () = self.accept(&mut guests) => {}
            () = self.report() => {}
            () = end => {}
        }
        guests.shutdown().await;
        if let Err(cause) = std::fs::remove_file(&self.path) {
            tracing::warn!("cannot remove {}: {cause}", self.path.display());
        }
        tracing::info!("ended; {}", one_line(&self.shared.statistics()));
    }

    async fn accept(&self, connections: &mut JoinSet<()>) {
        let places = Arc::new(Semaphore::new(self.connections));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            while connections.try_join_next().is_some() {}
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let shared = Arc::clone(&self.shared);
                    connections.spawn(async move {
                        shared.greet(stream).await;
                        drop(place);
                    });
                }
                Err(cause) => {
                    tracing::warn!("cannot take a connection: {cause}");
                    tokio::time::sleep(EXHAUSTED_PAUSE).await;
                }
            }
        }
    }

    async fn report(&self) {
        let mut ticks = interval(self.report);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = self.shared.statistics();
        loop {
            ticks.tick().await;
            let now = self.shared.statistics();
            if now != told {
                tracing::info!("{}", one_line(&now));
                told = now;
            }
        }
    }
}

impl Shared {
    /// Finds out who has connected, and serves.
    async fn greet(&self, mut stream: UnixStream) {
        let user = stream.peer_cred().map(|peer| peer.uid());
        let own = rustix::process::geteuid().as_raw();
        if !user.as_ref().is_ok_and(|uid| *uid == 0 || *uid == own) {
            tracing::warn!("a connection of user {user:?} is refused: only root may connect");
            return;
        }
        let hello = match timeout(GREETING_PATIENCE, read_hello(&mut stream)).await {
            Ok(Ok(Ok(hello))) => hello,
            Ok(Ok(Err(violation))) => {
                tracing::warn!("a connection is refused: {violation}");
                let _ = stream.write_all(&Verdict::Unknown.to_bytes()).await;
                return;
            }
            // Somebody looks whether the daemon lives.
            Ok(Err(_)) | Err(_) => return,
        };
        match hello {
            Hello::Statistics => {
                let text = serde_json::to_vec(&self.statistics()).unwrap_or_default();
                let answer = [&Verdict::Welcome.to_bytes()[..], &text].concat();
                let _ = timeout(GREETING_PATIENCE, stream.write_all(&answer)).await;
            }
            Hello::Guest { namespace, sandbox } => self.serve(stream, &namespace, &sandbox).await,
        }
    }

    async fn serve(&self, mut stream: UnixStream, namespace: &str, sandbox: &str) {
        let view = self.store.view(namespace).ok_or(Verdict::Namespace);
        let place = || Arc::clone(&self.guests).try_acquire_owned().map_err(|_| Verdict::Full);
        let (view, _place) = match view.and_then(|view| Ok((view, place()?))) {
            Ok(admitted) => admitted,
            Err(verdict) => {
                self.counters.guests_refused.count();
                tracing::warn!("sandbox {sandbox} of namespace {namespace} is refused: {verdict}");
                let _ = stream.write_all(&verdict.to_bytes()).await;
                return;
            }
        };
        if stream.write_all(&Verdict::Welcome.to_bytes()).await.is_err() {
            return;
        }
        tracing::debug!("sandbox {sandbox} of namespace {namespace} is connected");
        self.counters.guests.count();
        let _counted = Counted::new(&self.guests_now);
        let counters = Arc::clone(&self.counters);
        match guest::serve(stream, view, self.put_allowance, counters).await {
            Ok(()) => tracing::debug!("sandbox {sandbox} of namespace {namespace} is gone"),
            Err(error) => {
                if matches!(error, guest::StreamError::Violation(_)) {
                    self.counters.violations.count();
                }
                tracing::warn!("sandbox {sandbox} of namespace {namespace} is cut off: {error}");
            }
        }
    }

    fn statistics(&self) -> Statistics {
        let mut statistics = self.counters.read();
        statistics.guests_now = self.guests_now.load(Ordering::Relaxed);
        self.store.describe(&mut statistics);
        statistics
    }
}

/// Counts one more for as long as it lives.
struct Counted<'a>(&'a AtomicU64);

impl<'a> Counted<'a> {
    fn new(counter: &'a AtomicU64) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Counted(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn listen(path: &Path) -> Result<UnixListener, ServerError> {
    let failed = |doing| {
        let path = path.to_owned();
        move |cause| ServerError::Socket { doing, path, cause }
    };
    if let Some(directory) = path.parent() {
        make_private(directory)?;
    }
    if BlockingStream::connect(path).is_ok() {
        return Err(ServerError::Taken(path.to_owned()));
    }
    match std::fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove")(cause));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed("listen at"))?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))
        .map_err(failed("set the mode of"))?;
    Ok(listener)
}

async fn read_hello(stream: &mut UnixStream) -> io::Result<Result<Hello, Violation>> {
    let mut head = [0; HELLO_SIZE];
    stream.read_exact(&mut head).await?;
    let mut rest = match Hello::rest(&head) {
        Ok(size) => vec![0; size],
        Err(violation) => return Ok(Err(violation)),
    };
    stream.read_exact(&mut rest).await?;
    Ok(Hello::parse(&head, &rest))
}

fn one_line(statistics: &Statistics) -> String {
    let text = statistics.to_string();
    let lines: Vec<_> =
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    lines.join("; ")
}

/// Asks a running daemon for its numbers.
///
/// # Errors
/// If none answers at `socket`, or not as it should.
pub fn ask_for_statistics(socket: &Path) -> Result<Statistics, ServerError> {
    let failed = |cause| ServerError::Socket { doing: "ask at", path: socket.to_owned(), cause };
    let strange = |problem: String| ServerError::Answer { path: socket.to_owned(), problem };
    let mut stream = BlockingStream::connect(socket).map_err(failed)?;
    stream.set_read_timeout(Some(GREETING_PATIENCE)).map_err(failed)?;
    let hello = Hello::Statistics.to_bytes().map_err(|violation| strange(violation.to_string()))?;
    stream.write_all(&hello).map_err(failed)?;
    let mut verdict = [0; VERDICT_SIZE];
    stream.read_exact(&mut verdict).map_err(failed)?;
    match Verdict::parse(&verdict) {
        Ok(Verdict::Welcome) => {}
        Ok(other) => return Err(strange(other.to_string())),
        Err(violation) => return Err(strange(violation.to_string())),
    }
    let mut text = Vec::new();
    stream.take(STATISTICS_LIMIT).read_to_end(&mut text).map_err(failed)?;
    serde_json::from_slice(&text).map_err(|cause| strange(cause.to_string()))
}
