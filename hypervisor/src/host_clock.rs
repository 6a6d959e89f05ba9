//! How fast the processor's time stamp counter counts, for guests that QEMU emulates.
//!
//! Such a guest reads the host's counter, and its kernel finds out the frequency by QEMU's interval timer. On a
//! host where more threads run than it has processors that goes wrong now and then: the emulated processor loses its
//! turn between starting the timer and reading the counter, the rest of the wait is short, and from then on the
//! guest's clock runs up to twenty times too fast, and all its deadlines with it. So the guest is told
//! (`tsc_early_khz` of the kernel's admin-guide/kernel-parameters.txt), and needs no interval timer, whose
//! measurement takes a tenth of an emulated boot. Its kernel still corrects what it was told, by at most 1 %.

use std::time::{Duration, Instant};

use crate::sys;

/// How long the counter is watched: the error is below a microsecond, so one part in ten thousand.
const WATCHED: Duration = Duration::from_millis(10);
/// Readings of which the quickest counts.
const READINGS: usize = 8;

/// The counter at a moment.
#[derive(Clone, Copy)]
struct Reading {
    at: Instant,
    count: u64,
    /// How long it took: how wrong `at` may be.
    took: Duration,
}

impl Reading {
    fn take() -> Reading {
        let readings = std::iter::repeat_with(|| {
            let at = Instant::now();
            let count = sys::time_stamp();
            Reading { at, count, took: at.elapsed() }
        });
        let first = readings.take(READINGS).reduce(|a, b| if b.took < a.took { b } else { a });
        first.expect("there are readings")
    }

    /// In kHz; `None` for what no counter does: going backwards, or not counting.
    fn frequency_until(self, later: Reading) -> Option<u32> {
        let nanoseconds = later.at.duration_since(self.at).as_nanos();
        let counted = u128::from(later.count.checked_sub(self.count)?);
        let kilohertz = (counted * 1_000_000).checked_div(nanoseconds)?;
        u32::try_from(kilohertz).ok().filter(|kilohertz| *kilohertz != 0)
    }
}

/// Counts for some milliseconds.
pub(crate) async fn kilohertz() -> Option<u32> {
    let first = Reading::take();
    tokio::time::sleep(WATCHED).await;
    first.frequency_until(Reading::take())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_per_time_are_a_frequency() {
        let start = Reading { at: Instant::now(), count: 1000, took: Duration::ZERO };
        let after = |milliseconds, count| Reading {
            at: start.at + Duration::from_millis(milliseconds),
            count,
            took: Duration::ZERO,
        };
        assert_eq!(start.frequency_until(after(10, 21_001_000)), Some(2_100_000));
        assert_eq!(start.frequency_until(after(10, 1000)), None);
        assert_eq!(start.frequency_until(after(10, 999)), None);
        assert_eq!(start.frequency_until(after(0, 2000)), None);
        assert_eq!(start.frequency_until(after(1, u64::MAX)), None);
    }

    #[tokio::test]
    async fn this_processors_counter_counts_alike_twice() {
        let (first, second) = (kilohertz().await.unwrap(), kilohertz().await.unwrap());
        assert!(first.abs_diff(second) < first / 100, "{first} kHz, then {second} kHz");
    }
}
