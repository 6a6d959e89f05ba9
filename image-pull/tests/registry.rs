//! Against a real registry: what is pulled is what was pushed, and what was tampered with is refused.
//! These tests mount and unpack, so they need root.

mod support;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::{Arc, Mutex};

use nacre_image_pull::{Limits, Progress, PullConfig, Puller, Registries};
use support::{
    OCI_INDEX, OCI_MANIFEST, Registry, World, descriptor, digest, image, layer, manifest,
};

#[tokio::test]
async fn an_image_is_pulled_mounted_and_cheap_the_second_time() {
    let Some(registry) = Registry::start() else { return };
    let image = image(&[
        layer("gzip", |tar| {
            let tar = tar.directory("etc", 0o755).file("etc/a", "old").file("etc/gone", "x");
            tar.directory("d", 0o755).file("d/hidden", "x")
        }),
        layer("zstd", |tar| {
            let tar = tar.file("etc/a", "new").file("etc/.wh.gone", "");
            tar.file("d/.wh..wh..opq", "").file("d/shown", "y")
        }),
        layer("", |tar| tar.file("b", "plain")),
    ]);
    let reference = registry.push("test/app", &image).await;
    let world = World::new(&registry.host);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let pulled = world.puller.pull(&reference, move |p| log.lock().unwrap().push(p)).await.unwrap();
    assert_eq!(pulled.manifest_digest.to_string(), digest(image.manifest.as_bytes()));
    assert_eq!(pulled.reference, reference);
    let root = world.mount(&pulled, "m");
    assert_eq!((root.read("etc/a"), root.read("b")), ("new".into(), "plain".into()));
    assert!(!root.0.join("etc/gone").exists());
    assert_eq!(support::children(&root.0.join("d")), ["shown"]);
    std::fs::write(root.0.join("etc/a"), "written").unwrap();
    {
        let seen = seen.lock().unwrap();
        let bytes = image.layers.iter().map(|layer| layer.blob.len() as u64).sum();
        let first = Progress { layers: 3, bytes, ..Progress::default() };
        assert_eq!(seen.first(), Some(&first));
        assert_eq!(seen.last(), Some(&Progress { layers_done: 3, bytes_done: bytes, ..first }));
    }
    for layer in &image.layers {
        std::fs::remove_file(registry.blob_file(&digest(&layer.blob))).unwrap();
    }
    let again = world.pull(&reference).await.expect("no layer is fetched again");
    assert_eq!(world.mount(&again, "n").read("etc/a"), "new", "writes stay in their container");
}

#[tokio::test]
async fn tampered_content_is_refused_and_nothing_is_left() {
    let Some(registry) = Registry::start() else { return };
    let image = image(&[
        layer("gzip", |tar| tar.file("a", "good")),
        layer("", |tar| tar.file("b", "good")),
    ]);
    let reference = registry.push("app", &image).await;
    let blobs = [
        digest(&image.layers[0].blob),
        digest(&image.layers[1].blob),
        digest(image.config.as_bytes()),
        digest(image.manifest.as_bytes()),
    ];
    for blob in &blobs {
        let file = registry.blob_file(blob);
        let good = std::fs::read(&file).unwrap();
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        std::fs::write(&file, &bad).unwrap();
        let world = World::new(&registry.host);
        let error = world.refuse(&reference).await;
        assert!(error.contains("digest mismatch") && error.contains(blob), "{error}");
        for (content, says) in
            [(&good[..good.len() - 1], "bytes"), (&[&good[..], b"x"].concat(), "bytes")]
        {
            std::fs::write(&file, content).unwrap();
            let error = world.refuse(&reference).await;
            // The registry itself notices a manifest that is no JSON any more.
            assert!(error.contains(says) || error.contains("500"), "{error}");
        }
        std::fs::write(&file, good).unwrap();
        world.pull(&reference).await.expect("whole again");
    }
}

