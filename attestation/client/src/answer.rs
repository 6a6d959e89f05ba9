//! What an answer other than success means.

use nacre_protocol::kbs::{ErrorInformation, ErrorKind, ResourceUri};
use reqwest::StatusCode;

use crate::error::{ClientError, Refusal};

/// Which request it was.
#[derive(Clone, Copy)]
pub(crate) enum Step<'a> {
    Auth,
    Attest,
    Resource(&'a ResourceUri),
}

impl Step<'_> {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Step::Auth => "auth",
            Step::Attest => "attest",
            Step::Resource(_) => "a resource",
        }
    }
}

/// Brokers of other makes say 401 for almost everything, so the error's type counts before the status.
pub(crate) fn refused(url: &str, step: Step<'_>, status: StatusCode, body: &[u8]) -> ClientError {
    let said: Option<ErrorInformation> = serde_json::from_slice(body).ok();
    let refusal = Refusal::of(status.as_u16(), said.as_ref());
    let passes = status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
    // A broker that restarted between challenge and answer has forgotten the challenge.
    let forgotten = matches!(step, Step::Attest) && refusal.is(ErrorKind::SessionNotFound);
    if passes || forgotten {
        let problem = format!("{}: status {}: {refusal}", step.name(), status.as_u16());
        return ClientError::Temporary { url: url.to_owned(), problem };
    }
    let Step::Resource(uri) = step else { return ClientError::Attestation(refusal) };
    let uri = uri.to_string();
    let denied = refusal.is(ErrorKind::PolicyDeny) || refusal.is(ErrorKind::PolicyEngineError);
    if refusal.is(ErrorKind::ResourceNotFound) || status == StatusCode::NOT_FOUND {
        ClientError::Absent { uri, refusal }
    } else if status == StatusCode::UNAUTHORIZED && !denied {
        ClientError::Session(refusal)
    } else {
        ClientError::Denied { uri, refusal }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_count_before_statuses() {
        let uri: ResourceUri = "kbs:///a/b/c".parse().unwrap();
        let get = Step::Resource(&uri);
        let said = |kind: &str| {
            format!(
                r#"{{"type":"https://github.com/confidential-containers/kbs/errors/{kind}","detail":"d"}}"#
            )
        };
        let means = |step, status: u16, kind: &str| {
            let status = StatusCode::from_u16(status).unwrap();
            match refused("http://b", step, status, said(kind).as_bytes()) {
                ClientError::Temporary { .. } => "temporary",
                ClientError::Attestation(_) => "attestation",
                ClientError::Absent { .. } => "absent",
                ClientError::Session(_) => "session",
                ClientError::Denied { .. } => "denied",
                other => panic!("{other}"),
            }
        };
        for (step, status, kind, expected) in [
            (Step::Auth, 401, "VersionMismatch", "attestation"),
            (Step::Auth, 429, "Busy", "temporary"),
            (Step::Attest, 401, "AttestationFailed", "attestation"),
            (Step::Attest, 401, "SessionNotFound", "temporary"),
            (Step::Attest, 503, "", "temporary"),
            (get, 401, "TokenVerifierError", "session"),
            (get, 401, "SessionNotFound", "session"),
            (get, 401, "PolicyDeny", "denied"),
            (get, 403, "PolicyDeny", "denied"),
            (get, 404, "ResourceNotFound", "absent"),
            (get, 401, "ResourceNotFound", "absent"),
            (get, 400, "InvalidRequest", "denied"),
            (get, 500, "Internal", "temporary"),
        ] {
            assert_eq!(means(step, status, kind), expected, "{status} {kind}");
        }
        // A proxy in between speaks HTML.
        let proxy = refused("http://b", get, StatusCode::BAD_GATEWAY, b"<html>");
        assert!(matches!(proxy, ClientError::Temporary { .. }), "{proxy}");
    }
}
