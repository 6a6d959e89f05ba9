//! Administration of what is registered: resource policy, reference values, grants.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nacre_protocol::kbs::ErrorKind;
use time::OffsetDateTime;

use super::administrator::Administrator;
use super::manage::{on_disk, record};
use super::refusal::Refusal;
use super::{Caller, body, json};
use crate::admin::{PolicyText, ReferenceInfo, References, RegistrationAnswer};
use crate::audit::Action;
use crate::broker::{Broker, RESOURCE_POLICY, delete_trustee_values, put_trustee_values};
use crate::grants::Grant;
use crate::policy::{POLICY_LIMIT, ResourcePolicy};
use crate::references::{self, REGISTRATION_LIMIT, Registration, TRUSTEE_SNP, TRUSTEE_TDX};
use crate::store::Table;

/// Most grants and documents of reference values.
const MOST: u64 = 10_000;
/// Largest grant, in bytes.
const GRANT_LIMIT: usize = 256 * 1024;

/// `GET /kbs/v0/resource-policy`.
pub(super) async fn policy(
    State(broker): State<Arc<Broker>>,
    Extension(caller): Extension<Caller>,
    _: Administrator,
) -> Result<Response, Refusal> {
    match &broker.registered().policy {
        Some(policy) => Ok(json(&PolicyText { policy: URL_SAFE_NO_PAD.encode(policy.text()) })),
        None => Err(no_policy(&caller)),
    }
}

fn no_policy(caller: &Caller) -> Refusal {
    let detail = "no resource policy is set: grants decide";
    caller.refuse(ErrorKind::ResourceNotFound, detail)
}

/// `POST /kbs/v0/resource-policy`.
pub(super) async fn set_policy(
    State(broker): State<Arc<Broker>>,
    Extension(caller): Extension<Caller>,
    administrator: Administrator,
    request: Request,
) -> Result<Response, Refusal> {
    let invalid = |detail: String| caller.refuse(ErrorKind::InvalidRequest, detail);
    let body = body(&broker, &caller, request, POLICY_LIMIT * 2).await?;
    let form = || invalid("a policy comes as {\"policy\": base64url of Rego}".to_owned());
    let text: PolicyText = serde_json::from_slice(&body).map_err(|_| form())?;
    let text = text.policy.trim_end_matches('=');
    let text = URL_SAFE_NO_PAD.decode(text).map_err(|_| form())?;
    let text = String::from_utf8(text).map_err(|_| form())?;
    let text = tokio::task::spawn_blocking(move || {
        ResourcePolicy::compile(&text).map(|_| text).map_err(|error| error.to_string())
    });
    let text = text.await.unwrap_or_else(|error| Err(error.to_string())).map_err(invalid)?;
    let event = administrator.event(Action::SetResourcePolicy, None);
    record(&broker, &caller, event).await?;
    on_disk(&broker, &caller, move |broker| {
        let put =
            broker.change(|store, _| store.put(Table::Policies, RESOURCE_POLICY, text.as_bytes()));
        put.map_err(|error| error.to_string())
    })
    .await?;
    Ok(StatusCode::OK.into_response())
}

/// `DELETE /kbs/v0/resource-policy`: grants decide again.
pub(super) async fn delete_policy(
    State(broker): State<Arc<Broker>>,
    Extension(caller): Extension<Caller>,
    administrator: Administrator,
) -> Result<Response, Refusal> {
    record(&broker, &caller, administrator.event(Action::DeleteResourcePolicy, None)).await?;
    let was = on_disk(&broker, &caller, |broker| {
        let delete = broker.change(|store, _| store.delete(Table::Policies, RESOURCE_POLICY));
        delete.map_err(|error| error.to_string())
    })
    .await?;
    if was { Ok(StatusCode::OK.into_response()) } else { Err(no_policy(&caller)) }
}

/// `POST /kbs/v0/attestation-policy`.
pub(super) async fn attestation_policy(
    Extension(caller): Extension<Caller>,
    _: Administrator,
) -> Result<Response, Refusal> {
    let detail = "this broker appraises by typed checks, not by an attestation policy: register reference values \
                  (`nacre kbs reference-value add`), and put what depends on claims into the resource policy";
    Err(caller.refuse(ErrorKind::InvalidRequest, detail).not_implemented())
}

/// `GET /kbs/v0/reference-value`.
pub(super) async fn references(
    State(broker): State<Arc<Broker>>,
    _: Administrator,
) -> Result<Response, Refusal> {
    let registered = broker.registered();
    let now = OffsetDateTime::now_utc();
    let info = |document: &nacre_verifier::ReferenceValues| ReferenceInfo {
        expired: document.is_expired(now),
        document: document.clone(),
    };
    Ok(json(&References {
        documents: registered.references.documents().iter().map(info).collect(),
        trustee: registered.trustee.clone(),
    }))
}

/// `GET /kbs/v0/reference-value/{id}`: a document, or the values that Trustee's form has for a name.
pub(super) async fn reference(
    State(broker): State<Arc<Broker>>,
    Extension(caller): Extension<Caller>,
    _: Administrator,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let registered = broker.registered();
    let document = registered.references.documents().iter().find(|document| document.id == id);
    match (document, registered.trustee.get(&id)) {
        (Some(document), _) => Ok(json(document)),
        (None, Some(values)) => Ok(json(values)),
        (None, None) => Err(no_reference(&caller, &id)),
    }
}

/// Whether a document is one that values in Trustee's form make. They are kept and deleted together.
fn is_trustees(id: &str) -> bool {
    [TRUSTEE_SNP, TRUSTEE_TDX].contains(&id)
}

