//! The endpoint on 127.0.0.1:8006, which containers of the pod ask for resources, tokens and evidence, as
//! they do in guests of Confidential Containers (`api-server-rest`).
//!
//! Who asks is whose socket it is: the kernel tells the control group ([`caller`](super::caller)), and that
//! is a container's or nobody's. The pod's policy then decides by container and request. Connections,
//! headers and bodies are bounded, in all and for each container, so that one cannot shut out the others.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http_body_util::{BodyExt as _, Collected, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nacre_kbs_client::ClientError;
use nacre_policy::GuestApi;
use nacre_protocol::kbs::ResourceUri;
use serde::Deserialize;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};

use super::{Secrets, SecretsError, caller};
use crate::sandbox::Sandbox;

/// Where containers find it.
const ADDRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8006);
/// Most connections of a container, and of all together.
const MOST_OF_ONE: usize = 16;
const MOST: usize = 128;
/// Time in which a request's head must come; also how long a connection may be idle.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// Most bytes of a request's head, and most headers.
const HEAD_LIMIT: usize = 16 * 1024;
const MOST_HEADERS: usize = 32;
/// Most bytes of a body: an event.
const BODY_LIMIT: usize = 16 * 1024;
/// Pause after a failure to accept: out of descriptors, most likely.
const PAUSE: Duration = Duration::from_millis(100);
/// What is said about any other path.
const PATHS: &str = "there are /cdh/resource/REPOSITORY/TYPE/TAG, /aa/token, /aa/evidence, \
                     /aa/additional-evidence, /aa/aael and /info";
/// Begins the data of an event (`AAEL`).
const AAEL: u32 = 0x4141_454c;

/// Serves until the guest ends. Without a key broker and without a TEE there is nothing to serve.
pub(crate) async fn serve(sandbox: &Arc<Sandbox>) -> io::Result<()> {
    let secrets = &sandbox.secrets;
    if secrets.broker.is_none() && secrets.tee.is_none() {
        return Ok(());
    }
    let listener = TcpListener::bind(ADDRESS).await?;
    let sandbox = Arc::clone(sandbox);
    let open = Arc::new(Open::default());
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => accept(&sandbox, &open, stream, peer),
                Err(error) => {
                    tracing::warn!("the endpoint for containers failed to accept: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    });
    Ok(())
}

/// Connections by container; the empty name stands for whoever is none.
#[derive(Debug, Default)]
struct Open(Mutex<HashMap<String, usize>>);

/// A place among the connections.
struct Place {
    open: Arc<Open>,
    container: String,
}

impl Open {
    fn place(self: &Arc<Self>, container: &str) -> Option<Place> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = open.values().sum();
        let own = open.get(container).copied().unwrap_or_default();
        if all >= MOST || own >= MOST_OF_ONE {
            return None;
        }
        open.insert(container.to_owned(), own + 1);
        Some(Place { open: Arc::clone(self), container: container.to_owned() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.open.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.container) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.container);
            }
        }
    }
}

fn accept(sandbox: &Arc<Sandbox>, open: &Arc<Open>, stream: TcpStream, peer: SocketAddr) {
    let container = match container_at(sandbox, &stream, peer) {
        Ok(container) => container,
        // It has gone already.
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!("failed to find out which container asks: {error}");
            None
        }
    };
    let Some(place) = open.place(container.as_deref().unwrap_or_default()) else {
        tracing::debug!(container, "too many connections to the endpoint for containers");
        return;
    };
    let sandbox = Arc::clone(sandbox);
    let answer = service_fn(move |request| {
        let (sandbox, container) = (Arc::clone(&sandbox), container.clone());
        async move { Ok::<_, hyper::Error>(answer(&sandbox, container.as_deref(), request).await) }
    });
    tokio::spawn(async move {
        let _place = place;
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            // Simple programs close their side when they have asked.
            .half_close(true)
            .max_buf_size(HEAD_LIMIT)
            .max_headers(MOST_HEADERS)
            .serve_connection(TokioIo::new(stream), answer)
            .await;
        if let Err(error) = served {
            tracing::debug!("a connection to the endpoint for containers ended: {error}");
        }
    });
}

