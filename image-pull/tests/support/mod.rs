//! A real registry on loopback, images made on the spot, and a web server that misbehaves.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // each test binary uses its part

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nacre_image_pull::{Limits, PullConfig, Puller, Registries};
use nacre_trust::{Algorithm, Digest};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A puller with a store of its own.
pub struct World {
    pub directory: tempfile::TempDir,
    pub puller: Puller,
}

impl World {
    pub fn new(registry: &str) -> Self {
        Self::with(registry, Limits { stall: Duration::from_secs(2), ..Limits::default() })
    }

    pub fn with(registry: &str, limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("store");
        let registries = plain(registry);
        let config = PullConfig { limits, registries, ..PullConfig::new(store) };
        Self { puller: Puller::new(config).unwrap(), directory }
    }

    /// With whatever else a test wants.
    pub fn configured(change: impl FnOnce(PullConfig) -> PullConfig) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = change(PullConfig::new(directory.path().join("store")));
        Self { puller: Puller::new(config).unwrap(), directory }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub async fn pull(&self, reference: &str) -> Result<nacre_image_pull::Image, String> {
        self.puller.pull(reference, |_| {}).await.map_err(|e| e.to_string())
    }

    /// Pulls what must fail, and checks that nothing is left of it.
    pub async fn refuse(&self, reference: &str) -> String {
        let error = self.pull(reference).await.expect_err(reference);
        assert_eq!(children(&self.path("store/staging")), Vec::<String>::new(), "{error}");
        error
    }

    pub fn layers(&self) -> usize {
        children(&self.path("store/layers/sha256")).len()
    }

    /// Mounts an image; it is unmounted when the guard goes.
    pub fn mount(&self, image: &nacre_image_pull::Image, name: &str) -> Mounted {
        let target = self.path(name).join("rootfs");
        image.mount(&self.path(name).join("scratch"), &target, false).unwrap();
        Mounted(target, Some(image.clone()))
    }
}

/// A key broker in memory, and what it was asked for.
#[derive(Default)]
pub struct Broker {
    pub resources: std::collections::BTreeMap<String, Vec<u8>>,
    pub asked: Mutex<Vec<String>>,
}

#[async_trait::async_trait]
impl nacre_image_pull::Resources for Broker {
    async fn resource(&self, uri: &str) -> Result<zeroize::Zeroizing<Vec<u8>>, String> {
        self.asked.lock().unwrap().push(uri.to_owned());
        let found = self.resources.get(uri).cloned().map(zeroize::Zeroizing::new);
        found.ok_or_else(|| format!("{uri}: the key broker has no such resource"))
    }
}

/// A registry without TLS.
pub fn plain(host: &str) -> Registries {
    Registries { danger_plain_http: vec![host.to_owned()], ..Registries::default() }
}

