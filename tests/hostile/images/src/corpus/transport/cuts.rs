//! Connections that are cut.

use anyhow::ensure;

use super::{BLOB, Behave, GOOD, at, case, image, is_layer, part};
use crate::case::Class::Transport;
use crate::case::Expect::Reject;
use crate::case::{Case, Hosts, Seen};
use crate::registry::{Request, Served, Turn};

/// It was taken up where it was cut: never twice from the beginning.
fn resumed(seen: &Seen) -> anyhow::Result<()> {
    let layer: Vec<u64> =
        seen.registry.iter().filter(|r| is_layer(r)).map(Request::offset).collect();
    ensure!(layer.len() > 1 && layer[1..].iter().all(|offset| *offset > 0), "asked from {layer:?}");
    Ok(())
}

pub(super) fn cuts() -> Vec<Case> {
    let once: [(&'static str, &'static str, Behave); 4] = [
        ("cut-before-the-answer", "The connection is closed without a word.", |request, _| {
            Ok(if request.nth == 1 { Turn::Close } else { Turn::Ordinary })
        }),
        (
            "cut-in-the-status-line",
            "The connection ends in the first line.",
            |request, connection| {
                if request.nth > 1 {
                    return Ok(Turn::Ordinary);
                }
                connection.raw("HTTP/1.1 20")?;
                Ok(Turn::Close)
            },
        ),
        ("cut-in-the-headers", "The connection ends in a header.", |request, connection| {
            if request.nth > 1 {
                return Ok(Turn::Ordinary);
            }
            connection.raw("HTTP/1.1 200 OK\r\nContent-Le")?;
            Ok(Turn::Close)
        }),
        (
            "cut-after-the-headers",
            "The connection ends before the first byte.",
            |request, connection| {
                if request.nth > 1 {
                    return Ok(Turn::Ordinary);
                }
                connection.raw("HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n")?;
                Ok(Turn::Close)
            },
        ),
    ];
    let mut cases: Vec<Case> = once
        .into_iter()
        .map(|(name, attack, behave)| {
            let behave: Behave = behave;
            let layer_only = move |_: &Hosts| {
                Served::from(image()).behaving(move |request, connection| {
                    if is_layer(request) { behave(request, connection) } else { Ok(Turn::Ordinary) }
                })
            };
            Case::new(
                Transport,
                name,
                attack,
                layer_only,
                if name == "cut-after-the-headers" { Reject(&["descriptor says"]) } else { GOOD },
            )
        })
        .collect();
    cases.extend([
        case(
            "cut-in-the-middle",
            "A layer is cut in the middle, and taken up there.",
            |request, connection| match (is_layer(request), request.nth) {
                (true, 1) => part(connection, 0, BLOB.len() / 2),
                _ => Ok(Turn::Ordinary),
            },
            GOOD,
        )
        .audit(resumed),
        case(
            "cut-before-the-last-byte",
            "All but one byte.",
            |request, connection| match (is_layer(request), request.nth) {
                (true, 1) => part(connection, 0, BLOB.len() - 1),
                _ => Ok(Turn::Ordinary),
            },
            GOOD,
        )
        .audit(resumed),
        case(
            "cut-every-64-kib",
            "A layer that comes in many pieces, each on a connection of its own: what comes on does not \
             count as failing.",
            |request, connection| {
                if !is_layer(request) {
                    return Ok(Turn::Ordinary);
                }
                let start = at(request);
                part(connection, start, (start + (64 << 10)).min(BLOB.len()))
            },
            GOOD,
        )
        .audit(resumed),
        case(
            "cut-and-no-ranges",
            "The registry knows no ranges and starts again from the first byte.",
            |request, connection| match (is_layer(request), request.nth) {
                (true, 1) => part(connection, 0, BLOB.len() / 2),
                (true, _) => connection.answer("200 OK", &[], &BLOB),
                _ => Ok(Turn::Ordinary),
            },
            GOOD,
        ),
        case(
            "cut-and-other-content",
            "What comes after the cut is of another blob.",
            |request, connection| {
                if !is_layer(request) {
                    return Ok(Turn::Ordinary);
                }
                let (start, whole) = (at(request), BLOB.len());
                if start == 0 {
                    return part(connection, 0, whole / 2);
                }
                let range = format!("bytes {start}-{}/{whole}", whole - 1);
                let wrong = vec![b'!'; whole - start];
                connection.answer("206 Partial Content", &[("Content-Range", &range)], &wrong)
            },
            Reject(&["content was changed"]),
        ),
        case(
            "cut-always",
            "Every answer ends at the same byte.",
            |request, connection| {
                if is_layer(request) { part(connection, 0, 1000) } else { Ok(Turn::Ordinary) }
            },
            Reject(&["cut"]),
        ),
        case(
            "cut-manifest",
            "The manifest is cut once.",
            |request, connection| {
                if !request.is_manifest() || request.nth > 1 {
                    return Ok(Turn::Ordinary);
                }
                connection.raw("HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"schemaVersion\"")?;
                Ok(Turn::Close)
            },
            GOOD,
        ),
        case(
            "cut-manifest-without-a-length",
            "The manifest ends where nobody can tell that it was cut.",
            |request, connection| {
                if !request.is_manifest() {
                    return Ok(Turn::Ordinary);
                }
                connection.raw("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"schemaVersion\":2")?;
                Ok(Turn::Close)
            },
            Reject(&["manifest"]),
        ),
    ]);
    cases
}