/// Identifier of the container whose socket it is. `None` if it is none's.
fn container_at(
    sandbox: &Sandbox,
    stream: &TcpStream,
    peer: SocketAddr,
) -> io::Result<Option<String>> {
    let (SocketAddr::V4(peer), SocketAddr::V4(here)) = (peer, stream.local_addr()?) else {
        return Ok(None);
    };
    let group = caller::cgroup_of(peer, here)?;
    let containers = sandbox.containers();
    let container = containers.into_iter().find(|container| container.holds_cgroup(group));
    Ok(container.map(|container| container.id().to_owned()))
}

type Answer = Response<Full<Bytes>>;

fn text(status: StatusCode, text: impl Into<String>) -> Answer {
    let mut text = text.into();
    text.push('\n');
    typed(status, "text/plain; charset=utf-8", text.into_bytes())
}

fn typed(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

fn bytes(body: impl Into<Bytes>) -> Answer {
    typed(StatusCode::OK, "application/octet-stream", body)
}

fn json(value: &serde_json::Value) -> Answer {
    typed(StatusCode::OK, "application/json", value.to_string())
}

fn failed(error: &SecretsError) -> Answer {
    let status = match error {
        SecretsError::NoBroker | SecretsError::NoTee => StatusCode::NOT_FOUND,
        SecretsError::Broker(ClientError::Absent { .. }) => StatusCode::NOT_FOUND,
        SecretsError::Broker(ClientError::Attestation(_) | ClientError::Denied { .. }) => {
            StatusCode::FORBIDDEN
        }
        SecretsError::Broker(ClientError::Unreachable { .. }) => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    text(status, error.to_string())
}

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
enum Call {
    Resource(ResourceUri),
    Token,
    Evidence([u8; 64]),
    AdditionalEvidence,
    Aael,
    Info,
}

/// Why a request asks for nothing.
#[derive(Debug)]
enum Refusal {
    /// It is not understood.
    Bad(String),
    /// There is no such path.
    Path,
    /// The path is for another method.
    Method(Method),
}

impl Refusal {
    fn answer(self) -> Answer {
        match self {
            Self::Bad(why) => text(StatusCode::BAD_REQUEST, why),
            Self::Path => text(StatusCode::NOT_FOUND, PATHS),
            Self::Method(wanted) => {
                let name = wanted.as_str();
                let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, format!("use {name}"));
                let allow = HeaderValue::from_str(name).expect("the name of a method");
                answer.headers_mut().insert(ALLOW, allow);
                answer
            }
        }
    }
}

impl Call {
    fn read(method: &Method, path: &str, query: Option<&str>) -> Result<Self, Refusal> {
        let (call, wanted) = match path {
            "/info" => (Self::Info, Method::GET),
            "/aa/aael" => (Self::Aael, Method::POST),
            "/aa/token" => {
                let kind = parameter(query, "token_type");
                if kind.as_deref() != Some("kbs") {
                    let why = "token_type must be kbs: this guest has no other token";
                    return Err(Refusal::Bad(why.into()));
                }
                (Self::Token, Method::GET)
            }
            "/aa/evidence" => {
                (Self::Evidence(report_data(query).map_err(Refusal::Bad)?), Method::GET)
            }
            "/aa/additional-evidence" | "/aa/additional_evidence" => {
                (Self::AdditionalEvidence, Method::GET)
            }
            path => {
                let resource = path.strip_prefix("/cdh/resource/").ok_or(Refusal::Path)?;
                let uri = ResourceUri::of_path(resource);
                let uri = uri.map_err(|error| Refusal::Bad(error.to_string()))?;
                (Self::Resource(uri), Method::GET)
            }
        };
        if *method == wanted { Ok(call) } else { Err(Refusal::Method(wanted)) }
    }

    /// What the policy is asked about.
    fn api(&self) -> GuestApi {
        match self {
            Self::Resource(uri) => GuestApi::Resource(super::name_for_policy(uri)),
            Self::Token => GuestApi::Token,
            Self::Evidence(_) | Self::AdditionalEvidence => GuestApi::Evidence,
            Self::Aael => GuestApi::Aael,
            Self::Info => GuestApi::Info,
        }
    }
}

fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    let mut all = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    all.find(|(known, _)| known == name).map(|(_, value)| value.into_owned())
}

