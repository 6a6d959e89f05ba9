//! The broker's state, and what it decides.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use nacre_jose::{Ed25519Public, Es256Key};
use nacre_protocol::kbs::ResourceUri;
use nacre_verifier::{ExtraRoot, ReferenceSet, ReferenceValues, Trust, Verifier};
use serde_json::Value;
use time::OffsetDateTime;
use tokio::sync::Semaphore;

use crate::audit::{AuditLog, Head};
use crate::collateral::Source;
use crate::config::{Config, read_file, read_text};
use crate::error::ServeError;
use crate::grants::Grant;
use crate::http::BODY_UNITS;
use crate::limiter::Limiter;
use crate::metrics::Metrics;
use crate::policy::ResourcePolicy;
use crate::references::{self, TrusteeValues};
use crate::sealing::StoreKey;
use crate::session::Sessions;
use crate::store::{Store, StoreError, Table};
use crate::token::{Attested, Tokens};

/// Names in the store.
pub(crate) const RESOURCE_POLICY: &str = "resource";
const TOKEN_KEY: &str = "token-es256";
const AUDIT_HEAD: &str = "audit-head";
/// Trustee's values as they were registered; no document has a space in its identifier.
const TRUSTEE_VALUES: &str = "trustee values";

/// Everything that a request needs.
pub(crate) struct Broker {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) audit: AuditLog,
    pub(crate) sessions: Sessions,
    pub(crate) limiter: Limiter,
    pub(crate) tokens: Tokens,
    pub(crate) verifier: Verifier,
    pub(crate) collateral: Source,
    pub(crate) administrators: Vec<Ed25519Public>,
    pub(crate) metrics: Metrics,
    /// Memory for the bodies of requests, in pieces.
    pub(crate) bodies: Arc<Semaphore>,
    registered: RwLock<Arc<Registered>>,
    /// Held while something registered changes: store first, then memory.
    changing: Mutex<()>,
}

/// What administrators registered, as the store has it.
pub(crate) struct Registered {
    pub(crate) references: ReferenceSet,
    pub(crate) trustee: TrusteeValues,
    pub(crate) policy: Option<ResourcePolicy>,
    pub(crate) grants: Vec<Grant>,
    /// For policies.
    grants_value: Value,
}

/// Why a resource is not released.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Denial {
    /// No grant covers it.
    NoGrant {
        /// What the hardware reports.
        field: Vec<u8>,
    },
    /// The resource policy says no.
    Policy,
    /// The resource policy fails.
    PolicyFailed(String),
}

impl Broker {
    /// Opens everything that the configuration names.
    pub(crate) fn open(config: Config) -> Result<Broker, ServeError> {
        let store = Store::open(&config.store.directory, StoreKey::read(&config.store.key_file)?)?;
        let token_key = token_key(&store)?;
        let registered = Registered::load(&store)?;
        let administrators = config
            .admin_public_keys
            .iter()
            .map(|path| public_key(path))
            .collect::<Result<_, _>>()?;
        let verifier = Verifier::new(&trust(&config)?)?;
        let collateral = Source::new(&config.collateral)?;
        let known = if config.audit.danger_begin_anew { None } else { audit_head(&store)? };
        let audit =
            AuditLog::open(&config.audit.directory, config.audit.rotate_bytes, known.as_ref())?;
        let limits = &config.limits;
        Ok(Broker {
            sessions: Sessions::new(limits.sessions, config.session_life()),
            limiter: Limiter::new(limits.client_requests_per_second, limits.client_burst),
            tokens: Tokens::new(token_key, &config.token.issuer, config.token.lifetime_seconds),
            metrics: Metrics::new(),
            bodies: Arc::new(Semaphore::new(BODY_UNITS)),
            registered: RwLock::new(Arc::new(registered)),
            changing: Mutex::new(()),
            config,
            store,
            audit,
            verifier,
            collateral,
            administrators,
        })
    }

    /// What is registered now.
    pub(crate) fn registered(&self) -> Arc<Registered> {
        self.registered.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what is registered: on return the change is on disk and in force. Waits for the disk.
    pub(crate) fn change<T>(
        &self,
        change: impl FnOnce(&Store, &Registered) -> Result<T, StoreError>,
    ) -> Result<T, ServeError> {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&self.store, &self.registered())?;
        let registered = Arc::new(Registered::load(&self.store)?);
        *self.registered.write().unwrap_or_else(PoisonError::into_inner) = registered;
        Ok(changed)
    }

    /// Notes in the store how far the audit log goes, so that a log that was cut is noticed at the next
    /// start. Waits for the disk.
    pub(crate) fn note_audit_head(&self) -> Result<(), StoreError> {
        let head = serde_json::to_vec(&self.audit.head()).unwrap_or_default();
        self.store.put(Table::Own, AUDIT_HEAD, &head)
    }

