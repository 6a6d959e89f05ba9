//! What the broker answers over HTTP.

mod administrator;
mod attest;
mod body;
mod manage;
mod refusal;
mod registry;
mod resource;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use nacre_protocol::kbs::{self, ErrorKind};
use serde::Serialize;

use crate::broker::Broker;
use body::body;
use refusal::Refusal;

pub(crate) use body::UNITS as BODY_UNITS;

/// What a request costs its client when it is refused.
const REFUSED_COST: u32 = 20;

/// Who asks, and what the request is called.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    address: IpAddr,
    request: Arc<str>,
}

impl Caller {
    pub(crate) fn new(address: IpAddr) -> Caller {
        let mut id = [0; 8];
        // An identifier for people; if the system has no random bytes, a challenge fails anyway.
        let _ = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut id);
        Caller { address, request: hex::encode(id).into() }
    }

    fn refuse(&self, kind: ErrorKind, detail: impl AsRef<str>) -> Refusal {
        Refusal::new(kind, detail.as_ref(), &self.request)
    }
}

/// All paths.
pub(crate) fn router(broker: Arc<Broker>) -> Router {
    let resource = get(resource::get).post(manage::set).delete(manage::delete);
    let policy = get(registry::policy).post(registry::set_policy).delete(registry::delete_policy);
    let references = get(registry::references).post(registry::add_reference);
    let reference = get(registry::reference).delete(registry::delete_reference);
    let own = Router::new()
        .route("/auth", post(attest::auth))
        .route("/attest", post(attest::attest))
        .route("/resource/{repository}/{kind}/{tag}", resource)
        .route("/jwks", get(jwks))
        .route("/resource-policy", policy)
        .route("/attestation-policy", post(registry::attestation_policy))
        .route("/reference-value", references)
        .route("/reference-value/{id}", reference)
        .route("/admin/resources", get(manage::list))
        .route("/admin/resource/{repository}/{kind}/{tag}", get(manage::read))
        .route("/admin/grant", get(registry::grants).post(registry::add_grant))
        .route("/admin/grant/{id}", axum::routing::delete(registry::delete_grant))
        .route("/admin/audit", get(manage::audit))
        .route("/admin/explain/{request}", get(manage::explain));
    Router::new()
        .nest(kbs::PREFIX, own)
        .route("/.well-known/jwks.json", get(jwks))
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .fallback(unknown)
        .method_not_allowed_fallback(unknown)
        .with_state(broker)
}

/// Answers one request, within its client's measure.
pub(crate) async fn answer(
    broker: &Broker,
    router: Router,
    mut request: Request,
    caller: Caller,
) -> Response {
    use tower::ServiceExt as _;
    let now = Instant::now();
    let mut response = match broker.limiter.take(caller.address, 1, now) {
        Ok(()) => {
            request.extensions_mut().insert(caller.clone());
            match router.oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        }
        Err(wait) => {
            broker.metrics.limit();
            caller.refuse(ErrorKind::Busy, "this client asks too often").after(wait).into_response()
        }
    };
    let status = response.status();
    let bad = [
        StatusCode::BAD_REQUEST,
        StatusCode::UNAUTHORIZED,
        StatusCode::FORBIDDEN,
        StatusCode::PAYLOAD_TOO_LARGE,
    ];
    if bad.contains(&status) {
        broker.limiter.charge(caller.address, REFUSED_COST, now);
    }
    broker.metrics.answer(status.as_u16());
    if let Ok(id) = HeaderValue::from_str(&caller.request) {
        response.headers_mut().insert("x-request-id", id);
    }
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn jwks(State(broker): State<Arc<Broker>>) -> Response {
    Json(broker.tokens.jwks()).into_response()
}

async fn metrics(State(broker): State<Arc<Broker>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let text = broker.metrics.text(broker.sessions.count(Instant::now()));
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

async fn unknown(caller: axum::Extension<Caller>, request: Request) -> Refusal {
    let path: String = request.uri().path().chars().take(200).collect();
    let detail = format!("{} {path:?} is not served here", request.method());
    let plugin = path.strip_prefix(kbs::PREFIX).and_then(|rest| rest.split('/').nth(1));
    match plugin {
        Some(plugin) if path.split('/').count() >= 7 && plugin != "admin" => {
            caller.refuse(ErrorKind::PluginNotFound, format!("there is no plugin {plugin:?}"))
        }
        _ => caller.refuse(ErrorKind::InvalidRequestPath, detail),
    }
}

/// The value of a cookie.
fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = all.flat_map(|value| value.split(';'));
    pairs.filter_map(|pair| pair.trim().split_once('=')).find(|(key, _)| *key == name).map(|p| p.1)
}

/// What follows `Bearer` in the header `Authorization`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn json(value: &impl Serialize) -> Response {
    Json(value).into_response()
}
