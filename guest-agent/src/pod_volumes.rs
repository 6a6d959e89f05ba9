//! Volumes that the pod's containers share and that begin empty: Kubernetes' `emptyDir`.
//!
//! They are made in the guest and never on the host: of memory, or in the store for images and writable
//! layers. A container may be shown a part of one (`subPath`). What containers wrote there is not trusted
//! with paths: a part is looked up beneath the volume (openat2(2)), and symbolic links that lead out of it
//! lead nowhere.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nacre_protocol::agent::Storage;
use nacre_protocol::channel::{
    DRIVER_EPHEMERAL, DRIVER_LOCAL, EPHEMERAL_VOLUMES, LOCAL_VOLUMES, SANDBOX_SHM,
};
use rustix::fs::{CWD, Gid, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::error::RpcError;
use crate::oci::{check_path, refuse_if};
use crate::storage::ImageStore;

/// Most volumes of a pod.
const MOST: usize = 256;
/// Deepest part of a volume that a container is shown, in directories.
const DEEPEST: usize = 32;

/// The volumes, by the path that requests give them.
#[derive(Debug, Default)]
pub(crate) struct PodVolumes {
    places: BTreeMap<PathBuf, PathBuf>,
}

impl PodVolumes {
    /// Makes a volume unless it is there: another container of the pod had it made then.
    pub(crate) fn add(
        &mut self,
        field: &str,
        storage: &Storage,
        store: &ImageStore,
    ) -> Result<(), RpcError> {
        if storage.driver == DRIVER_LOCAL {
            let local = Local::parse(field, storage)?;
            return self.make(&storage.mount_point, |_| local.make(store));
        }
        check_ephemeral(field, storage)?;
        self.mount_ephemeral(storage)
    }

    /// Mounts a tmpfs. `storage` was checked.
    pub(crate) fn mount_ephemeral(&mut self, storage: &Storage) -> Result<(), RpcError> {
        let (flags, data) = ephemeral_options("options", &storage.options)?;
        self.make(&storage.mount_point, |path| {
            fs::create_dir_all(path)?;
            rustix::mount::mount("tmpfs", path, "tmpfs", flags, Some(data.as_c_str()))?;
            Ok(path.to_owned())
        })
    }

    fn make(
        &mut self,
        name: &str,
        make: impl FnOnce(&Path) -> io::Result<PathBuf>,
    ) -> Result<(), RpcError> {
        let path = PathBuf::from(name);
        if self.places.contains_key(&path) {
            return Ok(());
        }
        if self.places.len() >= MOST {
            let why = format!("the pod has {MOST} volumes, which is the most");
            return Err(RpcError::Exhausted(why));
        }
        let place = make(&path)
            .map_err(|e| RpcError::internal(format!("failed to make the volume {name}"), e))?;
        self.places.insert(path, place);
        Ok(())
    }

    /// Opens a volume or a path within one; directories that lack are made, as Kubernetes does for a
    /// `subPath`. `None` if `path` is in no volume.
    pub(crate) fn open(&self, path: &Path) -> Option<io::Result<OwnedFd>> {
        let mut volumes = self.places.iter();
        let (beneath, place) = volumes.find_map(|(name, place)| {
            path.strip_prefix(name).ok().map(|beneath| (beneath, place))
        })?;
        Some(open_part(place, beneath))
    }
}

fn open_part(place: &Path, beneath: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let volume = rustix::fs::openat(CWD, place, flags, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let open = |path: &Path| rustix::fs::openat2(&volume, path, flags, Mode::empty(), resolve);
    // A new directory is open to the same users as the volume.
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&volume)?.st_mode & 0o3777);
    let mut here = open(Path::new("."))?;
    let mut walked = PathBuf::new();
    for (depth, part) in beneath.components().enumerate() {
        let Component::Normal(part) = part else {
            return Err(io::Error::other("it is not a plain path within the volume"));
        };
        if depth == DEEPEST {
            return Err(io::Error::other(format!("it is deeper than {DEEPEST} directories")));
        }
        walked.push(part);
        here = match open(&walked) {
            Err(Errno::NOENT) => match rustix::fs::mkdirat(&here, part, mode) {
                Ok(()) => {
                    let made = open_made(&here, part)?;
                    // The process' umask has taken bits away.
                    rustix::fs::fchmod(&made, mode)?;
                    made
                }
                // A link that leads nowhere, or somebody else was faster, and has chosen the mode.
                Err(Errno::EXIST) => open(&walked)?,
                Err(error) => return Err(error.into()),
            },
            found => found?,
        };
    }
    Ok(here)
}

/// Opens a directory that was just made. A container may have put something else in its place: what is not the
/// agent's own, and empty, is another's, whose mode stays as it is.
fn open_made(parent: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let made = rustix::fs::openat2(parent, name, flags, Mode::empty(), resolve)?;
    let owner = rustix::fs::fstat(&made)?.st_uid;
    let mut entries = rustix::fs::Dir::read_from(&made)?;
    let is_empty = entries
        .all(|entry| entry.is_ok_and(|entry| matches!(entry.file_name().to_bytes(), b"." | b"..")));
    if owner == rustix::process::geteuid().as_raw() && is_empty {
        Ok(made)
    } else {
        Err(io::Error::other("a container has put something else there at the same time"))
    }
}

