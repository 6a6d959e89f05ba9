//! What a rule demands.

use nacre_trust::Digest;

use super::material::Material;
use crate::identity::Identity;
use crate::key::PublicKey;

/// One demand.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Requirement {
    /// Met by every image.
    Anything,
    /// Met by no image.
    Nothing,
    /// The reference names a digest.
    Pinned,
    /// The image is one of these.
    Digests(Vec<Digest>),
    /// Somebody signed it.
    Signed { by: Signer, identity: Identity },
}

/// Who has to have signed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Signer {
    /// One of these keys; entered in one of these logs, where there are any.
    Keys { keys: Vec<Material>, logs: Vec<Material> },
}

/// Demands for images of one scope: of each clause one, of all clauses.
#[derive(Debug)]
pub(crate) struct Rule {
    /// As messages name it.
    pub(crate) name: String,
    pub(crate) clauses: Vec<Vec<Requirement>>,
    /// Signature store of simple signing, as the native form gives it.
    pub(crate) lookaside: Option<String>,
}

impl Signer {
    /// That what is in the policy itself can be used: a mistake shows before the first image does.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self {
            Self::Keys { logs, .. } if !logs.is_empty() => {
                Err("transparency logs cannot be demanded yet".into())
            }
            Self::Keys { keys, logs } => {
                for material in keys.iter().chain(logs) {
                    if let Material::Inline(bytes) = material {
                        PublicKey::from_file(bytes)?;
                    }
                }
                Ok(())
            }
        }
    }
}

impl Rule {
    /// A rule of one demand.
    pub(crate) fn only(name: &str, requirement: Requirement) -> Self {
        Self { name: name.to_owned(), clauses: vec![vec![requirement]], lookaside: None }
    }
}
