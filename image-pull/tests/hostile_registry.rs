//! Against a server that does what no real registry does: stalls, never ends, lies, sends elsewhere.

mod support;

use std::sync::LazyLock;
use std::time::Duration;

use nacre_image_pull::{Limits, PullConfig, Puller, Registries};
use support::{
    Connection, Image, Layer, OCI_INDEX, OCI_MANIFEST, Server, World, digest, image, layer, reply,
};

static LAYER: LazyLock<Layer> =
    LazyLock::new(|| layer("gzip", |tar| tar.file("a", noise(300_000))));
static LAYER_DIGEST: LazyLock<String> = LazyLock::new(|| digest(&LAYER.blob));

fn sample() -> Image {
    image(std::slice::from_ref(&LAYER))
}

/// Bytes that do not compress, so that a blob comes in several pieces.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    })
    .take(len)
    .collect()
}

fn is_layer(path: &str) -> bool {
    path.contains("/blobs/") && path.ends_with(&*LAYER_DIGEST)
}

async fn refused(server: &Server) -> String {
    World::new(&server.host).refuse(&format!("{}/app", server.host)).await
}

#[tokio::test]
async fn trouble_that_passes_is_waited_out() {
    for status in ["429 Too Many Requests", "503 Service Unavailable"] {
        let server = Server::with_image(sample(), move |request, nth, stream| {
            (nth == 1).then(|| {
                reply(stream, status, &[("Retry-After", "0")], request.path.as_bytes()).unwrap();
            })
        });
        World::new(&server.host).pull(&format!("{}/app", server.host)).await.expect(status);
    }
}

#[tokio::test]
async fn trouble_that_stays_is_an_error_in_seconds() {
    let server = Server::start(|_, _, stream| {
        reply(stream, "503 Service Unavailable", &[], b"down for maintenance\x1b[31m")
    });
    let error = refused(&server).await;
    assert!(error.contains("503") && error.contains("down for maintenance"), "{error}");
    assert!(!error.contains('\x1b'));
    assert_eq!(server.asked("manifests"), 4);
}

#[tokio::test]
async fn a_registry_that_is_down_or_unknown_is_told_apart() {
    let world = World::new("127.0.0.1:1");
    let error = world.refuse("127.0.0.1:1/app").await;
    assert!(error.contains("cannot be reached") && error.contains("refused"), "{error}");
    let error = world.refuse("no-such-host.invalid/app").await;
    assert!(error.contains("cannot be resolved"), "{error}");
}

#[tokio::test]
async fn credentials_are_asked_for_by_name() {
    let basic = Server::start(|_, _, stream| {
        reply(stream, "401 Unauthorized", &[("WWW-Authenticate", "Basic realm=\"x\"")], b"")
    });
    let error = refused(&basic).await;
    assert!(error.contains("anonymous") && error.contains("401"), "{error}");
    assert_eq!(basic.asked("manifests"), 1);
    let forbidden = Server::start(|_, _, stream| reply(stream, "403 Forbidden", &[], b""));
    assert!(refused(&forbidden).await.contains("403"));
}

#[tokio::test]
async fn a_token_is_fetched_used_and_kept_from_others() {
    let elsewhere = Server::with_image(sample(), |_, _, _| None);
    let other = elsewhere.host.clone();
    let server = Server::with_image(sample(), move |request, _, stream| {
        let host = request.header("host").unwrap_or_default();
        if request.path.starts_with("/token?") {
            assert!(request.path.contains("scope=repository%3Aapp%3Apull"), "{}", request.path);
            reply(stream, "200 OK", &[], br#"{"token":"sesame"}"#).unwrap();
        } else if request.header("authorization") != Some("Bearer sesame") {
            let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"s\"");
            reply(stream, "401 Unauthorized", &[("WWW-Authenticate", &challenge)], b"").unwrap();
        } else if is_layer(&request.path) {
            let location = format!("http://{other}{}", request.path);
            reply(stream, "307 Temporary Redirect", &[("Location", &location)], b"").unwrap();
        } else {
            return None;
        }
        Some(())
    });
    World::new(&server.host).pull(&format!("{}/app", server.host)).await.unwrap();
    assert_eq!(server.asked("/token"), 1);
    let requests = elsewhere.requests.lock().unwrap();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].header("authorization"), None, "tokens do not follow a redirect");
}

