//! Secrets as files: sealed ones among the files that the host has copied, and credentials that the
//! initdata lists.
//!
//! What the host copied stays as it is. A container that mounts a volume with sealed secrets in it gets a
//! copy of the volume, made when the container is, in which they are unsealed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nacre_policy::GuestApi;
use nacre_protocol::sealed::{TEXT_LIMIT, is_sealed};
use oci_spec::runtime::{Mount, User};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Uid};
use zeroize::Zeroizing;

use super::{Secrets, SecretsError, name_for_policy, short};
use crate::error::RpcError;

/// Most sealed files of a volume: each is a question to the key broker.
const MOST: usize = 256;
/// Deepest directory that is looked at; copies are not deeper.
const DEEPEST: usize = 40;
/// A line break of two bytes may follow a sealed secret.
const LARGEST: u64 = TEXT_LIMIT as u64 + 2;

/// Why a volume's secrets cannot be unsealed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesError {
    /// A file cannot be read or written.
    #[error("failed to look for sealed secrets in the volume: {0}")]
    Io(#[from] io::Error),
    /// Too many.
    #[error("the volume holds more than {MOST} sealed secrets")]
    TooMany,
    /// A sealed secret cannot be unsealed.
    #[error("failed to unseal {path:?}: {}", short(error))]
    Unseal {
        /// Within the volume; empty if the file itself is mounted.
        path: PathBuf,
        /// Why.
        error: Box<SecretsError>,
    },
}

/// The sealed secrets that a copied file or directory holds.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
    sealed: BTreeMap<PathBuf, String>,
}

impl Tree {
    /// Looks into what `source` was opened as. `None` if nothing in it is sealed.
    pub(crate) fn find(source: BorrowedFd<'_>) -> Result<Option<Self>, FilesError> {
        let mut sealed = BTreeMap::new();
        let stat = rustix::fs::fstat(source).map_err(io::Error::from)?;
        let root = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let root = open_in(source, OsStr::new("."), OFlags::DIRECTORY)?;
                search(&root, Path::new(""), 0, &mut sealed)?;
                root
            }
            FileType::RegularFile => {
                let root = reopen(source)?;
                if let Some(text) = sealed_text(&root, &stat)? {
                    sealed.insert(PathBuf::new(), text);
                }
                root
            }
            _ => return Ok(None),
        };
        Ok((!sealed.is_empty()).then_some(Self { root, sealed }))
    }

    /// Makes the copy with the secrets in it at `place`, which only the agent writes.
    pub(crate) async fn unseal(self, secrets: &Secrets, place: &Path) -> Result<(), FilesError> {
        let mut plain = BTreeMap::new();
        for (path, text) in &self.sealed {
            let secret = secrets.unseal(text).await;
            let failed = |error| FilesError::Unseal { path: path.clone(), error: Box::new(error) };
            plain.insert(path.clone(), secret.map_err(failed)?);
        }
        let stat = rustix::fs::fstat(&self.root).map_err(io::Error::from)?;
        match plain.get(Path::new("")) {
            Some(secret) => write(place, secret, &stat)?,
            None => copy(&self.root, &stat, place, Path::new(""), 0, &plain)?,
        }
        Ok(())
    }
}

type Plain = BTreeMap<PathBuf, Zeroizing<Vec<u8>>>;

