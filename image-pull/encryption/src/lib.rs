//! Encrypted layers of container images, as `ocicrypt` and the tools that use it (skopeo, buildah, nerdctl)
//! write them: the key of a layer is wrapped for its recipients in the annotations of the layer's
//! descriptor, and the layer's blob is AES-256-CTR with an HMAC-SHA256 over the ciphertext.
//!
//! [`EncryptedLayer`] reads the annotations, a [`KeyRing`] holds what the key broker gave to the guest,
//! [`LayerCipher`] decrypts in one pass, and [`Authentic`] is the proof that the whole ciphertext is what the
//! holder of the key made. What was decrypted before that proof exists is hostile: counter mode can be
//! changed bit by bit. The other way, [`LayerEncryptor`] encrypts a stream and [`Sealed::annotations`]
//! wraps its key.
//!
//! Two forms of wrapping are read and written:
//! - the key-provider form of Confidential Containers, with a symmetric key that the broker keeps;
//! - JSON web encryption to an EC key (P-256, P-384, P-521) or an RSA key.
//!
//! PKCS#7, PKCS#11 and PGP are refused by name.
//!
//! The registry that serves an image chooses every ciphertext that is unwrapped here, and sees, through the
//! network, how long a guest takes before it asks for the next thing. AES-GCM (by ring) and the curves are
//! constant in time. RSA decryption is not (RUSTSEC-2023-0071): it is blinded, its failures look like a wrong
//! content key (RFC 7516, section 11.5), and a guest pulls rarely, but a registry that can restart pods at will could in principle measure
//! it. Prefer the key-provider form or EC keys; RSA is read because it is what many images carry, and only if
//! somebody gave the guest an RSA key for images.
//!
//! This crate distrusts the registry and whatever wrote the annotations: their sizes, the number of
//! recipients and all algorithms are bounded before anything is computed. It does no I/O beyond the writer
//! that it is given, asks for no keys, and never shows one: secrets have no `Debug` and are wiped when dropped,
//! except in the contexts of ring (HMAC, AES-GCM), which it does not wipe.

#![forbid(unsafe_code)]

mod annotations;
mod cipher;
mod encoding;
mod encryptor;
mod error;
mod jwe;
mod key_ring;
mod keys;
mod options;
mod provider;

pub use annotations::{EncryptedLayer, MEDIA_TYPE_SUFFIX, is_encrypted};
pub use cipher::{Authentic, LayerCipher};
pub use encryptor::{LayerEncryptor, Recipient, Sealed, new_provider_key};
pub use error::EncryptionError;
pub use key_ring::KeyRing;
pub use keys::PublicKey;
pub use provider::PROVIDER_KEY_LENGTH;

/// Largest annotation with wrapped keys, in bytes.
pub const ANNOTATION_LIMIT: usize = 64 * 1024;
/// Most recipients of one layer, over all annotations.
pub const RECIPIENT_LIMIT: usize = 16;
/// Most keys of one kind in a [`KeyRing`].
pub const KEY_LIMIT: usize = 16;