#[tokio::test]
async fn endless_answers_stop_at_the_limit() {
    let endless = |stream: &mut dyn Connection| -> std::io::Result<()> {
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        let chunk = [&b"10000\r\n"[..], &[b' '; 0x10000], b"\r\n"].concat();
        loop {
            stream.write_all(&chunk)?;
        }
    };
    let server = Server::start(move |_, _, stream| endless(stream));
    assert!(refused(&server).await.contains("limit of 4194304 bytes"));
    let server = Server::with_image(sample(), move |request, _, stream| {
        request.path.contains("/blobs/").then(|| drop(endless(stream)))
    });
    assert!(refused(&server).await.contains("sends more"));
    let huge = "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n";
    let server = Server::start(move |_, _, stream| stream.write_all(huge.as_bytes()));
    assert!(refused(&server).await.contains("limit of 4194304 bytes"));
    // An endless token and an endless error page.
    let server = Server::start(move |request, _, stream| {
        if request.path.starts_with("/token") {
            return endless(stream);
        }
        let realm = format!("Bearer realm=\"http://{}/token\"", request.header("host").unwrap());
        reply(stream, "401 Unauthorized", &[("WWW-Authenticate", &realm)], b"")
    });
    assert!(refused(&server).await.contains("limit of 65536 bytes"));
}

#[tokio::test]
async fn a_stall_times_out() {
    let stall = || std::thread::sleep(Duration::from_secs(20));
    let server = Server::with_image(sample(), move |request, _, stream| {
        is_layer(&request.path).then(|| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nab");
            stall();
        })
    });
    let error = refused(&server).await;
    assert!(error.contains("stalled: no data for 2 s"), "{error}");
}

#[tokio::test]
async fn a_cut_layer_is_resumed_where_it_was() {
    for ranges in [true, false] {
        let blob = sample().layers[0].blob.clone();
        let server = Server::with_image(sample(), move |request, nth, stream| {
            if !is_layer(&request.path) {
                return None;
            }
            let from: usize = request
                .header("range")
                .map_or(0, |range| range["bytes=".len()..range.len() - 1].parse().unwrap());
            if nth < 3 {
                let rest = if ranges { &blob[from..] } else { &blob[..] };
                let (status, range) = if ranges && from > 0 {
                    (
                        "206 Partial Content",
                        format!("Content-Range: bytes {from}-{}/*\r\n", blob.len() - 1),
                    )
                } else {
                    ("200 OK", String::new())
                };
                let head =
                    format!("HTTP/1.1 {status}\r\n{range}Content-Length: {}\r\n\r\n", rest.len());
                stream.write_all(head.as_bytes()).unwrap();
                let _ = stream.write_all(&rest[..rest.len() / 2]);
            } else if ranges {
                let range = format!("bytes {from}-{}/{}", blob.len() - 1, blob.len());
                let headers = [("Content-Range", range.as_str())];
                let _ = reply(stream, "206 Partial Content", &headers, &blob[from..]);
            } else {
                let _ = reply(stream, "200 OK", &[], &blob);
            }
            Some(())
        });
        World::new(&server.host).pull(&format!("{}/app", server.host)).await.unwrap();
        let requests = server.requests.lock().unwrap();
        let resumed = requests.iter().filter(|request| request.header("range").is_some()).count();
        assert_eq!(resumed, 2);
    }
}

