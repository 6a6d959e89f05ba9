//! Attestation evidence in bytes and in types: AMD SEV-SNP reports and their certificates, Intel TDX
//! quotes, confidential-computing event logs, and the digest that SNP firmware computes of a launch.
//!
//! Whatever is parsed here may come from a hostile host or guest: every length is checked before it is
//! used, every collection has a documented limit, bytes that a specification reserves must be zero.
//! Parsed evidence is well formed and nothing more. This crate verifies no signature, compares nothing
//! with what is expected and decides nothing; that is the relying party's, with `nacre-verifier`.

#![forbid(unsafe_code)]

mod error;
mod evidence;
mod reader;
pub mod snp;
pub mod tdx;

pub use error::EvidenceError;
pub use evidence::{Evidence, FILE_LIMIT, Tee};
