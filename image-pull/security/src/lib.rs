//! Decides whether an image may run.
//!
//! Runs in the guest, between resolving a reference and fetching its first layer.
//! [`ImagePolicy::admit`] is the only maker of [`Admitted`], the proof that fetching layers demands.
//!
//! Distrusted: the registry and everything it answers (manifests, signatures, bundles, certificates),
//! signature stores, mirrors and caches. Trusted: the policy (it is measured, or comes from the key
//! broker after attestation) and the keys and trust roots it names.
//!
//! What it understands: policies of containers (`policy.json`) and a form of its own, both at
//! [`ImagePolicy`]; cosign's signatures by key, under their tag or as sigstore bundles
//! that refer to the image; keyless signatures by a given trust root, without a network; simple signing
//! with OpenPGP from a signature store. Not notation: its signatures are JWS or COSE with chains of
//! certificates that have to be valid now or be revoked in time, which needs a clock that the host cannot
//! set and revocation lists from the network; no crate for it is to be had that is kept up.
//!
//! Never: a signature counts for another digest than those the reference resolved to, a payload is
//! interpreted before its signature was verified, network access other than by [`Sources`], or a
//! policy that is present and says nothing about an image admits it.

#![forbid(unsafe_code)]

mod bundle;
mod certificate;
mod cosign;
mod decision;
mod envelope;
mod glob;
mod identity;
mod json;
mod key;
mod miss;
mod openpgp;
mod policy;
mod printable;
mod reference;
mod sct;
mod search;
pub mod sign;
mod sources;
mod subject;
mod time;
mod timestamp;
mod transparency;
mod trust_root;
mod verifier;

pub use policy::{ImagePolicy, PolicyError};
pub use sources::Sources;
pub use subject::{Admitted, Refused, Subject};
