//! Files that the host copies into the guest, to be bound into containers.
//!
//! The host is not trusted with paths: everything is opened relative to the copy root, beneath it, and
//! without following any symbolic link (openat2(2)), also not one that the host made before. A file
//! appears under its name only when it is complete.
//!
//! What a container has been given changes in one way only, that of the kubelet's volumes: new files come
//! in a directory of their own (`..2026_...`), which no other link leads to; then the link `..data` is exchanged,
//! and with it all files at once. What the link led to before is removed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nacre_protocol::agent::CopyFileRequest;
use nacre_protocol::channel::{COPY_CHUNK, COPY_ROOT};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use crate::error::RpcError;

/// Largest file, in bytes.
const LARGEST_FILE: u64 = 16 * 1024 * 1024;
/// Deepest path beneath the root, in components.
const DEEPEST: usize = 32;
/// Longest target of a symbolic link.
const LONGEST_TARGET: usize = 4095;
/// Suffix of a file that is not complete. No final name may have it.
const STAGING: &str = ".nacre-partial";
/// Entries that there may be in all: directories, links and files.
const MOST_ENTRIES: usize = 16 * 1024;
/// The link of a kubelet's volume that leads to the directory with its files.
const DATA_LINK: &str = "..data";

/// Where copies go.
#[derive(Debug)]
pub(crate) struct CopyRoot {
    path: PathBuf,
    root: OwnedFd,
    /// How many entries there are, by the first two components of their paths.
    entries: BTreeMap<(String, String), usize>,
    /// First components of what containers have been given.
    given: BTreeSet<String>,
    /// Those among them that hold sealed secrets: containers have a copy with the secrets themselves.
    sealed: BTreeSet<String>,
}

