//! The way to a file through the merged layers.

use super::{Layer, MAX_LINKS, Node, NodeKind, accounts, prefixes};
use crate::PullError;
use crate::extract::split;

/// The layers that were read so far, top first.
pub(super) struct Seen {
    pub(super) layers: Vec<Layer>,
    /// Layers beneath them that were not.
    pub(super) unseen: usize,
}

pub(super) enum Found {
    Content(Vec<u8>),
    /// The layers that were not read decide.
    Below,
    Unasked(Vec<u8>),
}

impl Seen {
    /// Walks to a file as the kernel would on the merged layers, from the root. A file that is not there
    /// is empty.
    pub(super) fn find(&self, name: &[u8]) -> Result<Found, PullError> {
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
