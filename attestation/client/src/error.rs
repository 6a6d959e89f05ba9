use std::time::Duration;

use nacre_protocol::kbs::{ErrorInformation, ErrorKind};

/// Why there is no secret. What a broker or the network said is cut to one line of a few hundred bytes;
/// no variant holds a secret or a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The options cannot be used.
    #[error("the key broker's configuration cannot be used: {0}")]
    Config(String),
    /// This machine cannot prove what it is.
    #[error("failed to get evidence about this guest: {0}")]
    Evidence(String),
    /// No answer, or none that helps, until the deadline.
    #[error(
        "the key broker {url} could not be reached within {} s ({attempts} attempts): {last}; check \
         its address, the pod's network and whether the broker runs", waited.as_secs()
    )]
    Unreachable {
        /// The broker.
        url: String,
        /// How often it was tried.
        attempts: u32,
        /// How long.
        waited: Duration,
        /// What happened last.
        last: String,
    },
    /// The connection would not be with the broker that the configuration names.
    #[error(
        "the key broker {url} has another certificate than the configuration trusts: {problem}; give \
         its certificate or its authority's as kbs_cert in cdh.toml and cert in aa.toml"
    )]
    Certificate {
        /// The broker.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The broker does not believe this guest.
    #[error("the key broker refuses this guest: {0}")]
    Attestation(Refusal),
    /// The broker believes this guest, and does not give it this.
    #[error("the key broker does not give {uri} to this guest: {refusal}")]
    Denied {
        /// What was asked for.
        uri: String,
        /// In the broker's words.
        refusal: Refusal,
    },
    /// There is no such resource, and the broker says so.
    #[error("the key broker has no resource {uri}: {refusal}")]
    Absent {
        /// What was asked for.
        uri: String,
        /// In the broker's words.
        refusal: Refusal,
    },
    /// The session or token is not valid (any more).
    #[error("the key broker does not accept this guest's session: {0}")]
    Session(Refusal),
    /// The broker's answer is not what the protocol says.
    #[error(
        "the key broker {url} answers {step} in a way that this guest does not understand: {problem}"
    )]
    Protocol {
        /// The broker.
        url: String,
        /// Which request it was.
        step: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// A failure that may pass: no connection, status 429 or 5xx.
    #[error("the key broker {url}: {problem}")]
    Temporary {
        /// The broker.
        url: String,
        /// What happened.
        problem: String,
    },
}

/// A broker's no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// Last part of the error's type, such as `AttestationFailed`; empty if it said none.
    pub kind: String,
    /// What it said, in one line of at most [`Refusal::LONGEST`] bytes.
    pub detail: String,
    /// Where its audit log has the whole story.
    pub request_id: Option<String>,
}

impl Refusal {
    /// Longest detail, in bytes.
    pub const LONGEST: usize = 480;

    pub(crate) fn of(status: u16, information: Option<&ErrorInformation>) -> Refusal {
        let Some(said) = information else {
            return Refusal {
                status,
                kind: String::new(),
                detail: String::new(),
                request_id: None,
            };
        };
        let kind = said.error_type.rsplit('/').next().unwrap_or_default();
        Refusal {
            status,
            kind: one_line(kind, 64),
            detail: one_line(&said.detail, Self::LONGEST),
            request_id: said.request_id.as_deref().map(|id| one_line(id, 64)),
        }
    }

    pub(crate) fn is(&self, kind: ErrorKind) -> bool {
        self.kind == kind.name()
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.detail.as_str(), self.kind.as_str()) {
            ("", "") => write!(f, "it says nothing but status {}", self.status)?,
            ("", kind) => f.write_str(kind)?,
            (detail, "") => f.write_str(detail)?,
            (detail, kind) => write!(f, "{kind}: {detail}")?,
        }
        match &self.request_id {
            // The detail of a failed appraisal has it already.
            Some(id) if !self.detail.contains(id.as_str()) => {
                write!(f, " (request {id}: `nacre kbs explain {id}`)")
            }
            Some(id) => write!(f, "; `nacre kbs explain {id}`"),
            None => Ok(()),
        }
    }
}

/// Text of others: no control characters, not longer than `limit` bytes.
pub(crate) fn one_line(text: &str, limit: usize) -> String {
    let mut line = String::new();
    for c in text.trim().chars() {
        let c = if c.is_control() { ' ' } else { c };
        if line.len() + c.len_utf8() > limit {
            line.push_str("...");
            break;
        }
        line.push(c);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_broker_says_is_one_short_line() {
        let said = ErrorInformation::new(
            ErrorKind::AttestationFailed,
            format!("snp-measurement: found\n\u{1b}[31m{}", "ü".repeat(1000)),
            Some("r-1".into()),
        );
        let refusal = Refusal::of(401, Some(&said));
        assert!(refusal.is(ErrorKind::AttestationFailed));
        let text = ClientError::Attestation(refusal).to_string();
        assert!(text.len() < 700 && !text.contains(char::is_control), "{text}");
        assert!(text.contains("AttestationFailed: snp-measurement: found"), "{text}");
        assert!(text.contains("nacre kbs explain r-1"), "{text}");
        let silent = Refusal::of(403, None).to_string();
        assert!(silent.contains("403"), "{silent}");
    }
}
