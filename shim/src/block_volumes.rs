//! Volumes of the pod that are block devices or disk images of this host: they become disks of its machine.
//!
//! Two kinds of them reach a container's specification. A claim with `volumeMode: Block` is a device in
//! `linux.devices`. A claim with a file system, whose storage driver hands over the device instead of mounting
//! it, is a mount for whose source there is a `mountInfo.json`, as Kata Containers' runtime has it ("direct
//! volumes"): drivers that are made for it work here.
//!
//! What a disk is to the pod is not decided here: its owner has told the guest, which refuses the rest.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use nacre_hypervisor::{InsertError, Vm, Volume, VolumeKind};
use nacre_protocol::agent as api;
use nacre_protocol::channel::{DRIVER_BLOCK, VOLUMES_ROOT, volume_serial};
use nacre_protocol::oci;
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::error::{Code, Coded};
use crate::files::read_text;
use crate::spec::{HostDevice, HostMount};

/// Where storage drivers describe direct volumes: a directory for each, called by the mount's source in base64.
const DIRECT_VOLUMES: &str = "/run/kata-containers/shared/direct-volumes";
const MOUNT_INFO: &str = "mountInfo.json";
/// Largest description, in bytes.
const MOST_BYTES: u64 = 64 * 1024;
/// Unit of disks, in bytes.
const SECTOR: u64 = 512;

/// Why a pod cannot have a volume as a disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlockVolumeError {
    #[error("cannot use {path} as the volume at {destination}: {cause}")]
    Open { path: PathBuf, destination: PathBuf, cause: io::Error },
    #[error("cannot tell which device of this host {number} is, for {destination}: {cause}")]
    Device { number: String, destination: PathBuf, cause: io::Error },
    #[error("{path} describes the volume at {destination}: {problem}")]
    Description { path: PathBuf, destination: PathBuf, problem: String },
    #[error(
        "the pod's machine has {places} places for volumes, and all are taken: set the pod's annotation \
         io.nacre.vm.volumes, or storage.volumes in the configuration"
    )]
    NoPlace { places: usize },
    #[error("cannot give {path} to the pod's machine: {cause}")]
    Insert { path: PathBuf, cause: InsertError },
}

impl Coded for BlockVolumeError {
    fn code(&self) -> Code {
        match self {
            BlockVolumeError::Open { .. }
            | BlockVolumeError::Device { .. }
            | BlockVolumeError::Description { .. } => Code::FAILED_PRECONDITION,
            BlockVolumeError::NoPlace { .. } => Code::RESOURCE_EXHAUSTED,
            BlockVolumeError::Insert { .. } => Code::UNAVAILABLE,
        }
    }
}

/// What a request to make a container says of its volumes.
#[derive(Debug, Default)]
pub(crate) struct Attached {
    pub(crate) storages: Vec<api::Storage>,
    pub(crate) devices: Vec<api::Device>,
}

/// The machine's places for volumes.
pub(crate) struct Places {
    free: Vec<String>,
    /// Serial number by what the host knows the volume by.
    taken: BTreeMap<Identity, String>,
}

/// A device by its number, or a file by that of its file system and its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Identity {
    Device(u64),
    File(u64, u64),
}

/// An open volume of this host.
struct Opened {
    identity: Identity,
    volume: Volume,
}

impl Places {
    pub(crate) fn new(count: u32) -> Mutex<Places> {
        let free = (0..count).rev().map(volume_serial).collect();
        Mutex::new(Places { free, taken: BTreeMap::new() })
    }

    /// The place of a volume, which is put there if it is in none.
    async fn put(
        &mut self,
        vm: &dyn Vm,
        path: &Path,
        opened: Opened,
    ) -> Result<String, BlockVolumeError> {
        let Opened { identity, volume } = opened;
        if let Some(serial) = self.taken.get(&identity) {
            return Ok(serial.clone());
        }
        let places = self.taken.len();
        let serial = self.free.pop().ok_or(BlockVolumeError::NoPlace { places })?;
        let inserted = vm.insert(&serial, volume).await;
        inserted.map_err(|cause| BlockVolumeError::Insert { path: path.to_owned(), cause })?;
        tracing::info!("{} is now the disk {serial} of the machine", path.display());
        self.taken.insert(identity, serial.clone());
        Ok(serial)
    }
}

