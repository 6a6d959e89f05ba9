//! What one pull may still spend, shared by its layers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Limits, PullError};

/// Bytes of directories' names that are kept in memory for all layers together, while they are unpacked
/// and for as long as the image is there.
const NAMES: usize = 8 << 20;
/// Bytes of extended attributes of all layers together. On tmpfs they are memory that no quota counts.
const ATTRIBUTES: usize = 32 << 20;

/// Counts down over all layers.
#[derive(Debug)]
pub(crate) struct Budget {
    left: [AtomicU64; 4],
    limits: [u64; 4],
}

/// What there is to spend.
#[derive(Clone, Copy)]
enum Of {
    Bytes,
    Entries,
    Names,
    Attributes,
}

/// One layer's part of it.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    taken: [AtomicU64; 4],
}

impl Budget {
    pub(crate) fn new(limits: &Limits) -> Arc<Self> {
        let limits = [limits.unpacked_bytes, limits.entries, NAMES as u64, ATTRIBUTES as u64];
        Arc::new(Self { left: limits.map(AtomicU64::new), limits })
    }

    pub(crate) fn share(self: &Arc<Self>) -> Share {
        Share { budget: self.clone(), taken: Default::default() }
    }
}

impl Share {
    /// Accounts for unpacked bytes.
    pub(crate) fn take_bytes(&self, count: u64) -> Result<(), PullError> {
        self.take(Of::Bytes, count)
    }

    /// Accounts for one entry of a layer, or for a directory that is made without one.
    pub(crate) fn take_entry(&self) -> Result<(), PullError> {
        self.take(Of::Entries, 1)
    }

    /// Accounts for the name of a directory that is remembered.
    pub(crate) fn take_name(&self, bytes: usize) -> Result<(), PullError> {
        self.take(Of::Names, bytes as u64)
    }

    /// Names of so many bytes are forgotten.
    pub(crate) fn forget_names(&self, bytes: u64) {
        self.taken[Of::Names as usize].fetch_sub(bytes, Ordering::Relaxed);
        self.budget.left[Of::Names as usize].fetch_add(bytes, Ordering::Relaxed);
    }

    /// Accounts for an extended attribute.
    pub(crate) fn take_attribute(&self, bytes: usize) -> Result<(), PullError> {
        self.take(Of::Attributes, bytes as u64)
    }

    /// Nothing of what this layer took is left in the store.
    pub(crate) fn give_back(&self) {
        for (left, taken) in self.budget.left.iter().zip(&self.taken) {
            left.fetch_add(taken.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    fn take(&self, of: Of, count: u64) -> Result<(), PullError> {
        let left = &self.budget.left[of as usize];
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(count))
            .map_err(|_| PullError::Limit {
                what: "the image's layers".into(),
                limit: self.budget.limits[of as usize],
                unit: match of {
                    Of::Bytes => "unpacked bytes",
                    Of::Entries => "files and directories",
                    Of::Names => "bytes of directory names",
                    Of::Attributes => "bytes of extended attributes",
                },
            })?;
        self.taken[of as usize].fetch_add(count, Ordering::Relaxed);
        Ok(())
    }
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
        one.take_attribute(ATTRIBUTES).unwrap();
        assert!(other.take_attribute(1).is_err());
        one.take_name(NAMES).unwrap();
        assert!(other.take_name(1).is_err());
        one.forget_names(NAMES as u64);
        other.take_name(1).unwrap();
    }
}
