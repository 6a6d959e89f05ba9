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
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid,
    XattrFlags, chownat, fchmod, fchown, fsetxattr, fstat, futimens, linkat, lsetxattr, makedev,
    mkdirat, mknodat, openat, openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};

use crate::PullError;
use crate::archive::{Archive, ArchiveError, Entry, Kind, printable};
use crate::budget::Share;
use crate::file_content::FileContent;
use crate::removal::remove;

const OPAQUE: &str = "trusted.overlay.opaque";
pub(crate) const WHITEOUT: &[u8] = b".wh.";
pub(crate) const OPAQUE_WHITEOUT: &[u8] = b".wh..wh..opq";
const MAX_COMPONENT: usize = 255;
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
}

/// Unpacks all entries of `archive` beneath `root`.
pub(crate) fn extract<R: io::Read>(
    archive: &mut Archive<R>,
    root: OwnedFd,
    budget: &Share,
) -> Result<Extracted, ExtractError> {
    let mut tree = Tree {
        parent: None,
        directory_times: Vec::new(),
        // Until its entry comes, the root is implied like any other directory.
        implied: HashSet::from([Vec::new()]),
        opaque_root: false,
        inherits: inherits(&root),
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

struct Tree {
    root: Rc<OwnedFd>,
    /// The parent of the last entry: the next is mostly its sibling.
    parent: Option<(Vec<u8>, Rc<OwnedFd>)>,
    /// Set at the end: each new child changes its directory's.
    directory_times: Vec<(Vec<u8>, Timestamps)>,
    implied: HashSet<Vec<u8>>,
    opaque_root: bool,
    /// New files may begin with another owner or group than 0.
    inherits: bool,
}

impl Tree {
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
            Kind::HardLink => self.hard_link(&at, name, entry),
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
        self.set_metadata(&root, entry)?;
        self.implied.remove(&[][..]);
        self.directory_times.push((Vec::new(), times(entry)));
        Ok(())
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
        self.set_metadata(&file, entry)?;
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
        self.set_metadata(&made, entry)?;
        self.directory_times.push((path.to_vec(), times(entry)));
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
        self.set_link_metadata(at, name, entry)
    }

    /// Both ends are inside: the target's parent is resolved like any parent, the target itself is
    /// linked without following it. Owner and mode are the target's; the link's own are not applied.
    fn hard_link(&mut self, at: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), ExtractError> {
        let shown = printable(&entry.path);
        let target = normalise(&entry.link)?;
        let missing = || {
            ExtractError::Refused(format!(
                "{shown} is a hard link to {}, which this layer does not have",
                printable(&entry.link)
            ))
        };
        let (target_parent, target_name) = split(&target).ok_or_else(missing)?;
        let target_at = self.open_parent(target_parent).map_err(|_| missing())?;
        let stat =
            statat(&target_at, target_name, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| missing())?;
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

    fn fifo(&mut self, at: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), ExtractError> {
        let write_error = |e| write_error(&entry.path, e);
        self.replacing(at, name, || mknodat(at, name, FileType::Fifo, Mode::RUSR, 0))
            .map_err(write_error)?;
        self.set_link_metadata(at, name, entry)?;
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
        let fd = Rc::new(match self.open_parent(path) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => self.imply(path)?,
            Err(Errno::LOOP) => {
                return refused(format!("{} is a loop of symbolic links", printable(path)));
            }
            Err(e) => return Err(write_error(path, e)),
        });
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
    fn imply(&mut self, path: &[u8]) -> Result<OwnedFd, ExtractError> {
        let Some((parent, name)) = split(path) else {
            return self.open_parent(path).map_err(|e| write_error(path, e));
        };
        let at = self.parent(parent)?;
        match statat(&*at, name, AtFlags::SYMLINK_NOFOLLOW) {
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
        let was_whiteout = self.make_directory(&at, name).map_err(|e| write_error(path, e))?;
        let made =
            openat(&*at, name, OPEN_DIRECTORY, Mode::empty()).map_err(|e| write_error(path, e))?;
        fchmod(&made, Mode::from_raw_mode(0o755)).map_err(|e| write_error(path, e))?;
        if was_whiteout {
            set_opaque(&made, path)?;
        } else {
            self.implied.insert(path.to_vec());
        }
        Ok(made)
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

    /// Owner, attributes, mode, in the order that lets each survive the next: a change of owner clears
    /// set-user-ID and file capabilities.
    fn set_metadata(&mut self, fd: &OwnedFd, entry: &Entry) -> Result<(), ExtractError> {
        let write_error = |e| write_error(&entry.path, e);
        if self.must_change_owner(entry) {
            fchown(fd, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
                .map_err(write_error)?;
        }
        for (name, value) in &entry.xattrs {
            check_xattr(name, entry)?;
            let set = fsetxattr(fd, &**name, value, XattrFlags::empty());
            kept_or_unsupported(set, name, entry)?;
        }
        let mode = Mode::from_raw_mode(entry.mode);
        // What is made in such a directory has its group.
        self.inherits |= entry.kind == Kind::Directory && mode.contains(Mode::SGID);
        fchmod(fd, mode).map_err(write_error)
    }

    /// The same for what cannot be opened: a symbolic link or a pipe.
    fn set_link_metadata(
        &mut self,
        at: &OwnedFd,
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), ExtractError> {
        let write_error = |e| write_error(&entry.path, e);
        if self.must_change_owner(entry) {
            let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
            chownat(at, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(write_error)?;
        }
        for (xattr, value) in &entry.xattrs {
            check_xattr(xattr, entry)?;
            // No *at call sets attributes before Linux 6.13. The directory is named by its descriptor and
            // the last component is not followed, so this goes nowhere else.
            let path = [proc_path(at).as_bytes(), b"/", name].concat();
            let set = lsetxattr(&*path, &**xattr, value, XattrFlags::empty());
            kept_or_unsupported(set, xattr, entry)?;
        }
        utimensat(at, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW).map_err(write_error)
    }

    /// What was just made belongs to root. A directory may have been there before, as another's.
    fn must_change_owner(&self, entry: &Entry) -> bool {
        self.inherits || (entry.uid, entry.gid) != (0, 0) || entry.kind == Kind::Directory
    }

    fn finish(mut self) -> Result<Extracted, ExtractError> {
        for (path, times) in self.directory_times.drain(..).rev() {
            let path = if path.is_empty() { b"." } else { &path[..] };
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            match openat2(&self.root, path, OPEN_DIRECTORY, Mode::empty(), resolve) {
                Ok(directory) => futimens(&directory, &times).map_err(|e| write_error(path, e))?,
                // A later entry took its place.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(e) => return Err(write_error(path, e)),
            }
        }
        let mut implied: Vec<_> = self.implied.into_iter().collect();
        implied.sort_unstable();
        Ok(Extracted { implied, opaque_root: self.opaque_root })
    }
}

/// Components of a path without `/`, `.` and empty ones, joined by `/`. `..` is refused: no builder
/// writes it, and what it means depends on who reads it.
pub(crate) fn normalise(path: &[u8]) -> Result<Vec<u8>, ExtractError> {
    let mut normal = Vec::with_capacity(path.len());
    for component in path.split(|b| *b == b'/') {
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

/// Whether a file that is made beneath `root` may have another owner or group than 0, because of who this
/// process is or because of the directory's own group.
fn inherits(root: &OwnedFd) -> bool {
    let plain = fstat(root).is_ok_and(|stat| {
        (stat.st_uid, stat.st_gid) == (0, 0)
            && !Mode::from_raw_mode(stat.st_mode).contains(Mode::SGID)
    });
    !plain || !geteuid().is_root() || !getegid().is_root()
}

/// overlayfs obeys attributes of its own name space: a layer that could set them could redirect a
/// directory or take a file's content from elsewhere.
fn check_xattr(name: &[u8], entry: &Entry) -> Result<(), ExtractError> {
    let forbidden = name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
    if forbidden || name.is_empty() || name.len() > MAX_COMPONENT {
        return refused(format!(
            "{} carries the extended attribute {}, which images may not bring",
            printable(&entry.path),
            printable(name)
        ));
    }
    Ok(())
}

/// Attributes of security modules or ACLs that this kernel does not have are dropped, as containerd
/// does. File capabilities are not: a program would run without them.
fn kept_or_unsupported(
    set: Result<(), Errno>,
    name: &[u8],
    entry: &Entry,
) -> Result<(), ExtractError> {
    match set {
        Err(Errno::OPNOTSUPP | Errno::PERM) if name != b"security.capability" => {
            tracing::debug!(
                entry = %printable(&entry.path), attribute = %printable(name),
                "extended attribute is not supported here, dropped"
            );
            Ok(())
        }
        Err(e) => {
            let what =
                format!("{}: extended attribute {}", printable(&entry.path), printable(name));
            Err(ExtractError::Write(what, e))
        }
        Ok(()) => Ok(()),
    }
}

fn set_opaque(directory: &OwnedFd, path: &[u8]) -> Result<(), ExtractError> {
    fsetxattr(directory, OPAQUE, b"y", XattrFlags::empty()).map_err(|e| write_error(path, e))
}

fn is_whiteout(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn times(entry: &Entry) -> Timestamps {
    let (tv_sec, nanos) = entry.mtime;
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec, tv_nsec: nanos.into() },
    }
}

fn proc_path(fd: &impl AsFd) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

fn refused<T>(problem: impl Into<String>) -> Result<T, ExtractError> {
    Err(ExtractError::Refused(problem.into()))
}

fn write_error(path: &[u8], errno: Errno) -> ExtractError {
    ExtractError::Write(printable(path), errno)
}

#[cfg(test)]
mod tests;
