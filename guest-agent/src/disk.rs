//! Finds the disks that the host gives to this guest, by their serial numbers.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::devices::{Kind, Machine};
use crate::modules::{ModuleError, Modules};

/// The kernel's list of disks.
const BLOCK: &str = "/sys/block";

/// Why it is not known whether there is such a disk, or which.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    /// The driver could not be loaded.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// The kernel's list of disks cannot be read.
    #[error("failed to read {path}: {source}")]
    Read {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Two disks say that they are it.
    #[error("more than one disk has the serial number {serial}")]
    Ambiguous {
        /// The number.
        serial: String,
    },
}

/// The device of the only disk with that serial number. A VM without disks does not even load the driver.
pub(crate) fn find(
    machine: &Machine,
    modules: &Modules,
    serial: &'static str,
) -> Result<Option<PathBuf>, DiskError> {
    if !machine.has(Kind::Disk) {
        return Ok(None);
    }
    modules.ensure("virtio_blk")?;
    let name = by_serial(Path::new(BLOCK), serial)?;
    Ok(name.map(|name| Path::new("/dev").join(name)))
}

/// The kernel's name of the only disk with that serial number, when the driver is there.
pub(crate) fn name_of(serial: &str) -> Result<Option<PathBuf>, DiskError> {
    by_serial(Path::new(BLOCK), serial)
}

/// Its size in bytes, as the kernel knows it now; none for one without contents.
pub(crate) fn size_of(name: &Path) -> Result<u64, DiskError> {
    /// The unit of `size`, whatever the disk's own sectors are (Documentation/ABI/stable/sysfs-block).
    const SECTOR: u64 = 512;
    let path = Path::new(BLOCK).join(name).join("size");
    let text = fs::read_to_string(&path)
        .map_err(|source| DiskError::Read { path: path.clone(), source })?;
    let sectors = text.trim_end().parse().map_err(io::Error::other);
    let sectors: u64 = sectors.map_err(|source| DiskError::Read { path, source })?;
    Ok(sectors.saturating_mul(SECTOR))
}

/// Name of the only disk with that serial number.
fn by_serial(block: &Path, wanted: &str) -> Result<Option<PathBuf>, DiskError> {
    let failed = |source| DiskError::Read { path: block.to_owned(), source };
    let mut found = None;
    for entry in fs::read_dir(block).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // Other kinds of disks have no such file.
        let serial = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
        if serial.trim_end_matches('\n') == wanted
            && found.replace(PathBuf::from(entry.file_name())).is_some()
        {
            return Err(DiskError::Ambiguous { serial: wanted.to_owned() });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERIAL: &str = "nacre-initdata";

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn the_disk_is_the_only_one_with_its_serial() {
        let block = tempfile::tempdir().unwrap();
        write(block.path(), &[("vda/serial", "data"), ("vdb/serial", "nacre-initdata-2")]);
        write(block.path(), &[("loop0/size", "0")]);
        assert_eq!(by_serial(block.path(), SERIAL).unwrap(), None);
        write(block.path(), &[("vdc/serial", SERIAL)]);
        assert_eq!(by_serial(block.path(), SERIAL).unwrap(), Some("vdc".into()));
        write(block.path(), &[("vdd/serial", SERIAL)]);
        let error = by_serial(block.path(), SERIAL).unwrap_err().to_string();
        assert_eq!(error, "more than one disk has the serial number nacre-initdata");
    }
}
