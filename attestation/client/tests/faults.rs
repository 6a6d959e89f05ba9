//! The client against a broker that fails in every way it can: what passes is tried again, what does not
//! is told at once, and nobody attests more often than needed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use nacre_jose::{Jwk, jwe};
use nacre_kbs_client::{Client, ClientError, EvidenceSource, Options, Timeouts};
use nacre_protocol::kbs::{Attestation, ErrorInformation, ErrorKind, ResourceUri, report_data};
use serde_json::{Value, json};

/// A broker that believes whoever binds its key to the challenge, and otherwise does as it is told.
#[derive(Default)]
struct Broker {
    challenges: AtomicUsize,
    attestations: AtomicUsize,
    gets: AtomicUsize,
    /// Answers instead of its own, by the first word of the path after the version.
    faults: Mutex<VecDeque<(&'static str, u16, String)>>,
    /// Key and number of the last token.
    guest: Mutex<Option<(Jwk, usize)>>,
    /// Tokens with a number up to this are no longer known.
    forgotten: AtomicUsize,
    /// Life of tokens, in seconds.
    life: AtomicUsize,
}

const NONCE: &str = "bm9uY2Ugb2YgdGhlIHRlc3Q=";
const COOKIE: &str = "kbs-session-id=0123";

impl Broker {
    fn fault(&self, step: &str) -> Option<(StatusCode, String)> {
        let mut faults = self.faults.lock().unwrap();
        let (_, status, body) = faults.front().filter(|(at, ..)| *at == step).cloned()?;
        faults.pop_front();
        Some((StatusCode::from_u16(status).unwrap(), body))
    }

