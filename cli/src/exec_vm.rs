//! `nacre exec-vm`.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use nacre_protocol::channel::DEBUG_SHELL_SOCKET;
use nacre_protocol::debug_shell::{
    FromGuest, FromHost, HEADER_SIZE, Header, INPUT_WINDOW, PAYLOAD_LIMIT, Size, Start, Terminal,
};
use nacre_run_directory::{RUN_ROOT, Sandbox, find};
use rustix::termios::{OptionalActions, Termios};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::Verdict;

/// Input is read in pieces of so many bytes.
const INPUT_PIECE: usize = 8 * 1024;

/// Open a shell in a pod's virtual machine, beside its containers.
///
/// Only in guests of the development image (`vm.danger_development_image` in the node's configuration): the
/// agent of any other image does not open the port, and there is no shell in it. The two measure
/// differently, so a guest that has a shell gets no secrets meant for one that has not. With a terminal on
/// both ends the program gets one, too; else input, output and errors are three streams.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre exec-vm default/web                        a shell in the VM of pod web
  nacre exec-vm 3f2a -- dmesg                      a program, in the sandbox whose id begins so
  nacre exec-vm default/web -- sh -c 'ps; mount'

Programs are busybox's. The exit status is that of the program, 128 and the number of the signal that ended it,
or 2 if there is no shell.")]
pub(crate) struct Arguments {
    /// NAMESPACE/NAME of the pod, or the beginning of its sandbox's id.
    #[arg(value_name = "POD")]
    pod: String,
    /// What to run instead of a shell.
    #[arg(value_name = "CMD", last = true)]
    command: Vec<String>,
    /// Where the run directories are; shims know only the default.
    #[arg(long, value_name = "DIRECTORY", default_value = RUN_ROOT, hide = true)]
    run_root: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    let sandbox = living(&arguments.run_root, &arguments.pod)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(session(&sandbox, &arguments.command));
    // A thread may still wait for input that nobody wants any more.
    runtime.shutdown_background();
    ended.map(Verdict::Program)
}

/// The one living sandbox that is meant.
fn living(root: &Path, pod: &str) -> anyhow::Result<Sandbox> {
    let found = find(root, pod).context("cannot look for pods: this needs root")?;
    let mut living: VecDeque<_> = found.into_iter().filter(|sandbox| sandbox.is_alive).collect();
    match (living.pop_front(), living.len()) {
        (Some(sandbox), 0) => Ok(sandbox),
        (Some(_), more) => bail!("{pod:?} means {} pods: give more of the id", more + 1),
        (None, _) => bail!(
            "no running pod is {pod:?}: give NAMESPACE/NAME, or the beginning of a sandbox's id as in {}",
            root.display()
        ),
    }
}

async fn session(sandbox: &Sandbox, command: &[String]) -> anyhow::Result<u8> {
    let path = sandbox.path.join(DEBUG_SHELL_SOCKET);
    let stream = match UnixStream::connect(&path).await {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
            "pod {} has no shell: its guest is of an image that gives none. For development, set \
             vm.danger_development_image in the node's configuration and start the pod anew; it measures \
             differently then",
            sandbox.id
        ),
        Err(error) => return Err(error).with_context(|| format!("failed to connect to {path:?}")),
    };
    let window = window_size();
    let terminal = window.map(|size| {
        let term = std::env::var("TERM").unwrap_or_default();
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-+._".contains(c);
        let plain = !term.is_empty() && term.len() <= 64 && term.chars().all(is_plain);
        Terminal { size, term: if plain { term } else { "dumb".to_owned() } }
    });
    let (answers, mut requests) = stream.into_split();
    let start = FromHost::Start(Start { command: command.to_vec(), terminal });
    requests.write_all(&start.to_bytes(0).context("this command cannot be sent")?).await?;
    let _raw = window.is_some().then(Raw::enter).transpose()?;
    converse(requests, answers, window.is_some()).await
}

/// What the guest says, as it is kept between two tasks.
enum Said {
    Output(Vec<u8>),
    Errors(Vec<u8>),
    Taken(usize),
    Exited(u8),
    Failed(String),
}

