//! Little that becomes much: bytes, inodes, memory, time.

use nacre_image_pull::PullConfig;

use crate::case::Class::Bombs;
use crate::case::Expect::{Accept, Contain, Reject};
use crate::case::{Case, Check, Expect, Hosts, Seen};
use crate::compression::{
    gzip, gzip_best, zstd, zstd_frame, zstd_raw_block, zstd_single_segment, zstd_skippable,
    zstd_zeros,
};
use crate::content::Content;
use crate::image::{Image, Layer, index};
use crate::registry::Served;
use crate::tar::{Header, Tar, field};
use crate::{compression, image};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn case<S: Into<Served>>(
    name: &'static str,
    attack: &'static str,
    make: impl Fn() -> S + Send + Sync + 'static,
    expect: Expect,
) -> Case {
    Case::new(Bombs, name, attack, move |_: &Hosts| make(), expect)
}

/// Room that is small, so that even an unoptimised unpacker is there soon.
fn small(config: &mut PullConfig, _: &Hosts) {
    config.limits.unpacked_bytes = 4 * MIB;
    config.limits.entries = 5_000;
}

pub(super) fn cases() -> Vec<Case> {
    [bytes(), windows(), inodes(), memory(), documents()].into_iter().flatten().collect()
}

/// The header of a file of that size, and none of its content.
fn huge_file(size: u64) -> Vec<u8> {
    let header = |header: &mut Header| {
        header.base256(field::SIZE, size.into());
    };
    Tar::new().raw(b'0', "zeros", "", "", header).unfinished()
}

fn bytes() -> Vec<Case> {
    let too_many = Reject(&["unpacked bytes"]);
    vec![
        case(
            "gzip-bomb",
            "40 GiB of zeros in 40 MB of gzip.",
            || Layer::endless(compression::gzip_zeros(&huge_file(40 * GIB), 40 << 10), "+gzip"),
            too_many,
        )
        .configure(small),
        case(
            "gzip-bomb-of-members",
            "The same in many members, each of which is harmless.",
            || {
                let head = gzip(&huge_file(40 * GIB));
                let piece = gzip_best(&vec![0; 1 << 20]);
                Layer::endless(Content::repeated(&head, &piece, 40 << 10, b""), "+gzip")
            },
            too_many,
        )
        .configure(small),
        case(
            "gzip-bomb-behind-the-end",
            "The zeros come behind the end of the archive: nothing is written, and it never ends.",
            || {
                let archive = Tar::new().file("a", "").end();
                Layer::endless(compression::gzip_zeros(&archive, 40 << 10), "+gzip")
            },
            too_many,
        )
        .configure(small),
        case(
            "zstd-bomb",
            "40 GiB of zeros in 1.3 MB of zstd: blocks that repeat one byte.",
            || Layer::endless(zstd_zeros(&huge_file(40 * GIB), 40 << 10, 20), "+zstd"),
            too_many,
        )
        .configure(small),
        case(
            "zstd-bomb-of-frames",
            "The same in frames of their own.",
            || {
                let head = zstd(&huge_file(40 * GIB));
                Layer::endless(
                    Content::repeated(&head, &zstd(&vec![0; 1 << 20]), 40 << 10, b""),
                    "+zstd",
                )
            },
            too_many,
        )
        .configure(small),
        case(
            "bomb-of-layers",
            "Each layer is within the bound, all together are not.",
            || {
                let layer = |i: u8| Layer::zstd(&Tar::new().file("f", vec![i; 1 << 20]).end());
                Image::new((0..8).map(layer).collect::<Vec<_>>())
            },
            too_many,
        )
        .configure(small),
        case(
            "bomb-of-sparse-files",
            "A file of 2^60 bytes that is one hole: whoever copies it writes them all.",
            || {
                let map = |header: &mut Header| {
                    header.text(field::MAGIC, b"ustar  \0");
                    header.base256(386..398, 1 << 60).octal(398..410, 0);
                    header.base256(483..495, 1 << 60);
                };
                Tar::new().raw(b'S', "f", "", "", map)
            },
            Reject(&["unpacked bytes"]),
        ),
        case(
            "file-larger-than-its-archive",
            "A size of 2^62 bytes, to be allocated before the first comes.",
            || Layer::plain(&huge_file(1 << 62)),
            Reject(&["layer sha256"]),
        ),
        case(
            "more-than-the-store-holds",
            "The store is full before any bound is reached: the error says so, and all is freed.",
            || Layer::zstd(&Tar::new().file("f", vec![b'x'; 24 << 20]).end()),
            Reject(&["does not fit"]),
        )
        .tmpfs("size=16m,mode=755"),
        case(
            "manifest-larger-than-the-store",
            "The manifest already tells that the image does not fit: nothing is fetched.",
            || Layer::plain(&Tar::new().file("f", vec![b'x'; 24 << 20]).end()),
            Reject(&["does not fit"]),
        )
        .tmpfs("size=16m,mode=755")
        .audit(no_layer),
        case(
            "descriptor-says-a-pebibyte",
            "A layer that would be fetched for years.",
            || {
                let blob = Content::repeated(b"", &zstd_skippable(&[0; 1 << 16]), 1 << 34, b"");
                let mut layer = Layer::zstd(b"");
                layer.size = blob.len();
                layer
            },
            Reject(&["does not fit"]),
        )
        .audit(no_layer),
    ]
}

