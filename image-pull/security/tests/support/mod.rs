//! A registry, a signature store and a key broker in memory.

#![allow(dead_code)] // each test binary uses its part

use std::collections::BTreeMap;
use std::sync::Mutex;

use async_trait::async_trait;
use nacre_image_security::sign::Attachment;
use nacre_image_security::{Sources, Subject};
use nacre_trust::{Algorithm, Digest};
use zeroize::Zeroizing;

/// What can be asked for, and what was.
#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) manifests: BTreeMap<String, Vec<u8>>,
    pub(crate) no_referrers: Option<String>,
    pub(crate) referrers: Option<BTreeMap<Digest, Vec<u8>>>,
    pub(crate) blobs: BTreeMap<Digest, Vec<u8>>,
    pub(crate) lookaside: BTreeMap<String, Vec<u8>>,
    pub(crate) resources: BTreeMap<String, Vec<u8>>,
    pub(crate) requests: Mutex<Vec<String>>,
}

impl Fake {
    pub(crate) fn push(&mut self, attachment: &Attachment) {
        for blob in &attachment.blobs {
            self.blobs.insert(Digest::of(Algorithm::Sha256, blob), blob.clone());
        }
        self.manifests.insert(attachment.reference.clone(), attachment.manifest.clone());
    }

    /// An image, of which only the manifest exists.
    pub(crate) fn image(&mut self, name: &str, content: &[u8]) -> Subject {
        let digest = Digest::of(Algorithm::Sha256, content);
        self.manifests.insert(digest.to_string(), content.to_vec());
        let (host, rest) = name.split_once('/').unwrap();
        let (path, tag) = rest.split_once(':').unwrap_or((rest, "latest"));
        Subject {
            host: host.into(),
            path: path.into(),
            tag: Some(tag.into()),
            digest: None,
            manifests: vec![digest],
        }
    }

    fn note(&self, request: String) {
        self.requests.lock().unwrap().push(request);
    }
}

#[async_trait]
impl Sources for Fake {
    async fn manifest(&self, tag_or_digest: &str) -> Result<Option<Vec<u8>>, String> {
        self.note(format!("manifest {tag_or_digest}"));
        Ok(self.manifests.get(tag_or_digest).cloned())
    }

    async fn referrers(&self, digest: &Digest) -> Result<Option<Vec<u8>>, String> {
        self.note(format!("referrers {digest}"));
        if let Some(problem) = &self.no_referrers {
            return Err(problem.clone());
        }
        let empty = br#"{"schemaVersion":2,"manifests":[]}"#.to_vec();
        Ok(self.referrers.as_ref().map(|list| list.get(digest).cloned().unwrap_or(empty)))
    }

    async fn blob(&self, digest: &Digest, _size: u64) -> Result<Vec<u8>, String> {
        self.note(format!("blob {digest}"));
        self.blobs.get(digest).cloned().ok_or_else(|| "404".to_owned())
    }

    async fn lookaside(&self, url: &str) -> Result<Option<Vec<u8>>, String> {
        self.note(format!("lookaside {url}"));
        Ok(self.lookaside.get(url).cloned())
    }

    async fn resource(&self, uri: &str) -> Result<Zeroizing<Vec<u8>>, String> {
        self.note(format!("resource {uri}"));
        self.resources.get(uri).cloned().map(Zeroizing::new).ok_or_else(|| "not found".to_owned())
    }
}
