//! Administration of resources, and the audit log.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use nacre_protocol::kbs::{ErrorKind, RESOURCE_LIMIT, ResourceUri};
use serde::Deserialize;

use super::administrator::Administrator;
use super::refusal::Refusal;
use super::{Caller, body, json};
use crate::admin::{AuditPage, ResourceInfo};
use crate::audit::{self, Action, Event, Outcome};
use crate::broker::Broker;
use crate::store::Table;

/// Most entries of one answer.
const PAGE: usize = 1000;
/// Files of the audit log in which a request is looked for, newest first.
const FILES: usize = 16;

type Parts = (String, String, String);

fn uri(caller: &Caller, (repository, kind, tag): &Parts) -> Result<ResourceUri, Refusal> {
    ResourceUri::new(repository, kind, tag)
        .map_err(|error| caller.refuse(ErrorKind::InvalidRequestPath, error.to_string()))
}

/// Runs what waits for the disk elsewhere.
pub(super) async fn on_disk<T: Send + 'static>(
    broker: &Arc<Broker>,
    caller: &Caller,
    work: impl FnOnce(&Broker) -> Result<T, String> + Send + 'static,
) -> Result<T, Refusal> {
    let broker = broker.clone();
    let done = tokio::task::spawn_blocking(move || work(&broker)).await;
    let done = done.unwrap_or_else(|error| Err(error.to_string()));
    done.map_err(|error| {
        tracing::error!("{error}");
        caller.refuse(ErrorKind::Internal, error)
    })
}

/// Writes down what an administrator does, before it is done: a change that nobody recorded cannot
/// be.
pub(super) async fn record(broker: &Broker, caller: &Caller, event: Event) -> Result<(), Refusal> {
    broker.audit.append(event).await.map(drop).map_err(|error| {
        tracing::error!("{error}");
        caller.refuse(ErrorKind::Internal, "the audit log cannot be written")
    })
}

/// Waits for refusals that are still to be written down: nobody is kept waiting for those but who reads them.
async fn settled(broker: &Broker, caller: &Caller) -> Result<(), Refusal> {
    broker.audit.settle().await.map_err(|error| {
        tracing::error!("{error}");
        caller.refuse(ErrorKind::Internal, "the audit log cannot be written")
    })
}

/// `POST /kbs/v0/resource/{repository}/{kind}/{tag}`.
pub(super) async fn set(
    State(broker): State<Arc<Broker>>,
    Extension(caller): Extension<Caller>,
    administrator: Administrator,
    Path(parts): Path<Parts>,
    request: Request,
) -> Result<Response, Refusal> {
    let uri = uri(&caller, &parts)?;
    let body = body(&broker, &caller, request, RESOURCE_LIMIT).await?;
    let event = administrator.event(Action::SetResource, Some(uri.to_string()));
    record(&broker, &caller, event).await?;
    on_disk(&broker, &caller, move |broker| {
        broker.store.put(Table::Resources, &uri.path(), &body).map_err(|error| error.to_string())
    })
    .await?;
    Ok(StatusCode::OK.into_response())
}

/// `DELETE /kbs/v0/resource/{repository}/{kind}/{tag}`.
pub(super) async fn delete(
    State(broker): State<Arc<Broker>>,
    Extension(caller): Extension<Caller>,
    administrator: Administrator,
    Path(parts): Path<Parts>,
) -> Result<Response, Refusal> {
    let uri = uri(&caller, &parts)?;
    let event = administrator.event(Action::DeleteResource, Some(uri.to_string()));
    record(&broker, &caller, event).await?;
    let path = uri.path();
    let was = on_disk(&broker, &caller, move |broker| {
        broker.store.delete(Table::Resources, &path).map_err(|error| error.to_string())
    })
    .await?;
    if !was {
        return Err(
            caller.refuse(ErrorKind::ResourceNotFound, format!("there is no resource {uri}"))
        );
    }
    Ok(StatusCode::OK.into_response())
}

/// `GET /kbs/v0/admin/resources`.
pub(super) async fn list(
    State(broker): State<Arc<Broker>>,
    Extension(caller): Extension<Caller>,
    administrator: Administrator,
) -> Result<Response, Refusal> {
    record(&broker, &caller, administrator.event(Action::ListResources, None)).await?;
    let listed = on_disk(&broker, &caller, |broker| {
        broker.store.list(Table::Resources).map_err(|error| error.to_string())
    })
    .await?;
    let infos = listed.into_iter().filter_map(|listed| {
        let uri = ResourceUri::of_path(&listed.key).ok()?;
        Some(ResourceInfo { uri, bytes: listed.bytes, modified: listed.modified.into() })
    });
    Ok(json(&infos.collect::<Vec<_>>()))
}

/// `GET /kbs/v0/admin/resource/{repository}/{kind}/{tag}`.
pub(super) async fn read(
    State(broker): State<Arc<Broker>>,
    Extension(caller): Extension<Caller>,
    administrator: Administrator,
    Path(parts): Path<Parts>,
) -> Result<Response, Refusal> {
    let uri = uri(&caller, &parts)?;
    let mut event = administrator.event(Action::ReadResource, Some(uri.to_string()));
    let path = uri.path();
    let stored = on_disk(&broker, &caller, move |broker| {
        broker.store.get(Table::Resources, &path).map_err(|error| error.to_string())
    })
    .await?;
    if stored.is_none() {
        event.outcome = Outcome::Refused;
        event.reason = "there is no such resource".to_owned();
    }
    record(&broker, &caller, event).await?;
    let Some(stored) = stored else {
        return Err(
            caller.refuse(ErrorKind::ResourceNotFound, format!("there is no resource {uri}"))
        );
    };
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((kind, stored.value.to_vec()).into_response())
}

/// Query of the audit log.
#[derive(Deserialize)]
pub(super) struct Range {
    #[serde(default)]
    after: u64,
    limit: Option<usize>,
}

/// `GET /kbs/v0/admin/audit?after=N&limit=M`.
pub(super) async fn audit(
    State(broker): State<Arc<Broker>>,
    Extension(caller): Extension<Caller>,
    _: Administrator,
    Query(range): Query<Range>,
) -> Result<Response, Refusal> {
    let limit = range.limit.unwrap_or(PAGE).min(PAGE);
    settled(&broker, &caller).await?;
    let entries = on_disk(&broker, &caller, move |broker| {
        audit::list(broker.audit.directory(), range.after, limit).map_err(|error| error.to_string())
    })
    .await?;
    Ok(json(&AuditPage { entries }))
}

/// `GET /kbs/v0/admin/explain/{request}`.
pub(super) async fn explain(
    State(broker): State<Arc<Broker>>,
    Extension(caller): Extension<Caller>,
    _: Administrator,
    Path(request): Path<String>,
) -> Result<Response, Refusal> {
    if request.is_empty()
        || request.len() > 64
        || !request.bytes().all(|b| b.is_ascii_alphanumeric())
    {
        return Err(caller.refuse(ErrorKind::InvalidRequest, "that is no identifier of a request"));
    }
    settled(&broker, &caller).await?;
    let wanted = request.clone();
    let entries = on_disk(&broker, &caller, move |broker| {
        audit::find(broker.audit.directory(), &wanted, FILES).map_err(|error| error.to_string())
    })
    .await?;
    if entries.is_empty() {
        let detail = format!("the newest {FILES} files of the audit log have no request {request}");
        return Err(caller.refuse(ErrorKind::ResourceNotFound, detail));
    }
    Ok(json(&AuditPage { entries }))
}
