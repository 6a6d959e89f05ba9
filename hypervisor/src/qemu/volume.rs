//! Volumes: put by QMP into disks that the machine was launched with.
//!
//! The disk's node is a `raw` node over nothing. Its file is exchanged for the volume's
//! (`blockdev-reopen`), then the device is told the size (`block_resize`, which changes nothing of a
//! file or device that has it already). QEMU gets an open file and never a path, so that it needs no right to
//! open anything.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
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

    /// Puts a volume into one of them. What fails before the exchange is undone, so that the disk is as empty as before
    /// and QEMU holds nothing of the volume.
    pub(super) async fn fill(
        &mut self,
        qmp: &Qmp,
        serial: &str,
        volume: Volume,
    ) -> Result<(), InsertError> {
        let node = self.0.get(serial).cloned();
        let node = node.ok_or_else(|| InsertError::NoPlace { serial: serial.to_owned() })?;
        let Volume { file, kind, size } = volume;
        let medium = format!("{node}-volume");
        let (doing, error) = match exchange(qmp, &node, &medium, file, kind).await {
            Ok(()) => {
                self.0.remove(serial);
                let size = json!({ "node-name": node, "size": size });
                let told = qmp.command("block_resize", size, PATIENCE).await;
                return told.map(drop).map_err(|error| InsertError::Lost {
                    doing: "tell the guest the volume's size",
                    problem: error.to_string(),
                });
            }
            Err(Failed::Undone { doing, error }) => {
                return Err(InsertError::Refused { doing, problem: error.to_string() });
            }
            Err(Failed::Unknown { doing, error }) => (doing, error),
        };
        self.0.remove(serial);
        Err(InsertError::Lost { doing, problem: error.to_string() })
    }
}

/// Why a volume is not behind a disk.
enum Failed {
    /// Everything is as before.
    Undone { doing: &'static str, error: QmpError },
    /// Nobody knows what is behind the disk, or QEMU holds the volume.
    Unknown { doing: &'static str, error: QmpError },
}

/// Gives QEMU the file, opens it as `medium` and lets `node` be over it.
async fn exchange(
    qmp: &Qmp,
    node: &str,
    medium: &str,
    file: OwnedFd,
    kind: VolumeKind,
) -> Result<(), Failed> {
    let doing = "give QEMU the volume's file";
    let given = qmp.add_fd(file, PATIENCE).await;
    // Without its number the file could not be taken back.
    let given = given.map_err(|error| match error {
        QmpError::Refused { .. } => Failed::Undone { doing, error },
        error => Failed::Unknown { doing, error },
    })?;
    let set = given.get("fdset-id").and_then(Value::as_u64);
    let set = set.ok_or_else(|| Failed::Unknown {
        doing,
        error: QmpError::Refused { command: "add-fd", why: "it names no fdset-id".to_owned() },
    })?;
    let doing = "open the volume";
    let opened = json!({
        "node-name": medium,
        "driver": driver(kind),
        "filename": format!("/dev/fdset/{set}"),
        "read-only": false,
    });
    let failed = match qmp.command("blockdev-add", opened, PATIENCE).await {
        Ok(_) => {
            let doing = "put the volume into the disk";
            let raw = json!({
                "node-name": node, "driver": "raw", "read-only": false, "file": medium,
            });
            match qmp.command("blockdev-reopen", json!({ "options": [raw] }), PATIENCE).await {
                Ok(_) => return Ok(()),
                Err(error @ QmpError::Refused { .. }) => (doing, error),
                Err(error) => return Err(Failed::Unknown { doing, error }),
            }
        }
        Err(error) => (doing, error),
    };
    let (doing, error) = failed;
    // Commands are carried out one after the other, so one that was late has come to an end when these have. What it
    // did not open cannot be closed: what counts is the file.
    let _ = qmp.command("blockdev-del", json!({ "node-name": medium }), PATIENCE).await;
    match qmp.command("remove-fd", json!({ "fdset-id": set }), PATIENCE).await {
        Ok(_) => Err(Failed::Undone { doing, error }),
        Err(_) => Err(Failed::Unknown { doing, error }),
    }
}

/// QEMU's driver for it.
fn driver(kind: VolumeKind) -> &'static str {
    match kind {
        VolumeKind::File => "file",
        VolumeKind::BlockDevice => "host_device",
    }
}
