//! The shell of a development image's guest, offered to `nacre exec-vm` at a socket in the run directory.
//!
//! Frames (`nacre_protocol::debug_shell`) pass from the socket to a port of the machine and back. There is
//! one session at a time. The shim numbers them, and tells the guest when its client has gone; what comes
//! from the guest is bounded, and what belongs to no session is dropped. For a client that
//! does not read waits the guest, and nobody else, and that until its session ends. Machines with the ordinary image
//! have neither socket nor port, and their guests would not open it.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nacre_configuration::Config;
use nacre_hypervisor::SerialPort;
use nacre_protocol::channel::{DEBUG_SHELL_PORT_NAME, DEBUG_SHELL_SOCKET};
use nacre_protocol::debug_shell::{
    FromGuest, FromHost, HEADER_SIZE, Header, PAYLOAD_LIMIT, Violation,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, watch};
use tokio::time::sleep;

use crate::error::{Code, Coded};

/// Why there is no shell.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShellError {
    #[error(
        "failed to offer a shell in the guest at {DEBUG_SHELL_SOCKET} of the run directory: {0}"
    )]
    Socket(io::Error),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Violation(#[from] Violation),
}

impl Coded for ShellError {
    fn code(&self) -> Code {
        Code::INTERNAL
    }
}

/// Offers the shell in `run_dir`, if the node's machines have the development image; returns the port that
/// the machine must have. Served until the guest closes the port or the program ends.
pub(crate) fn offer(config: &Config, run_dir: &Path) -> Result<Option<SerialPort>, ShellError> {
    if !config.vm.danger_development_image {
        return Ok(None);
    }
    let path = run_dir.join(DEBUG_SHELL_SOCKET);
    let made = || {
        // The directory is root's alone.
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        let (ours, socket) = UnixStream::pair()?;
        let socket = socket.into_std()?;
        socket.set_nonblocking(false)?;
        Ok((listener, ours, socket))
    };
    let (listener, port, socket) = made().map_err(ShellError::Socket)?;
    tokio::spawn(async move {
        if let Err(error) = serve(listener, port).await {
            tracing::warn!("there is no shell in the guest any more: {error}");
        }
    });
    Ok(Some(SerialPort { name: DEBUG_SHELL_PORT_NAME.to_owned(), socket }))
}

/// Rest after a connection that could not be accepted, such as for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Who has the session.
struct Client {
    session: u32,
    /// Locked for a write, which takes its time, while `Current` is free.
    stream: Arc<Mutex<OwnedWriteHalf>>,
    /// Goes with the session: who writes to a client that does not read then stops.
    over: watch::Sender<()>,
}

type Current = Arc<Mutex<Option<Client>>>;

