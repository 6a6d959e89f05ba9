//! Certificates that evidence does not bring along, from a mirror that is well, slow, busy or lying.

#![allow(clippy::unwrap_used)]

mod world;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nacre_jose::TeeKey;
use world::{Answer, Guest, World, without_tls};

/// A mirror that answers every request with the same bytes.
struct Mirror {
    url: String,
    asked: Arc<AtomicUsize>,
}

impl Mirror {
    fn new(status: &str, body: &[u8], wait: Duration) -> Mirror {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let answer: Arc<[u8]> = whole(status, body).into();
        let count = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let (count, answer) = (count.clone(), answer.clone());
                std::thread::spawn(move || {
                    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                    let first = lines.next().unwrap().unwrap();
                    assert!(first.starts_with("GET /vcek/v1/Genoa/"), "{first}");
                    while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
                    count.fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(wait);
                    // The broker may have given up.
                    let _ = stream.write_all(&answer);
                });
            }
        });
        Mirror { url, asked }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    async fn world(&self) -> World {
        let line = format!("mirror = \"{}\"", self.url);
        World::with(|config| {
            without_tls(&config).replace("# mirror = \"http://kds-mirror.internal\"", &line)
        })
        .await
    }
}

fn whole(status: &str, body: &[u8]) -> Vec<u8> {
    let head =
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

async fn attest(world: &World) -> Answer {
    let raw = world.raw();
    let guest = Guest::genuine();
    let (cookie, nonce) = raw.auth().await;
    let mut attestation = guest.attestation(&nonce, &TeeKey::generate().public());
    guest.without_certificates(&mut attestation);
    raw.attest(&cookie, &attestation).await
}

#[tokio::test]
async fn what_a_mirror_has_is_asked_for_once_and_kept() {
    let mirror = Mirror::new("200 OK", Guest::vcek(), Duration::from_millis(300));
    let mut world = mirror.world().await;
    // Together: one request goes out.
    let (one, two, three) = tokio::join!(attest(&world), attest(&world), attest(&world));
    for answer in [one, two, three] {
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert_eq!(mirror.asked(), 1);
    assert!(world.stop());
    world.start().unwrap();
    assert_eq!(attest(&world).await.status, 200);
    assert_eq!(mirror.asked(), 1);
}

#[tokio::test]
async fn a_busy_mirror_is_left_in_peace_and_an_absent_certificate_not_asked_for_again() {
    for (status, body) in [
        ("429 Too Many Requests", b"".as_slice()),
        ("404 Not Found", b""),
        ("500 Oops", b""),
        ("200 OK", b"no certificate"),
        ("302 Found", b""),
    ] {
        let mirror = Mirror::new(status, body, Duration::ZERO);
        let world = mirror.world().await;
        for _ in 0..3 {
            let answer = attest(&world).await;
            assert!(answer.detail().contains("snp-certificate"), "{answer:?}");
        }
        assert_eq!(mirror.asked(), 1, "{status}");
    }
}

#[tokio::test]
async fn a_huge_answer_is_not_read_and_a_slow_one_not_waited_for() {
    let mirror = Mirror::new("200 OK", &vec![0; 1 << 20], Duration::ZERO);
    let world = mirror.world().await;
    assert!(attest(&world).await.detail().contains("snp-certificate"));

    let mirror = Mirror::new("200 OK", Guest::vcek(), Duration::from_secs(6));
    let world = mirror.world().await;
    let begun = Instant::now();
    assert!(attest(&world).await.detail().contains("snp-certificate"));
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    // What came too late for one is there for the next.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(attest(&world).await.status, 200);
    assert_eq!(mirror.asked(), 1);
}

#[tokio::test]
async fn a_directory_of_certificates_serves_without_a_mirror() {
    let mirror = Mirror::new("200 OK", Guest::vcek(), Duration::ZERO);
    let world = mirror.world().await;
    assert_eq!(attest(&world).await.status, 200);
    let offline = World::new().await;
    assert!(attest(&offline).await.detail().contains("snp-certificate"));
    for entry in fs::read_dir(world.path("collateral")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), offline.path("collateral").join(entry.file_name())).unwrap();
    }
    assert_eq!(attest(&offline).await.status, 200);
}
