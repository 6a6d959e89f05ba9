//! Writes a layer's entries beneath one directory and nowhere else.
//!
//! The layer's author chooses every name and every symbolic link on the way, so paths are never given
//! to the kernel whole: a parent directory is opened with `openat2(RESOLVE_IN_ROOT |
//! RESOLVE_NO_MAGICLINKS)`, which keeps `..` and links inside, and the last component is then made by an
//! `*at` call that does not follow links. Metadata goes to the descriptor of what was just made.
//!
//! Whiteouts become what overlayfs knows: `.wh.NAME` a character device 0:0, `.wh..wh..opq` the
//! attribute `trusted.overlay.opaque` (image-spec, layer.md, "Representing Changes"). They speak of
//! lower layers only, whatever their place in the archive.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, XattrFlags, fchmod, fsetxattr, futimens, linkat,
    makedev, mkdirat, mknodat, openat, openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::PullError;
use crate::archive::{Archive, ArchiveError, Entry, Kind, printable};
use crate::budget::Share;
use crate::directory_times::DirectoryTimes;
use crate::file_content::FileContent;
use crate::metadata::{Metadata, proc_path, times};
use crate::removal::remove;

const OPAQUE: &str = "trusted.overlay.opaque";
pub(crate) const WHITEOUT: &[u8] = b".wh.";
pub(crate) const OPAQUE_WHITEOUT: &[u8] = b".wh..wh..opq";
pub(crate) const MAX_COMPONENT: usize = 255;
/// Most directories above each other. Each is made by a system call of its own, however short its name.
const MAX_DEPTH: usize = 256;
const PARENT_FLAGS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const OPEN_DIRECTORY: OFlags =
    OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::RDONLY);

/// Why an entry was not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExtractError {
    /// The layer asks for something it may not have.
    #[error("{0}")]
    Refused(String),
    /// The file system failed.
    #[error("{0}: {1}")]
    Write(String, Errno),
    /// Reading the layer failed.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A bound was reached.
    #[error(transparent)]
    Budget(PullError),
}

/// What a layer turned out to be, beside its tree.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Extracted {
    /// Directories that the layer needed but has no entry for. Their owner and mode are those of the
    /// layer below, if it has them.
    pub(crate) implied: Vec<Vec<u8>>,
    /// The layer hides all layers below it. overlayfs does not look for the opaque mark at a layer's
    /// root, so whoever stacks the layers has to leave those out.
    pub(crate) opaque_root: bool,
    /// Hard links to what this layer does not have. Whoever stacks the layers has to find it below.
    pub(crate) links: Vec<Link>,
}

/// A hard link that leads out of its layer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// Where it is to be.
    pub(crate) path: Vec<u8>,
    /// What it is to be.
    pub(crate) target: Vec<u8>,
}

/// Unpacks all entries of `archive` beneath `root`.
pub(crate) fn extract<R: io::Read>(
    archive: &mut Archive<R>,
    root: OwnedFd,
    budget: &Share,
) -> Result<Extracted, ExtractError> {
    let mut tree = Tree {
        parent: None,
        directory_times: DirectoryTimes::default(),
        budget,
        // Until its entry comes, the root is implied like any other directory.
        implied: HashSet::from([Vec::new()]),
        opaque_root: false,
        links: Vec::new(),
        metadata: Metadata::beneath(&root, budget),
        root: Rc::new(root),
    };
    while let Some(entry) = archive.next()? {
        budget.take_entry().map_err(ExtractError::Budget)?;
        if let Some(sparse) = &entry.sparse {
            // Holes cost nothing here, but whoever copies the file pays for them.
            budget.take_bytes(sparse.size - entry.size).map_err(ExtractError::Budget)?;
        }
        tree.add(&entry, archive)?;
    }
    tree.finish()
}

struct Tree<'a> {
    budget: &'a Share,
    root: Rc<OwnedFd>,
    /// The parent of the last entry: the next is mostly its sibling.
    parent: Option<(Vec<u8>, Rc<OwnedFd>)>,
    /// Set at the end: each new child changes its directory's.
    directory_times: DirectoryTimes,
    implied: HashSet<Vec<u8>>,
    opaque_root: bool,
    links: Vec<Link>,
    metadata: Metadata<'a>,
}

