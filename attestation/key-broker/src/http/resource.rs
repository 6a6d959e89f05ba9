//! A guest asks for a resource.

use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::extract::{Path, RawQuery, State};
use axum::http::HeaderMap;
use axum::response::Response;
use nacre_jose::jwe;
use nacre_protocol::kbs::{self, ErrorKind, ResourceUri};
use time::OffsetDateTime;

use super::refusal::Refusal;
use super::{Caller, bearer, cookie, json};
use crate::audit::{Action, Event, Outcome};
use crate::broker::{Broker, Denial};
use crate::metrics;
use crate::store::Table;
use crate::token::Attested;

/// `GET /kbs/v0/resource/{repository}/{kind}/{tag}`.
pub(super) async fn get(
    State(broker): State<Arc<Broker>>,
    Extension(caller): Extension<Caller>,
    Path((repository, kind, tag)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let mut event = Event::new(Action::GetResource, Outcome::Refused);
    event.request = Some(caller.request.to_string());
    event.client = Some(caller.address.to_string());
    let query = query.filter(|query| !query.is_empty()).map(|query| format!("?{query}"));
    let uri = format!("kbs:///{repository}/{kind}/{tag}{}", query.unwrap_or_default());
    let answer = release(&broker, &caller, &uri, &headers, &mut event);
    let result = match &answer {
        Ok(_) => metrics::Result::Done,
        Err(_) if event.outcome == Outcome::Failed => metrics::Result::Failed,
        Err(_) => metrics::Result::Refused,
    };
    broker.metrics.resource(result);
    let unwritten = |error| {
        tracing::error!("{error}");
        caller.refuse(ErrorKind::Internal, "the audit log cannot be written")
    };
    match answer {
        Ok(message) => {
            event.outcome = Outcome::Done;
            // Nothing leaves before it is written down that it left.
            broker.audit.append(event).await.map_err(unwritten)?;
            Ok(json(&message))
        }
        Err(refusal) => {
            event.reason = refusal.detail().to_owned();
            tracing::info!(client = %caller.address, "resource: {}", event.reason);
            broker.audit.note(event).await.map_err(unwritten)?;
            Err(refusal)
        }
    }
}

fn release(
    broker: &Broker,
    caller: &Caller,
    uri: &str,
    headers: &HeaderMap,
    event: &mut Event,
) -> Result<jwe::Jwe, Refusal> {
    let uri: ResourceUri = uri.parse().map_err(|error: kbs::UriError| {
        caller.refuse(ErrorKind::InvalidRequestPath, error.to_string())
    })?;
    event.subject = Some(uri.to_string());
    let now = OffsetDateTime::now_utc();
    let attested = attested(broker, caller, headers, now)?;
    event.tee = Some(attested.tee.name().to_owned());
    event.emulated = Some(attested.emulated);
    event.attestation = Some(attested.attestation.clone());

    broker.decide(&attested, &uri, now).map_err(|denial| denied(caller, &uri, &denial))?;
    let failed = |event: &mut Event, error: &dyn std::fmt::Display| {
        tracing::error!("{error}");
        event.outcome = Outcome::Failed;
        caller.refuse(ErrorKind::Internal, "the store cannot be read")
    };
    let stored = broker.store.get(Table::Resources, &uri.path());
    let stored = stored.map_err(|error| failed(event, &error))?.ok_or_else(|| {
        let detail = format!("there is no resource {uri}; `nacre kbs secret set` makes one");
        caller.refuse(ErrorKind::ResourceNotFound, detail)
    })?;
    jwe::encrypt(&stored.value, &attested.tee_pubkey).map_err(|error| {
        let detail = format!("the answer cannot be encrypted to the guest's key: {error}");
        caller.refuse(ErrorKind::JweError, detail)
    })
}

/// By session first, else by token.
fn attested(
    broker: &Broker,
    caller: &Caller,
    headers: &HeaderMap,
    now: OffsetDateTime,
) -> Result<Arc<Attested>, Refusal> {
    let session = cookie(headers, kbs::SESSION_COOKIE)
        .map(|cookie| broker.sessions.get(cookie, Instant::now()));
    match (session, bearer(headers)) {
        (Some(Ok(attested)), _) => Ok(attested),
        (_, Some(token)) => broker
            .tokens
            .verify(token, now)
            .map(Arc::new)
            .map_err(|error| caller.refuse(ErrorKind::TokenVerifierError, error.to_string())),
        (Some(Err(error)), None) => {
            Err(caller.refuse(ErrorKind::SessionNotFound, error.to_string()))
        }
        (None, None) => {
            let detail = "neither the cookie of an attested session nor a token came: attest first";
            Err(caller.refuse(ErrorKind::TokenNotFound, detail))
        }
    }
}

fn denied(caller: &Caller, uri: &ResourceUri, denial: &Denial) -> Refusal {
    match denial {
        Denial::NoGrant { field } => {
            let field = if field.iter().all(|byte| *byte == 0) {
                "the guest was launched without initdata, and no grant is for such guests"
                    .to_owned()
            } else {
                format!("no grant gives it to initdata {}", hex::encode(field))
            };
            let path = uri.path();
            let detail =
                format!("{uri}: {field}; `nacre kbs grant add` with --resource {path} does");
            caller.refuse(ErrorKind::PolicyDeny, detail)
        }
        Denial::Policy => {
            let detail = format!(
                "{uri}: the resource policy does not allow it; `nacre kbs policy show` prints it"
            );
            caller.refuse(ErrorKind::PolicyDeny, detail)
        }
        Denial::PolicyFailed(error) => {
            caller.refuse(ErrorKind::PolicyEngineError, format!("{uri}: {error}"))
        }
    }
}