#[tokio::test]
async fn lying_documents_are_refused() {
    let Some(registry) = Registry::start() else { return };
    let good = image(&[layer("gzip", |tar| tar.file("a", "good"))]);
    registry.push("app", &good).await;
    let size = format!("\"size\":{}", good.layers[0].blob.len());
    let shorter = format!("\"size\":{}", good.layers[0].blob.len() - 1);
    let longer = format!("\"size\":{}", good.layers[0].blob.len() + 1);
    for (manifest, says) in [
        (good.manifest.replace(&size, &shorter), "descriptor says"),
        (good.manifest.replace(&size, &longer), "descriptor says"),
        (good.manifest.replace("+gzip", ""), "cut off"),
        (good.manifest.replace("+gzip", "+zstd"), "zstd stream is broken"),
        (good.manifest.replace("+gzip", "+gzip+encrypted"), "carries no wrapped key"),
        (manifest(&good.config, &[]), "diff_ids"),
    ] {
        let world = World::new(&registry.host);
        let reference = registry.push_manifest("app", "lie", &manifest, OCI_MANIFEST).await;
        let error = world.refuse(&reference).await;
        assert!(error.contains(says), "{error}");
        assert_eq!(world.layers(), 0);
    }
    let mut other = image(&good.layers);
    other.config = good.config.replace(&good.layers[0].diff_id, &digest(b"something else"));
    other.manifest = manifest(&other.config, &other.layers);
    let reference = registry.push("other", &other).await;
    let error = World::new(&registry.host).refuse(&reference).await;
    assert!(error.contains("diff_id") && error.contains("digest mismatch"), "{error}");
}

#[tokio::test]
async fn an_index_leads_to_this_platform() {
    let Some(registry) = Registry::start() else { return };
    let image = image(&[layer("gzip", |tar| tar.file("a", "amd64"))]);
    registry.push("app", &image).await;
    let entry = |arch: &str| {
        descriptor(OCI_MANIFEST, image.manifest.as_bytes())
            .replace('}', &format!(r#","platform":{{"os":"linux","architecture":"{arch}"}}}}"#))
    };
    let index = |entries: &str| {
        format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{entries}]}}"#)
    };
    let both = index(&format!("{},{}", entry("s390x"), entry("amd64")));
    let reference = registry.push_manifest("app", "multi", &both, OCI_INDEX).await;
    let world = World::new(&registry.host);
    let pulled = world.pull(&reference).await.unwrap();
    assert_eq!(pulled.manifest_digest.to_string(), digest(image.manifest.as_bytes()));
    let foreign = index(&entry("s390x"));
    let reference = registry.push_manifest("app", "foreign", &foreign, OCI_INDEX).await;
    let error = world.refuse(&reference).await;
    assert!(error.contains("linux/s390x"), "{error}");
}

#[tokio::test]
async fn equal_layers_and_many_layers_stack() {
    let Some(registry) = Registry::start() else { return };
    let a = layer("gzip", |tar| tar.file("f", "a").file("only-a", "a"));
    let b = layer("gzip", |tar| tar.file("f", "b").file(".wh.only-a", ""));
    let world = World::new(&registry.host);
    let reference = registry.push("aba", &image(&[a.clone(), b, a])).await;
    let root = world.mount(&world.pull(&reference).await.unwrap(), "aba");
    assert_eq!((root.read("f"), root.read("only-a")), ("a".into(), "a".into()));

    let many: Vec<_> = (0..130)
        .map(|i| layer("gzip", |tar| tar.file("f", i.to_string()).file(&format!("d/{i}"), "")))
        .collect();
    let reference = registry.push("many", &image(&many)).await;
    let root = world.mount(&world.pull(&reference).await.unwrap(), "many");
    assert_eq!(root.read("f"), "129");
    assert_eq!(support::children(&root.0.join("d")).len(), 130);
    drop(root);

    let world = World::with(&registry.host, Limits { layers: 129, ..Limits::default() });
    assert!(world.refuse(&reference).await.contains("limit of 129 layers"));
}

#[tokio::test]
async fn directories_without_an_entry_keep_their_owner_and_mode() {
    let Some(registry) = Registry::start() else { return };
    let world = World::new(&registry.host);
    let base = layer("gzip", |tar| {
        let tar = tar.directory("./", 0o755).directory("tmp", 0o1777).directory("a", 0o700);
        tar.directory("a/b", 0o711).directory("c", 0o700)
    });
    let top = layer("gzip", |tar| {
        tar.file("tmp/x", "").file("a/b/y", "").file("c/.wh..wh..opq", "").file("c/z", "")
    });
    let reference = registry.push("parents", &image(&[base, top])).await;
    let root = world.mount(&world.pull(&reference).await.unwrap(), "m");
    let mode = |name: &str| root.0.join(name).metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("tmp"), mode("a"), mode("a/b")), (0o1777, 0o700, 0o711));
    assert_eq!(mode("c"), 0o755, "an opaque directory takes nothing from below");
    assert_eq!(root.0.join("tmp/x").metadata().unwrap().uid(), 0);
}

#[tokio::test]
async fn an_opaque_root_hides_all_below() {
    let Some(registry) = Registry::start() else { return };
    let world = World::new(&registry.host);
    let below = layer("gzip", |tar| tar.file("old", ""));
    let top = layer("gzip", |tar| tar.file(".wh..wh..opq", "").file("new", ""));
    let reference = registry.push("opaque", &image(&[below, top])).await;
    let root = world.mount(&world.pull(&reference).await.unwrap(), "m");
    assert_eq!(support::children(&root.0), ["new"]);
}

