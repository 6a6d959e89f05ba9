//! The pull itself: reference, manifest, configuration, layers, image.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use nacre_trust::{Algorithm, Digest, Untrusted};
use oci_spec::image::ImageConfiguration;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::blob::Blob;
use crate::budget::Budget;
use crate::layer::{LayerJob, PIECES, Piece};
use crate::manifest::{Descriptor, LayerBlob, Manifest, for_this_guest, read_config};
use crate::reference::{Reference, Target};
use crate::registry::Registry;
use crate::store::{Store, StoredLayer};
use crate::{Limits, PullError, mount, parents};

/// Least time between two [`Progress::Layer`] of one layer.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// What a [`Puller`] needs to know.
#[derive(Clone, Debug)]
pub struct PullConfig {
    /// Directory of the unpacked layers, on a file system with extended attributes (tmpfs in the
    /// guest). Nobody else may write there.
    pub store: PathBuf,
    /// Registries, as `host[:port]` exactly as in references, that are asked over plain HTTP. Whoever
    /// sits between can then choose what a tag means.
    pub plain_http: Vec<String>,
    /// Bounds of one pull.
    pub limits: Limits,
    /// PEM file with the CA certificates for https; by default the system's
    /// `/etc/ssl/certs/ca-certificates.crt`. Read at the first https request.
    pub ca_file: Option<PathBuf>,
}

/// How far a pull has come. Layers report at most every 100 ms each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The reference has become an image.
    Resolved {
        /// Digest of its manifest.
        digest: Digest,
        /// Layers, those that are already here included.
        layers: usize,
        /// Bytes of all layers as they travel.
        bytes: u64,
    },
    /// A layer is on its way.
    Layer {
        /// Digest of the blob.
        digest: Digest,
        /// Bytes that came.
        done: u64,
        /// Bytes that will.
        total: u64,
    },
    /// All layers are verified and unpacked.
    Done,
}

/// Pulls images into one store. Concurrent pulls share layers.
pub struct Puller {
    shared: Arc<Shared>,
}

struct Shared {
    registry: Registry,
    store: Arc<Store>,
    limits: Limits,
    /// Layers being unpacked at a time, over all pulls: one a CPU.
    slots: Semaphore,
}

type Report = Arc<dyn Fn(Progress) + Send + Sync>;

impl Puller {
    /// Opens the store. Remains of interrupted pulls in it are removed.
    ///
    /// # Errors
    /// [`PullError::Io`] if the store cannot be made.
    pub fn new(config: PullConfig) -> Result<Self, PullError> {
        let cpus = std::thread::available_parallelism().map_or(1, Into::into);
        Ok(Self {
            shared: Arc::new(Shared {
                store: Arc::new(Store::open(config.store)?),
                registry: Registry::new(config.limits.clone(), config.plain_http, config.ca_file),
                limits: config.limits,
                slots: Semaphore::new(cpus),
            }),
        })
    }

