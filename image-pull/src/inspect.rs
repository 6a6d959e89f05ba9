//! Looks at an image without unpacking or mounting it: what a tag means now, the configuration, the
//! account files that decide which numbers a user's name stands for, and how much room its layers take.
//! For the owner's tools; needs no root and writes nothing.
//!
//! Layers are read from the top down, each whole, because its digest is that of all its bytes. The
//! layers below the one that decided are fetched only for their sizes, where these are asked for. What was
//! fetched to look for the account files is kept in memory, so that it can be read again where links lead
//! elsewhere, or another image has it.

mod kept;
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Arc;

use nacre_protocol::guest_memory::StoredSize;
use nacre_trust::Digest;
use oci_spec::image::ImageConfiguration;
use tokio::time::timeout;

use crate::archive::{Archive, Entry, Kind, printable};
use crate::blob::Blob;
use crate::budget::{Budget, Share};
use crate::extract::{ExtractError, OPAQUE_WHITEOUT, WHITEOUT, normalise, split};
use crate::layer::LayerCheck;
use crate::manifest::LayerBlob;
use crate::pieces::{Sender, queue};
use crate::platform::Level;
use crate::reference::Reference;
use crate::registry::Registry;
use crate::{Limits, NoResources, PullError, Registries};
use kept::Kept;
use walk::{Found, Seen};

const PASSWD: &[u8] = b"etc/passwd";
const GROUP: &[u8] = b"etc/group";
/// Largest account file, in bytes: what the guest reads of it.
const MAX_FILE: u64 = 1 << 20;
/// Most links that are followed from one name, hard or symbolic.
const MAX_LINKS: usize = 16;
/// Most names beside the first two that links can make interesting; for each the layers are read again.
const MAX_NAMES: usize = 16;

/// What an [`Inspector`] needs to know.
#[derive(Clone, Debug, Default)]
pub struct InspectConfig {
    /// Where images come from. There is no key broker here: credentials must be at hand.
    pub registries: Registries,
    /// Bounds of one image. [`Limits::total`] is that of each method's whole work.
    pub limits: Limits,
}

/// Asks registries what images are.
pub struct Inspector {
    registry: Registry,
    limits: Limits,
    /// Layers that may be read again.
    kept: Kept,
    /// What the layers that were read take, of all images.
    sizes: BTreeMap<Digest, StoredSize>,
}

/// What an image says about the processes that run from it.
#[derive(Clone, Debug)]
pub struct Inspected {
    /// The reference, normalised: with its host, and a tag or digest.
    pub reference: String,
    /// `host/path` of the reference, without tag and digest.
    pub name: String,
    /// Digest of the manifest for linux/amd64.
    pub manifest_digest: Digest,
    /// The image configuration.
    pub config: ImageConfiguration,
    /// Content of `/etc/passwd`, empty if there is none or layers are encrypted.
    pub passwd: Vec<u8>,
    /// Content of `/etc/group`, empty if there is none or layers are encrypted.
    pub group: Vec<u8>,
    /// Its layers, for [`Inspector::sizes`].
    pub layers: InspectedLayers,
}

/// The layers of an image that was inspected.
#[derive(Clone, Debug)]
pub struct InspectedLayers {
    reference: Reference,
    layers: Vec<(LayerBlob, Digest)>,
}

impl InspectedLayers {
    /// Whether some are encrypted: nobody without their keys knows the account files and the sizes then.
    #[must_use]
    pub fn are_encrypted(&self) -> bool {
        self.layers.iter().any(|(layer, _)| layer.encryption.is_some())
    }
}

impl Inspector {
    /// Nothing is asked for yet.
    pub fn new(config: InspectConfig) -> Self {
        let registry =
            Registry::new(config.limits.clone(), config.registries, Arc::new(NoResources));
        Self { registry, limits: config.limits, kept: Kept::default(), sizes: BTreeMap::new() }
    }

