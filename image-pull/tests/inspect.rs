//! Images are inspected without unpacking them: what is verified, what is fetched, what comes out.
#![allow(clippy::unwrap_used)]

mod support;

use nacre_image_pull::{InspectConfig, Inspected, Inspector};
use support::{Image, Layer, Server, digest, image, layer};

async fn inspect(server: &Server, name: &str) -> Result<Inspected, String> {
    let registries = support::plain(&server.host);
    let inspector = Inspector::new(InspectConfig { registries, ..InspectConfig::default() });
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

#[tokio::test]
async fn layers_are_counted_where_their_sizes_are_asked_for() {
    let mut all = layers();
    all.push(layer("zstd", |tar| tar.file("big", "0".repeat(3 << 20)).link("small", "big")));
    let image = image(&all);
    let bottom = digest(&image.layers[0].blob);
    let server = Server::with_image(image, |_, _, _| None);
    let registries = support::plain(&server.host);
    let config = InspectConfig { registries, sizes: true, ..InspectConfig::default() };
    let found = Inspector::new(config).inspect(&format!("{}/app", server.host)).await.unwrap();
    assert_eq!(String::from_utf8(found.passwd).unwrap(), "app:x:100:101::/:/bin/sh\n");
    assert_eq!(server.asked(&bottom), 1, "each layer once");
    let mut sizes: Vec<u64> = found.sizes.values().map(|size| size.mebibytes()).collect();
    sizes.sort_unstable();
    // Small files take a page each; 3 MiB take more, with an inode.
    assert_eq!(sizes, [1, 1, 1, 4]);
    assert!(inspect(&server, "app").await.unwrap().sizes.is_empty());
}

#[tokio::test]
async fn links_are_followed_through_all_layers() {
    let image = image(&[
        layer("gzip", |tar| tar.file("nix/store/x/passwd", "app:x:7:7::/:/bin/sh\n")),
        layer("gzip", |tar| tar.link("etc/passwd", "/nix/store/x/passwd")),
    ]);
    let server = Server::with_image(image, |_, _, _| None);
    let found = inspect(&server, "app").await.unwrap();
    assert_eq!(String::from_utf8(found.passwd).unwrap(), "app:x:7:7::/:/bin/sh\n");
    assert!(found.group.is_empty());
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
