//! What a signature must say about the name of the image (`signedIdentity` of
//! containers-policy.json(5)).

use crate::Subject;
use crate::reference::{Reference, Version};

/// Which names in a signature are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// The very reference.
    Exact,
    /// The very reference, or for a reference by digest the same repository.
    RepositoryDigestOrExact,
    /// The same repository.
    Repository,
    /// This reference, whatever the pod asked for.
    ExactReference(Reference),
    /// This repository (`host/path`), whatever the pod asked for.
    ExactRepository(String),
    /// As [`Identity::RepositoryDigestOrExact`], after one prefix was replaced by another.
    Remapped { prefix: String, signed_prefix: String },
    /// Any name, or none.
    Any,
}

impl Identity {
    /// Whether a signature that names `signed` speaks about `subject`.
    pub(crate) fn accepts(&self, subject: &Subject, signed: Option<&str>) -> Result<(), String> {
        let asked = Reference::of(subject);
        if *self == Self::Any {
            return Ok(());
        }
        let Some(signed) = signed.filter(|name| !name.is_empty()) else {
            return Err("the signature names no image".into());
        };
        let name = Reference::parse(signed)
            .map_err(|error| format!("the signature names no valid image: {error}"))?;
        let accepted = match self {
            Self::Any => true,
            Self::Exact => name == asked && asked.version != Version::Unnamed,
            Self::RepositoryDigestOrExact => exact_or_digest(&asked, &name),
            Self::Repository => name.repository == asked.repository,
            Self::ExactReference(reference) => name == *reference,
            Self::ExactRepository(repository) => name.repository == *repository,
            Self::Remapped { prefix, signed_prefix } => {
                exact_or_digest(&remapped(&asked, prefix, signed_prefix), &name)
            }
        };
        if accepted { Ok(()) } else { Err(format!("the signature is for {name}")) }
    }
}

fn exact_or_digest(asked: &Reference, signed: &Reference) -> bool {
    match asked.version {
        Version::Tag(_) => asked == signed,
        Version::Digest(_) => asked.repository == signed.repository,
        Version::Unnamed => false,
    }
}

/// A prefix ends where a component of the name ends.
fn remapped(asked: &Reference, prefix: &str, signed_prefix: &str) -> Reference {
    match asked.repository.strip_prefix(prefix) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => Reference {
            repository: format!("{signed_prefix}{rest}"),
            version: asked.version.clone(),
        },
        _ => asked.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_trust::{Algorithm, Digest};

    fn subject(tag: Option<&str>, pinned: bool) -> Subject {
        let digest = Digest::of(Algorithm::Sha256, b"manifest");
        Subject {
            host: "r.example:5000".into(),
            path: "team/app".into(),
            tag: tag.map(str::to_owned),
            digest: pinned.then_some(digest),
            manifests: vec![digest],
        }
    }

    #[test]
    fn identities_match_as_the_manual_page_says() {
        let tagged = subject(Some("v1"), false);
        let pinned = subject(None, true);
        // A tag beside a digest is decoration.
        let both = subject(Some("v1"), true);
        let own = "r.example:5000/team/app";
        let own_v1 = "r.example:5000/team/app:v1";
        let own_v2 = "r.example:5000/team/app:v2";
        let mirror = Identity::Remapped {
            prefix: "r.example:5000/team".into(),
            signed_prefix: "vendor.example/x".into(),
        };
        let elsewhere = Identity::Remapped {
            prefix: "r.example:5000/te".into(),
            signed_prefix: "vendor.example/x".into(),
        };
        let reference = Identity::ExactReference(Reference::parse(own_v2).unwrap());
        let repository = Identity::ExactRepository("vendor.example/x/app".into());
        use Identity::{Any, Exact, Repository, RepositoryDigestOrExact};
        for (identity, subject, signed, accepted) in [
            (&Exact, &tagged, Some(own_v1), true),
            (&Exact, &tagged, Some(own), false),
            (&Exact, &pinned, Some(own_v1), false),
            (&RepositoryDigestOrExact, &tagged, Some(own_v1), true),
            (&RepositoryDigestOrExact, &tagged, Some(own_v2), false),
            (&RepositoryDigestOrExact, &tagged, Some(own), false),
            (&RepositoryDigestOrExact, &pinned, Some(own_v2), true),
            (&RepositoryDigestOrExact, &both, Some(own_v2), true),
            (&RepositoryDigestOrExact, &pinned, Some("r.example:5000/team/other:v1"), false),
            (&Repository, &tagged, Some(own), true),
            (&Repository, &tagged, Some("r.example/team/app"), false),
            (&Repository, &tagged, None, false),
            (&Repository, &tagged, Some(""), false),
            (&Repository, &tagged, Some("::"), false),
            (&reference, &tagged, Some(own_v2), true),
            (&reference, &tagged, Some(own_v1), false),
            (&repository, &tagged, Some("vendor.example/x/app:v9"), true),
            (&mirror, &tagged, Some("vendor.example/x/app:v1"), true),
            (&mirror, &tagged, Some(own_v1), false),
            (&elsewhere, &tagged, Some(own_v1), true),
            (&Any, &tagged, None, true),
        ] {
            let answer = identity.accepts(subject, signed);
            assert_eq!(answer.is_ok(), accepted, "{identity:?} {subject} {signed:?} {answer:?}");
        }
    }
}