#[tokio::test]
async fn an_image_without_layers_is_an_empty_root() {
    let Some(registry) = Registry::start() else { return };
    let world = World::new(&registry.host);
    let reference = registry.push("scratch", &image(&[])).await;
    let pulled = world.pull(&reference).await.unwrap();
    let root = world.mount(&pulled, "m");
    std::fs::write(root.0.join("x"), "").unwrap();
    let taken = pulled.mount(&world.path("m/scratch"), &world.path("other"), false);
    assert!(taken.is_err() && root.0.join("x").exists(), "a scratch in use is left alone");
    let target = world.path("readonly");
    pulled.mount(&world.path("scratch"), &target, true).unwrap();
    let readonly = support::Mounted(target, None);
    assert!(std::fs::write(readonly.0.join("x"), "").is_err());
}

#[tokio::test]
async fn what_is_not_there_is_said_so() {
    let Some(registry) = Registry::start() else { return };
    registry.push("app", &image(&[])).await;
    let world = World::new(&registry.host);
    for name in ["app:other", "nothing:latest"] {
        let error = world.refuse(&format!("{}/{name}", registry.host)).await;
        assert!(error.contains("has no manifest"), "{error}");
    }
    let missing = layer("gzip", |tar| tar.file("a", ""));
    let reference = registry.push("app", &image(std::slice::from_ref(&missing))).await;
    std::fs::remove_file(registry.blob_file(&digest(&missing.blob))).unwrap();
    let error = world.refuse(&reference).await;
    assert!(error.contains("has no layer"), "{error}");
}

#[tokio::test]
async fn bombs_stop_at_the_limits() {
    let Some(registry) = Registry::start() else { return };
    let zeros = vec![0; 32 << 20];
    for compression in ["gzip", "zstd"] {
        let bomb = image(&[layer(compression, |tar| tar.file("zeros", &zeros))]);
        let reference = registry.push("bomb", &bomb).await;
        let limits = Limits { unpacked_bytes: 8 << 20, ..Limits::default() };
        let error = World::with(&registry.host, limits).refuse(&reference).await;
        assert!(error.contains("unpacked bytes"), "{error}");
    }
    let many = layer("gzip", |tar| (0..100).fold(tar, |tar, i| tar.file(&i.to_string(), "")));
    let reference = registry.push("inodes", &image(&[many])).await;
    let limits = Limits { entries: 99, ..Limits::default() };
    let error = World::with(&registry.host, limits).refuse(&reference).await;
    assert!(error.contains("99 files"), "{error}");
}

#[tokio::test]
async fn a_zstd_window_above_the_limit_is_refused() {
    let Some(registry) = Registry::start() else { return };
    let tar = support::Tar::default().file("a", vec![7; 3 << 20]).bytes();
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(24).unwrap();
    std::io::Write::write_all(&mut encoder, &tar).unwrap();
    let mut wide = support::pack("zstd", &tar);
    wide.blob = encoder.finish().unwrap();
    let reference = registry.push("window", &image(&[wide])).await;
    let limits = Limits { zstd_window_log: 20, ..Limits::default() };
    let error = World::with(&registry.host, limits).refuse(&reference).await;
    assert!(error.contains("window above 1 MiB"), "{error}");
    World::new(&registry.host).pull(&reference).await.expect("fits the default");
}

#[tokio::test]
async fn streams_in_several_members_or_frames_are_whole() {
    let Some(registry) = Registry::start() else { return };
    let tar = support::Tar::default().file("a", "first").file("b", vec![b'x'; 100_000]).bytes();
    let (head, tail) = tar.split_at(700);
    for compression in ["gzip", "zstd"] {
        let mut parts = support::pack(compression, &tar);
        parts.blob =
            [support::pack(compression, head).blob, support::pack(compression, tail).blob].concat();
        let reference = registry.push("parts", &image(&[parts.clone()])).await;
        let world = World::new(&registry.host);
        let root = world.mount(&world.pull(&reference).await.unwrap(), "m");
        assert_eq!(root.read("b").len(), 100_000);
        for garbage in [&b"garbage"[..], b"\0\0\0\0"] {
            let mut trailed = parts.clone();
            trailed.blob.extend_from_slice(garbage);
            let reference = registry.push("trailed", &image(&[trailed])).await;
            let error = World::new(&registry.host).refuse(&reference).await;
            assert!(error.contains("layer sha256:"), "{error}");
        }
    }
}

