//! Volumes of the pod that are block devices or disk images of this host: they become disks of its machine.
//!
//! Two kinds of them reach a container's specification. A claim with `volumeMode: Block` is a device in
//! `linux.devices`. A claim with a file system, whose storage driver hands over the device instead of mounting
//! it, is a mount for whose source there is a `mountInfo.json`, as Kata Containers' runtime has it ("direct
//! volumes"): drivers that are made for it work here.
//!
//! What a disk is to the pod is not decided here: its owner has told the guest, which refuses the rest.

use std::collections::BTreeMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use nacre_hypervisor::{InsertError, Vm, Volume, VolumeKind};
use nacre_protocol::agent as api;
use nacre_protocol::channel::{DRIVER_BLOCK, VOLUMES_ROOT, volume_serial};
use nacre_protocol::oci;
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::timeout;

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
/// How long a device may take to be opened. One whose storage is gone may wait in the kernel for ever.
const OPEN_PATIENCE: Duration = Duration::from_secs(30);

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
    #[error(
        "{path} could not be given to the pod's machine before, which may hold it half-way until it ends: \
         delete the pod"
    )]
    Lost { path: PathBuf },
}

impl Coded for BlockVolumeError {
    fn code(&self) -> Code {
        match self {
            BlockVolumeError::Open { .. }
            | BlockVolumeError::Device { .. }
            | BlockVolumeError::Description { .. } => Code::FAILED_PRECONDITION,
            BlockVolumeError::NoPlace { .. } => Code::RESOURCE_EXHAUSTED,
            BlockVolumeError::Insert { .. } | BlockVolumeError::Lost { .. } => Code::UNAVAILABLE,
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
    total: usize,
    free: Vec<String>,
    /// By what the host knows the volume by.
    taken: BTreeMap<Identity, Place>,
}

/// Where a volume is that was given to the machine.
enum Place {
    /// The disk with that serial number.
    Disk(String),
    /// Nobody knows.
    Lost,
}

/// A device by its number, or a file by that of its file system and its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Identity {
    Device(u64),
    File(u64, u64),
}

/// A volume that is wanted in a machine.
struct Wanted {
    path: PathBuf,
    /// Where the container is to see it.
    destination: PathBuf,
    use_: Use,
}

/// Whether somebody on the host may use the same device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Nobody may have mounted it.
    Exclusive,
    /// The claim's access mode says who may.
    Shared,
}

impl Places {
    pub(crate) fn new(count: u32) -> Mutex<Places> {
        let free: Vec<_> = (0..count).rev().map(volume_serial).collect();
        Mutex::new(Places { total: free.len(), free, taken: BTreeMap::new() })
    }

    /// Whether the machine has, or may have, a volume.
    pub(crate) fn any_taken(&self) -> bool {
        !self.taken.is_empty()
    }

    /// The place of a volume, which is put there if it is in none. One that is in the machine is not opened a second
    /// time: where its use is exclusive, that would be refused.
    async fn put(&mut self, vm: &dyn Vm, wanted: Wanted) -> Result<String, BlockVolumeError> {
        let identity = wanted.off_thread(identify).await?;
        match self.taken.get(&identity) {
            Some(Place::Disk(serial)) => return Ok(serial.clone()),
            Some(Place::Lost) => return Err(BlockVolumeError::Lost { path: wanted.path }),
            None => {}
        }
        if self.free.is_empty() {
            return Err(BlockVolumeError::NoPlace { places: self.total });
        }
        let use_ = wanted.use_;
        let volume = wanted.off_thread(move |path| open(path, identity, use_)).await?;
        let serial = self.free.pop().ok_or(BlockVolumeError::NoPlace { places: self.total })?;
        let path = wanted.path;
        match vm.insert(&serial, volume).await {
            Ok(()) => {
                tracing::info!("{} is now the disk {serial} of the machine", path.display());
                self.taken.insert(identity, Place::Disk(serial.clone()));
                Ok(serial)
            }
            Err(cause) => {
                match cause {
                    InsertError::Refused { .. } => self.free.push(serial),
                    InsertError::NoPlace { .. } | InsertError::Lost { .. } => {
                        self.taken.insert(identity, Place::Lost);
                    }
                }
                Err(BlockVolumeError::Insert { path, cause })
            }
        }
    }
}

