//! OpenPGP (RFC 9580, and RFC 4880 whose messages GnuPG still writes), as far as simple signing needs
//! it: a message with one signature, and the public keys that may have made it.
//!
//! Version 4 keys and signatures; RSA, ECDSA (P-256, P-384) and Ed25519; SHA-2. Own reader: the crates
//! for this bring dozens of others (among them ciphers and hash functions that nobody should use) into
//! the guest, for one operation. Refused are SHA-1, DSA, version 3, text signatures, several
//! signatures in one message, bzip2.
//!
//! Expiry is judged by the guest's clock. A host that sets the clock back revives expired keys and
//! signatures; revocations, which have no time, it cannot undo.

mod keyring;
mod message;
mod packet;
mod public_key;
mod signature;

pub(crate) use keyring::{Keyring, Unsigned};
pub(crate) use message::SignedMessage;
