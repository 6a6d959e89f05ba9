//! The node's cache of image blobs: the shim opens a stream to its daemon, says whose it is, and hands it
//! to the machine as the back end of a port. What travels on it is between guest and daemon
//! (`nacre_protocol::blob_cache`); no byte of it passes through here.
//!
//! The cache is a convenience: a pod that does not get one pulls from its registries.

use std::io;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::Path;
use std::time::Duration;

use nacre_configuration::Config;
use nacre_hypervisor::SerialPort;
use nacre_protocol::blob_cache::{Hello, VERDICT_SIZE, Verdict, Violation};
use nacre_protocol::channel::CACHE_PORT_NAME;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long the daemon may take to answer: a pod waits for it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why a machine has no cache.
#[derive(Debug, thiserror::Error)]
enum CacheError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Violation(#[from] Violation),
    #[error("{0}")]
    Refused(Verdict),
    #[error("it does not answer within {PATIENCE:?}")]
    Slow(#[from] tokio::time::error::Elapsed),
}

/// The port to the cache for a machine, if the node has a cache and this pod may use it.
pub(crate) async fn port(config: &Config, namespace: &str, sandbox: &str) -> Option<SerialPort> {
    let path = &config.cache.socket;
    if path.as_os_str().is_empty() {
        return None;
    }
    let connected = timeout(PATIENCE, connect(path, namespace, sandbox)).await;
    match connected.map_err(CacheError::from).and_then(|connected| connected) {
        Ok(socket) => Some(SerialPort { name: CACHE_PORT_NAME.to_owned(), socket }),
        Err(CacheError::Io(absent)) if absent.kind() == io::ErrorKind::NotFound => {
            tracing::debug!("this node has no cache of image blobs at {}", path.display());
            None
        }
        Err(error) => {
            tracing::warn!(
                "sandbox {sandbox} does without the cache of image blobs at {}: {error}",
                path.display()
            );
            None
        }
    }
}

async fn connect(
    path: &Path,
    namespace: &str,
    sandbox: &str,
) -> Result<BlockingStream, CacheError> {
    let hello = Hello::Guest { namespace: namespace.to_owned(), sandbox: sandbox.to_owned() };
    let hello = hello.to_bytes()?;
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(&hello).await?;
    let mut verdict = [0; VERDICT_SIZE];
    stream.read_exact(&mut verdict).await?;
    match Verdict::parse(&verdict)? {
        Verdict::Welcome => {}
        refused => return Err(CacheError::Refused(refused)),
    }
    let socket = stream.into_std()?;
    socket.set_nonblocking(false)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::thread;

    use nacre_protocol::blob_cache::HELLO_SIZE;

    use super::*;

    fn node() -> (tempfile::TempDir, Config) {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.cache.socket = directory.path().join("cache.sock");
        (directory, config)
    }

    /// A daemon that answers one greeting with `answer`, and returns it.
    fn daemon(config: &Config, answer: Vec<u8>) -> thread::JoinHandle<(Hello, BlockingStream)> {
        let listener = UnixListener::bind(&config.cache.socket).unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; HELLO_SIZE];
            stream.read_exact(&mut head).unwrap();
            let mut rest = vec![0; Hello::rest(&head).unwrap()];
            stream.read_exact(&mut rest).unwrap();
            stream.write_all(&answer).unwrap();
            (Hello::parse(&head, &rest).unwrap(), stream)
        })
    }

    #[tokio::test]
    async fn the_stream_is_the_guests_after_the_greeting() {
        let (_directory, config) = node();
        let answer = [&Verdict::Welcome.to_bytes()[..], b"first"].concat();
        let daemon = daemon(&config, answer);
        let port = port(&config, "k8s.io", "0a1b").await.unwrap();
        let (hello, mut stream) = daemon.join().unwrap();
        assert_eq!(hello, Hello::Guest { namespace: "k8s.io".into(), sandbox: "0a1b".into() });
        assert_eq!(port.name, "org.nacre.cache.0");
        // What the daemon says after its verdict is not for the shim.
        let mut socket = port.socket;
        let mut first = [0; 5];
        socket.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"first");
        socket.write_all(b"second").unwrap();
        drop(socket);
        let mut second = String::new();
        stream.read_to_string(&mut second).unwrap();
        assert_eq!(second, "second");
    }

    #[tokio::test]
    async fn without_a_willing_daemon_there_is_no_port() {
        let (_directory, mut config) = node();
        assert!(port(&config, "k8s.io", "a").await.is_none(), "no socket");
        let refusing = daemon(&config, Verdict::Namespace.to_bytes().to_vec());
        assert!(port(&config, "k8s.io", "a").await.is_none());
        refusing.join().unwrap();
        assert!(port(&config, "k8s.io", "a").await.is_none(), "nobody listens any more");
        std::fs::remove_file(&config.cache.socket).unwrap();
        let strange = daemon(&config, b"HTTP/1.1 400".to_vec());
        assert!(port(&config, "k8s.io", "a").await.is_none());
        strange.join().unwrap();
        std::fs::remove_file(&config.cache.socket).unwrap();
        let listener = UnixListener::bind(&config.cache.socket).unwrap();
        assert!(port(&config, "k8s.io", "a").await.is_none(), "nobody answers");
        drop(listener);
        config.cache.socket = "".into();
        assert!(port(&config, "k8s.io", "a").await.is_none());
    }
}
