//! Registries that are busy, slow, or refuse.

use std::time::Duration;

use anyhow::ensure;

use super::{BLOB, GOOD, at, case, image, impatient, is_config, is_layer, part};
use crate::case::Class::Transport;
use crate::case::Expect::Reject;
use crate::case::{Case, Hosts};
use crate::registry::{Served, Turn};

pub(super) fn waits() -> Vec<Case> {
    let stalled = Reject(&["stalled"]);
    vec![
        case(
            "stall-before-the-answer",
            "Says nothing at all.",
            |_, connection| connection.stall(),
            stalled,
        )
        .configure(impatient),
        case(
            "stall-in-the-headers",
            "Stops in a header.",
            |_, connection| {
                connection.raw("HTTP/1.1 200 OK\r\nContent-")?;
                connection.stall()
            },
            stalled,
        )
        .configure(impatient),
        case(
            "stall-in-the-manifest",
            "Stops in the manifest.",
            |_, connection| {
                connection.raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")?;
                connection.stall()
            },
            stalled,
        )
        .configure(impatient),
        case(
            "stall-in-the-config",
            "Stops in the configuration.",
            |request, connection| {
                if !is_config(request) {
                    return Ok(Turn::Ordinary);
                }
                let length = image().config.len();
                connection.raw(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{{"))?;
                connection.stall()
            },
            stalled,
        )
        .configure(impatient),
        case(
            "stall-in-the-layer",
            "Stops in the layer, each time.",
            |request, connection| {
                if !is_layer(request) {
                    return Ok(Turn::Ordinary);
                }
                part(connection, at(request), BLOB.len().min(at(request) + 1000))?;
                connection.stall()
            },
            Reject(&[]),
        )
        .configure(impatient),
        case(
            "stall-in-the-layer-once",
            "Stops in the layer, and is well again when asked anew.",
            |request, connection| {
                if !is_layer(request) || request.nth > 1 {
                    return Ok(Turn::Ordinary);
                }
                part(connection, 0, 1000)?;
                connection.stall()
            },
            GOOD,
        )
        .configure(impatient),
        case(
            "drip",
            "A byte now and then, always in time: only the whole pull's bound ends that.",
            |request, connection| {
                if !is_layer(request) {
                    return Ok(Turn::Ordinary);
                }
                part(connection, at(request), at(request))?;
                loop {
                    connection.raw(&BLOB[at(request)..=at(request)])?;
                    std::thread::sleep(Duration::from_millis(200));
                }
            },
            Reject(&["given up after 6 s"]),
        )
        .configure(impatient),
        case(
            "drip-of-headers",
            "A header that comes letter by letter.",
            |_, connection| {
                connection.raw("HTTP/1.1 200 OK\r\nX: ")?;
                loop {
                    connection.raw("x")?;
                    std::thread::sleep(Duration::from_millis(200));
                }
            },
            Reject(&[]),
        )
        .configure(impatient),
    ]
}

pub(super) fn refusals() -> Vec<Case> {
    let once: [(&'static str, &'static str, &'static str, &'static str); 6] = [
        ("busy-429", "Too many requests, once.", "429 Too Many Requests", "0"),
        ("busy-503", "Down for a second.", "503 Service Unavailable", "1"),
        ("error-500", "A failure, once.", "500 Internal Server Error", ""),
        (
            "busy-for-years",
            "Retry-After asks for 3000 years.",
            "429 Too Many Requests",
            "99999999999",
        ),
        (
            "busy-for-less-than-nothing",
            "Retry-After is no number.",
            "503 Service Unavailable",
            "-1e999",
        ),
        (
            "busy-until-a-date",
            "Retry-After is a date long ago.",
            "503 Service Unavailable",
            "Thu, 01 Jan 1970 00:00:00 GMT",
        ),
    ];
    let mut cases: Vec<Case> = once
        .into_iter()
        .map(|(name, attack, status, after)| {
            let make = move |_: &Hosts| {
                Served::from(image()).behaving(move |request, connection| {
                    if !is_layer(request) || request.nth > 1 {
                        return Ok(Turn::Ordinary);
                    }
                    connection.answer(status, &[("Retry-After", after)], b"busy")
                })
            };
            Case::new(Transport, name, attack, make, GOOD)
        })
        .collect();
    cases.extend([
        case(
            "busy-for-ever",
            "Too many requests, always; what it says may have codes for terminals in it.",
            |_, connection| {
                connection.answer("429 Too Many Requests", &[], b"slow down\x1b[31m\r\n\0")
            },
            Reject(&["429", "slow down"]),
        )
        .audit(|seen| {
            ensure!(seen.registry.len() <= 20, "asked {} times", seen.registry.len());
            Ok(())
        }),
        case(
            "layer-missing",
            "The manifest is there, the layer is not.",
            |request, connection| match is_layer(request) {
                true => connection.answer("404 Not Found", &[], b"{}"),
                false => Ok(Turn::Ordinary),
            },
            Reject(&["has no layer"]),
        ),
        case(
            "layer-forbidden",
            "The manifest is there, the layer is for others.",
            |request, connection| match is_layer(request) {
                true => connection.answer("403 Forbidden", &[], b"{}"),
                false => Ok(Turn::Ordinary),
            },
            Reject(&["403"]),
        ),
        case(
            "status-without-content",
            "Success, and nothing with it.",
            |_, connection| {
                connection.raw("HTTP/1.1 204 No Content\r\n\r\n")?;
                Ok(Turn::Close)
            },
            Reject(&["204"]),
        ),
        case(
            "status-not-modified",
            "Nothing changed since a time when nothing was asked.",
            |_, connection| {
                connection.raw("HTTP/1.1 304 Not Modified\r\n\r\n")?;
                Ok(Turn::Close)
            },
            Reject(&["304"]),
        ),
        case(
            "status-of-its-own",
            "A status that does not exist.",
            |_, connection| connection.answer("799 Whatever", &[], b""),
            Reject(&["799"]),
        ),
    ]);
    cases
}
