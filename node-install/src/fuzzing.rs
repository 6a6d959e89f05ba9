//! The door of the fuzz targets (`node-install/fuzz`) to what reads others' bytes: containerd's configuration and word,
//! and the record of an installation. Built for them alone.

use toml::Table;
use toml_edit::DocumentMut;

use crate::handlers::{Release, lines};
use crate::receipt::Receipt;
use crate::{dump::Dump, edit};

/// A file of containerd's with Nacre's lines, and without them again; none if the file cannot take them.
#[must_use]
pub fn there_and_back(text: &str, release: Release) -> Option<(String, String)> {
    let mut document: DocumentMut = text.parse().ok()?;
    let added = lines(release, release.schema(), &["overlayfs".to_owned()]);
    let added: DocumentMut = added.parse().expect("Nacre's own lines");
    let edits = edit::set(&mut document, &added).ok()?;
    let with = document.to_string();
    edit::undo(&mut document, &edits);
    Some((with, document.to_string()))
}

/// What is asked of two answers of `containerd config dump`.
pub fn compare(before: &str, after: &str, release: Release) {
    let (Ok(before), Ok(after)) = (before.parse::<Table>(), after.parse::<Table>()) else { return };
    let (before, after) = (Dump::from(before), Dump::from(after));
    let _ = (before.has_no_cri(), before.other_snapshotters(), before.address());
    let _ = (after.check_added(&before, &before, release), before.check_removed(&after, release));
}

/// Whether this is a record of an installation; what is read is written as the same record.
#[must_use]
pub fn is_receipt(text: &str) -> bool {
    let Ok(receipt) = serde_json::from_str::<Receipt>(text) else { return false };
    let again = serde_json::to_string(&receipt).expect("it was read");
    serde_json::from_str::<Receipt>(&again).is_ok_and(|again| again == receipt)
}