/// Moves bytes until the program ends; returns its exit code.
async fn converse(
    mut requests: OwnedWriteHalf,
    answers: OwnedReadHalf,
    is_terminal: bool,
) -> anyhow::Result<u8> {
    let (tell, mut said) = mpsc::channel(4);
    tokio::spawn(async move {
        let _ = match listen(answers, &tell).await {
            Ok(()) => tell.send(Err(anyhow::anyhow!("the pod's machine has ended"))).await,
            Err(error) => tell.send(Err(error)).await,
        };
    });
    let mut input = Some(read_input());
    let mut resized = signal(SignalKind::window_change())?;
    let mut room = INPUT_WINDOW;
    loop {
        let may_send = room >= INPUT_PIECE;
        let piece = async {
            match &mut input {
                Some(input) if may_send => input.recv().await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            answer = said.recv() => match answer.context("the shell's stream has ended")?? {
                Said::Output(bytes) => show(&mut io::stdout().lock(), &bytes)?,
                Said::Errors(bytes) => show(&mut io::stderr().lock(), &bytes)?,
                Said::Taken(count) => room = room.saturating_add(count).min(INPUT_WINDOW),
                Said::Exited(code) => return Ok(code),
                Said::Failed(reason) => bail!("{}", reason.escape_debug()),
            },
            piece = piece => match piece {
                Some(bytes) => {
                    room -= bytes.len();
                    requests.write_all(&FromHost::Input(&bytes).to_bytes(0)?).await?;
                }
                None => {
                    input = None;
                    // A terminal's input ends with the terminal.
                    if !is_terminal {
                        requests.write_all(&FromHost::Input(&[]).to_bytes(0)?).await?;
                    }
                }
            },
            _ = resized.recv() => if let Some(size) = window_size().filter(|_| is_terminal) {
                requests.write_all(&FromHost::Resize(size).to_bytes(0)?).await?;
            },
        }
    }
}

/// Reads frames until the stream ends.
async fn listen(
    mut answers: OwnedReadHalf,
    tell: &mpsc::Sender<anyhow::Result<Said>>,
) -> anyhow::Result<()> {
    let mut payload = vec![0; PAYLOAD_LIMIT];
    loop {
        let mut head = [0; HEADER_SIZE];
        match answers.read_exact(&mut head).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            read => read.map(drop)?,
        }
        let header = Header::parse(&head)?;
        answers.read_exact(&mut payload[..header.size()]).await?;
        let frame = FromGuest::parse(&header, &payload[..header.size()])?;
        let is_last = frame.is_last();
        let said = match frame {
            FromGuest::Output(bytes) => Said::Output(bytes.to_vec()),
            FromGuest::Errors(bytes) => Said::Errors(bytes.to_vec()),
            FromGuest::Taken(count) => Said::Taken(usize::try_from(count)?),
            FromGuest::Exited(code) => Said::Exited(code),
            FromGuest::Failed(reason) => Said::Failed(reason.to_owned()),
        };
        if tell.send(Ok(said)).await.is_err() || is_last {
            return Ok(());
        }
    }
}

/// Standard input, from a thread of its own: reading it cannot be given up.
fn read_input() -> mpsc::Receiver<Vec<u8>> {
    let (give, pieces) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut piece = vec![0; INPUT_PIECE];
        loop {
            match io::stdin().read(&mut piece) {
                Ok(0) => return,
                Ok(count) => {
                    if give.blocking_send(piece[..count].to_vec()).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    pieces
}

fn show(stream: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    stream.flush()
}

/// The terminal's size, if there is one on both ends.
fn window_size() -> Option<Size> {
    let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    let size = is_terminal.then(|| rustix::termios::tcgetwinsize(io::stdout()).ok()).flatten()?;
    Some(Size { rows: size.ws_row, columns: size.ws_col })
}

/// While it lives, the terminal passes on every key.
struct Raw(Termios);

impl Raw {
    fn enter() -> anyhow::Result<Raw> {
        let stdin = io::stdin();
        let before = rustix::termios::tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw)?;
        Ok(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // There is nothing left to do about it.
        let _ = rustix::termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}
