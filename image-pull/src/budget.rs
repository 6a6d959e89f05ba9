//! What one pull may still spend, shared by its layers.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Limits, PullError};

/// Counts down; never up.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes: AtomicU64,
    entries: AtomicU64,
    limits: Limits,
}

impl Budget {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            bytes: AtomicU64::new(limits.unpacked_bytes),
            entries: AtomicU64::new(limits.entries),
            limits: limits.clone(),
        }
    }

    /// Accounts for unpacked bytes.
    pub(crate) fn take_bytes(&self, count: u64) -> Result<(), PullError> {
        take(&self.bytes, count, self.limits.unpacked_bytes, "unpacked bytes")
    }

    /// Accounts for one entry of a layer.
    pub(crate) fn take_entry(&self) -> Result<(), PullError> {
        take(&self.entries, 1, self.limits.entries, "files and directories")
    }
}

fn take(left: &AtomicU64, count: u64, limit: u64, unit: &'static str) -> Result<(), PullError> {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(count))
        .map(drop)
        .map_err(|_| PullError::Limit { what: "the image's layers".into(), limit, unit })
}
