//! Reads indexes, manifests and image configurations strictly: they decide what is run.
//!
//! A document that two readers could take for two things is refused (CVE-2021-41190: one with both
//! `manifests` and `layers`, read by its media type here and by its fields there).

use std::collections::BTreeMap;
use std::sync::Arc;

use nacre_image_encryption::MEDIA_TYPE_SUFFIX;
use nacre_trust::{Digest, DigestMatch, Verified};
use oci_spec::image::{Arch, ImageConfiguration, Os};
use serde::Deserialize;

use crate::PullError;
use crate::platform::Level;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Name, size and kind of some content, taken from a verified document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    /// Bytes, exactly.
    pub(crate) size: u64,
}

/// How a layer blob is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// A layer blob as the manifest names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LayerBlob {
    pub(crate) digest: Digest,
    /// Bytes as they travel.
    pub(crate) size: u64,
    pub(crate) compression: Compression,
    /// For an encrypted layer, what its descriptor says about that.
    pub(crate) encryption: Option<Arc<Annotations>>,
}

pub(crate) type Annotations = BTreeMap<String, String>;

/// One of the two documents that a reference can name.
#[derive(Debug)]
pub(crate) enum Manifest {
    Index(Vec<Platform>),
    Image { config: Descriptor, layers: Vec<LayerBlob> },
}

/// An entry of an index.
#[derive(Debug)]
pub(crate) struct Platform {
    pub(crate) manifest: Descriptor,
    /// `os/architecture[/variant]`, if the index says.
    pub(crate) name: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    manifests: Option<Vec<RawDescriptor>>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    #[serde(rename = "fsLayers")]
    schema1_layers: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<RawPlatform>,
    annotations: Option<Annotations>,
    // `urls` and inline `data` are deliberately not read: content comes from the registry, by digest.
}

#[derive(Deserialize)]
struct RawPlatform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Manifest {
    /// Reads a manifest or index. `content_type` is what the registry says it is, `expected` what the
    /// index said; both may be absent, but none may contradict the document.
    pub(crate) fn parse(
        document: &Verified<Vec<u8>, DigestMatch>,
        content_type: Option<&str>,
        expected: Option<&str>,
    ) -> Result<Self, PullError> {
        let raw: RawDocument = serde_json::from_slice(document.get())
            .map_err(|e| bad("manifest", "JSON", format!("cannot be read: {e}")))?;
        if raw.schema1_layers.is_some() || raw.schema_version != Some(2) {
            return Err(bad(
                "manifest",
                "schemaVersion",
                "is not 2; push the image again with a current tool",
            ));
        }
        let known =
            |kind: &&str| [OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST].contains(kind);
        let said = [
            ("mediaType", raw.media_type.as_deref()),
            ("descriptor in the index", expected),
            // Some registries say application/json or text/plain: that says nothing.
            ("Content-Type", content_type.filter(known)),
        ];
        let Some(kind) = said.iter().find_map(|(_, kind)| *kind) else {
            return Err(bad("manifest", "mediaType", "is absent and the registry names none"));
        };
        if let Some((who, other)) = said
            .iter()
            .find_map(|(who, other)| other.filter(|other| *other != kind).map(|o| (who, o)))
        {
            return Err(bad(
                "manifest",
                "mediaType",
                format!("is ambiguous: {kind:?}, but its {who} says {other:?}"),
            ));
        }
        let has = (raw.manifests.is_some(), raw.config.is_some() || raw.layers.is_some());
        match kind {
            OCI_INDEX | DOCKER_INDEX if has == (true, false) => {
                read_index(raw.manifests.unwrap_or_default())
            }
            OCI_MANIFEST | DOCKER_MANIFEST if has == (false, true) => read_image(raw),
            _ if !known(&kind) => {
                Err(bad("manifest", "mediaType", format!("{kind:?} is not that of an image")))
            }
            _ => Err(bad(
                "manifest",
                "mediaType",
                format!("{kind:?} contradicts its fields (manifests, config, layers)"),
            )),
        }
    }
}

fn read_index(manifests: Vec<RawDescriptor>) -> Result<Manifest, PullError> {
    let entries = manifests.into_iter().map(|raw| {
        let name = raw.platform.as_ref().map(|platform| {
            let variant = platform.variant.as_deref().filter(|variant| !variant.is_empty());
            let slash = variant.map_or("", |_| "/");
            format!("{}/{}{slash}{}", platform.os, platform.architecture, variant.unwrap_or(""))
        });
        Ok(Platform { manifest: descriptor(raw, "index", "manifests")?, name })
    });
    Ok(Manifest::Index(entries.collect::<Result<_, PullError>>()?))
}

