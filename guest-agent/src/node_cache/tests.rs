//! The client against caches that lie, and with the puller against the real daemon and a real registry.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use nacre_cache::{Config, Server, Statistics, ask_for_statistics};
use nacre_image_pull::{PullConfig, Puller, Registries};
use nacre_protocol::blob_cache::{Hello, Refusal, VERDICT_SIZE, Verdict};
use nacre_trust::Algorithm;
use tokio::io::DuplexStream;
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);
const PATIENT: Patience = Patience { answer: PATIENCE, put: PATIENCE };
const HASTY: Patience =
    Patience { answer: Duration::from_millis(20), put: Duration::from_millis(20) };

/// The host's end of a port.
struct Host(DuplexStream);

impl Host {
    fn new() -> (NodeCache, Host) {
        let (guest, host) = tokio::io::duplex(4096);
        (NodeCache::on(guest, PATIENT), Host(host))
    }

    async fn say(&mut self, number: u32, frame: FromCache<'_>) {
        let mut bytes = Vec::new();
        frame.write(number, &mut bytes).unwrap();
        self.0.write_all(&bytes).await.unwrap();
    }

    /// The next frame's request and, in words, the frame; nothing when the port is closed.
    async fn hear(&mut self) -> Option<(u32, String)> {
        let mut head = [0; HEADER_SIZE];
        self.0.read_exact(&mut head).await.ok()?;
        let header = Header::parse(&head).unwrap();
        let mut payload = vec![0; header.size()];
        self.0.read_exact(&mut payload).await.ok()?;
        let words = match FromGuest::parse(&header, &payload).unwrap() {
            FromGuest::Get { blob, offset, credit } => {
                format!("get {} from {offset} credit {credit}", blob.size)
            }
            FromGuest::Put { blob } => format!("put {}", blob.size),
            FromGuest::Data(piece) => format!("data {}", piece.len()),
            FromGuest::Credit(credit) => format!("credit {credit}"),
            other => format!("{other:?}"),
        };
        Some((header.request(), words))
    }
}

fn digest(content: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, content)
}

async fn read(stream: &mut Box<dyn BlobStream>) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    while let Some(piece) = stream.next().await? {
        content.extend_from_slice(&piece);
    }
    Ok(content)
}

#[tokio::test]
async fn a_get_takes_no_more_than_it_gave_credit_for() {
    let (cache, mut host) = Host::new();
    let size = 1_000_000;
    let serving = tokio::spawn(async move {
        assert_eq!(host.hear().await.unwrap(), (1, "get 1000000 from 10 credit 524288".into()));
        host.say(1, FromCache::Accept(0)).await;
        let mut left = size - 10;
        let mut credit = 524_288;
        while left > 0 {
            while credit == 0 {
                let (_, words) = host.hear().await.unwrap();
                credit = words.strip_prefix("credit ").unwrap().parse().unwrap();
            }
            let piece = vec![7; left.min(credit).min(50_000)];
            host.say(1, FromCache::Data(&piece)).await;
            left -= piece.len();
            credit -= piece.len();
        }
        host.say(1, FromCache::End).await;
        host
    });
    let mut stream = cache.get(&digest(b"a"), size as u64, 10).await.unwrap();
    assert_eq!(read(&mut stream).await.unwrap(), vec![7; size - 10]);
    drop(stream);
    serving.await.unwrap();
    assert!(cache.get(&digest(b"a"), 5, 5).await.is_none(), "nothing to ask for");
    assert!(cache.get(&digest(b"a"), BLOB_LIMIT + 1, 0).await.is_none());
}

