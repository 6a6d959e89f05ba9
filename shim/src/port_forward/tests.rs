use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;

use async_trait::async_trait;
use nacre_hypervisor::AgentChannel;
use nacre_protocol::health::{CheckRequest, HealthCheckResponse};
use nacre_protocol::health_ttrpc::{Health, create_health};
use nacre_protocol::ports::{PortForwardResponse, PortReadResponse};
use nacre_protocol::ports_ttrpc::{Ports, create_ports};
use protobuf::well_known_types::empty::Empty;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use ttrpc::r#async::TtrpcContext;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);
/// The port that this guest's policy denies.
const DENIED: u32 = 81;

/// A guest whose program gives back what it gets, and an end for an end.
#[derive(Default)]
struct Guest {
    said: Mutex<Vec<String>>,
    echoes: Mutex<HashMap<u32, Arc<Echo>>>,
}

struct Echo {
    to: mpsc::UnboundedSender<Vec<u8>>,
    from: tokio::sync::Mutex<mpsc::UnboundedReceiver<Vec<u8>>>,
}

impl Guest {
    fn note(&self, what: String) {
        self.said.lock().unwrap().push(what);
    }

    fn said(&self) -> Vec<String> {
        self.said.lock().unwrap().clone()
    }

    fn echo(&self, connection: u32) -> Arc<Echo> {
        Arc::clone(&self.echoes.lock().unwrap()[&connection])
    }
}

fn status(code: Code, text: &str) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, text.to_owned()))
}

struct Service(Arc<Guest>);

#[async_trait]
impl Health for Service {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<HealthCheckResponse> {
        Ok(HealthCheckResponse::new())
    }
}

#[async_trait]
impl Ports for Service {
    async fn forward(
        &self,
        _: &TtrpcContext,
        request: PortForwardRequest,
    ) -> ttrpc::Result<PortForwardResponse> {
        if request.port == DENIED {
            return Err(status(Code::PERMISSION_DENIED, "policy denies PortForward"));
        }
        let (to, from) = mpsc::unbounded_channel();
        let mut echoes = self.0.echoes.lock().unwrap();
        let connection = u32::try_from(echoes.len()).unwrap() + 1;
        echoes.insert(connection, Arc::new(Echo { to, from: tokio::sync::Mutex::new(from) }));
        self.0.note(format!("{connection} to {}", request.port));
        Ok(PortForwardResponse { connection, ..Default::default() })
    }

    async fn read(
        &self,
        _: &TtrpcContext,
        request: PortReadRequest,
    ) -> ttrpc::Result<PortReadResponse> {
        let echo = self.0.echo(request.connection);
        match echo.from.lock().await.recv().await {
            Some(data) if !data.is_empty() => Ok(PortReadResponse { data, ..Default::default() }),
            _ => Err(status(Code::OUT_OF_RANGE, "end of stream")),
        }
    }

    async fn write(&self, _: &TtrpcContext, request: PortWriteRequest) -> ttrpc::Result<Empty> {
        if request.data == b"lie" {
            // More than was asked for.
            let _ = self.0.echo(request.connection).to.send(vec![0; STREAM_CHUNK + 1]);
        } else {
            let _ = self.0.echo(request.connection).to.send(request.data);
        }
        Ok(Empty::new())
    }

    async fn close(&self, _: &TtrpcContext, request: PortCloseRequest) -> ttrpc::Result<Empty> {
        let what = if request.write_only { "half" } else { "whole" };
        self.0.note(format!("{} {what}", request.connection));
        let _ = self.0.echo(request.connection).to.send(Vec::new());
        Ok(Empty::new())
    }
}

/// An agent of such a guest, and what must live as long.
async fn guest(
    directory: &Path,
) -> (Agent, Arc<Guest>, ttrpc::r#async::Server, watch::Sender<Option<Arc<str>>>) {
    let path = directory.join("agent.sock");
    let guest = Arc::new(Guest::default());
    let mut server = ttrpc::r#async::Server::new()
        .bind(&format!("unix://{}", path.display()))
        .unwrap()
        .register_service(create_ports(Arc::new(Service(Arc::clone(&guest)))))
        .register_service(create_health(Arc::new(Service(Arc::clone(&guest)))));
    server.start().await.unwrap();
    let (alive, ending) = watch::channel(None);
    let channel = AgentChannel::Unix(path);
    let agent = Agent::connect(&channel, ending, PATIENCE).await.unwrap();
    (agent, guest, server, alive)
}

/// A connection to a port of this machine's, as it would have been caught, and the client's end.
async fn caught(agent: &Agent, id: &str) -> (TcpStream, u16, JoinHandle<()>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let places = Arc::new(Semaphore::new(1));
    let accepting = tokio::spawn(accept(listener, agent.clone(), Arc::from(id), places));
    (TcpStream::connect(("127.0.0.1", port)).await.unwrap(), port, accepting)
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn a_connection_is_carried_both_ways_to_its_port_and_ends_on_both_sides() {
    let directory = tempfile::tempdir().unwrap();
    let (agent, guest, _server, _alive) = guest(directory.path()).await;
    let (mut client, port, accepting) = caught(&agent, "s").await;
    client.write_all(b"question").await.unwrap();
    let mut answer = [0; 8];
    timeout(PATIENCE, client.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"question");
    // One place is all there is here: another connection is reset, and this one goes on.
    let mut second = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let error = timeout(PATIENCE, second.read(&mut [0; 1])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

    let large = vec![7; 5 * STREAM_CHUNK + 1];
    let (mut from, mut to) = client.split();
    let sending = async {
        to.write_all(&large).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let both = async { tokio::join!(sending, from.read_to_end(&mut received)) };
    timeout(PATIENCE, both).await.unwrap().1.unwrap();
    assert_eq!(received, large);
    until("the guest is told of both ends", || guest.said().len() == 3).await;
    assert_eq!(guest.said(), [format!("1 to {port}"), "1 half".into(), "1 whole".into()]);

    // And its place is free again.
    let reaches_the_guest = async {
        loop {
            let third = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            // It may come just before the place is.
            sleep(Duration::from_millis(20)).await;
            if guest.said().len() == 4 {
                return third;
            }
        }
    };
    let mut third = timeout(PATIENCE, reaches_the_guest).await.unwrap();
    // What ends the task ends its connections.
    accepting.abort();
    let ended = timeout(PATIENCE, third.read(&mut [0; 1])).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
}

#[tokio::test]
async fn a_connection_that_the_policy_denies_or_the_guest_lies_about_is_reset() {
    let directory = tempfile::tempdir().unwrap();
    let (agent, guest, _server, _alive) = guest(directory.path()).await;
    let denied = Connection::open(agent.clone(), 81).await.err().unwrap();
    assert_eq!(denied.denial(), Some("policy denies PortForward"));
    assert!(guest.said().is_empty());

    let (mut client, _, _accepting) = caught(&agent, "s").await;
    client.write_all(b"lie").await.unwrap();
    let error = timeout(PATIENCE, client.read(&mut [0; 1])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    until("the guest's end is closed", || guest.said().iter().any(|s| s == "1 whole")).await;
}

#[tokio::test]
async fn a_connection_on_which_nothing_moves_ends_and_sooner_when_one_side_has_ended() {
    let step = Duration::from_millis(20);
    for (is_half_closed, longest) in [(false, step * 5), (true, step)] {
        let motion = Motion::default();
        if is_half_closed {
            motion.half_closed();
        }
        let still = timeout(PATIENCE, motion.stands_still(step * 5, step)).await.unwrap();
        assert_eq!(still, longest);
    }
}