pub fn children(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// A mount, and the image that must outlive it.
pub struct Mounted(pub PathBuf, pub Option<nacre_image_pull::Image>);

impl Mounted {
    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.0.join(name)).unwrap_or_else(|e| format!("{name}: {e}"))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

/// Debian's `docker-registry`, with its storage in a temporary directory.
pub struct Registry {
    process: Child,
    directory: tempfile::TempDir,
    storage: PathBuf,
    pub host: String,
}

impl Registry {
    /// None, and a visible line, if the program is not installed.
    pub fn start() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let storage = directory.path().join("storage");
        Self::serve(directory, storage, "")
    }

    /// The same content over https.
    pub fn with_tls(&self, certificate: &Path, key: &Path) -> Option<Self> {
        let tls = format!(
            "  tls:\n    certificate: {}\n    key: {}\n",
            certificate.display(),
            key.display()
        );
        Self::serve(tempfile::tempdir().unwrap(), self.storage.clone(), &tls)
    }

    fn serve(directory: tempfile::TempDir, storage: PathBuf, tls: &str) -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        let config = directory.path().join("config.yml");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
                 http:\n  addr: {host}\n{tls}",
                storage.display()
            ),
        )
        .unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(process) = process else {
            eprintln!(
                "SKIPPED: docker-registry is not installed (apt-get install docker-registry)"
            );
            return None;
        };
        let registry = Self { process, directory, storage, host };
        let begin = Instant::now();
        while TcpStream::connect(&registry.host).is_err() {
            assert!(begin.elapsed() < Duration::from_secs(20), "docker-registry does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(registry)
    }

    fn client() -> Client {
        // A second call finds it installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() };
        Client::try_from(config).unwrap()
    }

    /// Pushes with another implementation of the protocol than the one under test.
    pub async fn push(&self, name: &str, image: &Image) -> String {
        self.push_blobs(name, image).await;
        self.push_manifest(name, "latest", &image.manifest, OCI_MANIFEST).await
    }

    pub async fn push_blobs(&self, name: &str, image: &Image) {
        let reference = Reference::with_tag(self.host.clone(), name.into(), "latest".into());
        let client = Self::client();
        client.auth(&reference, &RegistryAuth::Anonymous, RegistryOperation::Push).await.unwrap();
        let config = image.config.as_bytes();
        for blob in image.layers.iter().map(|layer| layer.blob.as_slice()).chain([config]) {
            client.push_blob(&reference, blob.to_vec(), &digest(blob)).await.unwrap();
        }
    }

    pub async fn push_manifest(&self, name: &str, tag: &str, manifest: &str, kind: &str) -> String {
        let reference = Reference::with_tag(self.host.clone(), name.into(), tag.into());
        let body = manifest.as_bytes().to_vec();
        Self::client().push_manifest_raw(&reference, body, kind.parse().unwrap()).await.unwrap();
        format!("{}/{name}:{tag}", self.host)
    }

    /// The file in which the registry keeps some content.
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        let blobs = self.storage.join("docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub fn digest(content: &[u8]) -> String {
    Digest::of(Algorithm::Sha256, content).to_string()
}

/// A layer blob and what it unpacks to.
#[derive(Clone)]
pub struct Layer {
    pub blob: Vec<u8>,
    pub diff_id: String,
    pub kind: String,
}

/// Packs what `fill` puts into a tar archive; `compression` is "", "gzip" or "zstd".
pub fn layer(compression: &str, fill: impl FnOnce(Tar) -> Tar) -> Layer {
    pack(compression, &fill(Tar::default()).bytes())
}

pub fn pack(compression: &str, tar: &[u8]) -> Layer {
    let blob = match compression {
        "gzip" => gzip(tar),
        "zstd" => zstd::encode_all(tar, 3).unwrap(),
        _ => tar.to_vec(),
    };
    let plus = if compression.is_empty() { "" } else { "+" };
    Layer { blob, diff_id: digest(tar), kind: format!("{OCI_LAYER}{plus}{compression}") }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Tar archives, in one line an entry.
pub struct Tar(tar::Builder<Vec<u8>>);

impl Default for Tar {
    fn default() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }
}

impl Tar {
    pub fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }

    pub fn file(mut self, path: &str, content: impl AsRef<[u8]>) -> Self {
        let content = content.as_ref();
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        self.0.append_data(&mut header, path, content).unwrap();
        self
    }

    pub fn link(mut self, path: &str, to: &str) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        self.0.append_link(&mut header, path, to).unwrap();
        self
    }

    pub fn hard(mut self, path: &str, to: &str) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Link);
        header.set_size(0);
        self.0.append_link(&mut header, path, to).unwrap();
        self
    }

    pub fn directory(mut self, path: &str, mode: u32) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(mode);
        self.0.append_data(&mut header, path, &[][..]).unwrap();
        self
    }
}

/// An image as it will be pushed: change the documents before, to lie.
pub struct Image {
    pub layers: Vec<Layer>,
    pub config: String,
    pub manifest: String,
}

pub fn image(layers: &[Layer]) -> Image {
    let ids: Vec<String> = layers.iter().map(|layer| format!("\"{}\"", layer.diff_id)).collect();
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","config":{{"Cmd":["/bin/x"]}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        ids.join(",")
    );
    let manifest = manifest(&config, layers);
    Image { layers: layers.to_vec(), config, manifest }
}

pub fn manifest(config: &str, layers: &[Layer]) -> String {
    let layers: Vec<String> =
        layers.iter().map(|layer| descriptor(&layer.kind, &layer.blob)).collect();
    let config = descriptor(OCI_CONFIG, config.as_bytes());
    let layers = layers.join(",");
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{config},"layers":[{layers}]}}"#
    )
}

pub fn descriptor(kind: &str, content: &[u8]) -> String {
    let (digest, size) = (digest(content), content.len());
    format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":{size}}}"#)
}

