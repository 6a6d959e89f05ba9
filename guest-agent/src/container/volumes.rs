//! Volumes in a request to make a container: which disk it is to see where, and in which form.

use std::path::Path;

use nacre_protocol::agent::{CreateContainerRequest, Device, Storage};
use nacre_protocol::channel::{COPY_ROOT, DRIVER_BLOCK, VOLUMES_ROOT, volume_place};
use nacre_protocol::oci;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};

use crate::error::RpcError;
use crate::oci::{check_path, refuse_if};
use crate::storage::{AskedVolumes, VolumeDevice, VolumeKind, WantedVolume};

/// Most of one container.
const MOST: usize = 32;
/// Who may use a device's node: its owner, which is the container's root, and its group.
const DEVICE_MODE: u32 = 0o660;
/// Annotation with the pod's name, which the policy has judged.
const POD_NAME: &str = "io.kubernetes.cri.sandbox-name";

/// True for a storage that is a volume.
pub(super) fn is_volume(storage: &Storage) -> bool {
    storage.driver == DRIVER_BLOCK
}

/// Reads what a request says of volumes. Each mount from where volumes are mounted has its volume among them.
pub(super) fn parse(request: &CreateContainerRequest) -> Result<AskedVolumes, RpcError> {
    let storages = request.storages.iter().enumerate().filter(|(_, storage)| is_volume(storage));
    let spec = request.OCI.get_or_default();
    let mut wanted = Vec::new();
    for (index, storage) in storages {
        wanted.extend(file_system(&format!("storages[{index}]"), storage, &spec.Mounts)?);
    }
    for (index, mount) in spec.Mounts.iter().enumerate() {
        let from_volume = Path::new(&mount.source).starts_with(VOLUMES_ROOT);
        let is_it = |wanted: &WantedVolume| {
            wanted.path == mount.destination && mount.source == place_of(&wanted.serial)
        };
        let known = wanted.iter().any(is_it);
        let why = "no storage of the request is mounted there";
        refuse_if(from_volume && !known, &format!("OCI.Mounts[{index}].source"), why)?;
    }
    for (index, device) in request.devices.iter().enumerate() {
        wanted.push(block_device(&format!("devices[{index}]"), device)?);
    }
    refuse_if(wanted.len() > MOST, "storages, devices", "have more volumes than a pod can have")?;
    let pod = spec.Annotations.get(POD_NAME).cloned().unwrap_or_default();
    let copies = spec.Mounts.iter().filter(|mount| Path::new(&mount.source).starts_with(COPY_ROOT));
    let copied = copies.map(|mount| plain(&mount.destination)).collect();
    Ok(AskedVolumes { wanted, places: places(request), copied, pod })
}

/// Each path at which something is put into the container.
fn places(request: &CreateContainerRequest) -> Vec<String> {
    let spec = request.OCI.get_or_default();
    let mounts = spec.Mounts.iter().map(|mount| &mount.destination);
    let devices = request.devices.iter().map(|device| &device.container_path);
    let others = spec.Linux.get_or_default().Devices.iter().map(|device| &device.Path);
    mounts.chain(devices).chain(others).map(|path| plain(path)).collect()
}

/// A path without what it may have twice: a slash, a dot.
fn plain(path: &str) -> String {
    let parts = path.split('/').filter(|part| !matches!(*part, "" | "."));
    parts.fold(String::new(), |path, part| path + "/" + part)
}

/// Where the file system of the volume in that place is mounted.
fn place_of(serial: &str) -> String {
    format!("{VOLUMES_ROOT}/{serial}")
}

/// One for each place where the container sees it.
fn file_system(
    field: &str,
    storage: &Storage,
    mounts: &[oci::Mount],
) -> Result<Vec<WantedVolume>, RpcError> {
    let part = |name: &str| format!("{field}.{name}");
    check_serial(&part("source"), &storage.source)?;
    let place = place_of(&storage.source);
    let why = format!("must be {place}");
    refuse_if(storage.mount_point != place, &part("mount_point"), &why)?;
    refuse_if(storage.fstype != "ext4", &part("fstype"), "must be ext4")?;
    let why = "the volume's owner says more about it in volumes.toml: must be empty";
    refuse_if(!storage.driver_options.is_empty(), &part("driver_options"), why)?;
    let why = "is not applied in this guest";
    refuse_if(storage.fs_group.is_some(), &part("fs_group"), why)?;
    let read_only = read_only(&part("options"), &storage.options)?;
    let seen: Vec<_> = mounts.iter().filter(|mount| mount.source == place).collect();
    refuse_if(seen.is_empty(), field, "is mounted nowhere in the container")?;
    let wanted = seen.into_iter().map(|mount| WantedVolume {
        serial: storage.source.clone(),
        path: mount.destination.clone(),
        kind: VolumeKind::FileSystem,
        read_only: read_only || mount.options.iter().any(|option| option == "ro"),
    });
    Ok(wanted.collect())
}

fn block_device(field: &str, device: &Device) -> Result<WantedVolume, RpcError> {
    let part = |name: &str| format!("{field}.{name}");
    refuse_if(device.type_ != DRIVER_BLOCK, &part("type"), "must be blk")?;
    check_serial(&part("id"), &device.id)?;
    refuse_if(!device.vm_path.is_empty(), &part("vm_path"), "the guest finds it: must be empty")?;
    check_path(&part("container_path"), &device.container_path)?;
    Ok(WantedVolume {
        serial: device.id.clone(),
        path: device.container_path.clone(),
        kind: VolumeKind::Device,
        read_only: read_only(&part("options"), &device.options)?,
    })
}

