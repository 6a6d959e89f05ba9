//! The agent's side of a launch: spawning the launcher and hearing its reports.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio as ChildStdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::{ARGUMENT, Kind, LONGEST_MESSAGE, Order, Report, START};
use crate::process::Process;
use crate::reaper::Reaper;
use crate::streams::{ProcessEnds, Streams};

/// Longest time for one step of a launch. Generous: software emulation on a loaded host is slow.
const DEADLINE: Duration = Duration::from_secs(120);

/// Details of a failure that are worth repeating to the host.
const MOST_DETAILS: usize = 2;

/// Which streams the process gets.
#[derive(Debug)]
pub(crate) enum Stdio {
    /// Three pipes.
    Pipes,
    /// A terminal of this size (rows, columns), if given. The socket is made in the directory.
    Terminal {
        /// Directory that only the agent writes.
        directory: PathBuf,
        /// Rows and columns.
        size: Option<(u16, u16)>,
    },
}

/// A launched process and the line to its launcher.
#[derive(Debug)]
pub(crate) struct Launched {
    /// The process.
    pub(crate) process: Process,
    control: Control,
}

impl Launched {
    /// Splits the process from the means to start it.
    pub(crate) fn into_parts(self) -> (Process, Control) {
        (self.process, self.control)
    }
}

/// Launches a process. On failure nothing of it is left but what the launcher's own undoing missed
/// in the container's cgroup, which is the caller's.
pub(crate) async fn launch(
    reaper: &Arc<Reaper>,
    container: &str,
    owner: u32,
    kind: Kind,
    stdio: Stdio,
) -> Result<Launched, String> {
    let opening = |e: io::Error| format!("failed to open the streams of the process: {e}");
    let (console, pipes) = match &stdio {
        Stdio::Pipes => (None, Some(Streams::pipes().map_err(opening)?)),
        Stdio::Terminal { directory, .. } => {
            (Some(Console::listen(directory).map_err(opening)?), None)
        }
    };
    let console_socket = console.as_ref().map(|c| c.path.to_string_lossy().into_owned());
    let order = Order { container: container.to_owned(), console_socket, owner, kind };
    let launch = reaper.launch();
    let (streams, ends) = pipes.map_or((None, None), |(streams, ends)| (Some(streams), Some(ends)));
    let mut control = Control::spawn(&order, ends).map_err(|e| format!("failed to launch: {e}"))?;
    let accept = async {
        match (&console, streams) {
            (Some(console), _) => console.accept().await.map_err(opening),
            (None, Some(streams)) => Ok(streams),
            (None, None) => Err("the process has no streams".to_owned()),
        }
    };
    let both = async {
        // A launch that fails before it has a terminal never sends one.
        let mut accept = std::pin::pin!(accept);
        let mut streams = None;
        let mut born = std::pin::pin!(control.born());
        loop {
            tokio::select! {
                pid = &mut born => {
                    let pid = pid?;
                    let streams = match streams.take() {
                        Some(streams) => streams,
                        None => accept.as_mut().await?,
                    };
                    return Ok::<_, String>((pid, streams));
                }
                accepted = &mut accept, if streams.is_none() => {
                    let accepted = accepted?;
                    if let Stdio::Terminal { size: Some((rows, columns)), .. } = stdio {
                        accepted.resize(rows, columns).map_err(|e| e.to_string())?;
                    }
                    streams = Some(accepted);
                }
            }
        }
    };
    let (pid, streams) = timeout(DEADLINE, both).await.map_err(|_| too_slow())??;
    let process = Process::claim(pid, &launch, streams)
        .map_err(|e| format!("failed to open process {pid}: {e}"))?;
    Ok(Launched { process, control })
}

fn too_slow() -> String {
    format!("the process was not ready within {} seconds", DEADLINE.as_secs())
}

/// The socket to a launcher. Dropping it ends the launcher: either its work is done, or it was given up.
#[derive(Debug)]
pub(crate) struct Control {
    socket: BufReader<UnixStream>,
    launcher: OwnedFd,
    details: Vec<String>,
}

impl Drop for Control {
    fn drop(&mut self) {
        // Fails if the launcher has ended, as it should have.
        let _ = rustix::process::pidfd_send_signal(&self.launcher, Signal::KILL);
    }
}

