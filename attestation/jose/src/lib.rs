//! JSON web encryption, signatures and keys, as far as the key-broker protocol needs them.
//!
//! [`jwe`] encrypts a resource to the key that a guest's evidence vouches for, and decrypts it there.
//! [`jws`] signs and checks tokens: ES256 for attestation tokens and sealed secrets, `EdDSA` for
//! administrators. Whatever comes in is hostile: sizes are bounded before anything is decoded, only
//! the algorithms that are named here exist (there is no `none`), and the algorithm is the caller's
//! choice or bound to the key, never the message's.
//!
//! This crate knows no clock, does no I/O and trusts no key that a message brings along. Secrets are
//! wiped when dropped and have no `Debug`.

#![forbid(unsafe_code)]

mod encoding;
mod error;
pub mod jwe;
pub mod jws;
mod pem;
mod signing_key;
mod tee_key;

pub use error::JoseError;
pub use jwe::Jwe;
pub use nacre_protocol::kbs::Jwk;
pub use signing_key::{Ed25519Key, Ed25519Public, Es256Key};
pub use tee_key::TeeKey;
