//! Owners and modes of directories that a layer needs but does not describe.
//!
//! A layer may hold `tmp/file` and no entry for `tmp`. overlayfs shows the topmost directory's owner
//! and mode, so `/tmp` would lose its sticky bit. containerd copies them from the layer below while it
//! unpacks; here layers are unpacked independently and shared between images, so the corrected
//! directories go into one small layer of the image's own, on top of the others.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, fchmod,
    fchown, fgetxattr, fstat, futimens, open, openat2,
};
use rustix::io::Errno;

use crate::PullError;
use crate::store::{Store, StoredLayer};

/// Corrects the implied directories of `layers` (bottom first): the tree to put on top of them, if
/// any is needed.
pub(crate) fn correct(
    store: &Store,
    manifest: &nacre_trust::Digest,
    layers: &[StoredLayer],
) -> Result<Option<PathBuf>, PullError> {
    let target = store.parents(manifest);
    if target.exists() {
        return Ok(Some(target));
    }
    let mut wrong: Vec<&Path> = Vec::new();
    // The bottom layer has nobody to take anything from.
    for layer in layers.iter().skip(1) {
        wrong.extend(layer.implied.iter().map(PathBuf::as_path));
    }
    wrong.sort_unstable();
    wrong.dedup();
    let stack: Vec<Layer> = layers.iter().rev().map(Layer::open).collect::<Result<_, _>>()?;
    wrong.retain(|path| effective(&stack, path).is_some_and(|found| found.corrected));
    if wrong.is_empty() {
        return Ok(None);
    }
    let staging = store.stage()?;
    let tree = staging.tree();
    for path in &wrong {
        std::fs::create_dir_all(tree.join(path))
            .map_err(|e| PullError::io(format!("failed to make {}", path.display()), e))?;
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
    staging.keep_tree(&target)?;
    Ok(Some(target))
}

struct Layer<'a> {
    root: OwnedFd,
    implied: &'a [PathBuf],
}

impl<'a> Layer<'a> {
    fn open(layer: &'a StoredLayer) -> Result<Self, PullError> {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let root = open(&layer.tree, flags, Mode::empty()).map_err(|e| {
            PullError::io(format!("failed to open {}", layer.tree.display()), e.into())
        })?;
        Ok(Self { root, implied: &layer.implied })
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
            if !layer.implied.iter().any(|implied| implied == path) {
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
fn look(layer: &Layer<'_>, path: &Path) -> (Option<Stat>, bool) {
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
