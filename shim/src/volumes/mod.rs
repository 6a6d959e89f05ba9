//! Host files that a container is to see, copied into the guest.
//!
//! There is no file system shared with the guest: what kubelet and containerd bind into a container
//! (resolv.conf, hosts, secrets, configuration) is copied when the container is made. A copy is a copy: what
//! the container writes never reaches the host, and of the host's changes only those reach the guest that
//! the kubelet makes to configMap, secret, projected and downwardAPI volumes (`updates`). Directories that
//! begin empty are made by the guest. What would lose data as a copy is refused.

mod host;
mod updates;

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nacre_protocol::agent::{CopyFileRequest, Storage};
use nacre_protocol::channel::{
    COPY_CHUNK, COPY_ROOT, DRIVER_EPHEMERAL, DRIVER_LOCAL, EPHEMERAL_VOLUMES, LOCAL_VOLUMES,
};

pub(crate) use self::host::is_empty_dir;
use self::host::{EmptyDir, Medium, Volume};
pub(crate) use self::updates::{Changing, Following};
use crate::agent::{Agent, AgentError};
use crate::error::{Code, Coded};
use crate::spec::HostMount;

/// Bounds of all copies of one container. They lie in the guest's memory.
const MOST_BYTES: u64 = 64 * 1024 * 1024;
const MOST_ENTRIES: usize = 4096;
const MOST_DEPTH: usize = 32;

/// Why a host file cannot be given to a container.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error("cannot read {path}, bound to {destination}: {cause}")]
    Read { path: PathBuf, destination: PathBuf, cause: io::Error },
    #[error(
        "{path}, bound to {destination}, is a {kind}: only files, directories and symbolic links can \
         be copied into the guest"
    )]
    Kind { path: PathBuf, destination: PathBuf, kind: &'static str },
    #[error(
        "{path}, bound to {destination}, is too much to copy into the guest's memory: at most \
         {MOST_BYTES} bytes, {MOST_ENTRIES} files and {MOST_DEPTH} levels a container; put large data \
         into the image or fetch it over the network"
    )]
    TooMuch { path: PathBuf, destination: PathBuf },
    #[error("{path}, bound to {destination}: the name is not UTF-8")]
    Name { path: PathBuf, destination: PathBuf },
    #[error(
        "{path}, bound to {destination}, is writable and lasts longer than the pod: what is written to a \
         copy in the guest would be lost; mount it readOnly, or use an emptyDir or a block volume"
    )]
    WouldBeLost { path: PathBuf, destination: PathBuf },
    #[error(
        "the volume at {destination} is of huge pages, which the guest's memory has none of: use \
         emptyDir.medium: Memory"
    )]
    HugePages { destination: PathBuf },
    #[error("copying {path} into the guest: {cause}")]
    Agent { path: PathBuf, cause: AgentError },
}

impl Coded for VolumeError {
    fn code(&self) -> Code {
        match self {
            VolumeError::Read { .. } | VolumeError::Name { .. } => Code::INVALID_ARGUMENT,
            VolumeError::Kind { .. }
            | VolumeError::WouldBeLost { .. }
            | VolumeError::HugePages { .. } => Code::UNIMPLEMENTED,
            VolumeError::TooMuch { .. } => Code::RESOURCE_EXHAUSTED,
            VolumeError::Agent { cause, .. } => cause.code(),
        }
    }
}

/// What a container's mounts need in the guest.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    /// Where each mount's source is in the guest, in the order of the mounts.
    pub(crate) places: Vec<String>,
    /// Volumes that the agent is to make, each once.
    pub(crate) storages: Vec<Storage>,
    /// Volumes whose copies are to follow the host's.
    pub(crate) changing: Vec<Changing>,
}

