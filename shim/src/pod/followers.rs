//! What goes on beside containerd's requests: each task follows one thing to its end and tells.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nacre_protocol::agent as api;
use nacre_run_directory::RUN_ROOT;
use nacre_run_directory::history::History;
use tokio::time::{sleep, timeout};

use super::{Pod, Slot};
use crate::container::Container;
use crate::process::{Exit, KILL_PATIENCE, KILLED, Process, State};
use crate::sandbox::Sandbox;

/// Least time between two events of memory that ran out.
const MEMORY_EVENT_PAUSE: Duration = Duration::from_millis(100);

/// Time between two looks at what a container has written, as often as containerd asks.
const USAGE_PAUSE: Duration = Duration::from_secs(10);

/// How long a pod that was made is kept for somebody to start it.
const UNSTARTED: Duration = Duration::from_secs(30);

impl Pod {
    /// Follows a process to its end, and its output with it, and tells containerd.
    pub(super) async fn supervise(
        self: Arc<Self>,
        container: Arc<Container>,
        process: Arc<Process>,
    ) {
        let sandbox = &container.sandbox;
        let status = tokio::select! {
            ended = sandbox.agent.wait_process(&process.id) => ended.unwrap_or_else(|error| {
                tracing::error!("{} counts as killed: {error}", process.id);
                KILLED
            }),
            () = process.outlived_sigkill() => {
                tracing::error!(
                    "the guest of sandbox {} does not answer that {} has ended, {} s after SIGKILL: its machine is ended",
                    sandbox.id,
                    process.id,
                    KILL_PATIENCE.as_secs()
                );
                sandbox.end_machine().await;
                KILLED
            }
        };
        let exit = Exit::now(status);
        process.pumps.drained().await;
        if Arc::ptr_eq(&process, &container.init) && sandbox.end().is_none() {
            // The kubelet reads it as soon as it hears of the end.
            container.keep_last_words().await;
        }
        if process.stop(exit) {
            self.announce_exit(sandbox, &process).await;
        }
    }

    /// Keeps what is known of a container's writable layer up to date: containerd asks its snapshotter for it,
    /// which can ask no guest.
    pub(super) async fn follow_usage(self: Arc<Self>, container: Arc<Container>) {
        let init = &container.init;
        loop {
            if let Err(error) = self.stats(&init.id.container).await {
                tracing::debug!("what {} has written is not known: {error}", init.id);
            }
            if matches!(init.state(), State::Stopped(_)) {
                return;
            }
            tokio::select! {
                _ = init.exited() => {}
                () = sleep(USAGE_PAUSE) => {}
            }
        }
    }

    pub(super) async fn announce_exit(&self, sandbox: &Sandbox, process: &Process) {
        if let State::Stopped(exit) = process.state() {
            tracing::info!("{} ended with status {}", process.id, exit.status);
            self.events.exited(&process.id, exit, sandbox.pid()).await;
        }
    }

    /// When the machine ends, so do the processes that never started; the others are followed by
    /// their supervisors.
    pub(super) async fn bury_the_dead(self: Arc<Self>, sandbox: Arc<Sandbox>) {
        let reason = sandbox.ended().await;
        let left: Vec<_> = self.containers().values().filter_map(Slot::container).collect();
        if !left.is_empty() {
            tracing::error!(
                "the machine of sandbox {} ended under its containers: {reason}",
                sandbox.id
            );
        }
        for container in left {
            let init = &container.init;
            if init.state() == State::Created && init.stop(Exit::now(KILLED)) {
                self.announce_exit(&sandbox, init).await;
            }
        }
    }

    /// Ends a pod that was made, all of it, and that nobody starts. containerd starts it right after it was made;
    /// one that died in between has forgotten it when it is back, and nobody would ever ask for it again.
    pub(super) async fn give_up_if_unstarted(self: Arc<Self>, container: Arc<Container>) {
        if is_forgotten(&container.init).await {
            tracing::error!(
                "nobody has started the sandbox {} for {} s: containerd has forgotten it; it ends",
                container.sandbox.id,
                UNSTARTED.as_secs()
            );
            self.shutdown(true).await;
        }
    }

    pub(super) async fn report_memory_exhaustion(self: Arc<Self>, sandbox: Arc<Sandbox>) {
        loop {
            match sandbox.agent.get_oom_event(api::GetOOMEventRequest::new()).await {
                Ok(event) => {
                    // The guest names a container; only one that exists is passed on.
                    if self.container(&event.container_id).is_ok() {
                        self.events.out_of_memory(&event.container_id).await;
                    }
                    // A guest that tells of such an event without end keeps neither containerd nor this host busy.
                    sleep(MEMORY_EVENT_PAUSE).await;
                }
                Err(error) => {
                    tracing::debug!("no more memory events: {error}");
                    return;
                }
            }
        }
    }
}

/// Whether nobody starts (nor ends) a process for [`UNSTARTED`] from now.
async fn is_forgotten(process: &Process) -> bool {
    timeout(UNSTARTED, process.left(State::Created)).await.is_err()
}

/// Adds the guest's own measurements to the report of the pod's start (none) or a container's, and tells it.
pub(super) async fn report_start(sandbox: Arc<Sandbox>, container: Option<String>) {
    match sandbox.agent.start_report().await {
        Ok(measured) => sandbox.report.add_guests(container.as_deref(), &measured),
        Err(error) => tracing::debug!("no start report from the guest: {error}"),
    }
    sandbox.report.tell().await;
}

/// Removes what dead shims left that containerd did not ask to be cleaned up, for example because it was
/// down as well. A directory is read and its locks are tried: living pods notice nothing.
pub(super) async fn sweep_up() {
    match nacre_run_directory::sweep(Path::new(RUN_ROOT), &History::of_the_node()).await {
        Ok(swept) => {
            for one in swept {
                let id = one.id.as_deref().unwrap_or("(unfinished)");
                tracing::info!("removed what the dead sandbox {id} left: {:?}", one.removal);
            }
        }
        Err(error) => tracing::warn!("leftovers of dead sandboxes: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::io::{Pumps, Stdio};
    use crate::process::ProcessId;

    fn process() -> Process {
        let id = ProcessId { container: "c".into(), exec: String::new() };
        Process::new(id, Stdio::default(), Pumps::default())
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_starts_is_forgotten_after_its_time_and_not_before() {
        let process = process();
        // As long as a pull may take.
        sleep(UNSTARTED * 3).await;
        let made = Instant::now();
        assert!(is_forgotten(&process).await);
        assert_eq!(made.elapsed(), UNSTARTED);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_started_or_has_ended_in_time_is_not_forgotten() {
        let (started, ended) = (process(), process());
        let change = async {
            sleep(UNSTARTED - Duration::from_millis(1)).await;
            started.advance(State::Created, State::Running);
            ended.stop(Exit::now(KILLED));
        };
        let (first, second, ()) =
            tokio::join!(is_forgotten(&started), is_forgotten(&ended), change);
        assert!(!first && !second);
    }
}
