//! What a reference means: one chain of digests from the tag to the last file, and the policy's word
//! before anything is fetched.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use nacre_image_pull::{Limits, Mirror, PullConfig, PullError, Registries};
use nacre_image_security::ImagePolicy;
use nacre_trust::{Algorithm, Digest};
use support::{
    Image, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Server, World, descriptor, digest, image, layer,
    plain, reply,
};

fn sample() -> Image {
    image(&[layer("gzip", |tar| tar.file("a", "x")), layer("zstd", |tar| tar.file("b", "y"))])
}

fn sha512(content: &[u8]) -> String {
    Digest::of(Algorithm::Sha512, content).to_string()
}

async fn refused(server: &Server, reference: &str) -> String {
    World::new(&server.host).refuse(&format!("{}/{reference}", server.host)).await
}

/// Serves documents by name and blobs by both of their digests.
fn serve(documents: Vec<(String, &'static str, String)>, blobs: Vec<Vec<u8>>) -> Server {
    Server::start(move |request, _, stream| {
        let name = request.path.rsplit('/').next().unwrap();
        if let Some((_, kind, body)) = documents.iter().find(|(own, ..)| own == name) {
            return reply(stream, "200 OK", &[("Content-Type", kind)], body.as_bytes());
        }
        match blobs.iter().find(|blob| [digest(blob), sha512(blob)].iter().any(|d| d == name)) {
            Some(blob) => reply(stream, "200 OK", &[], blob),
            None => reply(stream, "404 Not Found", &[], b"{}"),
        }
    })
}

#[tokio::test]
async fn sha512_names_everything() {
    let tar = support::Tar::default().file("a", "long digests").bytes();
    let packed = support::pack("gzip", &tar);
    let good = image(&[support::Layer { diff_id: sha512(&tar), ..packed.clone() }]);
    let long = |text: &str| {
        text.replace(&digest(&packed.blob), &sha512(&packed.blob))
            .replace(&digest(good.config.as_bytes()), &sha512(good.config.as_bytes()))
    };
    let manifest = long(&good.manifest);
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{{"mediaType":"{OCI_MANIFEST}","digest":"{}","size":{},"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#,
        sha512(manifest.as_bytes()),
        manifest.len()
    );
    let blobs = vec![packed.blob.clone(), good.config.clone().into_bytes()];
    let documents = vec![
        (sha512(index.as_bytes()), OCI_INDEX, index.clone()),
        (sha512(manifest.as_bytes()), OCI_MANIFEST, manifest.clone()),
    ];
    let server = serve(documents.clone(), blobs.clone());
    let world = World::new(&server.host);
    let name = sha512(index.as_bytes());
    let pulled = world.pull(&format!("{}/app@{name}", server.host)).await.unwrap();
    assert_eq!(pulled.manifest_digest.to_string(), sha512(manifest.as_bytes()));
    assert_eq!(world.mount(&pulled, "m").read("a"), "long digests");

    // The same, with one thing changed that only SHA-512 sees.
    for at in 0..4 {
        let (mut documents, mut blobs) = (documents.clone(), blobs.clone());
        let (own, body) = match at {
            0 | 1 => {
                let document = &mut documents[at].2;
                let own = sha512(document.as_bytes());
                *document = document.replace("\"schemaVersion\":2", "\"schemaVersion\": 2");
                (own, document.clone().into_bytes())
            }
            _ => {
                let blob = &mut blobs[at - 2];
                let own = sha512(blob);
                let middle = blob.len() / 2;
                blob[middle] ^= 1;
                (own, blob.clone())
            }
        };
        let server = Server::start(move |request, _, stream| {
            let name = request.path.rsplit('/').next().unwrap();
            if name == own {
                return reply(stream, "200 OK", &[], &body);
            }
            let document = documents.iter().find(|(digest, ..)| digest == name);
            let blob = blobs.iter().find(|blob| sha512(blob) == name);
            let body = document.map(|(.., body)| body.as_bytes()).or(blob.map(Vec::as_slice));
            reply(stream, "200 OK", &[], body.unwrap_or_default())
        });
        let error = refused(&server, &format!("app@{name}")).await;
        let says = ["digest mismatch", "descriptor says"];
        assert!(says.iter().any(|says| error.contains(says)), "{at}: {error}");
    }
}

#[tokio::test]
async fn what_is_no_image_is_named() {
    let index = |kind: &str, body: &str| {
        let entry = descriptor(kind, body.as_bytes());
        format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{entry}]}}"#)
    };
    let inner = index(OCI_MANIFEST, &sample().manifest);
    let nested = index(OCI_MANIFEST, &inner);
    let disguised = index(OCI_INDEX, &inner);
    let artifact = sample().manifest.replace(OCI_CONFIG, "application/vnd.oci.empty.v1+json");
    let chart = artifact.replace(
        "\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\"",
        "\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"artifactType\":\"a/chart\"",
    );
    let wasm = sample().manifest.replace("image.layer.v1.tar+zstd", "wasm.v1");
    let traversal = sample().manifest.replace("sha256:", "sha256:../");
    let unknown = sample().manifest.replace("sha256:", "sha3:");
    for (kind, body, says) in [
        // Its mediaType and the index's word for it contradict each other.
        (OCI_INDEX, nested, "ambiguous"),
        (OCI_INDEX, disguised, "has no image for linux/amd64"),
        (OCI_MANIFEST, artifact, "artifact of type \"application/vnd.oci.empty.v1+json\""),
        (OCI_MANIFEST, chart, "artifact of type \"a/chart\""),
        (OCI_MANIFEST, wasm, "is not a layer type"),
        (OCI_MANIFEST, traversal, "digest"),
        (OCI_MANIFEST, unknown, "digest"),
        ("application/vnd.oci.image.manifest.v1+json; x=y", "{}".into(), "schemaVersion"),
    ] {
        let inner = (digest(inner.as_bytes()), OCI_INDEX, inner.clone());
        let server = serve(vec![("latest".into(), kind, body), inner], vec![]);
        let error = refused(&server, "app").await;
        assert!(error.contains(says), "{says}: {error}");
        assert_eq!(server.asked("/blobs/"), 0);
    }
}