/// Copies what a container's mounts need.
pub(crate) async fn prepare(
    agent: &Agent,
    container: &str,
    mounts: Vec<HostMount>,
) -> Result<Prepared, VolumeError> {
    let mut budget = Budget::WHOLE;
    let mut prepared = Prepared::default();
    for mount in mounts {
        let mount = Arc::new(mount);
        let classifying = {
            let mount = mount.clone();
            tokio::task::spawn_blocking(move || host::classify(&mount))
        };
        let volume = join(classifying.await, &mount)?;
        match volume {
            Volume::EmptyDir(directory) => {
                let (place, storage) = shared(&mount, &directory)?;
                if prepared.storages.iter().all(|s| s.mount_point != storage.mount_point) {
                    prepared.storages.push(storage);
                }
                prepared.places.push(place);
                continue;
            }
            Volume::Lasting if !mount.read_only => {
                return Err(VolumeError::WouldBeLost {
                    path: mount.source.clone(),
                    destination: mount.destination.clone(),
                });
            }
            Volume::Lasting | Volume::PodFile | Volume::Changing => {}
        }
        let place = guest_path(container, &mount.source)
            .map_err(|cause| unreadable(&mount, &mount.source, cause))?;
        let listing = {
            let (mount, place) = (mount.clone(), place.clone());
            tokio::task::spawn_blocking(move || list(&mount, place, budget))
        };
        let (entries, left) = join(listing.await, &mount)?;
        budget = left;
        if volume == Volume::Changing {
            prepared.changing.extend(Changing::of(&mount, &place, &entries));
        }
        for entry in entries {
            copy(agent, &mount, entry).await?;
        }
        prepared.places.push(place);
    }
    Ok(prepared)
}

/// Where a volume that begins empty is in the guest, and what makes it.
fn shared(mount: &HostMount, directory: &EmptyDir) -> Result<(String, Storage), VolumeError> {
    let found = directory
        .directory
        .metadata()
        .map_err(|cause| unreadable(mount, &directory.directory, cause))?;
    // The kubelet has set both for the pod's fsGroup.
    let mut options = vec![format!("mode={:04o}", found.mode() & 0o3777)];
    if found.gid() != 0 {
        options.push(format!("gid={}", found.gid()));
    }
    let (driver, kind, root) = match directory.medium {
        Medium::Default => (DRIVER_LOCAL, DRIVER_LOCAL, LOCAL_VOLUMES),
        Medium::Memory { size } => {
            options.extend(size.map(|size| format!("size={size}")));
            (DRIVER_EPHEMERAL, "tmpfs", EPHEMERAL_VOLUMES)
        }
    };
    let mount_point = format!("{root}/{}", directory.name);
    let place = match directory.part.to_str() {
        Some("") => mount_point.clone(),
        Some(part) => format!("{mount_point}/{part}"),
        None => {
            let (path, destination) = (directory.part.clone(), mount.destination.clone());
            return Err(VolumeError::Name { path, destination });
        }
    };
    let storage = Storage {
        driver: driver.to_owned(),
        source: kind.to_owned(),
        fstype: kind.to_owned(),
        options,
        mount_point,
        ..Default::default()
    };
    Ok((place, storage))
}

/// `COPY_ROOT/<container>-<16 hex>-<name>`: unique, and recognizable as the container's.
fn guest_path(container: &str, source: &Path) -> io::Result<String> {
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let name: String = host::copied_name(source).chars().map(plain).collect();
    Ok(format!("{COPY_ROOT}/{container}-{:016x}-{name}", u64::from_be_bytes(random)))
}

#[derive(Debug, Clone, Copy)]
struct Budget {
    bytes: u64,
    entries: usize,
}

impl Budget {
    const WHOLE: Budget = Budget { bytes: MOST_BYTES, entries: MOST_ENTRIES };
}

/// One thing to make in the guest.
#[derive(Debug)]
struct Entry {
    source: PathBuf,
    target: String,
    mode: u32,
    uid: u32,
    gid: u32,
    kind: EntryKind,
}

#[derive(Debug)]
enum EntryKind {
    Directory,
    Link(PathBuf),
    File(u64),
}

/// Lists what a mount brings, parents before children. The mount's own path may be a symbolic link
/// and is followed, as a bind mount would; those inside stay links, as Kubernetes' volumes need it.
fn list(
    mount: &HostMount,
    target: String,
    budget: Budget,
) -> Result<(Vec<Entry>, Budget), VolumeError> {
    let root =
        mount.source.canonicalize().map_err(|cause| unreadable(mount, &mount.source, cause))?;
    list_beneath(mount, root, target, budget)
}

