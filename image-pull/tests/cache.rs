//! The node's cache belongs to the host: it may help or not, and cannot do anything else.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use nacre_image_pull::{
    BlobCache, BlobSink, BlobStream, Credentials, Limits, PullConfig, Registries,
};
use nacre_trust::Digest;
use support::{Identity, Image, Server, World, digest, image, layer, plain, reply};

/// How the cache behaves once a blob is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Behaviour {
    Honest,
    Silent,
    Stalling,
    Dripping,
    Cut,
    Ending,
    Lying,
    Longer,
    Empty,
}

#[derive(Default)]
struct State {
    blobs: HashMap<String, Vec<u8>>,
    /// Digest and offset of each request that was answered.
    served: Vec<(String, u64)>,
}

#[derive(Clone)]
struct Cache {
    behaviour: Behaviour,
    state: Arc<Mutex<State>>,
}

impl Cache {
    fn new(behaviour: Behaviour) -> Self {
        Self { behaviour, state: Arc::default() }
    }

    fn holding(behaviour: Behaviour, image: &Image) -> Self {
        let cache = Self::new(behaviour);
        let blobs = image.layers.iter().map(|layer| layer.blob.clone());
        for blob in blobs.chain([image.config.clone().into_bytes()]) {
            cache.state.lock().unwrap().blobs.insert(digest(&blob), blob);
        }
        cache
    }

    fn has(&self, blob: &[u8]) -> bool {
        self.state.lock().unwrap().blobs.get(&digest(blob)).is_some_and(|kept| kept == blob)
    }
}

struct Stream {
    pieces: Vec<Bytes>,
    behaviour: Behaviour,
}

#[async_trait]
impl BlobStream for Stream {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let last = self.pieces.len() == 1;
        match self.behaviour {
            Behaviour::Stalling if last => std::future::pending().await,
            Behaviour::Dripping => tokio::time::sleep(Duration::from_millis(60)).await,
            Behaviour::Cut if last => return Err(io::ErrorKind::ConnectionReset.into()),
            Behaviour::Ending if last => return Ok(None),
            Behaviour::Longer if last => return Ok(Some(Bytes::from(vec![0; 1 << 20]))),
            Behaviour::Empty if last => return Ok(Some(Bytes::new())),
            _ => {}
        }
        Ok((!self.pieces.is_empty()).then(|| self.pieces.remove(0)))
    }
}

struct Sink {
    digest: String,
    size: u64,
    content: Vec<u8>,
    cache: Cache,
}

#[async_trait]
impl BlobSink for Sink {
    async fn write(&mut self, piece: Bytes) -> io::Result<()> {
        self.content.extend_from_slice(&piece);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> io::Result<()> {
        assert_eq!(self.content.len() as u64, self.size);
        self.cache.state.lock().unwrap().blobs.insert(self.digest, self.content);
        Ok(())
    }
}

#[async_trait]
impl BlobCache for Cache {
    async fn get(&self, digest: &Digest, _: u64, offset: u64) -> Option<Box<dyn BlobStream>> {
        if self.behaviour == Behaviour::Silent {
            std::future::pending::<()>().await;
        }
        let mut state = self.state.lock().unwrap();
        let mut blob = state.blobs.get(&digest.to_string())?.clone();
        state.served.push((digest.to_string(), offset));
        if self.behaviour == Behaviour::Lying {
            let middle = blob.len() / 2;
            blob[middle] ^= 1;
        }
        let rest = &blob[usize::try_from(offset).unwrap()..];
        let drip = if self.behaviour == Behaviour::Dripping { 1 } else { 700 };
        let pieces = rest.chunks(drip).map(Bytes::copy_from_slice).collect();
        Some(Box::new(Stream { pieces, behaviour: self.behaviour }))
    }

