//! Standard streams of a process, moved only when the host asks: what the host does not read stays in
//! the kernel's pipe, and a full pipe stops the writer. Nothing is buffered here.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use nacre_protocol::channel::STREAM_CHUNK;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::error::RpcError;
use crate::raw;

/// The agent's ends of a process's standard streams.
#[derive(Debug)]
pub(crate) struct Streams {
    /// What the process reads.
    pub(crate) stdin: Input,
    /// What it writes; with a terminal, all of it.
    pub(crate) stdout: Output,
    /// What it writes as errors; ends at once with a terminal.
    pub(crate) stderr: Output,
    /// Lives as long as one of the streams is open.
    terminal: Weak<AsyncFd<OwnedFd>>,
}

/// The process's ends of its pipes: stdin, stdout, stderr.
pub(crate) type ProcessEnds = [OwnedFd; 3];

impl Streams {
    /// Three pipes.
    pub(crate) fn pipes() -> io::Result<(Self, ProcessEnds)> {
        let (stdin_read, stdin_write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (stdout_read, stdout_write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr_read, stderr_write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let streams = Self {
            stdin: Input::new(Some(asynchronous(stdin_write)?)),
            stdout: Output::new(Some(asynchronous(stdout_read)?)),
            stderr: Output::new(Some(asynchronous(stderr_read)?)),
            terminal: Weak::new(),
        };
        Ok((streams, [stdin_read, stdout_write, stderr_write]))
    }

    /// One terminal for all three, from its controlling end.
    pub(crate) fn terminal(controlling: OwnedFd) -> io::Result<Self> {
        let fd = asynchronous(controlling)?;
        Ok(Self {
            terminal: Arc::downgrade(&fd),
            stdin: Input::new(Some(Arc::clone(&fd))),
            stdout: Output::new(Some(fd)),
            stderr: Output::new(None),
        })
    }

    /// Sets the terminal's size in characters.
    pub(crate) fn resize(&self, rows: u16, columns: u16) -> Result<(), RpcError> {
        let Some(terminal) = self.terminal.upgrade() else {
            return Err(RpcError::Precondition("the process has no terminal to resize".into()));
        };
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(terminal.get_ref(), size)
            .map_err(|e| RpcError::internal("failed to resize the terminal", e))
    }

    /// Ends every stream and wakes who waits on one.
    pub(crate) fn close(&self) {
        self.stdin.close();
        self.stdout.close();
        self.stderr.close();
    }
}

/// A stream into a process.
#[derive(Debug)]
pub(crate) struct Input {
    end: End,
    /// Keeps the bytes of two requests apart.
    turn: tokio::sync::Mutex<()>,
}

impl Input {
    fn new(fd: Option<Arc<AsyncFd<OwnedFd>>>) -> Self {
        Self { end: End::new(fd), turn: tokio::sync::Mutex::new(()) }
    }

    /// Returns when the process's pipe has taken all of `data`.
    pub(crate) async fn write(&self, data: &[u8]) -> Result<(), RpcError> {
        let _turn = self.turn.lock().await;
        let mut rest = data;
        while !rest.is_empty() {
            let Some(fd) = self.end.open() else {
                return Err(RpcError::Precondition("stdin is closed".into()));
            };
            let closed =
                || RpcError::Precondition("stdin was closed before all was written".into());
            let mut ready = tokio::select! {
                () = self.end.closed() => return Err(closed()),
                ready = fd.writable() => ready.map_err(failed("wait for"))?,
            };
            match ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), rest)?)) {
                Ok(Ok(written)) => rest = &rest[written..],
                Ok(Err(error)) if is_hangup(&error) => {
                    self.end.close();
                    return Err(RpcError::Precondition("the process closed its stdin".into()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(failed("write to")(error)),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }

    /// The process sees the end of its input. A terminal stays open for its output.
    pub(crate) fn close(&self) {
        self.end.close();
    }
}

/// A stream out of a process.
#[derive(Debug)]
pub(crate) struct Output {
    end: End,
    discarded: AtomicBool,
}

impl Output {
    fn new(fd: Option<Arc<AsyncFd<OwnedFd>>>) -> Self {
        Self { end: End::new(fd), discarded: AtomicBool::new(false) }
    }

    /// Reads to the end and keeps nothing, so that the process is not stopped by a full pipe.
    pub(crate) async fn discard(&self) {
        if self.discarded.swap(true, Ordering::Relaxed) {
            return;
        }
        while self.read(STREAM_CHUNK).await.is_ok() {}
    }

    /// Waits until there is something, and returns at most `most` bytes of it.
    pub(crate) async fn read(&self, most: usize) -> Result<Vec<u8>, RpcError> {
        let most = most.min(STREAM_CHUNK);
        loop {
            let fd = self.end.open().ok_or(RpcError::EndOfStream)?;
            let mut ready = tokio::select! {
                () = self.end.closed() => return Err(RpcError::EndOfStream),
                ready = fd.readable() => ready.map_err(failed("wait for"))?,
            };
            let mut data = Vec::with_capacity(most);
            let result = ready.try_io(|fd| {
                Ok(rustix::io::read(fd.get_ref(), rustix::buffer::spare_capacity(&mut data))?)
            });
            match result {
                Ok(Ok(0)) => self.end.close(),
                Ok(Ok(_)) => return Ok(data),
                Ok(Err(error)) if is_hangup(&error) => self.end.close(),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(failed("read from")(error)),
                Err(_would_block) => {}
            }
        }
    }

    fn close(&self) {
        self.end.close();
    }
}

/// One end of a stream, until it is closed.
#[derive(Debug)]
struct End {
    fd: Mutex<Option<Arc<AsyncFd<OwnedFd>>>>,
    closed: watch::Sender<bool>,
}

impl End {
    fn new(fd: Option<Arc<AsyncFd<OwnedFd>>>) -> Self {
        let closed = watch::Sender::new(fd.is_none());
        Self { fd: Mutex::new(fd), closed }
    }

    fn open(&self) -> Option<Arc<AsyncFd<OwnedFd>>> {
        self.fd.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn closed(&self) {
        // Fails only when the sender is gone, which is in `self`.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }

    fn close(&self) {
        self.fd.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.closed.send_replace(true);
    }
}

/// A pipe without a reader, or a terminal that no process has open.
fn is_hangup(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::PIPE | Errno::IO))
}

fn failed(doing: &str) -> impl Fn(io::Error) -> RpcError {
    let doing = format!("failed to {doing} the stream");
    move |error| RpcError::internal(&doing, error)
}

fn asynchronous(fd: OwnedFd) -> io::Result<Arc<AsyncFd<OwnedFd>>> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
    Ok(Arc::new(raw::register(fd)?))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::pty::OpenptFlags;
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn output_ends_when_the_process_has_closed_it() {
        let (streams, [_stdin, stdout, _stderr]) = Streams::pipes().unwrap();
        rustix::io::write(&stdout, b"hello").unwrap();
        drop(stdout);
        assert_eq!(streams.stdout.read(3).await.unwrap(), b"hel");
        assert_eq!(streams.stdout.read(100).await.unwrap(), b"lo");
        for _ in 0..2 {
            assert!(matches!(streams.stdout.read(100).await, Err(RpcError::EndOfStream)));
        }
    }

    #[tokio::test]
    async fn a_process_whose_output_nobody_may_read_does_not_wait() {
        let (streams, [_stdin, stdout, _stderr]) = Streams::pipes().unwrap();
        let writer = std::thread::spawn(move || {
            // Far more than a pipe holds.
            (0..64).for_each(|_| assert_eq!(rustix::io::write(&stdout, &[0; 65_536]), Ok(65_536)));
        });
        streams.stdout.discard().await;
        writer.join().unwrap();
        assert!(matches!(streams.stdout.read(1).await, Err(RpcError::EndOfStream)));
    }

    #[tokio::test]
    async fn a_waiting_reader_is_woken_when_the_container_is_removed() {
        let (streams, _ends) = Streams::pipes().unwrap();
        let streams = Arc::new(streams);
        let reader = tokio::spawn({
            let streams = Arc::clone(&streams);
            async move { streams.stdout.read(10).await }
        });
        tokio::task::yield_now().await;
        streams.close();
        let result = timeout(SOON, reader).await.unwrap().unwrap();
        assert!(matches!(result, Err(RpcError::EndOfStream)));
    }

    #[tokio::test]
    async fn a_writer_waits_for_a_slow_process_and_learns_of_a_dead_one() {
        let (streams, [stdin, _stdout, _stderr]) = Streams::pipes().unwrap();
        let data = vec![7; 200_000];
        assert!(timeout(SOON, streams.stdin.write(&data)).await.is_err(), "the pipe is full");
        drop(stdin);
        let error = streams.stdin.write(b"more").await.unwrap_err();
        assert!(error.to_string().contains("closed its stdin"), "{error}");
    }

    #[tokio::test]
    async fn closing_stdin_ends_the_process_input_and_refuses_more() {
        let (streams, [stdin, _stdout, _stderr]) = Streams::pipes().unwrap();
        streams.stdin.write(b"last").await.unwrap();
        streams.stdin.close();
        let mut buffer = [0; 10];
        assert_eq!(rustix::io::read(&stdin, &mut buffer).unwrap(), 4);
        assert_eq!(rustix::io::read(&stdin, &mut buffer).unwrap(), 0);
        assert!(streams.stdin.write(b"x").await.is_err());
    }

    #[tokio::test]
    async fn a_terminal_ends_with_its_last_process() {
        let controlling = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        rustix::pty::grantpt(&controlling).unwrap();
        rustix::pty::unlockpt(&controlling).unwrap();
        let name = rustix::pty::ptsname(&controlling, Vec::new()).unwrap();
        let process = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, 0.into()).unwrap();
        let streams = Streams::terminal(controlling).unwrap();
        streams.resize(40, 100).unwrap();
        assert_eq!(rustix::termios::tcgetwinsize(&process).unwrap().ws_col, 100);
        rustix::io::write(&process, b"hi").unwrap();
        assert_eq!(streams.stdout.read(10).await.unwrap(), b"hi");
        drop(process);
        assert!(matches!(streams.stdout.read(10).await, Err(RpcError::EndOfStream)));
        assert!(matches!(streams.stderr.read(10).await, Err(RpcError::EndOfStream)));
    }
}
