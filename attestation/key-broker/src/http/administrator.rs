//! Who may administer.

use std::sync::Arc;

use axum::Extension;
use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::request::Parts;
use nacre_jose::jws;
use nacre_protocol::kbs::ErrorKind;
use serde::Deserialize;
use time::OffsetDateTime;

use super::refusal::Refusal;
use super::{Caller, bearer};
use crate::audit::{Action, Event, Outcome};
use crate::broker::Broker;

/// Longest life of an administrator's token, in seconds.
pub(crate) const LONGEST: i64 = 600;
/// Clocks of administrators may differ by as much, in seconds.
const SKEW: i64 = 60;
/// The role that a token names.
pub(crate) const ROLE: &str = "admin";

/// Proof that a request is an administrator's: a handler that takes one is reached by nobody else.
pub(super) struct Administrator {
    name: String,
    caller: Caller,
}

#[derive(Deserialize)]
struct Claims {
    iat: i64,
    exp: i64,
    role: String,
    #[serde(default)]
    sub: String,
}

impl FromRequestParts<Arc<Broker>> for Administrator {
    type Rejection = Refusal;

    /// Checks who asks. A refusal is in the audit log.
    async fn from_request_parts(
        parts: &mut Parts,
        broker: &Arc<Broker>,
    ) -> Result<Administrator, Refusal> {
        let Extension(caller) = Extension::<Caller>::from_request_parts(parts, broker)
            .await
            .map_err(|error| Refusal::new(ErrorKind::Internal, &error.to_string(), "-"))?;
        let reason = match check(broker, &parts.headers, OffsetDateTime::now_utc()) {
            Ok(name) => return Ok(Administrator { name, caller }),
            Err(reason) => reason,
        };
        let mut event = Event::new(Action::AdminAuthentication, Outcome::Refused);
        event.request = Some(caller.request.to_string());
        event.client = Some(caller.address.to_string());
        event.reason = reason.to_owned();
        tracing::info!(client = %caller.address, request = %caller.request, "administrator: {reason}");
        if let Err(error) = broker.audit.note(event).await {
            tracing::error!("{error}");
        }
        Err(caller.refuse(ErrorKind::AdminAuthAccess, reason))
    }
}

impl Administrator {
    /// An event that tells of it.
    pub(super) fn event(&self, action: Action, subject: Option<String>) -> Event {
        let mut event = Event::new(action, Outcome::Done);
        event.request = Some(self.caller.request.to_string());
        event.client = Some(self.caller.address.to_string());
        event.administrator = Some(self.name.clone());
        event.subject = subject;
        event
    }
}

/// The administrator's name.
fn check(
    broker: &Broker,
    headers: &HeaderMap,
    now: OffsetDateTime,
) -> Result<String, &'static str> {
    let token =
        bearer(headers).ok_or("an administrator's token is needed: Authorization: Bearer ...")?;
    let payload = broker.administrators.iter().find_map(|key| jws::verify_eddsa(token, key).ok());
    let payload = payload.ok_or("the token is not signed by an administrator's key")?;
    let claims: Claims = serde_json::from_slice(&payload)
        .map_err(|_| "the token's claims are not iat, exp and role")?;
    if claims.role != ROLE {
        return Err("the token's role is not \"admin\"");
    }
    let now = now.unix_timestamp();
    if claims.exp <= now {
        return Err("the token is expired");
    }
    if claims.iat > now + SKEW {
        return Err("the token is issued in the future: compare the clocks");
    }
    let life = claims.exp.checked_sub(claims.iat).unwrap_or(i64::MAX);
    if !(0..=LONGEST).contains(&life) || claims.exp > now + LONGEST + SKEW {
        return Err("the token lives longer than 10 minutes");
    }
    let name: String = claims.sub.chars().filter(|c| !c.is_control()).take(64).collect();
    Ok(if name.is_empty() { ROLE.to_owned() } else { name })
}
