//! Encrypted layers that were tampered with, by somebody who can push but has no key.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;

use anyhow::ensure;
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nacre_image_encryption::{LayerEncryptor, Recipient};
use nacre_image_pull::{PullConfig, Resources};
use nacre_trust::Algorithm;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::case::Class::Encryption;
use crate::case::Expect::{Accept, Contain, Reject};
use crate::case::{Case, Check, Expect, Hosts, Seen};
use crate::compression::{gzip, zstd};
use crate::image::{Image, LAYER, Layer};
use crate::tar::{BLOCK, Tar};

/// Where the broker keeps the key.
const KEY: &str = "kbs:///default/image/own";
const PROVIDER: &str = "org.opencontainers.image.enc.keys.provider.attestation-agent";
const OPTIONS: &str = "org.opencontainers.image.enc.pubopts";
const CONTENT: Check = |tree| tree.holds("f", "content");

/// Has one key, and says so to nobody who asks for another.
struct Broker;

#[async_trait]
impl Resources for Broker {
    async fn resource(&self, uri: &str) -> Result<Zeroizing<Vec<u8>>, String> {
        match uri {
            KEY => Ok(Zeroizing::new(vec![7; 32])),
            "kbs:///default/image/another" => Ok(Zeroizing::new(vec![8; 32])),
            _ => Err(format!("the broker was asked for {uri}")),
        }
    }
}

fn archive() -> Vec<u8> {
    Tar::new().file("f", "content").end()
}

/// What is changed about an encrypted layer: its bytes, its annotations.
type Change = fn(&mut Vec<u8>, &mut BTreeMap<String, String>);

/// An image of one layer that was encrypted, and then changed.
fn encrypted(blob: &[u8], tar: &[u8], suffix: &str, change: Change) -> Image {
    let mut encryptor = LayerEncryptor::new(Vec::new(), Algorithm::Sha256).expect("random bytes");
    encryptor.write_all(blob).expect("memory takes all");
    let (sealed, mut ciphertext) = encryptor.finish().expect("nothing to fail");
    let key =
        Recipient::Provider { key_id: KEY.parse().expect("a URI"), key: Zeroizing::new([7; 32]) };
    let mut annotations = sealed.annotations(&[key], &BTreeMap::new()).expect("a recipient");
    change(&mut ciphertext, &mut annotations);
    let layer = Layer::packed(ciphertext, tar, &format!("{suffix}+encrypted"));
    Image::new([layer]).edit_manifest(|manifest| {
        manifest["layers"][0]["annotations"] = json!(annotations);
    })
}

/// Changes the document in an annotation.
fn edit(annotations: &mut BTreeMap<String, String>, name: &str, change: fn(&mut Value)) {
    let text = annotations.get_mut(name).expect("an annotation");
    let bytes = STANDARD.decode(&*text).expect("base64");
    let mut value = serde_json::from_slice(&bytes).expect("a document");
    change(&mut value);
    *text = STANDARD.encode(value.to_string());
}

fn with_keys(config: &mut PullConfig, _: &Hosts) {
    config.resources = Arc::new(Broker);
}

fn case(
    name: &'static str,
    attack: &'static str,
    make: impl Fn() -> Image + Send + Sync + 'static,
    expect: Expect,
) -> Case {
    Case::new(Encryption, name, attack, move |_: &Hosts| make(), expect).configure(with_keys)
}

/// A layer whose annotations were changed.
fn changed(name: &'static str, attack: &'static str, change: Change, words: Expect) -> Case {
    let make = move || encrypted(&gzip(&archive()), &archive(), "+gzip", change);
    case(name, attack, make, words).audit(no_layer)
}

/// Nothing is fetched that no key opens.
fn no_layer(seen: &Seen) -> anyhow::Result<()> {
    ensure!(seen.asked("/blobs/") <= 1, "a layer was fetched");
    Ok(())
}

