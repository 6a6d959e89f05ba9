//! A registry on loopback, in bare TCP: so that it can answer in every way that HTTP forbids.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufWriter, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

use crate::authority::Authority;
use crate::content::Content;
use crate::image::{INDEX, Image, digest};

/// A client that takes nothing for this long is left.
const PATIENCE: Duration = Duration::from_secs(20);
const MAX_HEAD: usize = 64 << 10;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    /// Path and query.
    pub path: String,
    /// Header lines, names in lower case.
    pub headers: Vec<(String, String)>,
    /// How often this path was asked for, this time included.
    pub nth: usize,
}

impl Request {
    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| &**value)
    }

    /// Whether a manifest or index is asked for.
    #[must_use]
    pub fn is_manifest(&self) -> bool {
        self.path.contains("/manifests/")
    }

    /// Whether a blob is asked for: a layer or a configuration.
    #[must_use]
    pub fn is_blob(&self) -> bool {
        self.path.contains("/blobs/")
    }

    /// First byte that is asked for.
    #[must_use]
    pub fn offset(&self) -> u64 {
        let range = self.header("range").and_then(|range| range.strip_prefix("bytes="));
        range.and_then(|range| range.split('-').next()?.parse().ok()).unwrap_or(0)
    }
}

/// What becomes of a request after a behaviour saw it.
pub enum Turn {
    /// The honest answer is given.
    Ordinary,
    /// It was answered; the connection stays.
    Answered,
    /// The connection is closed.
    Close,
}

/// The way a server answers: it may take the request, or leave it to the honest one.
pub type Behaviour = Box<dyn Fn(&Request, &mut Connection) -> io::Result<Turn> + Send + Sync>;

/// A connection's bytes, in the clear or not.
trait Stream: Read + Write + Send {}

impl<T: Read + Write + Send> Stream for T {}

/// One connection, to write an answer to.
pub struct Connection {
    stream: BufWriter<Box<dyn Stream>>,
    socket: TcpStream,
}

impl Connection {
    /// An answer as HTTP wants it.
    ///
    /// # Errors
    /// The client went away.
    pub fn answer(
        &mut self,
        status: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Turn> {
        write!(self.stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n", body.len())?;
        for (name, value) in headers {
            write!(self.stream, "{name}: {value}\r\n")?;
        }
        self.stream.write_all(b"\r\n")?;
        self.stream.write_all(body)?;
        self.stream.flush()?;
        Ok(Turn::Answered)
    }

    /// Bytes as they are, sent at once.
    ///
    /// # Errors
    /// The client went away.
    pub fn raw(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())?;
        self.stream.flush()
    }

    /// The same bytes until the client has enough.
    ///
    /// # Errors
    /// The client went away, which is what it should do.
    pub fn forever(&mut self, piece: &[u8]) -> io::Result<Turn> {
        loop {
            self.stream.write_all(piece)?;
        }
    }

    /// Says nothing until the client goes away.
    ///
    /// # Errors
    /// None: an error is the client going away.
    pub fn stall(&mut self) -> io::Result<Turn> {
        self.stream.flush()?;
        let _ = self.socket.read(&mut [0]);
        Ok(Turn::Close)
    }
}

struct Document {
    body: Vec<u8>,
    headers: Vec<(String, String)>,
}

/// What a registry holds, and how it behaves.
#[derive(Default)]
pub struct Served {
    documents: BTreeMap<String, Document>,
    blobs: BTreeMap<String, Content>,
    behaviour: Option<Behaviour>,
    /// Name, tag or digest to pull, behind the registry's host; by default `app:latest`.
    pub reference: Option<String>,
    /// How the other server behaves, the one that a client may be sent to; by default it knows nothing.
    pub other: Option<Behaviour>,
}

impl Served {
    /// Adds a document under a tag or digest.
    #[must_use]
    pub fn document(
        mut self,
        name: impl Into<String>,
        body: impl Into<Vec<u8>>,
        headers: &[(&str, &str)],
    ) -> Self {
        let headers =
            headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.documents.insert(name.into(), Document { body: body.into(), headers });
        self
    }

    /// Adds a blob under the digest that somebody gives it.
    #[must_use]
    pub fn blob(mut self, name: impl Into<String>, content: impl Into<Content>) -> Self {
        self.blobs.insert(name.into(), content.into());
        self
    }

    /// Adds an image under a tag and its digest.
    #[must_use]
    pub fn image(self, tag: &str, image: &Image) -> Self {
        let name = digest(&image.manifest);
        let mut headers = Vec::new();
        if let Some(kind) = &image.content_type {
            headers.push(("Content-Type", &**kind));
        }
        if image.claims_digest {
            headers.push(("Docker-Content-Digest", &name));
        }
        let mut served = self
            .document(tag, &*image.manifest, &headers)
            .document(&*name, &*image.manifest, &headers)
            .blob(digest(&image.config), &image.config);
        for layer in &image.layers {
            served = served.blob(&layer.digest, layer.content.clone());
        }
        served
    }

    /// Adds an index as `latest`, and the images it may name.
    #[must_use]
    pub fn index(self, index: &Value, images: &[Image]) -> Self {
        let body = index.to_string().into_bytes();
        let name = digest(&body);
        let headers = [("Content-Type", INDEX), ("Docker-Content-Digest", &*name)];
        let served = self.document("latest", &*body, &headers).document(&*name, &*body, &headers);
        images.iter().fold(served, |served, image| served.image("-", image))
    }

