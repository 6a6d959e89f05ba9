use std::cell::Cell;
use std::fs;

use tokio::io::DuplexStream;
use tokio::time::{sleep, timeout};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

thread_local! {
    /// The program of the last session that [`cat`] began in this test.
    static LAST: Cell<Option<Pid>> = const { Cell::new(None) };
}

/// A program that answers with its input; nobody reaps it, so it seems to live on when it has ended.
fn cat(_: &Start, reaper: &Arc<Reaper>) -> io::Result<Process> {
    let (streams, [stdin, stdout, stderr]) = Streams::pipes()?;
    let mut command = Command::new("cat");
    command.stdin(stdin).stdout(stdout).stderr(stderr).process_group(0);
    let launch = reaper.launch();
    let pid = Pid::from_child(&command.spawn()?);
    LAST.set(Some(pid));
    Process::claim(pid, &launch, streams)
}

fn no_program(_: &Start, _: &Arc<Reaper>) -> io::Result<Process> {
    Err(io::ErrorKind::NotFound.into())
}

struct Host {
    port: DuplexStream,
    served: tokio::task::JoinHandle<Result<(), ShellError>>,
}

impl Host {
    fn new(spawn: Spawn) -> Host {
        let (port, guest) = tokio::io::duplex(1 << 20);
        let (incoming, outgoing) = tokio::io::split(guest);
        let served = tokio::spawn(serve(incoming, outgoing, spawn, Arc::default()));
        Host { port, served }
    }

    async fn say(&mut self, session: u32, frame: FromHost<'_>) {
        self.port.write_all(&frame.to_bytes(session).unwrap()).await.unwrap();
    }

    async fn start(&mut self, session: u32) {
        let start = Start { command: Vec::new(), terminal: None };
        self.say(session, FromHost::Start(start)).await;
    }

    /// The next frame, with its session.
    async fn next(&mut self) -> (u32, Vec<u8>) {
        let read = async {
            let mut head = [0; HEADER_SIZE];
            self.port.read_exact(&mut head).await.unwrap();
            let header = Header::parse(&head).unwrap();
            let mut payload = vec![0; header.size()];
            self.port.read_exact(&mut payload).await.unwrap();
            (header.session(), [&head[..], &payload].concat())
        };
        timeout(PATIENCE, read).await.unwrap()
    }

    async fn ended(self) -> Result<(), ShellError> {
        timeout(PATIENCE, self.served).await.unwrap().unwrap()
    }
}

#[tokio::test]
async fn a_session_gets_its_programs_output_and_ends_with_its_host() {
    let mut host = Host::new(cat);
    // Nobody has begun this one.
    host.say(6, FromHost::Input(b"lost")).await;
    host.start(7).await;
    host.say(7, FromHost::Input(b"hello")).await;
    let mut frames = [host.next().await, host.next().await];
    frames.sort();
    let expected = [FromGuest::Output(b"hello"), FromGuest::Taken(5)];
    assert_eq!(frames, expected.map(|frame| (7, frame.to_bytes(7).unwrap())));

    let pid = LAST.take().unwrap().as_raw_nonzero();
    host.say(7, FromHost::HangUp).await;
    // Gone, or a zombie that nobody waits for.
    let stat = || fs::read_to_string(format!("/proc/{pid}/stat"));
    let killed = async {
        while stat().is_ok_and(|stat| !stat.contains(") Z ")) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, killed).await.unwrap();
}

#[tokio::test]
async fn input_is_bounded() {
    // Nothing reads its input: the pipe holds as much as the window and no more.
    let mut host = Host::new(|start, reaper| {
        let process = cat(start, reaper)?;
        process.signal(libc::SIGSTOP.unsigned_abs()).map_err(io::Error::other)?;
        Ok(process)
    });
    host.start(1).await;
    for _ in 0..8 {
        host.say(1, FromHost::Input(&[7; PAYLOAD_LIMIT])).await;
    }
    let error = host.ended().await.unwrap_err();
    assert!(matches!(error, ShellError::Window), "{error}");
}

#[tokio::test]
async fn a_program_that_cannot_be_started_is_told_of_and_a_broken_protocol_ends_it() {
    let mut host = Host::new(no_program);
    host.start(3).await;
    let (session, frame) = host.next().await;
    assert_eq!(session, 3);
    assert!(String::from_utf8_lossy(&frame).contains("failed to start a shell"));
    let answer = FromGuest::Exited(0).to_bytes(3).unwrap();
    host.port.write_all(&answer).await.unwrap();
    let error = host.ended().await.unwrap_err();
    assert!(matches!(error, ShellError::Violation(_)), "{error}");
}
