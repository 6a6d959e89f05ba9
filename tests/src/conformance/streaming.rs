//! The other end of containerd's streaming server: `WebSockets` (RFC 6455) with the kubelet's channels, as
//! `kubectl exec`, `attach` and `port-forward` speak through an API server.
//!
//! Each message begins with a byte that names its channel; the subprotocol is `v4.channel.k8s.io`.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::world::{PATIENCE, World};

/// Largest message that is accepted, in bytes.
const MOST_MESSAGE: u64 = 1 << 20;
/// Largest answer to the request to upgrade, in bytes.
const MOST_HEAD: usize = 16 << 10;

pub(super) const STDIN: u8 = 0;
pub(super) const STDOUT: u8 = 1;
pub(super) const STDERR: u8 = 2;
/// How the command ended, a Kubernetes `Status` in JSON.
pub(super) const STATUS: u8 = 3;
/// The size of the terminal, in JSON.
pub(super) const RESIZE: u8 = 4;

/// Operation codes of frames.
mod opcode {
    pub(super) const CONTINUATION: u8 = 0;
    pub(super) const TEXT: u8 = 1;
    pub(super) const BINARY: u8 = 2;
    pub(super) const CLOSE: u8 = 8;
    pub(super) const PING: u8 = 9;
    pub(super) const PONG: u8 = 10;
}

/// A connection, and what has come of each channel.
#[derive(Debug)]
pub(super) struct Channels {
    stream: TcpStream,
    received: BTreeMap<u8, Vec<u8>>,
    closed: bool,
}

impl Channels {
    /// Connects to a URL that containerd gave.
    pub(super) async fn open(world: &World, url: &str) -> anyhow::Result<Channels> {
        let rest = url.strip_prefix("http://").with_context(|| format!("{url} is not http"))?;
        let (address, path) = rest.split_once('/').context("the URL has no path")?;
        let stream = world.namespaces.in_network(|| std::net::TcpStream::connect(address))?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream)?;
        let request = format!(
            "GET /{path} HTTP/1.1\r\nHost: {address}\r\nOrigin: http://{address}\r\n\
             Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: bmFjcmUgY29uZm9ybXMuLg==\r\n\
             Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            ensure!(head.len() < MOST_HEAD, "the answer to the upgrade does not end");
            let byte = tokio::time::timeout(PATIENCE, stream.read_u8()).await;
            head.push(byte.context("no answer to the upgrade")??);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        ensure!(head.starts_with("HTTP/1.1 101 "), "no upgrade: {head}");
        Ok(Channels { stream, received: BTreeMap::new(), closed: false })
    }

    /// Sends to a channel.
    pub(super) async fn send(&mut self, channel: u8, data: &[u8]) -> anyhow::Result<()> {
        let mut message = vec![channel];
        message.extend_from_slice(data);
        self.send_frame(opcode::BINARY, &message).await
    }

    async fn send_frame(&mut self, code: u8, payload: &[u8]) -> anyhow::Result<()> {
        // Frames of clients are masked; the mask hides nothing here.
        const MASK: [u8; 4] = [0x6e, 0x61, 0x63, 0x72];
        let mut frame = vec![0x80 | code];
        match u16::try_from(payload.len())? {
            length @ ..126 => frame.push(0x80 | u8::try_from(length)?),
            length => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&length.to_be_bytes());
            }
        }
        frame.extend_from_slice(&MASK);
        frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        Ok(self.stream.write_all(&frame).await?)
    }

    /// Reads one message; false when the other side has closed.
    async fn receive(&mut self) -> anyhow::Result<bool> {
        if self.closed {
            return Ok(false);
        }
        let mut message = Vec::new();
        loop {
            let Some((last, code, payload)) = self.frame().await? else {
                self.closed = true;
                return Ok(false);
            };
            match code {
                opcode::CLOSE => {
                    self.closed = true;
                    return Ok(false);
                }
                opcode::PING => self.send_frame(opcode::PONG, &payload).await?,
                opcode::PONG => {}
                opcode::CONTINUATION | opcode::TEXT | opcode::BINARY => {
                    message.extend(payload);
                    if last {
                        break;
                    }
                }
                other => bail!("a frame with operation code {other}"),
            }
        }
        if let Some((channel, data)) = message.split_first() {
            self.received.entry(*channel).or_default().extend_from_slice(data);
        }
        Ok(true)
    }

    async fn frame(&mut self) -> anyhow::Result<Option<(bool, u8, Vec<u8>)>> {
        let first = match tokio::time::timeout(PATIENCE, self.stream.read_u8()).await {
            Err(_) => bail!("no message within {PATIENCE:?}: {self:?}"),
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Ok(first) => first?,
        };
        let length = match self.stream.read_u8().await? & 0x7f {
            126 => u64::from(self.stream.read_u16().await?),
            127 => self.stream.read_u64().await?,
            short => u64::from(short),
        };
        ensure!(length <= MOST_MESSAGE, "a message of {length} bytes");
        let mut payload = vec![0; usize::try_from(length)?];
        self.stream.read_exact(&mut payload).await?;
        Ok(Some((first & 0x80 != 0, first & 0x0f, payload)))
    }

    /// What has come of a channel so far.
    pub(super) fn text(&self, channel: u8) -> String {
        let bytes = self.received.get(&channel).map(Vec::as_slice).unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    }

    /// Reads until a channel holds some text.
    pub(super) async fn wait_for(&mut self, channel: u8, wanted: &str) -> anyhow::Result<()> {
        while !self.text(channel).contains(wanted) {
            let more = self.receive().await?;
            ensure!(more, "closed before {wanted:?} came: {:?}", self.texts());
        }
        Ok(())
    }

    /// Reads to the end; the exit code that the status channel tells.
    pub(super) async fn exit_code(&mut self) -> anyhow::Result<i32> {
        while !self.received.contains_key(&STATUS) && self.receive().await? {}
        let text = self.text(STATUS);
        let status: serde_json::Value =
            serde_json::from_str(&text).with_context(|| format!("the status {text:?}"))?;
        if status["status"] == "Success" {
            return Ok(0);
        }
        let causes = status["details"]["causes"].as_array().map(Vec::as_slice).unwrap_or_default();
        let code = causes.iter().find(|cause| cause["reason"] == "ExitCode");
        let code = code.and_then(|cause| cause["message"].as_str());
        Ok(code.with_context(|| format!("no exit code: {text}"))?.parse()?)
    }

    fn texts(&self) -> BTreeMap<u8, String> {
        self.received.keys().map(|channel| (*channel, self.text(*channel))).collect()
    }
}
