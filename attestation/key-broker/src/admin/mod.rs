//! A broker's administrator: requests, signed by the administrator's key, and their answers.

mod client;

use std::collections::BTreeMap;

use nacre_protocol::kbs::ResourceUri;
use nacre_verifier::ReferenceValues;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

use crate::audit::Entry;

pub use client::{AdminError, Client};

/// A resource, without its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceInfo {
    /// Its name.
    pub uri: ResourceUri,
    /// Size of its content.
    pub bytes: usize,
    /// When it was set.
    #[serde(with = "time::serde::rfc3339")]
    pub modified: OffsetDateTime,
}

/// A document of reference values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceInfo {
    /// Whether it counts no more.
    pub expired: bool,
    /// The document.
    pub document: ReferenceValues,
}

/// All reference values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct References {
    /// What evidence is compared with.
    pub documents: Vec<ReferenceInfo>,
    /// Values registered in Trustee's form, by name. Where they are complete, they make one of the
    /// documents.
    #[serde(default)]
    pub trustee: BTreeMap<String, Vec<Value>>,
}

/// What became of a registration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistrationAnswer {
    /// Identifier of the document.
    pub id: String,
    /// Names that Trustee's form still has to give before its values count.
    #[serde(default)]
    pub missing: Vec<String>,
    /// Names of Trustee's form that are compared with nothing.
    #[serde(default)]
    pub ignored: Vec<String>,
}

/// A resource policy on the wire: base64url.
#[derive(Serialize, Deserialize)]
pub(crate) struct PolicyText {
    pub(crate) policy: String,
}

/// Entries of the audit log.
#[derive(Serialize, Deserialize)]
pub(crate) struct AuditPage {
    pub(crate) entries: Vec<Entry>,
}
