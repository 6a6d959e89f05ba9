//! Looks at an image without unpacking or mounting it: what a tag means now, the configuration, the
//! account files that decide which numbers a user's name stands for, and how much room its layers take.
//! For the owner's tools; needs no root and writes nothing.
//!
//! Layers are read from the top down, each whole, because its digest is that of all its bytes. The
//! layers below the one that decided are fetched only for their sizes, where these are asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Arc;

use nacre_protocol::guest_memory::StoredSize;
use nacre_trust::Digest;
use oci_spec::image::ImageConfiguration;

use crate::archive::{Archive, Entry, Kind, printable};
use crate::blob::Blob;
use crate::budget::{Budget, Share};
use crate::extract::{ExtractError, OPAQUE_WHITEOUT, WHITEOUT, normalise, split};
use crate::layer::LayerCheck;
use crate::manifest::LayerBlob;
use crate::pieces::queue;
use crate::platform::Level;
use crate::reference::Reference;
use crate::registry::Registry;
use crate::{Limits, NoResources, PullError, Registries};

const PASSWD: &[u8] = b"etc/passwd";
const GROUP: &[u8] = b"etc/group";
/// Largest account file, in bytes: what the guest reads of it.
const MAX_FILE: u64 = 1 << 20;
/// Most links that are followed from one name, hard or symbolic.
const MAX_LINKS: usize = 16;
/// Most names beside the first two that links can make interesting; each may fetch the layers again.
const MAX_NAMES: usize = 16;

/// What an [`Inspector`] needs to know.
#[derive(Clone, Debug, Default)]
pub struct InspectConfig {
    /// Where images come from. There is no key broker here: credentials must be at hand.
    pub registries: Registries,
    /// Bounds of one image.
    pub limits: Limits,
    /// Whether every layer is fetched and its contents are counted.
    pub sizes: bool,
}

/// Asks registries what images are.
pub struct Inspector {
    registry: Registry,
    limits: Limits,
    sizes: bool,
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
    /// Whether layers are encrypted: nobody without their keys knows the account files then.
    pub encrypted: bool,
    /// What each layer takes when it is unpacked, by its `diff_id`; empty if that was not asked for, or layers
    /// are encrypted.
    pub sizes: BTreeMap<Digest, StoredSize>,
}

impl Inspector {
    /// Nothing is asked for yet.
    pub fn new(config: InspectConfig) -> Self {
        Self {
            registry: Registry::new(
                config.limits.clone(),
                config.registries,
                Arc::new(NoResources),
            ),
            limits: config.limits,
            sizes: config.sizes,
        }
    }

    /// What `reference` names now. Manifest, configuration and every layer that is looked at are
    /// verified by their digests, as when they are pulled.
    ///
    /// # Errors
    /// [`PullError`], as of a pull.
    pub async fn inspect(&self, reference: &str) -> Result<Inspected, PullError> {
        let reference: Reference = reference.parse()?;
        let resolved = self.registry.resolve(&reference).await?;
        // The image is for the guest's processor, not for this one.
        let image = self.registry.describe(&reference, resolved, Level::V4, None).await?;
        let encrypted = image.layers.iter().any(|(layer, _)| layer.encryption.is_some());
        let (passwd, group, sizes) = match encrypted {
            true => (Vec::new(), Vec::new(), BTreeMap::new()),
            false => self.contents(&reference, &image.layers).await?,
        };
        Ok(Inspected {
            reference: reference.to_string(),
            name: reference.name(),
            manifest_digest: image.digest,
            config: image.config,
            passwd,
            group,
            encrypted,
            sizes,
        })
    }