pub(super) fn cases() -> Vec<Case> {
    let good = |_: &mut Vec<u8>, _: &mut BTreeMap<String, String>| {};
    vec![
        case(
            "encrypted-gzip",
            "An honest encrypted layer.",
            move || encrypted(&gzip(&archive()), &archive(), "+gzip", good),
            Accept(CONTENT),
        ),
        case(
            "encrypted-zstd",
            "The same in zstd.",
            move || encrypted(&zstd(&archive()), &archive(), "+zstd", good),
            Accept(CONTENT),
        ),
        case(
            "encrypted-without-keys",
            "No broker: the error names the key that is needed, and nothing is fetched.",
            move || encrypted(&gzip(&archive()), &archive(), "+gzip", good),
            Reject(&[KEY]),
        )
        .configure(|_, _| {})
        .audit(no_layer),
        case(
            "encrypted-content-changed",
            "One bit of the plaintext is turned through the ciphertext, and all digests are made right: \
             only the HMAC is wrong, and it comes last.",
            || {
                let mut tar = archive();
                let plain = tar.clone();
                tar[BLOCK] ^= 1;
                encrypted(&plain, &tar, "", |ciphertext, _| ciphertext[BLOCK] ^= 1)
            },
            Reject(&["HMAC"]),
        ),
        case(
            "encrypted-padding-changed",
            "The same in bytes that no file shows.",
            || {
                let mut tar = archive();
                let plain = tar.clone();
                tar[BLOCK + 100] ^= 1;
                encrypted(&plain, &tar, "", |ciphertext, _| ciphertext[BLOCK + 100] ^= 1)
            },
            Reject(&["HMAC"]),
        ),
        case(
            "encrypted-and-cut",
            "The end is cut off, where the archive does not need it.",
            || {
                let plain = archive();
                let tar = &plain[..plain.len() - BLOCK];
                encrypted(&plain, tar, "", |ciphertext, _| {
                    ciphertext.truncate(ciphertext.len() - BLOCK);
                })
            },
            Reject(&["HMAC"]),
        ),
        case(
            "encrypted-hmac-changed",
            "The HMAC itself is changed.",
            || {
                encrypted(&gzip(&archive()), &archive(), "+gzip", |_, annotations| {
                    edit(annotations, OPTIONS, |options| {
                        options["hmac"] = json!(STANDARD.encode([0; 32]));
                    });
                })
            },
            Reject(&["HMAC"]),
        ),
        changed(
            "encrypted-wrapped-key-changed",
            "The wrapped key is another one's.",
            |_, annotations| {
                edit(annotations, PROVIDER, |packet| {
                    packet["wrapped_data"] = json!(STANDARD.encode([0; 64]));
                });
            },
            Reject(&["no key opens the layer"]),
        ),
        changed(
            "encrypted-for-another-key",
            "The key that is named is not the one that it was wrapped with.",
            |_, annotations| {
                edit(annotations, PROVIDER, |packet| {
                    packet["kid"] = json!("kbs:///default/image/another");
                });
            },
            Reject(&["no key opens the layer"]),
        ),
        changed(
            "encrypted-with-a-key-from-a-file",
            "The key is to be read from a file of the guest.",
            |_, annotations| {
                edit(annotations, PROVIDER, |packet| packet["kid"] = json!("file:///etc/shadow"));
            },
            Reject(&["layer sha256"]),
        ),
        case(
            "encrypted-with-a-key-of-another-broker",
            "The image names a broker of its own: the guest asks the one that it has, and no other.",
            || {
                encrypted(&gzip(&archive()), &archive(), "+gzip", |_, annotations| {
                    edit(annotations, PROVIDER, |packet| {
                        packet["kid"] = json!("kbs://evil.example/default/image/own");
                    });
                })
            },
            Contain(CONTENT),
        ),
        changed(
            "encrypted-with-a-key-by-path",
            "A key's name that is a way out of its repository.",
            |_, annotations| {
                edit(annotations, PROVIDER, |packet| {
                    packet["kid"] = json!("kbs:///default/image/../../other/secret");
                });
            },
            Reject(&["layer sha256"]),
        ),
        changed(
            "encrypted-with-no-cipher",
            "The annotation says that the layer is not encrypted after all.",
            |_, annotations| {
                edit(annotations, OPTIONS, |options| options["cipher"] = json!("NONE"));
            },
            Reject(&["the cipher"]),
        ),
        changed(
            "encrypted-without-authentication",
            "A cipher without HMAC.",
            |_, annotations| {
                edit(annotations, OPTIONS, |options| options["cipher"] = json!("AES_256_CTR"));
            },
            Reject(&["the cipher"]),
        ),
        changed(
            "encrypted-hmac-empty",
            "An HMAC of no bytes, which a prefix comparison would find right.",
            |_, annotations| edit(annotations, OPTIONS, |options| options["hmac"] = json!("")),
            Reject(&["malformed"]),
        ),
        changed(
            "encrypted-options-missing",
            "No word on cipher and HMAC.",
            |_, annotations| drop(annotations.remove(OPTIONS)),
            Reject(&["absent"]),
        ),
        changed(
            "encrypted-options-garbage",
            "An annotation that is no base64.",
            |_, annotations| drop(annotations.insert(OPTIONS.to_owned(), "%%%".to_owned())),
            Reject(&["malformed"]),
        ),
        changed(
            "encrypted-recipients-flood",
            "A thousand wrapped keys, each to be asked for.",
            |_, annotations| {
                let one = annotations[PROVIDER].clone();
                annotations.insert(PROVIDER.to_owned(), vec![one; 1000].join(","));
            },
            Reject(&["more than"]),
        ),
        changed(
            "encrypted-annotation-of-a-mebibyte",
            "A wrapped key of a mebibyte.",
            |_, annotations| drop(annotations.insert(PROVIDER.to_owned(), "A".repeat(1 << 20))),
            Reject(&["more than"]),
        ),
        changed(
            "encrypted-for-pgp-only",
            "A way of wrapping keys that is not used here.",
            |_, annotations| {
                let key = annotations.remove(PROVIDER).expect("an annotation");
                annotations.insert("org.opencontainers.image.enc.keys.pgp".to_owned(), key);
            },
            Reject(&["encrypted for"]),
        ),
        case(
            "encrypted-called-plain",
            "The type says that it is not encrypted: ciphertext must not pass for an archive.",
            move || {
                let image = encrypted(&gzip(&archive()), &archive(), "+gzip", good);
                image.edit_manifest(|manifest| {
                    manifest["layers"][0]["mediaType"] = json!(format!("{LAYER}+gzip"));
                })
            },
            Reject(&["gzip stream is broken"]),
        ),
        case(
            "plain-called-encrypted",
            "A layer that anybody made, with the annotations of an encrypted one.",
            || {
                encrypted(&gzip(&archive()), &archive(), "+gzip", |ciphertext, _| {
                    *ciphertext = gzip(&archive());
                })
            },
            Reject(&["layer sha256"]),
        ),
    ]
}