#[tokio::test]
async fn processors_and_architectures_must_fit() {
    for (config, says) in [
        (sample().config.replace("amd64", "arm64"), "linux/arm64"),
        (sample().config.replace("\"linux\"", "\"windows\""), "windows/amd64"),
        (sample().config.replace("\"amd64\"", "\"amd64\",\"variant\":\"v9\""), "v9"),
    ] {
        let layers = sample().layers;
        let manifest = support::manifest(&config, &layers);
        let server = Server::with_image(Image { layers, config, manifest }, |_, _, _| None);
        let error = refused(&server, "app").await;
        assert!(error.contains(says), "{error}");
    }
}

#[tokio::test]
async fn the_policy_is_asked_by_the_name_that_was_asked_for() {
    let origin = Server::with_image(sample(), |_, _, _| None);
    let mirror = Server::with_image(sample(), |_, _, _| None);
    let world = |admitted: &str| {
        let policy = format!(
            r#"{{"default":[{{"type":"reject"}}],"transports":{{"docker":{{"{admitted}":[{{"type":"insecureAcceptAnything"}}]}}}}}}"#
        );
        let policy = Arc::new(ImagePolicy::parse(policy.as_bytes()).unwrap());
        let host = mirror.host.clone();
        let mirrors = vec![Mirror { host, danger_plain_http: true }];
        let registries = Registries {
            mirrors: [(origin.host.clone(), mirrors)].into(),
            danger_plain_http: vec![origin.host.clone(), mirror.host.clone()],
            ..Registries::default()
        };
        World::configured(|config| PullConfig { registries, policy, ..config })
    };
    let reference = format!("{}/app:v1", origin.host);
    let admitting = world(&format!("{}/app", origin.host));
    let _held = admitting.pull(&reference).await.unwrap();
    assert_eq!(origin.asked(""), 0);
    // The mirror's name is nobody's business.
    let blobs = mirror.asked("/blobs/");
    let error = world(&format!("{}/app", mirror.host)).refuse(&reference).await;
    assert!(error.contains("refused by") && error.contains(&reference), "{error}");
    assert_eq!(mirror.asked("/blobs/"), blobs, "not even the configuration is fetched");
    // That its layers are here under another name is no proof.
    let error = admitting.refuse(&format!("{}/app:v1", mirror.host)).await;
    assert!(error.contains("refused by"), "{error}");
}

