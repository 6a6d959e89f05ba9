//! A VM that QEMU runs.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::timeout;

use super::exit::{HostAction, explain};
use super::process::{QemuProcess, Running, kill};
use super::qmp::{Events, Listener, Qmp, QmpError};
use super::volume::EmptyDisks;
use crate::bounded_log::Tail;
use crate::{AgentChannel, InsertError, LaunchError, Vm, VmExit, Volume};

/// How long QEMU may take to complete the machine, on a busy host.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long QEMU may take for a command, and to end after `quit`.
const QUIT_PATIENCE: Duration = Duration::from_secs(3);
/// How long the last events may take to be read once QEMU is gone.
const EVENTS_PATIENCE: Duration = Duration::from_secs(1);

pub(super) struct QemuVm {
    process: Handle,
    channel: AgentChannel,
    console: Arc<Tail>,
    qmp: Qmp,
    empty_disks: tokio::sync::Mutex<EmptyDisks>,
    exit: watch::Receiver<Option<VmExit>>,
}

/// The process; killed when this goes away.
struct Handle {
    pid: u32,
    pidfd: Arc<OwnedFd>,
    action: Arc<Mutex<HostAction>>,
}

/// Learns how the VM ended and tidies up; lives in a task of its own.
struct Undertaker {
    running: Running,
    action: Arc<Mutex<HostAction>>,
    console: Arc<Tail>,
    stderr: Arc<Tail>,
    /// Held for its end only.
    _agent_socket: SocketFile,
}

/// A Unix socket that QEMU makes and does not always remove.
struct SocketFile(PathBuf);

impl QemuVm {
    /// Starts the process and waits until its machine is complete and runs.
    pub(super) async fn launch(
        process: QemuProcess,
        qmp_socket: UnixStream,
        channel: AgentChannel,
        [console, stderr]: [Arc<Tail>; 2],
        agent_socket: PathBuf,
    ) -> Result<QemuVm, LaunchError> {
        let running = process.start().await?;
        let action = Arc::new(Mutex::new(HostAction::None));
        let handle = Handle {
            pid: running.pid,
            pidfd: Arc::clone(&running.pidfd),
            action: Arc::clone(&action),
        };
        let undertaker = Undertaker {
            running,
            action,
            console: Arc::clone(&console),
            stderr,
            _agent_socket: SocketFile(agent_socket),
        };
        match control(qmp_socket).await {
            Ok((qmp, listener)) => {
                let (ended, exit) = watch::channel(None);
                tokio::spawn(async move {
                    let end = undertaker.attend(listener).await;
                    tracing::info!(reason = end.reason, clean = end.clean, "VM ended");
                    ended.send_replace(Some(end));
                });
                let empty_disks = Default::default();
                Ok(QemuVm { process: handle, channel, console, qmp, empty_disks, exit })
            }
            Err(error) => Err(undertaker.failed_launch(&handle, error).await),
        }
    }
}

impl QemuVm {
    /// Names the disks that volumes may be put into: serial number, node.
    pub(super) fn with_empty_disks(mut self, disks: Vec<(String, String)>) -> QemuVm {
        self.empty_disks = tokio::sync::Mutex::new(EmptyDisks::new(disks));
        self
    }
}

/// Opens the control channel of a QEMU that starts.
async fn control(socket: UnixStream) -> Result<(Qmp, Listener), QmpError> {
    let (qmp, listener) = Qmp::connect(socket, START_PATIENCE).await?;
    let status = qmp.status(START_PATIENCE).await?;
    tracing::debug!(version = ?qmp.version(), status, "QEMU's machine is complete");
    Ok((qmp, listener))
}

#[async_trait]
impl Vm for QemuVm {
    fn pid(&self) -> u32 {
        self.process.pid
    }

    fn agent_channel(&self) -> &AgentChannel {
        &self.channel
    }

    async fn wait(&self) -> VmExit {
        let mut exit = self.exit.clone();
        let end = exit.wait_for(Option::is_some).await.ok().and_then(|end| end.clone());
        // Only a runtime that is shutting down drops the task that would tell.
        end.unwrap_or_else(|| VmExit {
            reason: "the VM is not watched any more".into(),
            clean: false,
        })
    }

    async fn stop(&self, grace: Duration) -> VmExit {
        if let Ok(end) = timeout(grace, self.wait()).await {
            return end;
        }
        self.process.note(HostAction::Quit);
        if let Err(error) = self.qmp.quit(QUIT_PATIENCE).await {
            tracing::debug!(%error, "QEMU did not take the command to quit");
        }
        if let Ok(end) = timeout(QUIT_PATIENCE, self.wait()).await {
            return end;
        }
        self.process.note(HostAction::Kill);
        self.process.kill();
        self.wait().await
    }

    async fn insert(&self, serial: &str, volume: Volume) -> Result<(), InsertError> {
        self.empty_disks.lock().await.fill(&self.qmp, serial, volume).await
    }

    fn console_tail(&self) -> String {
        self.console.text()
    }
}

impl Undertaker {
    /// Waits for the end. A QEMU that stops the guest's processors by itself (nobody else does) will
    /// not go on, so it is killed.
    async fn attend(mut self, mut listener: Listener) -> VmExit {
        let ended = tokio::select! {
            status = self.running.exit_status() => Some(status),
            () = listener.halted() => None,
        };
        let status = match ended {
            Some(status) => status,
            None => {
                self.note(HostAction::KillHalted);
                kill(&self.running.pidfd);
                self.running.exit_status().await
            }
        };
        let events = listener.finish(EVENTS_PATIENCE).await;
        self.conclude(&status, &events)
    }

    /// Ends what was started, and finds the error that says most.
    async fn failed_launch(mut self, handle: &Handle, error: QmpError) -> LaunchError {
        // A QEMU that refuses its command line ends by itself and says why.
        let ended = timeout(QUIT_PATIENCE, self.running.exit_status()).await;
        let by_itself = ended.is_ok();
        let status = match ended {
            Ok(status) => status,
            Err(_) => {
                handle.kill();
                self.running.exit_status().await
            }
        };
        let end = self.conclude(&status, &Events::default());
        if by_itself {
            LaunchError::Ended { reason: end.reason }
        } else {
            LaunchError::Control(error.to_string())
        }
    }

    fn conclude(&self, status: &io::Result<ExitStatus>, events: &Events) -> VmExit {
        let action = *self.action.lock().unwrap_or_else(PoisonError::into_inner);
        explain(status, action, events, &self.console, &self.stderr)
    }

    fn note(&self, action: HostAction) {
        *self.action.lock().unwrap_or_else(PoisonError::into_inner) = action;
    }
}

impl Handle {
    fn note(&self, action: HostAction) {
        *self.action.lock().unwrap_or_else(PoisonError::into_inner) = action;
    }

    fn kill(&self) {
        kill(&self.pidfd);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // With vsock, or if QEMU came to nothing, there is none.
        drop(std::fs::remove_file(&self.0));
    }
}
