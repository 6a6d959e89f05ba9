//! Images are inspected without unpacking them: what is verified, what is fetched, what comes out.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use nacre_image_pull::{InspectConfig, Inspected, Inspector, Limits, PullError};
use support::{Image, Layer, Server, digest, image, layer};

fn inspector(server: &Server) -> Inspector {
    let registries = support::plain(&server.host);
    Inspector::new(InspectConfig { registries, ..InspectConfig::default() })
}

async fn inspect(server: &Server, name: &str) -> Result<Inspected, String> {
    let mut inspector = inspector(server);
    inspector.inspect(&format!("{}/{name}", server.host)).await.map_err(|e| e.to_string())
}

fn layers() -> Vec<Layer> {
    vec![
        layer("gzip", |tar| {
            tar.file("etc/passwd", "root:x:0:0::/:/bin/sh\n").file("etc/group", "root:x:0:\n")
        }),
        layer("zstd", |tar| tar.file("etc/passwd", "app:x:100:101::/:/bin/sh\n")),
        layer("", |tar| tar.file("etc/group", "app:x:101:\n").file("etc/passwd.old", "x")),
    ]
}

#[tokio::test]
async fn account_files_come_from_the_layers_that_decide() {
    let image = image(&layers());
    let manifest = digest(image.manifest.as_bytes());
    let bottom = digest(&image.layers[0].blob);
    let server = Server::with_image(image, |_, _, _| None);
    let found = inspect(&server, "app:1").await.unwrap();
    assert_eq!(found.reference, format!("{}/app:1", server.host));
    assert_eq!(found.name, format!("{}/app", server.host));
    assert_eq!(found.manifest_digest.to_string(), manifest);
    assert_eq!(found.config.config().as_ref().unwrap().cmd().as_deref().unwrap(), ["/bin/x"]);
    assert_eq!(String::from_utf8(found.passwd).unwrap(), "app:x:100:101::/:/bin/sh\n");
    assert_eq!(String::from_utf8(found.group).unwrap(), "app:x:101:\n");
    assert_eq!(server.asked(&bottom), 0, "the layer that decides nothing is not fetched");
}

/// A server of an image, and the digests of its layers' blobs.
fn serving(layers: &[Layer]) -> (Server, Vec<String>) {
    let image = image(layers);
    let blobs = image.layers.iter().map(|layer| digest(&layer.blob)).collect();
    (Server::with_image(image, |_, _, _| None), blobs)
}

fn asked(server: &Server, blobs: &[String]) -> Vec<usize> {
    blobs.iter().map(|blob| server.asked(blob)).collect()
}

#[tokio::test]
async fn layers_are_counted_where_their_sizes_are_asked_for() {
    let mut all = layers();
    all.push(layer("zstd", |tar| tar.file("big", "0".repeat(3 << 20)).link("small", "big")));
    let (server, blobs) = serving(&all);
    let mut inspector = inspector(&server);
    let found = inspector.inspect(&format!("{}/app", server.host)).await.unwrap();
    assert_eq!(asked(&server, &blobs), [0, 1, 1, 1], "what does not decide is not fetched");
    let sizes = inspector.sizes(&found.layers).await.unwrap().unwrap();
    assert_eq!(asked(&server, &blobs), [1, 1, 1, 1], "the rest is, and nothing again");
    let mut mebibytes: Vec<u64> = sizes.values().map(|size| size.mebibytes()).collect();
    mebibytes.sort_unstable();
    // Small files take a page each; 3 MiB take more, with an inode.
    assert_eq!(mebibytes, [1, 1, 1, 4]);
    // Another image of the same layers.
    let other = inspector.inspect(&format!("{}/other", server.host)).await.unwrap();
    assert_eq!(inspector.sizes(&other.layers).await.unwrap().unwrap(), sizes);
    assert_eq!(asked(&server, &blobs), [1, 1, 1, 1]);
}

