//! The pull itself: reference, manifest, configuration, layers, image.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use nacre_image_security::{Admitted, ImagePolicy};
use nacre_trust::Digest;
use oci_spec::image::ImageConfiguration;
use tokio::sync::{OwnedMutexGuard, RwLock, Semaphore, oneshot, watch};

use crate::blob::{Blob, Cache};
use crate::budget::Budget;
use crate::decryption::{self, Opened};
use crate::layer::{LayerCheck, LayerJob};
use crate::manifest::LayerBlob;
use crate::pieces::{Sender, queue};
use crate::platform::Level;
use crate::progress::Tally;
use crate::reference::Reference;
use crate::registry::Registry;
use crate::resolve::Described;
use crate::store::{Key, Lease, Store};
use crate::{
    BlobCache, Limits, NoResources, Progress, PullError, Registries, Resources, mount, parents,
};

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

/// Pulls images into one store. Concurrent pulls share layers.
pub struct Puller {
    shared: Arc<Shared>,
}

struct Shared {
    registry: Registry,
    store: Arc<Store>,
    limits: Limits,
    resources: Arc<dyn Resources>,
    policy: Arc<ImagePolicy>,
    layer_keys: Vec<String>,
    cache: Option<Cache>,
    /// Layers being unpacked at a time, over all pulls: one a CPU.
    slots: Semaphore,
}

impl Puller {
    /// Opens the store. What is left in it from before is removed.
    ///
    /// # Errors
    /// [`PullError::Io`] if the store cannot be made.
    pub fn new(config: PullConfig) -> Result<Self, PullError> {
        let cpus = std::thread::available_parallelism().map_or(1, Into::into);
        let registry =
            Registry::new(config.limits.clone(), config.registries, config.resources.clone());
        Ok(Self {
            shared: Arc::new(Shared {
                store: Store::open(config.store)?,
                registry,
                limits: config.limits,
                resources: config.resources,
                policy: config.policy,
                layer_keys: config.layer_keys,
                cache: config.cache.map(|blobs| Cache { blobs, share: config.share }),
                slots: Semaphore::new(cpus),
            }),
        })
    }

    /// Makes the image that `reference` names available: admitted by the policy, every layer verified and
    /// unpacked. Asks the registry for the manifest each time; fetches only layers that are not here.
    ///
    /// # Errors
    /// [`PullError`]; nothing of a layer that failed is left.
    pub async fn pull(
        &self,
        reference: &str,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<Image, PullError> {
        let reference: Reference = reference.parse()?;
        let deadline = Instant::now() + self.shared.limits.total;
        let prepared = tokio::time::timeout_at(deadline.into(), self.shared.prepare(&reference));
        let Ok(prepared) = prepared.await else {
            let seconds = self.shared.limits.total.as_secs();
            return Err(PullError::Deadline { seconds, done: 0, total: 0 });
        };
        let (image, admitted) = prepared?;
        let tally = Tally::new(progress, &image);
        let layers = self.shared.layers(&reference, &image, &admitted, &tally, deadline).await?;
        let parents = parents::correct(&self.shared.store, image.digest, &layers).await?;
        let leases = layers.iter().cloned().chain(parents.map(Arc::new)).collect();
        Ok(Image {
            reference: reference.to_string(),
            manifest_digest: image.digest,
            config: image.config,
            leases,
            layers: layers.len(),
        })
    }
}

/// An image whose layers are verified and unpacked. They stay for as long as there is an `Image`, or a
/// clone of one, that has them; then they are removed, so it must outlive its mounts.
#[derive(Clone, Debug)]
pub struct Image {
    /// The reference, normalised.
    pub reference: String,
    /// Digest of the manifest for linux/amd64.
    pub manifest_digest: Digest,
    /// The image configuration.
    pub config: ImageConfiguration,
    /// The layers' trees, bottom first, and the corrected parent directories if there are any.
    leases: Arc<[Arc<Lease>]>,
    layers: usize,
}

impl Image {
    /// Mounts the image's root file system on `target`, which is made if it is not there. What is
    /// written goes to `scratch`, on a file system that can carry an overlay (tmpfs), empty or not yet
    /// there. With `readonly` nothing can be written.
    ///
    /// # Errors
    /// [`PullError::Mount`] or [`PullError::Io`]; nothing is mounted then.
    pub fn mount(&self, scratch: &Path, target: &Path, readonly: bool) -> Result<(), PullError> {
        let (layers, parents) = self.leases.split_at(self.layers);
        mount::overlay(&stack(layers, parents), scratch, target, readonly)
    }
}

/// Trees as overlayfs stacks them, top first.
fn stack<'a>(layers: &'a [Arc<Lease>], parents: &'a [Arc<Lease>]) -> Vec<&'a Path> {
    let mut lower: Vec<&Path> = parents.iter().map(|parents| parents.path.as_path()).collect();
    for layer in layers.iter().rev() {
        // overlayfs refuses a directory twice. The lower of two equal layers shows nothing that the
        // upper does not show in front of it, so only the upper counts.
        if !lower.contains(&layer.path.as_path()) {
            lower.push(&layer.path);
        }
        if layer.about.opaque_root {
            break;
        }
    }
    lower
}

impl Shared {
    /// All that happens before a layer is fetched: the tag is resolved, the policy asked, the
    /// configuration read.
    async fn prepare(&self, reference: &Reference) -> Result<(Described, Admitted), PullError> {
        let resolved = self.registry.resolve(reference).await?;
        let admitted =
            resolved.admit(&self.policy, &self.registry, reference, &self.resources).await?;
        let processor = Level::of_this_processor();
        let cache = self.cache.as_ref();
        let image = self.registry.describe(reference, resolved, processor, cache).await?;
        Ok((image, admitted))
    }

