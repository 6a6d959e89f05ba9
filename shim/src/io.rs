//! A process's streams: containerd's fifos on one side, the agent's on the other.
//!
//! Both ends of each fifo are held here, as runc's shim does, so that a restart of containerd is
//! neither an end of input nor a broken pipe. At most two chunks of a stream are in memory: what a
//! slow reader does not take stays in the guest, and the process there waits.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nacre_protocol::agent::CloseStdinRequest;
use nacre_protocol::channel::STREAM_CHUNK;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::agent::{Agent, AgentError, Output};
use crate::error::{Code, Coded};
use crate::process::ProcessId;

/// After a process has ended its last output is waited for as long as it keeps moving. These bound a
/// standstill: with the guest (a child that still holds the stream), and with the reader.
const GUEST_STANDSTILL: Duration = Duration::from_secs(5);
const READER_STANDSTILL: Duration = Duration::from_secs(10);
/// How much more is delivered of a process that has ended, in chunks and writes: what its pipes held is at most
/// some hundred, and a guest that goes on for ever does not keep its pod from ending.
const MOST_MOVES_AFTER_END: u64 = 4096;
/// How long that may take altogether, however it moves: a guest that gives a byte now and then does not keep its
/// pod from ending either.
const MOST_TIME_AFTER_END: Duration = Duration::from_secs(30);
const STANDSTILL_CHECK: Duration = Duration::from_millis(50);

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StdioError {
    #[error("{stream} is {uri:?}: this scheme is not supported; use a fifo's path or file:///PATH")]
    Scheme { stream: &'static str, uri: String },
    #[error("{stream} {path}: {cause}")]
    Open { stream: &'static str, path: PathBuf, cause: io::Error },
}

impl Coded for StdioError {
    fn code(&self) -> Code {
        match self {
            StdioError::Scheme { .. } => Code::UNIMPLEMENTED,
            StdioError::Open { .. } => Code::INVALID_ARGUMENT,
        }
    }
}

/// What containerd wants a process's streams connected to; an empty name means nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stdio {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// A terminal has one output stream, stdout.
    pub(crate) terminal: bool,
}

impl Stdio {
    /// Opens what is named. Must be called within the runtime.
    pub(crate) fn open(&self) -> Result<Streams, StdioError> {
        let stderr = if self.terminal { "" } else { &self.stderr };
        let (stdin, held) = open_input(&self.stdin)?.unzip();
        Ok(Streams {
            stdin,
            held,
            stdout: Sink::open("stdout", &self.stdout)?,
            stderr: if self.terminal { None } else { Some(Sink::open("stderr", stderr)?) },
        })
    }
}

/// The opened streams of a process that has not started.
#[derive(Debug)]
pub(crate) struct Streams {
    stdin: Option<pipe::Receiver>,
    /// A second descriptor of stdin's fifo keeps it from ending while a writer (containerd) comes and
    /// goes, until containerd says that there is no more.
    held: Option<File>,
    stdout: Sink,
    stderr: Option<Sink>,
}

/// Where output goes.
#[derive(Debug)]
enum Sink {
    Fifo(pipe::Sender),
    File(tokio::fs::File),
    /// Nobody listens; the stream is still read, or the process would hang.
    Nowhere,
}

impl Sink {
    fn open(stream: &'static str, uri: &str) -> Result<Sink, StdioError> {
        if uri.is_empty() {
            return Ok(Sink::Nowhere);
        }
        let (path, file_wanted) = path_of(stream, uri)?;
        let failed = |cause| StdioError::Open { stream, path: path.clone(), cause };
        let mut append = OpenOptions::new();
        append.append(true).mode(0o640).custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW);
        if file_wanted {
            append.create(true);
        } else {
            let kind = std::fs::symlink_metadata(&path).map_err(failed)?.file_type();
            if kind.is_fifo() {
                let both_ends = pipe::OpenOptions::new().read_write(true).open_sender(&path);
                return both_ends.map(Sink::Fifo).map_err(failed);
            }
            if !kind.is_file() {
                return Err(failed(io::Error::other("neither a fifo nor a regular file")));
            }
        }
        let file = append.open(&path).map_err(failed)?;
        Ok(Sink::File(tokio::fs::File::from_std(file)))
    }

    async fn write(&mut self, data: &[u8], progress: &Progress) -> io::Result<()> {
        match self {
            Sink::Nowhere => Ok(()),
            Sink::File(file) => {
                file.write_all(data).await?;
                file.flush().await
            }
            Sink::Fifo(fifo) => {
                let mut rest = data;
                while !rest.is_empty() {
                    let written = fifo.write(rest).await?;
                    rest = &rest[written..];
                    progress.moved();
                }
                Ok(())
            }
        }
    }
}

