//! A shell in the guest for people who develop on it, over a port of its own (`nacre exec-vm`).
//!
//! Whoever has it is root in the guest, past every policy. So only development images have it: without
//! their mark, which is in the initrd and measured, the port is not opened, and no other image holds a
//! program that could be the shell.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nacre_protocol::channel::DEBUG_SHELL_PORT_NAME;
use nacre_protocol::debug_shell::{
    FromGuest, FromHost, HEADER_SIZE, Header, INPUT_WINDOW, PAYLOAD_LIMIT, Size, Start, Violation,
};
use nacre_protocol::start_report::HOST_VISIBLE;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal};
use rustix::pty::OpenptFlags;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::policy::DEVELOPMENT;
use crate::port::{self, Port};
use crate::process::Process;
use crate::reaper::Reaper;
use crate::seal::Sealed;
use crate::streams::{Output, Streams};

/// The image's busybox (`nacre_image_manifest::DEVELOPMENT_SHELL`).
const BUSYBOX: &str = "/bin/busybox";
/// Frames that wait for the port.
const WAITING_FRAMES: usize = 4;
/// How long output is waited for once the program has ended; others may have its streams open.
const LAST_OUTPUT: Duration = Duration::from_millis(500);

/// Why there is no shell any more.
#[derive(Debug, thiserror::Error)]
enum ShellError {
    #[error("the port failed: {0}")]
    Io(#[from] io::Error),
    #[error("the host broke the protocol: {0}")]
    Violation(#[from] Violation),
    #[error("the host sent more input than there is room for")]
    Window,
}

/// Offers the shell, if this is a development image and the host has a port for it.
pub(crate) fn offer(reaper: Arc<Reaper>, _: &Sealed) {
    if !Path::new(DEVELOPMENT).exists() {
        return;
    }
    let Some(device) = port::find(DEBUG_SHELL_PORT_NAME) else { return };
    let stream = match Port::open(&device).and_then(|port| port.into_stream(())) {
        Ok(stream) => stream,
        Err(error) => return tracing::error!("the port of the shell cannot be used: {error}"),
    };
    tracing::warn!(target: HOST_VISIBLE, "this is a development image: its host can have a shell in it");
    tokio::spawn(async move {
        let (incoming, outgoing) = tokio::io::split(stream);
        if let Err(error) = serve(incoming, outgoing, spawn, reaper).await {
            tracing::warn!("there is no shell any more: {error}");
        }
    });
}

/// Starts what a session runs.
type Spawn = fn(&Start, &Arc<Reaper>) -> io::Result<Process>;

/// Serves sessions, one after the other, until the port ends.
async fn serve(
    mut incoming: impl AsyncRead + Unpin,
    mut outgoing: impl AsyncWrite + Unpin + Send + 'static,
    spawn: Spawn,
    reaper: Arc<Reaper>,
) -> Result<(), ShellError> {
    let (frames, mut queue) = mpsc::channel::<Vec<u8>>(WAITING_FRAMES);
    tokio::spawn(async move {
        while let Some(frame) = queue.recv().await {
            if let Err(error) = outgoing.write_all(&frame).await {
                return tracing::warn!("the port of the shell: {error}");
            }
        }
    });
    let mut session: Option<Session> = None;
    let mut payload = vec![0; PAYLOAD_LIMIT];
    loop {
        let mut head = [0; HEADER_SIZE];
        match incoming.read_exact(&mut head).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            read => read.map(drop)?,
        }
        let header = Header::parse(&head)?;
        incoming.read_exact(&mut payload[..header.size()]).await?;
        let frame = FromHost::parse(&header, &payload[..header.size()])?;
        let number = header.session();
        if let FromHost::Start(start) = &frame {
            // Whoever began the one before is gone.
            drop(session.take());
            match spawn(start, &reaper) {
                Ok(process) => session = Some(Session::begin(number, process, frames.clone())),
                Err(error) => {
                    let reason = format!("failed to start a shell: {error}");
                    let frame = FromGuest::Failed(&reason).to_bytes(number)?;
                    // Fails only when the port does.
                    let _ = frames.send(frame).await;
                }
            }
            continue;
        }
        let Some(current) = session.as_mut().filter(|session| session.number == number) else {
            continue;
        };
        match frame {
            FromHost::Input(bytes) => current.input(bytes)?,
            FromHost::Resize(Size { rows, columns }) => {
                // Of a program without a terminal, or one that has ended.
                let _ = current.process.streams.resize(rows, columns);
            }
            FromHost::HangUp | FromHost::Start(_) => drop(session.take()),
        }
    }
    Ok(())
}

/// A program of somebody's. Dropped, it is killed.
#[derive(Debug)]
struct Session {
    number: u32,
    process: Arc<Process>,
    /// None after its end: what comes later is dropped.
    input: Option<mpsc::UnboundedSender<Vec<u8>>>,
    /// Bytes in `input`: bounded by [`INPUT_WINDOW`].
    waiting: Arc<AtomicUsize>,
}

impl Session {
    fn begin(number: u32, process: Process, frames: mpsc::Sender<Vec<u8>>) -> Session {
        let process = Arc::new(process);
        let (input, inputs) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let feeding =
            feed(number, Arc::clone(&process), inputs, Arc::clone(&waiting), frames.clone());
        tokio::spawn(feeding);
        tokio::spawn(report(number, Arc::clone(&process), frames));
        Session { number, process, input: Some(input), waiting }
    }

