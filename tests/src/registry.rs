//! The registry of a world: pushing by HTTP, and doing harm to what it stores.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use crate::image::{Blob, Image};
use crate::namespaces::Namespaces;

/// Name of the registry, for the host and for guests alike.
pub(crate) const ADDRESS: &str = "10.88.0.1:5000";
/// Where it keeps its files, inside.
pub(crate) const STORAGE: &str = "/run/world/registry";

/// A registry that runs in a world.
#[derive(Debug)]
pub struct Registry<'w> {
    namespaces: &'w Namespaces,
}

impl<'w> Registry<'w> {
    pub(crate) fn new(namespaces: &'w Namespaces) -> Registry<'w> {
        Registry { namespaces }
    }

    /// Pushes an image as `<name>:1`; returns the reference to pull it by, with its digest.
    pub fn push(&self, image: &Image) -> anyhow::Result<String> {
        let built = image.build()?;
        for blob in built.layers.iter().chain([&built.config]) {
            self.push_blob(&image.name, blob)?;
        }
        let manifest = &built.manifest;
        let path = format!("/v2/{}/manifests/1", image.name);
        let answer = self.request("PUT", &path, &manifest.media_type, &manifest.bytes)?;
        answer.expect(201, "the manifest")?;
        Ok(format!("{ADDRESS}/{}@{}", image.name, manifest.digest))
    }

    /// Digests of an image's layers, lowest first.
    pub fn layers(&self, image: &Image) -> anyhow::Result<Vec<String>> {
        Ok(image.build()?.layers.into_iter().map(|blob| blob.digest).collect())
    }

    /// Changes one byte of a stored blob, as a hostile registry would.
    pub fn corrupt(&self, digest: &str) -> anyhow::Result<()> {
        let path = self.blob(digest)?;
        let mut bytes = fs::read(&path)?;
        let middle = bytes.len() / 2;
        *bytes.get_mut(middle).context("the blob is empty")? ^= 1;
        fs::write(&path, bytes).context("failed to overwrite the blob")
    }

    /// Removes a stored blob.
    pub fn lose(&self, digest: &str) -> anyhow::Result<()> {
        fs::remove_file(self.blob(digest)?).context("failed to remove the blob")
    }

    /// Takes a stored blob away; returns its content.
    pub fn take(&self, digest: &str) -> anyhow::Result<Vec<u8>> {
        let content = fs::read(self.blob(digest)?)?;
        self.lose(digest)?;
        Ok(content)
    }

    /// Puts back what [`Registry::take`] took.
    pub fn give_back(&self, digest: &str, content: &[u8]) -> anyhow::Result<()> {
        Ok(fs::write(self.blob(digest)?, content)?)
    }

    /// Whether the registry answers.
    pub(crate) fn ready(&self) -> bool {
        self.request("GET", "/v2/", "", &[]).is_ok_and(|answer| answer.status == 200)
    }

    fn blob(&self, digest: &str) -> anyhow::Result<PathBuf> {
        let hash = digest.strip_prefix("sha256:").context("not a sha256 digest")?;
        let path = format!("{STORAGE}/docker/registry/v2/blobs/sha256/{}/{hash}/data", &hash[..2]);
        Ok(self.namespaces.path(&path))
    }

    fn push_blob(&self, name: &str, blob: &Blob) -> anyhow::Result<()> {
        let started = self.request("POST", &format!("/v2/{name}/blobs/uploads/"), "", &[])?;
        started.expect(202, "an upload")?;
        let location = started.location.context("the registry gave no upload location")?;
        let location = location.trim_start_matches("http://").trim_start_matches(ADDRESS);
        let joint = if location.contains('?') { '&' } else { '?' };
        let path = format!("{location}{joint}digest={}", blob.digest);
        let done = self.request("PUT", &path, "application/octet-stream", &blob.bytes)?;
        done.expect(201, "a blob")
    }

    /// One HTTP/1.1 request on its own connection.
    fn request(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: &[u8],
    ) -> anyhow::Result<Answer> {
        let mut stream = self.namespaces.in_network(|| TcpStream::connect(ADDRESS))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: {ADDRESS}\r\nConnection: close\r\n")?;
        if !content_type.is_empty() {
            write!(stream, "Content-Type: {content_type}\r\n")?;
        }
        write!(stream, "Content-Length: {}\r\n\r\n", body.len())?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Answer::parse(&String::from_utf8_lossy(&answer))
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    location: Option<String>,
    body: String,
}

impl Answer {
    fn expect(&self, status: u16, what: &str) -> anyhow::Result<()> {
        let Answer { status: given, body, .. } = self;
        ensure!(*given == status, "the registry refused {what}: {given} {body}");
        Ok(())
    }

    fn parse(text: &str) -> anyhow::Result<Answer> {
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            bail!("the registry closed the connection in the middle: {text:?}");
        };
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
        let location = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("location").then(|| value.trim().to_owned())
        });
        Ok(Answer {
            status: status.with_context(|| format!("no HTTP status in {head:?}"))?,
            location,
            body: body.to_owned(),
        })
    }
}
