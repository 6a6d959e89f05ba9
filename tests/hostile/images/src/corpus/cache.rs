//! Caches of the node that lie, stall or never end. Whatever they do, the image comes from the registry.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use async_trait::async_trait;
use bytes::Bytes;
use nacre_image_pull::{BlobCache, BlobSink, BlobStream};
use nacre_trust::Digest;

use super::transport::{BLOB, CONTENT, image, is_layer};
use crate::case::Class::Cache;
use crate::case::Expect::{Accept, Reject};
use crate::case::{Case, Hosts, Seen};
use crate::registry::{Request, Served, Turn};

/// What a cache does when it is asked for the layer.
#[derive(Clone, Copy)]
enum Answer {
    /// It has none.
    None,
    /// It never says whether it has one.
    Silence,
    /// These pieces, then what is next.
    Pieces(fn(usize) -> Vec<Bytes>, Then),
}

#[derive(Clone, Copy)]
enum Then {
    End,
    Fail,
    Stall,
    /// Pieces of that many bytes, for ever.
    Endless(usize),
}

/// What a cache does with what it is offered.
#[derive(Clone, Copy)]
enum Offer {
    Refuse,
    Silence,
    Stall,
    Fail,
}

struct Hostile {
    answer: Answer,
    offer: Offer,
}

#[async_trait]
impl BlobCache for Hostile {
    async fn get(&self, _: &Digest, size: u64, offset: u64) -> Option<Box<dyn BlobStream>> {
        // Of the configuration it knows nothing.
        if size != BLOB.len() as u64 {
            return None;
        }
        match self.answer {
            Answer::None => None,
            Answer::Silence => std::future::pending().await,
            Answer::Pieces(pieces, then) => {
                let mut pieces = pieces(usize::try_from(offset).unwrap_or(usize::MAX));
                pieces.reverse();
                Some(Box::new(Stream { pieces, then }))
            }
        }
    }

    async fn put(&self, _: &Digest, _: u64) -> Option<Box<dyn BlobSink>> {
        match self.offer {
            Offer::Refuse => None,
            Offer::Silence => std::future::pending().await,
            Offer::Stall | Offer::Fail => Some(Box::new(Sink(self.offer))),
        }
    }
}

struct Stream {
    /// Last first.
    pieces: Vec<Bytes>,
    then: Then,
}

#[async_trait]
impl BlobStream for Stream {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        match (self.pieces.pop(), self.then) {
            (Some(piece), _) => Ok(Some(piece)),
            (None, Then::End) => Ok(None),
            (None, Then::Fail) => Err(io::Error::other("the cache is gone")),
            (None, Then::Stall) => std::future::pending().await,
            (None, Then::Endless(len)) => Ok(Some(Bytes::from(vec![b'!'; len]))),
        }
    }
}

struct Sink(Offer);

#[async_trait]
impl BlobSink for Sink {
    async fn write(&mut self, _: Bytes) -> io::Result<()> {
        match self.0 {
            Offer::Stall => std::future::pending().await,
            _ => Err(io::Error::other("the cache is full")),
        }
    }

    async fn finish(self: Box<Self>) -> io::Result<()> {
        Err(io::Error::other("the cache is full"))
    }
}

fn right(offset: usize) -> Vec<Bytes> {
    BLOB[offset.min(BLOB.len())..].chunks(32 << 10).map(Bytes::copy_from_slice).collect()
}

fn half(offset: usize) -> Vec<Bytes> {
    let mut pieces = right(offset);
    pieces.truncate(pieces.len() / 2);
    pieces
}

fn wrong(offset: usize) -> Vec<Bytes> {
    vec![Bytes::from(vec![b'!'; BLOB.len() - offset.min(BLOB.len())])]
}

fn wrong_at_the_end(offset: usize) -> Vec<Bytes> {
    let mut bytes = BLOB[offset.min(BLOB.len())..].to_vec();
    if let Some(last) = bytes.last_mut() {
        *last ^= 1;
    }
    vec![bytes.into()]
}

fn nothing(_: usize) -> Vec<Bytes> {
    Vec::new()
}