fn check_serial(field: &str, serial: &str) -> Result<(), RpcError> {
    let why = "is no serial number of a place for volumes";
    refuse_if(volume_place(serial).is_none(), field, why)
}

fn read_only(field: &str, options: &[String]) -> Result<bool, RpcError> {
    match options {
        [] => Ok(false),
        [one] if one == "ro" => Ok(true),
        _ => Err(RpcError::invalid(field, "must be empty or \"ro\"")),
    }
}

/// The nodes that a container gets for its devices.
pub(super) fn nodes(devices: &[VolumeDevice]) -> Vec<LinuxDevice> {
    let node = |device: &VolumeDevice| {
        let mut node = LinuxDevice::default();
        node.set_path(device.path.clone().into());
        node.set_typ(LinuxDeviceType::B);
        node.set_major(device.major.into());
        node.set_minor(device.minor.into());
        node.set_file_mode(Some(DEVICE_MODE));
        node.set_uid(Some(0));
        node.set_gid(Some(0));
        node
    };
    devices.iter().map(node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounted(source: &str, destination: &str) -> oci::Mount {
        oci::Mount {
            source: source.into(),
            destination: destination.into(),
            type_: "bind".into(),
            ..Default::default()
        }
    }

    fn request() -> CreateContainerRequest {
        let place = format!("{VOLUMES_ROOT}/nacre-volume-1");
        let mut request = CreateContainerRequest::new();
        request.storages.push(Storage {
            driver: "blk".into(),
            source: "nacre-volume-1".into(),
            fstype: "ext4".into(),
            mount_point: place.clone(),
            ..Default::default()
        });
        request.devices.push(Device {
            id: "nacre-volume-0".into(),
            type_: "blk".into(),
            container_path: "/dev/xvda".into(),
            options: vec!["ro".into()],
            ..Default::default()
        });
        request.OCI.mut_or_insert_default().Mounts = vec![mounted(&place, "/data")];
        request
    }

    #[test]
    fn mounts_and_devices_are_volumes() {
        let asked = parse(&request()).unwrap();
        let wanted = &asked.wanted;
        let seen: Vec<_> =
            wanted.iter().map(|w| (&*w.serial, &*w.path, w.kind, w.read_only)).collect();
        let expected = [
            ("nacre-volume-1", "/data", VolumeKind::FileSystem, false),
            ("nacre-volume-0", "/dev/xvda", VolumeKind::Device, true),
        ];
        assert_eq!(seen, expected);
        assert_eq!(parse(&CreateContainerRequest::new()).unwrap(), AskedVolumes::default());
    }

    #[test]
    fn every_place_of_a_request_is_known_by_one_name() {
        let mut request = request();
        let spec = request.OCI.mut_or_insert_default();
        spec.Mounts.push(mounted("tmpfs", "//shared/./x/"));
        spec.Mounts.push(mounted(&format!("{COPY_ROOT}/copy"), "//etc/app/"));
        let device = oci::LinuxDevice { Path: "/dev/null".into(), ..Default::default() };
        spec.Linux.mut_or_insert_default().Devices.push(device);
        spec.Annotations.insert(POD_NAME.into(), "web-0".into());
        let asked = parse(&request).unwrap();
        assert_eq!(asked.places, ["/data", "/shared/x", "/etc/app", "/dev/xvda", "/dev/null"]);
        assert_eq!(asked.copied, ["/etc/app"]);
        assert_eq!(asked.pod, "web-0");
    }

    #[test]
    fn other_forms_are_refused_by_field() {
        type Change = fn(&mut CreateContainerRequest);
        let changes: [(Change, &str); 14] = [
            (|r| r.storages[0].source = "vda".into(), "storages[0].source"),
            (|r| r.storages[0].source = "nacre-volume-9".into(), "storages[0].source"),
            (|r| r.storages[0].mount_point = "/etc".into(), "storages[0].mount_point"),
            (|r| r.storages[0].fstype = "xfs".into(), "storages[0].fstype"),
            (|r| r.storages[0].options = vec!["exec".into()], "storages[0].options"),
            (|r| r.storages[0].driver_options.push("key=a".into()), "storages[0].driver_options"),
            (|r| r.OCI.mut_or_insert_default().Mounts.clear(), "storages[0]"),
            (|r| r.storages.clear(), "OCI.Mounts[0].source"),
            (
                |r| {
                    // What is mounted there is another volume's.
                    let spec = r.OCI.mut_or_insert_default();
                    spec.Mounts.push(mounted(&place_of("nacre-volume-2"), "/data"));
                },
                "OCI.Mounts[1].source",
            ),
            (|r| r.devices[0].id = "0000:00:05.0".into(), "devices[0].id"),
            (|r| r.devices[0].type_ = "vfio".into(), "devices[0].type"),
            (|r| r.devices[0].vm_path = "/dev/vda".into(), "devices[0].vm_path"),
            (|r| r.devices[0].container_path = "/dev/../x".into(), "devices[0].container_path"),
            (|r| r.devices = vec![r.devices[0].clone(); 40], "storages, devices"),
        ];
        for (change, field) in changes {
            let mut request = request();
            change(&mut request);
            let error = parse(&request).unwrap_err().to_string();
            assert!(error.starts_with(field), "{field}: {error}");
        }
    }
}