#[tokio::test]
async fn links_are_followed_through_all_layers() {
    let (server, blobs) = serving(&[
        layer("gzip", |tar| tar.file("bin/sh", "")),
        layer("gzip", |tar| tar.file("nix/store/x/passwd", "app:x:7:7::/:/bin/sh\n")),
        layer("gzip", |tar| tar.link("etc/passwd", "/nix/store/x/passwd")),
        // What a link leads to can be in a layer above it, and in its own.
        layer("zstd", |tar| tar.file("nix/store/y", "app:x:8:\n").link("nix/store/x/y", "../y")),
        layer("", |tar| tar.link("etc/group", "/nix/store/x/y")),
    ]);
    let mut inspector = inspector(&server);
    let found = inspector.inspect(&format!("{}/app", server.host)).await.unwrap();
    assert_eq!(String::from_utf8(found.passwd).unwrap(), "app:x:7:7::/:/bin/sh\n");
    assert_eq!(String::from_utf8(found.group).unwrap(), "app:x:8:\n");
    assert_eq!(asked(&server, &blobs), [0, 1, 1, 1, 1], "read again, but not fetched again");
    assert_eq!(inspector.sizes(&found.layers).await.unwrap().unwrap().len(), 5);
    assert_eq!(asked(&server, &blobs), [1; 5]);
}

#[tokio::test]
async fn a_layer_that_is_wanted_for_its_size_alone_fails_nothing_else() {
    let image = image(&layers());
    let bottom = digest(&image.layers[0].blob);
    let path = bottom.clone();
    let server = Server::with_image(image, move |request, _, stream| {
        let is_bottom = request.path.ends_with(&path);
        is_bottom.then(|| support::reply(stream, "404 Not Found", &[], b"{}").unwrap())
    });
    let mut inspector = inspector(&server);
    let found = inspector.inspect(&format!("{}/app", server.host)).await.unwrap();
    assert_eq!(String::from_utf8(found.passwd).unwrap(), "app:x:100:101::/:/bin/sh\n");
    let error = inspector.sizes(&found.layers).await.unwrap_err().to_string();
    assert!(error.contains(&bottom), "{error}");
}

#[tokio::test]
async fn a_registry_that_goes_on_for_ever_is_given_up() {
    let image = image(&layers());
    let bottom = digest(&image.layers[0].blob);
    let server = Server::with_image(image, move |request, _, _| {
        // The thread ends with the test process.
        while request.path.ends_with(&bottom) || request.path.contains("/slow/") {
            std::thread::park();
        }
        None
    });
    let found = inspect(&server, "app").await.unwrap();
    let limits = Limits { total: Duration::from_millis(1), ..Limits::default() };
    let registries = support::plain(&server.host);
    let mut hasty = Inspector::new(InspectConfig { registries, limits });
    let slow = hasty.inspect(&format!("{}/slow/app", server.host)).await.unwrap_err();
    assert!(matches!(slow, PullError::Deadline { .. }), "{slow}");
    let slow = hasty.sizes(&found.layers).await.unwrap_err();
    assert!(matches!(slow, PullError::Deadline { .. }), "{slow}");
}

#[tokio::test]
async fn changed_content_is_refused() {
    let changed_layer = |which: usize| {
        let mut image = image(&layers());
        let good = digest(&image.layers[which].blob);
        // The blob that comes under the good name is another one of the same length.
        let middle = image.layers[which].blob.len() / 2;
        image.layers[which].blob[middle] ^= 1;
        (image, good)
    };
    for which in [1, 2] {
        let (image, good) = changed_layer(which);
        let blob = image.layers[which].blob.clone();
        let path = good.clone();
        let server = Server::with_image(image, move |request, _, stream| {
            request
                .path
                .ends_with(&path)
                .then(|| support::reply(stream, "200 OK", &[], &blob).unwrap())
        });
        let error = inspect(&server, "app").await.unwrap_err();
        assert!(error.contains("digest mismatch") && error.contains(&good), "{error}");
    }
    // A registry that names another digest than the manifest has.
    let image: Image = image(&layers());
    let manifest = image.manifest.clone();
    let server = Server::with_image(image, move |request, _, stream| {
        let wrong = digest(b"another");
        let headers =
            [("Content-Type", support::OCI_MANIFEST), ("Docker-Content-Digest", wrong.as_str())];
        request.path.contains("/manifests/").then(|| {
            support::reply(stream, "200 OK", &headers, manifest.as_bytes()).unwrap();
        })
    });
    assert!(inspect(&server, "app").await.unwrap_err().contains("digest mismatch"));
}
