//! What one pull may still spend, shared by its layers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Limits, PullError};

/// Counts down over all layers.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes: AtomicU64,
    entries: AtomicU64,
    limits: Limits,
}

/// One layer's part of it.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    bytes: AtomicU64,
    entries: AtomicU64,
}

impl Budget {
    pub(crate) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            bytes: AtomicU64::new(limits.unpacked_bytes),
            entries: AtomicU64::new(limits.entries),
            limits: limits.clone(),
        })
    }

    pub(crate) fn share(self: &Arc<Self>) -> Share {
        Share { budget: self.clone(), bytes: AtomicU64::new(0), entries: AtomicU64::new(0) }
    }
}

impl Share {
    /// Accounts for unpacked bytes.
    pub(crate) fn take_bytes(&self, count: u64) -> Result<(), PullError> {
        let limit = self.budget.limits.unpacked_bytes;
        take(&self.budget.bytes, &self.bytes, count, limit, "unpacked bytes")
    }

    /// Accounts for one entry of a layer.
    pub(crate) fn take_entry(&self) -> Result<(), PullError> {
        let limit = self.budget.limits.entries;
        take(&self.budget.entries, &self.entries, 1, limit, "files and directories")
    }

    /// Nothing of what this layer took is left in the store.
    pub(crate) fn give_back(&self) {
        let all = [(&self.budget.bytes, &self.bytes), (&self.budget.entries, &self.entries)];
        for (budget, share) in all {
            budget.fetch_add(share.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

fn take(
    left: &AtomicU64,
    taken: &AtomicU64,
    count: u64,
    limit: u64,
    unit: &'static str,
) -> Result<(), PullError> {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(count))
        .map_err(|_| PullError::Limit { what: "the image's layers".into(), limit, unit })?;
    taken.fetch_add(count, Ordering::Relaxed);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_share_what_there_is_and_give_back_what_failed() {
        let limits = Limits { unpacked_bytes: 10, entries: 1, ..Limits::default() };
        let budget = Budget::new(&limits);
        let (one, other) = (budget.share(), budget.share());
        one.take_bytes(6).unwrap();
        one.take_entry().unwrap();
        assert!(other.take_bytes(5).is_err() && other.take_entry().is_err());
        other.take_bytes(4).unwrap();
        one.give_back();
        one.give_back();
        other.take_bytes(6).unwrap();
        other.take_entry().unwrap();
        assert!(other.take_bytes(1).is_err());
    }
}