fn open_input(uri: &str) -> Result<Option<(pipe::Receiver, File)>, StdioError> {
    if uri.is_empty() {
        return Ok(None);
    }
    let (path, _) = path_of("stdin", uri)?;
    let failed = |cause| StdioError::Open { stream: "stdin", path: path.clone(), cause };
    let fifo = pipe::OpenOptions::new().open_receiver(&path).map_err(failed)?;
    let held = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(&path)
        .map_err(failed)?;
    Ok(Some((fifo, held)))
}

/// The path in a name that containerd gives, and whether it asks for a regular file.
fn path_of(stream: &'static str, uri: &str) -> Result<(PathBuf, bool), StdioError> {
    let unsupported = || StdioError::Scheme { stream, uri: uri.chars().take(128).collect() };
    let (path, is_file) = match uri.split_once("://") {
        None => (uri, false),
        Some(("file", path)) => (path, true),
        Some(("fifo", path)) => (path, false),
        Some(_) => return Err(unsupported()),
    };
    if !Path::new(path).is_absolute() || path.contains(['?', '\0']) {
        return Err(unsupported());
    }
    Ok((path.into(), is_file))
}

/// What the watcher of the last output looks at.
#[derive(Debug, Default)]
struct Progress {
    moves: AtomicU64,
    at_reader: AtomicBool,
    ended: AtomicBool,
}

impl Progress {
    fn moved(&self) {
        self.moves.fetch_add(1, Ordering::Relaxed);
    }
}

/// The running copies of a process's streams.
#[derive(Debug, Default)]
pub(crate) struct Pumps {
    parts: Mutex<Parts>,
    /// Wakes who waits for the last output when a copy has come to its end.
    one_ended: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Parts {
    /// Before the start.
    waiting: Option<Waiting>,
    held: Option<File>,
    /// After the start.
    input: Option<JoinHandle<()>>,
    outputs: Vec<Pump>,
}

#[derive(Debug)]
struct Waiting {
    stdin: Option<pipe::Receiver>,
    stdout: Sink,
    stderr: Option<Sink>,
}

#[derive(Debug)]
struct Pump {
    task: JoinHandle<()>,
    progress: Arc<Progress>,
}

impl Pumps {
    pub(crate) fn new(streams: Streams) -> Pumps {
        let Streams { stdin, held, stdout, stderr } = streams;
        let waiting = Some(Waiting { stdin, stdout, stderr });
        let parts = Mutex::new(Parts { waiting, held, ..Parts::default() });
        Pumps { parts, one_ended: Arc::default() }
    }

    /// Starts to copy, once the process runs.
    pub(crate) fn start(&self, agent: &Agent, id: &ProcessId) {
        let mut parts = self.lock();
        let Some(Waiting { stdin, stdout, stderr }) = parts.waiting.take() else { return };
        if let Some(stdin) = stdin {
            parts.input = Some(tokio::spawn(pump_input(agent.clone(), id.clone(), stdin)));
        }
        let outputs = [(Output::Stdout, Some(stdout)), (Output::Stderr, stderr)];
        for (output, sink) in outputs {
            let Some(sink) = sink else { continue };
            let progress = Arc::new(Progress::default());
            let pump = pump_output(agent.clone(), id.clone(), output, sink, progress.clone());
            let (ended, one_ended) = (progress.clone(), self.one_ended.clone());
            let task = tokio::spawn(async move {
                pump.await;
                ended.ended.store(true, Ordering::Relaxed);
                one_ended.notify_one();
            });
            parts.outputs.push(Pump { task, progress });
        }
    }

