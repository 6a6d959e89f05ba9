use std::path::PathBuf;

use nacre_jose::JoseError;
use nacre_verifier::TrustError;

use crate::audit::AuditError;
use crate::config::ConfigError;
use crate::policy::PolicyError;
use crate::store::StoreError;

/// Why the broker does not start, or ends.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Its configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is in the store cannot be used.
    #[error("the store's {what} cannot be used: {problem}")]
    Stored {
        /// Which part.
        what: String,
        /// Why.
        problem: String,
    },
    /// The resource policy in the store.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// Its audit log.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// A key.
    #[error("{path}: {error}", path = .path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: JoseError,
    },
    /// Its own token key.
    #[error("the key that signs tokens: {0}")]
    TokenKey(#[from] JoseError),
    /// Its roots.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The directory of collateral.
    #[error(transparent)]
    Collateral(#[from] nacre_verifier::StoreError),
    /// Nowhere to keep what the mirror gives.
    #[error("collateral.mirror is set, but collateral.cache is not: give it a directory")]
    MirrorWithoutCache,
    /// The client for the mirror.
    #[error("the client for the collateral mirror: {0}")]
    Mirror(#[from] reqwest::Error),
    /// TLS.
    #[error("TLS: {what}: {problem}")]
    Tls {
        /// Which file.
        what: String,
        /// Why.
        problem: String,
    },
    /// The address or the runtime.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        error: std::io::Error,
    },
}