    /// Makes the image that `reference` names available: every layer verified and unpacked. Asks the
    /// registry for manifest and configuration each time; fetches only layers that are not here.
    ///
    /// # Errors
    /// [`PullError`]; nothing of a layer that failed is left.
    pub async fn pull(
        &self,
        reference: &str,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<Image, PullError> {
        let reference: Reference = reference.parse()?;
        let report: Report = Arc::new(progress);
        let image = self.shared.resolve(&reference).await?;
        report(Progress::Resolved {
            digest: image.digest,
            layers: image.layers.len(),
            bytes: image.layers.iter().map(|(layer, _)| layer.size).sum(),
        });
        let layers = self.shared.clone().layers(&reference, &image.layers, &report).await?;
        let parents = parents::correct(&self.shared.store, &image.digest, &layers)?;
        report(Progress::Done);
        Ok(Image {
            reference: reference.to_string(),
            manifest_digest: image.digest,
            config: image.config,
            lower: stack(&layers, parents),
        })
    }
}

/// An image whose layers are verified and unpacked.
#[derive(Clone, Debug)]
pub struct Image {
    /// The reference, normalised.
    pub reference: String,
    /// Digest of the manifest for linux/amd64.
    pub manifest_digest: Digest,
    /// The image configuration.
    pub config: ImageConfiguration,
    /// Trees to stack, top first.
    lower: Vec<PathBuf>,
}

impl Image {
    /// Mounts the image's root file system on `target`, which is made if it is not there. What is
    /// written goes to `scratch`, on a file system that can carry an overlay (tmpfs), empty or not yet
    /// there. With `readonly` nothing can be written.
    ///
    /// # Errors
    /// [`PullError::Mount`] or [`PullError::Io`]; nothing is mounted then.
    pub fn mount(&self, scratch: &Path, target: &Path, readonly: bool) -> Result<(), PullError> {
        mount::overlay(&self.lower, scratch, target, readonly)
    }
}

/// Layers as overlayfs stacks them, top first.
fn stack(layers: &[StoredLayer], parents: Option<PathBuf>) -> Vec<PathBuf> {
    let mut lower: Vec<PathBuf> = parents.into_iter().collect();
    for layer in layers.iter().rev() {
        // overlayfs refuses a directory twice. The lower of two equal layers shows nothing that the
        // upper does not show in front of it, so only the upper counts.
        if !lower.contains(&layer.tree) {
            lower.push(layer.tree.clone());
        }
        if layer.opaque_root {
            break;
        }
    }
    lower
}

/// What a reference turned out to be.
struct Resolved {
    digest: Digest,
    config: ImageConfiguration,
    /// Bottom first: the blob, and what it must be once unpacked.
    layers: Vec<(LayerBlob, Digest)>,
}

impl Shared {
    /// Asks for the tag once; from its answer on, everything is named by digest.
    async fn resolve(&self, reference: &Reference) -> Result<Resolved, PullError> {
        let (digest, manifest) = self.manifest(reference, reference.target(), None).await?;
        let (digest, manifest) = match manifest {
            Manifest::Index(entries) => {
                let child = for_this_guest(&entries)?;
                self.manifest(reference, Target::Digest(child.digest), Some(child)).await?
            }
            image @ Manifest::Image { .. } => (digest, image),
        };
        let Manifest::Image { config, layers } = manifest else {
            return Err(PullError::Document {
                document: "index",
                field: "manifests",
                problem: "names another index; name an image".into(),
            });
        };
        if layers.len() > self.limits.layers {
            return Err(PullError::Limit {
                what: format!("image {reference}"),
                limit: self.limits.layers as u64,
                unit: "layers",
            });
        }
        let (config, diff_ids) = {
            let document = self.config(reference, &config).await?;
            read_config(&document, layers.len())?
        };
        let layers = layers.into_iter().zip(diff_ids).collect();
        Ok(Resolved { digest, config, layers })
    }

    /// A manifest or index, verified: against the digest that names it, or, for a tag, against the one
    /// the registry claims if it claims any.
    async fn manifest(
        &self,
        reference: &Reference,
        target: Target<'_>,
        expected: Option<&Descriptor>,
    ) -> Result<(Digest, Manifest), PullError> {
        let what = format!("manifest {target} of {}", reference.path());
        let limit = self.limits.manifest_bytes;
        if expected.is_some_and(|expected| expected.size > limit) {
            return Err(PullError::Limit { what, limit, unit: "bytes" });
        }
        let fetched = self.registry.manifest(reference, target, &what).await?;
        let digest = match (target, fetched.claimed) {
            (Target::Digest(digest), _) => digest,
            (Target::Tag(_), Some(claimed)) => claimed,
            (Target::Tag(_), None) => fetched.body.digest(Algorithm::Sha256),
        };
        let document = fetched
            .body
            .verify_digest(&digest)
            .map_err(|mismatch| PullError::digest(&what, mismatch))?;
        let size = document.get().len() as u64;
        if let Some(expected) = expected.filter(|expected| expected.size != size) {
            let actual = format!("it has {size}");
            return Err(PullError::SizeMismatch { what, expected: expected.size, actual });
        }
        let kind = expected.map(|expected| expected.media_type.as_str());
        let manifest = Manifest::parse(&document, fetched.content_type.as_deref(), kind)?;
        Ok((digest, manifest))
    }

    async fn config(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
    ) -> Result<nacre_trust::Verified<Vec<u8>, nacre_trust::DigestMatch>, PullError> {
        let what = format!("image configuration {}", descriptor.digest);
        let limit = self.limits.config_bytes;
        if descriptor.size > limit {
            return Err(PullError::Limit { what, limit, unit: "bytes" });
        }
        let mut blob =
            Blob::new(&self.registry, reference, descriptor.digest, descriptor.size, &what);
        let mut content = Vec::new();
        while let Some(piece) = blob.next().await? {
            content.extend_from_slice(&piece);
        }
        Untrusted::new(content)
            .verify_digest(&descriptor.digest)
            .map_err(|mismatch| PullError::digest(what, mismatch))
    }

