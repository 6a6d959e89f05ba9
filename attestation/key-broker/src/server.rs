//! Connections: accepting, TLS, time limits, and an end in good order.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::audit::{Action, Event, Outcome};
use crate::broker::Broker;
use crate::config::{Config, Tls, read_file};
use crate::error::ServeError;
use crate::http::{self, Caller};

/// How long requests that are under way may take when the broker is told to stop.
const FAREWELL: Duration = Duration::from_secs(10);
/// How often the store hears how far the audit log goes.
const HEAD_EVERY: Duration = Duration::from_secs(60);
/// Stack of a worker: recursion over JSON is bounded, and evaluation of policies needs some.
const STACK: usize = 4 * 1024 * 1024;

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// If it cannot start.
pub fn serve(config: &Path) -> Result<(), ServeError> {
    let config = Config::read(config)?;
    serve_config(config, |address, scheme| {
        tracing::info!("serving {scheme}://{address}");
    })
}

/// As [`serve`], and tells where.
pub(crate) fn serve_config(
    config: Config,
    told: impl FnOnce(SocketAddr, &'static str),
) -> Result<(), ServeError> {
    crate::use_ring();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_stack_size(STACK)
        .enable_all()
        .build()
        .map_err(|error| ServeError::Io { what: "starting threads".to_owned(), error })?;
    runtime.block_on(async {
        let stop = stop_signal()?;
        let server = Server::open(config).await?;
        told(server.address, server.scheme());
        server.run(stop).await
    })
}

/// A broker that listens.
pub(crate) struct Server {
    broker: Arc<Broker>,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    pub(crate) address: SocketAddr,
}

impl Server {
    pub(crate) async fn open(config: Config) -> Result<Server, ServeError> {
        let tls = config.tls.as_ref().map(acceptor).transpose()?;
        let listen = config.listen;
        let at = |error| ServeError::Io { what: format!("listening on {listen}"), error };
        // Before anything is written: two brokers of one configuration do not meet.
        let listener = TcpListener::bind(listen).await.map_err(at)?;
        let address = listener.local_addr().map_err(at)?;
        let broker = Arc::new(Broker::open(config)?);
        for root in &broker.config.danger_extra_snp_roots {
            tracing::warn!(
                "reports under the root {:?} are believed, as configured: they prove nothing about hardware",
                root.name
            );
        }
        if tls.is_none() && !listen.ip().is_loopback() {
            tracing::warn!(
                "serving without TLS, as configured: administrators' secrets go in clear"
            );
        }
        Ok(Server { broker, listener, tls, address })
    }

    pub(crate) fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Serves until `stop` is done.
    pub(crate) async fn run(self, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
        let Server { broker, listener, tls, address } = self;
        let router = http::router(broker.clone());
        let mut event = Event::new(Action::Start, Outcome::Done);
        event.reason = format!("nacre-kbs {} on {address}", env!("CARGO_PKG_VERSION"));
        broker.audit.append(event).await?;

        let noting = tokio::spawn(note_audit_head(broker.clone()));
        let places = Arc::new(Semaphore::new(broker.config.limits.connections));
        let (farewell, _) = watch::channel(false);
        let mut connections = JoinSet::new();
        tokio::pin!(stop);
        loop {
            // A place first: the kernel's queue holds who waits for one.
            let place = tokio::select! {
                () = &mut stop => break,
                place = places.clone().acquire_owned() => place,
            };
            let accepted = tokio::select! {
                () = &mut stop => break,
                accepted = listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!("accepting a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let connection = Connection {
                broker: broker.clone(),
                router: router.clone(),
                peer,
                farewell: farewell.subscribe(),
            };
            let tls = tls.clone();
            connections.spawn(async move {
                let _place = place;
                connection.serve(stream, tls).await;
            });
            while connections.try_join_next().is_some() {}
        }
        drop(listener);
        let _ = farewell.send(true);
        let ended = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(FAREWELL, ended).await.is_err() {
            connections.shutdown().await;
        }
        noting.abort();
        let stopped = broker.audit.append(Event::new(Action::Stop, Outcome::Done)).await;
        broker.audit.close();
        broker.note_audit_head()?;
        stopped.map(drop).map_err(ServeError::from)
    }
}

/// Again and again notes how far the audit log goes.
async fn note_audit_head(broker: Arc<Broker>) {
    let mut every = tokio::time::interval(HEAD_EVERY);
    let mut noted = 0;
    loop {
        every.tick().await;
        if broker.audit.head().seq == noted {
            continue;
        }
        noted = broker.audit.head().seq;
        let broker = broker.clone();
        let done = tokio::task::spawn_blocking(move || broker.note_audit_head()).await;
        if let Ok(Err(error)) = done {
            tracing::error!("{error}");
        }
    }
}

struct Connection {
    broker: Arc<Broker>,
    router: Router,
    peer: SocketAddr,
    farewell: watch::Receiver<bool>,
}

impl Connection {
    async fn serve(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        let broker = self.broker.clone();
        let gauge = broker.metrics.connections();
        gauge.inc();
        self.serve_stream(stream, tls).await;
        gauge.dec();
    }

    async fn serve_stream(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        // Answers are small and wanted at once: waiting to fill a packet costs 40 ms of each.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!("TCP_NODELAY: {error}");
        }
        match tls {
            None => self.serve_http(stream).await,
            Some(acceptor) => {
                let time = self.broker.config.request_time();
                match tokio::time::timeout(time, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => self.serve_http(stream).await,
                    Ok(Err(error)) => tracing::debug!("TLS with {}: {error}", self.peer),
                    Err(_) => tracing::debug!("TLS with {}: too slow", self.peer),
                }
            }
        }
    }

    async fn serve_http(mut self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let (broker, router, address) = (self.broker.clone(), self.router, self.peer.ip());
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let (broker, router) = (broker.clone(), router.clone());
            async move {
                let request = request.map(Body::new);
                let answer = http::answer(&broker, router, request, Caller::new(address)).await;
                Ok::<_, std::convert::Infallible>(answer)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.broker.config.request_time())
            .max_buf_size(64 * 1024)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = told(&mut self.farewell) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!("connection of {}: {error}", self.peer);
        }
    }
}

/// Done when the broker stops.
async fn told(farewell: &mut watch::Receiver<bool>) {
    // An error says that the broker is gone.
    let _ = farewell.wait_for(|farewell| *farewell).await;
}

fn acceptor(tls: &Tls) -> Result<TlsAcceptor, ServeError> {
    let wrong = |path: &Path, problem: &dyn std::fmt::Display| ServeError::Tls {
        what: path.display().to_string(),
        problem: problem.to_string(),
    };
    let certificates = read_file(&tls.certificate)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&certificates)
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(&tls.certificate, &error))?;
    let key = zeroize::Zeroizing::new(read_file(&tls.key)?);
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| wrong(&tls.key, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(&tls.certificate, &error))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| wrong(&tls.certificate, &error))?;
    let mut config = config;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.ticketer =
        rustls::crypto::ring::Ticketer::new().map_err(|error| wrong(&tls.key, &error))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Done at SIGTERM or SIGINT.
fn stop_signal() -> Result<impl Future<Output = ()>, ServeError> {
    let at = |error| ServeError::Io { what: "waiting for signals".to_owned(), error };
    let mut terminate = signal(SignalKind::terminate()).map_err(at)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(at)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
