//! What a broker says when it says no.

use serde::{Deserialize, Serialize};

/// What the type of an error begins with.
pub const ERROR_PREFIX: &str = "https://github.com/confidential-containers/kbs/errors/";

/// What went wrong, as the broker says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorInformation {
    /// [`ERROR_PREFIX`] and the name of an [`ErrorKind`], or of another server's error.
    #[serde(rename = "type")]
    pub error_type: String,
    /// For people.
    pub detail: String,
    /// Where the broker's audit log has the whole story; Nacre's broker says it.
    #[serde(rename = "request-id", default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

impl ErrorInformation {
    /// What a broker says of an error of `kind`.
    #[must_use]
    pub fn new(kind: ErrorKind, detail: String, request_id: Option<String>) -> ErrorInformation {
        let error_type = format!("{ERROR_PREFIX}{}", kind.name());
        ErrorInformation { error_type, detail, request_id }
    }

    /// The kind, where it is one that Nacre's broker has.
    #[must_use]
    pub fn kind(&self) -> Option<ErrorKind> {
        let name = self.error_type.strip_prefix(ERROR_PREFIX)?;
        ErrorKind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// What kinds of errors Nacre's broker has. Names that Trustee has mean what they mean there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The message is no message of the protocol, or too large. Status 400 or 413.
    InvalidRequest,
    /// The client's protocol version is not served. Status 401.
    VersionMismatch,
    /// There is no such session, it is over or already used: begin with a new challenge. Status 401.
    SessionNotFound,
    /// Appraised and refused; asking again with the same evidence is of no use. Status 401.
    AttestationFailed,
    /// Neither a session nor a token came. Status 401.
    TokenNotFound,
    /// The token is expired, of another broker or no token: attest anew. Status 401.
    TokenVerifierError,
    /// The resource policy says no. Status 403.
    PolicyDeny,
    /// The resource policy cannot be evaluated. Status 403.
    PolicyEngineError,
    /// The policy says yes, and there is no such resource. Status 404.
    ResourceNotFound,
    /// No such path. Status 404.
    InvalidRequestPath,
    /// No such plugin. Status 404.
    PluginNotFound,
    /// The answer cannot be encrypted to the client's key. Status 401.
    JweError,
    /// No administrator, or a request that is wrong for one. Status 401.
    AdminAuthAccess,
    /// Too many requests; try again later. Status 429 or 503.
    Busy,
    /// The broker failed. Status 500.
    Internal,
}

impl ErrorKind {
    /// All of them.
    pub const ALL: [ErrorKind; 15] = [
        ErrorKind::InvalidRequest,
        ErrorKind::VersionMismatch,
        ErrorKind::SessionNotFound,
        ErrorKind::AttestationFailed,
        ErrorKind::TokenNotFound,
        ErrorKind::TokenVerifierError,
        ErrorKind::PolicyDeny,
        ErrorKind::PolicyEngineError,
        ErrorKind::ResourceNotFound,
        ErrorKind::InvalidRequestPath,
        ErrorKind::PluginNotFound,
        ErrorKind::JweError,
        ErrorKind::AdminAuthAccess,
        ErrorKind::Busy,
        ErrorKind::Internal,
    ];

    /// The name in an error's type.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            ErrorKind::InvalidRequest => "InvalidRequest",
            ErrorKind::VersionMismatch => "VersionMismatch",
            ErrorKind::SessionNotFound => "SessionNotFound",
            ErrorKind::AttestationFailed => "AttestationFailed",
            ErrorKind::TokenNotFound => "TokenNotFound",
            ErrorKind::TokenVerifierError => "TokenVerifierError",
            ErrorKind::PolicyDeny => "PolicyDeny",
            ErrorKind::PolicyEngineError => "PolicyEngineError",
            ErrorKind::ResourceNotFound => "ResourceNotFound",
            ErrorKind::InvalidRequestPath => "InvalidRequestPath",
            ErrorKind::PluginNotFound => "PluginNotFound",
            ErrorKind::JweError => "JweError",
            ErrorKind::AdminAuthAccess => "AdminAuthAccess",
            ErrorKind::Busy => "Busy",
            ErrorKind::Internal => "Internal",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_tell_their_kind() {
        for kind in ErrorKind::ALL {
            let said = ErrorInformation::new(kind, "why".into(), Some("id".into()));
            let text = serde_json::to_string(&said).unwrap();
            assert!(text.contains("\"request-id\":\"id\""), "{text}");
            let read: ErrorInformation = serde_json::from_str(&text).unwrap();
            assert_eq!(read.kind(), Some(kind));
        }
        let other: ErrorInformation =
            serde_json::from_str(r#"{"type":"https://example.org/x","detail":""}"#).unwrap();
        assert_eq!(other.kind(), None);
    }
}
