//! Registries that misbehave: on the wire, in their headers, by sending elsewhere.

use std::io;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::ensure;
use nacre_image_pull::PullConfig;

use crate::case::Class::Transport;
use crate::case::Expect::{Accept, Contain, Reject};
use crate::case::{Case, Check, Expect, Hosts, Mode, Seen};
use crate::compression::gzip;
use crate::image::{INDEX, Image, Layer, MANIFEST, digest, index};
use crate::registry::{Connection, Request, Served, Turn};
use crate::tar::Tar;

/// A layer that does not compress, so that it comes in several pieces.
static LAYER: LazyLock<Layer> = LazyLock::new(|| Layer::gzip(&Tar::new().file("f", &*NOISE).end()));
static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 1_u64;
    let next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(300_000).collect()
});
pub(super) static BLOB: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = Vec::new();
    LAYER.content.write(&mut bytes, 0, u64::MAX).expect("memory takes all");
    bytes
});
pub(super) const CONTENT: Check = |tree| tree.holds("f", &*NOISE);
const GOOD: Expect = Accept(CONTENT);

pub(super) fn image() -> Image {
    LAYER.clone().into()
}

pub(super) fn is_layer(request: &Request) -> bool {
    request.path.ends_with(&LAYER.digest)
}

fn is_config(request: &Request) -> bool {
    request.is_blob() && !is_layer(request)
}

type Behave = fn(&Request, &mut Connection) -> io::Result<Turn>;

/// A case of an honest image and a registry that behaves as told.
fn case(name: &'static str, attack: &'static str, behave: Behave, expect: Expect) -> Case {
    let make = move |_: &Hosts| Served::from(image()).behaving(behave);
    Case::new(Transport, name, attack, make, expect)
}

/// The same for behaviours that know the servers' names.
fn between<F>(
    name: &'static str,
    attack: &'static str,
    make: impl Fn(&Hosts) -> F + Send + Sync + 'static,
    expect: Expect,
) -> Case
where
    F: Fn(&Request, &mut Connection) -> io::Result<Turn> + Send + Sync + 'static,
{
    let serve = move |hosts: &Hosts| Served::from(image()).behaving(make(hosts)).other(honest);
    Case::new(Transport, name, attack, serve, expect)
}

/// The other server has all content too.
fn honest(request: &Request, connection: &mut Connection) -> io::Result<Turn> {
    let image = image();
    if is_layer(request) {
        return connection.answer("200 OK", &[], &BLOB);
    }
    if request.is_manifest() {
        return connection.answer("200 OK", &[("Content-Type", MANIFEST)], &image.manifest);
    }
    connection.answer("200 OK", &[], &image.config)
}

