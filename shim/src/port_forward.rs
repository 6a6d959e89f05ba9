//! Connections to the pod's localhost, as containerd makes them for `kubectl port-forward`: it enters the pod's
//! network namespace on the node and connects to localhost there. `nacre-pod-network` catches them; here each
//! is carried to the guest, where the pod's policy says whether the port may be reached.
//!
//! containerd learns of a refusal by a reset of its connection, and this program's log has the reason. A chunk
//! of each direction is in memory, the number of connections is bounded, and one on which nothing moves ends.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nacre_pod_network::{Attachment, Loopback};
use nacre_protocol::channel::{MOST_PORT_CONNECTIONS, STREAM_CHUNK};
use nacre_protocol::ports::{
    PortCloseRequest, PortForwardRequest, PortReadRequest, PortWriteRequest,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

use crate::agent::{Agent, AgentError};
use crate::error::Code;

/// How long nothing may move, as in containerd's streams by default.
const IDLE: Duration = Duration::from_secs(4 * 60 * 60);
/// The same once one side has said its last: a side that is gone altogether looks like that.
const HALF_CLOSED: Duration = Duration::from_secs(60);
/// Pause after a failure to accept: out of descriptors, most likely.
const PAUSE: Duration = Duration::from_millis(100);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum ForwardError {
    #[error("{0}")]
    Agent(#[from] AgentError),
    #[error("the connection on the node: {0}")]
    Node(#[from] io::Error),
    #[error("nothing moved for {} s", .0.as_secs())]
    Idle(Duration),
}

/// Carries connections as long as it lives.
pub(crate) struct PortForward {
    accepting: Vec<JoinHandle<()>>,
    _attachment: Attachment,
}

impl PortForward {
    /// Carries what is caught of the sandbox `id` to its guest.
    pub(crate) fn serve(caught: Loopback, agent: &Agent, id: &str) -> io::Result<PortForward> {
        let places = Arc::new(Semaphore::new(MOST_PORT_CONNECTIONS));
        let mut forward = PortForward { accepting: Vec::new(), _attachment: caught.attachment };
        for listener in caught.listeners {
            let listener = TcpListener::from_std(listener)?;
            let (agent, id, places) = (agent.clone(), Arc::from(id), Arc::clone(&places));
            forward.accepting.push(tokio::spawn(accept(listener, agent, id, places)));
        }
        Ok(forward)
    }
}

impl Drop for PortForward {
    fn drop(&mut self) {
        // Their connections end with them.
        self.accepting.iter().for_each(JoinHandle::abort);
    }
}

async fn accept(listener: TcpListener, agent: Agent, id: Arc<str>, places: Arc<Semaphore>) {
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!("no connection to the localhost of sandbox {id}: {error}");
                    sleep(PAUSE).await;
                    continue;
                }
            },
            Some(_) = connections.join_next() => continue,
        };
        match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => {
                connections.spawn(carry(stream, agent.clone(), Arc::clone(&id), place));
            }
            Err(_) => {
                tracing::warn!(
                    "a connection to the localhost of sandbox {id} is refused: there are \
                     {MOST_PORT_CONNECTIONS}, which is the most"
                );
                reset(&stream);
            }
        }
    }
}

async fn carry(mut stream: TcpStream, agent: Agent, id: Arc<str>, _place: OwnedSemaphorePermit) {
    // The address that was asked for, which is not the listening socket's.
    let port = match stream.local_addr() {
        Ok(address) => address.port(),
        Err(error) => return tracing::warn!("a connection of sandbox {id}: {error}"),
    };
    let connection = match Connection::open(agent, port).await {
        Ok(connection) => connection,
        Err(error) => {
            tracing::warn!("port {port} of the localhost of sandbox {id}: {error}");
            return reset(&stream);
        }
    };
    if let Err(error) = connection.carry(&mut stream, IDLE, HALF_CLOSED).await {
        tracing::info!("a connection to port {port} of sandbox {id} ends: {error}");
        reset(&stream);
    }
    drop(stream);
    if let Err(error) = connection.close(false).await {
        tracing::debug!("a connection to port {port} of sandbox {id} is closed: {error}");
    }
}