/// Up to 64 bytes of the caller's choice, zeros behind them: what other guests make of fewer.
fn report_data(query: Option<&str>) -> Result<[u8; 64], String> {
    let given = parameter(query, "runtime_data").ok_or("runtime_data is missing")?;
    let given = match parameter(query, "encoding").as_deref() {
        None => given.into_bytes(),
        Some("base64") => URL_SAFE_NO_PAD
            .decode(given)
            .map_err(|_| "runtime_data is not base64url without padding")?,
        Some(_) => return Err("encoding is not known: use base64, or leave it out".into()),
    };
    let mut data = [0; 64];
    let place = data.get_mut(..given.len()).ok_or("runtime_data has more than 64 bytes")?;
    place.copy_from_slice(&given);
    Ok(data)
}

/// The data of an event: what a runtime measurement register is extended by.
#[derive(Deserialize)]
struct Event {
    domain: String,
    operation: String,
    content: String,
}

impl Event {
    /// TCG's `EV_EVENT_TAG` as other guests fill it: tag, length, `domain operation content`.
    fn data(&self) -> Result<Vec<u8>, &'static str> {
        let word = |text: &str| !text.is_empty() && !text.contains(|c: char| c.is_whitespace());
        if !word(&self.domain) || !word(&self.operation) || self.content.contains(['\n', '\r']) {
            return Err("domain and operation are words, and content is one line");
        }
        let line = format!("{} {} {}", self.domain, self.operation, self.content);
        let length = u32::try_from(line.len()).map_err(|_| "the event is too long")?;
        let mut data = [AAEL.to_le_bytes(), length.to_le_bytes()].concat();
        data.extend_from_slice(line.as_bytes());
        Ok(data)
    }
}

async fn answer(sandbox: &Sandbox, container: Option<&str>, request: Request<Incoming>) -> Answer {
    let Some(container) = container else {
        return text(StatusCode::FORBIDDEN, "only containers of this pod are answered");
    };
    let call = match Call::read(request.method(), request.uri().path(), request.uri().query()) {
        Ok(call) => call,
        Err(refusal) => return refusal.answer(),
    };
    let secrets = &sandbox.secrets;
    if let Err(denied) = secrets.judge(container, call.api()) {
        tracing::debug!(container, "{}", denied.denial());
        return text(StatusCode::FORBIDDEN, denied.denial().to_string());
    }
    match call {
        // The agent alone needs it; who has it can, with the host, read the volume for ever.
        Call::Resource(uri) if sandbox.volumes.has_key(&uri) => {
            text(StatusCode::FORBIDDEN, format!("{uri} is the key of a volume (volumes.toml)"))
        }
        Call::Resource(uri) => match secrets.resource(&uri).await {
            Ok(resource) => bytes(resource.to_vec()),
            Err(error) => failed(&error),
        },
        Call::Token => token(secrets).await,
        Call::Evidence(report_data) => evidence(secrets, report_data).await,
        // One machine, one piece of evidence.
        Call::AdditionalEvidence => bytes(Bytes::new()),
        Call::Aael => extend(secrets, request).await,
        Call::Info => info(secrets),
    }
}