/// A directory in the guest's store.
#[derive(Debug)]
struct Local {
    name: String,
    mode: Mode,
    group: Option<Gid>,
}

impl Local {
    fn parse(field: &str, storage: &Storage) -> Result<Self, RpcError> {
        let part = |name: &str| format!("{field}.{name}");
        let why = "a volume in the guest's store has the type local";
        refuse_if(storage.fstype != DRIVER_LOCAL, &part("fstype"), why)?;
        let name = volume_name(&part("mount_point"), &storage.mount_point, LOCAL_VOLUMES)?;
        let mut local = Self { name, mode: Mode::from_raw_mode(0o777), group: None };
        for option in &storage.options {
            let known = match option.split_once('=') {
                Some(("mode", mode)) => u32::from_str_radix(mode, 8)
                    .ok()
                    .filter(|mode| mode & !0o3777 == 0)
                    .map(|mode| local.mode = Mode::from_raw_mode(mode)),
                Some(("gid", group)) => {
                    group.parse().ok().map(|group| local.group = Some(Gid::from_raw(group)))
                }
                _ => None,
            };
            let why = format!("{option:?} is not supported: use mode=OCTAL and gid=NUMBER");
            refuse_if(known.is_none(), &part("options"), &why)?;
        }
        Ok(local)
    }

    fn make(&self, store: &ImageStore) -> io::Result<PathBuf> {
        let place = store.volume(&self.name);
        fs::create_dir_all(&place)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(CWD, &place, flags, Mode::empty())?;
        // Group first: changing it clears mode bits.
        rustix::fs::fchown(&directory, None, self.group)?;
        rustix::fs::fchmod(&directory, self.mode)?;
        Ok(place)
    }
}

/// Checks a storage that is to be a tmpfs. `field` is its path in the request.
pub(crate) fn check_ephemeral(field: &str, storage: &Storage) -> Result<(), RpcError> {
    if storage.driver != DRIVER_EPHEMERAL {
        let why =
            format!("{:?} is not known: use {DRIVER_EPHEMERAL} or {DRIVER_LOCAL}", storage.driver);
        return Err(RpcError::invalid(format!("{field}.driver"), why));
    }
    let part = |name: &str| format!("{field}.{name}");
    refuse_if(storage.fstype != "tmpfs", &part("fstype"), "ephemeral storage is a tmpfs")?;
    if storage.mount_point != SANDBOX_SHM {
        volume_name(&part("mount_point"), &storage.mount_point, EPHEMERAL_VOLUMES)?;
    }
    ephemeral_options(&part("options"), &storage.options).map(|_| ())
}

/// The name of a volume, which becomes that of a directory.
fn volume_name(field: &str, mount_point: &str, root: &str) -> Result<String, RpcError> {
    check_path(field, mount_point)?;
    let name = mount_point.strip_prefix(root).and_then(|rest| rest.strip_prefix('/'));
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let name = name.filter(|name| {
        (1..=253).contains(&name.len())
            && name.chars().all(plain)
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
    });
    name.map(str::to_owned).ok_or_else(|| {
        let why = format!("must be a volume's name directly below {root}");
        RpcError::invalid(field, why)
    })
}

