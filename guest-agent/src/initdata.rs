//! Initdata: what the pod's owner hands to this guest, read from the disk that carries it.
//!
//! The host makes the disk and may put anything on it. It is read once, within bounds; from then on
//! the disk does not matter.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use nacre_protocol::initdata::{DISK_SERIAL, Initdata};

use crate::devices::Machine;
use crate::disk::{self, DiskError};
use crate::modules::Modules;

/// Why initdata that the host offers cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitdataError {
    /// The disk could not be found.
    #[error("initdata: {0}")]
    Disk(#[from] DiskError),
    /// The disk cannot be read.
    #[error("initdata: failed to read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// What is on the disk is no initdata.
    #[error(transparent)]
    Content(#[from] nacre_protocol::initdata::InitdataError),
}

/// The initdata of this pod, if its VM has a disk that carries some.
pub(crate) fn find(
    machine: &Machine,
    modules: &Modules,
) -> Result<Option<Initdata>, InitdataError> {
    let Some(path) = disk::find(machine, modules, DISK_SERIAL)? else { return Ok(None) };
    let disk = File::open(&path).map_err(|source| InitdataError::Read { path, source })?;
    Ok(Some(Initdata::from_disk(disk)?))
}
