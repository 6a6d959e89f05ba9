use std::time::Duration;

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use nacre_protocol::kbs::{ErrorInformation, ErrorKind};

/// An answer that is none.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    information: ErrorInformation,
    after: Option<Duration>,
}

impl Refusal {
    pub(super) fn new(kind: ErrorKind, detail: &str, request: &str) -> Refusal {
        let detail = format!("{detail} (request {request})");
        let information = ErrorInformation::new(kind, detail, Some(request.to_owned()));
        Refusal { status: status(kind), information, after: None }
    }

    /// Tells the client when to come again.
    pub(super) fn after(self, wait: Duration) -> Refusal {
        Refusal { after: Some(wait), ..self }
    }

    pub(super) fn too_large(self) -> Refusal {
        Refusal { status: StatusCode::PAYLOAD_TOO_LARGE, ..self }
    }

    /// Nothing of the kind exists here, as opposed to: not now, not for you.
    pub(super) fn not_implemented(self) -> Refusal {
        Refusal { status: StatusCode::NOT_IMPLEMENTED, ..self }
    }

    /// What it says, for the log.
    pub(super) fn detail(&self) -> &str {
        &self.information.detail
    }
}

/// Older clients begin anew on 401, and on nothing else: it stands for "attest", 403 for "not you" and
/// 404 for "not here".
fn status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::InvalidRequest => StatusCode::BAD_REQUEST,
        ErrorKind::VersionMismatch
        | ErrorKind::SessionNotFound
        | ErrorKind::AttestationFailed
        | ErrorKind::TokenNotFound
        | ErrorKind::TokenVerifierError
        | ErrorKind::JweError
        | ErrorKind::AdminAuthAccess => StatusCode::UNAUTHORIZED,
        ErrorKind::PolicyDeny | ErrorKind::PolicyEngineError => StatusCode::FORBIDDEN,
        ErrorKind::ResourceNotFound | ErrorKind::InvalidRequestPath | ErrorKind::PluginNotFound => {
            StatusCode::NOT_FOUND
        }
        ErrorKind::Busy => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.information)).into_response();
        if let Some(wait) = self.after {
            let seconds = wait.as_secs().saturating_add(1);
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}
