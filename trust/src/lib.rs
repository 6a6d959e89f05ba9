//! Words of trust: what came from outside, what was proved about it, and by whom.
//!
//! Input from a host, a registry or a network is [`Untrusted`]. It has no `Deref` and leaves only
//! through a check, which returns [`Verified`] with a witness of what was proved: here
//! [`DigestMatch`], the proof that content is exactly what a [`Digest`] names.
//!
//! This crate trusts nobody. It does no I/O, knows no clock and no configuration, has no async and
//! no unsafe code.

#![forbid(unsafe_code)]

mod digest;
mod proof;

pub use digest::{Algorithm, Digest, DigestError, Hasher};
pub use proof::{Attests, DigestMatch, DigestMismatch, Untrusted, Verified};