    /// What is pulled instead of `app:latest`.
    #[must_use]
    pub fn reference(mut self, reference: impl Into<String>) -> Self {
        self.reference = Some(reference.into());
        self
    }

    /// Lets `behaviour` answer first.
    #[must_use]
    pub fn behaving(
        mut self,
        behaviour: impl Fn(&Request, &mut Connection) -> io::Result<Turn> + Send + Sync + 'static,
    ) -> Self {
        self.behaviour = Some(Box::new(behaviour));
        self
    }

    /// The same for the other server.
    #[must_use]
    pub fn other(
        mut self,
        behaviour: impl Fn(&Request, &mut Connection) -> io::Result<Turn> + Send + Sync + 'static,
    ) -> Self {
        self.other = Some(Box::new(behaviour));
        self
    }

    fn respond(&self, request: &Request, connection: &mut Connection) -> io::Result<Turn> {
        if let Some(behaviour) = &self.behaviour {
            match behaviour(request, connection)? {
                Turn::Ordinary => {}
                turn => return Ok(turn),
            }
        }
        let name = request.path.rsplit('/').next().unwrap_or_default();
        if request.is_manifest()
            && let Some(document) = self.documents.get(name)
        {
            let headers: Vec<(&str, &str)> =
                document.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
            return connection.answer("200 OK", &headers, &document.body);
        }
        match self.blobs.get(name).filter(|_| request.is_blob()) {
            Some(content) => send(content, request.offset(), connection),
            None if request.path == "/v2/" => connection.answer("200 OK", &[], b"{}"),
            None => connection.answer("404 Not Found", &[], b"{}"),
        }
    }
}

fn send(content: &Content, offset: u64, connection: &mut Connection) -> io::Result<Turn> {
    let size = content.len();
    if offset >= size && offset > 0 {
        return connection.answer("416 Range Not Satisfiable", &[], b"");
    }
    let head = match offset {
        0 => "200 OK\r\n".to_owned(),
        _ => {
            format!("206 Partial Content\r\nContent-Range: bytes {offset}-{}/{size}\r\n", size - 1)
        }
    };
    write!(connection.stream, "HTTP/1.1 {head}Content-Length: {}\r\n\r\n", size - offset)?;
    content.write(&mut connection.stream, offset, u64::MAX)?;
    connection.stream.flush()?;
    Ok(Turn::Answered)
}

impl<T: Into<Image>> From<T> for Served {
    fn from(image: T) -> Self {
        Self::default().image("latest", &image.into())
    }
}

/// A port that listens and has no server yet: documents may have to name it.
pub struct Port {
    listener: TcpListener,
    host: String,
}

impl Port {
    /// Takes a free one.
    ///
    /// # Errors
    /// There is none.
    pub fn take() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let host = listener.local_addr()?.to_string();
        Ok(Self { listener, host })
    }

    /// `host:port`.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Serves until the server is dropped, over TLS if there is an authority.
    #[must_use]
    pub fn serve(self, served: Served, authority: Option<&Authority>) -> Server {
        let shared = Arc::new(Shared {
            served,
            tls: authority.map(Authority::server),
            log: Mutex::default(),
            stopped: AtomicBool::new(false),
        });
        let of_thread = shared.clone();
        let thread = std::thread::spawn(move || {
            for stream in self.listener.incoming().flatten() {
                if of_thread.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let shared = of_thread.clone();
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        Server { shared, host: self.host, thread: Some(thread) }
    }
}

#[derive(Default)]
struct Log {
    requests: Vec<Request>,
    counts: HashMap<String, usize>,
}

struct Shared {
    served: Served,
    tls: Option<Arc<ServerConfig>>,
    log: Mutex<Log>,
    stopped: AtomicBool,
}

impl Shared {
    fn serve(&self, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let _ = stream.set_read_timeout(Some(PATIENCE));
        let _ = stream.set_write_timeout(Some(PATIENCE));
        let Ok(socket) = stream.try_clone() else { return };
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(stream),
            Some(config) => match ServerConnection::new(config.clone()) {
                Ok(session) => Box::new(StreamOwned::new(session, stream)),
                Err(_) => return,
            },
        };
        let mut connection = Connection { stream: BufWriter::new(stream), socket };
        while let Some(request) = self.read(&mut connection) {
            match self.served.respond(&request, &mut connection) {
                Ok(Turn::Close) | Err(_) => return,
                Ok(Turn::Answered | Turn::Ordinary) => {}
            }
        }
    }

    /// The next request; none when the client is done or sends what is none.
    fn read(&self, connection: &mut Connection) -> Option<Request> {
        let stream = connection.stream.get_mut();
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() > MAX_HEAD || stream.read(&mut byte).ok()? == 0 {
                return None;
            }
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).ok()?;
        let mut lines = head.lines();
        let path = lines.next()?.split(' ').nth(1)?.to_owned();
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut log = self.log.lock().expect("no panic under lock");
        let nth = log.counts.entry(path.clone()).or_default();
        *nth += 1;
        let request = Request { path, headers, nth: *nth };
        log.requests.push(request.clone());
        Some(request)
    }
}

/// A registry that runs.
pub struct Server {
    shared: Arc<Shared>,
    host: String,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// `host:port`.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// What was asked so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.shared.log.lock().expect("no panic under lock").requests.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        // The listening thread wakes up, sees that, and goes.
        let woken = TcpStream::connect(&self.host).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            let _ = thread.join();
        }
    }
}
