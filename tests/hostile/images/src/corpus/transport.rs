//! Registries that misbehave: on the wire, in their headers, by sending elsewhere.

mod answers;
mod bodies;
mod cuts;
mod tokens;
mod waits;

use std::io;
use std::sync::LazyLock;
use std::time::Duration;

use nacre_image_pull::PullConfig;

use crate::case::Class::Transport;
use crate::case::Expect::Accept;
use crate::case::{Case, Check, Expect, Hosts};
use crate::image::{Image, Layer, MANIFEST};
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
        cuts::cuts(),
        waits::waits(),
        waits::refusals(),
        bodies::endless(),
        bodies::lies(),
        answers::broken_http(),
        answers::redirects(),
        tokens::tokens(),
        tokens::changes(),
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

fn impatient(config: &mut PullConfig, _: &Hosts) {
    config.limits.stall = Duration::from_secs(1);
    config.limits.connect = Duration::from_secs(1);
    config.limits.total = Duration::from_secs(6);
}

const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

/// A chunk of 64 KiB of blanks.
fn chunk() -> Vec<u8> {
    [&b"10000\r\n"[..], &[b' '; 0x10000], b"\r\n"].concat()
}