/// Flags, and data for the file system.
fn ephemeral_options(
    field: &str,
    options: &[String],
) -> Result<(MountFlags, std::ffi::CString), RpcError> {
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    let mut data = Vec::new();
    for option in options {
        match option.as_str() {
            "noexec" => flags |= MountFlags::NOEXEC,
            "ro" => flags |= MountFlags::RDONLY,
            "nosuid" | "nodev" | "rw" => {}
            _ => {
                let known = option.split_once('=').is_some_and(|(name, value)| {
                    matches!(name, "size" | "mode" | "uid" | "gid" | "nr_inodes")
                        && (1..=20).contains(&value.len())
                        && value.chars().all(|c| c.is_ascii_alphanumeric() || c == '%')
                });
                refuse_if(!known, field, &format!("{option:?} is not supported for tmpfs"))?;
                data.push(option.as_str());
            }
        }
    }
    let data = std::ffi::CString::new(data.join(",")).map_err(|e| RpcError::invalid(field, e))?;
    Ok((flags, data))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn storage(driver: &str, kind: &str, mount_point: &str, options: &[&str]) -> Storage {
        Storage {
            driver: driver.into(),
            fstype: kind.into(),
            mount_point: mount_point.into(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn ephemeral_storages_are_tmpfs_in_their_place() {
        let tmpfs = |at: &str, options: &[&str]| storage("ephemeral", "tmpfs", at, options);
        let shm = "/run/kata-containers/sandbox/shm";
        check_ephemeral("s", &tmpfs(shm, &["noexec", "mode=1777", "size=67108864"])).unwrap();
        let volume = "/run/kata-containers/sandbox/ephemeral/cache";
        check_ephemeral("s", &tmpfs(volume, &["mode=2777", "gid=1000"])).unwrap();
        for (bad, text) in [
            (tmpfs("/etc", &[]), "s.mount_point"),
            (tmpfs("/run/kata-containers/sandbox", &[]), "s.mount_point"),
            (tmpfs("/run/kata-containers/sandbox/other", &[]), "s.mount_point"),
            (tmpfs("/run/kata-containers/sandbox/ephemeral", &[]), "s.mount_point"),
            (tmpfs("/run/kata-containers/sandbox/ephemeral/", &[]), "s.mount_point"),
            (tmpfs("/run/kata-containers/sandbox/ephemeral/a/b", &[]), "s.mount_point"),
            (tmpfs("/run/kata-containers/sandbox/ephemeral/.x", &[]), "s.mount_point"),
            (tmpfs("/run/kata-containers/sandbox/../../x", &[]), "s.mount_point"),
            (tmpfs(shm, &["mpol=bind"]), "s.options"),
            (tmpfs(shm, &["size=1,mpol=x"]), "s.options"),
            (storage("blk", "tmpfs", shm, &[]), "s.driver"),
            (storage("ephemeral", "ext4", shm, &[]), "s.fstype"),
        ] {
            let error = check_ephemeral("s", &bad).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn local_storages_are_directories_with_mode_and_group() {
        let local = |name: &str, options: &[&str]| {
            storage("local", "local", &format!("{LOCAL_VOLUMES}/{name}"), options)
        };
        let good = Local::parse("s", &local("work", &["mode=2770", "gid=1000"])).unwrap();
        assert_eq!((good.mode.as_raw_mode(), good.name.as_str()), (0o2770, "work"));
        for (bad, text) in [
            (local("../x", &[]), "s.mount_point"),
            (local("a/b", &[]), "s.mount_point"),
            (local("", &[]), "s.mount_point"),
            (local("x", &["mode=4777"]), "s.options"),
            (local("x", &["mode=rw"]), "s.options"),
            (local("x", &["gid=-1"]), "s.options"),
            (local("x", &["size=1"]), "s.options"),
            (storage("local", "tmpfs", &format!("{LOCAL_VOLUMES}/x"), &[]), "s.fstype"),
            (storage("local", "local", &format!("{EPHEMERAL_VOLUMES}/x"), &[]), "s.mount_point"),
        ] {
            let error = Local::parse("s", &bad).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn parts_of_a_volume_stay_within_it() {
        let place = tempfile::tempdir().unwrap();
        let (volume, outside) = (place.path().join("v"), place.path().join("outside"));
        fs::create_dir(&volume).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::set_permissions(&volume, fs::Permissions::from_mode(0o1777)).unwrap();
        symlink(&outside, volume.join("absolute")).unwrap();
        symlink("../outside", volume.join("up")).unwrap();
        fs::create_dir(volume.join("real")).unwrap();
        symlink("real", volume.join("link")).unwrap();
        symlink("nowhere", volume.join("dangling")).unwrap();
        let volumes = PodVolumes { places: BTreeMap::from([("/pod/v".into(), volume.clone())]) };
        for path in ["/pod/v", "/pod/v/a/b", "/pod/v/link/c"] {
            volumes.open(Path::new(path)).unwrap().unwrap();
        }
        let made = fs::metadata(volume.join("a/b")).unwrap().permissions().mode();
        assert_eq!(made & 0o7777, 0o1777);
        assert!(volume.join("real/c").is_dir());
        // What a container has made keeps the mode that it has chosen.
        fs::create_dir(volume.join("private")).unwrap();
        fs::set_permissions(volume.join("private"), fs::Permissions::from_mode(0o700)).unwrap();
        volumes.open(Path::new("/pod/v/private")).unwrap().unwrap();
        symlink("private", volume.join("exchanged")).unwrap();
        fs::create_dir(volume.join("filled")).unwrap();
        fs::write(volume.join("filled/file"), "").unwrap();
        let parent = rustix::fs::open(&volume, OFlags::PATH, Mode::empty()).unwrap();
        for (name, is_ours) in [("private", true), ("exchanged", false), ("filled", false)] {
            assert_eq!(open_made(&parent, name.as_ref()).is_ok(), is_ours, "{name}");
        }
        let kept = fs::metadata(volume.join("private")).unwrap().permissions().mode();
        assert_eq!(kept & 0o7777, 0o700);
        for path in [
            "/pod/v/absolute/x",
            "/pod/v/up",
            "/pod/v/../outside",
            "/pod/v/dangling",
            "/pod/v/dangling/x",
        ] {
            assert!(volumes.open(Path::new(path)).unwrap().is_err(), "{path}");
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert!(volumes.open(Path::new("/pod/value")).is_none());
        assert!(volumes.open(Path::new("/etc")).is_none());
    }
}
