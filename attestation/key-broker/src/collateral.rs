//! Certificates that evidence does not bring along: from a directory, else from a configured mirror.
//! A handshake waits for the mirror for a few seconds at most, one request at a time goes out for one
//! certificate, and a mirror that says "too many requests" is left in peace.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nacre_evidence::Evidence;
use nacre_verifier::{Collateral, CollateralKey, CollateralStore};
use reqwest::{Client, StatusCode};
use tokio::sync::watch;

use crate::config::{self, read_text};
use crate::error::ServeError;

/// Longest time that a handshake waits.
const PATIENCE: Duration = Duration::from_secs(4);
/// Longest time for one request to the mirror.
const REQUEST: Duration = Duration::from_secs(10);
/// Largest answer, in bytes.
const ANSWER_LIMIT: usize = 64 * 1024;
/// How long a certificate that the mirror does not have is not asked for again.
const ABSENT: Duration = Duration::from_secs(600);
/// After a failure.
const FAILED: Duration = Duration::from_secs(30);
/// After "too many requests", doubled each time, up to the most.
const BUSY: Duration = Duration::from_secs(30);
const BUSY_MOST: Duration = Duration::from_secs(1800);
/// Certificates whose absence is remembered.
const REMEMBERED: usize = 4096;

/// Where collateral comes from.
pub(crate) struct Source {
    store: Option<CollateralStore>,
    mirror: Option<Arc<Mirror>>,
}

struct Mirror {
    url: String,
    client: Client,
    store: CollateralStore,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    under_way: HashMap<CollateralKey, watch::Receiver<()>>,
    /// Not to be asked for before.
    not_before: HashMap<CollateralKey, Instant>,
    /// Nothing is to be asked for before.
    busy_until: Option<Instant>,
    busy_for: Duration,
}

impl Source {
    pub(crate) fn new(config: &config::Collateral) -> Result<Source, ServeError> {
        let store = config.cache.as_ref().map(CollateralStore::open).transpose()?;
        let mirror = match (&config.mirror, &store) {
            (None, _) => None,
            (Some(_), None) => return Err(ServeError::MirrorWithoutCache),
            (Some(url), Some(store)) => {
                let ca = config.mirror_ca.as_deref().map(read_text).transpose()?;
                let authorities =
                    ca.as_deref().map(|pem| reqwest::Certificate::from_pem(pem.as_bytes()));
                let authorities = authorities.transpose()?;
                let client = Client::builder()
                    .timeout(REQUEST)
                    .redirect(reqwest::redirect::Policy::none())
                    .tls_certs_only(authorities)
                    .build()?;
                let url = url.trim_end_matches('/').to_owned();
                let state = Mutex::default();
                Some(Arc::new(Mirror { url, client, store: store.clone(), state }))
            }
        };
        Ok(Source { store, mirror })
    }

    /// What there is for `evidence`, after asking for what is missing.
    pub(crate) async fn collateral(&self, evidence: &Evidence) -> Collateral {
        let Some(store) = &self.store else { return Collateral::default() };
        if let Some(mirror) = &self.mirror {
            for key in store.missing(evidence) {
                mirror.ask(key).await;
            }
        }
        store.collateral(evidence)
    }
}

impl Mirror {
    /// Waits until the answer is in the store or there will be none.
    async fn ask(self: &Arc<Mirror>, key: CollateralKey) {
        let Some(mut done) = self.begin(key) else { return };
        // The sender is dropped when the request is over.
        let _ = tokio::time::timeout(PATIENCE, done.changed()).await;
    }

    /// A request for it that is under way, or a new one, if it may be asked for.
    fn begin(self: &Arc<Mirror>, key: CollateralKey) -> Option<watch::Receiver<()>> {
        let now = Instant::now();
        let mut state = self.state();
        if let Some(running) = state.under_way.get(&key) {
            return Some(running.clone());
        }
        if state.busy_until.is_some_and(|until| now < until)
            || state.not_before.get(&key).is_some_and(|until| now < *until)
        {
            return None;
        }
        let (finished, done) = watch::channel(());
        state.under_way.insert(key.clone(), done.clone());
        let mirror = self.clone();
        tokio::spawn(async move {
            let outcome = mirror.fetch(&key).await;
            mirror.note(&key, outcome);
            drop(finished);
        });
        Some(done)
    }

    async fn fetch(&self, key: &CollateralKey) -> Outcome {
        let failed = |error: &dyn std::fmt::Display| {
            tracing::warn!("collateral {key}: {error}");
            Outcome::Failed
        };
        let request = self.client.get(format!("{}{}", self.url, key.path()));
        let mut response = match request.send().await {
            Ok(response) => response,
            Err(error) => return failed(&error),
        };
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Outcome::Absent,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                let after = response.headers().get(reqwest::header::RETRY_AFTER);
                let seconds = after.and_then(|value| value.to_str().ok()?.parse().ok());
                return Outcome::Busy(seconds.map(Duration::from_secs));
            }
            status => return failed(&format!("the mirror answers {status}")),
        }
        let mut bytes = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if bytes.len() + chunk.len() <= ANSWER_LIMIT => bytes.extend(chunk),
                Ok(Some(_)) => return failed(&"the mirror's answer is too large"),
                Ok(None) => break,
                Err(error) => return failed(&error),
            }
        }
        match self.store.put(key, &bytes) {
            Ok(()) => Outcome::Stored,
            Err(error) => failed(&error),
        }
    }

    fn note(&self, key: &CollateralKey, outcome: Outcome) {
        let now = Instant::now();
        let mut state = self.state();
        state.under_way.remove(key);
        if state.not_before.len() >= REMEMBERED {
            state.not_before.retain(|_, until| now < *until);
        }
        let wait = match outcome {
            Outcome::Stored => {
                state.busy_for = Duration::ZERO;
                return;
            }
            Outcome::Absent => ABSENT,
            Outcome::Failed => FAILED,
            Outcome::Busy(asked) => {
                state.busy_for = (state.busy_for * 2).clamp(BUSY, BUSY_MOST);
                let wait = asked.unwrap_or(state.busy_for).min(BUSY_MOST);
                tracing::warn!("the collateral mirror is busy: left in peace for {wait:?}");
                state.busy_until = Some(now + wait);
                return;
            }
        };
        if state.not_before.len() < REMEMBERED {
            state.not_before.insert(key.clone(), now + wait);
        }
    }

    /// What is inside is consistent after each statement.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Copy)]
enum Outcome {
    Stored,
    Absent,
    Failed,
    Busy(Option<Duration>),
}