impl CopyRoot {
    /// Makes the directory, reachable by containers' users.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let root = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
        Ok(Self {
            path: path.to_owned(),
            root,
            entries: BTreeMap::new(),
            given: BTreeSet::new(),
            sealed: BTreeSet::new(),
        })
    }

    /// Takes one request: a chunk of a file, a directory or a symbolic link.
    pub(crate) fn copy(&mut self, request: &CopyFileRequest) -> Result<(), RpcError> {
        let target = Target::parse(request)?;
        let beneath = Self::relative(&self.path, &request.path)?;
        let change = self.check_given(&target, &beneath)?;
        if let Target::Link { target } = &target
            && leads_to_new_files(&beneath, target)
        {
            let why = "only the link ..data may lead to a directory ..NAME";
            return Err(RpcError::invalid("data", why));
        }
        let (parent, name) = self.parent(&beneath, request)?;
        if matches!(target, Target::Directory { .. } | Target::Link { .. })
            || matches!(target, Target::Chunk { offset: 0, .. })
        {
            self.count_new(&parent, &name, &beneath)?;
        }
        let doing = format!("failed to copy {}", request.path);
        let fail = |e: Errno| RpcError::internal(&doing, io::Error::from(e));
        match target {
            Target::Directory { mode } => {
                match rustix::fs::mkdirat(&parent, &name, mode) {
                    Err(Errno::EXIST) => {}
                    result => result.map_err(fail)?,
                }
                let directory = open_beneath(&parent, &name, OFlags::RDONLY | OFlags::DIRECTORY)
                    .map_err(fail)?;
                finish(&directory, mode, request).map_err(fail)
            }
            Target::Link { target } => {
                let staging = format!("{name}{STAGING}");
                remove_file(&parent, &staging).map_err(fail)?;
                rustix::fs::symlinkat(target, &parent, &staging).map_err(fail)?;
                rustix::fs::renameat(&parent, &staging, &parent, &name).map_err(fail)?;
                if let Some(Exchange { volume, new }) = change {
                    self.remove_old(&volume, &new)
                        .map_err(|e| RpcError::internal(format!("{doing}: remove old files"), e))?;
                }
                Ok(())
            }
            Target::Chunk { mode, offset, size } => {
                let staging = format!("{name}{STAGING}");
                let file = open_staging(&parent, &staging, offset).map_err(|e| match e {
                    Errno::NOENT => {
                        let why = format!("is {offset}, but no chunk with offset 0 came before");
                        RpcError::invalid("offset", why)
                    }
                    e => fail(e),
                })?;
                let length = rustix::fs::fstat(&file).map_err(fail)?.st_size;
                if u64::try_from(length).ok() != Some(offset) {
                    let why = format!("is {offset}, but {length} bytes of the file are here");
                    return Err(RpcError::invalid("offset", why));
                }
                write_all(&file, &request.data, offset).map_err(fail)?;
                if offset + request.data.len() as u64 == size {
                    finish(&file, mode, request).map_err(fail)?;
                    rustix::fs::renameat(&parent, &staging, &parent, &name).map_err(fail)?;
                }
                Ok(())
            }
        }
    }

    /// Opens a copied file or directory, for a bind mount; from now on a container has it. `None` if `path`
    /// is not beneath the root.
    pub(crate) fn open(&mut self, path: &Path) -> Option<io::Result<OwnedFd>> {
        let beneath = path.strip_prefix(&self.path).ok()?;
        let Some(first) = first_component(beneath) else {
            return Some(Err(io::ErrorKind::PermissionDenied.into()));
        };
        // New files come there one by one: they are seen through ..data, all at once.
        if beneath.iter().skip(1).filter_map(|part| part.to_str()).any(is_generation) {
            return Some(Err(io::ErrorKind::PermissionDenied.into()));
        }
        let opened = open_beneath(&self.root, beneath, OFlags::PATH).map_err(Into::into);
        if opened.is_ok() {
            self.given.insert(first);
        }
        Some(opened)
    }

    /// The container that was given `path` has a copy of it, in which sealed secrets are unsealed.
    pub(crate) fn holds_sealed(&mut self, path: &Path) {
        let first = path.strip_prefix(&self.path).ok().and_then(first_component);
        self.sealed.extend(first);
    }

    /// Removes what was copied for a container: `<container>-<16 hexadecimal digits>-...`.
    pub(crate) fn forget(&mut self, container: &str) -> io::Result<()> {
        let is_its = |first: &str| {
            let rest = first.strip_prefix(container).and_then(|rest| rest.strip_prefix('-'));
            rest.and_then(|rest| rest.split_at_checked(16)).is_some_and(|(number, name)| {
                number.bytes().all(|c| c.is_ascii_hexdigit()) && name.starts_with('-')
            })
        };
        let its: BTreeSet<String> =
            self.entries.keys().map(|(first, _)| first).filter(|f| is_its(f)).cloned().collect();
        for first in its {
            remove(&self.path.join(&first))?;
            self.entries.retain(|(owner, _), _| *owner != first);
            self.given.remove(&first);
            self.sealed.remove(&first);
        }
        Ok(())
    }

    /// What a container has been given may change as the kubelet changes its volumes, and not otherwise.
    fn check_given(&self, target: &Target, beneath: &Path) -> Result<Option<Exchange>, RpcError> {
        let Some(volume) = first_component(beneath).filter(|first| self.given.contains(first))
        else {
            return Ok(None);
        };
        let refused = |why: &str| {
            let why = format!("{}: a container has it already; {why}", beneath.display());
            RpcError::Precondition(why)
        };
        if self.sealed.contains(&volume) {
            return Err(refused("secrets in it are unsealed when a container is made: restart it"));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let current = open_beneath(&self.root, &*volume, flags)
            .and_then(|directory| rustix::fs::readlinkat(directory, DATA_LINK, Vec::new()))
            .map_err(|_| refused("only volumes with a link ..data change"))?;
        // Where the link leads elsewhere, or by another way, what the container sees cannot be told from new files.
        let current = current.to_str().ok().filter(|current| is_generation(current));
        let current = current.filter(|current| {
            open_beneath(&self.root, Path::new(&volume).join(current), flags).is_ok()
        });
        let current =
            current.ok_or_else(|| refused("its ..data does not lead to a directory beside it"))?;
        let parts: Vec<_> = beneath.iter().skip(1).map(|part| part.to_string_lossy()).collect();
        match (target, parts.as_slice()) {
            (Target::Directory { .. }, [new, ..]) | (Target::Chunk { .. }, [new, _, ..])
                if is_generation(new) =>
            {
                if *new == current {
                    return Err(refused("..data leads there: copy new files beside it"));
                }
                Ok(None)
            }
            (Target::Link { target }, [link]) if link == DATA_LINK => {
                let new = target.to_str().filter(|new| is_generation(new));
                let new = new.ok_or_else(|| refused("..data leads to a directory beside it"))?;
                let path = Path::new(&volume).join(new);
                open_beneath(&self.root, &path, flags)
                    .map_err(|_| refused("..data must lead to a directory that is there"))?;
                Ok(Some(Exchange { volume, new: new.to_owned() }))
            }
            (Target::Link { target }, [link])
                if !link.starts_with("..")
                    && *target == Path::new(DATA_LINK).join(link.as_ref()) =>
            {
                Ok(None)
            }
            _ => Err(refused(
                "what may come is a directory ..NAME with files, the link ..data to it, and links to \
                 ..data/FILE",
            )),
        }
    }

    /// Removes the files that `..data` led to before, and links to files that are no more.
    fn remove_old(&mut self, volume: &str, new: &str) -> io::Result<()> {
        let directory = self.path.join(volume);
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = entry.path();
            let old = if entry.file_type()?.is_dir() {
                is_generation(&name) && name != new
            } else {
                let target = Path::new(DATA_LINK).join(&name);
                !name.starts_with("..")
                    && fs::read_link(&path).is_ok_and(|link| link == target)
                    && fs::symlink_metadata(directory.join(new).join(&name)).is_err()
            };
            if old {
                remove(&path)?;
                self.entries.remove(&(volume.to_owned(), name));
            }
        }
        // It was exchanged, not added.
        self.entries.insert((volume.to_owned(), DATA_LINK.to_owned()), 1);
        Ok(())
    }

    fn relative(root: &Path, path: &str) -> Result<PathBuf, RpcError> {
        let outside = || RpcError::invalid("path", format!("{path:?} is not beneath {COPY_ROOT}"));
        let beneath = Path::new(path).strip_prefix(root).map_err(|_| outside())?;
        let plain = beneath.components().all(|part| matches!(part, Component::Normal(_)));
        let depth = beneath.components().count();
        if !plain || depth == 0 || path.contains('\0') {
            return Err(outside());
        }
        if depth > DEEPEST {
            return Err(RpcError::invalid("path", format!("is deeper than {DEEPEST} directories")));
        }
        Ok(beneath.to_owned())
    }

    /// Opens the directory that is to hold the entry, making what lacks on the way.
    fn parent(
        &mut self,
        beneath: &Path,
        request: &CopyFileRequest,
    ) -> Result<(OwnedFd, String), RpcError> {
        let name = beneath.file_name().and_then(|name| name.to_str());
        let name = name.filter(|name| !name.ends_with(STAGING));
        let name = name.ok_or_else(|| {
            RpcError::invalid("path", format!("must be UTF-8 and not end in {STAGING}"))
        })?;
        let doing = format!("failed to open the directory of {}", request.path);
        let fail = |e: Errno| RpcError::internal(&doing, io::Error::from(e));
        let mode = Mode::from_raw_mode(request.dir_mode & 0o777);
        let mode = if mode.is_empty() { Mode::from_raw_mode(0o755) } else { mode };
        let mut directory = open_beneath(&self.root, ".", OFlags::PATH).map_err(fail)?;
        for part in beneath.parent().into_iter().flat_map(Path::components) {
            self.count_new(&directory, part.as_os_str(), beneath)?;
            match rustix::fs::mkdirat(&directory, part.as_os_str(), mode) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(fail(error)),
            }
            directory =
                open_beneath(&directory, part.as_os_str(), OFlags::PATH | OFlags::DIRECTORY)
                    .map_err(fail)?;
        }
        Ok((directory, name.to_owned()))
    }

    /// Counts an entry on the way to `beneath` that is about to be made, unless it is there: what is copied again, or
    /// in several chunks, is one.
    fn count_new(
        &mut self,
        directory: &OwnedFd,
        name: impl rustix::path::Arg + Copy,
        beneath: &Path,
    ) -> Result<(), RpcError> {
        let found = |name| rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        if found(name) {
            return Ok(());
        }
        if self.entries.values().sum::<usize>() >= MOST_ENTRIES {
            let why = format!(
                "{}: {MOST_ENTRIES} files were copied, which is the most",
                beneath.display()
            );
            return Err(RpcError::Exhausted(why));
        }
        let mut parts = beneath.iter().map(|part| part.to_string_lossy().into_owned());
        let key = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        *self.entries.entry(key).or_default() += 1;
        Ok(())
    }
}