    /// All layers, bottom first. They come in parallel, the largest first; when one fails the others
    /// are stopped, and all are waited for, so that nothing of them is left when this returns.
    async fn layers(
        self: &Arc<Self>,
        reference: &Reference,
        image: &Described,
        admitted: &Admitted,
        tally: &Arc<Tally>,
        deadline: Instant,
    ) -> Result<Vec<Arc<Lease>>, PullError> {
        // The proof is for this manifest, not for another one.
        if admitted.manifest() != &image.digest {
            return Err(PullError::Abandoned);
        }
        let opened = decryption::open(&image.layers, &*self.resources, &self.layer_keys).await?;
        let mut wanted: Vec<Wanted> = Vec::new();
        let mut keys = Vec::new();
        for ((blob, diff_id), opened) in image.layers.iter().zip(opened) {
            let seal = opened.as_ref().map(|opened| opened.seal);
            let key = Key::Layer { diff_id: *diff_id, seal };
            keys.push(key);
            if !wanted.iter().any(|other| other.key == key) {
                wanted.push(Wanted { key, blob: blob.clone(), diff_id: *diff_id, opened });
            }
        }
        wanted.sort_by_key(|layer| std::cmp::Reverse(layer.blob.size));
        self.check_room(reference, &wanted)?;
        let (stop, stopped) = watch::channel(false);
        let budget = Budget::new(&self.limits);
        let detours = Arc::<RwLock<()>>::default();
        let mut running = FuturesUnordered::new();
        for layer in wanted {
            let fetch = Fetch {
                shared: self.clone(),
                reference: reference.clone(),
                layer,
                budget: budget.clone(),
                detours: detours.clone(),
                stopped: stopped.clone(),
                tally: tally.clone(),
            };
            running.push(fetch.run());
        }
        let mut failed = None;
        let mut done = HashMap::new();
        let mut late = pin!(tokio::time::sleep_until(deadline.into()));
        loop {
            let next = tokio::select! {
                next = running.next() => next,
                () = &mut late, if failed.is_none() => {
                    stop.send_replace(true);
                    failed = Some(tally.deadline(self.limits.total));
                    continue;
                }
            };
            match next {
                None => break,
                Some(Ok((key, layer))) => drop(done.insert(key, Arc::new(layer))),
                Some(Err(error)) => {
                    stop.send_replace(true);
                    failed.get_or_insert(error);
                }
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(keys.iter().filter_map(|key| done.get(key).cloned()).collect()),
        }
    }

    /// Refuses an image that cannot fit before any of it is fetched. A layer takes more room than its
    /// blob, so this is the least.
    fn check_room(&self, reference: &Reference, wanted: &[Wanted]) -> Result<(), PullError> {
        let missing = wanted.iter().filter(|layer| self.store.find(layer.key).is_none());
        let needed = missing.fold(0_u64, |sum, layer| sum.saturating_add(layer.blob.size));
        let (available, quota) = self.store.room()?;
        if needed <= available {
            return Ok(());
        }
        Err(PullError::TooLarge {
            image: reference.to_string(),
            needed: needed.div_ceil(1 << 20),
            available: available >> 20,
            quota: quota >> 20,
        })
    }
}

/// A layer of the image, once.
struct Wanted {
    key: Key,
    blob: LayerBlob,
    diff_id: Digest,
    opened: Option<Arc<Opened>>,
}

/// One layer on its way into the store.
struct Fetch {
    shared: Arc<Shared>,
    reference: Reference,
    layer: Wanted,
    budget: Arc<Budget>,
    /// Held by every attempt that may be lied to; alone by one that nobody's lie may spend the budget of.
    detours: Arc<RwLock<()>>,
    stopped: watch::Receiver<bool>,
    tally: Arc<Tally>,
}

/// Which attempt it is to fetch a layer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Attempt {
    /// From wherever it is nearest.
    Detour,
    /// From the registry itself.
    Origin,
    /// The same while no other layer is on a detour: a lie may have been what filled the store.
    Alone,
}

impl Fetch {
    async fn run(mut self) -> Result<(Key, Lease), PullError> {
        let (key, size) = (self.layer.key, self.layer.blob.size);
        let alone = Arc::new(self.shared.store.lock(key).await);
        if let Some(layer) = self.shared.store.find(key) {
            self.tally.bytes(size);
            self.tally.layer();
            return Ok((key, layer));
        }
        let shared = self.shared.clone();
        let _slot = shared.slots.acquire().await.map_err(|_| PullError::Abandoned)?;
        let what = format!("layer {}", self.layer.blob.digest);
        let mut attempt = Attempt::Detour;
        let detours = self.detours.clone();
        loop {
            let _together = match attempt {
                Attempt::Detour => Some(detours.read().await),
                Attempt::Origin | Attempt::Alone => None,
            };
            let _undisturbed = match attempt {
                Attempt::Alone => Some(detours.write().await),
                Attempt::Detour | Attempt::Origin => None,
            };
            if *self.stopped.borrow() {
                return Err(PullError::Abandoned);
            }
            let (registry, reference) = (&shared.registry, &self.reference);
            let (digest, encrypted) = (self.layer.blob.digest, self.layer.opened.is_some());
            let blob = match attempt {
                Attempt::Detour => Blob::new(registry, reference, digest, size, &what)
                    .with_cache(shared.cache.as_ref(), encrypted),
                Attempt::Origin | Attempt::Alone => {
                    Blob::from_origin(registry, reference, digest, size, &what)
                }
            };
            match self.unpack(blob, &alone).await {
                Ok(layer) => {
                    self.tally.layer();
                    return Ok((key, layer));
                }
                // Whatever it was, it may have been somebody's lie: once more, without them.
                Err((error, true)) if attempt == Attempt::Detour && !*self.stopped.borrow() => {
                    tracing::warn!(%error, layer = %digest, "fetched again from the registry itself");
                    attempt = Attempt::Origin;
                }
                Err((error @ PullError::Limit { .. }, _))
                    if attempt != Attempt::Alone
                        && shared.cache.is_some()
                        && !*self.stopped.borrow() =>
                {
                    tracing::warn!(%error, layer = %digest, "fetched again when no other layer is lied about");
                    attempt = Attempt::Alone;
                }
                Err((error, _)) => return Err(error),
            }
        }
    }

