//! What the daemon has done, in numbers.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn count(&self) {
        self.add(1);
    }

    fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Numbers since the daemon's start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) guests: Counter,
    pub(crate) guests_refused: Counter,
    pub(crate) violations: Counter,
    pub(crate) gets: Counter,
    pub(crate) hits_containerd: Counter,
    pub(crate) hits_own: Counter,
    pub(crate) hits_followed: Counter,
    pub(crate) misses: Counter,
    pub(crate) gets_refused: Counter,
    pub(crate) gets_cut: Counter,
    pub(crate) bytes_containerd: Counter,
    pub(crate) bytes_own: Counter,
    pub(crate) bytes_followed: Counter,
    pub(crate) puts: Counter,
    pub(crate) puts_refused: Counter,
    pub(crate) puts_lost: Counter,
    pub(crate) bytes_put: Counter,
    pub(crate) evictions: Counter,
    pub(crate) bytes_evicted: Counter,
    pub(crate) corrupt: Counter,
}

/// What `nacre-cache stats` prints. Counts are since the daemon's start, sizes in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Guests that are connected now.
    pub guests_now: u64,
    /// Blobs of its own that the daemon has now.
    pub blobs_now: u64,
    /// Their size.
    pub bytes_now: u64,
    /// Guests that were connected.
    pub guests: u64,
    /// Guests that were turned away: by their namespace, or for want of room.
    pub guests_refused: u64,
    /// Guests whose streams were ended because they broke the protocol.
    pub violations: u64,
    /// Blobs that were asked for.
    pub gets: u64,
    /// Of them, served from containerd's content store.
    pub hits_containerd: u64,
    /// Of them, served from the daemon's own blobs.
    pub hits_own: u64,
    /// Of them, served while another guest brought them.
    pub hits_followed: u64,
    /// Of them, not there.
    pub misses: u64,
    /// Of them, refused: too many at once.
    pub gets_refused: u64,
    /// Of the hits, those that the daemon ended early: a putter that gave up, a corrupt blob.
    pub gets_cut: u64,
    /// Bytes sent from containerd's content store.
    pub bytes_containerd: u64,
    /// Bytes sent from the daemon's own blobs.
    pub bytes_own: u64,
    /// Bytes sent while another guest brought them.
    pub bytes_followed: u64,
    /// Blobs that were put and kept.
    pub puts: u64,
    /// Blobs that were offered and not wanted.
    pub puts_refused: u64,
    /// Puts that were given up, stalled, or did not have the announced digest.
    pub puts_lost: u64,
    /// Bytes that were put and kept.
    pub bytes_put: u64,
    /// Blobs that were removed for want of room.
    pub evictions: u64,
    /// Their size.
    pub bytes_evicted: u64,
    /// Blobs that were found not to have their digest.
    pub corrupt: u64,
}

impl Counters {
    /// The numbers, without those of now.
    pub(crate) fn read(&self) -> Statistics {
        Statistics {
            guests_now: 0,
            blobs_now: 0,
            bytes_now: 0,
            guests: self.guests.value(),
            guests_refused: self.guests_refused.value(),
            violations: self.violations.value(),
            gets: self.gets.value(),
            hits_containerd: self.hits_containerd.value(),
            hits_own: self.hits_own.value(),
            hits_followed: self.hits_followed.value(),
            misses: self.misses.value(),
            gets_refused: self.gets_refused.value(),
            gets_cut: self.gets_cut.value(),
            bytes_containerd: self.bytes_containerd.value(),
            bytes_own: self.bytes_own.value(),
            bytes_followed: self.bytes_followed.value(),
            puts: self.puts.value(),
            puts_refused: self.puts_refused.value(),
            puts_lost: self.puts_lost.value(),
            bytes_put: self.bytes_put.value(),
            evictions: self.evictions.value(),
            bytes_evicted: self.bytes_evicted.value(),
            corrupt: self.corrupt.value(),
        }
    }
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Statistics { guests_now, guests, guests_refused, violations, .. } = self;
        writeln!(
            f,
            "guests   {guests_now} now, {guests} in all, {guests_refused} turned away, \
             {violations} broke the protocol"
        )?;
        writeln!(f, "keeps    {} blobs, {}", self.blobs_now, Bytes(self.bytes_now))?;
        writeln!(
            f,
            "gets     {}: {} from containerd ({}), {} own ({}), {} followed ({}), {} missed, \
             {} refused, {} cut short",
            self.gets,
            self.hits_containerd,
            Bytes(self.bytes_containerd),
            self.hits_own,
            Bytes(self.bytes_own),
            self.hits_followed,
            Bytes(self.bytes_followed),
            self.misses,
            self.gets_refused,
            self.gets_cut,
        )?;
        writeln!(
            f,
            "puts     {} kept ({}), {} not wanted, {} lost",
            self.puts,
            Bytes(self.bytes_put),
            self.puts_refused,
            self.puts_lost
        )?;
        write!(
            f,
            "removed  {} for want of room ({}), {} corrupt",
            self.evictions,
            Bytes(self.bytes_evicted),
            self.corrupt
        )
    }
}

/// A number of bytes for people.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: u64 = 1024 * 1024;
        match self.0 {
            small if small < MIB => write!(f, "{small} bytes"),
            large => write!(f, "{}.{} MiB", large / MIB, large % MIB * 10 / MIB),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_told_to_people_and_programs() {
        let counters = Counters::default();
        counters.hits_own.count();
        counters.bytes_own.add(3 * 1024 * 1024 + 524_288);
        let statistics = counters.read();
        let text = statistics.to_string();
        assert!(text.contains("1 own (3.5 MiB), 0 followed (0 bytes)"), "{text}");
        let json = serde_json::to_string(&statistics).unwrap();
        assert!(json.contains("\"bytes_own\":3670016"), "{json}");
        assert_eq!(serde_json::from_str::<Statistics>(&json).unwrap(), statistics);
    }
}
