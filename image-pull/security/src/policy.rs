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

/// Which images may run. Two forms are read.
///
/// # The native form
///
/// ```toml
#[doc = include_str!("policy/example.toml")]
/// ```
///
/// A key is a `kbs:///repository/type/tag` or a PEM text. Names are complete:
/// `docker.io/library/busybox`. A `match` without a tag is for every tag and digest; one with a tag is
/// for references by that tag alone.
///
/// `identity` is what a signature must name. `repository` (the default): this repository, with any
/// tag. `exact`: this very `repository:tag` (for references by digest: this repository). `danger-any`: names
/// are not looked at, so whoever can change the registry may put any image that these signers ever
/// signed in the place of any other. Signatures of cosign 3 name no image; only `danger-any` admits them.
/// `signed-as = "vendor.example/app"` (or with a tag) instead: that name, as for mirrors.
///
/// `keyless`: a `trusted_root.json`, the OpenID issuer, and the name in the certificate, whole or as a
/// pattern as in `match`. Every list of the trust root that is not empty is demanded: logs,
/// logs of certificates. `rekor-key` beside `cosign-key`: entered in the log of that key.
///
/// `lookaside`: signatures are at `<lookaside>/<path>@sha256=<hex>/signature-1`, -2, and so on.
///
/// # `policy.json` of containers
///
/// containers-policy.json(5), read as strictly as the original reads it. Differences: key paths are
/// `kbs:///` URIs, since a guest has no files of its owner; `pki` is refused, since it needs a clock
/// that the host cannot set; and one key is added, which the original keeps in
/// containers-registries.d(5): `"lookaside": {"docker.io/library": "https://signatures.example"}`. Of
/// the transports only `docker` has images here; the others are checked and never match. Bundles are
/// signatures like others, but those of cosign 3 name no image, and no `signedIdentity` admits them:
/// use the native form.
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
