//! Bodies without end, and headers that lie about them.

use std::io;
use std::time::Duration;

use anyhow::ensure;

use super::{
    BLOB, CHUNKED, CONTENT, GOOD, case, chunk, image, impatient, is_config, is_layer, part,
};
use crate::case::Case;
use crate::case::Expect::{Contain, Reject};
use crate::compression::gzip;
use crate::image::MANIFEST;
use crate::registry::{Connection, Turn};

pub(super) fn endless() -> Vec<Case> {
    vec![
        case(
            "endless-manifest",
            "A manifest that does not end.",
            |_, connection| {
                connection.raw(CHUNKED)?;
                connection.forever(&chunk())
            },
            Reject(&["limit of 4194304 bytes"]),
        ),
        case(
            "endless-config",
            "A configuration that does not end.",
            |request, connection| {
                if !is_config(request) {
                    return Ok(Turn::Ordinary);
                }
                connection.raw(CHUNKED)?;
                connection.forever(&chunk())
            },
            Reject(&["descriptor says"]),
        ),
        case(
            "endless-layer",
            "A layer that does not end.",
            |request, connection| {
                if !is_layer(request) {
                    return Ok(Turn::Ordinary);
                }
                connection.raw(CHUNKED)?;
                connection.raw(format!("{:x}\r\n", BLOB.len()))?;
                connection.raw(&*BLOB)?;
                connection.raw("\r\n")?;
                connection.forever(&chunk())
            },
            Reject(&["descriptor says"]),
        ),
        case(
            "endless-error",
            "An error page that does not end.",
            |_, connection| {
                connection.raw("HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n")?;
                connection.forever(&chunk())
            },
            Reject(&["400"]),
        ),
        case(
            "endless-headers",
            "Headers that do not end.",
            |_, connection| {
                connection.raw("HTTP/1.1 200 OK\r\n")?;
                connection.forever(b"X-Again: and again\r\n")
            },
            Reject(&["manifest"]),
        ),
        case(
            "endless-header",
            "One header that does not end.",
            |_, connection| {
                connection.raw("HTTP/1.1 200 OK\r\nX: ")?;
                connection.forever(&[b'x'; 4096])
            },
            Reject(&["manifest"]),
        ),
        case(
            "endless-trailers",
            "Trailers that do not end, behind a manifest that does.",
            |request, connection| {
                if !request.is_manifest() {
                    return Ok(Turn::Ordinary);
                }
                let body = image().manifest;
                connection.raw(CHUNKED)?;
                connection.raw(format!("{:x}\r\n", body.len()))?;
                connection.raw(&body)?;
                connection.raw("\r\n0\r\n")?;
                connection.forever(b"X-Again: and again\r\n")
            },
            Reject(&["manifest"]),
        ),
        case(
            "endless-hints",
            "Early hints, which come before the answer, for ever.",
            |_, connection| {
                loop {
                    connection.raw("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")?;
                    std::thread::sleep(Duration::from_millis(5));
                }
            },
            Reject(&[]),
        )
        .configure(impatient),
        case(
            "endless-chunk-extension",
            "The length of a chunk is followed by remarks without end.",
            |_, connection| {
                connection.raw(CHUNKED)?;
                connection.raw("1;x=")?;
                connection.forever(&[b'x'; 4096])
            },
            Reject(&["manifest"]),
        ),
    ]
}