impl Tree<'_> {
    fn add<R: io::Read>(
        &mut self,
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), ExtractError> {
        let path = normalise(&entry.path)?;
        let Some((parent, name)) = split(&path) else {
            return self.set_root(entry);
        };
        if parent.split(|b| *b == b'/').any(|component| component.starts_with(WHITEOUT)) {
            return refused(format!("{} is beneath a whiteout", printable(&entry.path)));
        }
        let at = self.parent(parent)?;
        if name == OPAQUE_WHITEOUT {
            return self.make_opaque(parent, &at);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(&at, hidden, entry);
        }
        match entry.kind {
            Kind::File => self.file(&at, name, entry, archive),
            Kind::Directory => self.directory(&at, name, &path, entry),
            Kind::Symlink => self.symlink(&at, name, entry),
            Kind::HardLink => self.hard_link(&at, name, &path, entry),
            Kind::Fifo => self.fifo(&at, name, entry),
        }
    }

    /// The root has an entry of its own in most layers; it can only be a directory.
    fn set_root(&mut self, entry: &Entry) -> Result<(), ExtractError> {
        if entry.kind != Kind::Directory {
            return refused("the root itself can only be a directory, not a link or a file");
        }
        let root = openat(&self.root, ".", OPEN_DIRECTORY, Mode::empty())
            .map_err(|e| write_error(&entry.path, e))?;
        self.metadata.set(&root, entry)?;
        self.implied.remove(&[][..]);
        self.remember_times(&[], entry)
    }

    fn file<R: io::Read>(
        &mut self,
        at: &OwnedFd,
        name: &[u8],
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), ExtractError> {
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || openat(at, name, flags, Mode::RUSR | Mode::WUSR);
        let file = self.replacing(at, name, open).map_err(|e| write_error(&entry.path, e))?;
        let regions = entry.sparse.as_ref().map(|sparse| &sparse.regions[..]);
        let mut content = FileContent::new(&file, regions);
        archive.content(|piece| content.put(piece).map_err(|e| write_error(&entry.path, e)))?;
        let size = entry.sparse.as_ref().map_or(entry.size, |sparse| sparse.size);
        content.finish(size).map_err(|e| write_error(&entry.path, e))?;
        self.metadata.set(&file, entry)?;
        futimens(&file, &times(entry)).map_err(|e| write_error(&entry.path, e))
    }

    fn directory(
        &mut self,
        at: &OwnedFd,
        name: &[u8],
        path: &[u8],
        entry: &Entry,
    ) -> Result<(), ExtractError> {
        let was_whiteout = self.make_directory(at, name).map_err(|e| write_error(path, e))?;
        let made =
            openat(at, name, OPEN_DIRECTORY, Mode::empty()).map_err(|e| write_error(path, e))?;
        if was_whiteout {
            set_opaque(&made, path)?;
        }
        self.metadata.set(&made, entry)?;
        self.remember_times(path, entry)?;
        self.implied.remove(path);
        self.parent = Some((path.to_vec(), Rc::new(made)));
        Ok(())
    }

    fn symlink(&mut self, at: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), ExtractError> {
        if entry.link.is_empty() {
            return refused(format!("{} is a symbolic link to nothing", printable(&entry.path)));
        }
        self.replacing(at, name, || symlinkat(&*entry.link, at, name))
            .map_err(|e| write_error(&entry.path, e))?;
        self.metadata.set_link(at, name, entry)
    }

    /// Both ends are inside: the target's parent is resolved like any parent, the target itself is
    /// linked without following it. Owner and mode are the target's; the link's own are not applied.
    fn hard_link(
        &mut self,
        at: &OwnedFd,
        name: &[u8],
        path: &[u8],
        entry: &Entry,
    ) -> Result<(), ExtractError> {
        let shown = printable(&entry.path);
        let target = normalise(&entry.link)?;
        let missing = || {
            ExtractError::Refused(format!(
                "{shown} is a hard link to {}, which this layer does not have",
                printable(&entry.link)
            ))
        };
        let (target_parent, target_name) = split(&target).ok_or_else(missing)?;
        let target_at = match self.open_parent(target_parent) {
            Err(Errno::NOENT) => return self.link_below(at, name, path, target),
            other => other.map_err(|_| missing())?,
        };
        let stat = match statat(&target_at, target_name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return self.link_below(at, name, path, target),
            other => other.map_err(|_| missing())?,
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile | FileType::Symlink | FileType::Fifo => {}
            FileType::Directory => {
                return refused(format!("{shown} is a hard link to a directory"));
            }
            _ => return Err(missing()),
        }
        let link = || linkat(&target_at, target_name, at, name, AtFlags::empty());
        match self.replacing(at, name, link) {
            // The link took the place of its own target.
            Err(Errno::NOENT) => Err(missing()),
            other => other.map_err(|e| write_error(&entry.path, e)),
        }
    }

    /// The target may be in a layer below, which this one knows nothing of.
    fn link_below(
        &mut self,
        at: &OwnedFd,
        name: &[u8],
        path: &[u8],
        target: Vec<u8>,
    ) -> Result<(), ExtractError> {
        self.budget.take_name(path.len() + target.len()).map_err(ExtractError::Budget)?;
        self.replacing(at, name, || match statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(()),
            Ok(_) => Err(Errno::EXIST),
            Err(e) => Err(e),
        })
        .map_err(|e| write_error(path, e))?;
        self.links.push(Link { path: path.to_vec(), target });
        Ok(())
    }

    fn fifo(&mut self, at: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), ExtractError> {
        let write_error = |e| write_error(&entry.path, e);
        self.replacing(at, name, || mknodat(at, name, FileType::Fifo, Mode::RUSR, 0))
            .map_err(write_error)?;
        self.metadata.set_link(at, name, entry)?;
        // A descriptor that does not open the pipe cannot be chmod-ed itself, only by its name in /proc.
        let fifo =
            openat(at, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
                .map_err(write_error)?;
        rustix::fs::chmod(proc_path(&fifo), Mode::from_raw_mode(entry.mode))
            .map_err(write_error)?;
        utimensat(at, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW).map_err(write_error)
    }

    /// Hides `hidden` of the layers below. What this layer itself has under that name stays.
    fn whiteout(&mut self, at: &OwnedFd, hidden: &[u8], entry: &Entry) -> Result<(), ExtractError> {
        if hidden.is_empty() || hidden == b"." || hidden == b".." || hidden.starts_with(b".wh.") {
            return refused(format!("{} is not a whiteout of anything", printable(&entry.path)));
        }
        match mknodat(at, hidden, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => match openat(at, hidden, OPEN_DIRECTORY, Mode::empty()) {
                Ok(directory) => set_opaque(&directory, &entry.path),
                Err(Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => Ok(()),
                Err(e) => Err(write_error(&entry.path, e)),
            },
            Err(e) => Err(write_error(&entry.path, e)),
        }
    }

    fn make_opaque(&mut self, path: &[u8], at: &OwnedFd) -> Result<(), ExtractError> {
        self.opaque_root |= path.is_empty();
        let directory =
            openat(at, ".", OPEN_DIRECTORY, Mode::empty()).map_err(|e| write_error(path, e))?;
        set_opaque(&directory, path)
    }

    /// Descriptor of a parent directory, which is made if the layer has no entry for it.
    fn parent(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, ExtractError> {
        if path.is_empty() {
            return Ok(self.root.clone());
        }
        if let Some((cached, fd)) = &self.parent
            && cached == path
        {
            return Ok(fd.clone());
        }
        let fd = match self.open_parent(path) {
            Ok(fd) => Rc::new(fd),
            Err(Errno::NOENT | Errno::NOTDIR) => self.imply(path)?,
            Err(Errno::LOOP) => {
                return refused(format!("{} is a loop of symbolic links", printable(path)));
            }
            Err(e) => return Err(write_error(path, e)),
        };
        self.parent = Some((path.to_vec(), fd.clone()));
        Ok(fd)
    }

    fn open_parent(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            match openat2(&self.root, path, PARENT_FLAGS, Mode::empty(), resolve) {
                // The kernel saw a rename elsewhere and could not prove that ".." stayed inside.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// Makes a directory that has no entry (yet), with its parents.
    fn imply(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, ExtractError> {
        let mut missing = Vec::new();
        let mut above = path;
        let mut at = loop {
            let Some((parent, name)) = split(above) else { break self.root.clone() };
            missing.push((above, name));
            match self.open_parent(parent) {
                Ok(fd) => break Rc::new(fd),
                Err(Errno::NOENT | Errno::NOTDIR) => above = parent,
                Err(e) => return Err(write_error(parent, e)),
            }
        };
        for (path, name) in missing.into_iter().rev() {
            at = Rc::new(self.imply_in(&at, path, name)?);
        }
        Ok(at)
    }

    fn imply_in(
        &mut self,
        at: &OwnedFd,
        path: &[u8],
        name: &[u8],
    ) -> Result<OwnedFd, ExtractError> {
        match statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Err(e) => return Err(write_error(path, e)),
            Ok(stat) if is_whiteout(&stat) => {}
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
                return refused(format!("{} is a dangling symbolic link", printable(path)));
            }
            Ok(_) => {
                return refused(format!(
                    "{} is not a directory but has an entry beneath it",
                    printable(path)
                ));
            }
        }
        self.budget.take_entry().map_err(ExtractError::Budget)?;
        let was_whiteout = self.make_directory(at, name).map_err(|e| write_error(path, e))?;
        let made =
            openat(at, name, OPEN_DIRECTORY, Mode::empty()).map_err(|e| write_error(path, e))?;
        fchmod(&made, Mode::from_raw_mode(0o755)).map_err(|e| write_error(path, e))?;
        if was_whiteout {
            set_opaque(&made, path)?;
        } else {
            self.budget.take_name(path.len()).map_err(ExtractError::Budget)?;
            self.implied.insert(path.to_vec());
        }
        Ok(made)
    }

    fn remember_times(&mut self, path: &[u8], entry: &Entry) -> Result<(), ExtractError> {
        let cost = self.directory_times.cost(path);
        self.budget.take_name(cost).map_err(ExtractError::Budget)?;
        self.directory_times.push(path, times(entry));
        Ok(())
    }

    /// Makes or keeps the directory `name`; whether it took the place of a whiteout, and so must not
    /// show what lies below.
    fn make_directory(&mut self, at: &OwnedFd, name: &[u8]) -> Result<bool, Errno> {
        match mkdirat(at, name, Mode::RWXU) {
            Err(Errno::EXIST) => {}
            other => return other.map(|()| false),
        }
        let stat = statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Ok(false);
        }
        self.parent = None;
        unlinkat(at, name, AtFlags::empty())?;
        mkdirat(at, name, Mode::RWXU)?;
        Ok(is_whiteout(&stat))
    }

    /// Makes `name` by `make`, after removing what an earlier entry left there: the later one wins.
    fn replacing<T>(
        &mut self,
        at: &OwnedFd,
        name: &[u8],
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match make() {
            Err(Errno::EXIST) => {
                // What is removed may be on the way to the cached parent.
                self.parent = None;
                remove(at, name)?;
                make()
            }
            other => other,
        }
    }

    fn finish(self) -> Result<Extracted, ExtractError> {
        self.directory_times.for_each(|path, times| {
            let path = if path.is_empty() { b"." } else { path };
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            match openat2(&self.root, path, OPEN_DIRECTORY, Mode::empty(), resolve) {
                Ok(directory) => futimens(&directory, times).map_err(|e| write_error(path, e)),
                // A later entry took its place.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
                Err(e) => Err(write_error(path, e)),
            }
        })?;
        self.budget.forget_names(self.directory_times.total() as u64);
        let mut implied: Vec<_> = self.implied.into_iter().collect();
        implied.sort_unstable();
        Ok(Extracted { implied, opaque_root: self.opaque_root, links: self.links })
    }
}

/// Components of a path without `/`, `.` and empty ones, joined by `/`. `..` is refused: no builder
/// writes it, and what it means depends on who reads it.
pub(crate) fn normalise(path: &[u8]) -> Result<Vec<u8>, ExtractError> {
    let mut normal = Vec::with_capacity(path.len());
    let mut depth = 0;
    for component in path.split(|b| *b == b'/') {
        depth += usize::from(!component.is_empty());
        match component {
            b"" | b"." => {}
            b".." => {
                return refused(format!("the path {} contains \"..\"", printable(path)));
            }
            _ if component.len() > MAX_COMPONENT => {
                return refused(format!(
                    "a component of {} is longer than {MAX_COMPONENT} bytes",
                    printable(path)
                ));
            }
            _ if depth > MAX_DEPTH => {
                return refused(format!(
                    "the path {} has more than {MAX_DEPTH} directories above each other",
                    printable(path)
                ));
            }
            _ => {
                if !normal.is_empty() {
                    normal.push(b'/');
                }
                normal.extend_from_slice(component);
            }
        }
    }
    Ok(normal)
}

/// Parent and last component; none for the root.
pub(crate) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    Some(match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    })
}

fn set_opaque(directory: &OwnedFd, path: &[u8]) -> Result<(), ExtractError> {
    fsetxattr(directory, OPAQUE, b"y", XattrFlags::empty()).map_err(|e| write_error(path, e))
}

fn is_whiteout(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

pub(crate) fn refused<T>(problem: impl Into<String>) -> Result<T, ExtractError> {
    Err(ExtractError::Refused(problem.into()))
}

pub(crate) fn write_error(path: &[u8], errno: Errno) -> ExtractError {
    ExtractError::Write(printable(path), errno)
}

#[cfg(test)]
mod tests;
