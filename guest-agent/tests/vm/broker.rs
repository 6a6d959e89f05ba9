//! A key broker for guests under test: it checks that the evidence is bound to the conversation and
//! nothing more, and does as it is told. What a real one checks is tested where that is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use nacre_evidence::Evidence;
use nacre_jose::{Jwk, jwe};
use nacre_protocol::kbs::{Attestation, ErrorInformation, ErrorKind, report_data};
use serde_json::json;

const NONCE: &str = "bm9uY2Ugb2YgdGhlIHRlc3Q=";

/// What the test says to it, and learns from it.
#[derive(Default)]
pub(crate) struct Told {
    /// By `repository/type/tag`.
    pub(crate) secrets: HashMap<String, Vec<u8>>,
    /// Why it refuses every guest.
    pub(crate) refusal: Option<String>,
    /// Requests that it fails at.
    pub(crate) failures: usize,
    /// Tokens with a lower number are not known any more.
    pub(crate) oldest_token: usize,
    /// Attestations so far.
    pub(crate) attestations: usize,
    /// The initdata that came with the last one.
    pub(crate) init_data: Option<String>,
    key: Option<Jwk>,
}

impl Told {
    fn fails(&mut self) -> bool {
        let fails = self.failures > 0;
        self.failures = self.failures.saturating_sub(1);
        fails
    }
}

/// Shared with the test.
pub(crate) type Broker = Arc<Mutex<Told>>;

type Answer = (StatusCode, String);

/// Serves over HTTP; returns the port.
pub(crate) async fn serve(broker: &Broker) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let routes = Router::new()
        .route("/kbs/v0/auth", post(auth))
        .route("/kbs/v0/attest", post(attest))
        .route("/kbs/v0/resource/{*path}", get(resource))
        .with_state(Arc::clone(broker));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    port
}

fn refused(status: StatusCode, kind: ErrorKind, detail: &str) -> Answer {
    let said = ErrorInformation::new(kind, detail.into(), Some("request-7".into()));
    (status, serde_json::to_string(&said).unwrap())
}

async fn auth(State(broker): State<Broker>) -> Answer {
    if broker.lock().unwrap().fails() {
        return (StatusCode::SERVICE_UNAVAILABLE, String::new());
    }
    (StatusCode::OK, json!({ "nonce": NONCE, "extra-params": "" }).to_string())
}

async fn attest(State(broker): State<Broker>, body: Bytes) -> Answer {
    let mut told = broker.lock().unwrap();
    if let Some(why) = &told.refusal {
        return refused(StatusCode::UNAUTHORIZED, ErrorKind::AttestationFailed, why);
    }
    let attestation: Attestation = serde_json::from_slice(&body).unwrap();
    let key = attestation.runtime_data.tee_pubkey;
    let evidence = Evidence::from_wire("snp", &attestation.tee_evidence.primary_evidence).unwrap();
    assert_eq!(evidence.report_data(), &report_data(NONCE, &key, ""));
    told.key = Some(key);
    told.init_data = attestation.init_data.map(|init_data| init_data.body);
    told.attestations += 1;
    // {"iat":0,"exp":300}
    let token = format!("e30.eyJpYXQiOjAsImV4cCI6MzAwfQ.{}", told.attestations);
    (StatusCode::OK, json!({ "token": token }).to_string())
}

async fn resource(
    State(broker): State<Broker>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Answer {
    let mut told = broker.lock().unwrap();
    if told.fails() {
        return (StatusCode::SERVICE_UNAVAILABLE, String::new());
    }
    let number = headers["authorization"].to_str().unwrap().rsplit('.').next().unwrap().parse();
    if number.unwrap_or(0) < told.oldest_token {
        let kind = ErrorKind::TokenVerifierError;
        return refused(StatusCode::UNAUTHORIZED, kind, "signed by no key of this broker");
    }
    match told.secrets.get(&path) {
        Some(secret) => {
            let message = jwe::encrypt(secret, told.key.as_ref().unwrap()).unwrap();
            (StatusCode::OK, serde_json::to_string(&message).unwrap())
        }
        None => refused(StatusCode::FORBIDDEN, ErrorKind::PolicyDeny, "no grant covers it"),
    }
}
