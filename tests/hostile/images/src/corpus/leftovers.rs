//! Pulls that fail late, are given up or killed: nothing of them stays.

use std::io;

use crate::case::Class::Leftovers;
use crate::case::Expect::{Accept, Reject};
use crate::case::{Case, Expect, Hosts, Mode};
use crate::image::{Image, Layer, digest};
use crate::registry::{Connection, Request, Served, Turn};
use crate::tar::Tar;

fn case<S: Into<Served>>(
    name: &'static str,
    attack: &'static str,
    make: impl Fn() -> S + Send + Sync + 'static,
    expect: Expect,
) -> Case {
    Case::new(Leftovers, name, attack, move |_: &Hosts| make(), expect)
}

/// Files and directories, some of them hard to remove.
fn tree(content: &str) -> Tar {
    let tar = Tar::new().dir("a").dir("a/b").symlink("a/l", "/mnt/outside").file("a/b/f", content);
    let tar = tar.raw(b'6', "a/pipe", "", "", |_| {}).hard_link("a/h", "a/b/f");
    (0..100).fold(tar, |tar, i| tar.file(format!("a/{i}"), content))
}

fn broken() -> Layer {
    Layer::gzip(&tree("broken").file("../x", "").end())
}

/// 1 MiB that does not compress well is enough to come in several pieces.
fn large() -> Layer {
    let mut state = 7_u32;
    let next = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    let noise: Vec<u8> = std::iter::repeat_with(next).take(1 << 20).collect();
    Layer::plain(&tree("large").file("noise", noise).end())
}

/// The layer's first half, and then nothing, on an open connection.
fn half(layer: &Layer) -> impl Fn(&Request, &mut Connection) -> io::Result<Turn> + use<> {
    let layer = layer.clone();
    move |request, connection| {
        if !request.path.ends_with(&layer.digest) {
            return Ok(Turn::Ordinary);
        }
        let mut bytes = Vec::new();
        layer.content.write(&mut bytes, 0, layer.size / 2)?;
        connection.raw(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", layer.size))?;
        connection.raw(bytes)?;
        connection.stall()
    }
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        case(
            "one-layer-of-many-is-broken",
            "Three good layers and a broken one: the good ones have no image, so they go too.",
            || {
                let good = |name: &str| Layer::gzip(&tree(name).file(name, "").end());
                Image::new([good("1"), broken(), good("2"), good("3")])
            },
            Reject(&["\"..\""]),
        ),
        case(
            "last-layer-has-another-digest",
            "All is unpacked when the last digest turns out to be wrong.",
            || {
                let good = Layer::gzip(&tree("good").end());
                let mut lying = large();
                lying.diff_id = digest(b"x");
                Image::new([good, lying])
            },
            Reject(&["diff_id"]),
        ),
        case(
            "one-layer-is-missing",
            "The registry lost a layer while the others come.",
            || {
                let (good, missing) = (large(), Layer::gzip(&tree("missing").end()));
                let mut image = Image::new([good, missing.clone()]);
                image.layers.pop();
                Served::from(image).behaving(move |request, connection| {
                    match request.path.ends_with(&missing.digest) {
                        true => connection.answer("404 Not Found", &[], b"{}"),
                        false => Ok(Turn::Ordinary),
                    }
                })
            },
            Reject(&["has no layer"]),
        ),
        case(
            "one-layer-stalls",
            "A broken layer while another one is half here: the other must not be waited for.",
            || {
                let large = large();
                Served::from(Image::new([large.clone(), broken()])).behaving(half(&large))
            },
            Reject(&["\"..\""]),
        ),
        case(
            "given-up",
            "The caller goes away while a layer is half here.",
            || {
                let large = large();
                Served::from(Image::from(large.clone())).behaving(half(&large))
            },
            Reject(&["abandoned"]),
        )
        .mode(Mode::GivenUp),
        case(
            "killed",
            "The process dies while a layer is half here; the next one clears up.",
            || {
                let large = large();
                Served::from(Image::from(large.clone())).behaving(half(&large))
            },
            Reject(&["killed"]),
        )
        .configure(|config, _| config.limits.stall = std::time::Duration::from_secs(30))
        .mode(Mode::Killed),
        case(
            "pulled-twice",
            "Two pulls of one image share its layers; they go with the last.",
            || Image::new([large(), Layer::gzip(&tree("f").end())]),
            Accept(|tree| tree.holds("a/b/f", "f")),
        )
        .mode(Mode::Twice)
        .audit(|seen| {
            let layers = seen.asked(&large().digest);
            anyhow::ensure!(layers == 1, "the layer was fetched {layers} times");
            Ok(())
        }),
        case(
            "pulled-twice-at-once",
            "The same at the same time: each layer is fetched once.",
            || Image::new([large(), Layer::gzip(&tree("f").end())]),
            Accept(|tree| tree.holds("a/b/f", "f")),
        )
        .mode(Mode::Together)
        .audit(|seen| {
            let layers = seen.asked(&large().digest);
            anyhow::ensure!(layers == 1, "the layer was fetched {layers} times");
            Ok(())
        }),
        case(
            "broken-twice-at-once",
            "Two pulls of a broken image at the same time: neither waits for the other for ever.",
            || Image::new([large(), broken()]),
            Reject(&["\"..\""]),
        )
        .mode(Mode::Together),
        case(
            "broken-twice",
            "A broken image is pulled again: what the first attempt left must not help it.",
            || Image::new([large(), broken()]),
            Reject(&["\"..\""]),
        )
        .mode(Mode::Twice),
    ]
}