/// The link `..data` of a volume gets another target.
#[derive(Debug)]
struct Exchange {
    volume: String,
    new: String,
}

fn first_component(beneath: &Path) -> Option<String> {
    beneath.iter().next().map(|part| part.to_string_lossy().into_owned())
}

/// Whether a directory of this name may hold a volume's files: the kubelet calls them `..YEAR_MONTH_...`.
fn is_generation(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    name.strip_prefix("..").is_some_and(|rest| !rest.is_empty() && rest.chars().all(plain))
        && name != DATA_LINK
        && !name.ends_with(STAGING)
}

/// Whether a link would show a container files that come one by one. Volumes within a copied directory have links
/// `..data` of their own, which lead to nothing that can still change.
fn leads_to_new_files(link: &Path, target: &Path) -> bool {
    let exchanged = link.file_name().is_some_and(|name| name == DATA_LINK)
        && (link.iter().count() == 2 || target.to_str().is_some_and(is_generation));
    !exchanged && target.iter().filter_map(|part| part.to_str()).any(is_generation)
}

/// Removes a file or a directory with all in it, and follows no link.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// What a request makes.
#[derive(Debug)]
enum Target {
    Directory { mode: Mode },
    Link { target: PathBuf },
    Chunk { mode: Mode, offset: u64, size: u64 },
}