    fn will(&self, faults: &[(&'static str, u16, &str)]) {
        let faults = faults.iter().map(|(step, status, body)| (*step, *status, (*body).to_owned()));
        self.faults.lock().unwrap().extend(faults);
    }

    fn handshakes(&self) -> usize {
        self.attestations.load(Ordering::SeqCst)
    }
}

fn error(kind: ErrorKind, detail: &str) -> String {
    serde_json::to_string(&ErrorInformation::new(kind, detail.into(), Some("r-7".into()))).unwrap()
}

async fn auth(State(broker): State<Arc<Broker>>, body: Bytes) -> (StatusCode, HeaderMap, String) {
    broker.challenges.fetch_add(1, Ordering::SeqCst);
    let mut headers = HeaderMap::new();
    if let Some((status, body)) = broker.fault("auth") {
        headers.insert("location", "http://127.0.0.1:1/".parse().unwrap());
        return (status, headers, body);
    }
    let request: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(request["tee"], "test");
    headers.insert("set-cookie", format!("{COOKIE}; Expires=never").parse().unwrap());
    (StatusCode::OK, headers, json!({ "nonce": NONCE, "extra-params": "" }).to_string())
}

async fn attest(
    State(broker): State<Arc<Broker>>,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, String) {
    let number = broker.attestations.fetch_add(1, Ordering::SeqCst) + 1;
    if let Some(fault) = broker.fault("attest") {
        return fault;
    }
    assert_eq!(headers["cookie"], COOKIE);
    let attestation: Attestation = serde_json::from_slice(&body).unwrap();
    let key = attestation.runtime_data.tee_pubkey;
    let expected = STANDARD.encode(report_data(NONCE, &key, ""));
    assert_eq!(attestation.tee_evidence.primary_evidence["report_data"], expected);
    *broker.guest.lock().unwrap() = Some((key, number));
    let iat = 1_000_000_000;
    let claims = json!({ "iat": iat, "exp": iat + broker.life.load(Ordering::SeqCst) });
    let token = format!("e30.{}.{number}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    (StatusCode::OK, json!({ "token": token }).to_string())
}

async fn resource(
    State(broker): State<Arc<Broker>>,
    headers: HeaderMap,
    uri: Uri,
) -> (StatusCode, String) {
    broker.gets.fetch_add(1, Ordering::SeqCst);
    if let Some(fault) = broker.fault("resource") {
        return fault;
    }
    let token = headers["authorization"].to_str().unwrap().to_owned();
    let number: usize = token.rsplit('.').next().unwrap().parse().unwrap();
    if number <= broker.forgotten.load(Ordering::SeqCst) {
        let body =
            error(ErrorKind::TokenVerifierError, "no key of this broker has signed the token");
        return (StatusCode::UNAUTHORIZED, body);
    }
    let guest = broker.guest.lock().unwrap();
    let (key, _) = guest.as_ref().unwrap();
    let secret = format!("secret of {}", uri.path());
    let answer = serde_json::to_string(&jwe::encrypt(secret.as_bytes(), key).unwrap()).unwrap();
    (StatusCode::OK, answer)
}

struct Evidence;

#[async_trait]
impl EvidenceSource for Evidence {
    fn tee(&self) -> &str {
        "test"
    }

    async fn evidence(&self, report_data: [u8; 64]) -> Result<Value, String> {
        Ok(json!({ "report_data": STANDARD.encode(report_data) }))
    }
}

fn broker() -> Arc<Broker> {
    Arc::new(Broker { life: 300.into(), ..Broker::default() })
}

async fn serve(broker: &Arc<Broker>, address: &str) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let routes = Router::new()
        .route("/kbs/v0/auth", post(auth))
        .route("/kbs/v0/attest", post(attest))
        .route("/kbs/v0/resource/{*path}", get(resource))
        .with_state(Arc::clone(broker));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    address
}

fn client(url: String, deadline: Duration) -> Arc<Client> {
    let timeouts = Timeouts { deadline, request: Duration::from_secs(2), ..Timeouts::default() };
    let options = Options {
        url,
        ca_pem: None,
        init_data: None,
        evidence: Arc::new(Evidence),
        timeouts,
        told_time: None,
    };
    Arc::new(Client::new(options).unwrap())
}

/// A broker, and a client of it.
async fn pair() -> (Arc<Broker>, Arc<Client>) {
    let broker = broker();
    let address = serve(&broker, "127.0.0.1:0").await;
    (broker, client(format!("http://{address}"), Duration::from_secs(10)))
}

fn at(text: &str) -> ResourceUri {
    text.parse().unwrap()
}

async fn get_one(client: &Client) -> Result<String, ClientError> {
    let secret = client.resource(&at("kbs:///a/b/c")).await?;
    Ok(String::from_utf8(secret.to_vec()).unwrap())
}

#[tokio::test]
async fn one_conversation_serves_every_caller() {
    let (broker, client) = pair().await;
    let calls: Vec<_> = (0..16)
        .map(|number| {
            let client = Arc::clone(&client);
            tokio::spawn(async move { client.resource(&at(&format!("kbs:///a/b/{number}"))).await })
        })
        .collect();
    for (number, call) in calls.into_iter().enumerate() {
        let secret = call.await.unwrap().unwrap();
        let expected = format!("secret of /kbs/v0/resource/a/b/{number}");
        assert_eq!(secret.as_slice(), expected.as_bytes());
    }
    assert_eq!((broker.handshakes(), broker.gets.load(Ordering::SeqCst)), (1, 16));
    // What is handed out has a key of its own.
    let token = client.token().await.unwrap();
    assert!(token.token().starts_with("e30."));
    assert_eq!(broker.handshakes(), 2);
    let (key, _) = broker.guest.lock().unwrap().clone().unwrap();
    assert_eq!(token.key().public(), key);
}

#[tokio::test]
async fn a_session_is_renewed_before_its_token_ends() {
    let (broker, client) = pair().await;
    broker.life.store(3, Ordering::SeqCst);
    get_one(&client).await.unwrap();
    get_one(&client).await.unwrap();
    assert_eq!(broker.handshakes(), 1);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    // The token is still good: while the broker is away it serves on.
    broker.will(&[("auth", 503, "")]);
    get_one(&client).await.unwrap();
    assert_eq!(broker.handshakes(), 1);
    tokio::time::sleep(Duration::from_millis(600)).await;
    get_one(&client).await.unwrap();
    assert_eq!(broker.handshakes(), 2);
}

#[tokio::test]
async fn a_broker_that_forgot_the_session_is_told_anew() {
    let (broker, client) = pair().await;
    get_one(&client).await.unwrap();
    broker.forgotten.store(1, Ordering::SeqCst);
    get_one(&client).await.unwrap();
    assert_eq!(broker.handshakes(), 2);
    // If that does not help, it is a refusal, and told with what the broker said.
    broker.forgotten.store(100, Ordering::SeqCst);
    let refused = get_one(&client).await.unwrap_err();
    assert!(matches!(refused, ClientError::Denied { .. }), "{refused}");
    assert!(
        refused.to_string().contains("TokenVerifierError") && refused.to_string().contains("r-7")
    );
    assert_eq!(broker.handshakes(), 3);
}

#[tokio::test]
async fn trouble_that_passes_is_tried_again() {
    let (broker, client) = pair().await;
    let restarted = error(ErrorKind::SessionNotFound, "no such session");
    broker.will(&[
        ("auth", 503, ""),
        ("auth", 429, "slow down"),
        ("attest", 401, &restarted),
        ("resource", 500, "<html>"),
    ]);
    get_one(&client).await.unwrap();
    assert_eq!(broker.challenges.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn a_broker_that_comes_up_later_is_found() {
    let broker = broker();
    let reserved = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = reserved.local_addr().unwrap();
    drop(reserved);
    let client = client(format!("http://{address}"), Duration::from_secs(10));
    let call = tokio::spawn(async move { get_one(&client).await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    serve(&broker, &address.to_string()).await;
    call.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_broker_that_stays_away_is_said_after_the_deadline() {
    let reserved = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = reserved.local_addr().unwrap();
    drop(reserved);
    let begun = Instant::now();
    let away =
        get_one(&client(format!("http://{address}"), Duration::from_secs(1))).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(3));
    let text = away.to_string();
    assert!(matches!(away, ClientError::Unreachable { attempts: 2.., .. }), "{text}");
    assert!(text.contains(&address.to_string()) && text.contains("refused"), "{text}");
}

#[tokio::test]
async fn a_refusal_is_told_at_once_and_to_everybody_who_waited() {
    let (broker, client) = pair().await;
    let why = "snp-measurement: found aa.., expected one of 2 reference values";
    let refusal = error(ErrorKind::AttestationFailed, why);
    broker.will(&[("attest", 401, &refusal)]);
    let begun = Instant::now();
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let client = Arc::clone(&client);
            tokio::spawn(async move { get_one(&client).await })
        })
        .collect();
    for call in calls {
        let refused = call.await.unwrap().unwrap_err();
        let text = refused.to_string();
        assert!(matches!(refused, ClientError::Attestation(_)), "{text}");
        assert!(text.contains(why) && text.contains("nacre kbs explain r-7"), "{text}");
        assert!(text.len() <= 1024);
    }
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!(broker.handshakes(), 1);
    // The next one asks again: somebody may have registered what was missing.
    get_one(&client).await.unwrap();
}

#[tokio::test]
async fn denials_are_told_apart() {
    let (broker, client) = pair().await;
    let denied = error(ErrorKind::PolicyDeny, "no grant covers a/b/c");
    let absent = error(ErrorKind::ResourceNotFound, "no such resource");
    broker.will(&[
        ("resource", 403, &denied),
        ("resource", 401, &denied),
        ("resource", 404, &absent),
    ]);
    for _ in 0..2 {
        let error = get_one(&client).await.unwrap_err();
        assert!(matches!(error, ClientError::Denied { .. }), "{error}");
        assert!(
            error.to_string().contains("kbs:///a/b/c") && error.to_string().contains("no grant")
        );
    }
    let error = get_one(&client).await.unwrap_err();
    assert!(matches!(error, ClientError::Absent { .. }), "{error}");
    assert_eq!(broker.handshakes(), 1);
}

/// A host that keeps what the processor answers.
struct Withheld;

#[async_trait]
impl EvidenceSource for Withheld {
    fn tee(&self) -> &str {
        "test"
    }

    async fn evidence(&self, _: [u8; 64]) -> Result<Value, String> {
        tokio::time::pause();
        std::future::pending().await
    }
}

#[tokio::test]
async fn evidence_that_does_not_come_is_not_waited_for() {
    let broker = broker();
    let url = format!("http://{}", serve(&broker, "127.0.0.1:0").await);
    let evidence = Arc::new(Withheld);
    let timeouts = Timeouts::default();
    let client = Client::new(Options {
        url,
        ca_pem: None,
        init_data: None,
        evidence,
        timeouts,
        told_time: None,
    });
    let error = get_one(&client.unwrap()).await.unwrap_err();
    assert!(matches!(&error, ClientError::Evidence(why) if why.contains("20 s")), "{error}");
    assert_eq!(broker.handshakes(), 0);
}

#[tokio::test]
async fn answers_that_are_no_answers_are_refused() {
    let (broker, client) = pair().await;
    let large = "x".repeat(2 * 1024 * 1024);
    broker.will(&[("auth", 200, &large), ("auth", 200, "<html>"), ("auth", 302, "")]);
    for word in ["bytes", "no such message", "302"] {
        let error = get_one(&client).await.unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
    let hash = json!({ "nonce": NONCE, "extra-params": { "selected-hash-algorithm": "sm3" } });
    broker.will(&[("auth", 200, &hash.to_string())]);
    assert!(get_one(&client).await.unwrap_err().to_string().contains("sm3"));
    // A resource for another key.
    let other = jwe::encrypt(b"x", &nacre_jose::TeeKey::generate().public()).unwrap();
    broker.will(&[("resource", 200, &serde_json::to_string(&other).unwrap())]);
    let error = get_one(&client).await.unwrap_err();
    assert!(matches!(error, ClientError::Protocol { .. }), "{error}");
}

#[tokio::test]
async fn only_the_given_certificate_is_trusted() {
    let made = |name: &str| rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let (right, wrong) = (made("127.0.0.1"), made("127.0.0.1"));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rustls_pki_types::PrivateKeyDer::Pkcs8(right.signing_key.serialize_der().into());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![right.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(b"HTTP/1.1 418 Tea\r\ncontent-length: 0\r\n\r\n").await;
            let _ = stream.shutdown().await;
        }
    });
    let with = |pem: String| {
        let timeouts = Timeouts { deadline: Duration::from_secs(5), ..Timeouts::default() };
        let (url, ca_pem) = (format!("https://{address}"), Some(pem));
        let options = Options {
            url,
            ca_pem,
            init_data: None,
            evidence: Arc::new(Evidence),
            timeouts,
            told_time: None,
        };
        Client::new(options).unwrap()
    };
    let begun = Instant::now();
    let error = get_one(&with(wrong.cert.pem())).await.unwrap_err();
    assert!(matches!(error, ClientError::Certificate { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(2), "not tried again");
    let error = get_one(&with(right.cert.pem())).await.unwrap_err();
    assert!(
        matches!(&error, ClientError::Attestation(refusal) if refusal.status == 418),
        "{error}"
    );
}

#[tokio::test]
async fn the_brokers_time_is_told_with_each_new_token() {
    static TOLD: std::sync::atomic::AtomicI64 = std::sync::atomic::AtomicI64::new(0);
    let broker = broker();
    let url = format!("http://{}", serve(&broker, "127.0.0.1:0").await);
    let client = Client::new(Options {
        url,
        ca_pem: None,
        init_data: None,
        evidence: Arc::new(Evidence),
        timeouts: Timeouts::default(),
        told_time: Some(|seconds| {
            TOLD.fetch_add(seconds, Ordering::SeqCst);
        }),
    })
    .unwrap();
    for _ in 0..3 {
        client.resource(&at("kbs:///a/b/c")).await.unwrap();
    }
    assert_eq!(TOLD.load(Ordering::SeqCst), 1_000_000_000, "once, for one token");
    client.token().await.unwrap();
    assert_eq!(TOLD.load(Ordering::SeqCst), 2_000_000_000);
}