/// The configuration may be fetched, but no layer.
fn no_layer(seen: &Seen) -> anyhow::Result<()> {
    anyhow::ensure!(seen.asked("/blobs/") <= 1, "{} blobs were asked for", seen.asked("/blobs/"));
    Ok(())
}

fn windows() -> Vec<Case> {
    let content: Check = |tree| tree.holds("f", "content");
    let framed = |log: u8| {
        move || {
            let tar = Tar::new().file("f", "content").end();
            Layer::packed([zstd_frame(log), zstd_raw_block(&tar, true)].concat(), &tar, "+zstd")
        }
    };
    let mut cases: Vec<Case> = [
        ("zstd-window-of-256-mib", "A window twice as large as the bound.", 28),
        ("zstd-window-of-2-gib", "The largest window that the decoder knows.", 31),
        ("zstd-window-of-2-tib", "The largest window that the format knows.", 41),
    ]
    .map(|(name, attack, log)| case(name, attack, framed(log), Reject(&["window"])))
    .into();
    cases.extend([
        case(
            "zstd-window-unused",
            "A window of 128 MiB for a few bytes: it must not be filled in advance.",
            framed(27),
            Accept(content),
        ),
        case(
            "zstd-window-of-128-mib",
            "The largest window within the bound, and all of it is used.",
            || {
                let size = 136 * MIB;
                let start = huge_file(size);
                let mut whole = Vec::new();
                let blob = zstd_zeros(&start, size / MIB, 27);
                whole.extend_from_slice(&start);
                whole.resize(start.len() + (136 << 20), 0);
                Layer::packed(blob, &whole, "+zstd")
            },
            Contain(|tree| {
                anyhow::ensure!(tree.stat("zeros")?.st_size == 136 << 20, "another size");
                Ok(())
            }),
        )
        .peak_mib(128 + 32),
        case(
            "zstd-single-segment",
            "A frame that is its own window, of 4 TiB.",
            || {
                let blob = [zstd_single_segment(4096 * GIB), zstd_raw_block(b"x", true)].concat();
                Layer::endless(blob, "+zstd")
            },
            Reject(&["window"]),
        ),
    ]);
    cases
}

fn inodes() -> Vec<Case> {
    let too_many = Reject(&["files and directories"]);
    vec![
        case(
            "inode-bomb",
            "Empty files without end.",
            || {
                let tar = (0..5_001).fold(Tar::new(), |tar, i| tar.file(format!("{i}"), ""));
                Layer::zstd(&tar.end())
            },
            too_many,
        )
        .configure(small),
        case(
            "inode-bomb-of-one-name",
            "The same name again and again: no more inodes, but work without end.",
            || {
                let (entry, end) = (Tar::new().file("f", "").unfinished(), Tar::new().end());
                Layer::endless(Content::repeated(b"", &entry, 20_000, &end), "")
            },
            too_many,
        )
        .configure(small),
        case(
            "inode-bomb-of-implied-directories",
            "Each entry's path makes hundreds of directories that have no entry.",
            || {
                let deep = "d/".repeat(240) + "f";
                let tar =
                    (0..40).fold(Tar::new(), |tar, i| tar.long_file(format!("{i}/{deep}"), ""));
                Layer::gzip(&tar.end())
            },
            too_many,
        )
        .configure(small),
        case(
            "inode-bomb-of-whiteouts",
            "Whiteouts without end: a device node each.",
            || {
                let tar = (0..5_001).fold(Tar::new(), |tar, i| tar.file(format!(".wh.{i}"), ""));
                Layer::zstd(&tar.end())
            },
            too_many,
        )
        .configure(small),
        case(
            "more-inodes-than-the-store-has",
            "The file system's own bound comes first; all is freed.",
            || {
                let tar = (0..3000).fold(Tar::new(), |tar, i| tar.file(format!("{i}"), ""));
                Layer::gzip(&tar.end())
            },
            Reject(&["does not fit"]),
        )
        .tmpfs("size=64m,nr_inodes=2000,mode=755"),
        case(
            "layers-501",
            "More layers than overlayfs stacks.",
            || {
                let layer = |i: u32| Layer::plain(&Tar::new().file(format!("{i}"), "").end());
                Image::new((0..501).map(layer).collect::<Vec<_>>())
            },
            Reject(&["layers"]),
        )
        .audit(no_layer),
        case(
            "layers-120",
            "As many layers as long build files make: they must all be there (an option string holds \
             a hundred).",
            || {
                let layer =
                    |i: u32| Layer::gzip(&Tar::new().file(format!("f{i}"), format!("{i}")).end());
                Image::new((0..120).map(layer).collect::<Vec<_>>())
            },
            Accept(|tree| (0..120).try_for_each(|i| tree.holds(format!("f{i}"), format!("{i}")))),
        ),
    ]
}