fn list_beneath(
    mount: &HostMount,
    root: PathBuf,
    target: String,
    budget: Budget,
) -> Result<(Vec<Entry>, Budget), VolumeError> {
    let mut left = budget;
    let mut entries = Vec::new();
    let mut ahead = vec![(root, target, 0)];
    while let Some((source, target, depth)) = ahead.pop() {
        let too_much = || VolumeError::TooMuch {
            path: mount.source.clone(),
            destination: mount.destination.clone(),
        };
        left.entries = left.entries.checked_sub(1).ok_or_else(too_much)?;
        let unreadable = |cause| unreadable(mount, &source, cause);
        let found = source.symlink_metadata().map_err(unreadable)?;
        let kind = if found.is_dir() {
            if depth == MOST_DEPTH {
                return Err(too_much());
            }
            for child in source.read_dir().map_err(unreadable)? {
                let child = child.map_err(unreadable)?;
                let name = child.file_name().into_string().map_err(|_| VolumeError::Name {
                    path: child.path(),
                    destination: mount.destination.clone(),
                })?;
                ahead.push((child.path(), format!("{target}/{name}"), depth + 1));
                if ahead.len() > MOST_ENTRIES {
                    return Err(too_much());
                }
            }
            EntryKind::Directory
        } else if found.is_symlink() {
            EntryKind::Link(source.read_link().map_err(unreadable)?)
        } else if found.is_file() {
            left.bytes = left.bytes.checked_sub(found.len()).ok_or_else(too_much)?;
            EntryKind::File(found.len())
        } else {
            return Err(VolumeError::Kind {
                path: source,
                destination: mount.destination.clone(),
                kind: special_kind(&found),
            });
        };
        let (mode, uid, gid) = (found.mode(), found.uid(), found.gid());
        entries.push(Entry { source, target, mode, uid, gid, kind });
    }
    Ok((entries, left))
}

fn special_kind(found: &Metadata) -> &'static str {
    let kind = found.file_type();
    if kind.is_socket() {
        "socket"
    } else if kind.is_fifo() {
        "fifo"
    } else {
        "device"
    }
}

async fn copy(agent: &Agent, mount: &Arc<HostMount>, entry: Entry) -> Result<(), VolumeError> {
    let path = entry.source.clone();
    let refused = |cause| VolumeError::Agent { path: path.clone(), cause };
    let request = CopyFileRequest {
        path: entry.target,
        file_mode: entry.mode,
        dir_mode: 0o755,
        uid: entry.uid.cast_signed(),
        gid: entry.gid.cast_signed(),
        ..Default::default()
    };
    match entry.kind {
        EntryKind::Directory => agent.copy_file(request).await.map_err(refused)?,
        EntryKind::Link(to) => {
            let data = to.into_os_string().into_encoded_bytes();
            let length = i64::try_from(data.len()).unwrap_or(i64::MAX);
            let request = CopyFileRequest { data, file_size: length, ..request };
            agent.copy_file(request).await.map_err(refused)?
        }
        EntryKind::File(length) => {
            return copy_contents(agent, mount, entry.source, length, request).await;
        }
    };
    Ok(())
}

/// Sends a file in chunks, and exactly as many bytes as were announced: one that grows meanwhile is
/// cut, one that shrinks is an error.
async fn copy_contents(
    agent: &Agent,
    mount: &Arc<HostMount>,
    source: PathBuf,
    length: u64,
    request: CopyFileRequest,
) -> Result<(), VolumeError> {
    let mut offset = 0;
    let mut opened = None;
    loop {
        let (path, on_mount) = (source.clone(), mount.clone());
        let reading = tokio::task::spawn_blocking(move || {
            let failed = |cause| unreadable(&on_mount, &path, cause);
            let mut file: File = match opened {
                Some(file) => file,
                None => std::fs::OpenOptions::new()
                    .read(true)
                    .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
                    .open(&path)
                    .map_err(failed)?,
            };
            let wanted = (length - offset).min(COPY_CHUNK as u64);
            let mut data = Vec::new();
            (&mut file).take(wanted).read_to_end(&mut data).map_err(failed)?;
            if data.len() as u64 != wanted {
                return Err(failed(io::Error::other("it shrank while it was read")));
            }
            Ok((file, data))
        });
        let (file, data) = join(reading.await, mount)?;
        opened = Some(file);
        let sent = data.len() as u64;
        let request = CopyFileRequest {
            file_size: i64::try_from(length).unwrap_or(i64::MAX),
            offset: i64::try_from(offset).unwrap_or(i64::MAX),
            data,
            ..request.clone()
        };
        agent
            .copy_file(request)
            .await
            .map_err(|cause| VolumeError::Agent { path: source.clone(), cause })?;
        offset += sent;
        if offset >= length {
            return Ok(());
        }
    }
}

