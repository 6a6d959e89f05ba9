//! How far a pull has come.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use std::sync::Arc;

use crate::PullError;
use crate::resolve::Described;

/// Least time between two reports that nothing but bytes has changed in.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// How far a pull has come: of the image as a whole, layers that were already here included. Told when
/// something is done, else at most every 100 ms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Layers that are verified and unpacked.
    pub layers_done: u32,
    /// Layers of the image.
    pub layers: u32,
    /// Bytes that came.
    pub bytes_done: u64,
    /// Bytes of all layers, as they travel.
    pub bytes: u64,
}

/// Adds up what the layers of one image tell, and reports it.
pub(crate) struct Tally {
    report: Box<dyn Fn(Progress) + Send + Sync>,
    now: Mutex<Now>,
}

struct Now {
    progress: Progress,
    reported: Instant,
}

impl Tally {
    pub(crate) fn new(
        report: impl Fn(Progress) + Send + Sync + 'static,
        image: &Described,
    ) -> Arc<Self> {
        // A layer that comes twice counts once.
        let mut once: Vec<_> = image.layers.iter().collect();
        once.sort_by_key(|(blob, diff_id)| (*diff_id, blob.digest));
        once.dedup_by_key(|(blob, diff_id)| (*diff_id, blob.digest));
        let bytes = once.iter().fold(0_u64, |sum, (blob, _)| sum.saturating_add(blob.size));
        let layers = u32::try_from(once.len()).unwrap_or(u32::MAX);
        let progress = Progress { layers, bytes, ..Progress::default() };
        report(progress);
        let now = Mutex::new(Now { progress, reported: Instant::now() });
        Arc::new(Self { report: Box::new(report), now })
    }

    /// More of a layer came.
    pub(crate) fn bytes(&self, count: u64) {
        let mut now = self.now();
        now.progress.bytes_done += count;
        if now.reported.elapsed() >= REPORT_EVERY {
            self.tell(now);
        }
    }

    /// That much of a layer was of no use.
    pub(crate) fn take_back(&self, count: u64) {
        self.now().progress.bytes_done -= count;
    }

    /// A layer is verified and unpacked.
    pub(crate) fn layer(&self) {
        let mut now = self.now();
        now.progress.layers_done += 1;
        self.tell(now);
    }

    pub(crate) fn deadline(&self, total: Duration) -> PullError {
        let Progress { bytes_done, bytes, .. } = self.now().progress;
        PullError::Deadline { seconds: total.as_secs(), done: bytes_done >> 20, total: bytes >> 20 }
    }

    /// Without the lock: a report may take its time.
    fn tell(&self, mut now: MutexGuard<'_, Now>) {
        now.reported = Instant::now();
        let progress = now.progress;
        drop(now);
        (self.report)(progress);
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
