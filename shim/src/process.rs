//! One process of a container as containerd sees it: created, running, stopped.

use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use crate::io::{Pumps, Stdio};

/// Names a process: the container's first one, or one that joined it by exec.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ProcessId {
    pub(crate) container: String,
    /// Empty for the container's first process.
    pub(crate) exec: String,
}

impl ProcessId {
    /// The name in the agent API, where a container's first process has the container's name.
    pub(crate) fn agent_exec_id(&self) -> &str {
        if self.exec.is_empty() { &self.container } else { &self.exec }
    }
}

impl std::fmt::Display for ProcessId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.exec.is_empty() {
            write!(f, "container {}", self.container)
        } else {
            write!(f, "process {} of container {}", self.exec, self.container)
        }
    }
}

/// How and when a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// 0 to 255; 128 + n for signal n.
    pub(crate) status: u32,
    pub(crate) at: SystemTime,
}

impl Exit {
    pub(crate) fn now(status: u32) -> Exit {
        Exit { status, at: SystemTime::now() }
    }
}

/// A machine that died takes its processes with it as SIGKILL would.
pub(crate) const KILLED: u32 = 128 + 9;

/// How long a guest may take to end a process after `SIGKILL`, and to say so. A large process that has to give back its
/// memory on a busy node takes some of it.
pub(crate) const KILL_PATIENCE: Duration = Duration::from_secs(30);

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Created,
    Running,
    Paused,
    Stopped(Exit),
}

/// Rows and columns of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TerminalSize {
    pub(crate) rows: u32,
    pub(crate) columns: u32,
}

/// A process and its streams.
pub(crate) struct Process {
    pub(crate) id: ProcessId,
    pub(crate) stdio: Stdio,
    state: watch::Sender<State>,
    condemned: Notify,
    pub(crate) pumps: Pumps,
    /// A size that was set before there was a terminal.
    pub(crate) early_size: Mutex<Option<TerminalSize>>,
}

impl Process {
    pub(crate) fn new(id: ProcessId, stdio: Stdio, pumps: Pumps) -> Process {
        let (state, _) = watch::channel(State::Created);
        Process { id, stdio, state, condemned: Notify::new(), pumps, early_size: Mutex::new(None) }
    }

    pub(crate) fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Moves from one state to another; false if the process was not in it.
    pub(crate) fn advance(&self, from: State, to: State) -> bool {
        self.state.send_if_modified(|state| {
            let matches = *state == from;
            if matches {
                *state = to;
            }
            matches
        })
    }

    /// Records the end. Only the first call counts, and only it returns true.
    pub(crate) fn stop(&self, exit: Exit) -> bool {
        self.state.send_if_modified(|state| {
            let first = !matches!(state, State::Stopped(_));
            if first {
                *state = State::Stopped(exit);
            }
            first
        })
    }

    /// `SIGKILL` was asked for: from now on it is a matter of time.
    pub(crate) fn condemn(&self) {
        self.condemned.notify_one();
    }

    /// Returns when the guest has had its time to end a condemned process. That `SIGKILL` ends a container is a promise of
    /// the host's: containerd forgets a pod only once its processes are known to have ended, so a guest that
    /// refuses, ignores or does not hear it would keep its pod for ever. One task may wait.
    pub(crate) async fn outlived_sigkill(&self) {
        self.condemned.notified().await;
        sleep(KILL_PATIENCE).await;
    }

    /// Waits until the process is in another state.
    pub(crate) async fn left(&self, state: State) {
        // The sender lives in self: it cannot be gone.
        let _ = self.state.subscribe().wait_for(|now| *now != state).await;
    }

    /// Waits for the end; any number may wait, also afterwards.
    pub(crate) async fn exited(&self) -> Exit {
        let mut state = self.state.subscribe();
        loop {
            if let State::Stopped(exit) = *state.borrow_and_update() {
                return exit;
            }
            // The sender lives in self: it cannot be gone.
            if state.changed().await.is_err() {
                return Exit::now(KILLED);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> Process {
        let id = ProcessId { container: "c".into(), exec: String::new() };
        Process::new(id, Stdio::default(), Pumps::default())
    }

    #[tokio::test]
    async fn a_process_ends_once_and_everybody_hears_of_it() {
        let process = std::sync::Arc::new(process());
        let waiter = tokio::spawn({
            let process = process.clone();
            async move { process.exited().await }
        });
        assert!(process.advance(State::Created, State::Running));
        assert!(!process.advance(State::Created, State::Running));
        let exit = Exit::now(3);
        assert!(process.stop(exit));
        assert!(!process.stop(Exit::now(4)));
        assert!(!process.advance(State::Running, State::Paused));
        assert_eq!(waiter.await.unwrap(), exit);
        assert_eq!(process.exited().await, exit);
        assert_eq!(process.state(), State::Stopped(exit));
    }

    #[tokio::test(start_paused = true)]
    async fn a_condemned_process_has_a_bounded_time() {
        let process = process();
        let condemned_at = tokio::time::Instant::now() + Duration::from_secs(3600);
        let condemn = async {
            tokio::time::sleep_until(condemned_at).await;
            process.condemn();
            process.condemn();
        };
        tokio::join!(condemn, process.outlived_sigkill());
        assert_eq!(condemned_at.elapsed(), KILL_PATIENCE);
    }

    #[tokio::test]
    async fn leaving_a_state_is_noticed_also_afterwards() {
        let process = process();
        let (_, advanced) = tokio::join!(process.left(State::Created), async {
            tokio::task::yield_now().await;
            process.advance(State::Created, State::Running)
        });
        assert!(advanced);
        process.left(State::Created).await;
    }

    #[test]
    fn the_first_process_has_the_name_of_its_container_in_the_guest() {
        let mut id = ProcessId { container: "c".into(), exec: String::new() };
        assert_eq!(id.agent_exec_id(), "c");
        id.exec = "e".into();
        assert_eq!(
            (id.agent_exec_id(), id.to_string().as_str()),
            ("e", "process e of container c")
        );
    }
}
