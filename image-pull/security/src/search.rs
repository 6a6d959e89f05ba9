//! Finds an image's signatures, one after the other, so that the first good one ends the search.

use std::collections::VecDeque;

use nacre_trust::Digest;

use crate::bundle::{BUNDLE_LIMIT, Bundle};
use crate::cosign::{self, Descriptor, tag_of};
use crate::envelope::{Envelope, PAYLOAD_LIMIT, SIGN_PREDICATE};
use crate::{Sources, Subject};

/// Signatures that are tried for one image.
pub(crate) const SIGNATURES_LIMIT: usize = 64;
/// Requests that are made for one image.
const REQUESTS_LIMIT: usize = 256;
/// Failed requests after which no more are made.
const FAILURES_LIMIT: usize = 8;
/// Manifests that a reference may have resolved to.
const MANIFESTS_LIMIT: usize = 4;

const PREDICATE_TYPE: &str = "dev.sigstore.bundle.predicateType";

/// Where to look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places<'a> {
    /// Beside the image in its repository.
    pub(crate) attached: bool,
    /// A store of simple signing.
    pub(crate) lookaside: Option<&'a str>,
}

/// A signature that was found, or what was found instead.
#[derive(Debug)]
pub(crate) enum Found {
    Sigstore(Box<Envelope>),
    /// An OpenPGP message.
    Simple(Vec<u8>),
    /// Something that cannot be read, or a request that failed.
    Broken(String),
}

/// A search in progress.
pub(crate) struct Search<'a> {
    subject: &'a Subject,
    sources: &'a dyn Sources,
    leads: VecDeque<Lead>,
    signatures: usize,
    requests: usize,
    failures: usize,
}

/// Something to look at next.
enum Lead {
    CosignTag(Digest),
    Referrers(Digest),
    Referrer(Digest),
    Payload(Descriptor),
    Bundle(Descriptor),
    Stored { url: String, number: usize },
}

impl<'a> Search<'a> {
    pub(crate) fn new(subject: &'a Subject, sources: &'a dyn Sources, places: Places<'_>) -> Self {
        let mut leads = VecDeque::new();
        for digest in subject.manifests.iter().take(MANIFESTS_LIMIT) {
            if places.attached {
                leads.push_back(Lead::CosignTag(*digest));
                leads.push_back(Lead::Referrers(*digest));
            }
            if let Some(base) = places.lookaside {
                let url = stored_at(base, &subject.path, digest);
                leads.push_back(Lead::Stored { url, number: 1 });
            }
        }
        Self { subject, sources, leads, signatures: 0, requests: 0, failures: 0 }
    }

    /// How many signatures were handed out.
    pub(crate) fn signatures(&self) -> usize {
        self.signatures
    }

    /// The next signature; `None`: that was all, or all that is looked at.
    pub(crate) async fn next(&mut self) -> Option<Found> {
        while let Some(lead) = self.leads.pop_front() {
            if self.signatures >= SIGNATURES_LIMIT || self.requests >= REQUESTS_LIMIT {
                self.leads.clear();
                return Some(Found::Broken(format!(
                    "no more than {SIGNATURES_LIMIT} signatures are looked at"
                )));
            }
            self.requests += 1;
            match self.follow(lead).await {
                Ok(None) => {}
                Ok(Some(found)) => {
                    self.signatures += 1;
                    return Some(found);
                }
                Err(problem) => {
                    self.failures += 1;
                    if self.failures >= FAILURES_LIMIT {
                        self.leads.clear();
                    }
                    return Some(Found::Broken(problem));
                }
            }
        }
        None
    }

    async fn follow(&mut self, lead: Lead) -> Result<Option<Found>, String> {
        match lead {
            Lead::CosignTag(digest) => {
                let tag = format!("{}.sig", tag_of(&digest));
                if let Some(manifest) = self.sources.manifest(&tag).await? {
                    self.layers(&manifest)?;
                }
                Ok(None)
            }
            Lead::Referrers(digest) => {
                // Registries without the API do not always say so with the 404 that they should.
                let index = match self.sources.referrers(&digest).await {
                    Ok(Some(index)) => Some(index),
                    Ok(None) => self.sources.manifest(&tag_of(&digest)).await?,
                    Err(problem) => match self.sources.manifest(&tag_of(&digest)).await? {
                        Some(index) => Some(index),
                        None => return Err(problem),
                    },
                };
                if let Some(index) = index {
                    self.referrers(&index)?;
                }
                Ok(None)
            }
            Lead::Referrer(digest) => {
                let manifest = self.sources.manifest(&digest.to_string()).await?;
                let manifest = manifest.ok_or("a referrer that is listed is not there")?;
                self.layers(&manifest)?;
                Ok(None)
            }
            Lead::Payload(layer) => {
                let payload = self.blob(&layer, PAYLOAD_LIMIT).await?;
                let envelope = cosign::envelope(payload, &layer.annotations);
                Ok(Some(found(envelope)))
            }
            Lead::Bundle(layer) => {
                let blob = self.blob(&layer, BUNDLE_LIMIT).await?;
                let envelope = match Bundle::parse(&blob) {
                    Ok(bundle) => self.complete(bundle).await?,
                    Err(problem) => Err(format!("a bundle: {problem}")),
                };
                Ok(Some(found(envelope)))
            }
            Lead::Stored { url, number } => {
                let Some(message) = self.sources.lookaside(&format!("{url}{number}")).await? else {
                    return Ok(None);
                };
                self.leads.push_front(Lead::Stored { url, number: number + 1 });
                Ok(Some(Found::Simple(message)))
            }
        }
    }

