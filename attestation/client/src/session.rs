//! Sessions: a token, the key that it vouches for, and how long both are good.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nacre_jose::TeeKey;
use nacre_protocol::kbs::InitData;
use tokio::sync::Mutex;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::error::ClientError;
use crate::http::Http;
use crate::retry::Patience;
use crate::{EvidenceSource, handshake};

/// While a session that is still good could not be renewed, it is not tried again for so long.
const RENEWAL_PAUSE: Duration = Duration::from_secs(10);

/// What one conversation led to. Wiped when dropped.
pub(crate) struct Session {
    pub(crate) token: Zeroizing<String>,
    pub(crate) key: TeeKey,
    /// Value of the broker's cookie.
    pub(crate) cookie: Option<String>,
    /// When its token came.
    pub(crate) begun: Instant,
    /// How long its token is good.
    pub(crate) life: Duration,
    /// When it was made, by the broker's clock: seconds since 1970, if the token says it.
    pub(crate) issued: Option<i64>,
}

impl Session {
    /// Whether the token is good for now.
    fn is_good(&self) -> bool {
        self.begun.elapsed() < self.life
    }

    /// Whether most of its life is over: time to get another while this one is good.
    fn is_ageing(&self) -> bool {
        self.begun.elapsed() >= self.life * 4 / 5
    }
}

/// An attestation token with the private key that it vouches for. Whoever has both can get from the
/// broker what this guest can.
pub struct Token(Arc<Session>);

impl Token {
    pub(crate) fn of(session: Arc<Session>) -> Token {
        Token(session)
    }

    /// The token.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.0.token
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &TeeKey {
        &self.0.key
    }
}

/// The current session, made when it is needed, by one caller for all.
pub(crate) struct Sessions {
    evidence: Arc<dyn EvidenceSource>,
    init_data: Option<InitData>,
    told_time: Option<fn(i64)>,
    state: Mutex<State>,
    /// Attempts that have failed.
    failed: AtomicU64,
}

#[derive(Default)]
struct State {
    session: Option<Arc<Session>>,
    last_failure: Option<(Instant, ClientError)>,
}

impl Sessions {
    pub(crate) fn new(
        evidence: Arc<dyn EvidenceSource>,
        init_data: Option<InitData>,
        told_time: Option<fn(i64)>,
    ) -> Self {
        Self { evidence, init_data, told_time, state: Mutex::default(), failed: AtomicU64::new(0) }
    }

    /// A session that is good, and not about to end unless the broker cannot be reached.
    pub(crate) async fn current(
        &self,
        http: &Http,
        patience: &mut Patience,
    ) -> Result<Arc<Session>, ClientError> {
        loop {
            let error = match self.attempt(http).await {
                Ok(session) => return Ok(session),
                Err(error) => error,
            };
            patience.after(error).await?;
        }
    }

    /// Makes the next caller attest anew, unless that has happened.
    pub(crate) async fn forget(&self, session: &Arc<Session>) {
        let mut state = self.state.lock().await;
        if state.session.as_ref().is_some_and(|current| Arc::ptr_eq(current, session)) {
            state.session = None;
        }
    }

    async fn attempt(&self, http: &Http) -> Result<Arc<Session>, ClientError> {
        let failed = self.failed.load(Ordering::Relaxed);
        let mut state = self.state.lock().await;
        let good = state.session.clone().filter(|session| session.is_good());
        if let Some(session) = &good {
            let tried = |(at, _): &(Instant, ClientError)| at.elapsed() < RENEWAL_PAUSE;
            if !session.is_ageing() || state.last_failure.as_ref().is_some_and(tried) {
                return Ok(Arc::clone(session));
            }
        }
        if let Some((_, error)) = &state.last_failure
            && self.failed.load(Ordering::Relaxed) > failed
        {
            // Somebody else's attempt failed while this caller waited: no use in another at once.
            return Err(error.clone());
        }
        let made = handshake::attest(http, self.evidence.as_ref(), self.init_data.as_ref()).await;
        match (made, good) {
            (Ok(session), _) => {
                tracing::info!(life_s = session.life.as_secs(), "attested to the key broker");
                if let (Some(tell), Some(time)) = (self.told_time, session.issued) {
                    tell(time);
                }
                let session = Arc::new(session);
                *state = State { session: Some(Arc::clone(&session)), last_failure: None };
                Ok(session)
            }
            (Err(error @ ClientError::Temporary { .. }), Some(session)) => {
                tracing::warn!("the session with the key broker could not be renewed yet: {error}");
                state.last_failure = Some((Instant::now(), error));
                Ok(session)
            }
            (Err(error), _) => {
                state.last_failure = Some((Instant::now(), error.clone()));
                self.failed.fetch_add(1, Ordering::Relaxed);
                Err(error)
            }
        }
    }
}