    /// Fetches and unpacks at the same time. An error comes with whether a detour may be its cause.
    async fn unpack(
        &mut self,
        mut blob: Blob<'_>,
        alone: &Arc<OwnedMutexGuard<()>>,
    ) -> Result<Lease, (PullError, bool)> {
        let (sender, pieces) = queue();
        let (result, unpacked) = oneshot::channel();
        let layer = LayerCheck {
            blob: self.layer.blob.clone(),
            diff_id: self.layer.diff_id,
            opened: self.layer.opened.clone(),
            budget: self.budget.share(),
            zstd_window_log: self.shared.limits.zstd_window_log,
        };
        let job = LayerJob { layer, store: self.shared.store.clone() };
        let alone = alone.clone();
        let work = move || {
            drop(result.send(job.run(pieces)));
            // Until here nobody else begins with this layer, even if nobody waits for it any more.
            drop(alone);
        };
        std::thread::Builder::new()
            .name("unpack-layer".into())
            .spawn(work)
            .map_err(|e| (PullError::io("failed to start a thread for a layer", e), false))?;
        let mut came = 0;
        let fetched = tokio::select! {
            fetched = feed(&mut blob, sender, &self.tally, &mut came) => fetched,
            _ = self.stopped.wait_for(|stopped| *stopped) => Err(PullError::Abandoned),
        };
        let error = match (fetched, unpacked.await.unwrap_or(Err(PullError::Abandoned))) {
            (_, Ok(layer)) => return Ok(layer),
            (Err(error), Err(PullError::Abandoned)) | (_, Err(error)) => error,
        };
        self.tally.take_back(came);
        Err((error, blob.took_a_detour()))
    }
}

/// Sends a layer's bytes to its thread as fast as that takes them. A thread that has stopped listening
/// has its own reason to tell.
async fn feed(
    blob: &mut Blob<'_>,
    sender: Sender,
    tally: &Tally,
    came: &mut u64,
) -> Result<(), PullError> {
    while let Some(piece) = blob.next().await? {
        let size = piece.len() as u64;
        if !sender.send(piece).await {
            return Ok(());
        }
        *came += size;
        tally.bytes(size);
    }
    sender.end();
    Ok(())
}
