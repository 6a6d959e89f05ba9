//! Debian's docker-registry on loopback, for all peers the same.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};

use super::content::{Blob, Made};
use super::emptied;
use super::process::Server;

pub(super) struct Registry {
    host: String,
    _server: Server,
}

impl Registry {
    pub(super) fn start(directory: &Path) -> anyhow::Result<Self> {
        emptied(directory)?;
        let host = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let config = directory.join("config.yml");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  \
                 filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n",
                directory.join("storage").display()
            ),
        )?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config);
        let ready = || TcpStream::connect(&host).is_ok();
        let server = Server::start(&mut command, &directory.join("log"), ready)
            .context("the bench needs docker-registry (apt-get install docker-registry)")?;
        Ok(Self { host, _server: server })
    }

    pub(super) fn reference(&self, image: &Made) -> String {
        format!("{}/{}:latest", self.host, image.name)
    }

    pub(super) fn push(&self, image: &Made) -> anyhow::Result<()> {
        for blob in image.layers.iter().chain([&image.config]) {
            self.push_blob(image.name, blob)?;
        }
        let path = format!("/v2/{}/manifests/latest", image.name);
        let kind = "application/vnd.oci.image.manifest.v1+json";
        self.request("PUT", &path, kind, &image.manifest, "201").map(drop)
    }

    fn push_blob(&self, name: &str, blob: &Blob) -> anyhow::Result<()> {
        let path = format!("/v2/{name}/blobs/uploads/");
        let head = self.request("POST", &path, "application/octet-stream", b"", "202")?;
        let location = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("location").then_some(value)
        });
        let location = location.context("the registry gave no upload location")?;
        let path = location.trim_start_matches("http://").trim_start_matches(&self.host);
        let joint = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{joint}digest={}", blob.digest);
        self.request("PUT", &path, "application/octet-stream", &blob.bytes, "201").map(drop)
    }

    /// The head of the answer.
    fn request(
        &self,
        method: &str,
        path: &str,
        kind: &str,
        body: &[u8],
        status: &str,
    ) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(&self.host)?;
        let (host, length) = (&self.host, body.len());
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: {kind}\r\n\
             Content-Length: {length}\r\n\r\n"
        )?;
        stream.write_all(body)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let given = answer.split(' ').nth(1);
        ensure!(given == Some(status), "the registry refused {method} {path}: {answer}");
        Ok(answer)
    }
}