    /// No more input will come: the end is passed on once containerd has closed its side as well.
    pub(crate) fn close_input(&self) {
        self.lock().held = None;
    }

    /// After the process has ended: waits until its output is delivered, or stands still.
    pub(crate) async fn drained(&self) {
        let mut last_moves = 0;
        let mut moves_at_end = None;
        let ended = Instant::now();
        let mut still_since = ended;
        loop {
            let (moves, at_reader) = {
                let parts = self.lock();
                let progress = parts.outputs.iter().map(|pump| pump.progress.as_ref());
                let running: Vec<_> =
                    progress.filter(|progress| !progress.ended.load(Ordering::Relaxed)).collect();
                if running.is_empty() {
                    return;
                }
                let moves: u64 = running.iter().map(|p| p.moves.load(Ordering::Relaxed)).sum();
                let at_reader = running.iter().any(|p| p.at_reader.load(Ordering::Relaxed));
                (moves, at_reader)
            };
            // Those of a stream that has ended meanwhile are not counted any more.
            let at_end = *moves_at_end.get_or_insert(moves);
            if moves.saturating_sub(at_end) > MOST_MOVES_AFTER_END
                || ended.elapsed() > MOST_TIME_AFTER_END
            {
                return;
            }
            if moves != last_moves {
                last_moves = moves;
                still_since = Instant::now();
            }
            let patience = if at_reader { READER_STANDSTILL } else { GUEST_STANDSTILL };
            if still_since.elapsed() > patience {
                return;
            }
            // Either somebody ended, or it is time to look again.
            let _ = timeout(STANDSTILL_CHECK, self.one_ended.notified()).await;
        }
    }

