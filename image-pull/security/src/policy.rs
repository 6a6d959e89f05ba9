//! Image policies: which images must meet what.

mod containers;
mod material;
mod native;
mod requirement;

use crate::decision::decide;
use crate::{Admitted, Refused, Sources, Subject, json};

pub(crate) use material::Material;
pub(crate) use requirement::{NamePattern, Requirement, RootMaterial, Rule, Signer};

/// Largest policy, in bytes.
const POLICY_LIMIT: usize = 1024 * 1024;
/// Rules of one policy.
const SCOPES_LIMIT: usize = 1000;
/// Requirements of one rule, and keys of one requirement.
const REQUIREMENTS_LIMIT: usize = 32;

/// Why a policy cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Larger than is looked at.
    #[error("image policy: larger than {0} bytes")]
    TooLarge(usize),
    /// Neither a containers `policy.json` nor the native form.
    #[error("image policy: {0}")]
    Form(String),
    /// More than is looked at.
    #[error("image policy: more than {1} {0}")]
    TooMany(&'static str, usize),
    /// One rule is not understood, and so the whole policy is not.
    #[error("image policy: {rule}: {problem}")]
    Rule {
        /// Which.
        rule: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// Which images may run: what [`ImagePolicy::parse`] read.
#[derive(Debug)]
pub struct ImagePolicy(Rules);

#[derive(Debug)]
enum Rules {
    Absent,
    Containers(containers::Containers),
    Native(native::Native),
}

/// The rule for an image, and where the policy says its simple signatures are.
#[derive(Clone, Copy)]
pub(crate) struct Selected<'a> {
    pub(crate) rule: &'a Rule,
    pub(crate) lookaside: Option<&'a str>,
}

impl ImagePolicy {
    /// Reads a policy: JSON (it begins with `{`) is a containers `policy.json`, anything else the
    /// native form.
    ///
    /// # Errors
    /// [`PolicyError`] for everything that is not understood: a policy is used whole or not at all.
    pub fn parse(document: &[u8]) -> Result<Self, PolicyError> {
        if document.len() > POLICY_LIMIT {
            return Err(PolicyError::TooLarge(POLICY_LIMIT));
        }
        if document.trim_ascii_start().first() == Some(&b'{') {
            let value = json::value(document, POLICY_LIMIT).map_err(PolicyError::Form)?;
            return containers::Containers::parse(value).map(Rules::Containers).map(Self);
        }
        native::Native::parse(document).map(Rules::Native).map(Self)
    }

    /// No policy is configured: every image is admitted, and the log says so.
    #[must_use]
    pub fn accept_any() -> Self {
        Self(Rules::Absent)
    }

    /// Decides about one image. Makes requests only if the image's rule demands signatures.
    ///
    /// # Errors
    /// [`Refused`], with what would have to change.
    pub async fn admit(
        &self,
        subject: &Subject,
        sources: &dyn Sources,
    ) -> Result<Admitted, Refused> {
        if subject.digest.is_some_and(|digest| !subject.manifests.contains(&digest)) {
            let advice = "pull it again";
            return Err(Refused::new(subject, "every policy", "it resolved to another", advice));
        }
        let selected = match &self.0 {
            Rules::Absent => {
                tracing::warn!(image = %subject, "admitted unchecked: no image policy");
                return Admitted::new(subject, "no image policy is configured");
            }
            Rules::Containers(policy) => policy.select(subject),
            Rules::Native(policy) => policy.select(subject),
        };
        let reason = decide(selected, subject, sources).await?;
        Admitted::new(subject, &format!("{}: {reason}", selected.rule.name))
    }
}

/// A signature store.
fn check_url(url: &str) -> Result<(), String> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let printable = url.bytes().all(|b| b.is_ascii_graphic());
    if printable && url.len() <= 1024 && rest.is_some_and(|rest| !rest.is_empty()) {
        return Ok(());
    }
    Err(format!("lookaside: {url:?} is not an http:// or https:// URL"))
}
