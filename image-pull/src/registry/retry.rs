//! When another attempt makes sense, and how long to wait before it.

use std::time::Duration;

use super::endpoint::Endpoint;
use crate::PullError;

/// Attempts in a row that bring nothing.
const ATTEMPTS: u32 = 4;
/// Wait before the second attempt; each next waits twice as long.
const BACK_OFF: Duration = Duration::from_millis(300);
/// Longest wait that a registry can ask for with `Retry-After`.
pub(super) const MAX_RETRY_AFTER: Duration = Duration::from_secs(20);

/// A failed attempt, and whether another one makes sense.
pub(crate) struct Failure {
    pub(crate) error: PullError,
    /// The least wait before the next; none if there is to be none.
    pub(crate) retry: Option<Duration>,
}

impl From<PullError> for Failure {
    fn from(error: PullError) -> Self {
        Self { error, retry: None }
    }
}

/// The attempts that one piece of content may still take. Progress renews them, so that a long download
/// over a bad connection ends; the deadline of the pull bounds all of it.
#[derive(Debug)]
pub(crate) struct Patience {
    attempt: u32,
}

impl Patience {
    pub(crate) fn new() -> Self {
        Self { attempt: 1 }
    }

    /// With a mirror there is none: somebody else has the same.
    pub(crate) fn with(endpoint: &Endpoint) -> Self {
        Self { attempt: if endpoint.is_mirror { ATTEMPTS } else { 1 } }
    }

    /// Something came.
    pub(crate) fn renew(&mut self) {
        self.attempt = 1;
    }

    /// Waits before the next attempt; the failure's error if there is to be none.
    pub(crate) async fn wait(&mut self, failure: Failure) -> Result<(), PullError> {
        let Some(least) = failure.retry.filter(|_| self.attempt < ATTEMPTS) else {
            return Err(failure.error);
        };
        let wait = least.max(with_jitter(BACK_OFF * 2_u32.pow(self.attempt - 1)));
        let attempt = self.attempt;
        tracing::info!(error = %failure.error, attempt, "registry request failed, trying again");
        tokio::time::sleep(wait).await;
        // A stall has taken its time already: one more attempt after it.
        self.attempt += match failure.error {
            PullError::Stalled { .. } => ATTEMPTS - 1,
            _ => 1,
        };
        Ok(())
    }
}

/// Up to half as much again: many pods that start together should not come back together.
fn with_jitter(wait: Duration) -> Duration {
    let mut random = [0; 1];
    // Without random numbers there is no jitter, and nothing else changes.
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::NONBLOCK);
    wait + wait * u32::from(random[0]) / 512
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(retry: Option<Duration>) -> Failure {
        Failure { error: PullError::Abandoned, retry }
    }

    #[test]
    fn jitter_stays_below_half() {
        for _ in 0..100 {
            let wait = with_jitter(Duration::from_secs(10));
            assert!((10.0..15.0).contains(&wait.as_secs_f64()), "{wait:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_end_unless_something_comes() {
        let mut patience = Patience::new();
        assert!(patience.wait(failure(None)).await.is_err(), "not to be tried again");
        for _ in 0..3 {
            for _ in 1..ATTEMPTS {
                patience.wait(failure(Some(Duration::ZERO))).await.unwrap();
            }
            assert!(patience.wait(failure(Some(Duration::ZERO))).await.is_err());
            patience.renew();
        }
    }
}