    /// Ends all copying and closes the fifos.
    pub(crate) fn close(&self) {
        let parts = std::mem::take(&mut *self.lock());
        if let Some(input) = parts.input {
            input.abort();
        }
        for pump in parts.outputs {
            pump.task.abort();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a copy came to no good end.
#[derive(Debug, thiserror::Error)]
enum CopyError {
    /// The agent's policy lets nothing of this stream through.
    #[error("{0}")]
    Withheld(String),
    #[error("{0}")]
    Agent(AgentError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl From<AgentError> for CopyError {
    fn from(error: AgentError) -> Self {
        match error.denial() {
            Some(reason) => CopyError::Withheld(reason.to_owned()),
            None => CopyError::Agent(error),
        }
    }
}

async fn pump_input(agent: Agent, id: ProcessId, fifo: pipe::Receiver) {
    match copy_input(fifo, |data| agent.write_stdin(&id, data)).await {
        Ok(()) => {}
        Err(CopyError::Withheld(reason)) => {
            return tracing::warn!("the agent's policy lets no input reach {id}: {reason}");
        }
        // The process has closed its input or is gone.
        Err(error) => return tracing::debug!("stdin of {id}: {error}"),
    }
    let request = CloseStdinRequest {
        container_id: id.container.clone(),
        exec_id: id.agent_exec_id().to_owned(),
        ..Default::default()
    };
    if let Err(error) = agent.close_stdin(request).await {
        tracing::debug!("closing stdin of {id}: {error}");
    }
}

/// Copies until the fifo ends, which it does when its last writer has closed it.
async fn copy_input<F>(
    fifo: pipe::Receiver,
    mut write: impl FnMut(Vec<u8>) -> F,
) -> Result<(), CopyError>
where
    F: Future<Output = Result<(), AgentError>>,
{
    let mut buffer = vec![0; STREAM_CHUNK];
    loop {
        // A fifo that nobody has opened for writing yet reads as ended: wait for it to be readable.
        fifo.readable().await?;
        match fifo.try_read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => write(buffer[..read].to_vec()).await?,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e.into()),
        }
    }
}

async fn pump_output(
    agent: Agent,
    id: ProcessId,
    output: Output,
    sink: Sink,
    progress: Arc<Progress>,
) {
    match copy_output(|| agent.read_output(&id, output), sink, &progress).await {
        Ok(()) => {}
        Err(CopyError::Withheld(reason)) => {
            tracing::info!("the agent's policy withholds {output:?} of {id}: {reason}");
        }
        Err(error) => tracing::warn!("{output:?} of {id}: {error}"),
    }
}

/// Copies until the guest says that there is no more. The next chunk is asked for while this one is
/// delivered: at most two are in memory.
async fn copy_output<F>(
    mut read: impl FnMut() -> F,
    mut sink: Sink,
    progress: &Progress,
) -> Result<(), CopyError>
where
    F: Future<Output = Result<Option<Vec<u8>>, AgentError>>,
{
    let mut next = read().await.map_err(CopyError::from);
    loop {
        let data = match next {
            Ok(Some(data)) => data,
            Ok(None) => return Ok(()),
            Err(error) => {
                if let CopyError::Withheld(reason) = &error {
                    // Told to whoever looks for the output: it is kept back on purpose.
                    let line = format!("nacre: output withheld by the agent policy: {reason}\n");
                    sink.write(line.as_bytes(), progress).await?;
                }
                return Err(error);
            }
        };
        progress.moved();
        let deliver = async {
            progress.at_reader.store(true, Ordering::Relaxed);
            let written = sink.write(&data, progress).await;
            progress.at_reader.store(false, Ordering::Relaxed);
            written
        };
        let (written, following) = tokio::join!(deliver, read());
        written?;
        next = following.map_err(CopyError::from);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::atomic::AtomicUsize;

    use tokio::time::sleep;

    use super::*;

    struct Fifo {
        _dir: tempfile::TempDir,
        path: String,
    }

    fn fifo() -> Fifo {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        Fifo { path: path.to_str().unwrap().to_owned(), _dir: dir }
    }

    fn stdio(stdin: &str, stdout: &str) -> Stdio {
        Stdio { stdin: stdin.into(), stdout: stdout.into(), ..Stdio::default() }
    }

    /// `length` bytes in which each tells its place.
    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i / 251 + i).to_le_bytes()[0]).collect()
    }

    #[tokio::test]
    async fn output_of_many_chunks_passes_intact_to_a_slow_reader_in_bounded_memory() {
        let fifo = fifo();
        let total = pattern(8 * 1024 * 1024);
        let streams = stdio("", &fifo.path).open().unwrap();
        let taken = Arc::new(AtomicUsize::new(0));
        let reader = std::thread::spawn({
            let (path, taken) = (fifo.path.clone(), taken.clone());
            move || {
                let mut file = File::open(path).unwrap();
                let mut all = Vec::<u8>::new();
                let mut part = [0; 30_000];
                loop {
                    let read = file.read(&mut part).unwrap();
                    if read == 0 {
                        return all;
                    }
                    all.extend(&part[..read]);
                    taken.store(all.len(), Ordering::SeqCst);
                    std::thread::sleep(Duration::from_micros(300));
                }
            }
        });
        let mut given = 0;
        let read = || {
            let chunk = total[given..].iter().take(STREAM_CHUNK).copied().collect::<Vec<_>>();
            given += chunk.len();
            let ahead = given - taken.load(Ordering::SeqCst);
            // Two chunks here, one in the kernel's pipe, one in the reader's hand.
            assert!(ahead <= 4 * STREAM_CHUNK, "{ahead} bytes ahead of the reader");
            async move { Ok(Some(chunk).filter(|chunk| !chunk.is_empty())) }
        };
        copy_output(read, streams.stdout, &Progress::default()).await.unwrap();
        assert!(reader.join().unwrap() == total);
    }

    #[tokio::test]
    async fn output_that_the_policy_withholds_is_replaced_by_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let streams = stdio("", &format!("file://{}", path.display())).open().unwrap();
        let mut asked = 0;
        let read = || {
            asked += 1;
            let code = Code::PERMISSION_DENIED;
            async move { Err(AgentError::Refused { code, message: "policy denies x".into() }) }
        };
        let error = copy_output(read, streams.stdout, &Progress::default()).await.unwrap_err();
        assert!(matches!(error, CopyError::Withheld(_)));
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "nacre: output withheld by the agent policy: policy denies x\n");
        assert_eq!(asked, 1);
    }

