//! Sessions between challenge and resources. Bounded in number and time; a challenge is answered once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nacre_evidence::Tee;
use ring::rand::{SecureRandom, SystemRandom};

use crate::token::Attested;

/// Bytes of an identifier and of a nonce.
const ID: usize = 16;
const NONCE: usize = 32;

type Id = [u8; ID];

/// Why there is no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SessionError {
    /// Too many at once.
    #[error("too many sessions at once; try again later")]
    Full,
    /// Not known, over, or already used.
    #[error(
        "there is no such session: it is over, was used, or never was; begin with a new challenge"
    )]
    Unknown,
    /// Not attested.
    #[error("the session is not attested")]
    NotAttested,
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    Random,
}

/// What a client gets with its challenge.
#[derive(Debug)]
pub(crate) struct Challenged {
    /// Value of the cookie: 32 hexadecimal digits.
    pub(crate) cookie: String,
    /// Base64 of 32 random bytes.
    pub(crate) nonce: String,
}

enum State {
    Challenged {
        nonce: String,
        tee: Tee,
    },
    /// The answer is being appraised, or was refused.
    Spent,
    Attested(Arc<Attested>),
}

struct Session {
    begun: Instant,
    state: State,
}

/// All sessions.
pub(crate) struct Sessions {
    most: usize,
    life: Duration,
    random: SystemRandom,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    sessions: HashMap<Id, Session>,
    /// In the order of their beginning, which is that of their end.
    order: VecDeque<(Instant, Id)>,
}

impl Sessions {
    pub(crate) fn new(most: usize, life: Duration) -> Sessions {
        Sessions { most, life, random: SystemRandom::new(), inner: Mutex::default() }
    }

    /// Begins a session with a challenge.
    pub(crate) fn begin(&self, tee: Tee, now: Instant) -> Result<Challenged, SessionError> {
        let (mut id, mut nonce) = ([0; ID], [0; NONCE]);
        self.random.fill(&mut id).map_err(|_| SessionError::Random)?;
        self.random.fill(&mut nonce).map_err(|_| SessionError::Random)?;
        let nonce = STANDARD.encode(nonce);
        let mut inner = self.lock();
        self.forget_old(&mut inner, now);
        if inner.sessions.len() >= self.most {
            return Err(SessionError::Full);
        }
        let state = State::Challenged { nonce: nonce.clone(), tee };
        inner.sessions.insert(id, Session { begun: now, state });
        inner.order.push_back((now, id));
        Ok(Challenged { cookie: hex::encode(id), nonce })
    }

    /// Takes the challenge of a session: its nonce, and the TEE that was asked for. It cannot be taken
    /// again.
    pub(crate) fn answer(&self, cookie: &str, now: Instant) -> Result<(String, Tee), SessionError> {
        let mut inner = self.lock();
        let session = self.alive(&mut inner, cookie, now)?;
        match std::mem::replace(&mut session.state, State::Spent) {
            State::Challenged { nonce, tee } => Ok((nonce, tee)),
            State::Spent => Err(SessionError::Unknown),
            attested @ State::Attested(_) => {
                session.state = attested;
                Err(SessionError::Unknown)
            }
        }
    }

    /// Notes that the answer was believed.
    pub(crate) fn attested(
        &self,
        cookie: &str,
        attested: Arc<Attested>,
        now: Instant,
    ) -> Result<(), SessionError> {
        let mut inner = self.lock();
        self.alive(&mut inner, cookie, now)?.state = State::Attested(attested);
        Ok(())
    }

    /// What was attested in a session.
    pub(crate) fn get(&self, cookie: &str, now: Instant) -> Result<Arc<Attested>, SessionError> {
        let mut inner = self.lock();
        match &self.alive(&mut inner, cookie, now)?.state {
            State::Attested(attested) => Ok(attested.clone()),
            State::Challenged { .. } | State::Spent => Err(SessionError::NotAttested),
        }
    }

