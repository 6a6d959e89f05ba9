//! Answers that are no HTTP, or lead elsewhere.

use std::io;

use anyhow::ensure;

use super::{BLOB, CHUNKED, GOOD, between, case, image, is_layer};
use crate::case::Class::Transport;
use crate::case::Expect::Reject;
use crate::case::{Case, Hosts};
use crate::image::MANIFEST;
use crate::registry::{Connection, Request, Served, Turn};

pub(super) fn broken_http() -> Vec<Case> {
    let answers: [(&'static str, &'static str, &'static [u8]); 7] = [
        ("http-of-1991", "HTTP/0.9: the answer without a status.", b"{\"schemaVersion\":2}"),
        (
            "http-2-unasked",
            "HTTP/2 where HTTP/1.1 was spoken.",
            b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64",
        ),
        (
            "tls-on-a-plain-port",
            "TLS where none was asked for.",
            b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        ),
        ("ssh", "Another protocol.", b"SSH-2.0-OpenSSH_9.2p1\r\n"),
        ("zeros", "Nothing but zeros.", &[0; 4096]),
        (
            "header-without-a-colon",
            "A header that is none.",
            b"HTTP/1.1 200 OK\r\nno header\r\n\r\n",
        ),
        (
            "chunk-of-nonsense",
            "A chunk whose length is no number.",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n{}\r\n0\r\n\r\n",
        ),
    ];
    let mut cases: Vec<Case> = answers
        .into_iter()
        .map(|(name, attack, bytes)| {
            let make = move |_: &Hosts| {
                Served::from(image()).behaving(move |_, connection| {
                    connection.raw(bytes)?;
                    Ok(Turn::Close)
                })
            };
            Case::new(Transport, name, attack, make, Reject(&["registry 127.0.0.1"]))
        })
        .collect();
    cases.extend([
        case(
            "chunk-that-wraps",
            "A chunk whose length wraps.",
            |_, connection| {
                connection.raw(CHUNKED)?;
                connection.raw("fffffffffffffffff\r\n{}\r\n0\r\n\r\n")?;
                Ok(Turn::Close)
            },
            Reject(&["registry 127.0.0.1"]),
        ),
        case(
            "http-1.0",
            "No length, no chunks: the end of the connection is the end.",
            |request, connection| {
                let (kind, body) = match (request.is_manifest(), is_layer(request)) {
                    (true, _) => (MANIFEST, image().manifest),
                    (_, true) => ("application/octet-stream", BLOB.clone()),
                    _ => ("application/json", image().config),
                };
                connection.raw(format!("HTTP/1.0 200 OK\r\nContent-Type: {kind}\r\n\r\n"))?;
                connection.raw(body)?;
                Ok(Turn::Close)
            },
            GOOD,
        ),
        case(
            "chunks-of-a-few-bytes",
            "The layer in chunks of a few bytes each.",
            |request, connection| {
                if !is_layer(request) {
                    return Ok(Turn::Ordinary);
                }
                let mut body = Vec::new();
                for piece in BLOB.chunks(61) {
                    body.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                    body.extend_from_slice(piece);
                    body.extend_from_slice(b"\r\n");
                }
                connection.raw(CHUNKED)?;
                connection.raw(body)?;
                connection.raw("0\r\n\r\n")?;
                Ok(Turn::Answered)
            },
            GOOD,
        ),
    ]);
    cases
}

pub(super) fn redirects() -> Vec<Case> {
    fn to(connection: &mut Connection, location: &str) -> io::Result<Turn> {
        connection.answer("307 Temporary Redirect", &[("Location", location)], b"")
    }
    let places: [(&'static str, &'static str, &'static str); 6] = [
        ("redirect-to-a-file", "Sends to a file of the guest.", "file:///etc/passwd"),
        ("redirect-to-data", "Sends to content in the address itself.", "data:application/json,{}"),
        ("redirect-to-ftp", "Sends to another protocol.", "ftp://127.0.0.1:1/x"),
        ("redirect-to-nowhere", "Sends to what is no address.", "http://"),
        ("redirect-to-itself", "Sends to where it comes from.", ""),
        ("redirect-to-a-wrong-scheme", "Sends from http to https.", "https://127.0.0.1:1/x"),
    ];
    let mut cases: Vec<Case> = places
        .into_iter()
        .map(|(name, attack, place)| {
            let make = move |_: &Hosts| {
                Served::from(image()).behaving(move |request, connection| {
                    if is_layer(request) { to(connection, place) } else { Ok(Turn::Ordinary) }
                })
            };
            Case::new(Transport, name, attack, make, Reject(&["registry 127.0.0.1"]))
        })
        .collect();
    cases.extend([
        case(
            "redirect-loop",
            "Each answer is a redirect, each to another place.",
            |request, connection| {
                let next = format!("{}x", request.path);
                if request.is_blob() { to(connection, &next) } else { Ok(Turn::Ordinary) }
            },
            Reject(&["redirect"]),
        )
        .audit(|seen| {
            ensure!(seen.registry.len() <= 40, "asked {} times", seen.registry.len());
            Ok(())
        }),
        between(
            "redirect-elsewhere",
            "A layer is kept on another host, as big registries do.",
            |hosts| {
                let other = hosts.other.clone();
                move |request, connection| {
                    if !is_layer(request) {
                        return Ok(Turn::Ordinary);
                    }
                    to(connection, &format!("http://{other}{}", request.path))
                }
            },
            GOOD,
        ),
        Case::new(
            Transport,
            "redirect-ping-pong",
            "Two servers send to each other.",
            |hosts| {
                let (registry, other) = (hosts.registry.clone(), hosts.other.clone());
                let ping = move |request: &Request, connection: &mut Connection| {
                    if !is_layer(request) {
                        return Ok(Turn::Ordinary);
                    }
                    to(connection, &format!("http://{other}{}", request.path))
                };
                let pong = move |request: &Request, connection: &mut Connection| {
                    to(connection, &format!("http://{registry}{}", request.path))
                };
                Served::from(image()).behaving(ping).other(pong)
            },
            Reject(&["redirect"]),
        ),
    ]);
    cases
}