pub(super) fn lies() -> Vec<Case> {
    /// The layer with other headers than it should have.
    fn headers(connection: &mut Connection, headers: &str) -> io::Result<Turn> {
        connection.raw(format!("HTTP/1.1 200 OK\r\n{headers}\r\n"))?;
        connection.raw(&*BLOB)?;
        Ok(Turn::Close)
    }
    vec![
        case(
            "length-too-long",
            "Content-Length promises more than comes and than the manifest says.",
            |request, connection| match is_layer(request) {
                true => headers(connection, &format!("Content-Length: {}\r\n", BLOB.len() + 1)),
                false => Ok(Turn::Ordinary),
            },
            Reject(&["descriptor says"]),
        ),
        case(
            "length-too-short",
            "Content-Length is less than the manifest says.",
            |request, connection| match is_layer(request) {
                true => headers(connection, "Content-Length: 10\r\n"),
                false => Ok(Turn::Ordinary),
            },
            Reject(&["descriptor says"]),
        ),
        case(
            "length-twice",
            "Two lengths.",
            |_, connection| headers(connection, "Content-Length: 10\r\nContent-Length: 20\r\n"),
            Reject(&["manifest"]),
        ),
        case(
            "length-below-zero",
            "A length that wraps.",
            |_, connection| headers(connection, "Content-Length: -1\r\n"),
            Reject(&["manifest"]),
        ),
        case(
            "length-of-an-exabyte",
            "A manifest of 2^60 bytes, to be allocated in advance.",
            |_, connection| headers(connection, "Content-Length: 1152921504606846976\r\n"),
            Reject(&["limit of 4194304 bytes"]),
        ),
        case(
            "length-and-chunks",
            "A length and chunks: two ways to read one answer.",
            |request, connection| {
                if !request.is_manifest() {
                    return Ok(Turn::Ordinary);
                }
                let body = image().manifest;
                let length = body.len();
                connection.raw(format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n"
                ))?;
                connection.raw(&body)?;
                connection.raw("\r\n0\r\n\r\n")?;
                Ok(Turn::Close)
            },
            Contain(CONTENT),
        ),
        case(
            "range-of-another-place",
            "The answer to a range is of another place than asked.",
            |request, connection| {
                if !is_layer(request) {
                    return Ok(Turn::Ordinary);
                }
                if request.nth == 1 {
                    return part(connection, 0, 1000);
                }
                let range = format!("bytes 0-{}/{}", BLOB.len() - 1, BLOB.len());
                connection.answer("206 Partial Content", &[("Content-Range", &range)], &BLOB)
            },
            Reject(&["resumed at another place"]),
        ),
        case(
            "range-that-nobody-asked-for",
            "A part in answer to a request for all.",
            |request, connection| match is_layer(request) {
                true => part(connection, 1000, BLOB.len()),
                false => Ok(Turn::Ordinary),
            },
            Reject(&["206"]),
        ),
        case(
            "range-not-satisfiable",
            "The registry says after a cut that there is no more.",
            |request, connection| match (is_layer(request), request.nth) {
                (true, 1) => part(connection, 0, 1000),
                (true, _) => connection.answer("416 Range Not Satisfiable", &[], b""),
                _ => Ok(Turn::Ordinary),
            },
            Reject(&["416"]),
        ),
        case(
            "encoding-of-the-layer",
            "The layer comes gzipped once more, as Content-Encoding says: the digest is of what travels.",
            |request, connection| match is_layer(request) {
                true => {
                    let packed = gzip(&BLOB);
                    connection.answer("200 OK", &[("Content-Encoding", "gzip")], &packed)
                }
                false => Ok(Turn::Ordinary),
            },
            Reject(&["layer sha256"]),
        ),
        case(
            "encoding-of-the-manifest",
            "The same with the manifest: what is unpacked in passing has another digest, or is a bomb.",
            |request, connection| match request.is_manifest() {
                true => {
                    let packed = gzip(&image().manifest);
                    connection.answer("200 OK", &[("Content-Encoding", "gzip")], &packed)
                }
                false => Ok(Turn::Ordinary),
            },
            Reject(&["manifest"]),
        ),
        case(
            "layer-called-a-web-page",
            "The content type of a blob says nothing.",
            |request, connection| match is_layer(request) {
                true => connection.answer("200 OK", &[("Content-Type", "text/html")], &BLOB),
                false => Ok(Turn::Ordinary),
            },
            GOOD,
        ),
        case(
            "cookies-for-others",
            "Cookies, policies and alternative services: none of it is kept.",
            |request, connection| {
                if !request.is_manifest() {
                    return Ok(Turn::Ordinary);
                }
                let headers = [
                    ("Content-Type", MANIFEST),
                    ("Set-Cookie", "session=stolen; Domain=127.0.0.1"),
                    ("Alt-Svc", "h2=\"127.0.0.1:1\""),
                    ("Strict-Transport-Security", "max-age=31536000"),
                    ("Refresh", "0; url=http://127.0.0.1:1/"),
                ];
                connection.answer("200 OK", &headers, &image().manifest)
            },
            GOOD,
        )
        .audit(|seen| {
            ensure!(
                seen.registry.iter().all(|r| r.header("cookie").is_none()),
                "a cookie came back"
            );
            Ok(())
        }),
    ]
}
