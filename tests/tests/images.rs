//! Images that only some may have, and that only some may run: credentials, signatures and keys go to the
//! guest and nowhere else. What the node's cache serves costs the registry nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;

use nacre_tests::{
    Broker, Compression, Declaration, GUESTS_LOGIN, GUESTS_PASSWORD, Image, Layer, PodBuilder,
    World, container,
};

const PLAIN: &str = "10.88.0.1:5000";

/// An image of two layers, so that not only the lowest one counts.
fn app(name: &str) -> Image {
    let layer = Layer::new(Compression::Zstd).file("etc/who", 0o644, name.as_bytes());
    Image::busybox(name).layer(layer)
}

fn says_who(image: &str) -> Declaration {
    container("app", image).script("cat /etc/who; echo; sleep 1000")
}

/// A pod whose initdata is granted what concerns images.
fn granted<'w>(world: &'w World, broker: &Broker<'_>, declared: Declaration) -> PodBuilder<'w> {
    let pod = world.pod("web").with(declared).exec_allowed().secrets_of(broker);
    let pod = pod.with_policy().unwrap();
    broker.grant("web", pod.annotation_text(), ["default/image/*"]).unwrap();
    pod
}

async fn runs(pod: PodBuilder<'_>, says: &str) {
    let pod = pod.await.unwrap();
    pod.start("app").await.unwrap().wait_for(says).await.unwrap();
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
}

#[tokio::test]
async fn an_image_runs_only_if_its_signature_admits_it() {
    const KEY: &str = "/run/world/signer.pem";
    const POLICY: &str = "/run/world/image-policy.json";
    let world = World::new().await.unwrap();
    let broker = world.start_broker_for_guests().await.unwrap();
    let public = world.nacre(&["image", "keygen", "-o", KEY]).unwrap();
    broker.set_secret("kbs:///default/image/signer", &public).unwrap();
    let policy = format!(
        r#"{{"default": [{{"type": "reject"}}], "transports": {{"docker": {{"{PLAIN}": [{{
            "type": "sigstoreSigned", "keyPath": "kbs:///default/image/signer",
            "signedIdentity": {{"type": "matchRepository"}}}}]}}}}}}"#
    );
    fs::write(world.path(POLICY), policy).unwrap();
    broker.add_to_initdata(&["--image-policy", POLICY]).unwrap();

    let signed = world.push(&app("signed")).unwrap();
    let sign = ["image", "sign", &signed, "--key", KEY, "--danger-plain-http", PLAIN];
    world.nacre(&sign).unwrap();
    runs(granted(&world, &broker, says_who(&signed)), "signed").await;

    let other = world.push(&app("unsigned")).unwrap();
    let pod = granted(&world, &broker, says_who(&other)).await.unwrap();
    let before = world.downloads("unsigned").unwrap();
    let error = format!("{:#}", pod.start("app").await.unwrap_err());
    eprintln!("refused: {error}");
    assert!(error.contains("unsigned") && error.contains("signature"), "{error}");
    // containerd's, of the configuration: the guest has fetched nothing.
    assert_eq!(world.downloads("unsigned").unwrap(), before + 1);
    pod.stop().await.unwrap();
    pod.remove().await.unwrap();
    assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_private_encrypted_image_is_opened_by_the_guest_alone() {
    const LAYER_KEY: &str = "/run/world/layer.pem";
    const LAYER_PUBLIC: &str = "/run/world/layer-public.pem";
    const OWN_KEY: &str = "/run/world/own.key";
    let world = World::new().await.unwrap();
    let broker = world.start_broker_for_guests().await.unwrap();
    let private = world.start_private_registry().unwrap();
    let (address, authfile) = (private.address(), private.credentials());
    broker.set_secret_from("kbs:///default/image/login", authfile).unwrap();
    let mut more = vec!["--registry-credentials", "kbs:///default/image/login"];
    more.extend(["--registry-ca", private.certificate()]);
    more.extend(["--layer-key", "kbs:///default/image/layer"]);
    broker.add_to_initdata(&more).unwrap();

    // To a public key, by skopeo.
    let public = world.nacre(&["image", "keygen", "-o", LAYER_KEY]).unwrap();
    fs::write(world.path(LAYER_PUBLIC), public).unwrap();
    broker.set_secret_from("kbs:///default/image/layer", LAYER_KEY).unwrap();
    world.push(&app("jwe")).unwrap();
    let recipient = format!("jwe:{LAYER_PUBLIC}");
    let (from, to) = (format!("docker://{PLAIN}/jwe:1"), format!("docker://{address}/jwe:1"));
    let mut copy = vec!["skopeo", "--insecure-policy", "copy", "--encryption-key", &recipient];
    copy.extend(["--src-tls-verify=false", "--dest-tls-verify=false", "--dest-authfile"]);
    copy.extend([authfile, &from, &to]);
    world.run(&copy).unwrap();
    let image = private.pinned("jwe").unwrap();
    let settings = format!(
        "registry.ca_file = {:?}\nregistry.credentials_file = {authfile:?}",
        private.certificate()
    );
    let pod = world.pod("web").with(says_who(&image)).exec_allowed().settings(&settings);
    let pod = pod.secrets_of(&broker).with_policy().unwrap();
    broker.grant("web", pod.annotation_text(), ["default/image/*"]).unwrap();
    runs(pod, "jwe").await;

    // To a key that the broker keeps, by our own tool.
    let (from, to) = (format!("{PLAIN}/own:1"), format!("{address}/own:1"));
    world.push(&app("own")).unwrap();
    let mut encrypt = vec!["image", "encrypt", &from, &to, "--generate-key", OWN_KEY];
    encrypt.extend(["--key-id", "kbs:///default/image/own", "--danger-plain-http", PLAIN]);
    encrypt.extend(["--authfile", authfile, "--ca", private.certificate()]);
    world.nacre(&encrypt).unwrap();
    broker.set_secret_from("kbs:///default/image/own", OWN_KEY).unwrap();
    let image = private.pinned("own").unwrap();
    let pod = world.pod("web").with(says_who(&image)).exec_allowed().settings(&settings);
    let pod = pod.secrets_of(&broker).with_policy().unwrap();
    broker.grant("web", pod.annotation_text(), ["default/image/*"]).unwrap();
    runs(pod, "own").await;

    // The host has neither layers nor the guest's password.
    assert_eq!(world.host_layers().unwrap(), Vec::<String>::new());
    let places = ["/run/world/containerd", "/run/containerd", "/run/nacre", "/run/world/shim.toml"];
    let secrets = format!("-e '{GUESTS_PASSWORD}' -e '{GUESTS_LOGIN}'");
    let search = format!("grep -rlF {secrets} {} || true", places.join(" "));
    assert_eq!(world.run(&["sh", "-c", &search]).unwrap(), "");
    assert!(!world.containerd_log().unwrap().contains(GUESTS_PASSWORD));
}

