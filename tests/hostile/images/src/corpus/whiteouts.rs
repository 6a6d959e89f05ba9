//! Entries that hide what is below (image-spec, layer.md, "Whiteouts").

use rustix::fs::FileType;

use crate::case::Class::Whiteouts;
use crate::case::Expect::{Accept, Contain, Reject};
use crate::case::{Case, Expect, Hosts};
use crate::image::Image;
use crate::tar::{Header, Tar, field};

fn case(
    name: &'static str,
    attack: &'static str,
    make: impl Fn() -> Image + Send + Sync + 'static,
    expect: Expect,
) -> Case {
    Case::new(Whiteouts, name, attack, move |_: &Hosts| make(), expect)
}

/// A layer below: `a`, `d/x`, `d/y`, `d/e/z`.
fn below() -> Tar {
    Tar::new()
        .file("a", "below")
        .dir("d")
        .file("d/x", "below")
        .file("d/y", "below")
        .file("d/e/z", "")
}

fn opaque(directory: &str) -> String {
    format!("{directory}.wh..wh..opq")
}

pub(super) fn cases() -> Vec<Case> {
    [order(), opaqueness(), names(), smuggled()].into_iter().flatten().collect()
}

fn order() -> Vec<Case> {
    vec![
        case(
            "whiteout",
            "Hides a file and a directory of the layer below.",
            || [below(), Tar::new().file(".wh.a", "").file("d/.wh.e", "")].into(),
            Accept(|tree| {
                tree.names(".", &["d"])?;
                tree.names("d", &["x", "y"])
            }),
        ),
        case(
            "whiteout-before-its-file",
            "Hides a file and brings a new one: in some unpackers the order of entries decides.",
            || [below(), Tar::new().file(".wh.a", "").file("a", "new")].into(),
            Accept(|tree| tree.holds("a", "new")),
        ),
        case(
            "whiteout-after-its-file",
            "The same in the other order: a whiteout speaks of lower layers only.",
            || [below(), Tar::new().file("a", "new").file(".wh.a", "")].into(),
            Accept(|tree| tree.holds("a", "new")),
        ),
        case(
            "directory-hidden-and-made-again",
            "A directory is hidden and comes again in the same layer: what was in it must not show.",
            || [below(), Tar::new().file(".wh.d", "").dir("d").file("d/new", "")].into(),
            Accept(|tree| tree.names("d", &["new"])),
        ),
        case(
            "directory-made-again-before-it-is-hidden",
            "The same in the other order.",
            || [below(), Tar::new().dir("d").file("d/new", "").file(".wh.d", "")].into(),
            Accept(|tree| tree.names("d", &["new"])),
        ),
        case(
            "directory-made-again-by-implication",
            "The same without an entry for the directory.",
            || [below(), Tar::new().file(".wh.d", "").file("d/new", "")].into(),
            Accept(|tree| tree.names("d", &["new"])),
        ),
        case(
            "directory-made-again-by-a-later-layer",
            "Hidden by one layer, made again by the next: what was in it stays hidden.",
            || [below(), Tar::new().file(".wh.d", ""), Tar::new().file("d/new", "")].into(),
            Accept(|tree| tree.names("d", &["new"])),
        ),
        case(
            "whiteout-twice",
            "The same file is hidden twice, and what was never there too.",
            || {
                let tar = Tar::new().file(".wh.a", "").file(".wh.a", "").file(".wh.never", "");
                [below(), tar].into()
            },
            Accept(|tree| tree.names(".", &["d"])),
        ),
        case(
            "whiteout-in-the-lowest-layer",
            "Hides what no layer below can have; the mark itself must not show.",
            || Tar::new().file(".wh.a", "").file("b", "").into(),
            Accept(|tree| tree.names(".", &["b"])),
        ),
        case(
            "link-hidden-by-its-own-layer",
            "A whiteout of a name that this layer has as a link: nothing happens where it points.",
            || {
                let tar = Tar::new().symlink("l", "/mnt/outside").file(".wh.l", "");
                [Tar::new().dir("l").file("l/file", ""), tar].into()
            },
            Contain(|tree| tree.links_to("l", "/mnt/outside")),
        ),
    ]
}

fn opaqueness() -> Vec<Case> {
    vec![
        case(
            "opaque-directory",
            "Hides all that lower layers have in a directory.",
            || [below(), Tar::new().dir("d").file(opaque("d/"), "").file("d/new", "")].into(),
            Accept(|tree| {
                tree.names("d", &["new"])?;
                tree.holds("a", "below")
            }),
        ),
        case(
            "opaque-after-its-files",
            "The mark comes last: unpackers that then empty the directory lose the layer's own files.",
            || [below(), Tar::new().dir("d").file("d/new", "").file(opaque("d/"), "")].into(),
            Accept(|tree| tree.names("d", &["new"])),
        ),
        case(
            "opaque-root",
            "Hides all lower layers. overlayfs does not look for the mark at a layer's root.",
            || [below(), Tar::new().file(opaque(""), "").file("new", "")].into(),
            Accept(|tree| tree.names(".", &["new"])),
        ),
        case(
            "opaque-root-below-another-layer",
            "The same with a layer above it that must not be hidden.",
            || {
                let hiding = Tar::new().file("new", "").file(opaque(""), "");
                [below(), hiding, Tar::new().file("top", "")].into()
            },
            Accept(|tree| tree.names(".", &["new", "top"])),
        ),
        case(
            "opaque-implied-directory",
            "The mark in a directory that has no entry.",
            || [below(), Tar::new().file(opaque("d/"), "")].into(),
            Accept(|tree| tree.names("d", &[])),
        ),
        case(
            "opaque-through-link",
            "The mark in a directory behind a link.",
            || {
                let tar = Tar::new().dir("mnt").dir("mnt/outside").symlink("l", "/mnt/outside");
                tar.file(opaque("l/"), "").into()
            },
            Contain(|tree| tree.names("mnt/outside", &[])),
        ),
        case(
            "implied-directory-keeps-its-mode",
            "A layer brings /tmp/x and no /tmp: its sticky bit and owner must stay as they were.",
            || {
                let sticky = |header: &mut Header| {
                    header.octal(field::MODE, 0o1777).octal(field::GID, 42);
                };
                let below = Tar::new().raw(b'5', "tmp", "", "", sticky);
                [below, Tar::new().file("tmp/x", "")].into()
            },
            Accept(|tree| {
                tree.is("tmp", FileType::Directory, 0o1777)?;
                tree.owned("tmp", 0, 42)
            }),
        ),
    ]
}

