//! The node's cache of image blobs, behind a real port of a VM.
//!
//! It needs what `cargo xtask image` makes and is skipped without, as the stories of `vm.rs`.

#![allow(clippy::unwrap_used)]

#[path = "vm/guest.rs"]
#[allow(dead_code)] // for the tests of another file
mod guest;
#[path = "vm/registry.rs"]
mod registry;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use guest::{Guest, HOST_FROM_GUEST, Launch, container};
use nacre_cache::{Config, Server, Statistics, ask_for_statistics};
use nacre_protocol::blob_cache::{Hello, VERDICT_SIZE, Verdict};
use tokio::sync::oneshot;

const PATIENCE: Duration = Duration::from_secs(60);

/// The daemon in a thread.
struct Daemon {
    _directory: tempfile::TempDir,
    config: Config,
    end: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Daemon {
    fn start() -> Daemon {
        let directory = tempfile::tempdir().unwrap();
        let config = Config {
            socket: directory.path().join("run/cache.sock"),
            directory: directory.path().join("cache"),
            containerd_content: Vec::new(),
            ..Config::default()
        };
        let (end, ended) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let served = config.clone();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let server = Server::bind(&served).unwrap();
                ready.send(()).unwrap();
                server.run(async { drop(ended.await) }).await;
            });
        });
        is_ready.recv_timeout(PATIENCE).unwrap();
        Daemon { _directory: directory, config, end, thread }
    }

    /// What the shim does before it launches a machine.
    fn connect(&self) -> UnixStream {
        let hello = Hello::Guest { namespace: "k8s.io".into(), sandbox: "pod".into() };
        let mut stream = UnixStream::connect(&self.config.socket).unwrap();
        stream.write_all(&hello.to_bytes().unwrap()).unwrap();
        let mut verdict = [0; VERDICT_SIZE];
        stream.read_exact(&mut verdict).unwrap();
        assert_eq!(Verdict::parse(&verdict), Ok(Verdict::Welcome));
        stream
    }

    async fn wait(&self, wanted: impl Fn(&Statistics) -> bool) -> Statistics {
        let begun = Instant::now();
        loop {
            let statistics = ask_for_statistics(&self.config.socket).unwrap();
            if wanted(&statistics) {
                return statistics;
            }
            assert!(begun.elapsed() < PATIENCE, "{statistics:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn stop(self) {
        self.end.send(()).unwrap();
        self.thread.join().unwrap();
    }
}

/// A pod that allows everything and has run its first container.
async fn pod(registries: &[&str], node_cache: Option<UnixStream>) -> Guest {
    let registries = registries.join(",");
    let parameters = format!("nacre.danger_plain_http={registries} nacre.danger_set_policy=1");
    let launch = Launch { kernel_parameters: &parameters, node_cache, ..Default::default() };
    let guest = Guest::boot(launch).await;
    guest.allow_all().await;
    guest.create_sandbox().await;
    guest.run(&container("pod", "pause", &["/pause"])).await;
    guest
}

#[tokio::test]
async fn pods_share_a_download_and_miss_nothing_without_a_cache() {
    if let Some(missing) = guest::missing() {
        eprintln!("skipped: {} is absent; run `cargo xtask image`", missing.display());
        return;
    }
    let whole = format!("{HOST_FROM_GUEST}:{}", registry::serve().await);
    let lossy = format!("{HOST_FROM_GUEST}:{}", registry::serve_without_layers().await);
    let registries = [whole.as_str(), lossy.as_str()];
    let image = |registry: &str| format!("{registry}/busybox:latest");

    let daemon = Daemon::start();
    let first = pod(&registries, Some(daemon.connect())).await;
    first.run(&container("app", &image(&whole), &["sleep", "1000"])).await;
    let found =
        daemon.wait(|statistics| statistics.puts > 0 && statistics.bytes_put > 100_000).await;
    assert_eq!((found.puts_lost, found.violations, found.guests_now), (0, 0, 1));
    drop(first);
    daemon.wait(|statistics| statistics.guests_now == 0).await;

    // The layer is in the cache alone.
    let second = pod(&registries, Some(daemon.connect())).await;
    second.run(&container("app", &image(&lossy), &["sleep", "1000"])).await;
    assert_eq!(second.shell("app", "echo works").await.1, "works\n");
    let found = daemon.wait(|statistics| statistics.hits_own > 0).await;
    assert!(found.bytes_own > 100_000, "{found:?}");
    assert_eq!((found.gets_cut, found.violations), (0, 0));
    drop(second);

    // A daemon that ends while a pod runs, and none at all.
    let third = pod(&registries, Some(daemon.connect())).await;
    daemon.stop();
    third.run(&container("app", &image(&whole), &["sleep", "1000"])).await;
    assert_eq!(third.shell("app", "echo works").await.1, "works\n");
}
