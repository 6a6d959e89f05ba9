//! The pull itself: reference, manifest, configuration, layers, image.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use nacre_image_security::ImagePolicy;
use nacre_trust::Digest;
use oci_spec::image::ImageConfiguration;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::blob::Blob;
use crate::budget::Budget;
use crate::layer::{LayerCheck, LayerJob, PIECES, Piece};
use crate::manifest::LayerBlob;
use crate::reference::Reference;
use crate::registry::Registry;
use crate::store::{Store, StoredLayer};
use crate::{BlobCache, Limits, NoResources, PullError, Registries, Resources, mount, parents};

/// Least time between two [`Progress::Layer`] of one layer.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// What a [`Puller`] needs to know.
#[derive(Clone)]
pub struct PullConfig {
    /// Directory of the unpacked layers, on a file system with extended attributes (tmpfs in the
    /// guest). Nobody else may write there.
    pub store: PathBuf,
    /// Bounds of one pull.
    pub limits: Limits,
    /// Where images come from.
    pub registries: Registries,
    /// Where credentials and keys come from.
    pub resources: Arc<dyn Resources>,
    /// Which images may run.
    pub policy: Arc<ImagePolicy>,
    /// `kbs:///` URIs of private keys for layers that were encrypted to public keys.
    pub layer_keys: Vec<String>,
    /// The node's cache of blobs.
    pub cache: Option<Arc<dyn BlobCache>>,
    /// Whether the cache is offered what comes from registries: blobs that came without credentials,
    /// and encrypted layers. Without, it is only asked.
    pub share: bool,
}

impl PullConfig {
    /// Public images from public registries, whatever they are: no credentials, no policy, no keys, no
    /// cache.
    pub fn new(store: impl Into<PathBuf>) -> Self {
        Self {
            store: store.into(),
            limits: Limits::default(),
            registries: Registries::default(),
            resources: Arc::new(NoResources),
            policy: Arc::new(ImagePolicy::accept_any()),
            layer_keys: Vec::new(),
            cache: None,
            share: true,
        }
    }
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
                registry: Registry::new(config.limits.clone(), config.registries, config.resources),
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
        let image = self.shared.registry.resolve(&reference).await?;
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

impl Shared {
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
        let layer = LayerCheck {
            blob: blob.clone(),
            diff_id,
            budget,
            zstd_window_log: self.limits.zstd_window_log,
        };
        let job = LayerJob { layer, store: self.store.clone(), lock };
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