fn memory() -> Vec<Case> {
    vec![
        case(
            "pax-header-of-64-gib",
            "An extension header that is read into memory, as large as its header says.",
            || {
                let size = |header: &mut Header| {
                    header.base256(field::SIZE, (64 * GIB).into());
                };
                let head = Tar::new().raw(b'x', "pax", "", "", size).unfinished();
                Layer::endless(compression::gzip_zeros(&head, 64 << 10), "+gzip")
            },
            Reject(&["extension header"]),
        ),
        case(
            "gnu-name-of-2-gib",
            "A file name of 2 GiB.",
            || {
                let size = |header: &mut Header| {
                    header.base256(field::SIZE, (2 * GIB).into());
                };
                let head = Tar::new().raw(b'L', "././@LongLink", "", "", size).unfinished();
                Layer::endless(compression::gzip_zeros(&head, 2 << 10), "+gzip")
            },
            Reject(&["extension header"]),
        ),
        case(
            "attribute-flood",
            "A hundred thousand extended attributes: memory of the kernel that no quota counts.",
            || {
                let records: Vec<(String, Vec<u8>)> = (0..50_000)
                    .map(|i| (format!("SCHILY.xattr.security.{i}"), Vec::new()))
                    .collect();
                let records: Vec<(&str, &[u8])> =
                    records.iter().map(|(key, value)| (&**key, &**value)).collect();
                // Two headers' worth would be more than an extension header may hold.
                Tar::new().pax(&records[..30_000]).file("f", "")
            },
            Reject(&["extended attribute"]),
        ),
        case(
            "attributes-of-64-kib",
            "Fifteen attributes of 64 KiB for each of many files.",
            || {
                let value = vec![b'x'; 64 << 10];
                let keys: Vec<String> =
                    (0..15).map(|i| format!("SCHILY.xattr.trusted.{i}")).collect();
                let records: Vec<(&str, &[u8])> =
                    keys.iter().map(|key| (&**key, &*value)).collect();
                let tar =
                    (0..20).fold(Tar::new(), |tar, i| tar.pax(&records).file(format!("{i}"), ""));
                Layer::zstd(&tar.end())
            },
            Reject(&["extended attribute"]),
        ),
        case(
            "long-directory-names",
            "Directories whose paths somebody has to remember until the end: 23 MB of them in a small \
             layer, and more in a larger one.",
            || {
                let deep = format!("{}/", "x".repeat(250)).repeat(15);
                let mut tar = Tar::new().pax(&[("path", deep.as_bytes())]).dir("d");
                for i in 0..6_000 {
                    let path = format!("{deep}{i}");
                    tar = tar.pax(&[("path", path.as_bytes())]).dir("d");
                }
                Layer::zstd(&tar.end())
            },
            Contain(|_| Ok(())),
        ),
        case(
            "implied-directory-names",
            "Deep paths, whose every beginning somebody has to remember: 17 MB of them.",
            || {
                let deep = "d/".repeat(240) + "f";
                let tar =
                    (0..300).fold(Tar::new(), |tar, i| tar.long_file(format!("{i}/{deep}"), ""));
                Layer::gzip(&tar.end())
            },
            Reject(&["bytes of directory names"]),
        ),
        case(
            "implied-then-described",
            "Ten thousand directories that are implied first and described later: quadratic work \
             for whoever looks through a list.",
            || {
                let tar = (0..10_000).fold(Tar::new(), |tar, i| tar.file(format!("{i}/f"), ""));
                let tar = (0..10_000).fold(tar, |tar, i| tar.dir(format!("{i}")));
                Layer::zstd(&tar.end())
            },
            Contain(|_| Ok(())),
        ),
        case(
            "implied-in-many-layers",
            "Directories that every layer implies: their owners have to be looked for in all layers.",
            || {
                let layer = |n: u32| {
                    let path = |i: u32| format!("a/b/c/d/e/f/g/h/{i}/{n}");
                    let tar = (0..100).fold(Tar::new(), |tar, i| tar.file(path(i), ""));
                    Layer::gzip(&tar.end())
                };
                Image::new((0..60).map(layer).collect::<Vec<_>>())
            },
            Contain(|tree| tree.holds("a/b/c/d/e/f/g/h/99/59", "")),
        ),
        case(
            "gzip-name-without-end",
            "A gzip header whose file name does not end.",
            || {
                let head = b"\x1f\x8b\x08\x08\0\0\0\0\0\xff";
                Layer::endless(Content::repeated(head, &[b'x'; 1 << 16], 1 << 10, b""), "+gzip")
            },
            Reject(&["gzip stream is broken"]),
        ),
        case(
            "gzip-empty-members",
            "A hundred thousand members of nothing.",
            || {
                let tar = Tar::new().file("f", "content").end();
                let blob = Content::repeated(b"", &gzip(b""), 100_000, &gzip(&tar));
                Layer::packed(blob, &tar, "+gzip")
            },
            Contain(|tree| tree.holds("f", "content")),
        ),
        case(
            "zstd-empty-blocks",
            "A million blocks of nothing.",
            || {
                let tar = Tar::new().file("f", "content").end();
                let end = zstd_raw_block(&tar, true);
                let blob = Content::repeated(&zstd_frame(20), &[0, 0, 0], 1_000_000, &end);
                Layer::packed(blob, &tar, "+zstd")
            },
            Contain(|tree| tree.holds("f", "content")),
        ),
    ]
}