#[tokio::test]
async fn a_layer_that_is_always_cut_fails() {
    let server = Server::with_image(sample(), |request, _, stream| {
        is_layer(&request.path).then(|| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n");
        })
    });
    let error = refused(&server).await;
    assert!(error.contains("registry 127.0.0.1"), "{error}");
    let server = Server::with_image(sample(), |request, _, stream| {
        is_layer(&request.path).then(|| drop(stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nshort")))
    });
    let error = refused(&server).await;
    assert!(error.contains("it ended after 5"), "{error}");
}

#[tokio::test]
async fn redirects_do_not_go_on_for_ever() {
    let server = Server::start(|request, _, stream| {
        reply(stream, "302 Found", &[("Location", &format!("{}x", request.path))], b"")
    });
    let error = refused(&server).await;
    assert!(error.contains("redirects"), "{error}");
    assert!(server.requests.lock().unwrap().len() < 10);
}

#[tokio::test]
async fn foreign_urls_are_never_fetched() {
    let trap = Server::with_image(sample(), |_, _, _| None);
    let mut lie = sample();
    let urls = format!("\"urls\":[\"http://{}/layer\"],\"size\"", trap.host);
    lie.manifest = lie.manifest.replace("\"size\"", &urls);
    let server = Server::with_image(lie, |request, _, stream| {
        is_layer(&request.path).then(|| reply(stream, "404 Not Found", &[], b"").unwrap())
    });
    let error = refused(&server).await;
    assert!(error.contains("has no layer"), "{error}");
    assert!(trap.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_manifest_is_what_everything_says_it_is() {
    let as_index =
        |request: &support::Request, stream: &mut dyn Connection, header: (&str, &str)| {
            request.path.contains("/manifests/").then(|| {
                reply(stream, "200 OK", &[header], sample().manifest.as_bytes()).unwrap();
            })
        };
    let server = Server::with_image(sample(), move |request, _, stream| {
        as_index(request, stream, ("Content-Type", OCI_INDEX))
    });
    assert!(refused(&server).await.contains("ambiguous"));
    let wrong = digest(b"something else");
    let claim = wrong.clone();
    let server = Server::with_image(sample(), move |request, _, stream| {
        as_index(request, stream, ("Docker-Content-Digest", &claim))
    });
    let error = refused(&server).await;
    assert!(error.contains("digest mismatch") && error.contains(&wrong), "{error}");
    // Asked by digest, a registry cannot answer with another manifest, whatever it claims.
    let world = World::new(&server.host);
    let error = world.refuse(&format!("{}/app@{}", server.host, digest(b"wanted"))).await;
    assert!(error.contains(&digest(b"wanted")), "{error}");
}

#[tokio::test]
async fn a_tag_is_asked_for_once() {
    let server = Server::with_image(sample(), |_, _, _| None);
    World::new(&server.host).pull(&format!("{}/app:v1", server.host)).await.unwrap();
    assert_eq!(server.asked("/manifests/v1"), 1);
    assert_eq!(server.asked("/manifests/"), 1);
}

#[tokio::test]
async fn an_index_cannot_swap_its_child() {
    let child = sample().manifest;
    for (size, kind, says) in [
        (child.len() + 1, OCI_MANIFEST, "descriptor says"),
        (9 << 20, OCI_MANIFEST, "limit of"),
        (child.len(), "application/vnd.docker.distribution.manifest.v2+json", "ambiguous"),
    ] {
        let index = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{{"mediaType":"{kind}","digest":"{}","size":{size},"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#,
            digest(child.as_bytes())
        );
        let server = Server::with_image(sample(), move |request, _, stream| {
            request.path.ends_with("/latest").then(|| {
                reply(stream, "200 OK", &[("Content-Type", OCI_INDEX)], index.as_bytes()).unwrap();
            })
        });
        let error = refused(&server).await;
        assert!(error.contains(says), "{error}");
    }
}

#[tokio::test]
async fn sha512_layers_are_verified() {
    use nacre_trust::{Algorithm, Digest};
    let mut long = sample();
    let blob = long.layers[0].blob.clone();
    let name = Digest::of(Algorithm::Sha512, &blob).to_string();
    long.manifest = long.manifest.replace(&digest(&blob), &name);
    let good = Server::with_image(long, move |request, _, stream| {
        request.path.ends_with(&name).then(|| reply(stream, "200 OK", &[], &blob).unwrap())
    });
    World::new(&good.host).pull(&format!("{}/app", good.host)).await.unwrap();
}

#[tokio::test]
async fn https_needs_certificates_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let puller = |ca: Option<&str>| {
        let ca_file = ca.map(|name| directory.path().join(name));
        let store = directory.path().join("store");
        let limits = Limits { connect: Duration::from_secs(1), ..Limits::default() };
        let registries = Registries { ca_file, ..Registries::default() };
        Puller::new(PullConfig { limits, registries, ..PullConfig::new(store) }).unwrap()
    };
    std::fs::write(directory.path().join("empty.pem"), "").unwrap();
    for (ca, says) in [("absent.pem", "cannot be read"), ("empty.pem", "no usable certificate")] {
        let error = puller(Some(ca)).pull("127.0.0.1:1/app", |_| {}).await.unwrap_err();
        assert!(
            error.to_string().contains("ca_file") && error.to_string().contains(says),
            "{error}"
        );
    }
    // Not named for plain HTTP: it is spoken to in TLS, and never in the clear.
    let server = Server::with_image(sample(), |_, _, _| None);
    let error = puller(None).pull(&format!("{}/app", server.host), |_| {}).await.unwrap_err();
    assert!(error.to_string().contains("cannot be reached"), "{error}");
    assert!(server.requests.lock().unwrap().is_empty());
}