    /// What `reference` names now. Manifest, configuration and every layer that is looked at are
    /// verified by their digests, as when they are pulled.
    ///
    /// # Errors
    /// [`PullError`], as of a pull.
    pub async fn inspect(&mut self, reference: &str) -> Result<Inspected, PullError> {
        let total = self.limits.total;
        match timeout(total, self.found(reference)).await {
            Ok(result) => result,
            Err(_) => Err(PullError::Deadline { seconds: total.as_secs(), done: 0, total: 0 }),
        }
    }

    async fn found(&mut self, reference: &str) -> Result<Inspected, PullError> {
        let reference: Reference = reference.parse()?;
        let resolved = self.registry.resolve(&reference).await?;
        // The image is for the guest's processor, not for this one.
        let image = self.registry.describe(&reference, resolved, Level::V4, None).await?;
        let layers = InspectedLayers { reference, layers: image.layers };
        let (passwd, group) = match layers.are_encrypted() {
            true => (Vec::new(), Vec::new()),
            false => self.contents(&layers).await?,
        };
        Ok(Inspected {
            reference: layers.reference.to_string(),
            name: layers.reference.name(),
            manifest_digest: image.digest,
            config: image.config,
            passwd,
            group,
            layers,
        })
    }

    /// What each layer takes when it is unpacked, by its `diff_id`; none if there are encrypted ones. Fetches
    /// the layers that were not read yet, of this image or of others.
    ///
    /// # Errors
    /// [`PullError`], as of a pull.
    pub async fn sizes(
        &mut self,
        layers: &InspectedLayers,
    ) -> Result<Option<BTreeMap<Digest, StoredSize>>, PullError> {
        if layers.are_encrypted() {
            return Ok(None);
        }
        let (total, begin) = (self.limits.total, tokio::time::Instant::now());
        let budget = Budget::new(&self.limits);
        let mut sizes = BTreeMap::new();
        let mut done = 0;
        for layer in &layers.layers {
            let (blob, diff_id) = layer;
            let size = match self.sizes.get(diff_id) {
                Some(size) => *size,
                None => {
                    let left = total.saturating_sub(begin.elapsed());
                    let read = self.layer(&layers.reference, layer, &budget, BTreeSet::new());
                    let Ok(read) = timeout(left, read).await else {
                        let all: u64 = layers.layers.iter().map(|(blob, _)| blob.size).sum();
                        let (seconds, done, total) = (total.as_secs(), done >> 20, all >> 20);
                        return Err(PullError::Deadline { seconds, done, total });
                    };
                    read?.size
                }
            };
            done += blob.size;
            sizes.insert(*diff_id, size);
        }
        Ok(Some(sizes))
    }

    /// Contents of `/etc/passwd` and `/etc/group`, wherever links lead.
    async fn contents(
        &mut self,
        layers: &InspectedLayers,
    ) -> Result<(Vec<u8>, Vec<u8>), PullError> {
        let mut names: BTreeSet<Vec<u8>> = [PASSWD.to_vec(), GROUP.to_vec()].into();
        loop {
            match self.look(layers, &names).await? {
                Looked::Found(passwd, group) => return Ok((passwd, group)),
                Looked::Elsewhere(name) => {
                    if names.len() > MAX_NAMES || !names.insert(name) {
                        return Err(accounts("are behind too many links"));
                    }
                }
            }
        }
    }

    /// One pass over as many layers as it takes, for the files of `names`.
    async fn look(
        &mut self,
        layers: &InspectedLayers,
        names: &BTreeSet<Vec<u8>>,
    ) -> Result<Looked, PullError> {
        let budget = Budget::new(&self.limits);
        let mut seen = Seen { layers: Vec::new(), unseen: layers.layers.len() };
        loop {
            match (seen.find(PASSWD)?, seen.find(GROUP)?) {
                (Found::Content(passwd), Found::Content(group)) => {
                    return Ok(Looked::Found(passwd, group));
                }
                (Found::Unasked(name), _) | (_, Found::Unasked(name)) => {
                    return Ok(Looked::Elsewhere(name));
                }
                (Found::Below, _) | (_, Found::Below) => {}
            }
            let layer = &layers.layers[seen.unseen - 1];
            seen.layers.push(self.layer(&layers.reference, layer, &budget, names.clone()).await?);
            seen.unseen -= 1;
        }
    }

