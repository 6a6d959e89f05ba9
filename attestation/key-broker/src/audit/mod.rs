//! The audit log: who asked for what, what came of it, and why. Files of JSON lines that are only
//! appended to; each line holds the hash of the one before, so that a change, a gap or another order
//! shows. Whoever holds the files could write all of them anew: keep a line's hash elsewhere, and
//! [`verify`] shows that what precedes it is unchanged.

mod chain;
mod log;
mod read;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

pub(crate) use chain::Head;
pub use chain::LineError;
pub(crate) use log::AuditLog;
pub use read::{Verified, verify};
pub(crate) use read::{find, list};

/// Longest line, in bytes.
pub const LINE_LIMIT: usize = 512 * 1024;

/// Why the log cannot be written or believed.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// A file.
    #[error("audit log {path}: {error}", path = .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A line is not what was written.
    #[error("audit log {path}, line {line}: {error}", path = .path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
        /// What is wrong.
        error: LineError,
    },
    /// The log does not go as far as it once did.
    #[error(
        "the audit log ends with entry {found}, but the store knows that it had {known}: entries were \
         removed. Put the missing files back, or move the directory away and set audit.danger_begin_anew \
         to begin a new log"
    )]
    Truncated {
        /// Last entry of the log.
        found: u64,
        /// Last entry that the store knows.
        known: u64,
    },
    /// An entry is not the one that the store knows.
    #[error(
        "entry {0} of the audit log is another one than the store knows: the log was written anew. Put the \
         original back, or move the directory away and set audit.danger_begin_anew to begin a new log"
    )]
    Rewritten(u64),
    /// An entry is too large.
    #[error("an entry of the audit log would have more than {LINE_LIMIT} bytes")]
    TooLong,
    /// The log's thread is gone or the log failed before.
    #[error("the audit log failed before: nothing is released until the broker is started again")]
    Closed,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// The broker was started.
    Start,
    /// The broker was stopped in good order.
    Stop,
    /// At its start the broker found a torn last line and cut it off.
    Repair,
    /// A guest showed evidence.
    Attest,
    /// A guest asked for a resource.
    GetResource,
    /// An administrator could not be authenticated.
    AdminAuthentication,
    /// An administrator set a resource.
    SetResource,
    /// An administrator read a resource.
    ReadResource,
    /// An administrator deleted a resource.
    DeleteResource,
    /// An administrator listed the resources' names.
    ListResources,
    /// An administrator set the resource policy.
    SetResourcePolicy,
    /// An administrator deleted the resource policy.
    DeleteResourcePolicy,
    /// An administrator added reference values.
    AddReferenceValue,
    /// An administrator deleted reference values.
    DeleteReferenceValue,
    /// An administrator added a grant.
    AddGrant,
    /// An administrator deleted a grant.
    DeleteGrant,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was refused.
    Refused,
    /// It could not be done.
    Failed,
}

/// What is written down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// What happened.
    pub action: Action,
    /// What came of it.
    pub outcome: Outcome,
    /// Identifier of the request; guests see it in errors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// Address of who asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// The administrator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub administrator: Option<String>,
    /// What it was about: a resource's URI, an identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Kind of hardware.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tee: Option<String>,
    /// Whether the hardware was emulated: its root is none of a vendor's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emulated: Option<bool>,
    /// The attestation (its request identifier) by which a resource was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attestation: Option<String>,
    /// The whole appraisal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub appraisal: Option<Value>,
}

impl Event {
    /// An event of which nothing more is known.
    #[must_use]
    pub fn new(action: Action, outcome: Outcome) -> Event {
        Event {
            action,
            outcome,
            request: None,
            client: None,
            administrator: None,
            subject: None,
            reason: String::new(),
            tee: None,
            emulated: None,
            attestation: None,
            appraisal: None,
        }
    }
}

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Counted from 1, without gaps.
    pub seq: u64,
    /// By the broker's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// Hash of the entry before, in hexadecimal; of the first one, zeros.
    pub prev: String,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
    /// SHA-256 of the line's bytes before `,"hash":`, in hexadecimal.
    #[serde(default)]
    pub hash: String,
}