fn search(
    directory: &OwnedFd,
    path: &Path,
    depth: usize,
    sealed: &mut BTreeMap<PathBuf, String>,
) -> Result<(), FilesError> {
    for (name, stat) in entries(directory, depth)? {
        let path = path.join(&name);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let inner = open_in(directory.as_fd(), &name, OFlags::DIRECTORY)?;
                search(&inner, &path, depth + 1, sealed)?;
            }
            FileType::RegularFile if may_be_sealed(&stat) => {
                let file = open_in(directory.as_fd(), &name, OFlags::empty())?;
                if let Some(text) = sealed_text(&file, &stat)? {
                    if sealed.len() >= MOST {
                        return Err(FilesError::TooMany);
                    }
                    sealed.insert(path, text);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// A copy with the same names, links, owners and modes.
fn copy(
    directory: &OwnedFd,
    stat: &Stat,
    place: &Path,
    path: &Path,
    depth: usize,
    plain: &Plain,
) -> io::Result<()> {
    fs::create_dir(place)?;
    for (name, stat) in entries(directory, depth)? {
        let (path, place) = (path.join(&name), place.join(&name));
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let inner = open_in(directory.as_fd(), &name, OFlags::DIRECTORY)?;
                copy(&inner, &stat, &place, &path, depth + 1, plain)?;
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(directory, &name, Vec::new())?;
                std::os::unix::fs::symlink(OsStr::from_bytes(target.to_bytes()), &place)?;
            }
            FileType::RegularFile => match plain.get(&path) {
                Some(secret) => write(&place, secret, &stat)?,
                None => {
                    let from = open_in(directory.as_fd(), &name, OFlags::empty())?;
                    let mut to = create(&place)?;
                    io::copy(&mut File::from(from), &mut to)?;
                    own(&to, &stat)?;
                }
            },
            _ => {}
        }
    }
    own(&File::open(place)?, stat)
}

fn entries(directory: &OwnedFd, depth: usize) -> io::Result<Vec<(std::ffi::OsString, Stat)>> {
    if depth > DEEPEST {
        return Err(io::Error::other("its directories are too deep"));
    }
    let mut entries = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
            entries.push((name.to_owned(), stat));
        }
    }
    Ok(entries)
}

/// Without following a link that the host may have put there meanwhile.
fn open_in(directory: BorrowedFd<'_>, name: &OsStr, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(directory, name, flags, Mode::empty())?)
}

