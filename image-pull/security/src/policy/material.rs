//! Keys and trust roots that a policy names.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::Sources;

/// Where the bytes of a key, keyring or trust root are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Material {
    /// In the policy.
    Inline(Vec<u8>),
    /// With the key broker, under this `kbs:///repository/type/tag`.
    Broker(String),
}

impl Material {
    /// A path of a `policy.json`. A guest has no files that its owner put there.
    pub(crate) fn path(path: &str) -> Result<Self, String> {
        if path.starts_with("kbs://") {
            return broker(path).map(Self::Broker);
        }
        Err(format!(
            "the file {path:?} is not in the guest; name a kbs:///repository/type/tag, or give the \
             content in the policy (keyData)"
        ))
    }

    /// Base64 of a `policy.json`.
    pub(crate) fn base64(text: &str) -> Result<Self, String> {
        STANDARD.decode(text).map(Self::Inline).map_err(|_| "key data is not base64".to_owned())
    }

    /// A `kbs:///` URI, or the content itself.
    pub(crate) fn text(text: &str) -> Result<Self, String> {
        if text.starts_with("kbs:") || text.starts_with('/') || text.starts_with("file:") {
            return Self::path(text);
        }
        Ok(Self::Inline(text.as_bytes().to_vec()))
    }

    /// The content, if the policy has it.
    pub(crate) fn inline(&self) -> Option<&[u8]> {
        match self {
            Self::Inline(bytes) => Some(bytes),
            Self::Broker(_) => None,
        }
    }

    /// The content. The error says where it should have come from.
    pub(crate) async fn fetch(&self, sources: &dyn Sources) -> Result<Zeroizing<Vec<u8>>, String> {
        match self {
            Self::Inline(bytes) => Ok(Zeroizing::new(bytes.clone())),
            Self::Broker(uri) => {
                sources.resource(uri).await.map_err(|problem| format!("{uri}: {problem}"))
            }
        }
    }
}

impl fmt::Display for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inline(_) => f.write_str("the policy"),
            Self::Broker(uri) => f.write_str(uri),
        }
    }
}

fn broker(uri: &str) -> Result<String, String> {
    let part = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    let parts: Vec<&str> = uri.strip_prefix("kbs:///").unwrap_or_default().split('/').collect();
    if uri.len() <= 512 && parts.len() == 3 && parts.into_iter().all(part) {
        return Ok(uri.to_owned());
    }
    Err(format!("{uri:?} is not of the form kbs:///repository/type/tag"))
}
