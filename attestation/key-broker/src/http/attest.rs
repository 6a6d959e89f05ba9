//! The handshake: a challenge, then evidence that answers it.

use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use nacre_evidence::{Evidence, Tee};
use nacre_protocol::initdata::{Digest, Initdata};
use nacre_protocol::kbs::{self, Attestation, Challenge, ErrorKind, TokenResponse};
use nacre_verifier::{Appraisal, CheckCode, Claims, Expected, Root};
use serde_json::Value;
use time::OffsetDateTime;

use super::refusal::Refusal;
use super::{Caller, body, cookie, json};
use crate::audit::{Action, Event, Outcome};
use crate::broker::Broker;
use crate::claims::{self, Verdict};
use crate::metrics;
use crate::session::SessionError;
use crate::token::Attested;

/// `POST /kbs/v0/auth`.
pub(super) async fn auth(
    State(broker): State<Arc<Broker>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Refusal> {
    let answer = challenge(&broker, &caller, request).await;
    let result = if answer.is_ok() { metrics::Result::Done } else { metrics::Result::Refused };
    broker.metrics.challenge(result);
    answer
}

async fn challenge(
    broker: &Broker,
    caller: &Caller,
    request: Request,
) -> Result<Response, Refusal> {
    let body = body(broker, caller, request, kbs::REQUEST_LIMIT).await?;
    let request: kbs::Request = serde_json::from_slice(&body).map_err(|error| {
        caller.refuse(ErrorKind::InvalidRequest, format!("the request is not understood: {error}"))
    })?;
    if !kbs::version_is_supported(&request.version) {
        let version: String = request.version.chars().take(32).collect();
        let detail = format!("protocol version {version:?} is not served; use 0.1.0 to 0.4.0");
        return Err(caller.refuse(ErrorKind::VersionMismatch, detail));
    }
    let tee = Tee::of_name(&request.tee).map_err(|error| {
        caller.refuse(
            ErrorKind::InvalidRequest,
            format!("{error}; this broker appraises snp and tdx"),
        )
    })?;
    let challenged = broker.sessions.begin(tee, Instant::now()).map_err(|error| {
        let refusal = caller.refuse(ErrorKind::Busy, error.to_string());
        refusal.after(broker.config.session_life() / 10)
    })?;
    let challenge =
        Challenge { nonce: challenged.nonce, extra_params: Value::String(String::new()) };
    let mut response = json(&challenge);
    let secure = if broker.config.tls.is_some() { "; Secure" } else { "" };
    let cookie = format!(
        "{}={}; Path={}; Max-Age={}; HttpOnly; SameSite=Strict{secure}",
        kbs::SESSION_COOKIE,
        challenged.cookie,
        kbs::PREFIX,
        broker.config.limits.session_seconds
    );
    let cookie = HeaderValue::from_str(&cookie)
        .map_err(|_| caller.refuse(ErrorKind::Internal, "the cookie cannot be written"))?;
    response.headers_mut().insert(header::SET_COOKIE, cookie);
    Ok(response)
}

/// `POST /kbs/v0/attest`.
pub(super) async fn attest(
    State(broker): State<Arc<Broker>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Refusal> {
    let session = cookie(request.headers(), kbs::SESSION_COOKIE).map(str::to_owned);
    let limit = broker.config.limits.attestation_bytes;
    let body = body(&broker, &caller, request, limit).await?;
    let mut event = Event::new(Action::Attest, Outcome::Refused);
    event.request = Some(caller.request.to_string());
    event.client = Some(caller.address.to_string());
    let answer = appraise(&broker, &caller, session.as_deref(), &body, &mut event).await;
    if let Err(refusal) = &answer
        && event.reason.is_empty()
    {
        event.reason = refusal.detail().to_owned();
    }
    if answer.is_err() {
        tracing::info!(client = %caller.address, request = %caller.request, "attestation: {}", event.reason);
    }
    broker.audit.note(event).await.map_err(|error| {
        tracing::error!("{error}");
        caller.refuse(ErrorKind::Internal, "the audit log cannot be written")
    })?;
    answer.map(|token| json(&TokenResponse { token }))
}

async fn appraise(
    broker: &Broker,
    caller: &Caller,
    session: Option<&str>,
    body: &[u8],
    event: &mut Event,
) -> Result<String, Refusal> {
    let invalid = |detail: String| caller.refuse(ErrorKind::InvalidRequest, detail);
    let lost = |error: SessionError| caller.refuse(ErrorKind::SessionNotFound, error.to_string());
    let session = session.ok_or_else(|| {
        let detail = "no session: the cookie kbs-session-id is missing; ask for a challenge first";
        caller.refuse(ErrorKind::SessionNotFound, detail)
    })?;
    let attestation: Attestation = serde_json::from_slice(body)
        .map_err(|error| invalid(format!("the attestation is not understood: {error}")))?;
    let (nonce, tee) = broker.sessions.answer(session, Instant::now()).map_err(lost)?;
    event.tee = Some(tee.name().to_owned());

    let Attestation { init_data, runtime_data, tee_evidence } = attestation;
    if runtime_data.nonce != nonce {
        let detail = "the attestation answers another challenge than this session's";
        return Err(caller.refuse(ErrorKind::AttestationFailed, detail));
    }
    if !matches!(tee_evidence.additional_evidence.as_str(), "" | "{}") {
        return Err(invalid(
            "evidence of further devices is not appraised by this broker".to_owned(),
        ));
    }
    let initdata = match init_data {
        None => None,
        Some(init_data) if init_data.format == kbs::INIT_DATA_TOML => {
            Some(Initdata::parse(&init_data.body).map_err(|error| invalid(error.to_string()))?)
        }
        Some(_) => return Err(invalid("init-data is read in the format \"toml\" only".to_owned())),
    };
    let evidence = Evidence::from_wire(tee.name(), &tee_evidence.primary_evidence)
        .map_err(|error| invalid(error.to_string()))?;
    // As JSON it may be large, and what follows may wait.
    drop(tee_evidence.primary_evidence);

    let begun = Instant::now();
    let collateral = broker.collateral.collateral(&evidence).await;
    let now = OffsetDateTime::now_utc();
    let digest = initdata.as_ref().map(Initdata::digest);
    let registered = broker.registered();
    let key = &runtime_data.tee_pubkey;
    let expected = Expected {
        report_data: kbs::report_data(&nonce, key, &tee_evidence.additional_evidence),
        init_data: digest.as_ref().map(Digest::as_bytes),
        references: &registered.references,
        now,
    };
    let appraisal = broker.verifier.appraise(&evidence, &expected, &collateral);
    broker.metrics.appraised(begun.elapsed().as_secs_f64());
    event.appraisal = serde_json::to_value(&appraisal).ok();
    event.emulated = Some(appraisal.is_emulated());

    let outcome = |result, failure| {
        broker.metrics.attestation(result, tee.name(), failure, appraisal.is_emulated());
    };
    if !appraisal.is_affirming() {
        let failure = appraisal.first_failure();
        outcome(metrics::Result::Refused, failure.map_or("", |check| check.code.as_str()));
        let detail = told(&appraisal);
        event.reason.clone_from(&detail);
        return Err(caller.refuse(ErrorKind::AttestationFailed, detail));
    }
    outcome(metrics::Result::Done, "");
    let extra_root = match appraisal.root() {
        Root::Extra { name } => Some(name.as_str()),
        Root::Vendor | Root::Unproven => None,
    };
    let platform = match appraisal.claims() {
        Claims::Tdx(claims) => claims.platform.as_ref(),
        Claims::Snp(_) => None,
    };
    let verdict = Verdict { extra_root, platform };
    let cpu0 = claims::submodule(&evidence, &verdict, &nonce, key, initdata.as_ref());
    let (token, attested): (String, Attested) =
        broker.tokens.issue(&cpu0, &caller.request, now).map_err(|error| {
            caller.refuse(ErrorKind::Internal, format!("no token could be made: {error}"))
        })?;
    broker.sessions.attested(session, Arc::new(attested), Instant::now()).map_err(lost)?;
    event.outcome = Outcome::Done;
    Ok(token)
}

/// Most checks that a refusal names.
const TOLD: usize = 3;

/// The failed checks, for the guest: what was found, and what to do. What was expected is the
/// owner's business; who runs the broker finds it in the audit log.
fn told(appraisal: &Appraisal) -> String {
    let failed: Vec<_> = appraisal.checks().iter().filter(|check| check.is_failed()).collect();
    // Those that could not be made follow from others.
    let made: Vec<_> =
        failed.iter().filter(|check| check.found != "could not be made").copied().collect();
    let shown = if made.is_empty() { &failed } else { &made };
    let one = |check: &&nacre_verifier::Check| {
        let dot = if check.fix.is_empty() { "" } else { "; " };
        let found = hidden(check.code).unwrap_or(check.found.as_str());
        format!("{}: found {found}{dot}{}", check.code, check.fix)
    };
    let mut text = shown.iter().take(TOLD).map(one).collect::<Vec<_>>().join("; ");
    if shown.is_empty() {
        text.push_str("the evidence is not affirmed");
    }
    if failed.len() > TOLD {
        text.push_str(&format!("; and {} further checks", failed.len() - TOLD));
    }
    text
}

/// What is found in some checks tells about the broker, not about the guest.
const fn hidden(code: CheckCode) -> Option<&'static str> {
    match code {
        CheckCode::SnpReferences | CheckCode::TdxReferences => {
            Some("no reference values that count")
        }
        _ => None,
    }
}
