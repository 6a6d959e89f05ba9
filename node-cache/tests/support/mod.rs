//! A daemon in a thread, and guests that speak to it frame by frame.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // each test binary uses its part

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nacre_cache::{Config, Server, Statistics, ask_for_statistics};
use nacre_protocol::blob_cache::{
    Blob, CREDIT_LIMIT, FromCache, FromGuest, HEADER_SIZE, Header, Hello, PIECE_LIMIT, Refusal,
    VERDICT_SIZE, Verdict,
};
use nacre_trust::{Algorithm, Digest};
use tempfile::TempDir;
use tokio::sync::oneshot;

/// Longer than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Daemon {
    pub directory: TempDir,
    pub config: Config,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Daemon {
    pub fn start() -> Daemon {
        Daemon::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Config)) -> Daemon {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config {
            socket: directory.path().join("run/cache.sock"),
            directory: directory.path().join("cache"),
            containerd_content: vec![directory.path().join("content")],
            ..Config::default()
        };
        change(&mut config);
        let mut daemon = Daemon { directory, config, running: None };
        daemon.run();
        daemon
    }

    pub fn run(&mut self) {
        let (end, ended) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let config = self.config.clone();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let server = Server::bind(&config).unwrap();
                ready.send(()).unwrap();
                server.run(async { drop(ended.await) }).await;
            });
        });
        is_ready.recv_timeout(PATIENCE).unwrap();
        self.running = Some((end, thread));
    }

    pub fn stop(&mut self) {
        let (end, thread) = self.running.take().unwrap();
        end.send(()).unwrap();
        thread.join().unwrap();
    }

    pub fn connect(&self, namespace: &str) -> Result<Guest, Verdict> {
        let hello = Hello::Guest { namespace: namespace.into(), sandbox: "pod-1".into() };
        let mut stream = self.raw(&hello.to_bytes().unwrap());
        let mut verdict = [0; VERDICT_SIZE];
        stream.read_exact(&mut verdict).unwrap();
        match Verdict::parse(&verdict).unwrap() {
            Verdict::Welcome => Ok(Guest { stream, last: 0 }),
            refused => Err(refused),
        }
    }

    /// A connection that has sent some bytes.
    pub fn raw(&self, bytes: &[u8]) -> UnixStream {
        let mut stream = UnixStream::connect(&self.config.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    }

    pub fn guest(&self) -> Guest {
        self.connect("k8s.io").unwrap()
    }

    pub fn statistics(&self) -> Statistics {
        ask_for_statistics(&self.config.socket).unwrap()
    }

    /// Waits until the numbers are as wanted.
    pub fn wait(&self, what: &str, wanted: impl Fn(&Statistics) -> bool) -> Statistics {
        let begun = Instant::now();
        loop {
            let statistics = self.statistics();
            if wanted(&statistics) {
                return statistics;
            }
            assert!(begun.elapsed() < PATIENCE, "no {what}: {statistics:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Puts a blob and waits until it is kept.
    pub fn fill(&self, guest: &mut Guest, content: &[u8]) {
        let before = self.statistics().puts;
        guest.put(content).unwrap();
        self.wait("kept blob", |statistics| statistics.puts > before);
    }

    /// A blob in containerd's store.
    pub fn containerd_has(&self, content: &[u8]) -> PathBuf {
        let digest = blob(content).digest;
        let directory =
            self.config.containerd_content[0].join("blobs").join(digest.algorithm().name());
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join(digest.hex());
        std::fs::write(&path, content).unwrap();
        path
    }

    /// The file of a blob of its own, of an unshared namespace.
    pub fn file(&self, namespace: &str, content: &[u8]) -> PathBuf {
        let digest = blob(content).digest;
        let name = format!("namespaces/{namespace}/{}/{}", digest.algorithm().name(), digest.hex());
        self.config.directory.join(name)
    }

    pub fn ingests(&self) -> usize {
        self.config.directory.join("ingest").read_dir().unwrap().count()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.running.is_some() && !std::thread::panicking() {
            self.stop();
        }
    }
}

/// What the daemon says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    Accept(u32),
    Miss,
    Refuse(Refusal),
    Data(Vec<u8>),
    End,
    Cancel,
    Credit(u32),
    /// The stream is closed.
    Closed,
}

pub struct Guest {
    pub stream: UnixStream,
    last: u32,
}

impl Guest {
    pub fn send(&mut self, number: u32, frame: FromGuest<'_>) {
        let mut bytes = Vec::new();
        frame.write(number, &mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
    }

    /// The next frame and its request.
    pub fn hear(&mut self) -> (u32, Said) {
        let mut head = [0; HEADER_SIZE];
        match self.stream.read_exact(&mut head) {
            Err(closed) if closed.kind() != std::io::ErrorKind::WouldBlock => {
                return (0, Said::Closed);
            }
            read => read.unwrap(),
        }
        let header = Header::parse(&head).unwrap();
        let mut payload = vec![0; header.size()];
        self.stream.read_exact(&mut payload).unwrap();
        let said = match FromCache::parse(&header, &payload).unwrap() {
            FromCache::Accept(credit) => Said::Accept(credit),
            FromCache::Miss => Said::Miss,
            FromCache::Refuse(why) => Said::Refuse(why),
            FromCache::Data(piece) => Said::Data(piece.to_vec()),
            FromCache::End => Said::End,
            FromCache::Cancel => Said::Cancel,
            FromCache::Credit(credit) => Said::Credit(credit),
        };
        (header.request(), said)
    }

    /// The next frame, which must be of that request.
    pub fn answer(&mut self, number: u32) -> Said {
        let (request, said) = self.hear();
        assert!(request == number || said == Said::Closed, "{request}: {said:?}");
        said
    }

    pub fn ask(&mut self, blob: Blob, offset: u64, credit: u32) -> u32 {
        self.last += 1;
        self.send(self.last, FromGuest::Get { blob, offset, credit });
        self.last
    }

    pub fn offer(&mut self, blob: Blob) -> u32 {
        self.last += 1;
        self.send(self.last, FromGuest::Put { blob });
        self.last
    }

    /// Gets the rest of a blob; else what was said instead of the end.
    pub fn get(&mut self, blob: Blob, offset: u64) -> Result<Vec<u8>, Said> {
        let number = self.ask(blob, offset, CREDIT_LIMIT);
        match self.answer(number) {
            Said::Accept(0) => self.read(number),
            other => Err(other),
        }
    }

    /// Reads what was accepted, giving credit for all of it.
    pub fn read(&mut self, number: u32) -> Result<Vec<u8>, Said> {
        let mut content = Vec::new();
        loop {
            match self.answer(number) {
                Said::Data(piece) => {
                    content.extend_from_slice(&piece);
                    self.send(number, FromGuest::Credit(piece.len().try_into().unwrap()));
                }
                Said::End => return Ok(content),
                other => return Err(other),
            }
        }
    }

    pub fn put(&mut self, content: &[u8]) -> Result<u32, Said> {
        self.put_as(blob(content), content)
    }

    /// Puts content under a name; else what was said instead of more credit.
    pub fn put_as(&mut self, blob: Blob, content: &[u8]) -> Result<u32, Said> {
        let number = self.offer(blob);
        let mut credit = match self.answer(number) {
            Said::Accept(credit) => credit as usize,
            other => return Err(other),
        };
        let mut rest = content;
        while !rest.is_empty() {
            while credit == 0 {
                match self.answer(number) {
                    Said::Credit(more) => credit += more as usize,
                    other => return Err(other),
                }
            }
            let (piece, next) = rest.split_at(rest.len().min(credit).min(PIECE_LIMIT));
            self.send(number, FromGuest::Data(piece));
            credit -= piece.len();
            rest = next;
        }
        self.send(number, FromGuest::End);
        // Credit may have crossed the last pieces: nothing more comes once the blob is whole.
        Ok(number)
    }
}

/// Names content.
pub fn blob(content: &[u8]) -> Blob {
    Blob { digest: Digest::of(Algorithm::Sha256, content), size: content.len() as u64 }
}

/// Content that is not like other content.
pub fn content(seed: u8, size: usize) -> Vec<u8> {
    (0..size).map(|at| (at / 251 * 31 + at).to_le_bytes()[0] ^ seed).collect()
}
