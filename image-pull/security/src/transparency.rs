//! Transparency logs: that a signature was entered, and when.

/// An entry of a log, with what proves it. Nothing of it is verified.
#[derive(Debug)]
pub(crate) struct LogEntry {
    /// SHA-256 of the log's public key.
    pub(crate) log_id: [u8; 32],
    /// Position in the log.
    pub(crate) index: i64,
    /// Seconds since 1970; only [`LogEntry::promise`] vouches for it.
    pub(crate) integrated_time: i64,
    /// The entry itself: canonical JSON.
    pub(crate) body: Vec<u8>,
    /// The log's signature over the entry, its time and position ("signed entry timestamp").
    pub(crate) promise: Option<Vec<u8>>,
    pub(crate) proof: Option<Proof>,
}

/// Proof that an entry is in a tree whose root the log signed (RFC 6962, section 2.1.1).
#[derive(Debug)]
pub(crate) struct Proof {
    pub(crate) index: u64,
    pub(crate) size: u64,
    pub(crate) root: [u8; 32],
    pub(crate) hashes: Vec<[u8; 32]>,
    pub(crate) checkpoint: String,
}