/// Each case names its cache by a function: it is made in the process that pulls.
macro_rules! case {
    ($name:literal, $attack:literal, $answer:expr, $offer:expr) => {
        Case::new(Cache, $name, $attack, |_: &Hosts| image(), Accept(CONTENT))
            .configure(|config, _| {
                config.limits.cache_stall = Duration::from_millis(500);
                config.cache = Some(Arc::new(Hostile { answer: $answer, offer: $offer }));
            })
            .audit(asked)
    };
}

fn layers(seen: &Seen) -> usize {
    seen.registry.iter().filter(|request| is_layer(request)).count()
}

fn asked(seen: &Seen) -> anyhow::Result<()> {
    ensure!(layers(seen) > 0, "the registry was not asked for the layer");
    Ok(())
}

pub(super) fn cases() -> Vec<Case> {
    use Answer::{Pieces, Silence};
    vec![
        case!(
            "cache-serves",
            "The cache is honest: the registry is not asked for the layer.",
            Pieces(right, Then::End),
            Offer::Refuse
        )
        .audit(|seen| {
            ensure!(layers(seen) == 0, "the registry was asked for the layer");
            Ok(())
        }),
        case!("cache-has-nothing", "The cache is empty.", Answer::None, Offer::Refuse),
        case!(
            "cache-lies",
            "The cache sends something else of the right size.",
            Pieces(wrong, Then::End),
            Offer::Refuse
        ),
        case!(
            "cache-lies-at-the-end",
            "The last byte is wrong: all is unpacked by then.",
            Pieces(wrong_at_the_end, Then::End),
            Offer::Refuse
        ),
        case!("cache-ends-early", "Half a layer.", Pieces(half, Then::End), Offer::Refuse).audit(
            |seen| {
                let offsets: Vec<u64> =
                    seen.registry.iter().filter(|r| is_layer(r)).map(Request::offset).collect();
                ensure!(offsets.first() > Some(&0), "not taken up where it ended: {offsets:?}");
                Ok(())
            },
        ),
        case!(
            "cache-fails",
            "Half a layer, then an error.",
            Pieces(half, Then::Fail),
            Offer::Refuse
        ),
        case!(
            "cache-stalls",
            "Half a layer, then nothing.",
            Pieces(half, Then::Stall),
            Offer::Refuse
        ),
        case!(
            "cache-never-answers",
            "It does not even say whether it has the layer.",
            Silence,
            Offer::Refuse
        ),
        case!(
            "cache-sends-nothing",
            "A stream without a byte.",
            Pieces(nothing, Then::End),
            Offer::Refuse
        ),
        case!(
            "cache-sends-nothing-for-ever",
            "Empty pieces for ever: no byte, no end and no waiting.",
            Pieces(nothing, Then::Endless(0)),
            Offer::Refuse
        ),
        case!(
            "cache-goes-on",
            "The right layer, and more behind it for ever: what is needed was right.",
            Pieces(right, Then::Endless(1 << 16)),
            Offer::Refuse
        )
        .audit(|_| Ok(())),
        case!(
            "cache-sends-one-piece",
            "A piece of a gigabyte for a layer of 300 kB.",
            Pieces(nothing, Then::Endless(1 << 20)),
            Offer::Refuse
        ),
        case!(
            "cache-takes-nothing",
            "What it is offered it refuses halfway.",
            Answer::None,
            Offer::Fail
        ),
        case!(
            "cache-takes-for-ever",
            "What it is offered it takes and never gets on with.",
            Answer::None,
            Offer::Stall
        ),
        case!(
            "cache-never-says-if-it-wants-it",
            "It does not say whether it wants what is offered.",
            Answer::None,
            Offer::Silence
        ),
        Case::new(
            Cache,
            "cache-and-registry-lie",
            "Both send something else.",
            |_: &Hosts| {
                Served::from(image()).behaving(|request, connection| match is_layer(request) {
                    true => connection.answer("200 OK", &[], &vec![b'?'; BLOB.len()]),
                    false => Ok(Turn::Ordinary),
                })
            },
            Reject(&["content was changed"]),
        )
        .configure(|config, _| {
            let answer = Pieces(wrong, Then::End);
            config.cache = Some(Arc::new(Hostile { answer, offer: Offer::Refuse }));
        }),
    ]
}