fn read_image(raw: RawDocument) -> Result<Manifest, PullError> {
    let (Some(config), Some(layers)) = (raw.config, raw.layers) else {
        return Err(bad("manifest", "config and layers", "must both be there"));
    };
    let config = descriptor(config, "manifest", "config")?;
    if ![OCI_CONFIG, DOCKER_CONFIG].contains(&config.media_type.as_str()) {
        let kind = raw.artifact_type.unwrap_or(config.media_type);
        return Err(bad(
            "manifest",
            "config",
            format!("this is an artifact of type {kind:?}, not a container image"),
        ));
    }
    let layers = layers.into_iter().map(|mut raw| {
        let annotations = raw.annotations.take().unwrap_or_default();
        let layer = descriptor(raw, "manifest", "layers")?;
        let packed = layer.media_type.strip_suffix(MEDIA_TYPE_SUFFIX);
        Ok(LayerBlob {
            digest: layer.digest,
            size: layer.size,
            compression: compression(packed.unwrap_or(&layer.media_type))?,
            encryption: packed.is_some().then(|| Arc::new(annotations)),
        })
    });
    Ok(Manifest::Image { config, layers: layers.collect::<Result<_, PullError>>()? })
}

fn compression(media_type: &str) -> Result<Compression, PullError> {
    match media_type {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.docker.image.rootfs.diff.tar" => Ok(Compression::None),
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Ok(Compression::Gzip),
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(Compression::Zstd),
        other => Err(bad(
            "manifest",
            "layers",
            if other.contains("nondistributable") || other.contains("foreign") {
                format!(
                    "a layer of type {other:?} is kept outside the registry; such layers are not \
                     fetched"
                )
            } else {
                format!("{other:?} is not a layer type (tar, gzip or zstd) of a container image")
            },
        )),
    }
}

fn descriptor(
    raw: RawDescriptor,
    document: &'static str,
    field: &'static str,
) -> Result<Descriptor, PullError> {
    let digest = raw.digest.parse().map_err(|e| bad(document, field, format!("{e}")))?;
    Ok(Descriptor { media_type: raw.media_type, digest, size: raw.size })
}

/// The one manifest of an index for linux/amd64: of several, the one that asks least of the processor,
/// so that guest and owner agree whatever machine they are on. Which levels this processor has is for
/// [`crate::platform`] to say.
pub(crate) fn for_this_guest(entries: &[Platform]) -> Result<(&Descriptor, Level), PullError> {
    let is_image = |entry: &&Platform| {
        [OCI_MANIFEST, DOCKER_MANIFEST].contains(&entry.manifest.media_type.as_str())
    };
    let images = entries.iter().filter(is_image);
    let level = |entry: &Platform| {
        let rest = entry.name.as_deref()?.strip_prefix("linux/amd64")?;
        Level::of_variant(rest.strip_prefix('/').or_else(|| rest.is_empty().then_some(""))?)
    };
    let fitting = images.filter_map(|entry| Some((entry, level(entry)?)));
    // The first of equal ones, as others read it.
    if let Some((entry, level)) = fitting.min_by_key(|(_, level)| *level) {
        return Ok((&entry.manifest, level));
    }
    // An index that names no platform but has one image: the configuration will tell.
    if let [only] = entries
        && is_image(&only)
        && only.name.is_none()
    {
        return Ok((&only.manifest, Level::V1));
    }
    let mut offered: Vec<&str> = entries.iter().filter_map(|entry| entry.name.as_deref()).collect();
    offered.sort_unstable();
    offered.dedup();
    offered.truncate(20);
    let offered = if offered.is_empty() { "none by name".into() } else { offered.join(", ") };
    Err(bad("index", "manifests", format!("has no image for linux/amd64, but {offered}")))
}

