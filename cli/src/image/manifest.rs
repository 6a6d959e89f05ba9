//! Manifests of images, read and written again with what this program does not know.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Docker's names of layers, and what the same content is called in OCI's.
const LAYERS: [(&str, &str); 3] = [
    ("application/vnd.docker.image.rootfs.diff.tar", "application/vnd.oci.image.layer.v1.tar"),
    (
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.oci.image.layer.v1.tar+gzip",
    ),
    (
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "application/vnd.oci.image.layer.v1.tar+zstd",
    ),
];

/// Name, size and kind of some content.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(flatten)]
    pub(super) others: Map<String, Value>,
}

/// An image's manifest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    schema_version: u64,
    #[serde(default)]
    media_type: String,
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// A list of images.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Index {
    schema_version: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    media_type: String,
    #[serde(default)]
    pub(super) manifests: Vec<Descriptor>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

impl Descriptor {
    /// Of content without annotations.
    pub(super) fn new(media_type: &str, digest: &nacre_trust::Digest, size: u64) -> Descriptor {
        Descriptor {
            media_type: media_type.to_owned(),
            digest: digest.to_string(),
            size,
            annotations: BTreeMap::new(),
            others: Map::new(),
        }
    }

    pub(super) fn digest(&self) -> anyhow::Result<nacre_trust::Digest> {
        self.digest.parse().with_context(|| format!("digest {:?}", self.digest))
    }

    pub(super) fn is_index(&self) -> bool {
        [OCI_INDEX, DOCKER_INDEX].contains(&self.media_type.as_str())
    }

    /// `os/architecture[/variant]`, if an index says so.
    pub(super) fn platform(&self) -> Option<String> {
        let platform = self.others.get("platform")?;
        let part = |name: &str| platform.get(name).and_then(Value::as_str);
        let variant = part("variant").map(|variant| format!("/{variant}")).unwrap_or_default();
        Some(format!("{}/{}{variant}", part("os")?, part("architecture")?))
    }
}

impl Manifest {
    pub(super) fn parse(document: &[u8]) -> anyhow::Result<Manifest> {
        let manifest: Manifest =
            serde_json::from_slice(document).context("the manifest is not one of an image")?;
        ensure!(manifest.schema_version == 2, "the manifest's schemaVersion is not 2");
        let kind = manifest.config.media_type.as_str();
        ensure!(
            [OCI_CONFIG, DOCKER_CONFIG].contains(&kind),
            "this is an artifact of type {kind:?}, not a container image"
        );
        Ok(manifest)
    }

    /// The same image by OCI's names: encrypted layers have no other.
    ///
    /// # Errors
    /// If a layer has no such name.
    pub(super) fn into_oci(mut self) -> anyhow::Result<Manifest> {
        OCI_MANIFEST.clone_into(&mut self.media_type);
        OCI_CONFIG.clone_into(&mut self.config.media_type);
        for layer in &mut self.layers {
            let kind = &mut layer.media_type;
            if let Some((_, oci)) = LAYERS.iter().find(|(docker, _)| docker == kind) {
                (*oci).clone_into(kind);
            }
            let plain = kind.strip_suffix("+encrypted").unwrap_or(kind);
            if !LAYERS.iter().any(|(_, oci)| *oci == plain) {
                bail!("a layer of type {kind:?} is not kept in registries and is not fetched");
            }
        }
        Ok(self)
    }

    pub(super) fn to_bytes(&self) -> anyhow::Result<Vec<u8>> {
        Ok(serde_json::to_vec(self)?)
    }
}

impl Index {
    /// Without any image.
    pub(super) fn new() -> Index {
        let (manifests, others) = (Vec::new(), Map::new());
        Index { schema_version: 2, media_type: OCI_INDEX.to_owned(), manifests, others }
    }

    pub(super) fn parse(document: &[u8]) -> anyhow::Result<Index> {
        serde_json::from_slice(document).context("the index is malformed")
    }