fn names() -> Vec<Case> {
    let hostile = [
        ("whiteout-of-dotdot", "Hides the directory above the root.", ".wh..."),
        ("whiteout-of-dot", "Hides the directory itself.", ".wh.."),
        ("whiteout-of-nothing", "A whiteout without a name.", ".wh."),
        (
            "whiteout-of-a-whiteout",
            "A name that AUFS keeps for itself; unpackers disagree on it.",
            ".wh..wh.plnk",
        ),
    ];
    let mut cases: Vec<Case> = hostile
        .into_iter()
        .map(|(name, attack, path)| {
            let make = move || [below(), Tar::new().file(path, "")].into();
            case(name, attack, make, Reject(&["not a whiteout"]))
        })
        .collect();
    cases.extend([
        case(
            "whiteout-above-the-root",
            "Hides a file next to the root.",
            || [below(), Tar::new().file("../.wh.canary", "")].into(),
            Reject(&["\"..\""]),
        ),
        case(
            "whiteout-as-a-directory",
            "Entries beneath a whiteout.",
            || Tar::new().dir(".wh.a").file(".wh.a/b", "").into(),
            Reject(&["beneath a whiteout"]),
        ),
        case(
            "opaque-mark-as-a-directory",
            "Entries beneath an opaque mark.",
            || Tar::new().dir(opaque("d/")).file(opaque("d/") + "/x", "").into(),
            Reject(&["beneath a whiteout"]),
        ),
        case(
            "whiteout-as-a-link",
            "A whiteout that is a link: its target means nothing.",
            || [below(), Tar::new().symlink(".wh.a", "/mnt/outside/file")].into(),
            Contain(|tree| tree.lacks("a")),
        ),
        case(
            "whiteout-with-content",
            "A whiteout that holds a file's content.",
            || [below(), Tar::new().file(".wh.a", [b'!'; 100_000]).file("b", "after")].into(),
            Accept(|tree| {
                tree.lacks("a")?;
                tree.holds("b", "after")
            }),
        ),
        case(
            "whiteout-through-link",
            "Hides a file behind a link.",
            || {
                let tar = Tar::new().dir("mnt").dir("mnt/outside").symlink("l", "/mnt/outside");
                tar.file("l/.wh.file", "").into()
            },
            Contain(|tree| tree.lacks("mnt/outside/file")),
        ),
        case(
            "whiteout-of-the-longest-name",
            "A name of 251 bytes, and the prefix makes it the longest there is.",
            || {
                let name = "x".repeat(251);
                let hiding = Tar::new().long_file(format!(".wh.{name}"), "");
                [Tar::new().long_file(name, "").file("a", ""), hiding].into()
            },
            Accept(|tree| tree.names(".", &["a"])),
        ),
    ]);
    cases
}

fn smuggled() -> Vec<Case> {
    let attributes = [
        ("overlay-opaque-attribute", "trusted.overlay.opaque", "The kernel's own opaque mark."),
        (
            "overlay-redirect-attribute",
            "trusted.overlay.redirect",
            "Lets a directory show another one's content.",
        ),
        (
            "overlay-metacopy-attribute",
            "trusted.overlay.metacopy",
            "Lets a file take its content from a layer below.",
        ),
        (
            "overlay-whiteout-attribute",
            "trusted.overlay.whiteout",
            "The kernel's newer form of whiteouts.",
        ),
        (
            "overlay-nested-attribute",
            "trusted.overlay.overlay.redirect",
            "Attributes of an overlay in an overlay, which lose one prefix on the way.",
        ),
        ("overlay-user-attribute", "user.overlay.opaque", "The form without privileges."),
    ];
    let mut cases: Vec<Case> = attributes
        .into_iter()
        .map(|(name, attribute, attack)| {
            let record = format!("SCHILY.xattr.{attribute}");
            let make = move || {
                let marked = Tar::new().pax(&[(&record, b"y")]).dir("d");
                [below(), marked].into()
            };
            case(name, attack, make, Reject(&["extended attribute"]))
        })
        .collect();
    cases.extend([
        case(
            "overlay-whiteout-device",
            "The kernel's own whiteout, a device 0:0, as a layer's entry.",
            || {
                let zero = |header: &mut Header| {
                    header.octal(field::MAJOR, 0).octal(field::MINOR, 0);
                };
                [below(), Tar::new().raw(b'3', "a", "", "", zero)].into()
            },
            Reject(&["device"]),
        ),
        case(
            "hard-link-to-a-whiteout",
            "Copies the device that a whiteout becomes.",
            || [below(), Tar::new().file(".wh.gone", "").hard_link("b", "gone")].into(),
            Reject(&["hard link to"]),
        ),
    ]);
    cases
}