async fn token(secrets: &Secrets) -> Answer {
    let token = match secrets.token().await {
        Ok(token) => token,
        Err(error) => return failed(&error),
    };
    match token.key().to_pem() {
        Ok(pem) => {
            let body = json!({ "token": token.token(), "tee_keypair": pem.as_str() });
            bytes(body.to_string())
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

async fn evidence(secrets: &Secrets, report_data: [u8; 64]) -> Answer {
    let Some(tee) = &secrets.tee else { return failed(&SecretsError::NoTee) };
    match tee.evidence(report_data).await {
        Ok(evidence) => bytes(evidence.to_wire().to_string()),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

async fn extend(secrets: &Secrets, request: Request<Incoming>) -> Answer {
    let Some(tee) = &secrets.tee else { return failed(&SecretsError::NoTee) };
    let body = Limited::new(request.into_body(), BODY_LIMIT).collect().await;
    let Ok(body) = body.map(Collected::to_bytes) else {
        let why = format!("an event has at most {BODY_LIMIT} bytes");
        return text(StatusCode::PAYLOAD_TOO_LARGE, why);
    };
    let event = serde_json::from_slice::<Event>(&body)
        .map_err(|_| "an event is JSON with domain, operation and content");
    let data = match event.and_then(|event| event.data()) {
        Ok(data) => data,
        Err(why) => return text(StatusCode::BAD_REQUEST, why),
    };
    // Other guests answer with success to a request whose event cannot be recorded.
    match tee.extend_runtime(&data).await {
        Ok(()) => json(&json!({ "success": "true" })),
        Err(error) => json(&json!({ "success": "false", "message": error.to_string() })),
    }
}

fn info(secrets: &Secrets) -> Answer {
    let tee = secrets.tee.as_ref().map(|tee| tee.kind().name());
    let mut info = json!({ "version": env!("CARGO_PKG_VERSION"), "additional_tees": [] });
    if let Some(tee) = tee {
        info["tee"] = tee.into();
    }
    json(&info)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: &str, path: &str) -> Result<Call, Refusal> {
        let (path, query) = path.split_once('?').map_or((path, None), |(p, q)| (p, Some(q)));
        Call::read(&method.parse().unwrap(), path, query)
    }

    #[test]
    fn paths_are_those_of_other_guests() {
        let resource = "kbs:///default/key/1".parse().unwrap();
        let mut hello = [0; 64];
        hello[..5].copy_from_slice(b"hello");
        for (method, path, call) in [
            ("GET", "/cdh/resource/default/key/1", Call::Resource(resource)),
            ("GET", "/aa/token?token_type=kbs", Call::Token),
            ("GET", "/aa/evidence?runtime_data=hello", Call::Evidence(hello)),
            ("GET", "/aa/evidence?encoding=base64&runtime_data=aGVsbG8", Call::Evidence(hello)),
            ("GET", "/aa/evidence?runtime_data=%68ello", Call::Evidence(hello)),
            ("GET", "/aa/evidence?runtime_data=", Call::Evidence([0; 64])),
            ("GET", "/aa/additional-evidence?runtime_data=x", Call::AdditionalEvidence),
            ("POST", "/aa/aael", Call::Aael),
            ("GET", "/info", Call::Info),
        ] {
            assert_eq!(read(method, path).unwrap(), call, "{path}");
        }
        let long = format!("/aa/evidence?runtime_data={}", "x".repeat(65));
        for (method, path, status) in [
            ("GET", "/", 404),
            ("GET", "/cdh/resource", 404),
            ("GET", "/cdh/resource/a/b", 400),
            ("GET", "/cdh/resource/a/b/c/d", 400),
            ("GET", "/cdh/resource/a/../b", 400),
            ("GET", "/cdh/resource/a/b/%2e", 400),
            ("POST", "/cdh/resource/a/b/c", 405),
            ("GET", "/aa/aael", 405),
            ("GET", "/aa/token", 400),
            ("GET", "/aa/token?token_type=coco_as", 400),
            ("GET", "/aa/evidence", 400),
            ("GET", "/aa/evidence?runtime_data=a&encoding=hex", 400),
            ("GET", "/aa/evidence?runtime_data=%%%&encoding=base64", 400),
            ("GET", &long, 400),
        ] {
            let answer = read(method, path).unwrap_err().answer();
            assert_eq!(answer.status().as_u16(), status, "{path}");
            assert_eq!(answer.headers().contains_key(ALLOW), status == 405);
        }
    }

    #[test]
    fn events_have_the_layout_of_other_guests() {
        let event = |domain: &str, operation: &str, content: &str| Event {
            domain: domain.into(),
            operation: operation.into(),
            content: content.into(),
        };
        let data = event("a", "b", "c d").data().unwrap();
        assert_eq!(data, b"LEAA\x07\0\0\0a b c d");
        for odd in [event("", "b", "c"), event("a b", "b", "c"), event("a", "b", "c\nd")] {
            assert!(odd.data().is_err());
        }
    }

    #[test]
    fn one_container_cannot_take_every_connection() {
        let open = Arc::new(Open::default());
        let mut places: Vec<Place> = (0..MOST_OF_ONE).map(|_| open.place("a").unwrap()).collect();
        assert!(open.place("a").is_none());
        places.extend((0..MOST - MOST_OF_ONE).map(|n| open.place(&format!("{n}")).unwrap()));
        assert!(open.place("late").is_none());
        drop(places);
        assert!(open.0.lock().unwrap().is_empty());
    }
}
