//! Files that the host copies into the guest, to be bound into containers.
//!
//! The host is not trusted with paths: everything is opened relative to the copy root, beneath it, and
//! without following any symbolic link (openat2(2)), also not one that the host made before. A file
//! appears under its name only when it is complete.

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
/// Entries that the host may make in all: directories, links and files.
const MOST_ENTRIES: usize = 16 * 1024;

/// Where copies go.
#[derive(Debug)]
pub(crate) struct CopyRoot {
    path: PathBuf,
    root: OwnedFd,
    entries: usize,
}

impl CopyRoot {
    /// Makes the directory, reachable by containers' users.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let root = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
        Ok(Self { path: path.to_owned(), root, entries: 0 })
    }

    /// Takes one request: a chunk of a file, a directory or a symbolic link.
    pub(crate) fn copy(&mut self, request: &CopyFileRequest) -> Result<(), RpcError> {
        let target = Target::parse(request)?;
        let beneath = Self::relative(&self.path, &request.path)?;
        let (parent, name) = self.parent(&beneath, request)?;
        let doing = format!("failed to copy {}", request.path);
        let fail = |e: Errno| RpcError::internal(&doing, io::Error::from(e));
        match target {
            Target::Directory { mode } => {
                self.count(request)?;
                match rustix::fs::mkdirat(&parent, &name, mode) {
                    Err(Errno::EXIST) => {}
                    result => result.map_err(fail)?,
                }
                let directory = open_beneath(&parent, &name, OFlags::RDONLY | OFlags::DIRECTORY)
                    .map_err(fail)?;
                finish(&directory, mode, request).map_err(fail)
            }
            Target::Link { target } => {
                self.count(request)?;
                let staging = format!("{name}{STAGING}");
                remove_file(&parent, &staging).map_err(fail)?;
                rustix::fs::symlinkat(target, &parent, &staging).map_err(fail)?;
                rustix::fs::renameat(&parent, &staging, &parent, &name).map_err(fail)
            }
            Target::Chunk { mode, offset, size } => {
                if offset == 0 {
                    self.count(request)?;
                }
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

    /// Opens a copied file or directory, for a bind mount. `None` if `path` is not beneath the root.
    pub(crate) fn open(&self, path: &Path) -> Option<io::Result<OwnedFd>> {
        let beneath = path.strip_prefix(&self.path).ok()?;
        if beneath.as_os_str().is_empty() {
            return Some(Err(io::ErrorKind::PermissionDenied.into()));
        }
        Some(open_beneath(&self.root, beneath, OFlags::PATH).map_err(Into::into))
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
        &self,
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

    fn count(&mut self, request: &CopyFileRequest) -> Result<(), RpcError> {
        if self.entries >= MOST_ENTRIES {
            let why =
                format!("{}: {MOST_ENTRIES} files were copied, which is the most", request.path);
            return Err(RpcError::Exhausted(why));
        }
        self.entries += 1;
        Ok(())
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
        return open_beneath(directory, name, OFlags::WRONLY);
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
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    struct Copies {
        directory: tempfile::TempDir,
        root: CopyRoot,
    }

    fn copies() -> Copies {
        let directory = tempfile::tempdir().unwrap();
        let root = CopyRoot::create(&directory.path().join("root")).unwrap();
        Copies { directory, root }
    }

    impl Copies {
        fn file(&self, name: &str, data: &[u8]) -> CopyFileRequest {
            CopyFileRequest {
                path: self.root.path.join(name).to_str().unwrap().into(),
                file_size: i64::try_from(data.len()).unwrap(),
                file_mode: 0o100_640,
                dir_mode: 0o755,
                uid: i32::try_from(rustix::process::getuid().as_raw()).unwrap(),
                gid: i32::try_from(rustix::process::getgid().as_raw()).unwrap(),
                data: data.to_vec(),
                ..Default::default()
            }
        }

        fn refused(&mut self, request: &CopyFileRequest) -> String {
            self.root.copy(request).unwrap_err().to_string()
        }
    }

    #[test]
    fn a_file_appears_when_it_is_complete() {
        let mut copies = copies();
        let mut request = copies.file("a/b/hosts", b"hello");
        request.data = b"hel".to_vec();
        copies.root.copy(&request).unwrap();
        let path = PathBuf::from(&request.path);
        assert!(!path.exists());
        (request.data, request.offset) = (b"lo".to_vec(), 3);
        copies.root.copy(&request).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"hello");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
        copies.root.open(&path).unwrap().unwrap();
    }

    #[test]
    fn a_later_copy_replaces_an_earlier_one_whole() {
        let mut copies = copies();
        copies.root.copy(&copies.file("hosts", b"first, longer")).unwrap();
        let inode = fs::metadata(copies.root.path.join("hosts")).unwrap().ino();
        copies.root.copy(&copies.file("hosts", b"second")).unwrap();
        let path = copies.root.path.join("hosts");
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_ne!(fs::metadata(&path).unwrap().ino(), inode);
        let empty = copies.file("empty", b"");
        copies.root.copy(&empty).unwrap();
        assert_eq!(fs::metadata(empty.path).unwrap().len(), 0);
    }

    #[test]
    fn directories_and_links_are_made() {
        let mut copies = copies();
        let mut directory = copies.file("secret", b"");
        directory.file_mode = 0o040_750;
        copies.root.copy(&directory).unwrap();
        copies.root.copy(&directory).unwrap();
        let mut link = copies.file("secret/..data", b"..2026/key");
        link.file_mode = 0o120_777;
        copies.root.copy(&link).unwrap();
        copies.root.copy(&link).unwrap();
        assert_eq!(fs::read_link(link.path).unwrap(), Path::new("..2026/key"));
    }

    #[test]
    fn no_path_leaves_the_root() {
        let mut copies = copies();
        let outside = copies.directory.path().join("outside");
        for path in ["/etc/passwd".to_owned(), outside.to_str().unwrap().to_owned()] {
            let mut request = copies.file("x", b"x");
            request.path = path;
            assert!(copies.refused(&request).contains("not beneath"));
        }
        for name in ["../outside", "a/../../outside", "", ".", "a/./../../outside"] {
            let request = copies.file(name, b"x");
            assert!(copies.refused(&request).contains("path:"), "{name}");
        }
        let deep = copies.file(&"a/".repeat(100), b"x");
        assert!(copies.refused(&deep).contains("deeper"));
        assert!(!outside.exists());
    }

    #[test]
    fn no_symbolic_link_is_followed() {
        let mut copies = copies();
        let outside = copies.directory.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("victim"), "untouched").unwrap();
        let root = copies.root.path.clone();
        // As a parent, by its absolute or relative path, and in the place of the file.
        symlink(&outside, root.join("absolute")).unwrap();
        symlink("../outside", root.join("relative")).unwrap();
        symlink(outside.join("victim"), root.join("victim")).unwrap();
        symlink(outside.join("victim"), root.join(format!("staged{STAGING}"))).unwrap();
        for name in ["absolute/victim", "relative/victim", "absolute/new"] {
            let request = copies.file(name, b"attack");
            copies.refused(&request);
        }
        copies.root.copy(&copies.file("victim", b"attack")).unwrap();
        copies.root.copy(&copies.file("staged", b"attack")).unwrap();
        let mut directory = copies.file("relative", b"");
        directory.file_mode = 0o040_777;
        copies.refused(&directory);
        assert_eq!(fs::read(outside.join("victim")).unwrap(), b"untouched");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        assert!(copies.root.open(&root.join("absolute/victim")).unwrap().is_err());
        assert!(copies.root.open(&outside).is_none());
        assert!(copies.root.open(&root).unwrap().is_err());
    }

    #[test]
    fn sizes_offsets_and_kinds_are_checked() {
        let mut copies = copies();
        let change = |copies: &mut Copies, change: fn(&mut CopyFileRequest)| {
            let mut request = copies.file("x", b"hello");
            change(&mut request);
            copies.refused(&request)
        };
        assert!(change(&mut copies, |r| r.file_size = -1).contains("file_size"));
        assert!(change(&mut copies, |r| r.file_size = 1 << 40).contains("file_size"));
        assert!(change(&mut copies, |r| r.file_size = 3).contains("data"));
        assert!(change(&mut copies, |r| r.offset = -3).contains("offset"));
        assert!(change(&mut copies, |r| r.file_mode = 0o020_666).contains("file_mode"));
        assert!(change(&mut copies, |r| r.file_mode = 0o104_755).contains("file_mode"));
        let mut second = copies.file("x", b"hello");
        (second.offset, second.data) = (2, b"llo".to_vec());
        assert!(copies.refused(&second).contains("offset"));
        let mut named = copies.file("x", b"");
        named.path.push_str(STAGING);
        assert!(copies.refused(&named).contains(STAGING));
    }
}