    /// Reads a layer, verified; keeps it if it is read for names.
    async fn layer(
        &mut self,
        reference: &Reference,
        (blob, diff_id): &(LayerBlob, Digest),
        budget: &Arc<Budget>,
        names: BTreeSet<Vec<u8>>,
    ) -> Result<Layer, PullError> {
        let check = LayerCheck {
            blob: blob.clone(),
            diff_id: *diff_id,
            opened: None,
            budget: budget.share(),
            zstd_window_log: self.limits.zstd_window_log,
        };
        let mut copy = self.kept.room_for(blob.size).filter(|_| !names.is_empty());
        let (sender, pieces) = queue();
        let reading = tokio::task::spawn_blocking(move || {
            check.read(pieces, |archive| Layer::read(archive, names, &check.budget))
        });
        let fetched = match self.kept.get(&blob.digest) {
            Some(kept) => {
                copy = None;
                kept::replay(kept, sender).await;
                Ok(())
            }
            None => self.fetch(reference, blob, sender, copy.as_mut()).await,
        };
        match (fetched, reading.await.unwrap_or(Err(PullError::Abandoned))) {
            (_, Ok((layer, _proofs))) => {
                self.sizes.insert(*diff_id, layer.size);
                if let Some(copy) = copy {
                    self.kept.keep(blob.digest, copy);
                }
                Ok(layer)
            }
            (Err(error), Err(PullError::Abandoned)) | (_, Err(error)) => Err(error),
        }
    }

    async fn fetch(
        &self,
        reference: &Reference,
        blob: &LayerBlob,
        sender: Sender,
        mut copy: Option<&mut Vec<u8>>,
    ) -> Result<(), PullError> {
        let what = format!("layer {}", blob.digest);
        let mut blob = Blob::new(&self.registry, reference, blob.digest, blob.size, &what);
        while let Some(piece) = blob.next().await? {
            if let Some(copy) = copy.as_deref_mut() {
                copy.extend_from_slice(&piece);
            }
            if !sender.send(piece).await {
                return Ok(());
            }
        }
        sender.end();
        Ok(())
    }
}

fn accounts(problem: &str) -> PullError {
    PullError::Process {
        field: "user",
        problem: format!("the image's /etc/passwd and /etc/group {problem}"),
    }
}

enum Looked {
    Found(Vec<u8>, Vec<u8>),
    /// Links lead to this name, which no layer was asked for.
    Elsewhere(Vec<u8>),
}

/// What one layer has at a name, or at a directory on the way to one.
#[derive(Debug, Default)]
struct Node {
    kind: Option<NodeKind>,
    /// A `.wh.` entry: what lower layers have here is hidden.
    whiteout: bool,
    /// A `.wh..wh..opq` entry: what lower layers have in this directory is hidden.
    opaque: bool,
}

#[derive(Debug)]
enum NodeKind {
    Directory,
    /// With its content, if the name was asked for.
    File(Option<Vec<u8>>),
    Symlink(Vec<u8>),
    /// To a name of the same layer.
    HardLink(Vec<u8>),
    Other,
}

/// What one layer says about the names and the directories on the way to them.
struct Layer {
    names: BTreeSet<Vec<u8>>,
    nodes: BTreeMap<Vec<u8>, Node>,
    size: StoredSize,
}

impl Layer {
    fn read<R: Read>(
        archive: &mut Archive<R>,
        names: BTreeSet<Vec<u8>>,
        budget: &Share,
    ) -> Result<Self, ExtractError> {
        let mut layer = Self { names, nodes: BTreeMap::new(), size: StoredSize::default() };
        while let Some(entry) = archive.next()? {
            budget.take_entry().map_err(ExtractError::Budget)?;
            layer.size.add(if matches!(entry.kind, Kind::File) { entry.size } else { 0 });
            layer.add(&entry, archive)?;
        }
        Ok(layer)
    }

