//! Volumes: put by QMP into disks that the machine was launched with.
//!
//! The disk's node is a `raw` node over nothing. Its file is exchanged for the volume's
//! (`blockdev-reopen`), then the device is told the size (`block_resize`, which changes nothing of a
//! file or device that has it already). QEMU gets an open file and never a path, so that it needs no right to
//! open anything.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::qmp::{Qmp, QmpError};
use crate::{InsertError, Volume, VolumeKind};

/// How long QEMU may take for a command, on a busy host and a slow disk.
const PATIENCE: Duration = Duration::from_secs(10);

/// Disks without contents: node by serial number.
#[derive(Debug, Default)]
pub(super) struct EmptyDisks(HashMap<String, String>);

impl EmptyDisks {
    pub(super) fn new(disks: Vec<(String, String)>) -> EmptyDisks {
        EmptyDisks(disks.into_iter().collect())
    }

    /// Puts a volume into one of them. If that fails half-way the disk is given up: nobody knows what is in it.
    pub(super) async fn fill(
        &mut self,
        qmp: &Qmp,
        serial: &str,
        volume: Volume,
    ) -> Result<(), InsertError> {
        let no_place = || InsertError::NoPlace { serial: serial.to_owned() };
        let node = self.0.remove(serial).ok_or_else(no_place)?;
        let Volume { file, kind, size } = volume;
        let refused = |doing| {
            move |error: QmpError| InsertError::Refused { doing, problem: error.to_string() }
        };
        let give = "give QEMU the volume's file";
        let given = qmp.add_fd(file, PATIENCE).await.map_err(refused(give))?;
        let set = given.get("fdset-id").and_then(Value::as_u64).ok_or_else(|| {
            let problem = "its answer has no fdset-id".to_owned();
            InsertError::Refused { doing: give, problem }
        })?;
        let medium = format!("{node}-volume");
        let opened = json!({
            "node-name": medium,
            "driver": driver(kind),
            "filename": format!("/dev/fdset/{set}"),
            "read-only": false,
        });
        let open = qmp.command("blockdev-add", opened, PATIENCE).await;
        open.map_err(refused("open the volume"))?;
        let raw = json!({
            "node-name": node, "driver": "raw", "read-only": false, "file": medium,
        });
        let exchanged = qmp.command("blockdev-reopen", json!({ "options": [raw] }), PATIENCE).await;
        exchanged.map_err(refused("put the volume into the disk"))?;
        let size = json!({ "node-name": node, "size": size });
        let told = qmp.command("block_resize", size, PATIENCE).await;
        told.map_err(refused("tell the guest the volume's size"))?;
        Ok(())
    }
}

/// QEMU's driver for it.
fn driver(kind: VolumeKind) -> &'static str {
    match kind {
        VolumeKind::File => "file",
        VolumeKind::BlockDevice => "host_device",
    }
}