    /// How many there are.
    pub(crate) fn count(&self, now: Instant) -> usize {
        let mut inner = self.lock();
        self.forget_old(&mut inner, now);
        inner.sessions.len()
    }

    fn alive<'a>(
        &self,
        inner: &'a mut Inner,
        cookie: &str,
        now: Instant,
    ) -> Result<&'a mut Session, SessionError> {
        let mut id = [0; ID];
        hex::decode_to_slice(cookie, &mut id).map_err(|_| SessionError::Unknown)?;
        let session = inner.sessions.get_mut(&id).ok_or(SessionError::Unknown)?;
        if now.duration_since(session.begun) >= self.life {
            return Err(SessionError::Unknown);
        }
        Ok(session)
    }

    fn forget_old(&self, inner: &mut Inner, now: Instant) {
        while let Some((begun, id)) = inner.order.front()
            && now.duration_since(*begun) >= self.life
        {
            inner.sessions.remove(id);
            inner.order.pop_front();
        }
    }

    /// What is inside is consistent after each statement.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(300);

    fn attested() -> Arc<Attested> {
        Arc::new(Attested::for_tests())
    }

    #[test]
    fn a_challenge_is_answered_once() {
        let sessions = Sessions::new(10, LIFE);
        let now = Instant::now();
        let one = sessions.begin(Tee::Snp, now).unwrap();
        let two = sessions.begin(Tee::Tdx, now).unwrap();
        assert_ne!((&one.cookie, &one.nonce), (&two.cookie, &two.nonce));
        assert_eq!((one.cookie.len(), STANDARD.decode(&one.nonce).unwrap().len()), (32, 32));
        assert_eq!(sessions.get(&one.cookie, now).err(), Some(SessionError::NotAttested));
        assert_eq!(sessions.answer(&one.cookie, now), Ok((one.nonce.clone(), Tee::Snp)));
        assert_eq!(sessions.answer(&one.cookie, now), Err(SessionError::Unknown));
        assert_eq!(sessions.get(&one.cookie, now).err(), Some(SessionError::NotAttested));
        sessions.attested(&one.cookie, attested(), now).unwrap();
        sessions.get(&one.cookie, now).unwrap();
        assert_eq!(sessions.answer(&one.cookie, now), Err(SessionError::Unknown));
        sessions.get(&one.cookie, now).unwrap();
        assert_eq!(sessions.answer(&two.cookie, now), Ok((two.nonce, Tee::Tdx)));
        for bad in ["", "zz", &"0".repeat(32), &"0".repeat(1000)] {
            assert_eq!(sessions.answer(bad, now), Err(SessionError::Unknown));
        }
    }

    #[test]
    fn sessions_end() {
        let sessions = Sessions::new(10, LIFE);
        let now = Instant::now();
        let one = sessions.begin(Tee::Snp, now).unwrap();
        sessions.answer(&one.cookie, now).unwrap();
        sessions.attested(&one.cookie, attested(), now).unwrap();
        sessions.get(&one.cookie, now + LIFE / 2).unwrap();
        assert_eq!(sessions.get(&one.cookie, now + LIFE).err(), Some(SessionError::Unknown));
        assert_eq!(sessions.count(now), 1);
        assert_eq!(sessions.count(now + LIFE), 0);
    }

    #[test]
    fn a_flood_fills_the_table_and_no_more() {
        let sessions = Sessions::new(1000, LIFE);
        let now = Instant::now();
        for _ in 0..1000 {
            sessions.begin(Tee::Snp, now).unwrap();
        }
        for _ in 0..5000 {
            assert_eq!(sessions.begin(Tee::Snp, now).err(), Some(SessionError::Full));
        }
        assert_eq!(sessions.count(now), 1000);
        sessions.begin(Tee::Snp, now + LIFE).unwrap();
        assert_eq!(sessions.count(now + LIFE), 1);
    }
}
