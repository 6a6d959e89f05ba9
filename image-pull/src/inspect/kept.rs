//! Layers as they came, for as long as an inspector lives: what links lead to can be in a layer that was
//! read before the link was known.

use std::collections::BTreeMap;

use bytes::Bytes;
use nacre_trust::Digest;

use crate::pieces::Sender;

/// Bytes of all layers that are kept. What does not fit is fetched again if it has to be read again.
const MOST: u64 = 256 << 20;
/// Bytes that are handed on at once.
const PIECE: usize = 64 << 10;

/// Verified blobs by their digests.
#[derive(Default)]
pub(super) struct Kept {
    blobs: BTreeMap<Digest, Bytes>,
    bytes: u64,
}

impl Kept {
    pub(super) fn get(&self, digest: &Digest) -> Option<Bytes> {
        self.blobs.get(digest).cloned()
    }

    /// Where a copy of a blob of so many bytes can go, if there is room. It grows with what really comes.
    pub(super) fn room_for(&self, size: u64) -> Option<Vec<u8>> {
        (size <= MOST.saturating_sub(self.bytes)).then(Vec::new)
    }

    /// Keeps a blob that is what `digest` names.
    pub(super) fn keep(&mut self, digest: Digest, blob: Vec<u8>) {
        self.bytes += blob.len() as u64;
        self.blobs.insert(digest, blob.into());
    }
}

/// Hands a blob on as if it came anew.
pub(super) async fn replay(mut blob: Bytes, sender: Sender) {
    while !blob.is_empty() {
        let piece = blob.split_to(blob.len().min(PIECE));
        if !sender.send(piece).await {
            return;
        }
    }
    sender.end();
}

#[cfg(test)]
mod tests {
    use nacre_trust::Algorithm;

    use super::*;

    #[test]
    fn no_more_is_kept_than_there_is_room_for() {
        let mut kept = Kept::default();
        assert!(kept.room_for(MOST).is_some() && kept.room_for(MOST + 1).is_none());
        let digest = Digest::of(Algorithm::Sha256, b"blob");
        kept.keep(digest, b"blob".to_vec());
        assert_eq!(kept.get(&digest).unwrap(), b"blob"[..]);
        assert!(kept.get(&Digest::of(Algorithm::Sha256, b"other")).is_none());
        assert!(kept.room_for(MOST - 4).is_some() && kept.room_for(MOST - 3).is_none());
    }
}
