//! Images as a registry holds them. Everything is public or can be edited: to lie is the purpose.

use nacre_trust::{Algorithm, Digest};
use serde_json::{Value, json};

use crate::compression::{gzip, zstd};
use crate::content::Content;
use crate::tar::Tar;

/// Media type of an OCI image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an OCI index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of an OCI image configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of a layer that is not compressed; `+gzip` and `+zstd` are the others.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// SHA-256 in the form that documents have.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    Digest::of(Algorithm::Sha256, bytes).to_string()
}

/// A layer: what is served, and what documents say about it.
#[derive(Clone)]
pub struct Layer {
    /// What the registry sends.
    pub content: Content,
    /// Digest in the manifest.
    pub digest: String,
    /// Size in the manifest, in bytes.
    pub size: u64,
    /// Digest in the configuration.
    pub diff_id: String,
    /// Media type in the manifest.
    pub media_type: String,
}

impl Layer {
    /// An archive as it is.
    #[must_use]
    pub fn plain(tar: &[u8]) -> Self {
        Self::packed(tar, tar, "")
    }

    /// An archive in gzip.
    #[must_use]
    pub fn gzip(tar: &[u8]) -> Self {
        Self::packed(gzip(tar), tar, "+gzip")
    }

    /// An archive in zstd.
    #[must_use]
    pub fn zstd(tar: &[u8]) -> Self {
        Self::packed(zstd(tar), tar, "+zstd")
    }

    /// A blob that unpacks to `tar`, if the media type with `suffix` says how.
    #[must_use]
    pub fn packed(blob: impl Into<Content>, tar: &[u8], suffix: &str) -> Self {
        Self::named(blob, digest(tar), suffix)
    }

    /// A blob of which nobody will ever see the whole archive.
    #[must_use]
    pub fn endless(blob: impl Into<Content>, suffix: &str) -> Self {
        Self::named(blob, digest(b"never reached"), suffix)
    }

    fn named(blob: impl Into<Content>, diff_id: String, suffix: &str) -> Self {
        let content = blob.into();
        Self {
            digest: content.digest(Algorithm::Sha256).to_string(),
            size: content.len(),
            diff_id,
            media_type: format!("{LAYER}{suffix}"),
            content,
        }
    }
}

/// An image of honest documents, until they are edited.
#[derive(Clone)]
pub struct Image {
    /// Bottom first.
    pub layers: Vec<Layer>,
    /// The configuration as it is served.
    pub config: Vec<u8>,
    /// The manifest as it is served.
    pub manifest: Vec<u8>,
    /// `Content-Type` of the manifest.
    pub content_type: Option<String>,
    /// Whether `Docker-Content-Digest` tells the manifest's real digest.
    pub claims_digest: bool,
}

impl Image {
    /// An image for linux/amd64.
    #[must_use]
    pub fn new(layers: impl Into<Vec<Layer>>) -> Self {
        let layers = layers.into();
        let ids: Vec<&str> = layers.iter().map(|layer| &*layer.diff_id).collect();
        let config = json!({
            "os": "linux",
            "architecture": "amd64",
            "config": { "Cmd": ["/bin/x"] },
            "rootfs": { "type": "layers", "diff_ids": ids },
        });
        Self::with_config(layers, config.to_string().into_bytes())
    }

    fn with_config(layers: Vec<Layer>, config: Vec<u8>) -> Self {
        let descriptors: Vec<Value> = layers
            .iter()
            .map(|layer| {
                json!({ "mediaType": layer.media_type, "digest": layer.digest, "size": layer.size })
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config),
            "layers": descriptors,
        });
        Self {
            layers,
            config,
            manifest: manifest.to_string().into_bytes(),
            content_type: Some(MANIFEST.to_owned()),
            claims_digest: true,
        }
    }

    /// Changes the configuration; the manifest then names the changed one.
    #[must_use]
    pub fn edit_config(self, edit: impl FnOnce(&mut Value)) -> Self {
        let config = edited(&self.config, edit);
        Self::with_config(self.layers, config)
    }

    /// Puts any bytes in the configuration's place.
    #[must_use]
    pub fn raw_config(self, config: impl Into<Vec<u8>>) -> Self {
        Self::with_config(self.layers, config.into())
    }

    /// Changes the manifest.
    #[must_use]
    pub fn edit_manifest(mut self, edit: impl FnOnce(&mut Value)) -> Self {
        self.manifest = edited(&self.manifest, edit);
        self
    }

    /// Changes the manifest's text, into what no JSON value can say.
    #[must_use]
    pub fn manifest_text(mut self, edit: impl FnOnce(String) -> String) -> Self {
        self.manifest = edit(String::from_utf8_lossy(&self.manifest).into_owned()).into_bytes();
        self
    }

    /// Changes what the registry calls the manifest.
    #[must_use]
    pub fn content_type(mut self, kind: Option<&str>) -> Self {
        self.content_type = kind.map(str::to_owned);
        self
    }

    /// The descriptor of this image's manifest in an index.
    #[must_use]
    pub fn descriptor(&self, os: &str, architecture: &str) -> Value {
        let mut value = descriptor(MANIFEST, &self.manifest);
        value["platform"] = json!({ "os": os, "architecture": architecture });
        value
    }
}

impl From<Tar> for Image {
    fn from(tar: Tar) -> Self {
        Self::new([Layer::gzip(&tar.end())])
    }
}

impl<const N: usize> From<[Tar; N]> for Image {
    fn from(tars: [Tar; N]) -> Self {
        Self::new(tars.map(|tar| Layer::gzip(&tar.end())))
    }
}

impl From<Layer> for Image {
    fn from(layer: Layer) -> Self {
        Self::new([layer])
    }
}

fn edited(document: &[u8], edit: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut value = serde_json::from_slice(document).expect("a document of ours");
    edit(&mut value);
    value.to_string().into_bytes()
}

/// Type, digest and size of some content.
#[must_use]
pub fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(content), "size": content.len() })
}

/// An index of the given descriptors.
#[must_use]
pub fn index(entries: impl Into<Vec<Value>>) -> Value {
    let entries: Vec<Value> = entries.into();
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries })
}