    /// All layers, bottom first. They come in parallel, the largest first; when one fails the others
    /// are stopped, and all are waited for, so that nothing of them is left when this returns.
    async fn layers(
        self: Arc<Self>,
        reference: &Reference,
        layers: &[(LayerBlob, Digest)],
        report: &Report,
    ) -> Result<Vec<StoredLayer>, PullError> {
        let budget = Arc::new(Budget::new(&self.limits));
        let (stop, stopped) = watch::channel(false);
        let mut wanted: Vec<&(LayerBlob, Digest)> = Vec::new();
        for layer in layers {
            if !wanted.iter().any(|(_, diff_id)| *diff_id == layer.1) {
                wanted.push(layer);
            }
        }
        wanted.sort_by_key(|(blob, _)| std::cmp::Reverse(blob.size));
        let mut running = FuturesUnordered::new();
        for (blob, diff_id) in wanted {
            running.push(self.clone().layer(
                reference.clone(),
                blob.clone(),
                *diff_id,
                budget.clone(),
                stopped.clone(),
                report.clone(),
            ));
        }
        let mut failed = None;
        let mut done = std::collections::HashMap::new();
        while let Some(result) = running.next().await {
            match result {
                Ok((diff_id, layer)) => drop(done.insert(diff_id, layer)),
                Err(error) => {
                    stop.send_replace(true);
                    failed.get_or_insert(error);
                }
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(layers.iter().filter_map(|(_, id)| done.get(id).cloned()).collect()),
        }
    }

    async fn layer(
        self: Arc<Self>,
        reference: Reference,
        blob: LayerBlob,
        diff_id: Digest,
        budget: Arc<Budget>,
        mut stopped: watch::Receiver<bool>,
        report: Report,
    ) -> Result<(Digest, StoredLayer), PullError> {
        let lock = self.store.lock(&diff_id).await;
        if let Some(layer) = self.store.find(&diff_id)? {
            report(Progress::Layer { digest: blob.digest, done: blob.size, total: blob.size });
            return Ok((diff_id, layer));
        }
        let _slot = self.slots.acquire().await.map_err(|_| PullError::Abandoned)?;
        if *stopped.borrow() {
            return Err(PullError::Abandoned);
        }
        let (sender, pieces) = mpsc::channel(PIECES);
        let (result, unpacked) = oneshot::channel();
        let job = LayerJob {
            blob: blob.clone(),
            diff_id,
            budget,
            zstd_window_log: self.limits.zstd_window_log,
            store: self.store.clone(),
            lock,
        };
        std::thread::Builder::new()
            .name("unpack-layer".into())
            .spawn(move || result.send(job.run(pieces)))
            .map_err(|e| PullError::io("failed to start a thread for a layer", e))?;
        let fetched = tokio::select! {
            fetched = self.feed(&reference, &blob, sender, &report) => fetched,
            _ = stopped.wait_for(|stopped| *stopped) => Err(PullError::Abandoned),
        };
        match (fetched, unpacked.await.unwrap_or(Err(PullError::Abandoned))) {
            (_, Ok(layer)) => Ok((diff_id, layer)),
            (Err(error), Err(PullError::Abandoned)) | (_, Err(error)) => Err(error),
        }
    }

    /// Sends a layer's bytes to its thread as fast as that takes them. A thread that has stopped
    /// listening has its own reason to tell.
    async fn feed(
        &self,
        reference: &Reference,
        blob: &LayerBlob,
        sender: mpsc::Sender<Piece>,
        report: &Report,
    ) -> Result<(), PullError> {
        let what = format!("layer {}", blob.digest);
        let meter = Meter { blob, report, last: Mutex::new(Instant::now()) };
        let mut stream = Blob::new(&self.registry, reference, blob.digest, blob.size, &what);
        let mut done = 0;
        while let Some(piece) = stream.next().await? {
            done += piece.len() as u64;
            if sender.send(Piece::Data(piece)).await.is_err() {
                return Ok(());
            }
            meter.report(done);
        }
        let _ = sender.send(Piece::End).await;
        Ok(())
    }
}

/// Reports one layer's progress, not too often.
struct Meter<'a> {
    blob: &'a LayerBlob,
    report: &'a Report,
    last: Mutex<Instant>,
}

impl Meter<'_> {
    fn report(&self, done: u64) {
        let mut last = self.last.lock().expect("no panic under lock");
        if done == self.blob.size || last.elapsed() >= REPORT_EVERY {
            *last = Instant::now();
            let (digest, total) = (self.blob.digest, self.blob.size);
            (self.report)(Progress::Layer { digest, done, total });
        }
    }
}
