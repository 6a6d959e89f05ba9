//! A collector of spans: OTLP over HTTP in its JSON form, as far as the tests look at it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::world::World;

/// Largest batch, in bytes.
const MOST_BYTES: u64 = 1 << 20;

/// Listens in a world's network as long as the world lives.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Value>>>,
}

impl World {
    /// A collector on the node.
    pub fn collector(&self) -> anyhow::Result<Collector> {
        let listener =
            self.namespaces.in_network(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        let address = listener.local_addr()?;
        let spans: Arc<Mutex<Vec<Value>>> = Arc::default();
        let taken = Arc::clone(&spans);
        std::thread::Builder::new().name("collector".to_owned()).spawn(move || {
            for stream in listener.incoming().flatten() {
                match take(&stream) {
                    Ok(mut batch) => {
                        taken.lock().unwrap_or_else(PoisonError::into_inner).append(&mut batch);
                    }
                    Err(error) => eprintln!("collector: {error:#}"),
                }
            }
        })?;
        Ok(Collector { address, spans })
    }
}

impl Collector {
    /// What the node's configuration says to reach it.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The spans that came so far, each with the attributes of its resource under `resource`.
    pub fn spans(&self) -> Vec<Value> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn take(mut stream: &TcpStream) -> anyhow::Result<Vec<Value>> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    ensure!(line.starts_with("POST /v1/traces HTTP/1.1"), "it is asked for {line:?}");
    let (mut length, mut is_json) = (None, false);
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse::<u64>().ok(),
            "content-type" => is_json = value == "application/json",
            _ => {}
        }
    }
    let length = length.context("no length")?;
    ensure!(is_json && length <= MOST_BYTES, "no JSON, or {length} bytes");
    let mut body = Vec::new();
    reader.take(length).read_to_end(&mut body)?;
    let body: Value = serde_json::from_slice(&body)?;
    stream.write_all(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
    )?;
    let mut spans = Vec::new();
    for resource in body["resourceSpans"].as_array().context("no resourceSpans")? {
        for scope in resource["scopeSpans"].as_array().context("no scopeSpans")? {
            for span in scope["spans"].as_array().context("no spans")? {
                let mut span = span.clone();
                span["resource"] = resource["resource"]["attributes"].clone();
                spans.push(span);
            }
        }
    }
    Ok(spans)
}
