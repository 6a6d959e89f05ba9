//! Owners and modes of directories that a layer needs but does not describe.
//!
//! A layer may hold `tmp/file` and no entry for `tmp`. overlayfs shows the topmost directory's owner
//! and mode, so `/tmp` would lose its sticky bit. containerd copies them from the layer below while it
//! unpacks; here layers are unpacked independently and shared between images, so the corrected
//! directories go into one small layer of the image's own, on top of the others. So do hard links that
//! lead from one layer to another.

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nacre_trust::Digest;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
    fchmod, fchown, fgetxattr, fstat, futimens, linkat, open, openat2,
};
use rustix::io::Errno;

use crate::store::{Key, Lease, Store};
use crate::{PullError, links};

/// Corrects the implied directories of `layers` (bottom first): the tree to put on top of them, if
/// any is needed.
pub(crate) async fn correct(
    store: &Arc<Store>,
    manifest: Digest,
    layers: &[Arc<Lease>],
) -> Result<Option<Lease>, PullError> {
    // The bottom layer has nobody to take anything from.
    let implies = |layer: &Arc<Lease>| !layer.about.implied.is_empty();
    let links = |layer: &Arc<Lease>| !layer.about.links.is_empty();
    if !layers.iter().skip(1).any(implies) && !layers.iter().any(links) {
        return Ok(None);
    }
    let key = Key::Parents(manifest);
    let alone = store.lock(key).await;
    if let Some(tree) = store.find(key) {
        return Ok(Some(tree));
    }
    let (store, layers) = (store.clone(), layers.to_vec());
    let work = move || {
        let made = make(&store, manifest, &layers);
        drop(alone);
        made
    };
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(PullError::Abandoned))
}

fn make(
    store: &Arc<Store>,
    manifest: Digest,
    layers: &[Arc<Lease>],
) -> Result<Option<Lease>, PullError> {
    let path = |bytes: &Vec<u8>| PathBuf::from(OsString::from_vec(bytes.clone()));
    let implied = layers.iter().skip(1).flat_map(|layer| &layer.about.implied);
    let mut wrong: Vec<PathBuf> = implied.map(path).collect();
    wrong.sort_unstable();
    wrong.dedup();
    let stack: Vec<Layer<'_>> =
        layers.iter().rev().map(|layer| Layer::open(layer)).collect::<Result<_, _>>()?;
    wrong.retain(|path| effective(&stack, path).is_some_and(|found| found.corrected));
    let links = links::resolve(&stack, layers)?;
    wrong.extend(links.iter().filter_map(|(path, _)| path.parent()).map(Path::to_owned));
    if wrong.is_empty() {
        return Ok(None);
    }
    let staging = store.stage()?;
    let tree = staging.tree();
    for path in &wrong {
        std::fs::create_dir_all(tree.join(path))
            .map_err(|e| PullError::io(format!("failed to make {}", path.display()), e))?;
    }
    for (path, source) in &links {
        linkat(source, "", CWD, tree.join(path), AtFlags::EMPTY_PATH)
            .map_err(|e| PullError::io(format!("failed to link {}", path.display()), e.into()))?;
    }
    // Children first: making one changes its parent's time.
    let mut all: Vec<&Path> = wrong.iter().flat_map(|path| path.ancestors()).collect();
    all.push(Path::new(""));
    all.sort_unstable_by(|a, b| b.cmp(a));
    all.dedup();
    for path in all {
        if let Some(found) = effective(&stack, path) {
            apply(&tree.join(path), &found.stat).map_err(|e| {
                PullError::io(format!("failed to correct {}", path.display()), e.into())
            })?;
        }
    }
    store.keep_parents(staging, manifest).map(Some)
}

pub(crate) struct Layer<'a> {
    pub(crate) root: OwnedFd,
    implied: HashSet<&'a [u8]>,
}

impl<'a> Layer<'a> {
    fn open(layer: &'a Lease) -> Result<Self, PullError> {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let root = open(&layer.path, flags, Mode::empty()).map_err(|e| {
            PullError::io(format!("failed to open {}", layer.path.display()), e.into())
        })?;
        Ok(Self { root, implied: layer.about.implied.iter().map(Vec::as_slice).collect() })
    }
}

struct Effective {
    stat: Stat,
    /// It is not what the topmost layer with this directory has.
    corrected: bool,
}

/// Metadata of `path` as the topmost layer that describes it has it, going down (`stack` is top first)
/// as far as overlayfs would merge.
fn effective(stack: &[Layer<'_>], path: &Path) -> Option<Effective> {
    let mut topmost: Option<Stat> = None;
    for layer in stack {
        let (stat, last) = look(layer, path);
        if let Some(stat) = stat {
            if !layer.implied.contains(path.as_os_str().as_bytes()) {
                return Some(Effective { stat, corrected: topmost.is_some() });
            }
            topmost.get_or_insert(stat);
        }
        if last {
            break;
        }
    }
    topmost.map(|stat| Effective { stat, corrected: false })
}

/// The directory in one layer, and whether what lies below that layer is hidden at `path`.
pub(crate) fn look(layer: &Layer<'_>, path: &Path) -> (Option<Stat>, bool) {
    let mut last = false;
    let mut prefixes: Vec<&Path> = path.ancestors().collect();
    prefixes.reverse();
    let mut stat = None;
    for prefix in prefixes {
        let name = if prefix.as_os_str().is_empty() { Path::new(".") } else { prefix };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        match openat2(&layer.root, name, flags, Mode::empty(), resolve) {
            Ok(directory) => {
                last |= is_opaque(&directory);
                stat = fstat(&directory).ok();
            }
            Err(Errno::NOENT) => return (None, last),
            // A file, a link or a whiteout is in its place.
            Err(_) => return (None, true),
        }
    }
    (stat, last)
}

fn is_opaque(directory: impl AsFd) -> bool {
    let mut value = [0; 8];
    matches!(fgetxattr(directory, "trusted.overlay.opaque", &mut value), Ok(1..))
}

/// Gives the directory at `path` the owner, mode and time of `from`.
pub(crate) fn apply(path: &Path, from: &Stat) -> Result<(), Errno> {
    debug_assert_eq!(FileType::from_raw_mode(from.st_mode), FileType::Directory);
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    fchown(&directory, Some(Uid::from_raw(from.st_uid)), Some(Gid::from_raw(from.st_gid)))?;
    fchmod(&directory, Mode::from_raw_mode(from.st_mode))?;
    let nanos = i64::try_from(from.st_mtime_nsec).unwrap_or_default();
    let time = Timespec { tv_sec: from.st_mtime, tv_nsec: nanos };
    futimens(&directory, &Timestamps { last_access: time, last_modification: time })
}