    /// The one entry for linux/amd64, what guests are. Attestations and the like name no such platform.
    pub(super) fn for_guests(&self) -> anyhow::Result<&Descriptor> {
        let image = |entry: &&Descriptor| {
            [OCI_MANIFEST, DOCKER_MANIFEST].contains(&entry.media_type.as_str())
        };
        let images: Vec<&Descriptor> = self.manifests.iter().filter(image).collect();
        let fits = |entry: &&&Descriptor| {
            entry.platform().is_some_and(|name| name == "linux/amd64" || name == "linux/amd64/v1")
        };
        match (images.iter().find(fits), images.as_slice()) {
            (Some(entry), _) => Ok(entry),
            (None, [only]) if only.platform().is_none() => Ok(only),
            _ => bail!("the index has no image for linux/amd64"),
        }
    }
}

/// What a verified index or manifest is; some say it only by what they have.
pub(super) fn media_type(document: &[u8]) -> anyhow::Result<String> {
    let document: Map<String, Value> =
        serde_json::from_slice(document).context("the manifest is no JSON object")?;
    let said = document.get("mediaType").and_then(Value::as_str);
    let has = if document.contains_key("manifests") { OCI_INDEX } else { OCI_MANIFEST };
    Ok(said.unwrap_or(has).to_owned())
}

/// As people read it.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let unit = UNITS.iter().find(|(_, bits)| bytes >> bits > 0);
    match unit {
        None => format!("{bytes} B"),
        Some((unit, bits)) => {
            let tenths = (u128::from(bytes) * 10) >> bits;
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, shown) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB")]
        {
            assert_eq!(size(bytes), shown);
        }
    }

    #[test]
    fn manifests_keep_what_is_unknown_and_become_ocis() {
        let document = serde_json::json!({
            "schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "annotations": {"a": "b"},
            "config": {"mediaType": DOCKER_CONFIG, "digest": "sha256:00", "size": 1},
            "layers": [{"mediaType": LAYERS[1].0, "digest": "sha256:01", "size": 2, "x": 3}],
        });
        let manifest = Manifest::parse(document.to_string().as_bytes()).unwrap();
        let made: Value =
            serde_json::from_slice(&manifest.into_oci().unwrap().to_bytes().unwrap()).unwrap();
        assert_eq!(made["mediaType"], OCI_MANIFEST);
        assert_eq!(made["config"]["mediaType"], OCI_CONFIG);
        assert_eq!(made["layers"][0]["mediaType"], LAYERS[1].1);
        assert_eq!((&made["layers"][0]["x"], &made["annotations"]["a"]), (&3.into(), &"b".into()));
    }

    #[test]
    fn other_documents_are_no_images() {
        for (config, layer, expected) in [
            ("application/vnd.example", LAYERS[0].1, "artifact"),
            (OCI_CONFIG, "application/vnd.oci.image.layer.nondistributable.v1.tar", "not kept"),
        ] {
            let document = serde_json::json!({
                "schemaVersion": 2,
                "config": {"mediaType": config, "digest": "sha256:00", "size": 1},
                "layers": [{"mediaType": layer, "digest": "sha256:01", "size": 2}],
            });
            let read = Manifest::parse(document.to_string().as_bytes());
            let error = read.and_then(Manifest::into_oci).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_guests_image_of_an_index() {
        let entry = |platform: Value| {
            serde_json::json!({"mediaType": OCI_MANIFEST, "digest": "sha256:00", "size": 1,
                "platform": platform})
        };
        let index = |entries: &[Value]| -> Index {
            serde_json::from_value(serde_json::json!({"schemaVersion": 2, "manifests": entries}))
                .unwrap()
        };
        let arm = entry(serde_json::json!({"os": "linux", "architecture": "arm64"}));
        let amd = entry(serde_json::json!({"os": "linux", "architecture": "amd64"}));
        assert!(index(&[arm.clone(), amd]).for_guests().is_ok());
        assert!(index(&[arm]).for_guests().is_err());
        assert!(index(&[entry(Value::Null)]).for_guests().is_ok());
        assert!(index(&[]).for_guests().is_err());
    }
}
