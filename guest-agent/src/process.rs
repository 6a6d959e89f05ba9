//! One process of a container: its streams, its exit status and the way to signal it.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use crate::error::RpcError;
use crate::raw;
use crate::reaper::{Exit, Launch};
use crate::streams::Streams;

/// Highest signal number (`SIGRTMAX`).
const MOST_SIGNAL: u32 = 64;

/// A process that was born; perhaps it has exited since.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    /// Absent if the process was reaped before it could be opened.
    pidfd: Option<OwnedFd>,
    exit: Exit,
    /// Its standard streams.
    pub(crate) streams: Streams,
}

impl Process {
    /// Takes charge of `pid`, which was born within `launch`.
    pub(crate) fn claim(pid: Pid, launch: &Launch, streams: Streams) -> io::Result<Self> {
        let exit = launch.claim(pid);
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) if exit.borrow().is_none() => Some(fd),
            Ok(_) | Err(Errno::SRCH) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Self { pid, pidfd, exit, streams })
    }

    /// Number in the guest's own PID namespace.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// True once its exit status is known.
    pub(crate) fn has_exited(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Waits for the exit status: the code, or 128 and the signal's number.
    pub(crate) async fn wait(&self) -> Result<i32, RpcError> {
        let mut exit = self.exit.clone();
        let status = exit.wait_for(Option::is_some).await.ok().and_then(|status| *status);
        status.ok_or_else(|| RpcError::Internal("the exit status of the process was lost".into()))
    }

    /// A finished process takes any signal.
    pub(crate) fn signal(&self, signal: u32) -> Result<(), RpcError> {
        let number =
            i32::try_from(signal).ok().filter(|_| signal <= MOST_SIGNAL).ok_or_else(|| {
                RpcError::invalid(
                    "signal",
                    format!("{signal} is not a signal: use 0 to {MOST_SIGNAL}"),
                )
            })?;
        let Some(pidfd) = self.pidfd.as_ref().filter(|_| !self.has_exited()) else {
            return Ok(());
        };
        match raw::send_signal(pidfd, number) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => Err(RpcError::internal(
                format!("failed to send signal {signal} to process {}", self.pid),
                error,
            )),
            _ => Ok(()),
        }
    }
}
