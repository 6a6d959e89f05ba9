//! Appraises attestation evidence for a relying party: is it signed by real hardware, does it speak
//! of the expected guest, is it fresh?
//!
//! Evidence and the certificates beside it come from a guest that is not trusted yet, by way of a host
//! that never is. Collateral (certificates from a cache or mirror, Intel's TCB data) is trusted no more:
//! everything must chain to a root that [`Trust`] names: the vendors' own, which are built in, or one
//! that the operator adds under a `danger_` key, which every [`Appraisal`] then says.
//!
//! Time, roots and collateral are passed in. This crate never uses the network, reads no clock and
//! knows no default that accepts. [`Verifier::appraise`] does not fail and does not stop: each check is
//! listed with its verdict, and one that could not be made is a failure.

#![forbid(unsafe_code)]

mod appraisal;
mod checks;
mod collateral;
mod references;
mod snp;
mod store;
mod tdx;
mod trust;
mod verifier;
mod x509;

pub use appraisal::{Appraisal, Claims, Root, SnpClaims, TdxClaims, TdxPlatform};
pub use checks::{Check, CheckCode, Verdict};
pub use collateral::{Collateral, CollateralKey};
pub use nacre_evidence::{Evidence, EvidenceError, Tee};
pub use references::{
    Allowed, DOCUMENT_LIMIT, Hex, ID_LIMIT, LIST_LIMIT, NOTE_LIMIT, ReferenceError, ReferenceSet,
    ReferenceValues, SnpPolicy, SnpReferences, TcbMinimum, TdxReferences, Values,
};
pub use store::{CollateralStore, StoreError};
pub use tdx::{TDX_COLLATERAL_LIMIT, TdxCollateral, TdxCollateralError};
pub use trust::{ExtraRoot, ExtraTdxRoot, Trust, TrustError};
pub use verifier::{Expected, Verifier};
