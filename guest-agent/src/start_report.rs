//! How long each phase of a start took in the guest; the host adds its own phases.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nacre_protocol::start_report::{MOST_PHASES, Measured, Phase};

/// The phases finished so far, oldest first; at most [`MOST_PHASES`], for a pod that creates containers all day
/// must not grow the agent.
#[derive(Debug, Default)]
pub(crate) struct StartReport {
    phases: Mutex<Vec<Measured>>,
}

impl StartReport {
    /// Records a finished phase; `container` is `-` for the pod.
    pub(crate) fn record(&self, container: &str, phase: Phase, took: Duration) {
        let mut phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner);
        if phases.len() < MOST_PHASES {
            phases.push(Measured {
                container: container.to_owned(),
                phase,
                micros: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            });
        }
    }

    /// One line a phase, in the form of [`nacre_protocol::start_report`].
    pub(crate) fn to_text(&self) -> String {
        let phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner);
        phases.iter().map(|phase| format!("{phase}\n")).collect()
    }
}