    /// Gives a message signature the message: one of the manifests.
    async fn complete(&mut self, bundle: Bundle) -> Result<Result<Envelope, String>, String> {
        let Some(digest) = bundle.message().copied() else {
            return Ok(bundle.into_envelope(None));
        };
        // Manifests that are named by SHA-256 need not be fetched to be compared.
        let named = |one: &&Digest| **one == digest || matches!(one, Digest::Sha512(_));
        for manifest in self.subject.manifests.iter().take(MANIFESTS_LIMIT).filter(named) {
            self.requests += 1;
            let bytes = self.sources.manifest(&manifest.to_string()).await?;
            let bytes = bytes.filter(|bytes| Digest::of(manifest.algorithm(), bytes) == *manifest);
            let bytes = bytes.ok_or("the image's manifest is no longer there")?;
            if Digest::of(digest.algorithm(), &bytes) == digest {
                return Ok(bundle.into_envelope(Some(&bytes)));
            }
        }
        Ok(bundle.into_envelope(None))
    }

    fn layers(&mut self, manifest: &[u8]) -> Result<(), String> {
        let layers = cosign::layers(manifest)
            .map_err(|problem| format!("a manifest of signatures: {problem}"))?;
        // In front: a manifest's signatures are tried before the next manifest is fetched.
        for layer in layers.into_iter().take(SIGNATURES_LIMIT + 1).rev() {
            if layer.media_type == cosign::PAYLOAD_TYPE {
                self.leads.push_front(Lead::Payload(layer));
            } else if cosign::is_bundle(&layer.media_type) {
                self.leads.push_front(Lead::Bundle(layer));
            }
        }
        Ok(())
    }

    fn referrers(&mut self, index: &[u8]) -> Result<(), String> {
        let manifests = cosign::referrers(index)
            .map_err(|problem| format!("the index of referrers: {problem}"))?;
        let signatures = manifests.iter().filter(|one| may_sign(one)).take(SIGNATURES_LIMIT + 1);
        for referrer in signatures {
            if let Ok(digest) = referrer.digest.parse() {
                self.leads.push_back(Lead::Referrer(digest));
            }
        }
        Ok(())
    }

    async fn blob(&self, layer: &Descriptor, limit: usize) -> Result<Vec<u8>, String> {
        let digest: Digest =
            layer.digest.parse().map_err(|error| format!("a signature's layer: {error}"))?;
        if layer.size > limit as u64 {
            return Err(format!("a signature is larger than {limit} bytes"));
        }
        let blob = self.sources.blob(&digest, layer.size).await?;
        if blob.len() > limit {
            return Err(format!("a signature is larger than {limit} bytes"));
        }
        Ok(blob)
    }
}

fn found(envelope: Result<Envelope, String>) -> Found {
    match envelope {
        Ok(envelope) => Found::Sigstore(Box::new(envelope)),
        Err(problem) => Found::Broken(problem),
    }
}

/// Spares requests only: what a referrer is, its content says.
fn may_sign(referrer: &Descriptor) -> bool {
    let kind = referrer.artifact_type.as_deref().unwrap_or_default();
    let is_signature = kind.is_empty() || kind == cosign::ARTIFACT_TYPE || cosign::is_bundle(kind);
    let predicate = referrer.annotations.get(PREDICATE_TYPE);
    is_signature && predicate.is_none_or(|predicate| predicate == SIGN_PREDICATE)
}

/// `<base>/<path>@<algorithm>=<hex>/signature-`, to which a number is added (containers/image,
/// docs/signature-protocols.md).
fn stored_at(base: &str, path: &str, digest: &Digest) -> String {
    let base = base.trim_end_matches('/');
    format!("{base}/{path}@{}={}/signature-", digest.algorithm().name(), digest.hex())
}