fn unreadable(mount: &HostMount, path: &Path, cause: io::Error) -> VolumeError {
    VolumeError::Read { path: path.to_owned(), destination: mount.destination.clone(), cause }
}

fn join<T>(
    joined: Result<Result<T, VolumeError>, tokio::task::JoinError>,
    mount: &HostMount,
) -> Result<T, VolumeError> {
    joined.unwrap_or_else(|failed| Err(unreadable(mount, &mount.source, io::Error::other(failed))))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn mount(source: &Path) -> HostMount {
        let (source, destination) = (source.to_owned(), "/in/container".into());
        HostMount { position: 0, source, destination, read_only: true }
    }

    fn listed(source: &Path, budget: Budget) -> Result<Vec<Entry>, VolumeError> {
        list(&mount(source), "T".to_owned(), budget).map(|(entries, _)| entries)
    }

    const PLENTY: Budget = Budget { bytes: 1000, entries: 100 };

    #[test]
    fn a_configuration_volume_keeps_its_links() {
        // Kubernetes: data -> ..data/data, ..data -> ..2026
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("..2026")).unwrap();
        std::fs::write(dir.path().join("..2026/key"), "value").unwrap();
        symlink("..2026", dir.path().join("..data")).unwrap();
        symlink("..data/key", dir.path().join("key")).unwrap();
        let entries = listed(dir.path(), PLENTY).unwrap();
        let mut seen: Vec<String> =
            entries.iter().map(|e| format!("{} {:?}", e.target, e.kind)).collect();
        assert_eq!(seen[0], "T Directory");
        seen.sort();
        assert_eq!(
            seen,
            [
                "T Directory",
                "T/..2026 Directory",
                "T/..2026/key File(5)",
                "T/..data Link(\"..2026\")",
                "T/key Link(\"..data/key\")"
            ]
        );
    }

    #[test]
    fn what_cannot_be_copied_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("docker.sock");
        let _listener = UnixListener::bind(&socket).unwrap();
        for (source, budget, expected) in [
            (Path::new("/absent/file"), PLENTY, "cannot read /absent/file, bound to /in/container"),
            (socket.as_path(), PLENTY, "is a socket"),
            (dir.path(), PLENTY, "docker.sock, bound to /in/container, is a socket"),
            (Path::new("/dev/null"), PLENTY, "is a device"),
            (Path::new("/usr/bin"), PLENTY, "too much to copy"),
            (Path::new("/etc/passwd"), Budget { bytes: 3, entries: 9 }, "too much to copy"),
        ] {
            let error = listed(source, budget).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn an_empty_directory_is_asked_of_the_guest() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o2770)).unwrap();
        let gid = std::fs::metadata(dir.path()).unwrap().gid();
        let empty = |part: &str, medium| EmptyDir {
            name: "work".into(),
            directory: dir.path().into(),
            part: part.into(),
            medium,
        };
        let mount = mount(dir.path());
        let (place, storage) = shared(&mount, &empty("", Medium::Default)).unwrap();
        assert_eq!(place, "/run/kata-containers/sandbox/local/work");
        assert_eq!((storage.driver.as_str(), &storage.mount_point), ("local", &place));
        let mode = std::fs::metadata(dir.path()).unwrap().mode() & 0o3777;
        let mut options = vec![format!("mode={mode:04o}")];
        options.extend((gid != 0).then(|| format!("gid={gid}")));
        assert_eq!(storage.options, options);
        let medium = Medium::Memory { size: Some(4096) };
        let (place, storage) = shared(&mount, &empty("a/b", medium)).unwrap();
        assert_eq!(place, "/run/kata-containers/sandbox/ephemeral/work/a/b");
        assert_eq!(storage.driver, "ephemeral");
        assert!(storage.options.contains(&"size=4096".to_owned()));
    }

    #[test]
    fn names_in_the_guest_are_plain() {
        let path = guest_path("c", Path::new("/a/b c/../ö\n")).unwrap();
        let name = path.strip_prefix(COPY_ROOT).unwrap().strip_prefix("/c-").unwrap();
        assert!(name.len() == 16 + 1 + 2 && name.ends_with("-__"), "{path}");
        let again = guest_path("c", Path::new("/a/b c/../ö\n")).unwrap();
        assert_ne!(path, again);
    }
}