impl Wanted {
    /// Does something with the volume's path that may wait in the kernel: on a thread of its own, and not for ever.
    async fn off_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, BlockVolumeError> {
        let path = self.path.clone();
        let working = tokio::task::spawn_blocking(move || work(&path));
        let done = match timeout(OPEN_PATIENCE, working).await {
            Ok(done) => done.map_err(io::Error::other).flatten(),
            Err(_) => Err(io::Error::other(format!(
                "nothing happens for {} s; is its storage there?",
                OPEN_PATIENCE.as_secs()
            ))),
        };
        done.map_err(|cause| BlockVolumeError::Open {
            path: self.path.clone(),
            destination: self.destination.clone(),
            cause,
        })
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
        let entry = &mut spec.Mounts[mount.position];
        let wanted =
            Wanted { path: described.device, destination: mount.destination, use_: Use::Exclusive };
        let serial = places.lock().await.put(vm, wanted).await?;
        let place = format!("{VOLUMES_ROOT}/{serial}");
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
        let wanted =
            Wanted { path: node, destination: destination.clone().into(), use_: Use::Shared };
        let serial = places.lock().await.put(vm, wanted).await?;
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
        return Err(wrong(format!(
            "metadata.fsGroup is {group:?}, which guests do not apply to a volume: leave fsGroup out of the pod's \
             securityContext"
        )));
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

fn identify(path: &Path) -> io::Result<Identity> {
    identity_of(&path.metadata()?)
}

fn identity_of(found: &Metadata) -> io::Result<Identity> {
    match found.file_type() {
        kind if kind.is_block_device() => Ok(Identity::Device(found.rdev())),
        kind if kind.is_file() => Ok(Identity::File(found.dev(), found.ino())),
        _ => Err(io::Error::other("it is neither a block device nor a file")),
    }
}

/// Opens what has been found to be of that identity.
fn open(path: &Path, identity: Identity, use_: Use) -> io::Result<Volume> {
    let read_only = || {
        io::Error::other(
            "this node can only read it, and what a machine has for a volume it reads and writes: put what is only \
             read into the image, or copy it to a volume of the pod's own",
        )
    };
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let kind = match identity {
        Identity::Device(number) => {
            if is_read_only(number) {
                return Err(read_only());
            }
            if use_ == Use::Exclusive {
                options.custom_flags(libc::O_EXCL);
            }
            VolumeKind::BlockDevice
        }
        // A regular file knows no exclusive use; QEMU locks it.
        Identity::File(..) => VolumeKind::File,
    };
    let opened = options.open(path);
    let file: File = opened.map_err(|error| match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => read_only(),
        io::ErrorKind::ResourceBusy => {
            io::Error::other("something on this node has mounted it, or another pod has it")
        }
        _ => error,
    })?;
    if identity_of(&file.metadata()?)? != identity {
        return Err(io::Error::other("it was exchanged for another one just now"));
    }
    let size = (&file).seek(SeekFrom::End(0))?;
    if size == 0 || !size.is_multiple_of(SECTOR) {
        return Err(io::Error::other(format!("its size, {size} bytes, is not that of a disk")));
    }
    Ok(Volume { file: OwnedFd::from(file), kind, size })
}

/// Whether the kernel takes no writes for a block device; it may be opened for them all the same.
fn is_read_only(number: u64) -> bool {
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let path = format!("/sys/dev/block/{major}:{minor}/ro");
    read_text(Path::new(&path), MOST_BYTES).is_ok_and(|text| text.trim() == "1")
}

#[cfg(test)]
mod tests {
    use nacre_hypervisor::{AgentChannel, VmExit};

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
            (
                r#"{"volume-type":"block","device":"/x","metadata":{"fsGroup":"2000"}}"#,
                "fsGroup is \"2000\"",
            ),
            (&format!("\"{}\"", "x".repeat(70_000)), "larger than"),
        ] {
            let error = described(text).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("/data"), "{error}");
        }
    }

    #[test]
    fn files_of_whole_sectors_can_be_disks() {
        let open = |path: &Path| open(path, identify(path)?, Use::Exclusive);
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(open(file.path()).is_err());
        file.as_file().set_len(1025).unwrap();
        assert!(open(file.path()).is_err());
        file.as_file().set_len(1024).unwrap();
        let opened = open(file.path()).unwrap();
        assert_eq!((opened.size, opened.kind), (1024, VolumeKind::File));
        assert!(open(Path::new("/dev/null")).is_err());
        assert!(node_of(0, 0).is_err());
        let other = tempfile::NamedTempFile::new().unwrap();
        other.as_file().set_len(1024).unwrap();
        let error = super::open(other.path(), identify(file.path()).unwrap(), Use::Shared);
        assert!(error.err().unwrap().to_string().contains("exchanged"));
    }

    /// A machine that answers insertions as it is told, the last word first.
    struct FakeVm {
        answers: std::sync::Mutex<Vec<Result<(), InsertError>>>,
        channel: AgentChannel,
    }

    impl FakeVm {
        fn answering(answers: impl IntoIterator<Item = Result<(), InsertError>>) -> FakeVm {
            let answers = answers.into_iter().collect::<Vec<_>>().into_iter().rev().collect();
            let channel = AgentChannel::Unix("/absent".into());
            FakeVm { answers: std::sync::Mutex::new(answers), channel }
        }
    }

    #[async_trait::async_trait]
    impl Vm for FakeVm {
        fn pid(&self) -> u32 {
            1
        }

        fn agent_channel(&self) -> &AgentChannel {
            &self.channel
        }

        async fn wait(&self) -> VmExit {
            std::future::pending().await
        }

        async fn stop(&self, _: Duration) -> VmExit {
            VmExit { reason: "stopped".to_owned(), clean: true }
        }

        async fn insert(&self, _: &str, _: Volume) -> Result<(), InsertError> {
            self.answers.lock().unwrap().pop().expect("no further insertion is expected")
        }

        fn console_tail(&self) -> String {
            String::new()
        }
    }

    fn disk() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1024).unwrap();
        file
    }

    async fn put(
        places: &Mutex<Places>,
        vm: &FakeVm,
        file: &tempfile::NamedTempFile,
    ) -> Result<String, BlockVolumeError> {
        let wanted = Wanted {
            path: file.path().to_owned(),
            destination: "/data".into(),
            use_: Use::Exclusive,
        };
        places.lock().await.put(vm, wanted).await
    }

    #[tokio::test]
    async fn a_volume_that_is_in_the_machine_is_not_opened_again() {
        let (places, vm) = (Places::new(2), FakeVm::answering([Ok(()), Ok(())]));
        let (first, second, third) = (disk(), disk(), disk());
        let serial = put(&places, &vm, &first).await.unwrap();
        // Nobody could open it as a disk any more.
        first.as_file().set_len(1).unwrap();
        assert_eq!(put(&places, &vm, &first).await.unwrap(), serial);
        assert_ne!(put(&places, &vm, &second).await.unwrap(), serial);
        let error = put(&places, &vm, &third).await.unwrap_err().to_string();
        assert!(error.contains("has 2 places"), "{error}");
    }

    #[tokio::test]
    async fn what_a_machine_refuses_costs_no_place_and_what_it_loses_is_said() {
        let refused = || {
            let problem = "Failed to get \"write\" lock".to_owned();
            Err(InsertError::Refused { doing: "open the volume", problem })
        };
        let lost = Err(InsertError::Lost { doing: "put it there", problem: "late".to_owned() });
        let vm = FakeVm::answering([refused(), refused(), refused(), Ok(()), lost]);
        let places = Places::new(2);
        let (first, second) = (disk(), disk());
        for _ in 0..3 {
            let error = put(&places, &vm, &first).await.unwrap_err().to_string();
            assert!(error.contains("write"), "{error}");
        }
        put(&places, &vm, &first).await.unwrap();
        let error = put(&places, &vm, &second).await.unwrap_err().to_string();
        assert!(error.contains("lost to this VM"), "{error}");
        let error = put(&places, &vm, &second).await.unwrap_err().to_string();
        assert!(error.contains("delete the pod"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_that_does_not_answer_is_given_up() {
        let wanted =
            Wanted { path: "/dev/vdx".into(), destination: "/data".into(), use_: Use::Shared };
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let waiting = wanted.off_thread(move |_| Ok(held.recv().is_err()));
        let (error, ()) = tokio::join!(waiting, tokio::time::advance(OPEN_PATIENCE));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("/dev/vdx") && error.contains("storage"), "{error}");
        drop(hold);
    }
}
