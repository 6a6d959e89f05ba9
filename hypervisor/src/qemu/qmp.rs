//! QEMU's control channel (QMP), as a client that does not trust QEMU: lines, strings and the
//! number of waiting answers are bounded, and each call has a deadline.
//!
//! Source: QEMU's docs/interop/qmp-spec.rst and qapi/run-state.json.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Longest line that is read from QEMU, in bytes. The greeting has about 150, an event about 200.
const LINE_LIMIT: u64 = 16 * 1024;
/// Longest string that is kept from an answer, in characters.
const WORD_LIMIT: usize = 200;
/// Answers that may wait to be fetched. One command is sent at a time, so one is enough.
const WAITING_ANSWERS: usize = 4;

/// A connection on which commands may be given.
pub(super) struct Qmp {
    commands: tokio::sync::Mutex<Commands>,
    version: [u32; 3],
}

struct Commands {
    writer: OwnedWriteHalf,
    answers: mpsc::Receiver<Answer>,
    next_id: u64,
}

/// What QEMU said about the VM by itself, and the task that listens for it.
pub(super) struct Listener {
    events: watch::Receiver<Events>,
    task: JoinHandle<()>,
}

/// Events that explain how a VM ended.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Events {
    /// Reason of the last `SHUTDOWN`, such as `guest-shutdown`, `guest-reset`, `host-qmp-quit`.
    pub(super) shutdown: Option<String>,
    /// Whether `GUEST_PANICKED` came.
    pub(super) panicked: bool,
    /// Whether the last of `STOP` and `RESUME` was `STOP`.
    pub(super) stopped: bool,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum QmpError {
    #[error("QEMU closed its control channel")]
    Closed,
    #[error("QEMU did not answer `{0}` in time")]
    Late(&'static str),
    #[error("QEMU refused `{command}`: {why}")]
    Refused { command: &'static str, why: String },
    #[error("the control channel failed: {0}")]
    Io(#[from] std::io::Error),
}

enum Answer {
    Greeting([u32; 3]),
    Reply { id: u64, result: Result<Value, String> },
}

/// Everything QEMU may say; one of the first four is there.
#[derive(Deserialize)]
struct Message {
    #[serde(rename = "QMP")]
    greeting: Option<Greeting>,
    event: Option<String>,
    #[serde(rename = "return")]
    success: Option<Value>,
    error: Option<Refusal>,
    id: Option<u64>,
    data: Option<EventData>,
}

#[derive(Deserialize)]
struct Greeting {
    version: Version,
}

#[derive(Deserialize)]
struct Version {
    qemu: Triple,
}

#[derive(Deserialize)]
struct Triple {
    major: u32,
    minor: u32,
    micro: u32,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

#[derive(Deserialize)]
struct EventData {
    reason: Option<String>,
}

impl Qmp {
    /// Waits for QEMU's greeting and enters command mode. QEMU answers once the machine is complete.
    pub(super) async fn connect(
        socket: StdUnixStream,
        patience: Duration,
    ) -> Result<(Qmp, Listener), QmpError> {
        socket.set_nonblocking(true)?;
        let (reader, writer) = UnixStream::from_std(socket)?.into_split();
        let (sender, mut answers) = mpsc::channel(WAITING_ANSWERS);
        let listener = Listener::spawn(reader, sender);
        let greeting = timeout(patience, answers.recv()).await;
        let version = match greeting.map_err(|_| QmpError::Late("(greeting)"))? {
            Some(Answer::Greeting(version)) => version,
            Some(Answer::Reply { .. }) | None => return Err(QmpError::Closed),
        };
        let commands = Commands { writer, answers, next_id: 1 };
        let qmp = Qmp { commands: tokio::sync::Mutex::new(commands), version };
        qmp.execute("qmp_capabilities", patience).await?;
        Ok((qmp, listener))
    }

    /// QEMU's version as it greeted.
    pub(super) fn version(&self) -> [u32; 3] {
        self.version
    }

    /// The VM's run state, such as `running`.
    pub(super) async fn status(&self, patience: Duration) -> Result<String, QmpError> {
        let answer = self.execute("query-status", patience).await?;
        Ok(bounded(answer.get("status").and_then(Value::as_str).unwrap_or_default()))
    }

    /// Ends QEMU without asking the guest.
    pub(super) async fn quit(&self, patience: Duration) -> Result<(), QmpError> {
        self.execute("quit", patience).await.map(drop)
    }

    /// Gives a command with arguments.
    pub(super) async fn command(
        &self,
        command: &'static str,
        arguments: Value,
        patience: Duration,
    ) -> Result<Value, QmpError> {
        let request = Request { command, arguments: Some(arguments), fd: None };
        self.ask(request, patience).await
    }

    /// Gives QEMU an open file, as a set of its own (`add-fd`).
    pub(super) async fn add_fd(&self, fd: OwnedFd, patience: Duration) -> Result<Value, QmpError> {
        let request = Request { command: "add-fd", arguments: None, fd: Some(fd) };
        self.ask(request, patience).await
    }

    async fn execute(&self, command: &'static str, patience: Duration) -> Result<Value, QmpError> {
        self.ask(Request { command, arguments: None, fd: None }, patience).await
    }

    async fn ask(&self, request: Request, patience: Duration) -> Result<Value, QmpError> {
        let Request { command, arguments, fd } = request;
        let call = async {
            let mut commands = self.commands.lock().await;
            let id = commands.next_id;
            commands.next_id += 1;
            let mut message = json!({ "execute": command, "id": id });
            if let Some(arguments) = arguments {
                message["arguments"] = arguments;
            }
            let line = format!("{message}\n");
            let mut rest = line.as_bytes();
            if let Some(fd) = fd {
                let sent = send_with(&commands.writer, rest, &fd).await?;
                rest = rest.get(sent..).unwrap_or_default();
            }
            commands.writer.write_all(rest).await?;
            loop {
                match commands.answers.recv().await {
                    Some(Answer::Reply { id: answered, result }) if answered == id => {
                        return result.map_err(|why| QmpError::Refused { command, why });
                    }
                    // The answer to a call that was given up, or noise.
                    Some(_) => {}
                    None => return Err(QmpError::Closed),
                }
            }
        };
        timeout(patience, call).await.map_err(|_| QmpError::Late(command))?
    }
}

/// One command.
struct Request {
    command: &'static str,
    arguments: Option<Value>,
    fd: Option<OwnedFd>,
}

/// Sends the beginning of `bytes` and a descriptor beside it (unix(7), `SCM_RIGHTS`); returns how many bytes.
async fn send_with(writer: &OwnedWriteHalf, bytes: &[u8], fd: &OwnedFd) -> std::io::Result<usize> {
    let socket: &UnixStream = writer.as_ref();
    let fds = [fd.as_fd()];
    loop {
        socket.writable().await?;
        let sent = socket.try_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(&fds));
            let slices = [IoSlice::new(bytes)];
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            Ok(sendmsg(socket, &slices, &mut control, flags)?)
        });
        match sent {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            sent => return sent,
        }
    }
}

impl Listener {
    fn spawn(reader: OwnedReadHalf, answers: mpsc::Sender<Answer>) -> Listener {
        let (noted, events) = watch::channel(Events::default());
        let task = tokio::spawn(listen(reader, noted, answers));
        Listener { events, task }
    }

    /// Returns when QEMU has stopped the guest's processors, other than to shut down.
    pub(super) async fn halted(&mut self) {
        let halted = |events: &Events| events.stopped && events.shutdown.is_none();
        if self.events.wait_for(halted).await.is_err() {
            // The channel is closed: it will not be heard of any more.
            std::future::pending::<()>().await;
        }
    }

    /// Waits until QEMU's end is closed, at most `patience`, and tells what came.
    pub(super) async fn finish(mut self, patience: Duration) -> Events {
        if timeout(patience, &mut self.task).await.is_err() {
            self.task.abort();
        }
        self.events.borrow().clone()
    }
}

/// Reads until QEMU closes the channel, or breaks the protocol.
async fn listen(
    reader: OwnedReadHalf,
    events: watch::Sender<Events>,
    answers: mpsc::Sender<Answer>,
) {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let ended = match (&mut reader).take(LINE_LIMIT).read_until(b'\n', &mut line).await {
            Ok(read) => read == 0,
            Err(_) => true,
        };
        if ended {
            return;
        }
        if line.last() != Some(&b'\n') {
            tracing::warn!(bytes = line.len(), "QEMU sent an unfinished or overlong QMP line");
            return;
        }
        let Ok(message) = serde_json::from_slice::<Message>(&line) else {
            tracing::warn!(bytes = line.len(), "QEMU sent a QMP line of unknown form");
            return;
        };
        match message.sort() {
            Sorted::Event { name, reason } => {
                tracing::debug!(name, reason, "QMP event");
                events.send_modify(|events| events.note(&name, reason));
            }
            // A full queue means answers nobody asked for: they are dropped.
            Sorted::Answer(answer) => drop(answers.try_send(answer)),
            Sorted::Unknown => {}
        }
    }
}