pub(super) fn cases() -> Vec<Case> {
    [
        cuts(),
        waits(),
        refusals(),
        endless(),
        lies(),
        broken_http(),
        redirects(),
        tokens(),
        changes(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The layer's header and its bytes from `start` to `end`, then nothing more.
fn part(connection: &mut Connection, start: usize, end: usize) -> io::Result<Turn> {
    let whole = BLOB.len();
    let head = match start {
        0 => "200 OK\r\n".to_owned(),
        _ => {
            format!("206 Partial Content\r\nContent-Range: bytes {start}-{}/{whole}\r\n", whole - 1)
        }
    };
    connection.raw(format!("HTTP/1.1 {head}Content-Length: {}\r\n\r\n", whole - start))?;
    connection.raw(&BLOB[start..end])?;
    Ok(Turn::Close)
}

fn at(request: &Request) -> usize {
    usize::try_from(request.offset()).unwrap_or(usize::MAX).min(BLOB.len())
}

/// It was taken up where it was cut: never twice from the beginning.
fn resumed(seen: &Seen) -> anyhow::Result<()> {
    let layer: Vec<u64> =
        seen.registry.iter().filter(|r| is_layer(r)).map(Request::offset).collect();
    ensure!(layer.len() > 1 && layer[1..].iter().all(|offset| *offset > 0), "asked from {layer:?}");
    Ok(())
}

fn cuts() -> Vec<Case> {
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

fn impatient(config: &mut PullConfig, _: &Hosts) {
    config.limits.stall = Duration::from_secs(1);
    config.limits.connect = Duration::from_secs(1);
    config.limits.total = Duration::from_secs(6);
}

fn waits() -> Vec<Case> {
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

fn refusals() -> Vec<Case> {
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

const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

/// A chunk of 64 KiB of blanks.
fn chunk() -> Vec<u8> {
    [&b"10000\r\n"[..], &[b' '; 0x10000], b"\r\n"].concat()
}

fn endless() -> Vec<Case> {
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

fn lies() -> Vec<Case> {
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

fn broken_http() -> Vec<Case> {
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

fn redirects() -> Vec<Case> {
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

fn tokens() -> Vec<Case> {
    fn challenge(connection: &mut Connection, realm: &str) -> io::Result<Turn> {
        let value = format!("Bearer realm=\"{realm}\",service=\"s\",scope=\"repository:app:pull\"");
        connection.answer("401 Unauthorized", &[("WWW-Authenticate", &value)], b"{}")
    }
    const TOKEN: &str = "Bearer sesame";
    fn wants_token(request: &Request) -> bool {
        !request.path.starts_with("/token") && request.header("authorization") != Some(TOKEN)
    }
    let answers: [(&'static str, &'static str, &'static [u8]); 4] = [
        ("token-that-is-none", "The token service answers with something else.", b"<html>"),
        ("token-empty", "A token without a letter.", b"{\"token\":\"\"}"),
        (
            "token-with-a-header",
            "A token that would add headers to the next request.",
            b"{\"token\":\"a\\r\\nHost: elsewhere\\r\\nX: \"}",
        ),
        ("token-of-another-type", "A token that is a list.", b"{\"token\":[\"a\"]}"),
    ];
    let mut cases: Vec<Case> = answers
        .into_iter()
        .map(|(name, attack, body)| {
            let make = move |hosts: &Hosts| {
                let realm = format!("http://{}/token", hosts.registry);
                Served::from(image()).behaving(move |request, connection| {
                    if request.path.starts_with("/token") {
                        return connection.answer("200 OK", &[], body);
                    }
                    challenge(connection, &realm)
                })
            };
            Case::new(Transport, name, attack, make, Reject(&["token"]))
        })
        .collect();
    let realms: [(&'static str, &'static str, &'static str); 3] = [
        ("realm-is-a-file", "The token is to be read from a file.", "file:///etc/passwd"),
        ("realm-is-nothing", "The token service has no address.", "nowhere"),
        ("realm-is-empty", "The token service has an empty address.", ""),
    ];
    cases.extend(realms.map(|(name, attack, realm)| {
        let make = move |_: &Hosts| {
            Served::from(image()).behaving(move |_, connection| challenge(connection, realm))
        };
        Case::new(Transport, name, attack, make, Reject(&["registry 127.0.0.1"]))
    }));
    cases.extend([
        between(
            "token-does-not-follow",
            "A token for this registry, and a layer on another host: the token stays.",
            |hosts| {
                let hosts = hosts.clone();
                move |request, connection| {
                    if request.path.starts_with("/token") {
                        return connection.answer("200 OK", &[], b"{\"token\":\"sesame\"}");
                    }
                    if wants_token(request) {
                        return challenge(connection, &format!("http://{}/token", hosts.registry));
                    }
                    if is_layer(request) {
                        let place = format!("http://{}{}", hosts.other, request.path);
                        return connection.answer(
                            "307 Temporary Redirect",
                            &[("Location", &place)],
                            b"",
                        );
                    }
                    Ok(Turn::Ordinary)
                }
            },
            GOOD,
        )
        .audit(|seen| {
            ensure!(!seen.other.is_empty(), "the other server was not asked");
            let sent = seen.other.iter().any(|request| request.header("authorization").is_some());
            ensure!(!sent, "the token went to another server");
            Ok(())
        }),
        case(
            "token-never-enough",
            "Each token is refused.",
            |request, connection| {
                let host = request.header("host").unwrap_or_default();
                if request.path.starts_with("/token") {
                    return connection.answer("200 OK", &[], b"{\"token\":\"sesame\"}");
                }
                challenge(connection, &format!("http://{host}/token"))
            },
            Reject(&["401"]),
        )
        .audit(|seen| {
            ensure!(seen.registry.len() <= 10, "asked {} times", seen.registry.len());
            Ok(())
        }),
        case(
            "token-without-end",
            "A token that does not end.",
            |request, connection| {
                let host = request.header("host").unwrap_or_default();
                if !request.path.starts_with("/token") {
                    return challenge(connection, &format!("http://{host}/token"));
                }
                connection.raw(CHUNKED)?;
                connection.forever(&chunk())
            },
            Reject(&["limit of"]),
        ),
        case(
            "challenges-of-unknown-kinds",
            "Many challenges of unknown kinds.",
            |_, connection| {
                let challenges = [("WWW-Authenticate", "Negotiate x=\"y"); 50];
                connection.answer("401 Unauthorized", &challenges, b"")
            },
            Reject(&["401"]),
        ),
        case(
            "challenge-without-end",
            "A challenge whose quotation does not end.",
            |_, connection| {
                let value = format!("Bearer realm=\"{}", "x".repeat(8000));
                connection.answer("401 Unauthorized", &[("WWW-Authenticate", &value)], b"")
            },
            Reject(&["401"]),
        ),
    ]);
    cases
}

fn changes() -> Vec<Case> {
    fn another() -> Image {
        Tar::new().file("g", "another").into()
    }
    vec![
        Case::new(
            Transport,
            "tag-that-changes",
            "Each answer to the tag is another image: a pull is of one of them, and asks once.",
            |_| {
                let behave = |request: &Request, connection: &mut Connection| {
                    if !request.path.ends_with("/manifests/latest") || request.nth == 1 {
                        return Ok(Turn::Ordinary);
                    }
                    connection.answer("200 OK", &[("Content-Type", MANIFEST)], &another().manifest)
                };
                Served::from(image()).image("other", &another()).behaving(behave)
            },
            GOOD,
        )
        .audit(|seen| {
            let tag = seen.asked("/manifests/latest");
            ensure!(tag == 1, "the tag was asked for {tag} times");
            Ok(())
        }),
        Case::new(
            Transport,
            "index-that-changes",
            "The same with an index, whose entry is asked for later.",
            |_| {
                let image = image();
                let index = index([image.descriptor("linux", "amd64")]);
                let behave = |request: &Request, connection: &mut Connection| {
                    if !request.path.ends_with("/manifests/latest") || request.nth == 1 {
                        return Ok(Turn::Ordinary);
                    }
                    connection.answer("200 OK", &[("Content-Type", INDEX)], b"{}")
                };
                Served::default().index(&index, &[image]).behaving(behave)
            },
            GOOD,
        )
        .audit(|seen| {
            let tag = seen.asked("/manifests/latest");
            ensure!(tag == 1, "the tag was asked for {tag} times");
            Ok(())
        }),
        Case::new(
            Transport,
            "tag-that-changes-between-pulls",
            "The second pull of a tag gets another image: nothing of the first may show.",
            |_| {
                let behave = |request: &Request, connection: &mut Connection| {
                    if !request.path.ends_with("/manifests/latest") || request.nth > 1 {
                        return Ok(Turn::Ordinary);
                    }
                    connection.answer("200 OK", &[("Content-Type", MANIFEST)], &another().manifest)
                };
                Served::from(image()).image("other", &another()).behaving(behave)
            },
            Accept(|tree| tree.names(".", &["f"])),
        )
        .mode(Mode::Twice),
        Case::new(
            Transport,
            "content-by-the-number-of-requests",
            "The first request for the layer gets the right bytes up to the middle, the second all of \
             another.",
            |_| {
                Served::from(image()).behaving(|request, connection| {
                    match (is_layer(request), request.nth) {
                        (true, 1) => part(connection, 0, BLOB.len() / 2),
                        (true, _) => connection.answer("200 OK", &[], &vec![b'!'; BLOB.len()]),
                        _ => Ok(Turn::Ordinary),
                    }
                })
            },
            Reject(&["content was changed"]),
        ),
        Case::new(
            Transport,
            "request-smuggling",
            "A reference cannot add to a request: what is asked for is what was named.",
            |_| Served::from(image()).reference(format!("app@{}", digest(&image().manifest))),
            GOOD,
        )
        .audit(|seen| {
            for request in &seen.registry {
                let plain = request.path.bytes().all(|b| b.is_ascii_graphic());
                ensure!(plain && request.path.starts_with("/v2/app/"), "{:?}", request.path);
            }
            Ok(())
        }),
    ]
}
