//! Documents and digests that lie.

mod documents;
mod kinds;

use nacre_trust::{Algorithm, Digest};
use serde_json::{Value, json};

use crate::case::Class::Identity;
use crate::case::Expect::{Accept, Contain, Reject};
use crate::case::{Case, Check, Expect, Hosts, Seen};
use crate::compression::{gzip, zstd};
use crate::image::{Image, LAYER, Layer, MANIFEST, digest, index};
use crate::registry::Served;
use crate::tar::Tar;

fn case<S: Into<Served>>(
    name: &'static str,
    attack: &'static str,
    make: impl Fn(&Hosts) -> S + Send + Sync + 'static,
    expect: Expect,
) -> Case {
    Case::new(Identity, name, attack, make, expect)
}

fn image() -> Image {
    Tar::new().file("f", "content").into()
}

/// What the registry has in the place of the right content.
fn other() -> Image {
    Tar::new().file("f", "another").into()
}

const CONTENT: Check = |tree| tree.holds("f", "content");
const CHANGED: Expect = Reject(&["content was changed"]);

pub(super) fn cases() -> Vec<Case> {
    [
        digests(),
        diff_ids(),
        sizes(),
        documents::documents(),
        kinds::types(),
        kinds::platforms(),
        layers(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn digests() -> Vec<Case> {
    let names: [(&'static str, &'static str, String); 7] = [
        (
            "digest-with-a-path",
            "A digest that is a way out of the store.",
            "sha256:../../../../outside/file".into(),
        ),
        (
            "digest-with-a-query",
            "A digest that adds to the request.",
            format!("{}?x=1", digest(b"x")),
        ),
        (
            "digest-md5",
            "A digest that can be forged.",
            "md5:d41d8cd98f00b204e9800998ecf8427e".into(),
        ),
        (
            "digest-of-unknown-kind",
            "A digest that nobody can check.",
            format!("none:{}", "0".repeat(64)),
        ),
        (
            "digest-in-capitals",
            "A second name for the same content.",
            digest(b"x").to_uppercase().replace("SHA256", "sha256"),
        ),
        ("digest-cut", "Half a digest.", digest(b"x")[..39].to_owned()),
        ("digest-empty", "No digest.", String::new()),
    ];
    let mut cases: Vec<Case> = names
        .into_iter()
        .map(|(name, attack, text)| {
            let make = move |_: &Hosts| {
                image().edit_manifest(|manifest| manifest["layers"][0]["digest"] = json!(text))
            };
            case(name, attack, make, Reject(&["manifest", "digest"])).audit(nothing_fetched)
        })
        .collect();
    cases.extend([
        case(
            "layer-changed",
            "The registry sends another layer than the manifest names.",
            |_| {
                let (right, wrong) = (image(), other());
                let mut served = Served::from(right.clone());
                served = served.blob(&right.layers[0].digest, wrong.layers[0].content.clone());
                served
            },
            CHANGED,
        ),
        case(
            "layer-changed-in-one-bit",
            "One bit is wrong, in the last byte: all has been unpacked by then.",
            |_| {
                let mut tar = Tar::new().file("f", vec![b'x'; 3 << 20]).end();
                let right = Image::from(Layer::plain(&tar));
                let last = tar.len() - 1;
                tar[last] ^= 1;
                Served::from(right.clone()).blob(&right.layers[0].digest, tar)
            },
            CHANGED,
        ),
        case(
            "config-changed",
            "The registry sends another configuration, of the same size.",
            |_| {
                let right = image();
                let wrong = String::from_utf8_lossy(&right.config).replace("/bin/x", "/bin/y");
                Served::from(right.clone()).blob(digest(&right.config), wrong)
            },
            CHANGED,
        ),
        case(
            "manifest-changed",
            "The pod names a digest, the registry has another manifest for it.",
            |_| {
                let (right, mut wrong) = (image(), other());
                wrong.claims_digest = false;
                let name = digest(&right.manifest);
                let headers = [("Content-Type", MANIFEST)];
                Served::from(wrong.clone())
                    .document(&*name, wrong.manifest, &headers)
                    .reference(format!("app@{name}"))
            },
            CHANGED,
        ),
        case(
            "manifest-changed-with-a-claim",
            "The same, and the registry claims in a header that the digest is right.",
            |_| {
                let (right, wrong) = (image(), other());
                let name = digest(&right.manifest);
                let headers = [("Content-Type", MANIFEST), ("Docker-Content-Digest", &*name)];
                Served::from(wrong.clone())
                    .document(&*name, wrong.manifest, &headers)
                    .reference(format!("app@{name}"))
            },
            CHANGED,
        ),
        case(
            "index-child-changed",
            "The index is right, the manifest that it names was changed.",
            |_| {
                let (right, wrong) = (image(), other());
                let name = digest(&right.manifest);
                let entries = [right.descriptor("linux", "amd64")];
                Served::default().index(&index(entries), &[right, wrong.clone()]).document(
                    name,
                    wrong.manifest,
                    &[("Content-Type", MANIFEST)],
                )
            },
            CHANGED,
        ),
        case(
            "tag-with-a-wrong-claim",
            "A header says another digest than that of the manifest of a tag.",
            |_| {
                let headers =
                    [("Content-Type", MANIFEST), ("Docker-Content-Digest", &*digest(b"x"))];
                let image = image();
                Served::from(image.clone()).document("latest", image.manifest, &headers)
            },
            CHANGED,
        ),
        case(
            "tag-with-a-claim-that-is-none",
            "A header that should be a digest and is a path.",
            |_| {
                let headers = [("Content-Type", MANIFEST), ("Docker-Content-Digest", "../../x")];
                let image = image();
                Served::from(image.clone()).document("latest", image.manifest, &headers)
            },
            Contain(CONTENT),
        ),
        case(
            "sha512",
            "Everything is named by the longer digest.",
            |_| {
                let mut image = image();
                let long = |bytes: &[u8]| Digest::of(Algorithm::Sha512, bytes).to_string();
                let layer = &mut image.layers[0];
                layer.digest = layer.content.digest(Algorithm::Sha512).to_string();
                layer.diff_id = long(&Tar::new().file("f", "content").end());
                let image = Image::new(image.layers);
                let config = long(&image.config);
                let bytes = image.config.clone();
                let mut image =
                    image.edit_manifest(|manifest| manifest["config"]["digest"] = json!(config));
                image.claims_digest = false;
                let name = long(&image.manifest);
                Served::from(image.clone())
                    .blob(config, bytes)
                    .document(&*name, image.manifest, &[("Content-Type", MANIFEST)])
                    .reference(format!("app@{name}"))
            },
            Accept(CONTENT),
        ),
    ]);
    cases
}

fn nothing_fetched(seen: &Seen) -> anyhow::Result<()> {
    anyhow::ensure!(seen.asked("/blobs/") == 0, "a blob was asked for");
    Ok(())
}

fn diff_ids() -> Vec<Case> {
    vec![
        case(
            "diff-id-wrong",
            "The layer is what the manifest names, and not what the configuration names.",
            |_| image().edit_config(|config| config["rootfs"]["diff_ids"][0] = json!(digest(b"x"))),
            Reject(&["diff_id"]),
        ),
        case(
            "diff-ids-fewer",
            "A layer that the configuration does not know.",
            |_| image().edit_config(|config| config["rootfs"]["diff_ids"] = json!([])),
            Reject(&["diff_ids"]),
        ),
        case(
            "diff-ids-more",
            "A layer that the manifest does not know.",
            |_| {
                image().edit_config(|config| {
                    let id = config["rootfs"]["diff_ids"][0].clone();
                    config["rootfs"]["diff_ids"] = json!([id.clone(), id]);
                })
            },
            Reject(&["diff_ids"]),
        ),
        case(
            "diff-ids-swapped",
            "Two layers in the other order than the configuration has them.",
            |_| {
                let image: Image = [Tar::new().file("a", ""), Tar::new().file("b", "")].into();
                image.edit_config(|config| {
                    let ids = config["rootfs"]["diff_ids"].as_array_mut();
                    ids.into_iter().for_each(|ids| ids.reverse());
                })
            },
            Reject(&["diff_id"]),
        ),
        case(
            "diff-id-with-a-path",
            "The store names layers by diff_id: one that is a way out of it.",
            |_| {
                image().edit_config(|config| {
                    config["rootfs"]["diff_ids"][0] = json!("sha256:../../../outside/directory");
                })
            },
            Reject(&["diff_ids"]),
        ),
        case(
            "one-blob-two-diff-ids",
            "The same blob twice, as two layers: one of them is a lie.",
            |_| {
                let layer = image().layers.remove(0);
                let mut lying = layer.clone();
                lying.diff_id = digest(b"x");
                Image::new([layer, lying])
            },
            Reject(&["diff_id"]),
        ),
        case(
            "two-blobs-one-diff-id",
            "The same layer in gzip and in zstd.",
            |_| {
                let tar = Tar::new().file("f", "content").end();
                Image::new([Layer::gzip(&tar), Layer::zstd(&tar)])
            },
            Accept(CONTENT),
        ),
        case(
            "rootfs-of-another-type",
            "Not layers but something else.",
            |_| image().edit_config(|config| config["rootfs"]["type"] = json!("tree")),
            Reject(&["rootfs.type"]),
        ),
    ]
}

fn sizes() -> Vec<Case> {
    fn sized(size: Value) -> Image {
        image().edit_manifest(|manifest| manifest["layers"][0]["size"] = size)
    }
    vec![
        case(
            "layer-smaller-than-said",
            "The blob ends before its size.",
            |_| {
                let size = image().layers[0].size;
                sized(json!(size + 1))
            },
            Reject(&["descriptor says"]),
        ),
        case(
            "layer-larger-than-said",
            "The blob goes on behind its size.",
            |_| {
                let size = image().layers[0].size;
                sized(json!(size - 1))
            },
            Reject(&["descriptor says"]),
        ),
        case("size-below-zero", "A negative size.", |_| sized(json!(-1)), Reject(&["manifest"])),
        case("size-with-a-fraction", "Half a byte.", |_| sized(json!(1.5)), Reject(&["manifest"])),
        case("size-in-words", "A size in quotes.", |_| sized(json!("1")), Reject(&["manifest"])),
        case(
            "size-beyond-64-bits",
            "A size that wraps.",
            |_| {
                let image = image();
                let size = format!("\"size\":{}", image.layers[0].size);
                image.manifest_text(|text| text.replace(&size, "\"size\":18446744073709551617"))
            },
            Reject(&["manifest"]),
        ),
        case(
            "sizes-that-overflow",
            "Sizes whose sum is small again.",
            |_| {
                let layer = |i: u8| {
                    let mut layer = Layer::plain(&Tar::new().file("f", [i]).end());
                    layer.size = 1 << 63;
                    layer
                };
                Image::new([layer(0), layer(1)])
            },
            Reject(&["does not fit"]),
        )
        .audit(|seen| {
            anyhow::ensure!(seen.asked("/blobs/") <= 1, "a layer was asked for");
            Ok(())
        }),
        case(
            "config-smaller-than-said",
            "The same with the configuration.",
            |_| image().edit_manifest(|manifest| manifest["config"]["size"] = json!(100_000)),
            Reject(&["descriptor says"]),
        ),
        case(
            "manifest-smaller-than-said",
            "The same with a manifest in an index.",
            |_| {
                let image = image();
                let mut entry = image.descriptor("linux", "amd64");
                entry["size"] = json!(image.manifest.len() + 1);
                Served::default().index(&index([entry]), &[image])
            },
            Reject(&["descriptor says"]),
        ),
    ]
}

fn layers() -> Vec<Case> {
    vec![
        case(
            "layers-a-b-a",
            "The same layer below and above another: the upper one must show, none may be lost.",
            |_| {
                let a = Tar::new().file("f", "of a").file("g", "of a");
                let b = Tar::new().file("f", "of b").file("h", "of b").file(".wh.g", "");
                [a.clone(), b, a]
            },
            Accept(|tree| {
                tree.holds("f", "of a")?;
                tree.holds("g", "of a")?;
                tree.holds("h", "of b")
            }),
        ),
        case(
            "layers-hide-and-show",
            "A file, its whiteout, the file, its whiteout: the last word counts.",
            |_| {
                let file = Tar::new().file("f", "").file("g", "");
                let hidden = Tar::new().file(".wh.f", "");
                Image::new(
                    [file.clone(), hidden.clone(), file, hidden].map(|tar| Layer::gzip(&tar.end())),
                )
            },
            Accept(|tree| tree.names(".", &["g"])),
        ),
        case(
            "no-layers",
            "An image of nothing.",
            |_| Image::new([]),
            Accept(|tree| tree.names(".", &[])),
        ),
        case(
            "layer-of-every-compression",
            "Three layers, three compressions.",
            |_| {
                let tar = |name: &str| Tar::new().file(name, name).end();
                Image::new([
                    Layer::plain(&tar("plain")),
                    Layer::packed(gzip(&tar("gzip")), &tar("gzip"), "+gzip"),
                    Layer::packed(zstd(&tar("zstd")), &tar("zstd"), "+zstd"),
                ])
            },
            Accept(|tree| tree.names(".", &["gzip", "plain", "zstd"])),
        ),
        case(
            "layer-of-no-bytes",
            "A gzip file without a single byte.",
            |_| {
                let mut layer = Layer::plain(b"");
                layer.media_type = format!("{LAYER}+gzip");
                layer
            },
            Reject(&["gzip stream is broken"]),
        ),
    ]
}
