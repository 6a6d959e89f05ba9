//! QEMU as a process: one thread spawns it, reads what it and its guest write, and reaps it.
//!
//! The kernel's parent-death signal follows the parent *thread*, not the process, so this thread
//! lives exactly as long as QEMU does. It also is the one that enters the pod's network namespace.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Gid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;

use super::command_line::CommandLine;
use crate::LaunchError;
use crate::bounded_log::BoundedLog;
use crate::host_user::HostUser;
use crate::sys::{self, Confinement};
use crate::system_calls::qemu_filter;

/// Read from QEMU at a time, in bytes.
const READ_SIZE: usize = 16 * 1024;
/// What is still read after QEMU is gone, in reads for each source.
const LAST_READS: usize = 16;

/// A process to start.
pub(super) struct QemuProcess {
    pub(super) binary: PathBuf,
    pub(super) command_line: CommandLine,
    pub(super) netns: Option<File>,
    /// Whom it runs as, with the groups in which it reaches what the host offers it.
    pub(super) user: Option<HostUser>,
    pub(super) groups: Vec<Gid>,
    /// Our end of the guest's console.
    pub(super) console: UnixStream,
    pub(super) console_log: BoundedLog,
    pub(super) stderr_log: BoundedLog,
}

/// A process that was started.
pub(super) struct Running {
    pub(super) pid: u32,
    /// Names the process even after its number was given to another.
    pub(super) pidfd: Arc<OwnedFd>,
    exit: oneshot::Receiver<io::Result<ExitStatus>>,
}

impl Running {
    /// Waits for the process to end; returns after all that it wrote has been logged.
    pub(super) async fn exit_status(&mut self) -> io::Result<ExitStatus> {
        let told = (&mut self.exit).await;
        told.unwrap_or_else(|_| Err(io::Error::other("the thread that reaps it ended early")))
    }
}

impl QemuProcess {
    /// Starts the process on a thread of its own.
    pub(super) async fn start(self) -> Result<Running, LaunchError> {
        const STACK: usize = 256 * 1024;
        let (started, starting) = oneshot::channel();
        std::thread::Builder::new()
            .name("nacre-qemu".to_owned())
            .stack_size(STACK)
            .spawn(move || self.live(started))
            .map_err(|source| host("start a thread for QEMU", source))?;
        // The thread drops its sender only by panicking.
        starting.await.unwrap_or_else(|_| {
            Err(host("start QEMU", io::Error::other("the thread that starts it ended")))
        })
    }

    /// The thread's life.
    fn live(self, started: oneshot::Sender<Result<Running, LaunchError>>) {
        let QemuProcess { binary, command_line, netns, user, groups, .. } = self;
        let (console, console_log, stderr_log) = (self.console, self.console_log, self.stderr_log);
        let (arguments, inherited) = command_line.into_parts();
        let mut command = Command::new(&binary);
        command.args(arguments).env_clear();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let filter = match qemu_filter() {
            Ok(filter) => filter,
            Err(error) => {
                let failed = host("confine QEMU's system calls", io::Error::other(error));
                return drop(started.send(Err(failed)));
            }
        };
        let user = user.map(HostUser::ids);
        sys::confine(&mut command, Confinement { inherited, user, groups, filter });

        let spawned = spawn(&mut command, netns.as_ref(), &console);
        // Our copies of QEMU's ends: with them open, its closing would go unnoticed.
        drop(command);
        let (mut child, pidfd, stderr) = match spawned {
            Ok(spawned) => spawned,
            Err(error) => return drop(started.send(Err(error))),
        };
        let pidfd = Arc::new(pidfd);
        let (ended, exit) = oneshot::channel();
        let running = Running { pid: child.id(), pidfd: Arc::clone(&pidfd), exit };
        if started.send(Ok(running)).is_err() {
            // The launch was given up meanwhile.
            kill(&pidfd);
        }

        let mut sources = [Source::new(console, console_log), Source::new(stderr, stderr_log)];
        watch(&mut sources, &pidfd);
        drop(ended.send(child.wait()));
    }
}

type Spawned = (Child, OwnedFd, ChildStderr);

fn spawn(
    command: &mut Command,
    netns: Option<&File>,
    console: &UnixStream,
) -> Result<Spawned, LaunchError> {
    if let Some(netns) = netns {
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).map_err(
            |error| LaunchError::Config {
                field: "netns",
                problem: format!("cannot be entered: {error}; it must name a network namespace, and entering one takes CAP_SYS_ADMIN"),
            },
        )?;
    }
    console.set_nonblocking(true).map_err(|source| host("set up the console", source))?;
    let mut child = command.spawn().map_err(|source| host("start QEMU", source))?;
    let attached = pidfd_open(sys::pid_of(&child), PidfdFlags::empty()).and_then(|pidfd| {
        let stderr = child.stderr.take().ok_or(rustix::io::Errno::PIPE)?;
        rustix::io::ioctl_fionbio(&stderr, true)?;
        Ok((pidfd, stderr))
    });
    match attached {
        Ok((pidfd, stderr)) => Ok((child, pidfd, stderr)),
        Err(error) => {
            drop(child.kill());
            drop(child.wait());
            Err(host("watch QEMU", error.into()))
        }
    }
}

/// Logs what comes from `sources` until the process of `pidfd` is gone.
fn watch(sources: &mut [Source; 2], pidfd: &OwnedFd) {
    loop {
        let mut polled = vec![PollFd::new(pidfd, PollFlags::IN)];
        polled.extend(sources.iter().filter_map(Source::poll));
        match poll(&mut polled, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            // Not possible with valid descriptors; waiting for the process is still right.
            Err(_) => return,
        }
        let gone = !polled[0].revents().is_empty();
        drop(polled);
        let reads = if gone { LAST_READS } else { 1 };
        for source in sources.iter_mut() {
            for _ in 0..reads {
                if !source.read() {
                    break;
                }
            }
        }
        if gone {
            return;
        }
    }
}

/// Something QEMU writes to, and its log. Closed once it ended.
struct Source {
    open: Option<Box<dyn ReadableFd>>,
    log: BoundedLog,
}

trait ReadableFd: Read + AsFd {}
impl<T: Read + AsFd> ReadableFd for T {}

impl Source {
    fn new(open: impl ReadableFd + 'static, log: BoundedLog) -> Source {
        Source { open: Some(Box::new(open)), log }
    }

    fn poll(&self) -> Option<PollFd<'_>> {
        self.open.as_ref().map(|open| PollFd::from_borrowed_fd(open.as_fd(), PollFlags::IN))
    }

    /// Reads once, without waiting; tells whether there was something.
    fn read(&mut self) -> bool {
        let Some(open) = &mut self.open else { return false };
        let mut buffer = [0; READ_SIZE];
        match open.read(&mut buffer) {
            Ok(0) => self.open = None,
            Ok(length) => {
                self.log.append(&buffer[..length]);
                return true;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.open = None,
        }
        false
    }
}

/// Kills the process of `pidfd`, unless it is gone.
pub(super) fn kill(pidfd: &OwnedFd) {
    if let Err(error) = pidfd_send_signal(pidfd, Signal::KILL)
        && error != rustix::io::Errno::SRCH
    {
        tracing::error!(%error, "QEMU could not be killed");
    }
}

pub(super) fn host(doing: &str, source: io::Error) -> LaunchError {
    LaunchError::Host { doing: doing.to_owned(), source }
}