#[tokio::test]
async fn a_pull_has_a_deadline() {
    for part in ["/manifests/".to_owned(), digest(&sample().layers[0].blob)] {
        let server = Server::with_image(sample(), move |request, _, stream| {
            request.path.contains(&part).then(|| {
                // A byte now and then is no stall.
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
                for _ in 0..sample().layers[0].blob.len() - 1 {
                    if stream.write_all(b" ").is_err() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
            })
        });
        let world = World::configured(|config| PullConfig {
            registries: plain(&server.host),
            limits: Limits { total: Duration::from_millis(700), ..Limits::default() },
            ..config
        });
        let error = world.puller.pull(&format!("{}/app", server.host), |_| {}).await.unwrap_err();
        assert!(matches!(error, PullError::Deadline { .. }), "{error:?}");
        assert!(support::children(&world.path("store/staging")).is_empty());
        assert_eq!(world.layers(), 0);
    }
}

#[tokio::test]
async fn layers_go_with_the_last_image_that_uses_them() {
    let shared = layer("gzip", |tar| tar.file("d/shared", "s"));
    let base = layer("gzip", |tar| tar.directory("d", 0o700));
    let of = |name: &str| {
        let own = layer("gzip", |tar| tar.file("d/own", name));
        image(&[base.clone(), shared.clone(), own])
    };
    let one = Server::with_image(of("one"), |_, _, _| None);
    let two = Server::with_image(of("two"), |_, _, _| None);
    let world = World::configured(|config| {
        let danger_plain_http = vec![one.host.clone(), two.host.clone()];
        let registries = Registries { danger_plain_http, ..Registries::default() };
        PullConfig { registries, ..config }
    });
    let parents = || support::children(&world.path("store/parents/sha256")).len();
    let first = world.pull(&format!("{}/app", one.host)).await.unwrap();
    let second = world.pull(&format!("{}/app", two.host)).await.unwrap();
    let again = first.clone();
    assert_eq!((world.layers(), parents()), (4, 2));
    drop(first);
    assert_eq!((world.layers(), parents()), (4, 2), "a clone is as good");
    drop(again);
    assert_eq!((world.layers(), parents()), (3, 1));
    assert_eq!(world.mount(&second, "m").read("d/shared"), "s");
    let third = world.pull(&format!("{}/app", one.host)).await.unwrap();
    assert_eq!(one.asked(&digest(&shared.blob)), 1, "what is still here is not fetched again");
    drop((second, third));
    assert_eq!((world.layers(), parents()), (0, 0));
    for _ in 0..200 {
        if support::children(&world.path("store/trash")).is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the trash is never emptied");
}

#[tokio::test]
async fn hard_links_lead_to_lower_layers() {
    use std::os::unix::fs::PermissionsExt;
    let base = layer("gzip", |tar| {
        tar.directory("d", 0o710).file("d/a", "one").file("hidden", "h").file("b", "b")
    });
    let links = layer("gzip", |tar| {
        let tar = tar.hard("d/same", "d/a").hard("covered", "d/a").hard("d/chain", "d/same");
        tar.hard("gone", "/d/a").file("d/own", "o")
    });
    let top = layer("gzip", |tar| {
        tar.file("covered", "new").file(".wh.gone", "").hard("d/late", "d/chain").hard("b", "d/a")
    });
    let server = Server::with_image(image(&[base.clone(), links, top]), |_, _, _| None);
    let world = World::new(&server.host);
    let pulled = world.pull(&format!("{}/app", server.host)).await.unwrap();
    let root = world.mount(&pulled, "m");
    for (name, is) in
        [("d/a", "one"), ("d/same", "one"), ("d/chain", "one"), ("d/late", "one"), ("b", "one")]
    {
        assert_eq!(root.read(name), is, "{name}");
    }
    assert_eq!(root.read("covered"), "new");
    assert!(!root.0.join("gone").exists());
    assert_eq!(root.0.join("d").metadata().unwrap().permissions().mode() & 0o7777, 0o710);
    drop((root, pulled));
    assert_eq!(world.layers(), 0);

    for (what, layers) in [
        ("nowhere", vec![base.clone(), layer("", |tar| tar.hard("x", "nothing"))]),
        ("in the bottom layer", vec![layer("", |tar| tar.hard("x", "d/a"))]),
        ("a directory", vec![base.clone(), layer("", |tar| tar.hard("x", "d"))]),
        (
            "hidden between",
            vec![
                base.clone(),
                layer("", |tar| tar.file("d/.wh.a", "")),
                layer("gzip", |tar| tar.hard("x", "d/a")),
            ],
        ),
        (
            "behind an opaque directory",
            vec![
                base.clone(),
                layer("", |tar| tar.file("d/.wh..wh..opq", "")),
                layer("gzip", |tar| tar.hard("x", "d/a")),
            ],
        ),
        (
            "through a link",
            vec![
                layer("", |tar| tar.link("l", "/etc").file("etc/x", "")),
                layer("gzip", |tar| tar.hard("y", "l/passwd")),
            ],
        ),
    ] {
        let server = Server::with_image(image(&layers), |_, _, _| None);
        let world = World::new(&server.host);
        let error = world.refuse(&format!("{}/app", server.host)).await;
        assert!(error.contains("hard link"), "{what}: {error}");
        assert_eq!(world.layers(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulls_and_drops_at_the_same_time_do_not_harm_each_other() {
    let server = Server::with_image(sample(), |_, _, _| None);
    let world = World::new(&server.host);
    let reference = format!("{}/app", server.host);
    let rounds = async |n: usize| {
        for round in 0..15 {
            let image = world.pull(&reference).await.unwrap();
            let root = world.mount(&image, &format!("{n}-{round}"));
            assert_eq!((root.read("a"), root.read("b")), ("x".into(), "y".into()));
        }
    };
    tokio::join!(rounds(0), rounds(1), rounds(2), rounds(3));
    assert_eq!(world.layers(), 0);
}