    fn input(&mut self, bytes: &[u8]) -> Result<(), ShellError> {
        if bytes.is_empty() {
            self.input = None;
        }
        let Some(input) = &self.input else { return Ok(()) };
        let before = self.waiting.fetch_add(bytes.len(), Ordering::Relaxed);
        if before + bytes.len() > INPUT_WINDOW {
            return Err(ShellError::Window);
        }
        // Fails only when the program takes no input any more.
        let _ = input.send(bytes.to_vec());
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Its number is its group's, and nobody else's before it was reaped. One that has just begun may have no group
        // of its own yet.
        if !self.process.has_exited() {
            let _ = rustix::process::kill_process(self.process.pid(), Signal::KILL);
            let _ = rustix::process::kill_process_group(self.process.pid(), Signal::KILL);
        }
        self.process.streams.close();
    }
}

/// Gives the program its input, and the host credit for what it has read.
async fn feed(
    number: u32,
    process: Arc<Process>,
    mut inputs: mpsc::UnboundedReceiver<Vec<u8>>,
    waiting: Arc<AtomicUsize>,
    frames: mpsc::Sender<Vec<u8>>,
) {
    let stdin = &process.streams.stdin;
    let mut is_open = true;
    while let Some(bytes) = inputs.recv().await {
        // What a program does not want to read is not kept for it.
        is_open = is_open && stdin.write(&bytes).await.is_ok();
        waiting.fetch_sub(bytes.len(), Ordering::Relaxed);
        let taken = FromGuest::Taken(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        let Ok(frame) = taken.to_bytes(number) else { return };
        if frames.send(frame).await.is_err() {
            return;
        }
    }
    stdin.close();
}

/// Passes on what the program writes, then how it ended.
async fn report(number: u32, process: Arc<Process>, frames: mpsc::Sender<Vec<u8>>) {
    let streams = &process.streams;
    let output =
        pass_on(&streams.stdout, &frames, |bytes| FromGuest::Output(bytes).to_bytes(number));
    let errors =
        pass_on(&streams.stderr, &frames, |bytes| FromGuest::Errors(bytes).to_bytes(number));
    let outputs = async { tokio::join!(output, errors) };
    tokio::pin!(outputs);
    let code = tokio::select! {
        code = process.wait() => {
            // Others may have its streams open, and hold them for as long as they like.
            let _ = tokio::time::timeout(LAST_OUTPUT, &mut outputs).await;
            code
        }
        _ = &mut outputs => process.wait().await,
    };
    streams.close();
    let code = code.ok().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX);
    if let Ok(frame) = FromGuest::Exited(code).to_bytes(number) {
        // Fails only when the port does.
        let _ = frames.send(frame).await;
    }
}

async fn pass_on(
    stream: &Output,
    frames: &mpsc::Sender<Vec<u8>>,
    frame: impl Fn(&[u8]) -> Result<Vec<u8>, Violation>,
) {
    while let Ok(bytes) = stream.read(PAYLOAD_LIMIT).await {
        let Ok(frame) = frame(&bytes) else { return };
        if frames.send(frame).await.is_err() {
            return;
        }
    }
}

/// Starts the program as root of the guest, at the head of a process group of its own.
fn spawn(start: &Start, reaper: &Arc<Reaper>) -> io::Result<Process> {
    let mut command = Command::new(BUSYBOX);
    let streams = match &start.terminal {
        Some(terminal) => {
            let (streams, theirs) = open_terminal(terminal.size)?;
            // A session of its own, with that terminal.
            command.args(["setsid", "-c", BUSYBOX]).env("TERM", &terminal.term);
            let copy = || theirs.try_clone().map(Stdio::from);
            command.stdin(copy()?).stdout(copy()?).stderr(copy()?);
            streams
        }
        None => {
            let (streams, [stdin, stdout, stderr]) = Streams::pipes()?;
            command.stdin(stdin).stdout(stdout).stderr(stderr).process_group(0);
            streams
        }
    };
    command.arg("sh");
    if !start.command.is_empty() {
        // The shell finds busybox's own programs, which have no files of their own.
        command.args(["-c", "\"$@\"", "sh"]).args(&start.command);
    }
    let launch = reaper.launch();
    let child = command
        .env("PATH", "/bin")
        .env("HOME", "/")
        .env("PS1", "guest:\\w# ")
        .current_dir("/")
        .spawn()?;
    // The reaper waits for it.
    let claimed = Process::claim(Pid::from_child(&child), &launch, streams);
    // Its copies of the program's ends of the streams.
    drop(command);
    claimed
}

/// Both ends of a new terminal.
fn open_terminal(size: Size) -> io::Result<(Streams, OwnedFd)> {
    let ours = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::grantpt(&ours)?;
    rustix::pty::unlockpt(&ours)?;
    let name = rustix::pty::ptsname(&ours, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let theirs = rustix::fs::open(name, flags, Mode::empty())?;
    let streams = Streams::terminal(ours)?;
    // Whoever wants a terminal of no size has none that can be asked for it.
    let _ = streams.resize(size.rows, size.columns);
    Ok((streams, theirs))
}

#[cfg(test)]
mod tests;