/// A request as the misbehaving server saw it.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub body: String,
    /// Lower-case lines `name: value`.
    pub headers: Vec<String>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// What a request came through.
pub trait Connection: Read + Write {}

impl<T: Read + Write> Connection for T {}

/// A certificate authority of one certificate, which is the server's own.
pub struct Identity {
    pub pem: String,
    config: Arc<rustls::ServerConfig>,
}

impl Identity {
    pub fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.unwrap())
            .unwrap();
        Self { pem: made.cert.pem(), config: Arc::new(config) }
    }
}

/// An HTTP server for what no real registry does. Every connection is one request.
pub struct Server {
    pub host: String,
    pub requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub fn start(
        answer: impl Fn(&Request, usize, &mut dyn Connection) -> std::io::Result<()>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self::listen(None, answer)
    }

    /// The same over https.
    pub fn start_tls(
        identity: &Identity,
        answer: impl Fn(&Request, usize, &mut dyn Connection) -> std::io::Result<()>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self::listen(Some(identity.config.clone()), answer)
    }

    fn listen(
        tls: Option<Arc<rustls::ServerConfig>>,
        answer: impl Fn(&Request, usize, &mut dyn Connection) -> std::io::Result<()>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        let answer = Arc::new(answer);
        // The thread ends with the test process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, seen, tls) = (answer.clone(), seen.clone(), tls.clone());
                std::thread::spawn(move || match tls {
                    None => serve(&mut &stream, &seen, &*answer),
                    Some(tls) => {
                        let session = rustls::ServerConnection::new(tls).unwrap();
                        let mut stream = rustls::StreamOwned::new(session, stream);
                        serve(&mut stream, &seen, &*answer);
                        stream.conn.send_close_notify();
                        let _ = stream.flush();
                    }
                });
            }
        });
        Self { host, requests }
    }

    /// Serves an image, by its real digests, with `twist` free to answer first.
    pub fn with_image(
        image: Image,
        twist: impl Fn(&Request, usize, &mut dyn Connection) -> Option<()> + Send + Sync + 'static,
    ) -> Self {
        Self::start(Self::serving(image, twist))
    }

    /// An answer that serves an image.
    pub fn serving(
        image: Image,
        twist: impl Fn(&Request, usize, &mut dyn Connection) -> Option<()> + Send + Sync + 'static,
    ) -> impl Fn(&Request, usize, &mut dyn Connection) -> std::io::Result<()> {
        move |request, nth, stream| {
            if twist(request, nth, stream).is_some() {
                return Ok(());
            }
            let blobs = image.layers.iter().map(|layer| layer.blob.as_slice());
            let mut blobs = blobs.chain([image.config.as_bytes()]);
            if request.path.contains("/manifests/") {
                return reply(
                    stream,
                    "200 OK",
                    &[("Content-Type", OCI_MANIFEST)],
                    image.manifest.as_bytes(),
                );
            }
            match blobs.find(|blob| request.path.ends_with(&digest(blob))) {
                Some(blob) => reply(stream, "200 OK", &[], blob),
                None => reply(stream, "404 Not Found", &[], b"{}"),
            }
        }
    }

    pub fn asked(&self, part: &str) -> usize {
        self.requests.lock().unwrap().iter().filter(|r| r.path.contains(part)).count()
    }
}

fn serve(
    stream: &mut dyn Connection,
    seen: &Mutex<Vec<Request>>,
    answer: &(impl Fn(&Request, usize, &mut dyn Connection) -> std::io::Result<()> + ?Sized),
) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            return;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next().unwrap().split(' ').map(ToOwned::to_owned);
    let (method, path) = (first.next().unwrap(), first.next().unwrap());
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(": ").unwrap_or((line, ""));
        format!("{}: {value}", name.to_lowercase())
    });
    let mut request = Request { method, path, body: String::new(), headers: headers.collect() };
    let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    if stream.read_exact(&mut body).is_err() {
        return;
    }
    request.body = String::from_utf8(body).unwrap();
    let nth = {
        let mut seen = seen.lock().unwrap();
        seen.push(request.clone());
        seen.iter().filter(|other| other.path == request.path).count()
    };
    let _ = answer(&request, nth, stream);
}

pub fn reply(
    stream: &mut dyn Connection,
    status: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<()> {
    let mut head =
        format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(head.as_bytes())?;
    stream.write_all(b"\r\n")?;
    stream.write_all(body)
}