    #[tokio::test]
    async fn input_survives_a_writer_that_goes_and_comes_and_ends_when_told() {
        let fifo = fifo();
        let pumps = Pumps::new(stdio(&fifo.path, "").open().unwrap());
        let source = pumps.lock().waiting.take().unwrap().stdin.unwrap();
        let collected = Arc::new(Mutex::new(Vec::<u8>::new()));
        let copy = tokio::spawn({
            let collected = collected.clone();
            async move {
                copy_input(source, |data| {
                    collected.lock().unwrap().extend(data);
                    async { Ok(()) }
                })
                .await
            }
        });
        let total = pattern(1024 * 1024);
        for half in total.chunks(total.len() / 2) {
            let (path, half) = (fifo.path.clone(), half.to_vec());
            let write = move || {
                OpenOptions::new().write(true).open(path).unwrap().write_all(&half).unwrap();
            };
            tokio::task::spawn_blocking(write).await.unwrap();
            sleep(Duration::from_millis(20)).await;
            assert!(!copy.is_finished(), "a writer that leaves is not the end");
        }
        pumps.close_input();
        copy.await.unwrap().unwrap();
        assert!(*collected.lock().unwrap() == total);
    }

    #[tokio::test]
    async fn a_reader_that_vanishes_breaks_nothing() {
        let fifo = fifo();
        let mut sink = stdio("", &fifo.path).open().unwrap().stdout;
        drop(OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&fifo.path));
        sink.write(b"kept", &Progress::default()).await.unwrap();
        let mut later =
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&fifo.path).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(later.read(&mut buffer).unwrap(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn output_that_trickles_on_after_the_end_is_given_up() {
        let pumps = Pumps::default();
        let progress = Arc::new(Progress::default());
        let moving = progress.clone();
        let task = tokio::spawn(async move {
            loop {
                sleep(GUEST_STANDSTILL - Duration::from_millis(100)).await;
                moving.moved();
            }
        });
        pumps.lock().outputs.push(Pump { task, progress });
        let ended = Instant::now();
        pumps.drained().await;
        let took = ended.elapsed();
        assert!(took > MOST_TIME_AFTER_END, "given up after {took:?}");
        assert!(took <= MOST_TIME_AFTER_END + STANDSTILL_CHECK, "followed for {took:?}");
        pumps.close();
    }

    #[tokio::test]
    async fn files_are_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let uri = format!("file://{}", path.display());
        for part in [b"a", b"b"] {
            let mut sink = stdio("", &uri).open().unwrap().stdout;
            sink.write(part, &Progress::default()).await.unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"ab");
    }

    #[tokio::test]
    async fn mistaken_names_are_refused_by_stream_and_name() {
        for (uri, expected) in [
            ("binary:///bin/logger?a=b", "binary:///bin/logger"),
            ("relative/fifo", "relative/fifo"),
            ("npipe:////x", "npipe"),
            ("/absent/fifo", "/absent/fifo"),
            ("/dev/null", "neither a fifo nor a regular file"),
            ("file:///x?mode=1", "file:///x?mode=1"),
        ] {
            let error = stdio("", uri).open().unwrap_err().to_string();
            assert!(error.starts_with("stdout") && error.contains(expected), "{uri}: {error}");
        }
        assert!(stdio("/absent/in", "").open().unwrap_err().to_string().starts_with("stdin"));
    }

    #[tokio::test]
    async fn a_terminal_has_one_output() {
        let streams = Stdio { terminal: true, stderr: "/absent".into(), ..Stdio::default() };
        assert!(streams.open().unwrap().stderr.is_none());
    }
}
