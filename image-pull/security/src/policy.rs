//! Image policies: which images must meet what.

use nacre_trust::Digest;
use serde::Deserialize;
use std::collections::BTreeMap;

use crate::{Admitted, Refused, Sources, Subject};

/// Largest policy, in bytes.
const POLICY_LIMIT: usize = 1024 * 1024;

/// Why a policy cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Larger than is looked at.
    #[error("image policy: larger than {0} bytes")]
    TooLarge(usize),
    /// Neither a containers `policy.json` nor the native form.
    #[error("image policy: {0}")]
    Form(String),
}

/// Which images may run.
#[derive(Debug)]
pub struct ImagePolicy(Rules);

#[derive(Debug)]
enum Rules {
    Absent,
    Containers(Document),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    default: Vec<Requirement>,
    #[serde(default)]
    transports: BTreeMap<String, BTreeMap<String, Vec<Requirement>>>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", deny_unknown_fields, rename_all = "camelCase")]
enum Requirement {
    InsecureAcceptAnything {},
    Reject {},
}

impl ImagePolicy {
    /// Reads a policy: JSON is a containers `policy.json`, anything else the native form.
    ///
    /// # Errors
    /// [`PolicyError`] for everything that is not understood: a policy is used whole or not at all.
    pub fn parse(document: &[u8]) -> Result<Self, PolicyError> {
        if document.len() > POLICY_LIMIT {
            return Err(PolicyError::TooLarge(POLICY_LIMIT));
        }
        let document = serde_json::from_slice(document)
            .map_err(|error| PolicyError::Form(error.to_string()))?;
        Ok(Self(Rules::Containers(document)))
    }

    /// No policy is configured: every image is admitted, and the log says so.
    #[must_use]
    pub fn accept_any() -> Self {
        Self(Rules::Absent)
    }

    /// Decides about one image.
    ///
    /// # Errors
    /// [`Refused`], with what would have to change.
    pub async fn admit(
        &self,
        subject: &Subject,
        _sources: &dyn Sources,
    ) -> Result<Admitted, Refused> {
        let Some(manifest) = subject.manifests.last() else {
            return Err(Refused::new(
                subject,
                "every policy",
                "it has no manifest",
                "pull it again",
            ));
        };
        let document = match &self.0 {
            Rules::Absent => {
                tracing::warn!(image = %subject, "admitted unchecked: no image policy");
                return Ok(admitted(subject, manifest, "no image policy is configured"));
            }
            Rules::Containers(document) => document,
        };
        let scopes = document.transports.get("docker");
        let requirements = scopes
            .and_then(|scopes| scopes.get(&subject.repository()).or_else(|| scopes.get("")))
            .unwrap_or(&document.default);
        if requirements.is_empty()
            || requirements.iter().any(|one| matches!(one, Requirement::Reject {}))
        {
            return Err(Refused::new(
                subject,
                "the default rule",
                "it rejects",
                "give the image a rule in the image policy",
            ));
        }
        Ok(admitted(subject, manifest, "the policy accepts anything here"))
    }
}

fn admitted(subject: &Subject, manifest: &Digest, reason: &str) -> Admitted {
    Admitted::new(subject.manifests.clone(), *manifest, reason.to_owned())
}