/// Makes disks of a container's block volumes. What is one is taken out of `mounts`.
pub(crate) async fn attach(
    places: &Mutex<Places>,
    vm: &dyn Vm,
    spec: &mut oci::Spec,
    mounts: &mut Vec<HostMount>,
    devices: Vec<HostDevice>,
) -> Result<Attached, BlockVolumeError> {
    let mut attached = Attached::default();
    let mut copied = Vec::with_capacity(mounts.len());
    for mount in std::mem::take(mounts) {
        let Some(described) = describe(Path::new(DIRECT_VOLUMES), &mount)? else {
            copied.push(mount);
            continue;
        };
        let failed = |cause| BlockVolumeError::Open {
            path: described.device.clone(),
            destination: mount.destination.clone(),
            cause,
        };
        // Nobody else may have mounted it.
        let opened = open(&described.device, libc::O_EXCL).map_err(failed)?;
        let serial = places.lock().await.put(vm, &described.device, opened).await?;
        let place = format!("{VOLUMES_ROOT}/{serial}");
        let Some(entry) = spec.Mounts.get_mut(mount.position) else { continue };
        entry.source.clone_from(&place);
        let read_only = entry.options.iter().any(|option| option == "ro");
        attached.storages.push(api::Storage {
            driver: DRIVER_BLOCK.to_owned(),
            source: serial,
            fstype: "ext4".to_owned(),
            options: read_only.then(|| "ro".to_owned()).into_iter().collect(),
            mount_point: place,
            ..Default::default()
        });
    }
    *mounts = copied;
    for device in devices {
        let HostDevice { path: destination, major, minor, read_only } = device;
        let node = node_of(major, minor).map_err(|cause| BlockVolumeError::Device {
            number: format!("{major}:{minor}"),
            destination: destination.clone().into(),
            cause,
        })?;
        let opened = open(&node, 0).map_err(|cause| BlockVolumeError::Open {
            path: node.clone(),
            destination: destination.clone().into(),
            cause,
        })?;
        let serial = places.lock().await.put(vm, &node, opened).await?;
        attached.devices.push(api::Device {
            id: serial,
            type_: DRIVER_BLOCK.to_owned(),
            container_path: destination,
            options: read_only.then(|| "ro".to_owned()).into_iter().collect(),
            ..Default::default()
        });
    }
    Ok(attached)
}

/// A direct volume, as its storage driver describes it.
#[derive(Debug, PartialEq, Eq)]
struct Described {
    device: PathBuf,
}

/// What `mountInfo.json` says that matters here; drivers add to `metadata` as they like.
#[derive(Deserialize)]
pub(crate) struct MountInfo {
    #[serde(rename = "volume-type")]
    volume_type: String,
    pub(crate) device: PathBuf,
    #[serde(default)]
    fstype: String,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

impl MountInfo {
    /// Reads the file of a storage driver; an error says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<MountInfo, String> {
        let info: MountInfo = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if !matches!(info.volume_type.as_str(), "block" | "directvol") {
            return Err(format!("volume-type {:?} is none of block", info.volume_type));
        }
        if !matches!(info.fstype.as_str(), "" | "ext4") {
            return Err(format!("fstype {:?}: guests have ext4", info.fstype));
        }
        if !info.device.is_absolute() {
            return Err(format!("device {:?} is no absolute path", info.device));
        }
        Ok(info)
    }
}

/// Reads the description of a mount's source; `None` if there is none, so that it is no direct volume.
fn describe(root: &Path, mount: &HostMount) -> Result<Option<Described>, BlockVolumeError> {
    let name = URL_SAFE.encode(mount.source.as_os_str().as_encoded_bytes());
    let path = root.join(name).join(MOUNT_INFO);
    let wrong = |problem: String| BlockVolumeError::Description {
        path: path.clone(),
        destination: mount.destination.clone(),
        problem,
    };
    let text = match read_text(&path, MOST_BYTES) {
        Ok(text) => text,
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidFilename) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(wrong(error.to_string())),
    };
    let info = MountInfo::parse(&text).map_err(wrong)?;
    if let Some(group) = info.metadata.get("fsGroup") {
        tracing::warn!(
            "the volume at {}: fsGroup {group} is not applied in the guest",
            mount.destination.display()
        );
    }
    Ok(Some(Described { device: info.device }))
}