fn no_reference(caller: &Caller, id: &str) -> Refusal {
    let id: String = id.chars().take(128).collect();
    caller.refuse(ErrorKind::ResourceNotFound, format!("there are no reference values {id:?}"))
}

/// `POST /kbs/v0/reference-value`.
pub(super) async fn add_reference(
    State(broker): State<Arc<Broker>>,
    Extension(caller): Extension<Caller>,
    administrator: Administrator,
    request: Request,
) -> Result<Response, Refusal> {
    let body = body(&broker, &caller, request, REGISTRATION_LIMIT).await?;
    let registration = references::parse(&body)
        .map_err(|error| caller.refuse(ErrorKind::InvalidRequest, error.to_string()))?;
    let id = match &registration {
        Registration::Document(document) if is_trustees(&document.id) => {
            let detail =
                format!("the identifier {:?} is taken by values in Trustee's form", document.id);
            return Err(caller.refuse(ErrorKind::InvalidRequest, detail));
        }
        Registration::Document(document) => document.id.clone(),
        Registration::Trustee(values) if values.keys().any(|name| name.starts_with("snp_")) => {
            TRUSTEE_SNP.to_owned()
        }
        Registration::Trustee(_) => TRUSTEE_TDX.to_owned(),
    };
    let event = administrator.event(Action::AddReferenceValue, Some(id.clone()));
    record(&broker, &caller, event).await?;
    on_disk(&broker, &caller, move |broker| {
        if broker.store.count(Table::References).map_err(|error| error.to_string())? >= MOST {
            return Err(format!("there are {MOST} documents of reference values already"));
        }
        let put = broker.change(|store, registered| match registration {
            Registration::Document(document) => {
                let text = serde_json::to_vec(&document).unwrap_or_default();
                store.put(Table::References, &document.id, &text)
            }
            Registration::Trustee(values) => {
                put_trustee_values(store, registered.trustee.clone(), values)
            }
        });
        put.map_err(|error| error.to_string())
    })
    .await?;
    let registered = broker.registered();
    let (missing, ignored) = if is_trustees(&id) {
        let missing = references::missing(&registered.trustee);
        (missing.into_iter().map(str::to_owned).collect(), references::ignored(&registered.trustee))
    } else {
        (Vec::new(), Vec::new())
    };
    Ok(json(&RegistrationAnswer { id, missing, ignored }))
}

/// `DELETE /kbs/v0/reference-value/{id}`.
pub(super) async fn delete_reference(
    State(broker): State<Arc<Broker>>,
    Extension(caller): Extension<Caller>,
    administrator: Administrator,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let shown: String = id.chars().take(128).collect();
    let event = administrator.event(Action::DeleteReferenceValue, Some(shown));
    record(&broker, &caller, event).await?;
    let wanted = id.clone();
    let was = on_disk(&broker, &caller, move |broker| {
        let delete = broker.change(|store, registered| {
            let known = registered.references.documents().iter().any(|one| one.id == wanted);
            match wanted.as_str() {
                id if is_trustees(id) => delete_trustee_values(store),
                _ if known => store.delete(Table::References, &wanted),
                _ => Ok(false),
            }
        });
        delete.map_err(|error| error.to_string())
    })
    .await?;
    if was { Ok(StatusCode::OK.into_response()) } else { Err(no_reference(&caller, &id)) }
}

/// `GET /kbs/v0/admin/grant`.
pub(super) async fn grants(
    State(broker): State<Arc<Broker>>,
    _: Administrator,
) -> Result<Response, Refusal> {
    Ok(json(&broker.registered().grants))
}

/// `POST /kbs/v0/admin/grant`.
pub(super) async fn add_grant(
    State(broker): State<Arc<Broker>>,
    Extension(caller): Extension<Caller>,
    administrator: Administrator,
    request: Request,
) -> Result<Response, Refusal> {
    let invalid = |detail: String| caller.refuse(ErrorKind::InvalidRequest, detail);
    let body = body(&broker, &caller, request, GRANT_LIMIT).await?;
    let grant: Grant = serde_json::from_slice(&body)
        .map_err(|error| invalid(format!("the grant is not understood: {error}")))?;
    grant.check().map_err(|error| invalid(error.to_string()))?;
    let event = administrator.event(Action::AddGrant, Some(grant.id.clone()));
    record(&broker, &caller, event).await?;
    on_disk(&broker, &caller, move |broker| {
        if broker.store.count(Table::Grants).map_err(|error| error.to_string())? >= MOST {
            return Err(format!("there are {MOST} grants already"));
        }
        let text = serde_json::to_vec(&grant).map_err(|error| error.to_string())?;
        let put = broker.change(|store, _| store.put(Table::Grants, &grant.id, &text));
        put.map_err(|error| error.to_string())
    })
    .await?;
    Ok(StatusCode::OK.into_response())
}

/// `DELETE /kbs/v0/admin/grant/{id}`.
pub(super) async fn delete_grant(
    State(broker): State<Arc<Broker>>,
    Extension(caller): Extension<Caller>,
    administrator: Administrator,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let shown: String = id.chars().take(128).collect();
    let event = administrator.event(Action::DeleteGrant, Some(shown.clone()));
    record(&broker, &caller, event).await?;
    let was = on_disk(&broker, &caller, move |broker| {
        let delete = broker.change(|store, _| store.delete(Table::Grants, &id));
        delete.map_err(|error| error.to_string())
    })
    .await?;
    if was {
        Ok(StatusCode::OK.into_response())
    } else {
        Err(caller.refuse(ErrorKind::ResourceNotFound, format!("there is no grant {shown:?}")))
    }
}
