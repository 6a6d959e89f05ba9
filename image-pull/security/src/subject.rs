//! What is decided about, and the two outcomes.

use std::fmt;

use nacre_trust::Digest;

use crate::printable::printable;

/// An image as the pod asked for it, and what that resolved to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Registry as images carry it: `docker.io`, `registry.example:5000`; never a mirror's.
    pub host: String,
    /// Repository path, complete: `library/busybox`.
    pub path: String,
    /// Tag of the reference.
    pub tag: Option<String>,
    /// Digest of the reference.
    pub digest: Option<Digest>,
    /// What it resolved to: the index first where there is one, then the platform's manifest, each
    /// verified to be named by the one before. A signature over any of them admits.
    pub manifests: Vec<Digest>,
}

impl Subject {
    /// `host/path`.
    pub(crate) fn repository(&self) -> String {
        format!("{}/{}", self.host, self.path)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)?;
        self.tag.iter().try_for_each(|tag| write!(f, ":{tag}"))?;
        self.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
    }
}

/// Proof that a policy admits these manifests. Only [`crate::ImagePolicy::admit`] makes it.
#[derive(Clone, Debug)]
pub struct Admitted {
    manifests: Vec<Digest>,
    manifest: Digest,
    reason: String,
}

impl Admitted {
    /// For what the subject resolved to; nothing resolved admits nothing.
    pub(crate) fn new(subject: &Subject, reason: &str) -> Result<Self, Refused> {
        let Some(manifest) = subject.manifests.last() else {
            let advice = "pull it again";
            return Err(Refused::new(subject, "every policy", "it has no manifest", advice));
        };
        Ok(Self {
            manifests: subject.manifests.clone(),
            manifest: *manifest,
            reason: reason.to_owned(),
        })
    }

    /// The manifest that may be run: the last of [`Subject::manifests`].
    #[must_use]
    pub fn manifest(&self) -> &Digest {
        &self.manifest
    }

    /// Whether this is the proof for that manifest or index.
    #[must_use]
    pub fn covers(&self, manifest: &Digest) -> bool {
        self.manifests.contains(manifest)
    }

    /// Why, in one line for the log: the rule and the signatures that met it.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

/// Why an image may not run. The text has at most 600 bytes of printable ASCII.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    reference: String,
    rule: String,
    found: String,
    advice: String,
}

impl Refused {
    /// `rule`: which rule decided; `found`: what was tried and found; `advice`: what to do.
    pub(crate) fn new(subject: &Subject, rule: &str, found: &str, advice: &str) -> Self {
        Self {
            reference: printable(&subject.to_string(), 180),
            rule: printable(rule, 100),
            found: printable(found, 200),
            advice: printable(advice, 90),
        }
    }

    /// The rule that refused, as the policy writes it.
    #[must_use]
    pub fn rule(&self) -> &str {
        &self.rule
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reference, rule, found, advice } = self;
        write!(f, "image {reference} refused by {rule}: {found}; {advice}")
    }
}

impl std::error::Error for Refused {}