    /// Whether a guest that was attested, with an affirming appraisal, may have a resource.
    pub(crate) fn decide(
        &self,
        attested: &Attested,
        resource: &ResourceUri,
        now: OffsetDateTime,
    ) -> Result<(), Denial> {
        let registered = self.registered();
        match &registered.policy {
            Some(policy) => {
                match policy.allows(&attested.claims, resource, &registered.grants_value) {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(Denial::Policy),
                    Err(error) => Err(Denial::PolicyFailed(error.to_string())),
                }
            }
            None => {
                let parts = [resource.repository(), resource.kind(), resource.tag()];
                let mut grants = registered.grants.iter();
                if grants.any(|grant| grant.covers(&attested.init_data, parts, now)) {
                    return Ok(());
                }
                Err(Denial::NoGrant { field: attested.init_data.clone() })
            }
        }
    }
}

impl Registered {
    fn load(store: &Store) -> Result<Registered, ServeError> {
        let unusable = |what: &str, problem: &dyn std::fmt::Display| ServeError::Stored {
            what: what.to_owned(),
            problem: problem.to_string(),
        };
        let mut documents = Vec::new();
        let mut trustee = TrusteeValues::new();
        for (id, stored) in store.all(Table::References)? {
            if id == TRUSTEE_VALUES {
                trustee = serde_json::from_slice(&stored.value)
                    .map_err(|error| unusable(TRUSTEE_VALUES, &error))?;
            } else {
                let document = ReferenceValues::parse(&stored.value);
                documents.push(document.map_err(|error| unusable(&id, &error))?);
            }
        }
        documents.extend(references::documents(&trustee));
        let mut grants = Vec::new();
        for (id, stored) in store.all(Table::Grants)? {
            let grant: Grant =
                serde_json::from_slice(&stored.value).map_err(|error| unusable(&id, &error))?;
            grants.push(grant);
        }
        let policy = store.get(Table::Policies, RESOURCE_POLICY)?;
        let policy = policy.map(|stored| {
            let text = std::str::from_utf8(&stored.value);
            let text = text.map_err(|error| unusable("resource policy", &error))?;
            ResourcePolicy::compile(text).map_err(ServeError::from)
        });
        Ok(Registered {
            references: ReferenceSet::new(documents),
            trustee,
            policy: policy.transpose()?,
            grants_value: serde_json::to_value(&grants)
                .map_err(|error| unusable("grants", &error))?,
            grants,
        })
    }
}

/// Adds to Trustee's values; a name's new values replace its old ones.
pub(crate) fn put_trustee_values(
    store: &Store,
    mut present: TrusteeValues,
    new: TrusteeValues,
) -> Result<(), StoreError> {
    present.extend(new);
    let text = serde_json::to_vec(&present).unwrap_or_default();
    store.put(Table::References, TRUSTEE_VALUES, &text)
}

/// Forgets Trustee's values.
pub(crate) fn delete_trustee_values(store: &Store) -> Result<bool, StoreError> {
    store.delete(Table::References, TRUSTEE_VALUES)
}

/// The key that signs tokens is made once and kept in the store.
fn token_key(store: &Store) -> Result<Es256Key, ServeError> {
    if let Some(stored) = store.get(Table::Own, TOKEN_KEY)? {
        return Ok(Es256Key::from_pkcs8(&stored.value)?);
    }
    let key = Es256Key::generate()?;
    store.put(Table::Own, TOKEN_KEY, &key.to_pkcs8())?;
    Ok(key)
}

/// How far the audit log went when the store last heard of it.
fn audit_head(store: &Store) -> Result<Option<Head>, ServeError> {
    let Some(stored) = store.get(Table::Own, AUDIT_HEAD)? else { return Ok(None) };
    let head = serde_json::from_slice(&stored.value).map_err(|error| ServeError::Stored {
        what: AUDIT_HEAD.to_owned(),
        problem: error.to_string(),
    })?;
    Ok(Some(head))
}

fn public_key(path: &Path) -> Result<Ed25519Public, ServeError> {
    let key = Ed25519Public::from_pem(&read_text(path)?);
    key.map_err(|error| ServeError::Key { path: path.to_owned(), error })
}

fn trust(config: &Config) -> Result<Trust, ServeError> {
    let roots = config.danger_extra_snp_roots.iter().map(|root| {
        Ok(ExtraRoot {
            name: root.name.clone(),
            ark_der: read_file(&root.ark)?,
            ask_der: read_file(&root.ask)?,
        })
    });
    let crls = config.collateral.snp_crls.iter().map(|path| read_file(path));
    Ok(Trust {
        danger_extra_snp_roots: roots.collect::<Result<_, ServeError>>()?,
        snp_crls: crls.collect::<Result<_, _>>()?,
        snp_crl_required: config.collateral.snp_crl_required,
        ..Trust::default()
    })
}