    fn add<R: Read>(
        &mut self,
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), ExtractError> {
        let path = normalise(&entry.path)?;
        let Some((parent, name)) = split(&path) else { return Ok(()) };
        self.imply(parent, entry)?;
        if name == OPAQUE_WHITEOUT {
            if self.is_on_the_way(parent) {
                self.nodes.entry(parent.to_vec()).or_default().opaque = true;
            }
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            let hidden = join(parent, hidden);
            if self.is_on_the_way(&hidden) {
                self.nodes.entry(hidden).or_default().whiteout = true;
            }
            return Ok(());
        }
        if !self.is_on_the_way(&path) {
            return Ok(());
        }
        let kind = match entry.kind {
            Kind::Directory => NodeKind::Directory,
            Kind::Symlink => NodeKind::Symlink(entry.link.clone()),
            Kind::HardLink => NodeKind::HardLink(normalise(&entry.link)?),
            Kind::Fifo => NodeKind::Other,
            Kind::File if self.names.contains(&path) => {
                NodeKind::File(Some(content(entry, archive)?))
            }
            Kind::File => NodeKind::File(None),
        };
        self.put(&path, kind);
        Ok(())
    }

    /// A layer need not have entries for the directories of what it holds.
    fn imply(&mut self, parent: &[u8], entry: &Entry) -> Result<(), ExtractError> {
        for prefix in prefixes(parent).skip(1) {
            if !self.is_on_the_way(prefix) {
                break;
            }
            let kind = self.nodes.get(prefix).and_then(|node| node.kind.as_ref());
            match kind {
                None => self.put(prefix, NodeKind::Directory),
                Some(NodeKind::Directory) => {}
                Some(_) => {
                    return Err(ExtractError::Refused(format!(
                        "{} is beneath {}, which the same layer makes a link or a file: this is not \
                         followed when an image is inspected",
                        printable(&entry.path),
                        printable(prefix)
                    )));
                }
            }
        }
        Ok(())
    }

    /// The later entry wins, with all that was beneath the earlier one.
    fn put(&mut self, path: &[u8], kind: NodeKind) {
        if !matches!(kind, NodeKind::Directory) {
            let beneath = join(path, b"");
            for (_, node) in self.nodes.iter_mut().filter(|(name, _)| name.starts_with(&beneath)) {
                node.kind = None;
            }
        }
        let node = self.nodes.entry(path.to_vec()).or_default();
        if !matches!((&node.kind, &kind), (Some(NodeKind::Directory), NodeKind::Directory)) {
            node.kind = Some(kind);
        }
    }

    fn is_on_the_way(&self, path: &[u8]) -> bool {
        self.names.iter().any(|name| {
            name.strip_prefix(path)
                .is_some_and(|rest| path.is_empty() || rest.is_empty() || rest[0] == b'/')
        })
    }
}

fn content<R: Read>(entry: &Entry, archive: &mut Archive<R>) -> Result<Vec<u8>, ExtractError> {
    let shown = printable(&entry.path);
    if entry.sparse.is_some() {
        return Err(ExtractError::Refused(format!("{shown} has holes, which no account file has")));
    }
    if entry.size > MAX_FILE {
        return Err(ExtractError::Refused(format!("{shown} is above {MAX_FILE} bytes")));
    }
    let mut content = Vec::new();
    archive.content(|piece| {
        content.extend_from_slice(piece);
        Ok::<_, ExtractError>(())
    })?;
    Ok(content)
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

/// The root, then each directory of `path`, then `path` itself.
fn prefixes(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
    let root = std::iter::once(&path[..0]);
    let whole = (!path.is_empty()).then_some(path);
    root.chain(slashes.map(|at| &path[..at])).chain(whole)
}

#[cfg(test)]
mod tests;
