//! Mirrors and proxies: asked as the owner says, and believed only as far as digests go.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use nacre_image_pull::{Mirror, Proxy, PullConfig, Registries};
use support::{Identity, Image, OCI_MANIFEST, Server, World, digest, image, layer, plain, reply};

fn sample() -> Image {
    image(&[layer("gzip", |tar| tar.file("a", "one")), layer("", |tar| tar.file("b", "two"))])
}

/// A world where `origin` has `mirrors`.
fn world(origin: &Server, mirrors: &[&Server]) -> World {
    let mirror = |host: &str| Mirror { host: host.to_owned(), danger_plain_http: true };
    let mirrors = mirrors.iter().map(|server| mirror(&server.host)).collect();
    let registries =
        Registries { mirrors: [(origin.host.clone(), mirrors)].into(), ..plain(&origin.host) };
    World::configured(|config| PullConfig { registries, ..config })
}

#[tokio::test]
async fn mirrors_are_asked_in_order_and_the_registry_last() {
    let origin = Server::with_image(sample(), |_, _, _| None);
    let empty = Server::start(|_, _, stream| reply(stream, "404 Not Found", &[], b"{}"));
    let manifest_only = Server::with_image(sample(), |request, _, stream| {
        request.path.contains("/blobs/").then(|| reply(stream, "404 Not Found", &[], b"").unwrap())
    });
    let whole = Server::with_image(sample(), |_, _, _| None);
    let reference = format!("{}/app:v1", origin.host);

    let image = world(&origin, &[&empty, &whole]).pull(&reference).await.unwrap();
    assert_eq!(image.reference, reference, "the image keeps the name that was asked for");
    assert_eq!(origin.asked(""), 0);
    assert_eq!((empty.asked("/manifests/v1"), whole.asked("/manifests/v1")), (1, 1));

    world(&origin, &[&empty, &manifest_only]).pull(&reference).await.unwrap();
    assert_eq!((origin.asked("/manifests/"), origin.asked("/blobs/")), (0, 3));
}

#[tokio::test]
async fn a_mirror_cannot_substitute_content() {
    let origin = Server::with_image(sample(), |_, _, _| None);
    let evil = image(&[layer("gzip", |tar| tar.file("a", "evil")), sample().layers[1].clone()]);
    // By digest: another manifest, another layer of the same length, one that ends early, one that goes on.
    let other = evil.manifest.clone();
    let forged = Server::with_image(sample(), move |request, _, stream| {
        let headers = [("Content-Type", OCI_MANIFEST)];
        request.path.contains("/manifests/").then(|| {
            reply(stream, "200 OK", &headers, other.as_bytes()).unwrap();
        })
    });
    let by_digest = format!("{}/app@{}", origin.host, digest(sample().manifest.as_bytes()));
    let pulled = world(&origin, &[&forged]).pull(&by_digest).await.unwrap();
    assert_eq!(pulled.manifest_digest.to_string(), digest(sample().manifest.as_bytes()));
    assert_eq!(origin.asked("/manifests/"), 1);

    let blob = sample().layers[0].blob.clone();
    let mut changed = blob.clone();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    for lie in
        [changed, blob[..middle].to_vec(), [&blob[..], b"more"].concat(), vec![0; blob.len()]]
    {
        for chunked in [false, true] {
            let origin = Server::with_image(sample(), |_, _, _| None);
            let (lie, name) = (lie.clone(), digest(&blob));
            let liar = Server::with_image(sample(), move |request, _, stream| {
                if !request.path.ends_with(&name) {
                    return None;
                }
                if chunked {
                    // The length is told by the end only.
                    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
                    let _ = stream.write_all(&lie);
                } else {
                    let _ = reply(stream, "200 OK", &[], &lie);
                }
                Some(())
            });
            let world = world(&origin, &[&liar]);
            let pulled = world.pull(&format!("{}/app", origin.host)).await.unwrap();
            assert_eq!(world.mount(&pulled, "m").read("a"), "one");
            assert!(origin.asked("/blobs/") >= 1);
            assert_eq!(origin.asked("/manifests/"), 0);
        }
    }
}

