//! Encrypted layers: opened with keys of the broker, and kept only if nobody has changed them.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use nacre_image_encryption::{LayerEncryptor, PublicKey, Recipient};
use nacre_image_pull::PullConfig;
use nacre_trust::Algorithm;
use support::{Broker, Image, Layer, Server, World, digest, image, layer, plain, reply};

const URI: &str = "kbs:///default/image/own";
const PRIVATE: &str = "kbs:///default/image/private";
const KEY: [u8; 32] = [7; 32];

/// The layer encrypted, and what its descriptor then says.
fn encrypt(layer: &Layer, recipients: &[Recipient]) -> (Layer, BTreeMap<String, String>) {
    let mut encryptor = LayerEncryptor::new(Vec::new(), Algorithm::Sha256).unwrap();
    encryptor.write_all(&layer.blob).unwrap();
    let (sealed, blob) = encryptor.finish().unwrap();
    let annotations = sealed.annotations(recipients, &BTreeMap::new()).unwrap();
    (Layer { blob, kind: format!("{}+encrypted", layer.kind), ..layer.clone() }, annotations)
}

fn provider() -> Recipient {
    Recipient::Provider { key_id: URI.parse().unwrap(), key: zeroize::Zeroizing::new(KEY) }
}

/// An image whose first layer is encrypted.
fn sealed(layers: &[Layer], recipients: &[Recipient]) -> Image {
    let (first, annotations) = encrypt(&layers[0], recipients);
    let layers = [&[first][..], &layers[1..]].concat();
    let mut image = image(&layers);
    let size = format!("\"size\":{}}}", layers[0].blob.len());
    let with = format!(
        "\"size\":{},\"annotations\":{}}}",
        layers[0].blob.len(),
        serde_json::to_string(&annotations).unwrap()
    );
    let at = image.manifest.rfind("\"layers\"").unwrap();
    let (head, tail) = image.manifest.split_at(at);
    image.manifest = format!("{head}{}", tail.replacen(&size, &with, 1));
    image
}

fn layers(compression: &str) -> Vec<Layer> {
    vec![
        layer(compression, |tar| tar.file("secret", vec![b's'; 200_000])),
        layer("gzip", |tar| tar.file("public", "p")),
    ]
}

fn world(server: &Server, broker: &Arc<Broker>) -> World {
    World::configured(|config| PullConfig {
        registries: plain(&server.host),
        resources: broker.clone(),
        layer_keys: vec![PRIVATE.into()],
        ..config
    })
}

fn broker(resources: &[(&str, &[u8])]) -> Arc<Broker> {
    let resources = resources.iter().map(|(uri, key)| ((*uri).to_owned(), key.to_vec())).collect();
    Arc::new(Broker { resources, ..Broker::default() })
}

#[tokio::test]
async fn layers_are_opened_with_the_broker_s_keys() {
    for compression in ["", "gzip", "zstd"] {
        let server =
            Server::with_image(sealed(&layers(compression), &[provider()]), |_, _, _| None);
        let broker = broker(&[(URI, &KEY)]);
        let world = world(&server, &broker);
        let image = world.pull(&format!("{}/app", server.host)).await.unwrap();
        let root = world.mount(&image, "m");
        assert_eq!((root.read("secret").len(), root.read("public").len()), (200_000, 1));
        assert_eq!(*broker.asked.lock().unwrap(), [URI]);
    }
}

#[tokio::test]
async fn layers_are_opened_with_private_keys() {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let public = PublicKey::parse(pair.public_key_pem().as_bytes()).unwrap();
    let server =
        Server::with_image(sealed(&layers("gzip"), &[Recipient::Jwe(public)]), |_, _, _| None);
    let private = pair.serialize_pem();
    let world = world(&server, &broker(&[(PRIVATE, private.as_bytes())]));
    let image = world.pull(&format!("{}/app", server.host)).await.unwrap();
    assert_eq!(world.mount(&image, "m").read("secret").len(), 200_000);
}

#[tokio::test]
async fn without_the_key_nothing_is_fetched() {
    let server = Server::with_image(sealed(&layers("gzip"), &[provider()]), |_, _, _| None);
    let reference = format!("{}/app", server.host);
    for (broker, says) in [
        (broker(&[]), "has no such resource"),
        (broker(&[(URI, &[8; 32])]), "does not open it"),
        (broker(&[(URI, b"short")]), URI),
    ] {
        let error = world(&server, &broker).refuse(&reference).await;
        assert!(error.contains(says) && error.contains("no key opens the layer"), "{error}");
    }
    assert_eq!(server.asked("/blobs/"), 3, "configurations only");
}

#[tokio::test]
async fn changed_ciphertext_is_refused_even_under_a_right_digest() {
    let good = sealed(&layers(""), &[provider()]);
    // Counter mode: a bit of the ciphertext is a bit of the plaintext. Here a byte of the content, so
    // that everything but the digest of the archive and the HMAC would let it pass.
    for at in [700, good.layers[0].blob.len() - 1, 0] {
        let mut changed =
            Image { layers: good.layers.clone(), ..sealed(&layers(""), &[provider()]) };
        let mut blob = good.layers[0].blob.clone();
        blob[at] ^= 1;
        changed.manifest = good.manifest.replace(&digest(&good.layers[0].blob), &digest(&blob));
        changed.layers[0].blob = blob;
        changed.config = good.config.clone();
        let server = Server::with_image(changed, |_, _, _| None);
        let world = world(&server, &broker(&[(URI, &KEY)]));
        let error = world.refuse(&format!("{}/app", server.host)).await;
        assert!(error.contains("HMAC is wrong"), "{error}");
        assert_eq!(world.layers(), 0);
    }
    // Changed on its way, it is not what the manifest names.
    let (name, mut blob) = (digest(&good.layers[0].blob), good.layers[0].blob.clone());
    blob[700] ^= 1;
    let server = Server::with_image(good, move |request, _, stream| {
        request.path.ends_with(&name).then(|| reply(stream, "200 OK", &[], &blob).unwrap())
    });
    let error =
        world(&server, &broker(&[(URI, &KEY)])).refuse(&format!("{}/app", server.host)).await;
    assert!(error.contains("digest mismatch"), "{error}");
}

#[tokio::test]
async fn an_image_without_the_key_cannot_borrow_the_layer() {
    let layers = layers("gzip");
    let server = Server::with_image(sealed(&layers, &[provider()]), |_, _, _| None);
    let open = Server::with_image(image(&layers), |_, _, _| None);
    let broker = broker(&[(URI, &KEY)]);
    let world = World::configured(|config| {
        let mut registries = plain(&server.host);
        registries.danger_plain_http.push(open.host.clone());
        PullConfig { registries, resources: broker.clone(), ..config }
    });
    let _held = world.pull(&format!("{}/app", server.host)).await.unwrap();
    assert_eq!(world.layers(), 2);
    // The same diff_id in an image that is not encrypted is another layer; the other one is the same.
    let _open = world.pull(&format!("{}/app", open.host)).await.unwrap();
    assert_eq!(open.asked(&digest(&layers[0].blob)), 1);
    assert_eq!(open.asked(&digest(&layers[1].blob)), 0);
    assert_eq!(world.layers(), 3);
}
