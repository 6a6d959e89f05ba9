//! Processes, named so that a later one with the same number is never meant.

use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

/// How long a killed process is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRef {
    /// Its number.
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks since boot.
    started: u64,
}

impl ProcessRef {
    /// The running process of that number.
    #[must_use]
    pub fn of(pid: u32) -> Option<ProcessRef> {
        let (state, started) = stat(pid)?;
        (state != b'Z').then_some(ProcessRef { pid, started })
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_alive(self) -> bool {
        ProcessRef::of(self.pid) == Some(self)
    }

    /// Waits for its end; whether that came in time.
    pub async fn gone_within(self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.is_alive() {
            if Instant::now() > deadline {
                return false;
            }
            sleep(POLL).await;
        }
        true
    }

    /// Kills it and waits for its end. The descriptor makes sure that it is still the one that was meant.
    pub async fn kill(self) -> bool {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return true };
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return !self.is_alive() };
        if self.is_alive() {
            let _ = pidfd_send_signal(&process, Signal::KILL);
        }
        self.gone_within(PATIENCE).await
    }
}

/// State and start time of a process. The name in between may contain anything, `)` included.
fn stat(pid: u32) -> Option<(u8, u64)> {
    let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let started = fields.nth(18)?.parse().ok()?;
    Some((state, started))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::ALONE;

    #[tokio::test]
    async fn a_later_process_with_the_same_number_is_spared() {
        let _alone = ALONE.lock().await;
        let mut bystander = Command::new("sleep").arg("600").spawn().unwrap();
        let stale = ProcessRef { pid: bystander.id(), started: 1 };
        assert!(stale.kill().await);
        assert!(bystander.try_wait().unwrap().is_none());
        bystander.kill().unwrap();
        bystander.wait().unwrap();
    }
}