    /// Contents of `/etc/passwd` and `/etc/group`, wherever links lead, and the sizes of layers.
    async fn contents(
        &self,
        reference: &Reference,
        layers: &[(LayerBlob, Digest)],
    ) -> Result<(Vec<u8>, Vec<u8>, BTreeMap<Digest, StoredSize>), PullError> {
        let mut names: BTreeSet<Vec<u8>> = [PASSWD.to_vec(), GROUP.to_vec()].into();
        let mut sizes = BTreeMap::new();
        loop {
            match self.look(reference, layers, &names, &mut sizes).await? {
                Looked::Found(passwd, group) => return Ok((passwd, group, sizes)),
                Looked::Elsewhere(name) => {
                    if names.len() > MAX_NAMES || !names.insert(name) {
                        return Err(accounts("are behind too many links"));
                    }
                }
            }
        }
    }

    /// One pass over as many layers as it takes, for the files of `names`, and for the sizes that are not
    /// in `sizes` yet.
    async fn look(
        &self,
        reference: &Reference,
        layers: &[(LayerBlob, Digest)],
        names: &BTreeSet<Vec<u8>>,
        sizes: &mut BTreeMap<Digest, StoredSize>,
    ) -> Result<Looked, PullError> {
        let budget = Budget::new(&self.limits);
        let mut seen = Seen { layers: Vec::new(), unseen: layers.len() };
        loop {
            match (seen.find(PASSWD)?, seen.find(GROUP)?) {
                (Found::Content(_), Found::Content(_)) if self.sizes && seen.unseen > 0 => {}
                (Found::Content(passwd), Found::Content(group)) => {
                    return Ok(Looked::Found(passwd, group));
                }
                (Found::Unasked(name), _) | (_, Found::Unasked(name)) => {
                    return Ok(Looked::Elsewhere(name));
                }
                (Found::Below, _) | (_, Found::Below) => {}
            }
            let (blob, diff_id) = &layers[seen.unseen - 1];
            let check = LayerCheck {
                blob: blob.clone(),
                diff_id: *diff_id,
                opened: None,
                budget: budget.share(),
                zstd_window_log: self.limits.zstd_window_log,
            };
            let layer = self.layer(reference, check, names.clone()).await?;
            if self.sizes {
                sizes.insert(*diff_id, layer.size);
            }
            seen.layers.push(layer);
            seen.unseen -= 1;
        }
    }