/// A descriptor that was opened as a path cannot be read.
fn reopen(path: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let link = format!("/proc/self/fd/{}", path.as_raw_fd());
    Ok(rustix::fs::openat(CWD, link, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

fn may_be_sealed(stat: &Stat) -> bool {
    u64::try_from(stat.st_size).is_ok_and(|size| size > 0 && size <= LARGEST)
}

fn sealed_text(file: &OwnedFd, stat: &Stat) -> io::Result<Option<String>> {
    if !may_be_sealed(stat) {
        return Ok(None);
    }
    let mut text = Vec::new();
    File::from(file.try_clone()?).take(LARGEST + 1).read_to_end(&mut text)?;
    if text.len() as u64 > LARGEST || !is_sealed(&text) {
        return Ok(None);
    }
    Ok(String::from_utf8(text).ok())
}

fn create(place: &Path) -> io::Result<File> {
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(place)
}

fn write(place: &Path, secret: &[u8], like: &Stat) -> io::Result<()> {
    let mut file = create(place)?;
    file.write_all(secret)?;
    own(&file, like)
}

fn own(file: &File, like: &Stat) -> io::Result<()> {
    rustix::fs::fchown(file, Some(Uid::from_raw(like.st_uid)), Some(Gid::from_raw(like.st_gid)))?;
    Ok(rustix::fs::fchmod(file, Mode::from_raw_mode(like.st_mode & 0o7777))?)
}

/// The credentials that the policy lets a container have, as files in `directory` that its user alone can
/// read, and the mounts that show them to it.
pub(crate) async fn credentials(
    secrets: &Secrets,
    container_id: &str,
    directory: &Path,
    user: &User,
) -> Result<Vec<Mount>, RpcError> {
    let mut mounts = Vec::new();
    for (index, credential) in secrets.credentials.iter().enumerate() {
        let wanted = GuestApi::Resource(name_for_policy(&credential.resource));
        if let Err(denied) = secrets.judge(container_id, wanted) {
            tracing::debug!(
                container = container_id,
                path = credential.path,
                "{}",
                denied.denial()
            );
            continue;
        }
        let failed = |why: &dyn std::fmt::Display| {
            let path = &credential.path;
            RpcError::Internal(format!("failed to get the credential {path}: {}", short(why)))
        };
        let secret = secrets.resource(&credential.resource).await.map_err(|e| failed(&e))?;
        let place = directory.join(format!("credential-{index}"));
        let write = || {
            let mut file = create(&place)?;
            file.write_all(&secret)?;
            let owner = (Some(Uid::from_raw(user.uid())), Some(Gid::from_raw(user.gid())));
            rustix::fs::fchown(&file, owner.0, owner.1)?;
            rustix::fs::fchmod(&file, Mode::RUSR)?;
            io::Result::Ok(())
        };
        write().map_err(|e| failed(&e))?;
        let mut mount = Mount::default();
        mount.set_destination(credential.path.clone().into());
        mount.set_typ(Some("bind".into()));
        mount.set_source(Some(place));
        let options = ["rbind", "rprivate", "ro", "nosuid", "nodev", "noexec"];
        mount.set_options(Some(options.map(str::to_owned).to_vec()));
        mounts.push(mount);
    }
    Ok(mounts)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use nacre_policy::Gate;

    use super::*;

    const SEALED: &str = "sealed.fakejwsheader.e30.fakesignature";

    fn open(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    fn found(path: &Path) -> Vec<PathBuf> {
        let tree = Tree::find(open(path).as_fd()).unwrap();
        tree.map_or_else(Vec::new, |tree| tree.sealed.into_keys().collect())
    }

    /// As the kubelet lays a Secret out.
    fn volume() -> tempfile::TempDir {
        let volume = tempfile::tempdir().unwrap();
        let data = volume.path().join("..2026_11_22");
        fs::create_dir(&data).unwrap();
        fs::write(data.join("user"), "app").unwrap();
        fs::write(data.join("password"), format!("{SEALED}\n")).unwrap();
        symlink("..2026_11_22", volume.path().join("..data")).unwrap();
        symlink("..data/password", volume.path().join("password")).unwrap();
        volume
    }

    #[test]
    fn sealed_files_are_found_without_following_links() {
        let volume = volume();
        assert_eq!(found(volume.path()), [Path::new("..2026_11_22/password")]);
        assert_eq!(found(&volume.path().join("..2026_11_22/password")), [Path::new("")]);
        assert_eq!(found(&volume.path().join("..2026_11_22/user")), [""; 0].map(PathBuf::from));
        let prose = tempfile::tempdir().unwrap();
        fs::write(prose.path().join("a"), "sealed. And delivered.").unwrap();
        fs::write(prose.path().join("b"), "sealed.".repeat(TEXT_LIMIT)).unwrap();
        fs::write(prose.path().join("c"), "").unwrap();
        symlink(volume.path(), prose.path().join("d")).unwrap();
        assert_eq!(found(prose.path()), [""; 0].map(PathBuf::from));
    }

    #[test]
    fn the_copy_differs_in_its_secrets_only() {
        let volume = volume();
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let secret = volume.path().join("..2026_11_22/password");
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o640)).unwrap();
        let place = tempfile::tempdir().unwrap();
        let place = place.path().join("copy");
        let tree = Tree::find(open(volume.path()).as_fd()).unwrap().unwrap();
        let plain = tree.sealed.into_keys().map(|path| (path, Zeroizing::new(b"fish".to_vec())));
        let stat = rustix::fs::fstat(&tree.root).unwrap();
        copy(&tree.root, &stat, &place, Path::new(""), 0, &plain.collect()).unwrap();
        assert_eq!(fs::read_to_string(place.join("password")).unwrap(), "fish");
        assert_eq!(fs::read_to_string(place.join("..data/user")).unwrap(), "app");
        assert_eq!(fs::read_link(place.join("..data")).unwrap(), Path::new("..2026_11_22"));
        assert_eq!(mode(place.join("..2026_11_22/password")), 0o640);
        assert_eq!(mode(place), mode(volume.path().to_owned()));
        assert!(fs::read_to_string(secret).unwrap().starts_with("sealed."));
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_unsealed_is_named() {
        let secrets = Secrets::new(None, None, Gate::without_policy()).unwrap();
        let (volume, place) = (volume(), tempfile::tempdir().unwrap());
        let tree = Tree::find(open(volume.path()).as_fd()).unwrap().unwrap();
        let error = tree.unseal(&secrets, &place.path().join("x")).await.unwrap_err().to_string();
        assert!(error.contains("password") && error.contains("not signed"), "{error}");
        assert!(!place.path().join("x").exists());
    }
}