/// The other side is to see that this is no ordinary end.
fn reset(stream: &TcpStream) {
    if let Err(error) = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO)) {
        tracing::debug!("a refused connection ends like an ordinary one: {error}");
    }
}

/// One connection in the guest.
struct Connection {
    agent: Agent,
    port: u32,
    number: u32,
}

impl Connection {
    async fn open(agent: Agent, port: u16) -> Result<Connection, AgentError> {
        let port = u32::from(port);
        let request = PortForwardRequest { port, ..Default::default() };
        let number = agent.forward_port(request).await?.connection;
        Ok(Connection { agent, port, number })
    }

    /// Carries bytes until both sides have said their last.
    async fn carry(
        &self,
        stream: &mut TcpStream,
        idle: Duration,
        half_closed: Duration,
    ) -> Result<(), ForwardError> {
        let (mut from_node, mut to_node) = stream.split();
        let motion = Motion::default();
        let into_the_pod = async {
            let mut data = vec![0; STREAM_CHUNK];
            loop {
                let read = from_node.read(&mut data).await?;
                if read == 0 {
                    break;
                }
                self.write(&data[..read]).await?;
                motion.moved();
            }
            self.close(true).await?;
            motion.half_closed();
            Ok::<(), ForwardError>(())
        };
        let out_of_the_pod = async {
            while let Some(data) = self.read().await? {
                to_node.write_all(&data).await?;
                motion.moved();
            }
            to_node.shutdown().await?;
            motion.half_closed();
            Ok::<(), ForwardError>(())
        };
        tokio::select! {
            carried = async { tokio::try_join!(into_the_pod, out_of_the_pod) } => carried.map(drop),
            still = motion.stands_still(idle, half_closed) => Err(ForwardError::Idle(still)),
        }
    }

    /// The next bytes of the pod, or nothing at their end.
    async fn read(&self) -> Result<Option<Vec<u8>>, AgentError> {
        let request = PortReadRequest {
            port: self.port,
            connection: self.number,
            len: u32::try_from(STREAM_CHUNK).unwrap_or(u32::MAX),
            ..Default::default()
        };
        match self.agent.read_port(request).await {
            Ok(answer) if (1..=STREAM_CHUNK).contains(&answer.data.len()) => Ok(Some(answer.data)),
            Ok(answer) => Err(AgentError::Nonsense {
                method: "PortRead",
                problem: format!("gave {} bytes", answer.data.len()),
            }),
            Err(AgentError::Refused { code: Code::OUT_OF_RANGE, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn write(&self, data: &[u8]) -> Result<(), AgentError> {
        let request = PortWriteRequest {
            port: self.port,
            connection: self.number,
            data: data.to_vec(),
            ..Default::default()
        };
        self.agent.write_port(request).await.map(drop)
    }

    /// Ends it, or only what goes into the pod.
    async fn close(&self, write_only: bool) -> Result<(), AgentError> {
        let request = PortCloseRequest {
            port: self.port,
            connection: self.number,
            write_only,
            ..Default::default()
        };
        self.agent.close_port(request).await.map(drop)
    }
}

/// Whether anything moves on a connection.
#[derive(Default)]
struct Motion {
    moves: AtomicU64,
    is_half_closed: AtomicBool,
}

impl Motion {
    fn moved(&self) {
        self.moves.fetch_add(1, Ordering::Relaxed);
    }

    fn half_closed(&self) {
        self.is_half_closed.store(true, Ordering::Relaxed);
    }

    /// Waits until nothing has moved for as long as may be, and returns how long that was.
    async fn stands_still(&self, idle: Duration, half_closed: Duration) -> Duration {
        // A look for each step of the shorter time: a side that ends shortens the wait for the other.
        let step = half_closed.min(idle);
        let (mut seen, mut still) = (self.moves.load(Ordering::Relaxed), Duration::ZERO);
        loop {
            sleep(step).await;
            let moves = self.moves.load(Ordering::Relaxed);
            still = if moves == seen { still + step } else { Duration::ZERO };
            seen = moves;
            let is_half_closed = self.is_half_closed.load(Ordering::Relaxed);
            if still >= if is_half_closed { half_closed } else { idle } {
                return still;
            }
        }
    }
}

#[cfg(test)]
mod tests;
