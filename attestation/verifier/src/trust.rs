//! Whom a verifier trusts.

use crate::x509::{Certificate, RevocationList, X509Error};

/// Roots, revocation lists and rules about them. The default trusts AMD and Intel and nobody else.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    /// Roots beside AMD's, such as an emulated secure processor's. Whoever has such a root's keys can
    /// make any SNP evidence; every appraisal that ends in one says so.
    pub danger_extra_snp_roots: Vec<ExtraRoot>,
    /// AMD's revocation lists in DER, signed by an ARK or ASK; both of a product may be given.
    pub snp_crls: Vec<Vec<u8>>,
    /// Whether evidence without a current revocation list for its root fails. Without lists and without
    /// this, the check says that it was not made.
    pub snp_crl_required: bool,
    /// Roots of TDX quotes beside Intel's. Whoever has such a root's keys can make any TDX evidence.
    pub danger_extra_tdx_roots: Vec<ExtraTdxRoot>,
}

/// A root that is not a vendor's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraRoot {
    /// Stands in appraisals.
    pub name: String,
    /// The self-signed root certificate, in DER.
    pub ark_der: Vec<u8>,
    /// The certificate of the key that signs chip keys, in DER.
    pub ask_der: Vec<u8>,
}

/// A root of TDX quotes that is not Intel's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraTdxRoot {
    /// Stands in appraisals.
    pub name: String,
    /// The self-signed root certificate, in DER, as quotes bring it along.
    pub root_der: Vec<u8>,
}

/// Why roots or revocation lists cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// A root's certificates are no certificates, or do not belong together.
    #[error("root {name:?}: {what}: {problem}")]
    Root {
        /// Of the root.
        name: String,
        /// Which certificate.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A revocation list is none, or none of the roots issued it.
    #[error("revocation list {index}: {problem}")]
    Crl {
        /// Its place among those given, counted from 0.
        index: usize,
        /// What is wrong with it.
        problem: String,
    },
}

impl TrustError {
    pub(crate) fn root(name: &str, what: &'static str, problem: &X509Error) -> TrustError {
        TrustError::Root { name: name.to_owned(), what, problem: problem.to_string() }
    }

    fn crl(index: usize, problem: &X509Error) -> TrustError {
        TrustError::Crl { index, problem: problem.to_string() }
    }
}

pub(crate) fn certificate(
    name: &str,
    what: &'static str,
    der: &[u8],
) -> Result<Certificate, TrustError> {
    Certificate::parse(der).map_err(|problem| TrustError::root(name, what, &problem))
}

pub(crate) fn revocation_list(index: usize, der: &[u8]) -> Result<RevocationList, TrustError> {
    RevocationList::parse(der).map_err(|problem| TrustError::crl(index, &problem))
}

/// Which of `issuers` signed a revocation list.
pub(crate) fn issuer_of(
    index: usize,
    list: &RevocationList,
    issuers: &[&Certificate],
) -> Result<Certificate, TrustError> {
    let mut problem = X509Error::NoIssuer;
    for issuer in issuers {
        match list.verify_issued_by(issuer) {
            Ok(()) => return Ok((*issuer).clone()),
            Err(X509Error::Issuer { .. }) => {}
            Err(other) => problem = other,
        }
    }
    Err(TrustError::crl(index, &problem))
}
