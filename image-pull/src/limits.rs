//! Bounds on what a registry can make this guest spend.

use std::time::Duration;

/// Bounds of one pull. Each is an error with the bound's name when it is reached.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest manifest or index, in bytes.
    pub manifest_bytes: u64,
    /// Largest image configuration, in bytes.
    pub config_bytes: u64,
    /// Most layers of an image; overlayfs stacks no more than 500.
    pub layers: usize,
    /// Bytes that all layers together may have after decompression, tar headers included.
    pub unpacked_bytes: u64,
    /// Entries (files, directories, links, whiteouts) of all layers together.
    pub entries: u64,
    /// Binary logarithm of the largest zstd window; a layer being unpacked may hold that much memory.
    pub zstd_window_log: u32,
    /// Longest wait for a connection, name resolution included.
    pub connect: Duration,
    /// Longest wait for the next byte of an answer.
    pub stall: Duration,
    /// Longest wait for the next byte from the node's cache: the registry is the alternative.
    pub cache_stall: Duration,
    /// Longest time of a whole pull.
    pub total: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            manifest_bytes: 4 << 20,
            config_bytes: 4 << 20,
            layers: 500,
            unpacked_bytes: 64 << 30,
            entries: 2_000_000,
            zstd_window_log: 27,
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            cache_stall: Duration::from_secs(5),
            total: Duration::from_secs(20 * 60),
        }
    }
}
