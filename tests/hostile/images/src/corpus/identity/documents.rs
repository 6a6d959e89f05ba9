//! Manifests, configurations and indexes that say what cannot be.

use serde_json::{Value, json};

use super::{CONTENT, case, image, nothing_fetched};
use crate::case::Expect::{Accept, Contain, Reject};
use crate::case::{Case, Hosts};
use crate::image::{CONFIG, INDEX, MANIFEST, descriptor, digest, index};
use crate::registry::Served;

pub(super) fn documents() -> Vec<Case> {
    type Edit = fn(String) -> String;
    let texts: [(&'static str, &'static str, Edit); 6] = [
        (
            "manifest-with-two-layers-fields",
            "A field twice: the first or the last may count.",
            |text| text.replacen('{', "{\"layers\":[],", 1),
        ),
        ("manifest-with-two-config-fields", "The same with the configuration.", |text| {
            let config = descriptor(CONFIG, b"{}");
            text.replacen('{', &format!("{{\"config\":{config},"), 1)
        }),
        ("manifest-with-a-second-document", "A second document behind the first.", |text| {
            text + "{\"schemaVersion\":2}"
        }),
        ("manifest-with-a-byte-order-mark", "A mark that some readers skip.", |text| {
            format!("\u{feff}{text}")
        }),
        ("manifest-cut", "Half a manifest.", |text| text[..text.len() / 2].to_owned()),
        ("manifest-of-a-web-page", "What a captive portal sends.", |_| {
            "<!doctype html><title>Log in</title>".to_owned()
        }),
    ];
    let mut cases: Vec<Case> = texts
        .into_iter()
        .map(|(name, attack, edit)| {
            let make = move |_: &Hosts| image().manifest_text(edit);
            case(name, attack, make, Reject(&["manifest", "JSON"])).audit(nothing_fetched)
        })
        .collect();
    cases.extend([
        case(
            "manifest-and-index-in-one",
            "A document with layers and manifests: an image for one reader, an index for the other \
             (CVE-2021-41190).",
            |_| image().edit_manifest(|manifest| manifest["manifests"] = json!([])),
            Reject(&["contradicts"]),
        ),
        case(
            "index-and-manifest-in-one",
            "The same, called an index.",
            |_| {
                let other = image().descriptor("linux", "amd64");
                let index = image().edit_manifest(|manifest| {
                    manifest["manifests"] = json!([other]);
                    manifest["mediaType"] = json!(INDEX);
                });
                index.content_type(Some(INDEX))
            },
            Reject(&["contradicts"]),
        ),
        case(
            "type-against-content-type",
            "The document says manifest, the registry says index (CVE-2021-41190).",
            |_| image().content_type(Some(INDEX)),
            Reject(&["ambiguous"]),
        ),
        case(
            "type-against-index",
            "The index says that its child is an index, the child says manifest.",
            |_| {
                let image = image();
                let mut entry = image.descriptor("linux", "amd64");
                entry["mediaType"] = json!("application/vnd.docker.distribution.manifest.v2+json");
                Served::default().index(&index([entry]), &[image])
            },
            Reject(&["ambiguous"]),
        ),
        case(
            "no-type-at-all",
            "Neither the document nor the registry says what it is.",
            |_| {
                image()
                    .edit_manifest(|manifest| manifest["mediaType"] = Value::Null)
                    .content_type(None)
            },
            Reject(&["mediaType"]),
        ),
        case(
            "type-from-the-registry-only",
            "The document does not say what it is; OCI lets it.",
            |_| image().edit_manifest(|manifest| manifest["mediaType"] = Value::Null),
            Accept(CONTENT),
        ),
        case(
            "type-with-parameters",
            "A Content-Type with capitals and a character set.",
            |_| {
                let kind = MANIFEST.replace("application", "Application") + " ; charset=utf-8";
                image().content_type(Some(&kind))
            },
            Accept(CONTENT),
        ),
        case(
            "schema-1",
            "A manifest of 2014, whose digest does not cover what is run.",
            |_| {
                image().edit_manifest(|manifest| {
                    *manifest = json!({
                        "schemaVersion": 1,
                        "name": "app",
                        "tag": "latest",
                        "fsLayers": [{ "blobSum": digest(b"x") }],
                        "history": [],
                    });
                })
            },
            Reject(&["schemaVersion"]),
        ),
        case(
            "index-in-an-index",
            "An index whose entry is an index: a chain without end.",
            |_| {
                let image = image();
                let inner = index([image.descriptor("linux", "amd64")]);
                let body = inner.to_string().into_bytes();
                let mut entry = descriptor(INDEX, &body);
                entry["platform"] = json!({ "os": "linux", "architecture": "amd64" });
                Served::default().index(&index([entry]), &[image]).document(
                    digest(&body),
                    &*body,
                    &[("Content-Type", INDEX)],
                )
            },
            Reject(&["index"]),
        ),
        case(
            "inline-data",
            "A descriptor that brings its own content, another than its digest names.",
            |_| {
                image().edit_manifest(|manifest| {
                    manifest["config"]["data"] = json!("e30=");
                    manifest["layers"][0]["data"] = json!("e30=");
                })
            },
            Contain(CONTENT),
        ),
        case(
            "config-cut",
            "A configuration that is no document.",
            |_| image().raw_config("{\"os\":\"linux\""),
            Reject(&["image configuration"]),
        ),
    ]);
    cases
}