impl Target {
    fn parse(request: &CopyFileRequest) -> Result<Self, RpcError> {
        let mode = Mode::from_raw_mode(request.file_mode & 0o7777);
        let kind = FileType::from_raw_mode(request.file_mode);
        // Volumes' directories may be sticky or pass on their group; nothing copied runs as its owner.
        let special = match kind {
            FileType::Directory => Mode::SUID,
            FileType::Symlink => Mode::empty(),
            _ => Mode::SUID | Mode::SGID | Mode::SVTX,
        };
        if mode.intersects(special) {
            let why = "the set-user-ID, set-group-ID and sticky bits are not accepted here";
            return Err(RpcError::invalid("file_mode", why));
        }
        match kind {
            FileType::Directory => Ok(Self::Directory { mode }),
            FileType::Symlink => {
                use std::os::unix::ffi::OsStrExt;
                let bad = request.data.is_empty()
                    || request.data.len() > LONGEST_TARGET
                    || request.data.contains(&0);
                if bad {
                    return Err(RpcError::invalid("data", "is not the target of a symbolic link"));
                }
                let target = std::ffi::OsStr::from_bytes(&request.data).into();
                Ok(Self::Link { target })
            }
            // Kata sends a regular file's mode with or without its type.
            FileType::RegularFile | FileType::Unknown => {
                let size = u64::try_from(request.file_size).ok().filter(|s| *s <= LARGEST_FILE);
                let size = size.ok_or_else(|| {
                    let why = format!("must be between 0 and {LARGEST_FILE} bytes");
                    RpcError::invalid("file_size", why)
                })?;
                let offset = u64::try_from(request.offset).ok().filter(|offset| *offset <= size);
                let offset = offset
                    .ok_or_else(|| RpcError::invalid("offset", "must be within the file's size"))?;
                let length = request.data.len();
                if length > COPY_CHUNK || length as u64 > size - offset {
                    let why = format!("must be at most {COPY_CHUNK} bytes and within the file");
                    return Err(RpcError::invalid("data", why));
                }
                Ok(Self::Chunk { mode, offset, size })
            }
            _ => {
                let why = "only regular files, directories and symbolic links can be copied";
                Err(RpcError::invalid("file_mode", why))
            }
        }
    }
}

fn open_beneath(
    directory: &OwnedFd,
    path: impl rustix::path::Arg,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat2(directory, path, flags, Mode::empty(), resolve)
}

/// The first chunk makes the file anew; the others find it.
fn open_staging(directory: &OwnedFd, name: &str, offset: u64) -> Result<OwnedFd, Errno> {
    if offset > 0 {
        // A container that may write here can put anything there: what waits for a reader would stop the agent.
        let file = open_beneath(directory, name, OFlags::WRONLY | OFlags::NONBLOCK)?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
        return if kind == FileType::RegularFile { Ok(file) } else { Err(Errno::INVAL) };
    }
    remove_file(directory, name)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::RUSR | Mode::WUSR)
}

fn remove_file(directory: &OwnedFd, name: &str) -> Result<(), Errno> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

fn write_all(file: &OwnedFd, data: &[u8], offset: u64) -> Result<(), Errno> {
    let mut done = 0;
    while done < data.len() {
        done += rustix::io::pwrite(file, &data[done..], offset + done as u64)?;
    }
    Ok(())
}

/// Owner first: changing it clears mode bits.
fn finish(fd: &OwnedFd, mode: Mode, request: &CopyFileRequest) -> Result<(), Errno> {
    let uid = u32::try_from(request.uid).ok().map(Uid::from_raw);
    let gid = u32::try_from(request.gid).ok().map(Gid::from_raw);
    rustix::fs::fchown(fd, uid, gid)?;
    rustix::fs::fchmod(fd, mode)
}

#[cfg(test)]
mod tests;