    async fn layer(
        &self,
        reference: &Reference,
        check: LayerCheck,
        names: BTreeSet<Vec<u8>>,
    ) -> Result<Layer, PullError> {
        let (digest, size) = (check.blob.digest, check.blob.size);
        let (sender, pieces) = queue();
        let reading = tokio::task::spawn_blocking(move || {
            check.read(pieces, |archive| Layer::read(archive, names, &check.budget))
        });
        let what = format!("layer {digest}");
        let mut blob = Blob::new(&self.registry, reference, digest, size, &what);
        let fetched = async move {
            while let Some(piece) = blob.next().await? {
                if !sender.send(piece).await {
                    return Ok(());
                }
            }
            sender.end();
            Ok(())
        }
        .await;
        match (fetched, reading.await.unwrap_or(Err(PullError::Abandoned))) {
            (_, Ok((layer, _proofs))) => Ok(layer),
            (Err(error), Err(PullError::Abandoned)) | (_, Err(error)) => Err(error),
        }
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

/// The layers that were read so far, top first.
struct Seen {
    layers: Vec<Layer>,
    /// Layers beneath them that were not.
    unseen: usize,
}

enum Found {
    Content(Vec<u8>),
    /// The layers that were not read decide.
    Below,
    Unasked(Vec<u8>),
}

impl Seen {
    /// Walks to a file as the kernel would on the merged layers, from the root. A file that is not there
    /// is empty.
    fn find(&self, name: &[u8]) -> Result<Found, PullError> {
        let mut ahead = name.to_vec();
        for _ in 0..MAX_LINKS {
            match self.walk(&ahead)? {
                Walked::To(found) => return Ok(found),
                Walked::Link(to) => ahead = to,
            }
        }
        Err(accounts("are behind too many links"))
    }

    fn walk(&self, path: &[u8]) -> Result<Walked, PullError> {
        let absent = Ok(Walked::To(Found::Content(Vec::new())));
        let mut visible =
            self.inside(b"", Visible { end: self.layers.len(), below: self.unseen > 0 });
        for prefix in prefixes(path).skip(1) {
            let is_last = prefix.len() == path.len();
            if !self.layers.first().is_none_or(|layer| layer.is_on_the_way(prefix)) {
                return Ok(Walked::To(Found::Unasked(path.to_vec())));
            }
            let (at, kind) = match self.first(prefix, visible) {
                First::Node(at, kind) => (at, kind),
                First::Absent => return absent,
                First::Below => return Ok(Walked::To(Found::Below)),
            };
            match kind {
                NodeKind::Directory if is_last => return Err(accounts("are not regular files")),
                NodeKind::Directory => visible = self.inside(prefix, visible),
                NodeKind::File(content) if is_last => {
                    return Ok(Walked::To(match content {
                        Some(content) => Found::Content(content.clone()),
                        None => Found::Unasked(path.to_vec()),
                    }));
                }
                NodeKind::Symlink(to) => return follow(prefix, to, &path[prefix.len()..]),
                NodeKind::HardLink(to) if is_last => return self.hard_link(at, to),
                NodeKind::Other if is_last => return Err(accounts("are not regular files")),
                // Nothing is beneath a file.
                NodeKind::File(_) | NodeKind::HardLink(_) | NodeKind::Other => return absent,
            }
        }
        absent
    }

    /// The uppermost visible layer that has something there.
    fn first(&self, path: &[u8], visible: Visible) -> First<'_> {
        for (at, layer) in self.layers[..visible.end].iter().enumerate() {
            match layer.nodes.get(path) {
                Some(Node { kind: Some(kind), .. }) => return First::Node(at, kind),
                Some(Node { whiteout: true, .. }) => return First::Absent,
                _ => {}
            }
        }
        if visible.below { First::Below } else { First::Absent }
    }

    /// The layers that show something inside the directory `path`.
    fn inside(&self, path: &[u8], visible: Visible) -> Visible {
        for (at, layer) in self.layers[..visible.end].iter().enumerate() {
            let Some(node) = layer.nodes.get(path) else { continue };
            match node.kind {
                _ if node.opaque || node.whiteout => return Visible { end: at + 1, below: false },
                None | Some(NodeKind::Directory) => {}
                Some(_) => return Visible { end: at, below: false },
            }
        }
        visible
    }

    /// The content is that of the target in the same layer, whatever the layers above put there.
    fn hard_link(&self, at: usize, target: &[u8]) -> Result<Walked, PullError> {
        let layer = &self.layers[at];
        if !layer.names.contains(target) {
            return Ok(Walked::To(Found::Unasked(target.to_vec())));
        }
        match layer.nodes.get(target).and_then(|node| node.kind.as_ref()) {
            Some(NodeKind::File(Some(content))) => Ok(Walked::To(Found::Content(content.clone()))),
            _ => Err(accounts("are hard links to something other than files")),
        }
    }
}

/// Which layers count at some point of a walk.
#[derive(Clone, Copy)]
struct Visible {
    /// Of those that were read, the first so many.
    end: usize,
    /// Those that were not read, too.
    below: bool,
}

enum First<'a> {
    Node(usize, &'a NodeKind),
    Absent,
    Below,
}

enum Walked {
    To(Found),
    Link(Vec<u8>),
}

/// Where a symbolic link at `place` leads, with `rest` still to walk. `..` stops at the root.
fn follow(place: &[u8], link: &[u8], rest: &[u8]) -> Result<Walked, PullError> {
    let mut path: Vec<&[u8]> = Vec::new();
    let parent = split(place).map_or(&[][..], |(parent, _)| parent);
    let base = if link.starts_with(b"/") { &[][..] } else { parent };
    for component in [base, link, rest].into_iter().flat_map(|part| part.split(|b| *b == b'/')) {
        match component {
            b"" | b"." => {}
            b".." => drop(path.pop()),
            other => path.push(other),
        }
    }
    if path.is_empty() {
        return Err(accounts("are not regular files"));
    }
    Ok(Walked::Link(path.join(&b'/')))
}

#[cfg(test)]
mod tests;
