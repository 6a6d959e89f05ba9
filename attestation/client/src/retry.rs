//! Trying again: pauses that grow, with chance in them so that many guests do not come back at once, until
//! a deadline.

use std::time::Duration;

use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::time::Instant;

use crate::error::ClientError;

/// The first pause.
const FIRST: Duration = Duration::from_millis(200);
/// The longest.
const LONGEST: Duration = Duration::from_secs(5);

/// How much longer one call may go on.
#[derive(Debug)]
pub(crate) struct Patience {
    begun: Instant,
    end: Instant,
    attempts: u32,
    pause: Duration,
}

impl Patience {
    pub(crate) fn new(deadline: Duration) -> Patience {
        let begun = Instant::now();
        Patience { begun, end: begun + deadline, attempts: 0, pause: FIRST }
    }

    /// Waits before the next attempt, if the failure is one that may pass and there is time.
    pub(crate) async fn after(&mut self, error: ClientError) -> Result<(), ClientError> {
        let (url, last) = match error {
            ClientError::Temporary { url, problem } => (url, problem),
            other => return Err(other),
        };
        self.attempts += 1;
        let pause = jittered(self.pause);
        self.pause = (self.pause * 2).min(LONGEST);
        if Instant::now() + pause >= self.end {
            let waited = self.begun.elapsed();
            return Err(ClientError::Unreachable { url, attempts: self.attempts, waited, last });
        }
        tracing::warn!(attempt = self.attempts, "the key broker: {last}; trying again");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// Between half of it and all.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [0; 1];
    // Without chance the pause is the longest: still a pause.
    let share = SystemRandom::new().fill(&mut byte).map_or(255, |()| u32::from(byte[0]));
    pause / 2 + pause * share / 510
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temporary() -> ClientError {
        ClientError::Temporary { url: "http://b".into(), problem: "no route".into() }
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_at_the_deadline_with_the_last_reason() {
        let mut patience = Patience::new(Duration::from_secs(30));
        let begun = Instant::now();
        let error = loop {
            if let Err(error) = patience.after(temporary()).await {
                break error;
            }
        };
        assert!(
            begun.elapsed() > Duration::from_secs(20) && begun.elapsed() <= Duration::from_secs(30)
        );
        let ClientError::Unreachable { attempts, .. } = &error else { panic!("{error}") };
        assert!((7..30).contains(attempts), "{attempts}");
        assert!(error.to_string().contains("no route"), "{error}");
    }

    #[tokio::test]
    async fn what_does_not_pass_is_told_at_once() {
        let error = ClientError::Evidence("no device".into());
        let mut patience = Patience::new(Duration::from_secs(30));
        assert_eq!(patience.after(error.clone()).await, Err(error));
    }
}