/// The image configuration, and what each layer must be once unpacked.
pub(crate) fn read_config(
    document: &Verified<Vec<u8>, DigestMatch>,
    layers: usize,
) -> Result<(ImageConfiguration, Vec<Digest>), PullError> {
    let bad = |field, problem: String| bad("image configuration", field, problem);
    let config: ImageConfiguration = serde_json::from_slice(document.get())
        .map_err(|e| bad("JSON", format!("cannot be read: {e}")))?;
    if (config.os(), config.architecture()) != (&Os::Linux, &Arch::Amd64) {
        return Err(bad(
            "os and architecture",
            format!("are {}/{}; this guest runs linux/amd64", config.os(), config.architecture()),
        ));
    }
    let variant = config.variant().as_deref().unwrap_or_default();
    if Level::of_variant(variant).is_none() {
        return Err(bad("variant", format!("{variant:?} of amd64 is not known: v1 to v4 are")));
    }
    if config.rootfs().typ() != "layers" {
        return Err(bad("rootfs.type", "is not \"layers\"".into()));
    }
    let diff_ids: Vec<Digest> = config
        .rootfs()
        .diff_ids()
        .iter()
        .map(|text| text.parse().map_err(|e| bad("rootfs.diff_ids", format!("{e}"))))
        .collect::<Result<_, _>>()?;
    if diff_ids.len() != layers {
        return Err(bad(
            "rootfs.diff_ids",
            format!("are {}, but the manifest has {layers} layers", diff_ids.len()),
        ));
    }
    Ok((config, diff_ids))
}

