//! A registry with one image, made of the machine's static BusyBox.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Answers by path: media type and body.
type Content = HashMap<String, (&'static str, Vec<u8>)>;

/// Serves `busybox:latest`; returns the port.
pub(crate) async fn serve() -> u16 {
    serve_content(content(), None).await
}

/// The same over https.
#[allow(dead_code)] // for the tests of another file
pub(crate) async fn serve_tls(tls: TlsAcceptor) -> u16 {
    serve_content(content(), Some(tls)).await
}

/// The same image, but without what its layer holds.
#[allow(dead_code)] // for the tests of another file
pub(crate) async fn serve_without_layers() -> u16 {
    let mut content = content();
    content.retain(|_, (kind, _)| *kind != LAYER);
    serve_content(content, None).await
}

async fn serve_content(content: Content, tls: Option<TlsAcceptor>) -> u16 {
    let content = Arc::new(content);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (content, tls) = (Arc::clone(&content), tls.clone());
            tokio::spawn(async move {
                match tls {
                    Some(tls) => answer(tls.accept(stream).await?, &content).await,
                    None => answer(stream, &content).await,
                }
            });
        }
    });
    port
}

async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    content: &Content,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut request = String::new();
        if stream.read_line(&mut request).await? == 0 {
            return Ok(());
        }
        let mut header = String::new();
        while stream.read_line(&mut header).await? > 2 {
            header.clear();
        }
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let (status, kind, body) = match content.get(path) {
            Some((kind, body)) => ("200 OK", *kind, body.as_slice()),
            None => ("404 Not Found", "text/plain", &b""[..]),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        if method != "HEAD" {
            stream.write_all(body).await?;
        }
        stream.flush().await?;
    }
}

fn content() -> Content {
    let layer = layer();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Env": ["FROM_IMAGE=yes"], "Cmd": ["sh"] },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
    });
    let config = serde_json::to_vec(&config).unwrap();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": { "mediaType": CONFIG, "digest": digest(&config), "size": config.len() },
        "layers": [{ "mediaType": LAYER, "digest": digest(&layer), "size": layer.len() }],
    });
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let mut content = HashMap::new();
    content.insert("/v2/".into(), ("application/json", b"{}".to_vec()));
    for (kind, blob) in [(CONFIG, config), (LAYER, layer)] {
        content.insert(format!("/v2/busybox/blobs/{}", digest(&blob)), (kind, blob));
    }
    let by_digest = format!("/v2/busybox/manifests/{}", digest(&manifest));
    content.insert(by_digest, (MANIFEST, manifest.clone()));
    content.insert("/v2/busybox/manifests/latest".into(), (MANIFEST, manifest));
    content
}

/// BusyBox under the names that the stories use.
fn layer() -> Vec<u8> {
    let busybox = std::fs::read("/bin/busybox").expect("install the package busybox-static");
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_size(0);
    header.set_mode(0o755);
    for directory in ["bin/", "etc/", "tmp/"] {
        archive.append_data(&mut header.clone(), directory, &b""[..]).unwrap();
    }
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(busybox.len() as u64);
    archive.append_data(&mut header.clone(), "bin/busybox", busybox.as_slice()).unwrap();
    let passwd = b"root:x:0:0::/root:/bin/sh\nsomebody:x:1000:1000::/home:/bin/sh\n";
    header.set_size(passwd.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header.clone(), "etc/passwd", &passwd[..]).unwrap();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    for name in [
        "sh", "cat", "echo", "head", "grep", "hostname", "id", "ls", "mknod", "sleep", "stty",
        "chroot", "ps", "wc", "dd", "tail", "env", "ip", "touch", "tty", "pwd", "true", "kill",
        "cut",
    ] {
        archive.append_link(&mut header.clone(), format!("bin/{name}"), "busybox").unwrap();
    }
    archive.into_inner().unwrap()
}

fn digest(data: &[u8]) -> String {
    let hash = Sha256::digest(data);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
