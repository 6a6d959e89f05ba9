//! What a rule demands.

use nacre_trust::Digest;

use super::material::Material;
use crate::certificate::SignerName;
use crate::glob;
use crate::identity::Identity;
use crate::key::PublicKey;
use crate::openpgp::Keyring;
use crate::trust_root::TrustRoot;

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

impl Requirement {
    /// Whether it needs a store of simple signing.
    pub(crate) fn is_gpg(&self) -> bool {
        matches!(self, Self::Signed { by: Signer::Gpg { .. }, .. })
    }
}

/// Who has to have signed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Signer {
    /// One of these keys; entered in one of these logs, where there are any.
    Keys { keys: Vec<Material>, logs: Vec<Material> },
    /// Somebody to whom an authority gave a certificate for this signature.
    Certified { root: RootMaterial, issuer: String, name: NamePattern },
    /// A key of one of these OpenPGP keyrings.
    Gpg { keyrings: Vec<Material> },
}

/// Where a trust root comes from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum RootMaterial {
    /// A `trusted_root.json`.
    Document(Material),
    /// Certificates in PEM, and keys of logs.
    Authority { certificates: Material, logs: Vec<Material> },
}

/// Which names in a certificate are accepted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NamePattern {
    /// This address.
    Email(String),
    /// Whatever the pattern matches, of every kind of name.
    Pattern(String),
}

impl NamePattern {
    pub(crate) fn accepts(&self, name: &SignerName) -> bool {
        match self {
            Self::Email(email) => matches!(name, SignerName::Email(name) if name == email),
            Self::Pattern(pattern) => glob::matches(pattern, name.text()),
        }
    }
}

impl Signer {
    /// That what is in the policy itself can be used: a mistake shows before the first image does.
    pub(crate) fn check(&self) -> Result<(), String> {
        let keys = |list: &[Material]| {
            list.iter()
                .filter_map(Material::inline)
                .try_for_each(|bytes| PublicKey::from_file(bytes).map(|_| ()))
        };
        match self {
            Self::Keys { keys: signers, logs } => keys(signers).and_then(|()| keys(logs)),
            Self::Certified { root: RootMaterial::Document(document), .. } => {
                document.inline().map_or(Ok(()), |text| TrustRoot::parse(text).map(|_| ()))
            }
            Self::Certified { root: RootMaterial::Authority { logs, .. }, .. } => keys(logs),
            Self::Gpg { keyrings } => keyrings
                .iter()
                .filter_map(Material::inline)
                .try_for_each(|file| Keyring::parse(file).map(|_| ())),
        }
    }
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

impl Rule {
    /// A rule of one demand.
    pub(crate) fn only(name: &str, requirement: Requirement) -> Self {
        Self { name: name.to_owned(), clauses: vec![vec![requirement]], lookaside: None }
    }
}