fn bad(document: &'static str, field: &'static str, problem: impl Into<String>) -> PullError {
    PullError::Document { document, field, problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_trust::{Algorithm, Untrusted};
    use proptest::prelude::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn verified(text: &str) -> Verified<Vec<u8>, DigestMatch> {
        let content = Untrusted::new(text.as_bytes().to_vec());
        let digest = content.digest(Algorithm::Sha256);
        content.verify_digest(&digest).unwrap()
    }

    fn descriptor(kind: &str) -> String {
        format!(r#"{{"mediaType":"{kind}","digest":"{D}","size":3}}"#)
    }

    fn image(layer: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{},"layers":[{}]}}"#,
            descriptor(OCI_CONFIG),
            descriptor(layer)
        )
    }

    fn problem(text: &str, content_type: Option<&str>, expected: Option<&str>) -> String {
        Manifest::parse(&verified(text), content_type, expected).expect_err(text).to_string()
    }

    #[test]
    fn both_families_of_media_types_are_read() {
        for layer in [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        ] {
            let parsed = Manifest::parse(&verified(&image(layer)), Some(OCI_MANIFEST), None);
            assert!(matches!(parsed, Ok(Manifest::Image { layers, .. }) if layers[0].size == 3));
        }
        let silent = image("application/vnd.oci.image.layer.v1.tar")
            .replace(&format!(r#""mediaType":"{OCI_MANIFEST}","#), "");
        assert!(Manifest::parse(&verified(&silent), Some(OCI_MANIFEST), None).is_ok());
        assert!(
            Manifest::parse(&verified(&silent), Some("text/plain"), Some(OCI_MANIFEST)).is_ok()
        );
        assert!(problem(&silent, Some("text/plain"), None).contains("absent"));
    }

    #[test]
    fn confusion_is_refused() {
        let good = image("application/vnd.oci.image.layer.v1.tar");
        assert!(problem(&good, Some(OCI_INDEX), None).contains("ambiguous"));
        assert!(problem(&good, None, Some(DOCKER_MANIFEST)).contains("ambiguous"));
        let both = good.replace("\"layers\"", "\"manifests\":[],\"layers\"");
        assert!(problem(&both, None, None).contains("contradicts"));
        assert!(
            problem(&both.replace(OCI_MANIFEST, OCI_INDEX), None, None).contains("contradicts")
        );
        let twice = good.replace("\"layers\"", "\"layers\":[],\"layers\"");
        assert!(problem(&twice, None, None).contains("duplicate"));
        let old = good.replace("\"schemaVersion\":2", "\"schemaVersion\":1");
        assert!(problem(&old, None, None).contains("schemaVersion"));
        let schema1 = good.replace("\"layers\"", "\"fsLayers\":[],\"layers\"");
        assert!(problem(&schema1, None, None).contains("schemaVersion"));
        assert!(problem(&good.replace("\"size\":3", "\"size\":-3"), None, None).contains("JSON"));
        assert!(problem(&good.replace(D, "sha256:../x"), None, None).contains("config"));
    }

    #[test]
    fn what_is_not_an_image_is_named() {
        for (kind, says) in [
            ("application/vnd.oci.image.layer.v1.tar+lzma+encrypted", "not a layer type"),
            ("application/vnd.oci.image.layer.v1.tar+encrypted+encrypted", "not a layer type"),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "outside the registry"),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar", "outside the registry"),
            ("application/vnd.wasm.content.layer.v1+wasm", "not a layer type"),
        ] {
            assert!(problem(&image(kind), None, None).contains(says), "{kind}");
        }
        let artifact = image("application/vnd.oci.image.layer.v1.tar")
            .replace(OCI_CONFIG, "application/vnd.cncf.helm.config.v1+json");
        assert!(problem(&artifact, None, None).contains("artifact"));
        assert!(problem("[]", None, None).contains("JSON"));
    }

    #[test]
    fn the_platform_is_picked_or_the_choice_is_shown() {
        let entry = |platform: &str| {
            format!(r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{D}","size":3{platform}}}"#)
        };
        let platform = |os: &str, arch: &str| {
            entry(&format!(r#","platform":{{"os":"{os}","architecture":"{arch}"}}"#))
        };
        let index = |entries: &[String]| {
            let text = format!(
                r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{}]}}"#,
                entries.join(",")
            );
            match Manifest::parse(&verified(&text), None, None).unwrap() {
                Manifest::Index(entries) => entries,
                other @ Manifest::Image { .. } => panic!("{other:?}"),
            }
        };
        assert!(
            for_this_guest(&index(&[platform("linux", "arm64"), platform("linux", "amd64")]))
                .is_ok()
        );
        assert!(for_this_guest(&index(&[entry("")])).is_ok());
        let others = index(&[platform("linux", "arm64"), platform("unknown", "unknown")]);
        let other = for_this_guest(&others);
        assert!(other.unwrap_err().to_string().contains("linux/arm64"));
        assert!(for_this_guest(&index(&[entry(""), entry("")])).is_err());
        assert!(for_this_guest(&index(&[])).is_err());
    }

    #[test]
    fn encrypted_layers_keep_their_annotations() {
        let kind = "application/vnd.oci.image.layer.v1.tar+zstd+encrypted";
        let text = image(kind).replace(
            "\"size\":3}]",
            r#""size":3,"annotations":{"org.opencontainers.image.enc.pubopts":"x"}}]"#,
        );
        let parsed = Manifest::parse(&verified(&text), None, None).unwrap();
        let Manifest::Image { layers, .. } = parsed else { panic!("{parsed:?}") };
        assert_eq!(layers[0].compression, Compression::Zstd);
        let annotations = layers[0].encryption.as_ref().unwrap();
        assert_eq!(annotations["org.opencontainers.image.enc.pubopts"], "x");
    }

    #[test]
    fn the_variant_that_asks_least_is_picked() {
        let entry = |variant: &str, size: u64| {
            let name = format!("linux/amd64{variant}");
            let manifest =
                Descriptor { media_type: OCI_MANIFEST.into(), digest: D.parse().unwrap(), size };
            Platform { manifest, name: Some(name) }
        };
        let pick = |entries: &[Platform]| {
            for_this_guest(entries).map(|(picked, level)| (picked.size, level)).ok()
        };
        let v3 = || entry("/v3", 3);
        assert_eq!(pick(&[v3(), entry("/v2", 2), entry("", 1)]), Some((1, Level::V1)));
        assert_eq!(pick(&[v3(), entry("/v1", 1), entry("", 7)]), Some((1, Level::V1)));
        assert_eq!(pick(&[v3(), entry("/v4", 4)]), Some((3, Level::V3)));
        assert_eq!(pick(&[entry("/v9", 9), entry("x", 8)]), None);
    }

    #[test]
    fn the_configuration_must_fit_the_guest_and_the_layers() {
        let config = |os: &str, arch: &str, ids: &str| {
            format!(
                r#"{{"os":"{os}","architecture":"{arch}","rootfs":{{"type":"layers","diff_ids":[{ids}]}}}}"#
            )
        };
        let id = format!("\"{D}\"");
        let read =
            |text: &str, layers| read_config(&verified(text), layers).map(|(_, ids)| ids.len());
        assert_eq!(read(&config("linux", "amd64", &id), 1).unwrap(), 1);
        for (text, layers, says) in [
            (config("linux", "arm64", &id), 1, "linux/arm64"),
            (config("windows", "amd64", &id), 1, "windows/amd64"),
            (config("linux", "amd64\",\"variant\":\"v9", &id), 1, "v9"),
            (config("linux", "amd64", &id), 2, "diff_ids"),
            (config("linux", "amd64", &id), 0, "diff_ids"),
            (config("linux", "amd64", "\"sha256:x\""), 1, "diff_ids"),
            (config("linux", "amd64", &id).replace("layers", "tree"), 1, "rootfs.type"),
            ("{}".into(), 0, "JSON"),
        ] {
            assert!(read(&text, layers).unwrap_err().to_string().contains(says), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
            let _ = Manifest::parse(&verified(&text), None, Some(OCI_MANIFEST));
            let _ = read_config(&verified(&text), 1);
        }
    }
}