/// The node of a block device, by its number.
fn node_of(major: i64, minor: i64) -> io::Result<PathBuf> {
    let path = format!("/sys/dev/block/{major}:{minor}/uevent");
    let text = read_text(Path::new(&path), MOST_BYTES)?;
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let name = name.ok_or_else(|| io::Error::other(format!("{path} has no DEVNAME")))?;
    let node = Path::new("/dev").join(name);
    let found = node.metadata()?.rdev();
    let (found_major, found_minor) = (rustix::fs::major(found), rustix::fs::minor(found));
    if (i64::from(found_major), i64::from(found_minor)) != (major, minor) {
        return Err(io::Error::other(format!("{} is another device", node.display())));
    }
    Ok(node)
}

fn open(path: &Path, flags: i32) -> io::Result<Opened> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    // A regular file knows no exclusive use; QEMU locks it.
    let is_device = path.metadata()?.file_type().is_block_device();
    let file: File = options.custom_flags(if is_device { flags } else { 0 }).open(path)?;
    let found = file.metadata()?;
    let (identity, kind) = match found.file_type() {
        kind if kind.is_block_device() => (Identity::Device(found.rdev()), VolumeKind::BlockDevice),
        kind if kind.is_file() => (Identity::File(found.dev(), found.ino()), VolumeKind::File),
        _ => return Err(io::Error::other("it is neither a block device nor a file")),
    };
    let size = (&file).seek(SeekFrom::End(0))?;
    if size == 0 || !size.is_multiple_of(SECTOR) {
        return Err(io::Error::other(format!("its size, {size} bytes, is not that of a disk")));
    }
    Ok(Opened { identity, volume: Volume { file: OwnedFd::from(file), kind, size } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(source: &str) -> HostMount {
        HostMount {
            position: 0,
            source: source.into(),
            destination: "/data".into(),
            read_only: false,
        }
    }

    fn described(text: &str) -> Result<Option<Described>, BlockVolumeError> {
        let root = tempfile::tempdir().unwrap();
        // As `kata-runtime direct-volume add` calls it: base64 of RFC 4648, section 5, with padding.
        let directory = root.path().join("L3Zhci9saWIvYQ==");
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join(MOUNT_INFO), text).unwrap();
        describe(root.path(), &mount("/var/lib/a"))
    }

    #[test]
    fn a_direct_volume_is_known_by_its_description() {
        let text = r#"{"volume-type":"block","device":"/dev/vdx","fstype":"ext4","metadata":{"a":"b"},"options":["x"]}"#;
        let found = described(text).unwrap();
        assert_eq!(found, Some(Described { device: "/dev/vdx".into() }));
        let root = tempfile::tempdir().unwrap();
        assert_eq!(describe(root.path(), &mount("/var/lib/a")).unwrap(), None);
        assert_eq!(describe(root.path(), &mount(&"/a".repeat(2000))).unwrap(), None);
    }

    #[test]
    fn descriptions_of_something_else_are_refused() {
        for (text, expected) in [
            ("{", "EOF"),
            (r#"{"volume-type":"block"}"#, "device"),
            (r#"{"volume-type":"nfs","device":"/x"}"#, "volume-type"),
            (r#"{"volume-type":"block","device":"x"}"#, "absolute"),
            (r#"{"volume-type":"block","device":"/x","fstype":"xfs"}"#, "guests have ext4"),
            (&format!("\"{}\"", "x".repeat(70_000)), "larger than"),
        ] {
            let error = described(text).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("/data"), "{error}");
        }
    }

    #[test]
    fn files_of_whole_sectors_can_be_disks() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(open(file.path(), 0).is_err());
        file.as_file().set_len(1025).unwrap();
        assert!(open(file.path(), 0).is_err());
        file.as_file().set_len(1024).unwrap();
        let opened = open(file.path(), 0).unwrap();
        assert_eq!((opened.volume.size, opened.volume.kind), (1024, VolumeKind::File));
        let again = open(file.path(), 0).unwrap();
        assert_eq!(opened.identity, again.identity);
        assert!(open(Path::new("/dev/null"), 0).is_err());
        assert!(node_of(0, 0).is_err());
    }
}