#[tokio::test]
async fn one_mirror_s_configuration_is_checked_too() {
    let origin = Server::with_image(sample(), |_, _, _| None);
    let mut other = sample();
    other.config = other.config.replace("/bin/x", "/bin/y");
    let (lie, name) = (other.config.clone(), digest(sample().config.as_bytes()));
    let liar = Server::with_image(sample(), move |request, _, stream| {
        request.path.ends_with(&name).then(|| reply(stream, "200 OK", &[], lie.as_bytes()).unwrap())
    });
    let pulled = world(&origin, &[&liar]).pull(&format!("{}/app", origin.host)).await.unwrap();
    assert_eq!(pulled.config.config().as_ref().unwrap().cmd().as_deref().unwrap(), ["/bin/x"]);
}

/// A proxy that tunnels (`CONNECT`), and tells what it was asked for.
fn tunnel() -> (String, std::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let (heads, seen) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let heads = heads.clone();
            std::thread::spawn(move || {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && client.read(&mut byte).unwrap() == 1 {
                    head.push(byte[0]);
                }
                let head = String::from_utf8(head).unwrap();
                let target = head.split(' ').nth(1).unwrap().to_owned();
                heads.send(head).unwrap();
                let mut server = TcpStream::connect(target).unwrap();
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
                let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                std::thread::spawn(move || drop(std::io::copy(&mut from, &mut to)));
                let _ = std::io::copy(&mut client, &mut server);
            });
        }
    });
    (host, seen)
}

#[tokio::test]
async fn a_proxy_is_used_where_it_is_configured() {
    let identity = Identity::new();
    let server = Server::start_tls(&identity, Server::serving(sample(), |_, _, _| None));
    let (host, seen) = tunnel();
    let with_proxy = |no_proxy: &[&str]| {
        let no_proxy = no_proxy.iter().map(|host| (*host).to_owned()).collect();
        let url = format!("http://user:sesame@{host}").into();
        let proxy = Some(Proxy { url, no_proxy });
        assert!(!format!("{proxy:?}").contains("sesame"));
        let extra_ca_pem = vec![identity.pem.clone()];
        let registries = Registries { proxy, extra_ca_pem, ..Registries::default() };
        World::configured(|config| PullConfig { registries, ..config })
    };
    let reference = format!("{}/app", server.host);
    with_proxy(&[]).pull(&reference).await.unwrap();
    let heads: Vec<String> = seen.try_iter().collect();
    assert!(!heads.is_empty());
    for head in heads {
        assert!(head.starts_with(&format!("CONNECT {}", server.host)), "{head}");
        // base64 of user:sesame; what is inside the tunnel is TLS.
        assert!(
            head.to_lowercase().contains("proxy-authorization: basic dxnlcjpzzxnhbwu="),
            "{head}"
        );
    }
    with_proxy(&["127.0.0.0/8"]).pull(&reference).await.unwrap();
    assert_eq!(seen.try_iter().count(), 0);
    for url in ["nonsense", "socks5://x:1", "http://"] {
        let proxy = Some(Proxy { url: url.to_owned().into(), no_proxy: vec![] });
        let registries = Registries { proxy, ..plain("r.example") };
        let world = World::configured(|config| PullConfig { registries, ..config });
        assert!(world.refuse("r.example/app").await.contains("proxy"));
    }
}

#[tokio::test]
async fn authorities_can_be_added() {
    let identity = Identity::new();
    let server = Server::start_tls(&identity, Server::serving(sample(), |_, _, _| None));
    let reference = format!("{}/app", server.host);
    for (pem, says) in [
        ("", "holds no certificate"),
        ("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n", "PEM"),
        (&*Identity::new().pem, "must be signed by an authority"),
    ] {
        let extra_ca_pem = vec![pem.to_owned()];
        let registries = Registries { extra_ca_pem, ..Registries::default() };
        let world = World::configured(|config| PullConfig { registries, ..config });
        let error = world.refuse(&reference).await;
        assert!(error.contains(says), "{error}");
    }
}
