//! What a broker costs: handshakes (challenge, attestation, one resource) a second and how long each
//! takes, with 1 and 8 clients, over HTTP and HTTPS, each handshake on a connection of its own as a
//! pod makes it; processor time of the server for each; its memory at rest. Guests and broker share
//! the machine, and guests sign their own reports.
//!
//! `cargo bench -p nacre-kbs`. The audit log is on the disk of the directory for temporary files, and
//! in memory (/dev/shm) to tell the disk's part.

#![allow(clippy::unwrap_used)]

#[path = "../tests/world/mod.rs"]
mod world;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nacre_jose::TeeKey;
use nacre_protocol::kbs::{self, ResourceUri};
use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use world::{CONTENT, Guest, SECRET, World, without_tls};

const TIME: Duration = Duration::from_secs(5);
/// Of the kernel's clock in /proc/PID/stat.
const TICKS: f64 = 100.0;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    println!(
        "| audit log | scheme | clients | handshakes/s | p50 ms | p99 ms | server CPU ms each |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut idle = None;
    for (place, memory) in [("disk", false), ("memory", true)] {
        if memory && !Path::new("/dev/shm").is_dir() {
            println!("| memory | skipped: no /dev/shm | | | | | |");
            continue;
        }
        for tls in [false, true] {
            let shm = memory.then(|| tempfile::tempdir_in("/dev/shm").unwrap());
            let world = runtime.block_on(World::with(|config| {
                let config = if tls { config } else { without_tls(&config) };
                match &shm {
                    Some(shm) => config.replace(
                        "\"audit\"",
                        &format!("{:?}", shm.path().join("audit").display().to_string()),
                    ),
                    None => config,
                }
            }));
            std::thread::sleep(Duration::from_millis(500));
            idle.get_or_insert(status(&world, "VmRSS"));
            for clients in [1, 8] {
                let row = runtime.block_on(measure(&world, clients));
                let scheme = if tls { "https" } else { "http" };
                println!("| {place} | {scheme} | {clients} | {row} |");
            }
        }
    }
    println!("\nserver at rest: {}", idle.unwrap());
}

async fn measure(world: &World, clients: usize) -> String {
    let target = Arc::new(Target::of(world));
    handshake(&target, &Guest::genuine()).await;
    let (before, begun) = (processor_time(world), Instant::now());
    let tasks: Vec<_> = (0..clients)
        .map(|_| {
            let target = target.clone();
            tokio::spawn(async move {
                let guest = Guest::genuine();
                let mut times = Vec::new();
                while begun.elapsed() < TIME {
                    let one = Instant::now();
                    handshake(&target, &guest).await;
                    times.push(one.elapsed().as_secs_f64() * 1000.0);
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.unwrap());
    }
    let passed = begun.elapsed().as_secs_f64();
    let processor = processor_time(world) - before;
    times.sort_by(f64::total_cmp);
    let at = |hundredths: usize| times[(times.len() - 1) * hundredths / 100];
    #[expect(clippy::cast_precision_loss, reason = "thousands")]
    let count = times.len() as f64;
    format!(
        "{:.0} | {:.2} | {:.2} | {:.2}",
        count / passed,
        at(50),
        at(99),
        processor * 1000.0 / count
    )
}

/// Where the broker is, and whom TLS trusts.
struct Target {
    address: String,
    tls: Option<TlsConnector>,
}

impl Target {
    fn of(world: &World) -> Target {
        let (_, address) = world.url().split_once("://").unwrap();
        let tls = world.ca().map(|pem| {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let mut config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            // Each pod is a new one.
            config.resumption = Resumption::disabled();
            TlsConnector::from(Arc::new(config))
        });
        Target { address: address.replace("localhost", "127.0.0.1"), tls }
    }
}

async fn handshake(target: &Target, guest: &Guest) {
    let stream = TcpStream::connect(&target.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    match &target.tls {
        None => converse(stream, guest).await,
        Some(tls) => {
            let name = ServerName::try_from("localhost").unwrap();
            converse(tls.connect(name, stream).await.unwrap(), guest).await;
        }
    }
}

async fn converse(mut stream: impl AsyncRead + AsyncWrite + Unpin, guest: &Guest) {
    let key = TeeKey::generate();
    let request = serde_json::to_string(&kbs::Request::new("snp")).unwrap();
    let (head, body) = exchange(&mut stream, "POST", kbs::AUTH_PATH, "", &request).await;
    let cookie = head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    let cookie = cookie.split(';').next().unwrap();
    let challenge: Value = serde_json::from_slice(&body).unwrap();
    let attestation =
        guest.attestation(challenge["nonce"].as_str().unwrap(), &key.public()).to_string();
    exchange(&mut stream, "POST", kbs::ATTEST_PATH, cookie, &attestation).await;
    let uri: ResourceUri = SECRET.parse().unwrap();
    let (_, body) = exchange(&mut stream, "GET", &uri.url_path(), cookie, "").await;
    let message = serde_json::from_slice(&body).unwrap();
    assert_eq!(nacre_jose::jwe::decrypt(&message, &key).unwrap().as_slice(), CONTENT);
}

/// One request and its answer: head and body.
async fn exchange(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    method: &str,
    path: &str,
    cookie: &str,
    body: &str,
) -> (String, Vec<u8>) {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncookie: {cookie}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = Vec::new();
    let end = loop {
        assert_ne!(
            stream.read_buf(&mut answer).await.unwrap(),
            0,
            "the broker closed the connection"
        );
        if let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let head = String::from_utf8(answer[..end].to_vec()).unwrap().to_lowercase();
    assert!(head.starts_with("http/1.1 200"), "{head}");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let length: usize = length.parse().unwrap();
    while answer.len() < end + length {
        stream.read_buf(&mut answer).await.unwrap();
    }
    (head, answer[end..].to_vec())
}

/// Of all threads, in seconds.
fn processor_time(world: &World) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", world.pid())).unwrap();
    // Behind the program's name: state is the third field, user and system time the 14th and 15th.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / TICKS
}

fn status(world: &World, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{}/status", world.pid())).unwrap();
    status.lines().find(|line| line.starts_with(name)).unwrap().to_owned()
}
