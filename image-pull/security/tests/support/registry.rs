//! A real registry on loopback, and a client of a few lines for it.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use nacre_image_security::sign::Attachment;
use nacre_image_security::{Sources, Subject};
use nacre_trust::{Algorithm, Digest};
use zeroize::Zeroizing;

const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.v2+json";

pub(crate) struct Registry {
    pub(crate) host: String,
    process: Child,
    _directory: tempfile::TempDir,
}

impl Registry {
    /// `None`, and says so, where there is none to start.
    pub(crate) fn start() -> Option<Self> {
        for program in ["docker-registry", "skopeo"] {
            if Command::new(program).arg("--version").output().is_err() {
                println!("SKIPPED: {program} is not installed");
                return None;
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        let config = directory.path().join("config.yml");
        let root = directory.path().join("data");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
             http:\n  addr: {host}\n",
            root.display()
        );
        std::fs::write(&config, text).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self { host, process, _directory: directory };
        let until = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(&registry.host).is_err() {
            assert!(Instant::now() < until, "docker-registry does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(registry)
    }

    /// Status, headers and body of one request.
    fn request(&self, line: &str, headers: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
        let mut stream = TcpStream::connect(&self.host).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let length = body.len();
        write!(
            stream,
            "{line} HTTP/1.0\r\nHost: {}\r\nContent-Length: {length}\r\n{headers}\r\n",
            self.host
        )
        .unwrap();
        stream.write_all(body).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(answer[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head, answer[end + 4..].to_vec())
    }

    pub(crate) fn get(&self, path: &str) -> Option<Vec<u8>> {
        let (status, _, body) =
            self.request(&format!("GET {path}"), &format!("Accept: {ACCEPT}\r\n"), b"");
        (status == 200).then_some(body)
    }

    pub(crate) fn push(&self, repository: &str, attachment: &Attachment) {
        for blob in &attachment.blobs {
            let (status, head, _) =
                self.request(&format!("POST /v2/{repository}/blobs/uploads/"), "", b"");
            assert_eq!(status, 202, "{head}");
            let location = head.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap();
            let location = location.strip_prefix(&format!("http://{}", self.host)).unwrap();
            let digest = Digest::of(Algorithm::Sha256, blob);
            let put = format!("PUT {location}&digest={digest}");
            assert_eq!(self.request(&put, "", blob).0, 201);
        }
        let put = format!("PUT /v2/{repository}/manifests/{}", attachment.reference);
        let kind = format!("Content-Type: {}\r\n", attachment.media_type);
        let (status, head, body) = self.request(&put, &kind, &attachment.manifest);
        assert_eq!(status, 201, "{head} {}", String::from_utf8_lossy(&body));
    }

    /// An image that is there, by tag.
    pub(crate) fn subject(&self, repository: &str, tag: &str) -> (Subject, Vec<u8>) {
        let manifest = self.get(&format!("/v2/{repository}/manifests/{tag}")).unwrap();
        let subject = Subject {
            host: self.host.clone(),
            path: repository.to_owned(),
            tag: Some(tag.to_owned()),
            digest: None,
            manifests: vec![Digest::of(Algorithm::Sha256, &manifest)],
        };
        (subject, manifest)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// One repository of the registry, a directory as signature store, keys in memory.
pub(crate) struct Repository<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) path: String,
    pub(crate) store: PathBuf,
    pub(crate) resources: BTreeMap<String, Vec<u8>>,
}

#[async_trait]
impl Sources for Repository<'_> {
    async fn manifest(&self, tag_or_digest: &str) -> Result<Option<Vec<u8>>, String> {
        Ok(self.registry.get(&format!("/v2/{}/manifests/{tag_or_digest}", self.path)))
    }

    async fn referrers(&self, digest: &Digest) -> Result<Option<Vec<u8>>, String> {
        Ok(self.registry.get(&format!("/v2/{}/referrers/{digest}", self.path)))
    }

    async fn blob(&self, digest: &Digest, _size: u64) -> Result<Vec<u8>, String> {
        self.registry
            .get(&format!("/v2/{}/blobs/{digest}", self.path))
            .ok_or_else(|| "404".to_owned())
    }

    async fn lookaside(&self, url: &str) -> Result<Option<Vec<u8>>, String> {
        let path = url.strip_prefix("https://store.example/").ok_or("another store")?;
        Ok(std::fs::read(self.store.join(path)).ok())
    }

    async fn resource(&self, uri: &str) -> Result<Zeroizing<Vec<u8>>, String> {
        self.resources.get(uri).cloned().map(Zeroizing::new).ok_or_else(|| "not found".to_owned())
    }
}
