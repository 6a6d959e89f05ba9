/// Why something could not be encrypted, decrypted, signed or believed. No variant holds any part of a
/// secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoseError {
    /// More bytes than this crate handles.
    #[error("{what} has more than {limit} bytes")]
    TooLarge {
        /// What has.
        what: &'static str,
        /// In bytes.
        limit: usize,
    },
    /// Something is not as its format has it.
    #[error("{0} is malformed")]
    Malformed(&'static str),
    /// An algorithm, curve or extension that is not used here.
    #[error("{what} is not supported; {supported}")]
    Unsupported {
        /// What is not.
        what: &'static str,
        /// What is.
        supported: &'static str,
    },
    /// The key is of another kind or curve than the message.
    #[error("the message is for another kind of key")]
    OtherKey,
    /// The key is no valid key of its kind.
    #[error("the key is not valid: {0}")]
    Key(&'static str),
    /// The message was encrypted to another key, or was changed.
    #[error("the message cannot be decrypted: it is for another key or was changed on the way")]
    Decryption,
    /// The signature is wrong.
    #[error("the signature is not of this key, or the message was changed")]
    Signature,
    /// The system gave no random bytes, or a computation that cannot fail did.
    #[error("the cryptographic library failed")]
    Library,
}
