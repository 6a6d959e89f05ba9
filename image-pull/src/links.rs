//! Hard links to files of lower layers. A builder may write `ln /a /b` as just that link, though the layer
//! does not hold `/a`; container engines that unpack one layer onto the other find it there.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;

use crate::PullError;
use crate::archive::printable;
use crate::extract::Link;
use crate::parents::{Layer, look};
use crate::store::Lease;

/// Where links are to be, and what they are to be. `stack` is top first, `layers` the same bottom first.
/// Links that an upper layer hides are left out.
pub(crate) fn resolve(
    stack: &[Layer<'_>],
    layers: &[Arc<Lease>],
) -> Result<Vec<(PathBuf, Arc<OwnedFd>)>, PullError> {
    let mut found: HashMap<&[u8], Arc<OwnedFd>> = HashMap::new();
    let mut visible = Vec::new();
    for (at, lease) in layers.iter().enumerate() {
        // Those above this layer, this layer, those below it.
        let (above, rest) = stack.split_at(layers.len() - 1 - at);
        let Some((own, below)) = rest.split_first() else { break };
        for Link { path, target } in &lease.about.links {
            let place = PathBuf::from(OsString::from_vec(path.clone()));
            let source = below_this(below, target).or_else(|| found.get(&target[..]).cloned());
            // Through a link of its own the place would be another.
            let parent = place.parent().unwrap_or(Path::new(""));
            let source = source.filter(|_| look(own, parent).0.is_some());
            let source = source.ok_or_else(|| PullError::Layer {
                digest: lease.digest(),
                problem: format!(
                    "{} is a hard link to {}, which neither this layer nor one below has",
                    printable(path),
                    printable(target)
                ),
            })?;
            found.insert(path, source.clone());
            if open(own, path).is_err() && !above.iter().any(|layer| hides(layer, path)) {
                visible.push((place, source));
            }
        }
    }
    // Of the links to one place the uppermost is seen.
    let mut seen = std::collections::HashSet::new();
    visible.reverse();
    visible.retain(|(place, _)| seen.insert(place.clone()));
    Ok(visible)
}

/// A file that the layers, top first, show under this name.
fn below_this(layers: &[Layer<'_>], name: &[u8]) -> Option<Arc<OwnedFd>> {
    for layer in layers {
        match open(layer, name) {
            Ok(file) => {
                let kind = FileType::from_raw_mode(fstat(&file).ok()?.st_mode);
                let plain = [FileType::RegularFile, FileType::Symlink, FileType::Fifo];
                return plain.contains(&kind).then(|| Arc::new(file));
            }
            Err(_) if hides(layer, name) => return None,
            Err(_) => {}
        }
    }
    None
}

/// Whether what lower layers have under this name cannot be seen.
fn hides(layer: &Layer<'_>, name: &[u8]) -> bool {
    match open(layer, name) {
        Err(Errno::NOENT) => {
            let name = Path::new(std::ffi::OsStr::from_bytes(name));
            name.parent().is_some_and(|parent| look(layer, parent).1)
        }
        _ => true,
    }
}

fn open(layer: &Layer<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    openat2(&layer.root, name, flags, Mode::empty(), resolve)
}