async fn serve(listener: UnixListener, port: UnixStream) -> Result<(), ShellError> {
    let (from_guest, to_guest) = port.into_split();
    let to_guest = Arc::new(Mutex::new(to_guest));
    let current = Current::default();
    // In a task of its own: it waits for clients, and this loop must not.
    let mut sorting = tokio::spawn(sort(from_guest, Arc::clone(&current)));
    let mut session = 0;
    loop {
        let stream = tokio::select! {
            ended = &mut sorting => return ended.map_err(io::Error::from)?,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!("a session of the guest's shell could not begin: {error}");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        session += 1;
        let (requests, answers) = stream.into_split();
        let mut taken = current.lock().await;
        if taken.is_some() {
            let busy =
                FromGuest::Failed("another session is under way in this guest: end it first");
            // Of no interest once the client is gone. It fits any socket's buffer.
            let _ = answers.try_write(&busy.to_bytes(session)?);
            continue;
        }
        let (stream, over) = (Arc::new(Mutex::new(answers)), watch::Sender::new(()));
        *taken = Some(Client { session, stream, over });
        drop(taken);
        let (current, to_guest) = (Arc::clone(&current), Arc::clone(&to_guest));
        tokio::spawn(async move {
            if let Err(error) = attend(session, requests, &to_guest).await {
                tracing::debug!("session {session} of the guest's shell: {error}");
            }
            // Its number is over: what the guest still sends for it is dropped.
            current.lock().await.take_if(|client| client.session == session);
        });
    }
}

/// Passes on what the client of a session says, and that it has gone.
async fn attend(
    session: u32,
    mut requests: OwnedReadHalf,
    to_guest: &Mutex<OwnedWriteHalf>,
) -> Result<(), ShellError> {
    let passed = async {
        let mut payload = vec![0; PAYLOAD_LIMIT];
        while let Some(header) = frame(&mut requests, &mut payload).await? {
            let frame = FromHost::parse(&header, &payload[..header.size()])?;
            to_guest.lock().await.write_all(&frame.to_bytes(session)?).await?;
        }
        Ok(())
    };
    let passed = passed.await;
    to_guest.lock().await.write_all(&FromHost::HangUp.to_bytes(session)?).await?;
    passed
}

/// Passes on what the guest says to whom it is for, until the port ends.
async fn sort(mut from_guest: OwnedReadHalf, current: Current) -> Result<(), ShellError> {
    let mut payload = vec![0; PAYLOAD_LIMIT];
    while let Some(header) = frame(&mut from_guest, &mut payload).await? {
        let frame = FromGuest::parse(&header, &payload[..header.size()])?;
        let (stream, mut over) = match current.lock().await.as_ref() {
            Some(client) if client.session == header.session() => {
                (Arc::clone(&client.stream), client.over.subscribe())
            }
            _ => continue,
        };
        let bytes = frame.to_bytes(header.session())?;
        let sent = async { stream.lock().await.write_all(&bytes).await };
        let sent = tokio::select! {
            sent = sent => sent,
            // Its sender is gone: nothing else is ever said by it.
            _ = over.changed() => continue,
        };
        if sent.is_err() || frame.is_last() {
            // Closes this half; the client then closes the other.
            current.lock().await.take_if(|client| client.session == header.session());
        }
    }
    current.lock().await.take();
    Ok(())
}

/// The next frame's header, with its payload in the buffer; nothing at the end.
async fn frame(
    stream: &mut (impl AsyncRead + Unpin),
    payload: &mut [u8],
) -> Result<Option<Header>, ShellError> {
    let mut head = [0; HEADER_SIZE];
    match stream.read_exact(&mut head).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read.map(drop)?,
    }
    let header = Header::parse(&head)?;
    stream.read_exact(&mut payload[..header.size()]).await?;
    Ok(Some(header))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream as Blocking;
    use std::time::Duration;

    use nacre_protocol::debug_shell::Start;
    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn config() -> Config {
        let mut config = Config::default();
        config.vm.danger_development_image = true;
        config
    }

    fn start() -> FromHost<'static> {
        FromHost::Start(Start { command: vec!["true".into()], terminal: None })
    }

    /// Reads a frame without the runtime's thread.
    async fn read(mut stream: Blocking) -> (Blocking, Vec<u8>) {
        let read = tokio::task::spawn_blocking(move || {
            let mut head = [0; HEADER_SIZE];
            stream.read_exact(&mut head).unwrap();
            let mut payload = vec![0; Header::parse(&head).unwrap().size()];
            stream.read_exact(&mut payload).unwrap();
            (stream, [&head[..], &payload].concat())
        });
        timeout(PATIENCE, read).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn only_a_development_image_has_a_shell_and_its_socket_is_the_owners() {
        let directory = tempfile::tempdir().unwrap();
        assert!(offer(&Config::default(), directory.path()).unwrap().is_none());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        let port = offer(&config(), directory.path()).unwrap().unwrap();
        assert_eq!(port.name, "org.nacre.shell.0");
        let mode = fs::metadata(directory.path().join(DEBUG_SHELL_SOCKET)).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        assert!(offer(&config(), directory.path()).is_err(), "another shim's");
    }

    #[tokio::test]
    async fn sessions_follow_each_other_and_a_client_that_goes_is_told_of() {
        let directory = tempfile::tempdir().unwrap();
        let mut guest = offer(&config(), directory.path()).unwrap().unwrap().socket;
        let path = directory.path().join(DEBUG_SHELL_SOCKET);
        let connect = || Blocking::connect(&path).unwrap();
        let mut first = connect();
        // The number is the shim's to give.
        first.write_all(&start().to_bytes(77).unwrap()).unwrap();
        let frame;
        (guest, frame) = read(guest).await;
        assert_eq!(frame, start().to_bytes(1).unwrap());
        let (_, refusal) = read(connect()).await;
        assert!(String::from_utf8_lossy(&refusal).contains("another session"));
        // Of another session, then of this one.
        guest.write_all(&FromGuest::Output(b"old").to_bytes(9).unwrap()).unwrap();
        guest.write_all(&FromGuest::Output(b"new").to_bytes(1).unwrap()).unwrap();
        let (first, output) = read(first).await;
        assert_eq!(output, FromGuest::Output(b"new").to_bytes(1).unwrap());
        drop(first);
        let frame;
        (guest, frame) = read(guest).await;
        assert_eq!(frame, FromHost::HangUp.to_bytes(1).unwrap());

        // The place is free a moment after the guest was told.
        let next = async {
            loop {
                let mut next = connect();
                next.write_all(&start().to_bytes(0).unwrap()).unwrap();
                guest.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
                let mut head = [0; HEADER_SIZE];
                let came = tokio::task::spawn_blocking({
                    let mut guest = guest.try_clone().unwrap();
                    move || guest.read_exact(&mut head).map(|()| head)
                });
                if let Ok(head) = came.await.unwrap() {
                    return (next, Header::parse(&head).unwrap().session());
                }
            }
        };
        let (next, session) = timeout(PATIENCE, next).await.unwrap();
        assert!(session > 1);
        guest.write_all(&FromGuest::Exited(3).to_bytes(session).unwrap()).unwrap();
        let (mut next, exited) = read(next).await;
        assert_eq!(exited, FromGuest::Exited(3).to_bytes(session).unwrap());
        // And no more.
        let end = tokio::task::spawn_blocking(move || next.read(&mut [0; 1]).unwrap());
        assert_eq!(timeout(PATIENCE, end).await.unwrap().unwrap(), 0);
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_keeps_nobody_else_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let guest = offer(&config(), directory.path()).unwrap().unwrap().socket;
        let path = directory.path().join(DEBUG_SHELL_SOCKET);
        let mut stopped = Blocking::connect(&path).unwrap();
        stopped.write_all(&start().to_bytes(0).unwrap()).unwrap();
        let (mut guest, _) = read(guest).await;
        // More than all sockets on the way hold.
        let output = FromGuest::Output(&[b'x'; 4096]).to_bytes(1).unwrap().repeat(4096);
        guest.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        let written = tokio::task::spawn_blocking(move || {
            let mut written = 0;
            while written < output.len()
                && let Ok(size) = guest.write(&output[written..])
            {
                written += size;
            }
            assert!(written < output.len(), "somebody reads it");
            // What is left of a frame that was begun.
            let left = (output.len() - written) % (HEADER_SIZE + 4096);
            (guest, output[written..written + left].to_vec())
        });
        let (guest, left) = written.await.unwrap();
        let (_, refusal) = read(Blocking::connect(&path).unwrap()).await;
        assert!(String::from_utf8_lossy(&refusal).contains("another session"));

        // It says that nothing more comes, and still does not read: the next one gets what is its own.
        stopped.shutdown(std::net::Shutdown::Write).unwrap();
        let (mut guest, frame) = read(guest).await;
        assert_eq!(frame, FromHost::HangUp.to_bytes(1).unwrap());
        guest.set_write_timeout(Some(PATIENCE)).unwrap();
        let came = read(guest.try_clone().unwrap());
        tokio::pin!(came);
        let (mut next, (_, frame)) = loop {
            let mut next = UnixStream::connect(&path).await.unwrap();
            // One that is refused is told so, and may be closed by now.
            let _ = next.write_all(&start().to_bytes(0).unwrap()).await;
            let mut refused = [0; 1];
            tokio::select! {
                came = &mut came => break (next, came),
                _ = next.read(&mut refused) => {}
            }
        };
        let session = Header::parse(frame.first_chunk().unwrap()).unwrap().session();
        assert_eq!(frame, start().to_bytes(session).unwrap());
        let output = FromGuest::Output(b"new").to_bytes(session).unwrap();
        let bytes = [left, output.clone()].concat();
        tokio::task::spawn_blocking(move || guest.write_all(&bytes)).await.unwrap().unwrap();
        let mut came = vec![0; output.len()];
        timeout(PATIENCE, next.read_exact(&mut came)).await.unwrap().unwrap();
        assert_eq!(came, output);
    }
}