#[tokio::test]
async fn requests_do_not_wait_for_each_other() {
    let (cache, mut host) = Host::new();
    let cache = Arc::new(cache);
    let get = |size| {
        let cache = Arc::clone(&cache);
        tokio::spawn(async move { cache.get(&digest(b"a"), size, 0).await })
    };
    let (first, second) = (get(3), get(4));
    for _ in 0..2 {
        host.hear().await.unwrap();
    }
    host.say(2, FromCache::Accept(0)).await;
    host.say(1, FromCache::Accept(0)).await;
    let (mut first, mut second) = (first.await.unwrap().unwrap(), second.await.unwrap().unwrap());
    host.say(1, FromCache::Data(b"ab")).await;
    host.say(2, FromCache::Data(b"wxyz")).await;
    host.say(2, FromCache::End).await;
    assert_eq!(read(&mut second).await.unwrap(), b"wxyz");
    assert_eq!(first.next().await.unwrap().unwrap(), b"ab"[..]);
    host.say(1, FromCache::Cancel).await;
    let cut = first.next().await.unwrap_err();
    assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
    // A miss, a refusal, and one that is given up.
    let third = get(5);
    host.hear().await.unwrap();
    host.say(3, FromCache::Miss).await;
    assert!(third.await.unwrap().is_none());
    let fourth = get(5);
    host.hear().await.unwrap();
    host.say(4, FromCache::Refuse(Refusal::Busy)).await;
    assert!(fourth.await.unwrap().is_none());
    let fifth = get(5);
    host.hear().await.unwrap();
    host.say(5, FromCache::Accept(0)).await;
    drop(fifth.await.unwrap());
    assert_eq!(host.hear().await.unwrap(), (5, "Cancel".into()));
    // What crossed the cancel means nothing.
    host.say(5, FromCache::Data(b"x")).await;
    let sixth = get(5);
    host.hear().await.unwrap();
    host.say(6, FromCache::Accept(0)).await;
    assert!(sixth.await.unwrap().is_some());
}

#[tokio::test]
async fn a_put_waits_for_credit_and_is_given_up_in_order() {
    let (cache, mut host) = Host::new();
    let putting = tokio::spawn(async move {
        let mut sink = cache.put(&digest(b"a"), 100).await.unwrap();
        sink.write(Bytes::from(vec![1; 60])).await.unwrap();
        sink.write(Bytes::from(vec![2; 40])).await.unwrap();
        sink.finish().await.unwrap();
        let mut sink = cache.put(&digest(b"b"), 100).await.unwrap();
        let unwanted = sink.write(Bytes::from(vec![1; 60])).await.unwrap_err();
        assert_eq!(unwanted.kind(), io::ErrorKind::UnexpectedEof);
        drop(sink);
        let mut sink = cache.put(&digest(b"c"), 100).await.unwrap();
        sink.write(Bytes::from(vec![1; 60])).await.unwrap();
        let short = sink.finish().await.unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
        assert!(cache.put(&digest(b"d"), 100).await.is_none());
        cache
    });
    let mut heard = Vec::new();
    let hear = async |host: &mut Host, heard: &mut Vec<_>| heard.push(host.hear().await.unwrap());
    hear(&mut host, &mut heard).await;
    host.say(1, FromCache::Accept(50)).await;
    hear(&mut host, &mut heard).await;
    host.say(1, FromCache::Credit(50)).await;
    for _ in 0..4 {
        hear(&mut host, &mut heard).await;
    }
    host.say(2, FromCache::Accept(10)).await;
    hear(&mut host, &mut heard).await;
    host.say(2, FromCache::Cancel).await;
    hear(&mut host, &mut heard).await;
    host.say(3, FromCache::Accept(100)).await;
    for _ in 0..3 {
        hear(&mut host, &mut heard).await;
    }
    host.say(4, FromCache::Refuse(Refusal::Present)).await;
    // Small frames overtake pieces of other requests.
    heard.sort_by_key(|(number, _)| *number);
    let words = |number| {
        let of: Vec<_> = heard.iter().filter(|(n, _)| *n == number).map(|(_, w)| &w[..]).collect();
        of.join(", ")
    };
    assert_eq!(words(1), "put 100, data 50, data 10, data 40, End");
    assert_eq!(words(2), "put 100, data 10");
    assert!(words(3).starts_with("put 100") && words(3).contains("Cancel"), "{}", words(3));
    assert_eq!(words(4), "put 100");
    putting.await.unwrap();
}

