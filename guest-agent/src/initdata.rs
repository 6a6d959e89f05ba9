//! Initdata: what the pod's owner hands to this guest, read from the disk that carries it.
//!
//! The host makes the disk and may put anything on it. It is read once, within bounds; from then on
//! the disk does not matter.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nacre_protocol::initdata::{DISK_SERIAL, Initdata};

use crate::modules::{ModuleError, Modules};

/// PCI identifiers of a virtio disk: transitional and modern (virtio 1.2, 4.1.2 and 5.2).
const DISK_PCI_IDS: [&str; 2] = ["0x1001", "0x1042"];
const VIRTIO_PCI_VENDOR: &str = "0x1af4";

/// Why initdata that the host offers cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitdataError {
    /// The driver could not be loaded.
    #[error("initdata: {0}")]
    Module(#[from] ModuleError),
    /// The kernel's list of disks, or the disk, cannot be read.
    #[error("initdata: failed to read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Two disks say that they carry it.
    #[error("initdata: more than one disk has the serial number {DISK_SERIAL}")]
    Ambiguous,
    /// What is on the disk is no initdata.
    #[error(transparent)]
    Content(#[from] nacre_protocol::initdata::InitdataError),
}

/// The initdata of this pod, if its VM has a disk that carries some. A VM without disks does not even
/// load the driver.
pub(crate) fn find(modules: &Modules) -> Result<Option<Initdata>, InitdataError> {
    if !has_disk(Path::new("/sys/bus/pci/devices")) {
        return Ok(None);
    }
    modules.ensure("virtio_blk")?;
    let Some(name) = disk_by_serial(Path::new("/sys/block"))? else { return Ok(None) };
    let path = Path::new("/dev").join(name);
    let disk = File::open(&path).map_err(|source| InitdataError::Read { path, source })?;
    Ok(Some(Initdata::from_disk(disk)?))
}

fn has_disk(pci: &Path) -> bool {
    let Ok(devices) = fs::read_dir(pci) else { return false };
    devices.flatten().any(|device| {
        let is = |file: &str, values: &[&str]| {
            let text = fs::read_to_string(device.path().join(file)).unwrap_or_default();
            values.contains(&text.trim())
        };
        is("vendor", &[VIRTIO_PCI_VENDOR]) && is("device", &DISK_PCI_IDS)
    })
}

/// Name of the only disk with that serial number.
fn disk_by_serial(block: &Path) -> Result<Option<PathBuf>, InitdataError> {
    let failed = |source| InitdataError::Read { path: block.to_owned(), source };
    let mut found = None;
    for entry in fs::read_dir(block).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // Other kinds of disks have no such file.
        let serial = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
        if serial.trim_end_matches('\n') == DISK_SERIAL
            && found.replace(PathBuf::from(entry.file_name())).is_some()
        {
            return Err(InitdataError::Ambiguous);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn a_disk_is_known_by_its_pci_identifiers() {
        let pci = tempfile::tempdir().unwrap();
        assert!(!has_disk(&pci.path().join("absent")));
        let (net, other) = ([("0/vendor", "0x1af4\n"), ("0/device", "0x1041\n")], "0x8086\n");
        write(pci.path(), &net);
        write(pci.path(), &[("1/vendor", other), ("1/device", "0x1042\n")]);
        assert!(!has_disk(pci.path()));
        write(pci.path(), &[("2/vendor", "0x1af4\n"), ("2/device", "0x1042\n")]);
        assert!(has_disk(pci.path()));
    }

    #[test]
    fn the_disk_is_the_only_one_with_its_serial() {
        let block = tempfile::tempdir().unwrap();
        write(block.path(), &[("vda/serial", "data"), ("vdb/serial", "nacre-initdata-2")]);
        write(block.path(), &[("loop0/size", "0")]);
        assert_eq!(disk_by_serial(block.path()).unwrap(), None);
        write(block.path(), &[("vdc/serial", DISK_SERIAL)]);
        assert_eq!(disk_by_serial(block.path()).unwrap(), Some("vdc".into()));
        write(block.path(), &[("vdd/serial", DISK_SERIAL)]);
        assert!(matches!(disk_by_serial(block.path()), Err(InitdataError::Ambiguous)));
    }
}
