//! Connections to the pod's localhost that the host asks for and carries on (`kubectl port-forward`).
//!
//! Bytes move only when the host asks, as those of processes do: what it does not read stays in the kernel,
//! whose buffers stop the writer. The number of connections is bounded, and so is what one request moves.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nacre_protocol::channel::{MOST_PORT_CONNECTIONS, STREAM_CHUNK};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

use crate::error::RpcError;

/// Longest wait for a program that listens to take a connection.
const PATIENCE: Duration = Duration::from_secs(4);

/// The connections of the pod.
#[derive(Debug, Clone)]
pub(crate) struct Ports {
    places: Arc<Semaphore>,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    last: u32,
    connections: HashMap<u32, Arc<Connection>>,
}

impl Default for Ports {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(MOST_PORT_CONNECTIONS)), open: Arc::default() }
    }
}

impl Ports {
    /// Connects to a port of 127.0.0.1, else of `::1`, and gives the connection a number.
    pub(crate) async fn connect(&self, port: u16) -> Result<u32, RpcError> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            let why =
                format!("the host has {MOST_PORT_CONNECTIONS} connections, which is the most");
            RpcError::Exhausted(why)
        })?;
        let stream = match dial((Ipv4Addr::LOCALHOST, port).into()).await {
            Ok(stream) => stream,
            Err(first) => dial((Ipv6Addr::LOCALHOST, port).into()).await.map_err(|_| {
                let why =
                    format!("nothing in the pod answers at port {port} of its localhost: {first}");
                RpcError::Precondition(why)
            })?,
        };
        let connection = Arc::new(Connection::new(stream, place));
        let mut open = self.lock();
        // As many as there may be are far fewer than there are numbers.
        loop {
            open.last = open.last.wrapping_add(1);
            let number = open.last;
            if number != 0 && !open.connections.contains_key(&number) {
                open.connections.insert(number, connection);
                return Ok(number);
            }
        }
    }

    /// The connection of that number, which must be to that port: the policy has judged the port.
    pub(crate) fn connection(&self, port: u16, number: u32) -> Result<Arc<Connection>, RpcError> {
        let found = self.lock().connections.get(&number).cloned();
        let found = found.filter(|connection| connection.port == port);
        found.ok_or_else(|| RpcError::not_found(format!("connection {number} to port {port}")))
    }

    /// Ends a connection; who waits for its bytes is told of its end.
    pub(crate) fn close(&self, port: u16, number: u32) -> Result<(), RpcError> {
        self.connection(port, number)?.closed.send_replace(true);
        self.lock().connections.remove(&number);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    match timeout(PATIENCE, TcpStream::connect(address)).await {
        Ok(connected) => connected,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// One connection. It ends with its last user.
#[derive(Debug)]
pub(crate) struct Connection {
    port: u16,
    reader: tokio::sync::Mutex<OwnedReadHalf>,
    /// Nothing once there is no more to write.
    writer: tokio::sync::Mutex<Option<OwnedWriteHalf>>,
    closed: watch::Sender<bool>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    fn new(stream: TcpStream, place: OwnedSemaphorePermit) -> Self {
        let port = stream.peer_addr().map_or(0, |address| address.port());
        let (reader, writer) = stream.into_split();
        Self {
            port,
            reader: tokio::sync::Mutex::new(reader),
            writer: tokio::sync::Mutex::new(Some(writer)),
            closed: watch::Sender::new(false),
            _place: place,
        }
    }

    /// Waits until there is something, and returns at most `most` bytes of it.
    pub(crate) async fn read(&self, most: usize) -> Result<Vec<u8>, RpcError> {
        let reading = async {
            let reader = self.reader.lock().await;
            loop {
                reader.readable().await?;
                // Not before there is something: a connection that is silent holds no memory.
                let mut data = vec![0; most.min(STREAM_CHUNK)];
                match reader.try_read(&mut data) {
                    Ok(read) => {
                        data.truncate(read);
                        return Ok(data);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        };
        let data = self.unless_closed(reading).await?;
        if data.is_empty() { Err(RpcError::EndOfStream) } else { Ok(data) }
    }

    /// Returns when the kernel has taken all of `data`.
    pub(crate) async fn write(&self, data: &[u8]) -> Result<(), RpcError> {
        let mut writer = self.writer.lock().await;
        let Some(writer) = writer.as_mut() else {
            return Err(RpcError::Precondition("its writing end was closed before".into()));
        };
        self.unless_closed(writer.write_all(data)).await
    }

    /// The program sees the end of what it reads, and may go on writing.
    pub(crate) async fn close_write(&self) {
        self.writer.lock().await.take();
    }

    async fn unless_closed<T>(
        &self,
        moving: impl Future<Output = io::Result<T>>,
    ) -> Result<T, RpcError> {
        let mut closed = self.closed.subscribe();
        tokio::select! {
            // Fails only when the sender is gone, which is in `self`.
            _ = closed.wait_for(|closed| *closed) => Err(RpcError::EndOfStream),
            moved = moving => moved.map_err(|error| {
                RpcError::internal(format!("the connection to port {} broke", self.port), error)
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::*;

    async fn listening(address: &str) -> (TcpListener, u16) {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    async fn connected(ports: &Ports) -> (Arc<Connection>, u16, u32, TcpStream) {
        let (listener, port) = listening("127.0.0.1").await;
        let number = ports.connect(port).await.unwrap();
        let (program, _) = listener.accept().await.unwrap();
        (ports.connection(port, number).unwrap(), port, number, program)
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_each_way_ends_by_itself() {
        let ports = Ports::default();
        let (connection, _, _, mut program) = connected(&ports).await;
        connection.write(b"question").await.unwrap();
        connection.close_write().await;
        let mut asked = String::new();
        program.read_to_string(&mut asked).await.unwrap();
        assert_eq!(asked, "question");
        assert!(connection.write(b"more").await.unwrap_err().to_string().contains("closed"));
        program.write_all(b"answer").await.unwrap();
        drop(program);
        assert_eq!(connection.read(3).await.unwrap(), b"ans");
        assert_eq!(connection.read(100).await.unwrap(), b"wer");
        for _ in 0..2 {
            assert!(matches!(connection.read(100).await, Err(RpcError::EndOfStream)));
        }
    }

    #[tokio::test]
    async fn a_program_that_listens_on_ipv6_only_is_found() {
        let Ok(listener) = TcpListener::bind(("::1", 0)).await else {
            eprintln!("SKIPPED: there is no IPv6 here");
            return;
        };
        let port = listener.local_addr().unwrap().port();
        assert!(Ports::default().connect(port).await.is_ok());
    }

    #[tokio::test]
    async fn where_nothing_listens_the_port_is_named() {
        let (listener, port) = listening("127.0.0.1").await;
        drop(listener);
        let error = Ports::default().connect(port).await.unwrap_err().to_string();
        assert!(error.contains(&format!("port {port}")) && error.contains("refused"), "{error}");
    }

    #[tokio::test]
    async fn a_connection_is_found_by_number_and_port_until_it_is_closed() {
        let ports = Ports::default();
        let (connection, port, number, mut program) = connected(&ports).await;
        assert!(ports.connection(port, number + 1).is_err());
        assert!(ports.connection(port.wrapping_add(1), number).is_err());
        assert!(ports.close(port.wrapping_add(1), number).is_err());

        let reader = Arc::clone(&connection);
        let reader = tokio::spawn(async move { reader.read(1).await });
        tokio::task::yield_now().await;
        ports.close(port, number).unwrap();
        assert!(matches!(reader.await.unwrap(), Err(RpcError::EndOfStream)));
        assert!(ports.connection(port, number).is_err() && ports.close(port, number).is_err());
        drop(connection);
        assert_eq!(program.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_program_that_does_not_read_stops_the_writer_and_not_the_end() {
        let ports = Ports::default();
        let (connection, port, number, program) = connected(&ports).await;
        let writer = Arc::clone(&connection);
        let writer = tokio::spawn(async move { writer.write(&vec![0; 64 << 20]).await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!writer.is_finished());
        ports.close(port, number).unwrap();
        assert!(matches!(writer.await.unwrap(), Err(RpcError::EndOfStream)));
        drop(program);
    }

    #[tokio::test]
    async fn there_are_so_many_connections_and_each_end_makes_room() {
        let ports = Ports::default();
        let (listener, port) = listening("127.0.0.1").await;
        let mut numbers = Vec::new();
        for _ in 0..MOST_PORT_CONNECTIONS {
            numbers.push(ports.connect(port).await.unwrap());
        }
        let full = ports.connect(port).await.unwrap_err();
        assert!(matches!(full, RpcError::Exhausted(_)), "{full}");
        ports.close(port, numbers[7]).unwrap();
        assert!(!numbers.contains(&ports.connect(port).await.unwrap()));
        drop(listener);
    }
}
