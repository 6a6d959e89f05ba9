//! Exit statuses: PID 1 is the parent of every process whose own parent is gone.
//!
//! A process may end before the agent knows that it is one of a container's: between its birth and
//! the launcher's message. Statuses that nobody claims are therefore kept for as long as a launch is
//! under way, and no longer: a stale one could be taken for that of a later process with the same
//! number.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, WaitOptions, WaitStatus};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// Unclaimed statuses kept while launches are under way.
const MOST_UNCLAIMED: usize = 1024;

/// Resolves to the exit status of one process, as `WaitProcess` reports it.
pub(crate) type Exit = watch::Receiver<Option<i32>>;

/// What has exited, and who waits for what.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    claimed: HashMap<Pid, watch::Sender<Option<i32>>>,
    unclaimed: VecDeque<(Pid, i32)>,
    launches: usize,
}

/// While it lives, statuses are kept for a process that is about to be claimed.
#[derive(Debug)]
pub(crate) struct Launch {
    reaper: Arc<Reaper>,
}

impl Reaper {
    /// Opens the time in which a process is born and claimed.
    pub(crate) fn launch(self: &Arc<Self>) -> Launch {
        self.lock().launches += 1;
        Launch { reaper: Arc::clone(self) }
    }

    /// Reaps on each SIGCHLD. Never returns.
    pub(crate) async fn run(&self, mut child: Signal) {
        loop {
            self.reap();
            if child.recv().await.is_none() {
                return;
            }
        }
    }

    /// SIGCHLD as a stream; must be taken before the first child is born.
    pub(crate) fn signals() -> io::Result<Signal> {
        signal(SignalKind::child())
    }

    fn reap(&self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if let Some(code) = exit_code(status) {
                self.exited(pid, code);
            }
        }
    }

    fn exited(&self, pid: Pid, code: i32) {
        let mut state = self.lock();
        if let Some(waiting) = state.claimed.remove(&pid) {
            waiting.send_replace(Some(code));
        } else if state.launches > 0 {
            if state.unclaimed.len() == MOST_UNCLAIMED {
                state.unclaimed.pop_front();
            }
            state.unclaimed.push_back((pid, code));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Launch {
    /// Makes `pid` a process whose exit is reported, also when it has exited already.
    pub(crate) fn claim(&self, pid: Pid) -> Exit {
        let mut state = self.reaper.lock();
        let early = state.unclaimed.iter().position(|(exited, _)| *exited == pid);
        match early.and_then(|index| state.unclaimed.remove(index)) {
            Some((_, code)) => watch::channel(Some(code)).1,
            None => {
                let (sender, receiver) = watch::channel(None);
                state.claimed.insert(pid, sender);
                receiver
            }
        }
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        let mut state = self.reaper.lock();
        state.launches -= 1;
        if state.launches == 0 {
            state.unclaimed.clear();
        }
    }
}

/// `128 + signal` for a killed process, as shells and containerd have it.
fn exit_code(status: WaitStatus) -> Option<i32> {
    status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pid(number: i32) -> Pid {
        Pid::from_raw(number).unwrap()
    }

    #[test]
    fn a_process_that_exits_before_it_is_claimed_is_not_lost() {
        let reaper = Arc::new(Reaper::default());
        let launch = reaper.launch();
        reaper.exited(pid(7), 3);
        assert_eq!(*launch.claim(pid(7)).borrow(), Some(3));
        assert_eq!(*launch.claim(pid(7)).borrow(), None, "a status is given once");
    }

    #[test]
    fn a_claimed_process_reports_when_it_exits() {
        let reaper = Arc::new(Reaper::default());
        let exit = reaper.launch().claim(pid(7));
        assert_eq!(*exit.borrow(), None);
        reaper.exited(pid(7), 137);
        assert_eq!(*exit.borrow(), Some(137));
    }

    #[test]
    fn a_stale_status_is_not_taken_for_a_later_process() {
        let reaper = Arc::new(Reaper::default());
        drop(reaper.launch());
        reaper.exited(pid(7), 1);
        let first = reaper.launch();
        assert_eq!(*first.claim(pid(7)).borrow(), None);
        reaper.exited(pid(8), 1);
        drop(first);
        assert_eq!(*reaper.launch().claim(pid(8)).borrow(), None);
    }

    #[test]
    fn unclaimed_statuses_are_bounded() {
        let reaper = Arc::new(Reaper::default());
        let _launch = reaper.launch();
        for number in 1..5000 {
            reaper.exited(pid(number), 0);
        }
        assert_eq!(reaper.lock().unclaimed.len(), MOST_UNCLAIMED);
    }
}
