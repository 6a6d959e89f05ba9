//! The way of a blob's bytes from the network to the thread that unpacks them: as much as a mebibyte may
//! wait, however large the pieces are, and nobody is woken for each of them.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};

/// Bytes that may wait.
const WAITING: usize = 1 << 20;
/// Space is accounted for in units of so many bytes.
const UNIT: usize = 4 << 10;
/// Units that are given back together, so that the network is not woken for each piece.
const TOGETHER: usize = 64;

/// A piece of a blob, or the word that it is whole. A queue that closes without it was cut.
pub(crate) enum Piece {
    Data(Bytes),
    End,
}

/// The network's end.
pub(crate) struct Sender {
    queue: mpsc::UnboundedSender<Piece>,
    space: Arc<Semaphore>,
}

/// The unpacking thread's end.
pub(crate) struct Receiver {
    queue: mpsc::UnboundedReceiver<Piece>,
    space: Arc<Semaphore>,
    /// Units that were taken and not given back.
    owed: usize,
}

pub(crate) fn queue() -> (Sender, Receiver) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let space = Arc::new(Semaphore::new(WAITING / UNIT));
    (Sender { queue: sender, space: space.clone() }, Receiver { queue: receiver, space, owed: 0 })
}

impl Sender {
    /// Waits for space. False if nobody listens any more.
    pub(crate) async fn send(&self, data: Bytes) -> bool {
        let Ok(space) = self.space.acquire_many(units(&data)).await else { return false };
        space.forget();
        self.queue.send(Piece::Data(data)).is_ok()
    }

    /// That was all of it.
    pub(crate) fn end(self) {
        // Who has stopped listening has a reason of its own.
        let _ = self.queue.send(Piece::End);
    }
}

impl Receiver {
    /// The next piece; none if the queue was cut. Blocks.
    pub(crate) fn next(&mut self) -> Option<Piece> {
        let piece = self.queue.try_recv().ok().or_else(|| {
            self.give_back();
            self.queue.blocking_recv()
        })?;
        if let Piece::Data(data) = &piece {
            self.owed += units(data) as usize;
            if self.owed >= TOGETHER {
                self.give_back();
            }
        }
        Some(piece)
    }

    fn give_back(&mut self) {
        self.space.add_permits(std::mem::take(&mut self.owed));
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // Whoever waits for space learns that there will be none.
        self.space.close();
    }
}

/// Never more than there are: a larger piece waits for an empty queue.
fn units(data: &Bytes) -> u32 {
    let units = data.len().div_ceil(UNIT).min(WAITING / UNIT);
    u32::try_from(units).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn what_waits_is_bounded_and_arrives_in_order() {
        let (sender, mut receiver) = queue();
        let large = Bytes::from(vec![0; 3 * WAITING]);
        assert!(sender.send(large).await);
        let full = sender.send(Bytes::from_static(b"x"));
        assert!(tokio::time::timeout(Duration::from_millis(20), full).await.is_err());
        let reader = std::thread::spawn(move || {
            let mut seen = Vec::new();
            while let Some(piece) = receiver.next() {
                match piece {
                    Piece::Data(data) => seen.push(data.len()),
                    Piece::End => return (seen, true),
                }
            }
            (seen, false)
        });
        for len in 1..=2000 {
            assert!(sender.send(Bytes::from(vec![0; len])).await);
        }
        sender.end();
        let (seen, ended) = reader.join().unwrap();
        assert!(ended && seen[0] == 3 * WAITING && seen[1..].iter().copied().eq(1..=2000));
    }

    #[tokio::test]
    async fn either_end_may_go() {
        let (sender, receiver) = queue();
        assert!(sender.send(Bytes::from(vec![0; WAITING])).await);
        let waiting = tokio::spawn(async move { sender.send(Bytes::from_static(b"x")).await });
        tokio::task::yield_now().await;
        drop(receiver);
        assert!(!waiting.await.unwrap());
        let (sender, mut receiver) = queue();
        drop(sender);
        assert!(std::thread::spawn(move || receiver.next().is_none()).join().unwrap());
    }
}