fn documents() -> Vec<Case> {
    fn image() -> Image {
        Tar::new().file("f", "content").into()
    }
    let content: Check = |tree| tree.holds("f", "content");
    vec![
        case(
            "manifest-of-5-mib",
            "A manifest that is one long annotation.",
            || {
                image().edit_manifest(|manifest| {
                    manifest["annotations"] = serde_json::json!({ "a": "x".repeat(5 << 20) });
                })
            },
            Reject(&["limit of 4194304 bytes"]),
        ),
        case(
            "config-of-5-mib",
            "The same with the configuration.",
            || image().edit_config(|config| config["author"] = "x".repeat(5 << 20).into()),
            Reject(&["limit of 4194304 bytes"]),
        ),
        case(
            "manifest-nested",
            "A field of a hundred thousand arrays in each other: a parser that recurses dies of it.",
            || {
                let nested = "[".repeat(100_000) + &"]".repeat(100_000);
                image().manifest_text(|text| text.replacen('{', &format!("{{\"x\":{nested},"), 1))
            },
            Accept(content),
        ),
        case(
            "config-nested",
            "The same with the configuration, where the fields are known.",
            || {
                let nested = "[".repeat(100_000) + &"]".repeat(100_000);
                let text = String::from_utf8_lossy(&image().config).into_owned();
                let text = text.replacen("{\"Cmd\"", &format!("{{\"Env\":{nested},\"Cmd\""), 1);
                image().raw_config(text)
            },
            Reject(&["image configuration"]),
        ),
        case(
            "index-of-20000-entries",
            "An index of every platform that nobody has, and ours at the end.",
            || {
                let image = image();
                let mut entries = vec![image.descriptor("plan9", "vax"); 20_000];
                entries.push(image.descriptor("linux", "amd64"));
                Served::default().index(&index(entries), &[image])
            },
            Accept(content),
        ),
        case(
            "config-with-many-variables",
            "An environment of two hundred thousand variables.",
            || {
                image().edit_config(|config| {
                    config["config"]["Env"] = vec!["A=b"; 200_000].into();
                })
            },
            Accept(content),
        ),
        case(
            "manifest-with-one-blob-a-thousand-times",
            "The same small layer four hundred times: it is fetched once.",
            || {
                let layer = Layer::gzip(&Tar::new().file("f", "content").end());
                Image::new(vec![layer; 400])
            },
            Accept(content),
        )
        .audit(|seen| {
            anyhow::ensure!(seen.asked("/blobs/") == 2, "{} times", seen.asked("/blobs/"));
            Ok(())
        }),
        case(
            "config-is-a-layer",
            "One blob is named as configuration and as layer.",
            || {
                let image = image();
                let layer = Layer::plain(&image.config);
                image.edit_manifest(|manifest| {
                    manifest["layers"][0] = image::descriptor(image::LAYER, b"");
                    manifest["layers"][0]["digest"] = layer.digest.clone().into();
                    manifest["layers"][0]["size"] = layer.size.into();
                })
            },
            Reject(&["layer sha256"]),
        ),
    ]
}
