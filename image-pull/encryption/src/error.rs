/// Why a layer is not encrypted or decrypted. No variant holds any part of a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncryptionError {
    /// More bytes than this crate handles.
    #[error("{what} has more than {limit} bytes")]
    TooLarge {
        /// What has.
        what: &'static str,
        /// In bytes.
        limit: usize,
    },
    /// More of something than this crate handles.
    #[error("there are more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// Something is not as its format has it.
    #[error("{0} is malformed")]
    Malformed(&'static str),
    /// An algorithm or version that is not used here.
    #[error("{what} \"{found}\" is not supported; {supported}")]
    Unsupported {
        /// What is not.
        what: &'static str,
        /// Its name, shortened.
        found: String,
        /// What is.
        supported: &'static str,
    },
    /// The annotations name no recipient.
    #[error(
        "the layer says that it is encrypted but carries no wrapped key (annotations \
         org.opencontainers.image.enc.keys.*)"
    )]
    NoRecipients,
    /// All recipients are of kinds that are not read.
    #[error(
        "the layer is encrypted for {0} only; encrypt it for a key of the key broker (nacre image encrypt) \
         or a jwe: recipient"
    )]
    Scheme(String),
    /// None of the keys opens the layer.
    #[error(
        "no key opens the layer; it is encrypted for {recipients}, and there {}", attempts(*.tried)
    )]
    NoKey {
        /// Whom it is encrypted for.
        recipients: String,
        /// How many wrapped keys were tried in vain.
        tried: usize,
    },
    /// The key was found, but the ciphertext is not what its owner made.
    #[error("the encrypted layer was changed: its HMAC is wrong")]
    Changed,
    /// A key is no key of its kind.
    #[error("the key is not valid: {0}")]
    Key(&'static str),
    /// The system gave no random bytes, or a computation that cannot fail did.
    #[error("the cryptographic library failed")]
    Library,
}

fn attempts(tried: usize) -> String {
    match tried {
        0 => "is no key for any of them".to_owned(),
        1 => "is one key that does not open it".to_owned(),
        many => format!("were {many} attempts with keys that do not open it"),
    }
}

impl EncryptionError {
    /// `found` comes from outside: it is made printable and short.
    pub(crate) fn unsupported(
        what: &'static str,
        found: &str,
        supported: &'static str,
    ) -> EncryptionError {
        EncryptionError::Unsupported { what, found: printable(found), supported }
    }
}

/// At most 64 characters, none of them invisible.
pub(crate) fn printable(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    text.chars().take(64).map(plain).collect()
}