#[tokio::test]
async fn an_image_that_does_not_fit_says_what_to_raise() {
    let Some(registry) = Registry::start() else { return };
    let noise: Vec<u8> =
        (0..4_u32 << 20).map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let plain = registry.push("big", &image(&[layer("", |tar| tar.file("a", &noise))])).await;
    let bomb = layer("gzip", |tar| tar.file("a", vec![7; 4 << 20]));
    let packed = registry.push("packed", &image(&[bomb])).await;
    let world = World::new(&registry.host);
    let store = world.path("store");
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", &store, "tmpfs", flags, c"size=2m").unwrap();
    let small = support::Mounted(store.clone(), None);
    let puller = Puller::new(PullConfig {
        registries: support::plain(&registry.host),
        ..PullConfig::new(store)
    })
    .unwrap();
    for (reference, says) in [
        // The manifest tells, before anything is fetched.
        (plain, "its layers have at least 5 MiB and the pod's image storage has 2 of 2 MiB left"),
        (packed, "no space left"),
    ] {
        let error = puller.pull(&reference, |_| {}).await.unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("memory_mib"), "{error}");
    }
    assert!(support::children(&small.0.join("staging")).is_empty());
    drop(puller);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_pulls_share_layers() {
    let Some(registry) = Registry::start() else { return };
    let shared = layer("gzip", |tar| tar.file("shared", vec![1; 1 << 20]));
    let mut references = Vec::new();
    for i in 0..4 {
        let own = layer("gzip", |tar| tar.file("own", i.to_string()));
        references.push(registry.push(&format!("c{i}"), &image(&[shared.clone(), own])).await);
    }
    let world = World::new(&registry.host);
    let pulls = references.iter().chain(&references).map(|reference| world.pull(reference));
    let images: Vec<_> = futures_util::future::join_all(pulls).await;
    for (i, image) in images.iter().enumerate() {
        let root = world.mount(image.as_ref().unwrap(), &i.to_string());
        assert_eq!(root.read("own"), (i % 4).to_string());
    }
    assert_eq!(world.layers(), 5);
    drop(images);
    assert_eq!(world.layers(), 0);
}

#[tokio::test]
async fn a_pull_that_is_dropped_leaves_nothing() {
    let Some(registry) = Registry::start() else { return };
    let image = image(&[layer("gzip", |tar| tar.file("a", vec![1; 8 << 20]))]);
    let reference = registry.push("app", &image).await;
    let world = World::new(&registry.host);
    for micros in [100, 1000, 5000, 20_000, 50_000] {
        let limit = std::time::Duration::from_micros(micros);
        let _ = tokio::time::timeout(limit, world.pull(&reference)).await;
    }
    // It waits for whoever was unpacking the same layer.
    let image = world.pull(&reference).await.expect("works afterwards");
    assert!(support::children(&world.path("store/staging")).is_empty());
    assert_eq!(world.layers(), 1);
    drop(image);
    assert_eq!(world.layers(), 0);
}

#[tokio::test]
async fn https_is_trusted_by_its_authority_only() {
    let Some(registry) = Registry::start() else { return };
    registry.push("app", &image(&[layer("gzip", |tar| tar.file("a", "over tls"))])).await;
    let directory = tempfile::tempdir().unwrap();
    let openssl = |arguments: &str| {
        std::process::Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(directory.path())
            .output()
    };
    if openssl("version").is_err() {
        eprintln!("SKIPPED: openssl is not installed (apt-get install openssl)");
        return;
    }
    std::fs::write(directory.path().join("san"), "subjectAltName=IP:127.0.0.1").unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    for arguments in [
        format!("req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=authority -days 2"),
        format!("req -x509 {key} -keyout other.key -out other.pem -subj /CN=other -days 2"),
        format!("req {key} -keyout tls.key -out tls.csr -subj /CN=registry"),
        "x509 -req -in tls.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile san -out tls.pem -days 2".into(),
    ] {
        assert!(openssl(&arguments).unwrap().status.success(), "openssl {arguments}");
    }
    let path = |name: &str| directory.path().join(name);
    let tls = registry.with_tls(&path("tls.pem"), &path("tls.key")).unwrap();
    let puller = |ca: &str| {
        let registries = Registries { ca_file: Some(path(ca)), ..support::plain(&registry.host) };
        Puller::new(PullConfig { registries, ..PullConfig::new(path("store")) }).unwrap()
    };
    let reference = format!("{}/app", tls.host);
    let error = puller("other.pem").pull(&reference, |_| {}).await.unwrap_err().to_string();
    assert!(error.contains("certificate must be signed by an authority in"), "{error}");
    puller("ca.pem").pull(&reference, |_| {}).await.expect("signed by the authority");
}
