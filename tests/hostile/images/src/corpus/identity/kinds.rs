//! Media types that are confused, and images for other machines.

use serde_json::json;

use super::{CONTENT, case, image, other};
use crate::case::Expect::{Accept, Contain, Reject};
use crate::case::{Case, Expect, Hosts, Seen};
use crate::image::{Image, MANIFEST, descriptor, digest, index};
use crate::registry::Served;
use crate::tar::Tar;

pub(super) fn types() -> Vec<Case> {
    let kinds: [(&'static str, &'static str, &'static str, Expect); 6] = [
        (
            "layer-of-wasm",
            "A layer that is a program for another machine.",
            "application/vnd.wasm.content.layer.v1+wasm",
            Reject(&["not a layer type"]),
        ),
        (
            "layer-of-unknown-compression",
            "A compression that nobody here has.",
            "application/vnd.oci.image.layer.v1.tar+xz",
            Reject(&["not a layer type"]),
        ),
        (
            "layer-compressed-twice",
            "A type that says gzip twice.",
            "application/vnd.oci.image.layer.v1.tar+gzip+gzip",
            Reject(&["not a layer type"]),
        ),
        ("layer-without-a-type", "An empty type.", "", Reject(&["not a layer type"])),
        (
            "layer-encrypted-without-keys",
            "A layer that says it is encrypted, and not how.",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            Reject(&["encrypt"]),
        ),
        (
            "layer-of-docker",
            "The name that Docker gives to the same.",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            Accept(CONTENT),
        ),
    ];
    let mut cases: Vec<Case> = kinds
        .into_iter()
        .map(|(name, attack, kind, expect)| {
            let make = move |_: &Hosts| {
                image().edit_manifest(|manifest| manifest["layers"][0]["mediaType"] = json!(kind))
            };
            case(name, attack, make, expect)
        })
        .collect();
    cases.extend([
        case(
            "artifact",
            "A chart, which is stored like an image.",
            |_| {
                image().edit_manifest(|manifest| {
                    manifest["config"]["mediaType"] =
                        json!("application/vnd.cncf.helm.config.v1+json");
                })
            },
            Reject(&["artifact"]),
        ),
        case(
            "foreign-layer",
            "A layer that is kept elsewhere: its address must never be asked.",
            |hosts| {
                let url = format!("http://{}/layer", hosts.other);
                image().edit_manifest(|manifest| {
                    manifest["layers"][0]["mediaType"] =
                        json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
                    manifest["layers"][0]["urls"] = json!([url]);
                })
            },
            Reject(&["outside the registry"]),
        )
        .audit(nobody_else),
        case(
            "nondistributable-layer",
            "The same in OCI's words.",
            |hosts| {
                let url = format!("http://{}/layer", hosts.other);
                image().edit_manifest(|manifest| {
                    manifest["layers"][0]["mediaType"] =
                        json!("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip");
                    manifest["layers"][0]["urls"] = json!([url]);
                })
            },
            Reject(&["outside the registry"]),
        )
        .audit(nobody_else),
        case(
            "urls-of-an-ordinary-layer",
            "An ordinary layer, config and manifest with addresses elsewhere: nobody asks there.",
            |hosts| {
                let url = format!("http://{}/elsewhere", hosts.other);
                let image = image().edit_manifest(|manifest| {
                    manifest["layers"][0]["urls"] = json!([url]);
                    manifest["config"]["urls"] = json!([url]);
                });
                let mut entry = image.descriptor("linux", "amd64");
                entry["urls"] = json!([url]);
                Served::default().index(&index([entry]), &[image])
            },
            Contain(CONTENT),
        )
        .audit(nobody_else),
        case(
            "urls-of-a-missing-layer",
            "The registry does not have the layer, but an address where it is.",
            |hosts| {
                let url = format!("http://{}/elsewhere", hosts.other);
                image().edit_manifest(|manifest| {
                    manifest["layers"][0]["digest"] = json!(digest(b"missing"));
                    manifest["layers"][0]["urls"] = json!([url]);
                })
            },
            Reject(&["has no layer"]),
        )
        .audit(nobody_else),
    ]);
    cases
}

fn nobody_else(seen: &Seen) -> anyhow::Result<()> {
    anyhow::ensure!(seen.other.is_empty(), "another server was asked: {:?}", seen.other);
    Ok(())
}

pub(super) fn platforms() -> Vec<Case> {
    fn of(os: &str, architecture: &str) -> Image {
        let image: Image = Tar::new().file("f", format!("{os}/{architecture}")).into();
        image.edit_config(|config| {
            config["os"] = json!(os);
            config["architecture"] = json!(architecture);
        })
    }
    vec![
        case(
            "image-of-another-machine",
            "An image for another processor.",
            |_| of("linux", "arm64"),
            Reject(&["linux/arm64"]),
        ),
        case(
            "image-of-another-system",
            "An image for another system.",
            |_| of("windows", "amd64"),
            Reject(&["windows/amd64"]),
        ),
        case(
            "index-without-our-platform",
            "An index of others; the error names them.",
            |_| {
                let others = [of("linux", "arm64"), of("windows", "amd64")];
                let entries = [
                    others[0].descriptor("linux", "arm64"),
                    others[1].descriptor("windows", "amd64"),
                ];
                Served::default().index(&index(entries), &others)
            },
            Reject(&["linux/amd64", "linux/arm64"]),
        ),
        case(
            "index-lies-about-the-platform",
            "The index says amd64, the configuration arm64.",
            |_| {
                let image = of("linux", "arm64");
                let entry = image.descriptor("linux", "amd64");
                Served::default().index(&index([entry]), &[image])
            },
            Reject(&["linux/arm64"]),
        ),
        case(
            "index-empty",
            "An index of nothing.",
            |_| Served::default().index(&index([]), &[]),
            Reject(&["index"]),
        ),
        case(
            "index-of-two-without-platforms",
            "Two images and no word on which is whose: none is guessed.",
            |_| {
                let images = [image(), other()];
                let entries = images.each_ref().map(|image| descriptor(MANIFEST, &image.manifest));
                Served::default().index(&index(entries), &images)
            },
            Reject(&["index"]),
        ),
        case(
            "index-with-attestations",
            "BuildKit's index: what comes with unknown/unknown is no image.",
            |_| {
                let (image, attestation) = (image(), other());
                let entries = [
                    attestation.descriptor("unknown", "unknown"),
                    image.descriptor("linux", "amd64"),
                ];
                Served::default().index(&index(entries), &[image, attestation])
            },
            Accept(CONTENT),
        ),
        case(
            "index-with-a-better-variant",
            "Two images for amd64, one of them for newer processors than there may be.",
            |_| {
                let (image, newer) = (image(), other());
                let mut entry = newer.descriptor("linux", "amd64");
                entry["platform"]["variant"] = json!("v4");
                let entries = [entry, image.descriptor("linux", "amd64")];
                Served::default().index(&index(entries), &[image, newer])
            },
            Accept(CONTENT),
        ),
        case(
            "index-names-our-platform-twice",
            "Two images for the same platform: the first counts, as everywhere.",
            |_| {
                let images = [image(), other()];
                let entries = images.each_ref().map(|image| image.descriptor("linux", "amd64"));
                Served::default().index(&index(entries), &images)
            },
            Accept(CONTENT),
        ),
    ]
}