enum Sorted {
    Event { name: String, reason: Option<String> },
    Answer(Answer),
    Unknown,
}

impl Message {
    fn sort(self) -> Sorted {
        if let Some(name) = self.event {
            let reason = self.data.and_then(|data| data.reason);
            let reason = reason.as_deref().map(bounded);
            return Sorted::Event { name: bounded(&name), reason };
        }
        if let Some(greeting) = self.greeting {
            let Triple { major, minor, micro } = greeting.version.qemu;
            return Sorted::Answer(Answer::Greeting([major, minor, micro]));
        }
        let result = match (self.success, self.error) {
            (_, Some(refusal)) => Err(bounded(&refusal.desc)),
            (Some(value), None) => Ok(value),
            (None, None) => return Sorted::Unknown,
        };
        Sorted::Answer(Answer::Reply { id: self.id.unwrap_or_default(), result })
    }
}

impl Events {
    fn note(&mut self, name: &str, reason: Option<String>) {
        match name {
            "SHUTDOWN" => self.shutdown = Some(reason.unwrap_or_default()),
            "GUEST_PANICKED" => self.panicked = true,
            "STOP" => self.stopped = true,
            "RESUME" => self.stopped = false,
            _ => {}
        }
    }
}

fn bounded(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(WORD_LIMIT).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::Shutdown;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);
    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "capabilities": []}}"#;

    /// Connects to a peer that has already said everything it will say.
    async fn connect_to(said: &[u8]) -> Result<(Qmp, Listener), QmpError> {
        let (ours, mut theirs) = StdUnixStream::pair().unwrap();
        let said = said.to_vec();
        let peer = std::thread::spawn(move || {
            // A client that gives up makes this fail.
            let _ = theirs.write_all(&said);
            let _ = theirs.shutdown(Shutdown::Write);
            theirs
        });
        let connected = Qmp::connect(ours, PATIENCE).await;
        drop(peer.join());
        connected
    }

    #[tokio::test]
    async fn a_greeting_and_an_event_are_understood() {
        let said = format!(
            "{GREETING}\n{}\n{}\n{}\n",
            r#"{"return": {}, "id": 1}"#,
            r#"{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}"#,
            r#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}, "timestamp": {}}"#,
        );
        let (qmp, listener) = connect_to(said.as_bytes()).await.unwrap();
        assert_eq!(qmp.version(), [10, 0, 2]);
        let events = listener.finish(PATIENCE).await;
        assert_eq!(events.shutdown.as_deref(), Some("guest-shutdown"));
        assert!(events.stopped && !events.panicked);
    }

    #[tokio::test]
    async fn a_peer_that_never_ends_its_line_is_cut_off() {
        let endless = vec![b'{'; 1024 * 1024];
        assert!(matches!(connect_to(&endless).await, Err(QmpError::Closed)));
    }

    #[tokio::test]
    async fn a_peer_that_breaks_the_protocol_is_cut_off() {
        for said in ["[1]\n", "nonsense\n", "", "{\"return\": {}, \"id\": 1}\n"] {
            assert!(matches!(connect_to(said.as_bytes()).await, Err(QmpError::Closed)), "{said}");
        }
    }

    #[tokio::test]
    async fn answers_that_nobody_asked_for_are_not_hoarded() {
        let mut said = format!("{GREETING}\n").into_bytes();
        for _ in 0..10_000 {
            said.extend_from_slice(b"{\"return\": {}, \"id\": 77}\n");
        }
        assert!(connect_to(&said).await.is_err());
    }

    #[tokio::test]
    async fn a_refusal_says_why() {
        let said = format!(
            "{GREETING}\n{}\n",
            r#"{"error": {"class": "GenericError", "desc": "not today"}, "id": 1}"#
        );
        let error = connect_to(said.as_bytes()).await.err().unwrap().to_string();
        assert_eq!(error, "QEMU refused `qmp_capabilities`: not today");
    }
}
