//! What the agent answers when it does not do as it was asked.

use std::fmt::Display;

use nacre_policy::Denial;
use nacre_protocol::start_report::Failure;
use ttrpc::{Code, get_status};

/// A refused or failed request. It reaches the host and, through it, the pod's events: it says what
/// failed and what to do, and never holds a secret or a whole specification.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// The thing that the request names does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The thing that the request would make exists.
    #[error("{0}")]
    AlreadyExists(String),
    /// A field of the request cannot be accepted.
    #[error("{field}: {why}")]
    Invalid {
        /// Path of the field in the request, such as `OCI.Process.Cwd`.
        field: String,
        /// What is wrong, and what would be accepted.
        why: String,
    },
    /// The request is sound but comes at the wrong time.
    #[error("{0}")]
    Precondition(String),
    /// A bound of the guest is reached: memory, containers, processes.
    #[error("{0}")]
    Exhausted(String),
    /// The pod's policy does not allow the request; the text says why.
    #[error("{0}")]
    Denied(String),
    /// A stream has ended.
    #[error("end of stream")]
    EndOfStream,
    /// The guest failed at what it tried, and knows what of.
    #[error("{}", .0.mark(.1))]
    Failed(Failure, String),
    /// The guest failed at what it tried.
    #[error("{0}")]
    Internal(String),
    /// This agent does not offer the method.
    #[error("{0} is not implemented by this agent")]
    Unimplemented(&'static str),
}

impl RpcError {
    /// `what` names the missing thing: `container "a"`.
    pub(crate) fn not_found(what: impl Display) -> Self {
        Self::NotFound(format!("{what} not found"))
    }

    /// `field` is the path of the field in the request.
    pub(crate) fn invalid(field: impl Display, why: impl Display) -> Self {
        Self::Invalid { field: field.to_string(), why: why.to_string() }
    }

    /// `doing` says what was tried, in the form "failed to ...".
    pub(crate) fn internal(doing: impl Display, error: impl Display) -> Self {
        Self::Internal(format!("{doing}: {error}"))
    }

    /// The same error as a failure that has a code, if it is one of the guest's own.
    pub(crate) fn or_failed(self, failure: Failure) -> Self {
        match self {
            Self::Internal(why) => Self::Failed(failure, why),
            other => other,
        }
    }

    /// A denial of the pod's policy.
    pub(crate) fn denied(denial: &Denial) -> Self {
        Self::Denied(denial.to_string())
    }

    fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NOT_FOUND,
            Self::AlreadyExists(_) => Code::ALREADY_EXISTS,
            Self::Invalid { .. } => Code::INVALID_ARGUMENT,
            Self::Precondition(_) => Code::FAILED_PRECONDITION,
            Self::Exhausted(_) => Code::RESOURCE_EXHAUSTED,
            Self::Denied(_) => Code::PERMISSION_DENIED,
            Self::EndOfStream => Code::OUT_OF_RANGE,
            Self::Failed(..) | Self::Internal(_) => Code::INTERNAL,
            Self::Unimplemented(_) => Code::UNIMPLEMENTED,
        }
    }
}

impl From<RpcError> for ttrpc::Error {
    fn from(error: RpcError) -> Self {
        ttrpc::Error::RpcStatus(get_status(error.code(), error.to_string()))
    }
}