    async fn put(&self, digest: &Digest, size: u64) -> Option<Box<dyn BlobSink>> {
        let digest = digest.to_string();
        Some(Box::new(Sink { digest, size, content: Vec::new(), cache: self.clone() }))
    }
}

/// Content that does not compress, so that it comes in several pieces.
fn sample() -> Image {
    let noise = |seed: u32| -> Vec<u8> {
        (seed..seed + 3000).map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
    };
    image(&[
        layer("gzip", |tar| tar.file("a", noise(7))),
        layer("zstd", |tar| tar.file("b", noise(70_000))),
    ])
}

fn world(server: &Server, cache: &Cache) -> World {
    let limits = Limits { cache_stall: Duration::from_millis(300), ..Limits::default() };
    World::configured(|config| PullConfig {
        registries: plain(&server.host),
        cache: Some(Arc::new(cache.clone())),
        limits,
        ..config
    })
}

#[tokio::test]
async fn the_second_pod_takes_nothing_but_the_manifest_from_the_registry() {
    let server = Server::with_image(sample(), |_, _, _| None);
    let cache = Cache::new(Behaviour::Honest);
    let reference = format!("{}/app", server.host);
    world(&server, &cache).pull(&reference).await.unwrap();
    assert_eq!(server.asked("/blobs/"), 3);
    for layer in sample().layers {
        assert!(cache.has(&layer.blob));
    }
    let second = world(&server, &cache);
    let image = second.pull(&reference).await.unwrap();
    assert_eq!(std::fs::read(second.mount(&image, "m").0.join("a")).unwrap().len(), 3000);
    assert_eq!((server.asked("/blobs/"), server.asked("/manifests/")), (3, 2));
}

#[tokio::test]
async fn whatever_it_does_the_image_is_the_right_one() {
    for behaviour in [
        Behaviour::Silent,
        Behaviour::Stalling,
        Behaviour::Dripping,
        Behaviour::Cut,
        Behaviour::Ending,
        Behaviour::Lying,
        Behaviour::Longer,
        Behaviour::Empty,
    ] {
        let server = Server::with_image(sample(), |_, _, _| None);
        let cache = Cache::holding(behaviour, &sample());
        let world = world(&server, &cache);
        let image = world.pull(&format!("{}/app", server.host)).await.unwrap();
        let root = world.mount(&image, "m");
        assert_eq!(std::fs::read(root.0.join("a")).unwrap().len(), 3000, "{behaviour:?}");
        assert_eq!(std::fs::read(root.0.join("b")).unwrap().len(), 3000, "{behaviour:?}");
        assert_eq!(server.asked("/blobs/"), 3, "{behaviour:?}");
        let requests = server.requests.lock().unwrap();
        let resumed = requests.iter().filter(|request| request.header("range").is_some()).count();
        // What came before the trouble is not fetched again, unless it is wrong.
        let expected = match behaviour {
            Behaviour::Silent | Behaviour::Lying => 0,
            Behaviour::Dripping => 3,
            // The configuration comes in one piece.
            _ => 2,
        };
        assert_eq!(resumed, expected, "{behaviour:?}");
    }
}

#[tokio::test]
async fn a_lie_that_would_fill_the_store_is_undone() {
    let server = Server::with_image(sample(), |_, _, _| None);
    let cache = Cache::holding(Behaviour::Honest, &sample());
    // A bomb of the right length under the right name.
    for (at, layer) in sample().layers.iter().enumerate() {
        let compression = ["gzip", "zstd"][at];
        let mut bomb = support::pack(compression, &vec![0; 3 << 20]).blob;
        bomb.resize(layer.blob.len(), 0);
        cache.state.lock().unwrap().blobs.insert(digest(&layer.blob), bomb);
    }
    let world = World::configured(|config| PullConfig {
        registries: plain(&server.host),
        cache: Some(Arc::new(cache.clone())),
        limits: Limits { unpacked_bytes: 1 << 20, ..Limits::default() },
        ..config
    });
    let image = world.pull(&format!("{}/app", server.host)).await.unwrap();
    assert_eq!(std::fs::read(world.mount(&image, "m").0.join("a")).unwrap().len(), 3000);
}

#[tokio::test]
async fn private_blobs_are_not_offered() {
    let identity = Identity::new();
    let server = Server::start_tls(
        &identity,
        Server::serving(sample(), |request, _, stream| {
            let known = request.header("authorization") == Some("Basic YWxpY2U6c2VzYW1l");
            let challenge = [("WWW-Authenticate", "Basic realm=\"r\"")];
            (!known).then(|| reply(stream, "401 Unauthorized", &challenge, b"").unwrap())
        }),
    );
    let config = format!(r#"{{"auths":{{"{}":{{"auth":"YWxpY2U6c2VzYW1l"}}}}}}"#, server.host);
    let registries = Registries {
        credentials: Credentials::parse_docker_config(config.as_bytes()).unwrap(),
        extra_ca_pem: vec![identity.pem.clone()],
        ..Registries::default()
    };
    let cache = Cache::new(Behaviour::Honest);
    let reference = format!("{}/app", server.host);
    let world = World::configured(|config| PullConfig {
        registries: registries.clone(),
        cache: Some(Arc::new(cache.clone())),
        ..config
    });
    world.pull(&reference).await.unwrap();
    assert!(cache.state.lock().unwrap().blobs.is_empty());

    // Nor is anything offered where the owner does not want it.
    let server = Server::with_image(sample(), |_, _, _| None);
    let world = World::configured(|config| PullConfig {
        registries: plain(&server.host),
        cache: Some(Arc::new(cache.clone())),
        share: false,
        ..config
    });
    world.pull(&format!("{}/app", server.host)).await.unwrap();
    assert!(cache.state.lock().unwrap().blobs.is_empty());
    // What it has anyway is taken: it says nothing about anybody's secrets.
    let cache = Cache::holding(Behaviour::Honest, &sample());
    let world = World::configured(|config| PullConfig {
        registries,
        cache: Some(Arc::new(cache.clone())),
        ..config
    });
    world.pull(&reference).await.unwrap();
    assert_eq!(cache.state.lock().unwrap().served.len(), 3);
}