#[tokio::test]
async fn pods_of_one_image_cost_the_registry_one_download() {
    let world = World::new().await.unwrap();
    world.start_node_cache().unwrap();
    let image = world.push(&app("shared")).unwrap();
    // Made once: whoever makes it looks into the image, too.
    let first = world.pod("web").with(says_who(&image)).with_policy().unwrap();
    let initdata = first.annotation_text().to_owned();
    let pod = || world.pod("web").with(says_who(&image)).with_initdata(&initdata);
    let before = world.downloads("shared").unwrap();
    runs(first, "shared").await;
    let layers = world.registry().layers(&app("shared")).unwrap();
    let once = world.downloads("shared").unwrap();
    assert!(once >= before + layers.len(), "{before}, {once}");

    // The registry has lost the layers; nobody notices.
    let kept: Vec<_> = layers.iter().map(|layer| world.registry().take(layer).unwrap()).collect();
    runs(pod(), "shared").await;
    for (layer, content) in layers.iter().zip(&kept) {
        world.registry().give_back(layer, content).unwrap();
    }

    // A cache that lies is left for the registry, and one that is gone is not missed.
    assert!(world.danger_corrupt_node_cache().unwrap() >= layers.len());
    runs(pod(), "shared").await;
    assert!(world.downloads("shared").unwrap() >= once + layers.len());
    world.stop_node_cache().unwrap();
    runs(pod(), "shared").await;
    assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn an_image_that_memory_cannot_hold_fits_on_a_scratch_disk() {
    let world = World::new().await.unwrap();
    let big = Layer::new(Compression::Zstd).zeros("big", 160 << 20);
    let image = world.push(&app("big").layer(big)).unwrap();
    let declared = || container("app", &image).script("wc -c < /big; sleep 1000");
    let pod = || world.pod("web").annotation("io.nacre.vm.memory_mib", "256").with(declared());
    let small = pod().await.unwrap();
    let error = format!("{:#}", small.start("app").await.unwrap_err());
    eprintln!("refused: {error}");
    assert!(error.contains("io.nacre.vm.scratch_disk_mib"), "{error}");
    small.stop().await.unwrap();
    small.remove().await.unwrap();
    let disk = pod().annotation("io.nacre.vm.scratch_disk_mib", "1024");
    runs(disk, &(160 << 20).to_string()).await;
    assert_eq!(world.leftovers().await.unwrap(), Vec::<String>::new());
}