#[tokio::test]
async fn the_first_frame_that_breaks_the_protocol_is_the_last() {
    let ask = |cache: &Arc<NodeCache>| {
        let cache = Arc::clone(cache);
        tokio::spawn(async move { cache.get(&digest(b"a"), 100, 0).await })
    };
    let accepted = FromCache::Accept(0);
    let hundred = [0; 100];
    for attack in [
        vec![(1, FromCache::Accept(1))],
        vec![(1, FromCache::Data(b"x"))],
        vec![(1, FromCache::End)],
        vec![(1, FromCache::Credit(1))],
        vec![(2, FromCache::Miss)],
        vec![(1, accepted), (1, accepted)],
        vec![(1, accepted), (1, FromCache::Miss)],
        vec![(1, accepted), (1, FromCache::End)],
        vec![(1, accepted), (1, FromCache::Data(b"x")), (1, FromCache::End)],
        vec![(1, accepted), (1, FromCache::Data(&hundred)), (1, FromCache::Data(b"x"))],
        vec![(1, accepted), (9, FromCache::Data(b"x"))],
    ] {
        let (cache, mut host) = Host::new();
        let cache = Arc::new(cache);
        let asking = ask(&cache);
        host.hear().await.unwrap();
        for (number, frame) in &attack {
            host.say(*number, *frame).await;
        }
        if let Some(mut stream) = asking.await.unwrap() {
            let broken = read(&mut stream).await.unwrap_err();
            assert_eq!(broken.kind(), io::ErrorKind::BrokenPipe, "{attack:?}");
        }
        while host.hear().await.is_some() {}
        assert!(ask(&cache).await.unwrap().is_none(), "for good: {attack:?}");
    }
    for garbage in [&b"HTTP/1.1 200 OK\r\n\r\n"[..], &[0xff; 64], &[0; 64]] {
        let (cache, mut host) = Host::new();
        let cache = Arc::new(cache);
        let asking = ask(&cache);
        host.hear().await.unwrap();
        host.0.write_all(garbage).await.unwrap();
        assert!(asking.await.unwrap().is_none());
        assert!(ask(&cache).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_silent_cache_is_given_up() {
    let hasty = || {
        let (guest, host) = tokio::io::duplex(4096);
        (NodeCache::on(guest, HASTY), Host(host))
    };
    let (cache, mut host) = hasty();
    for number in 1..=MOST_UNANSWERED {
        assert!(cache.get(&digest(b"a"), 100, 0).await.is_none());
        if number < MOST_UNANSWERED {
            assert_eq!(host.hear().await.unwrap().0, number);
            assert_eq!(host.hear().await.unwrap(), (number, "Cancel".into()));
        }
    }
    while host.hear().await.is_some() {}
    assert!(cache.get(&digest(b"a"), 100, 0).await.is_none(), "the port is closed");
    // One that takes a put, and then nothing of it.
    let (guest, host) = tokio::io::duplex(4096);
    let patience = Patience { answer: PATIENCE, ..HASTY };
    let (cache, mut host) = (NodeCache::on(guest, patience), Host(host));
    let name = digest(b"a");
    let (put, ()) = tokio::join!(cache.put(&name, 100), async {
        host.hear().await.unwrap();
        host.say(1, FromCache::Accept(10)).await;
    });
    let stuck = put.unwrap().write(Bytes::from(vec![0; 100])).await.unwrap_err();
    assert_eq!(stuck.kind(), io::ErrorKind::TimedOut);
    assert_eq!(host.hear().await.unwrap(), (1, "data 10".into()));
    assert_eq!(host.hear().await.unwrap(), (1, "Cancel".into()));
}

#[tokio::test]
async fn a_cache_that_goes_away_leaves_nobody_waiting() {
    let (cache, mut host) = Host::new();
    let name = digest(b"a");
    let (stream, ()) = tokio::join!(cache.get(&name, 100, 0), async {
        host.hear().await.unwrap();
        host.say(1, FromCache::Accept(0)).await;
    });
    drop(host);
    let gone = stream.unwrap().next().await.unwrap_err();
    assert_eq!(gone.kind(), io::ErrorKind::BrokenPipe);
    assert!(cache.get(&digest(b"a"), 100, 0).await.is_none());
    assert!(cache.put(&digest(b"a"), 100).await.is_none());
}

/// The real daemon in a thread.
struct Daemon {
    directory: tempfile::TempDir,
    config: Config,
    running: Option<(oneshot::Sender<()>, std::thread::JoinHandle<()>)>,
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
        Daemon { directory, config, running: Some((end, thread)) }
    }

    /// What the shim does, and then the guest.
    async fn port(&self) -> NodeCache {
        let hello = Hello::Guest { namespace: "k8s.io".into(), sandbox: "pod".into() };
        let mut stream = UnixStream::connect(&self.config.socket).await.unwrap();
        stream.write_all(&hello.to_bytes().unwrap()).await.unwrap();
        let mut verdict = [0; VERDICT_SIZE];
        stream.read_exact(&mut verdict).await.unwrap();
        assert_eq!(Verdict::parse(&verdict), Ok(Verdict::Welcome));
        NodeCache::on(stream, PATIENT)
    }

    async fn wait(&self, wanted: impl Fn(&Statistics) -> bool) -> Statistics {
        let begun = Instant::now();
        loop {
            let socket = self.config.socket.clone();
            let asked = tokio::task::spawn_blocking(move || ask_for_statistics(&socket));
            let statistics = asked.await.unwrap().unwrap();
            if wanted(&statistics) {
                return statistics;
            }
            assert!(begun.elapsed() < PATIENCE, "{statistics:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn blobs(&self) -> Vec<PathBuf> {
        let directory = self.config.directory.join("namespaces/k8s.io/sha256");
        directory.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    fn stop(&mut self) {
        if let Some((end, thread)) = self.running.take() {
            let _ = end.send(());
            thread.join().unwrap();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
        }
    }
}

#[tokio::test]
async fn large_blobs_go_to_the_daemon_and_back() {
    let daemon = Daemon::start();
    let content: Vec<u8> = (0..5_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let (name, size) = (digest(&content), content.len() as u64);
    let cache = daemon.port().await;
    assert!(cache.get(&name, size, 0).await.is_none());
    let mut sink = cache.put(&name, size).await.unwrap();
    let follower = daemon.port().await;
    let mut following = follower.get(&name, size, 0).await.unwrap();
    let (put, followed) = tokio::join!(
        async {
            for piece in content.chunks(100_000) {
                sink.write(Bytes::copy_from_slice(piece)).await?;
            }
            sink.finish().await
        },
        read(&mut following)
    );
    put.unwrap();
    assert!(followed.unwrap() == content);
    daemon.wait(|statistics| statistics.puts == 1).await;
    let mut streams = Vec::new();
    for offset in [0, 1, size - 1] {
        streams.push((offset, follower.get(&name, size, offset).await.unwrap()));
    }
    for (offset, stream) in streams.iter_mut().rev() {
        let offset = usize::try_from(*offset).unwrap();
        assert!(read(stream).await.unwrap() == content[offset..]);
    }
    let found = daemon.wait(|_| true).await;
    assert_eq!((found.violations, found.hits_own, found.hits_followed), (0, 3, 1));
}

/// Debian's `docker-registry` with one image of three layers in it.
struct Registry {
    process: Child,
    directory: tempfile::TempDir,
    reference: String,
}

impl Registry {
    fn start() -> Option<Registry> {
        let directory = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let host = format!("127.0.0.1:{}", port.local_addr().unwrap().port());
        drop(port);
        let storage = directory.path().join("storage");
        let config = directory.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
             http:\n  addr: {host}\n",
            storage.display()
        );
        std::fs::write(&config, text).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(process) = process else {
            eprintln!("SKIPPED: docker-registry is not installed");
            return None;
        };
        let reference = format!("{host}/app:latest");
        let registry = Registry { process, directory, reference };
        let begun = Instant::now();
        while std::net::TcpStream::connect(&host).is_err() {
            assert!(begun.elapsed() < PATIENCE, "docker-registry does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        let layout = registry.directory.path().join("layout");
        write_layout(&layout);
        let pushed = Command::new("skopeo")
            .args(["copy", "--quiet", "--dest-tls-verify=false"])
            .arg(format!("oci:{}:latest", layout.display()))
            .arg(format!("docker://{}", registry.reference))
            .status();
        match pushed {
            Ok(status) => assert!(status.success()),
            Err(_) => {
                eprintln!("SKIPPED: skopeo is not installed");
                return None;
            }
        }
        Some(registry)
    }

    fn host(&self) -> &str {
        self.reference.split('/').next().unwrap()
    }

    /// From here on it has the manifest and the configuration only.
    fn lose_layers(&self) {
        let blobs = self.directory.path().join("storage/docker/registry/v2/blobs/sha256");
        let mut lost = 0;
        for prefix in blobs.read_dir().unwrap() {
            for blob in prefix.unwrap().path().read_dir().unwrap() {
                let data = blob.unwrap().path().join("data");
                if data.metadata().unwrap().len() > 100_000 {
                    std::fs::remove_file(data).unwrap();
                    lost += 1;
                }
            }
        }
        assert_eq!(lost, 3);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What does not get smaller when `skopeo` compresses it.
fn file_content(layer: usize) -> Vec<u8> {
    let mut state = layer as u64 + 1;
    let mut content = Vec::with_capacity(600_000);
    while content.len() < 600_000 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend_from_slice(&state.to_le_bytes());
    }
    content
}

/// An OCI image layout with three layers, a file in each.
fn write_layout(layout: &Path) {
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let add = |kind: &str, content: &[u8]| {
        let digest = digest(content);
        std::fs::write(blobs.join(digest.hex()), content).unwrap();
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"{digest}","size":{}}}"#,
            content.len()
        )
    };
    let mut layers = Vec::new();
    let mut ids = Vec::new();
    for index in 0..3 {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        let content = file_content(index);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("file{index}"), &content[..]).unwrap();
        let tar = tar.into_inner().unwrap();
        ids.push(format!("\"{}\"", digest(&tar)));
        layers.push(add("layer.v1.tar", &tar));
    }
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","config":{{"Cmd":["/x"]}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        ids.join(",")
    );
    let config = add("config.v1+json", config.as_bytes());
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{config},"layers":[{}]}}"#,
        layers.join(",")
    );
    let manifest = add("manifest.v1+json", manifest.as_bytes());
    let named = manifest.replacen(
        '{',
        r#"{"annotations":{"org.opencontainers.image.ref.name":"latest"},"#,
        1,
    );
    std::fs::write(
        layout.join("index.json"),
        format!(r#"{{"schemaVersion":2,"manifests":[{named}]}}"#),
    )
    .unwrap();
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// A pod of its own: pulls the image into an empty store, and looks at its files.
async fn pull(registry: &Registry, cache: Option<NodeCache>) -> Result<(), String> {
    let directory = tempfile::tempdir().unwrap();
    let mut config = PullConfig::new(directory.path().join("store"));
    config.registries =
        Registries { danger_plain_http: vec![registry.host().to_owned()], ..Registries::default() };
    config.cache = cache.map(|cache| Arc::new(cache) as Arc<dyn BlobCache>);
    config.share = true;
    let puller = Puller::new(config).unwrap();
    let image = puller.pull(&registry.reference, |_| {}).await.map_err(|e| e.to_string())?;
    let target = directory.path().join("rootfs");
    image.mount(&directory.path().join("scratch"), &target, false).unwrap();
    for index in 0..3 {
        let found = std::fs::read(target.join(format!("file{index}"))).unwrap();
        assert!(found == file_content(index));
    }
    rustix::mount::unmount(&target, rustix::mount::UnmountFlags::DETACH).unwrap();
    Ok(())
}

#[tokio::test]
async fn the_second_pod_of_an_image_takes_no_layer_from_the_registry() {
    let Some(registry) = Registry::start() else { return };
    let mut daemon = Daemon::start();
    pull(&registry, Some(daemon.port().await)).await.unwrap();
    let filled = daemon.wait(|statistics| statistics.puts >= 3).await;
    assert_eq!((filled.puts_lost, filled.violations), (0, 0));
    registry.lose_layers();
    let second = daemon.port().await;
    pull(&registry, Some(second)).await.expect("all layers come from the cache");
    let found = daemon.wait(|statistics| statistics.hits_own >= 3).await;
    assert!(found.bytes_own > 3 * 600_000, "{found:?}");
    pull(&registry, None).await.expect_err("the registry has none of them any more");
    // A port whose daemon is gone is no better than none.
    let third = daemon.port().await;
    daemon.stop();
    pull(&registry, Some(third)).await.expect_err("neither has them");
}

#[tokio::test]
async fn a_cache_that_lies_changes_nothing_about_the_image() {
    let Some(registry) = Registry::start() else { return };
    let daemon = Daemon::start();
    pull(&registry, Some(daemon.port().await)).await.unwrap();
    daemon.wait(|statistics| statistics.puts >= 3).await;
    for path in daemon.blobs() {
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    pull(&registry, Some(daemon.port().await)).await.unwrap();
    let found = daemon.wait(|statistics| statistics.corrupt >= 3).await;
    assert_eq!(found.violations, 0);
    assert!(daemon.directory.path().exists());
}

#[tokio::test]
async fn pods_that_start_together_cost_one_download() {
    let Some(registry) = Registry::start() else { return };
    let daemon = Daemon::start();
    let pods = futures_util::future::join_all(
        [daemon.port().await, daemon.port().await, daemon.port().await]
            .map(|port| pull(&registry, Some(port))),
    );
    for pulled in pods.await {
        pulled.unwrap();
    }
    let found = daemon.wait(|statistics| statistics.puts >= 3).await;
    assert_eq!(found.puts_lost, 0);
    assert!(found.hits_own + found.hits_followed >= 6, "{found:?}");
}