impl Control {
    /// The launcher's standard input is the socket; the process's streams travel over it.
    fn spawn(order: &Order, ends: Option<ProcessEnds>) -> io::Result<Self> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        // The reaper collects the child; it cannot have done so before this function returns, since
        // both run on one thread.
        let child = Command::new("/proc/self/exe")
            .arg0("nacre-agent")
            .arg(ARGUMENT)
            .env_clear()
            .stdin(OwnedFd::from(theirs))
            .stdout(ChildStdio::null())
            .stderr(ChildStdio::inherit())
            .spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("the launcher has no number"))?;
        let launcher = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        let text = serde_json::to_vec(order)?;
        if text.len() > LONGEST_MESSAGE {
            return Err(io::Error::other("the order is too long"));
        }
        let descriptors: Vec<_> = ends.iter().flatten().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        sendmsg(&ours, &[IoSlice::new(&text)], &mut ancillary, SendFlags::NOSIGNAL)?;
        // Ours would keep the streams from ending.
        drop(ends);
        ours.set_nonblocking(true)?;
        let socket = BufReader::new(UnixStream::from_std(ours)?);
        Ok(Self { socket, launcher, details: Vec::new() })
    }

    /// Lets a container's first process run, and waits until its program does.
    pub(crate) async fn start(mut self) -> Result<(), String> {
        let sending = self.socket.get_mut().write_all(START).await;
        sending.map_err(|e| format!("the launcher is gone: {e}"))?;
        timeout(DEADLINE, self.finished()).await.map_err(|_| too_slow())?
    }

    /// Waits until the program of a further process runs.
    pub(crate) async fn finished(&mut self) -> Result<(), String> {
        loop {
            match self.report().await? {
                Some(Report::Failed(error)) => return Err(self.with_details(&error)),
                Some(Report::Log(line)) => self.details.push(line),
                Some(Report::Born(_)) => {}
                None => return Ok(()),
            }
        }
    }

    async fn born(&mut self) -> Result<Pid, String> {
        loop {
            match self.report().await? {
                Some(Report::Born(pid)) => {
                    return Pid::from_raw(pid).ok_or_else(|| "the process has no number".into());
                }
                Some(Report::Failed(error)) => return Err(self.with_details(&error)),
                Some(Report::Log(line)) => self.details.push(line),
                None => return Err(self.with_details("the launcher ended early")),
            }
        }
    }

    async fn report(&mut self) -> Result<Option<Report>, String> {
        let mut line = Vec::new();
        let read = self.socket.read_until(b'\n', &mut line).await;
        match read {
            Ok(0) => Ok(None),
            Ok(_) => serde_json::from_slice(&line)
                .map(Some)
                .map_err(|e| format!("the launcher sent what is no report: {e}")),
            Err(error) => Err(format!("failed to hear the launcher: {error}")),
        }
    }

    /// The library's errors often lack the cause, which its log has: the first lines are the deepest.
    fn with_details(&mut self, error: &str) -> String {
        let details = std::mem::take(&mut self.details);
        describe(error, &details)
    }
}

/// What the runtime library wraps around its causes without saying more.
const EMPTY_WORDS: [&str; 3] = [
    "failed to create container: ",
    "exec process failed with error ",
    "error in executing process : ",
];

/// A failure in few words: the error without empty ones, and what the log has beyond it.
fn describe(error: &str, log: &[String]) -> String {
    let mut core = error.trim_matches(|c: char| c == '\0' || c.is_whitespace());
    while let Some(rest) = EMPTY_WORDS.iter().find_map(|words| core.strip_prefix(words)) {
        core = rest;
    }
    let more = log.iter().filter(|line| !line.contains(core)).take(MOST_DETAILS);
    let more: Vec<_> = more.map(String::as_str).collect();
    if more.is_empty() { core.to_owned() } else { format!("{core} ({})", more.join("; ")) }
}

/// A socket on which the controlling end of a new terminal arrives.
#[derive(Debug)]
struct Console {
    path: PathBuf,
    listener: UnixListener,
}

impl Console {
    fn listen(directory: &Path) -> io::Result<Self> {
        let mut random = [0_u8; 4];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        // Short: a socket's path has 107 bytes, of which the container's directory takes 86.
        let path = directory.join(format!("tty-{:08x}", u32::from_ne_bytes(random)));
        let listener = UnixListener::bind(&path)?;
        Ok(Self { path, listener })
    }

    async fn accept(&self) -> io::Result<Streams> {
        let (socket, _) = self.listener.accept().await?;
        loop {
            socket.readable().await?;
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut name = [0; 256];
            let received = recvmsg(
                &socket,
                &mut [io::IoSliceMut::new(&mut name)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
            );
            match received {
                Err(rustix::io::Errno::AGAIN) => continue,
                Err(error) => return Err(error.into()),
                Ok(_) => {}
            }
            let terminal = ancillary.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
                _ => None,
            });
            let terminal = terminal.ok_or_else(|| io::Error::other("no terminal came"))?;
            return Streams::terminal(terminal);
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_once_and_with_their_cause() {
        let error = "failed to create container: exec process failed with error \
                     error in executing process : exec \"x\": not found";
        let log = ["failed to initialize container process: exec \"x\": not found".to_owned()];
        assert_eq!(describe(error, &log), "exec \"x\": not found");
        let log = ["failed to mount /x: ENOTDIR".to_owned(), "failed to prepare rootfs".to_owned()];
        assert_eq!(
            describe("failed to create container: failed to prepare rootfs\0\0", &log),
            "failed to prepare rootfs (failed to mount /x: ENOTDIR)"
        );
    }
}
