//! Archives and streams that two readers read differently: a scanner sees one tree, the runtime
//! another.

use crate::case::Class::Smuggling;
use crate::case::Expect::{Accept, Contain, Reject};
use crate::case::{Case, Expect, Hosts};
use crate::compression::{gzip, zstd, zstd_frame, zstd_raw_block, zstd_skippable};
use crate::image::{Image, Layer};
use crate::tar::{BLOCK, Header, Tar, field, pax_records};

fn case(
    name: &'static str,
    attack: &'static str,
    make: impl Fn() -> Image + Send + Sync + 'static,
    expect: Expect,
) -> Case {
    Case::new(Smuggling, name, attack, move |_: &Hosts| make(), expect)
}

/// An archive byte for byte.
fn exactly(bytes: &[u8]) -> Image {
    Layer::plain(bytes).into()
}

/// A whole archive that must never be seen: as content of something.
fn hidden() -> Vec<u8> {
    Tar::new().file("hidden", "smuggled").unfinished()
}

pub(super) fn cases() -> Vec<Case> {
    [sizes(), ends(), headers(), extensions(), gzip_streams(), zstd_streams()]
        .into_iter()
        .flatten()
        .collect()
}

fn sizes() -> Vec<Case> {
    let links: [(&'static str, &'static str, u8); 4] = [
        ("hard-link-with-content", "A hard link with a size.", b'1'),
        ("link-with-content", "A symbolic link with a size.", b'2'),
        ("directory-with-content", "A directory with a size.", b'5'),
        ("pipe-with-content", "A pipe with a size.", b'6'),
    ];
    let mut cases: Vec<Case> = links
        .into_iter()
        .map(|(name, attack, kind)| {
            let make =
                move || Tar::new().file("f", "").raw(kind, "x", "f", hidden(), |_| {}).into();
            case(name, attack, make, Reject(&["not a file but has a size"]))
        })
        .collect();
    cases.extend([
        case(
            "pax-size-above-header-size",
            "PAX says that hidden entries are content, the header that they are entries \
             (CVE-2025-62518).",
            || {
                let size = hidden().len().to_string();
                let none = |header: &mut Header| {
                    header.octal(field::SIZE, 0);
                };
                Tar::new()
                    .pax(&[("size", size.as_bytes())])
                    .raw(b'0', "f", "", hidden(), none)
                    .file("after", "")
                    .into()
            },
            Reject(&["two sizes"]),
        ),
        case(
            "pax-size-below-header-size",
            "The same the other way round.",
            || Tar::new().pax(&[("size", b"0")]).file("f", hidden()).file("after", "").into(),
            Reject(&["two sizes"]),
        ),
        case(
            "pax-size-of-a-directory",
            "A size in PAX for what has no content.",
            || Tar::new().pax(&[("size", b"1024")]).dir("d").bytes(hidden()).into(),
            Reject(&["size"]),
        ),
        case(
            "pax-size-equal",
            "Both sizes, and they agree.",
            || Tar::new().pax(&[("size", b"7")]).file("f", "content").into(),
            Accept(|tree| tree.holds("f", "content")),
        ),
        case(
            "size-negative",
            "A size below zero, as base 256.",
            || {
                let negative = |header: &mut Header| {
                    header.base256(field::SIZE, -512);
                };
                Tar::new().raw(b'0', "f", "", "", negative).into()
            },
            Reject(&["negative"]),
        ),
        case(
            "size-not-octal",
            "Digits that are none: some readers take those before, some zero.",
            || {
                let bad = |header: &mut Header| {
                    header.text(field::SIZE, b"0000001x000\0");
                };
                Tar::new().raw(b'0', "f", "", hidden(), bad).into()
            },
            Reject(&["not a number"]),
        ),
        case(
            "size-hexadecimal",
            "A prefix that strtol understands.",
            || {
                let bad = |header: &mut Header| {
                    header.text(field::SIZE, b"0x200");
                };
                Tar::new().raw(b'0', "f", "", hidden(), bad).into()
            },
            Reject(&["not a number"]),
        ),
        case(
            "size-with-a-gap",
            "Two numbers in one field.",
            || {
                let bad = |header: &mut Header| {
                    header.text(field::SIZE, b"00 00001000");
                };
                Tar::new().raw(b'0', "f", "", hidden(), bad).into()
            },
            Reject(&["not a number"]),
        ),
        case(
            "size-of-twelve-digits",
            "No room for the NUL at the end: right, and old.",
            || {
                let full = |header: &mut Header| {
                    header.text(field::SIZE, b"000000000007");
                };
                Tar::new().raw(b'0', "f", "", "content", full).into()
            },
            Accept(|tree| tree.holds("f", "content")),
        ),
        case(
            "size-with-spaces",
            "Blanks in front of the digits: right, and old.",
            || {
                let blank = |header: &mut Header| {
                    header.text(field::SIZE, b"          7 ");
                };
                Tar::new().raw(b'0', "f", "", "content", blank).into()
            },
            Accept(|tree| tree.holds("f", "content")),
        ),
        case(
            "archive-as-content",
            "A file that is an archive: its entries are content, whatever they look like.",
            || Tar::new().file("f", hidden()).file("after", "").into(),
            Accept(|tree| {
                tree.holds("f", hidden())?;
                tree.names(".", &["after", "f"])
            }),
        ),
        case(
            "bytes-in-the-padding",
            "Something is written where content is filled up to a block.",
            || {
                let mut bytes = Tar::new().file("f", "x").end();
                bytes[BLOCK + 1..2 * BLOCK].fill(b'!');
                exactly(&bytes)
            },
            Contain(|tree| tree.holds("f", "x")),
        ),
    ]);
    cases
}

fn ends() -> Vec<Case> {
    vec![
        case(
            "entries-after-the-end",
            "An archive behind the end of the archive: readers that go on see it.",
            || {
                let whole = Tar::new().file("a", "seen").end();
                exactly(&[whole, Tar::new().file("hidden", "!").end()].concat())
            },
            Reject(&["after the end"]),
        ),
        case(
            "entries-after-one-zero-block",
            "One block of zeros is the end for some, a gap for others.",
            || Tar::new().file("a", "").bytes([0; BLOCK]).file("hidden", "!").into(),
            Reject(&["after the end"]),
        ),
        case(
            "garbage-after-the-end",
            "A single byte far behind the end.",
            || {
                let mut bytes = Tar::new().file("a", "").end();
                bytes.resize(1 << 20, 0);
                bytes.push(1);
                exactly(&bytes)
            },
            Reject(&["after the end"]),
        ),
        case(
            "zeros-after-the-end",
            "Padding, as tape drives want it.",
            || {
                let mut bytes = Tar::new().file("a", "content").end();
                bytes.resize(10 << 10, 0);
                exactly(&bytes)
            },
            Accept(|tree| tree.holds("a", "content")),
        ),
        case(
            "no-end",
            "The end mark is missing: containerd takes it, so all do.",
            || exactly(&Tar::new().file("a", "content").unfinished()),
            Accept(|tree| tree.holds("a", "content")),
        ),
        case(
            "one-zero-block-at-the-end",
            "Half an end mark.",
            || exactly(&Tar::new().file("a", "content").bytes([0; BLOCK]).unfinished()),
            Accept(|tree| tree.holds("a", "content")),
        ),
        case(
            "no-bytes",
            "An archive without a single byte.",
            || exactly(b""),
            Accept(|tree| tree.names(".", &[])),
        ),
        case(
            "cut-in-a-header",
            "Ends in the middle of a header.",
            || exactly(&Tar::new().file("a", "").file("b", "").unfinished()[..BLOCK + 100]),
            Reject(&["cut off"]),
        ),
        case(
            "cut-in-content",
            "Ends in the middle of a file: it must not be there half.",
            || exactly(&Tar::new().file("a", [b'x'; 4096]).unfinished()[..2048]),
            Reject(&["cut off"]),
        ),
        case(
            "cut-in-the-padding",
            "Ends where content is filled up to a block.",
            || exactly(&Tar::new().file("a", "x").unfinished()[..BLOCK + 10]),
            Reject(&["cut off"]),
        ),
    ]
}

fn headers() -> Vec<Case> {
    vec![
        case(
            "checksum-wrong",
            "A header that is not what its writer wrote.",
            || {
                let wrong = |header: &mut Header| {
                    header.wrong_checksum(1);
                };
                Tar::new().raw(b'0', "f", "", "", wrong).into()
            },
            Reject(&["checksum"]),
        ),
        case(
            "checksum-of-signed-bytes",
            "The sum as old Suns computed it, for a name with bytes above 127: a second reading.",
            || {
                let signed = |header: &mut Header| {
                    header.wrong_checksum(-2 * 256);
                };
                Tar::new().raw(b'0', b"\xe9\xe9", "", "", signed).into()
            },
            Reject(&["checksum"]),
        ),
        case(
            "not-an-archive",
            "Something else altogether.",
            || exactly(&b"#!/bin/sh\nexec /bin/sh\n".repeat(100)),
            Reject(&["checksum"]),
        ),
        case(
            "v7-header-with-a-prefix",
            "Bytes where ustar would have the first part of the name, in a header that is not ustar.",
            || {
                let old = |header: &mut Header| {
                    header.text(field::MAGIC, b"").text(field::PREFIX, b"elsewhere");
                };
                Tar::new().raw(b'0', "f", "", "content", old).into()
            },
            Contain(|tree| {
                tree.holds("f", "content")?;
                tree.lacks("elsewhere")
            }),
        ),
        case(
            "gnu-header-with-times",
            "GNU keeps access times where ustar has the first part of the name.",
            || {
                let gnu = |header: &mut Header| {
                    header.text(field::MAGIC, b"ustar  \0").text(345..357, b"13371337133\0");
                };
                Tar::new().raw(b'0', "f", "", "content", gnu).into()
            },
            Accept(|tree| tree.names(".", &["f"])),
        ),
        case(
            "name-in-two-fields",
            "A long name as ustar splits it.",
            || {
                let split = |header: &mut Header| {
                    header.text(field::PREFIX, b"d/e");
                };
                Tar::new().raw(b'0', "f", "", "content", split).into()
            },
            Accept(|tree| tree.holds("d/e/f", "content")),
        ),
    ]
}

fn extensions() -> Vec<Case> {
    /// A PAX header with the records written as they are.
    fn records(bytes: impl AsRef<[u8]>) -> Image {
        Tar::new().raw(b'x', "pax", "", bytes, |_| {}).file("f", "").into()
    }
    let malformed: [(&'static str, &'static str, &'static [u8]); 8] = [
        ("pax-length-too-long", "A record that is longer than its header.", b"99 path=evil\n"),
        (
            "pax-length-too-short",
            "A record that ends in the middle of its value.",
            b"9 path=evil\n",
        ),
        (
            "pax-length-zero",
            "A record without a length: a reader that does not stop.",
            b"0 path=a\n",
        ),
        ("pax-length-signed", "A length with a sign.", b"+12 path=ev\n"),
        ("pax-without-a-line-end", "A record that does not end.", b"12 path=evilX"),
        ("pax-without-a-value", "A record without an equals sign.", b"9 pathX\n\n"),
        ("pax-without-a-key", "A record without a key.", b"8 =evil\n"),
        ("pax-key-with-nul", "A key that is `path` for a C program.", b"14 path\0x=evil\n"),
    ];
    let mut cases: Vec<Case> = malformed
        .into_iter()
        .map(|(name, attack, bytes)| {
            case(name, attack, move || records(bytes), Reject(&["malformed"]))
        })
        .collect();
    cases.extend([
        case(
            "global-path",
            "A global header that renames all that follows, for the readers that honour it.",
            || Tar::new().global(&[("path", b"evil")]).file("f", "").into(),
            Reject(&["global PAX"]),
        ),
        case(
            "global-size",
            "A global header that resizes all that follows.",
            || Tar::new().global(&[("size", b"0")]).file("f", hidden()).into(),
            Reject(&["global PAX"]),
        ),
        case(
            "global-comment",
            "A global header as git writes it.",
            || Tar::new().global(&[("comment", b"0123abcd")]).file("f", "content").into(),
            Accept(|tree| tree.holds("f", "content")),
        ),
        case(
            "two-pax-headers",
            "Two PAX headers for one entry: the first or the last may count.",
            || Tar::new().pax(&[("path", b"a")]).pax(&[("path", b"b")]).file("f", "").into(),
            Reject(&["two PAX headers"]),
        ),
        case(
            "record-twice",
            "Two paths in one PAX header.",
            || Tar::new().pax(&[("path", b"a"), ("path", b"b")]).file("f", "").into(),
            Reject(&["given twice"]),
        ),
        case(
            "gnu-name-and-pax-path",
            "Two formats, two names.",
            || {
                let tar = Tar::new().raw(b'L', "././@LongLink", "", "gnu\0", |_| {});
                tar.pax(&[("path", b"pax")]).file("f", "").into()
            },
            Reject(&["given twice"]),
        ),
        case(
            "extension-without-an-entry",
            "A header for the next entry, and there is none.",
            || Tar::new().file("f", "").pax(&[("path", b"evil")]).into(),
            Reject(&["describes a next entry"]),
        ),
        case(
            "pax-in-another-character-set",
            "Names in a character set that the reader would have to know.",
            || {
                let records: [(&str, &[u8]); 2] =
                    [("hdrcharset", b"UTF-7"), ("path", b"+AC4ALg-/x")];
                Tar::new().pax(&records).file("f", "").into()
            },
            Reject(&["character set"]),
        ),
        case(
            "pax-binary-names",
            "The character set that means none.",
            || {
                let records: [(&str, &[u8]); 2] = [("hdrcharset", b"BINARY"), ("path", b"\xff")];
                Tar::new().pax(&records).file("f", "content").into()
            },
            Accept(|tree| tree.holds(b"\xff", "content")),
        ),
        case(
            "pax-path-over-header-path",
            "Two names; PAX's counts, as POSIX has it.",
            || Tar::new().long_file("pax", "content").into(),
            Accept(|tree| tree.names(".", &["pax"])),
        ),
        case(
            "pax-unknown-records",
            "Records that nobody knows change nothing.",
            || {
                let records: [(&str, &[u8]); 3] =
                    [("VENDOR.path", b"evil"), ("LIBARCHIVE.creationtime", b"1"), ("atime", b"x")];
                Tar::new().pax(&records).file("f", "content").into()
            },
            Accept(|tree| tree.names(".", &["f"])),
        ),
        case(
            "pax-header-in-pax-header",
            "The name of the PAX header itself leads out; nobody should make a file of it.",
            || {
                let bytes = pax_records(&[("path", b"f")]);
                Tar::new().raw(b'x', "../canary", "", bytes, |_| {}).file("g", "content").into()
            },
            Contain(|tree| tree.holds("f", "content")),
        ),
    ]);
    cases
}

fn gzip_streams() -> Vec<Case> {
    fn layer(blob: Vec<u8>, tar: &[u8], suffix: &str) -> Image {
        Layer::packed(blob, tar, suffix).into()
    }
    fn tar() -> Vec<u8> {
        Tar::new().file("f", [b'x'; 3000]).end()
    }
    vec![
        case(
            "gzip-members",
            "A gzip file of several members is all of them.",
            || {
                let tar = tar();
                let (one, two) = tar.split_at(700);
                layer([gzip(one), gzip(b""), gzip(two)].concat(), &tar, "+gzip")
            },
            Accept(|tree| tree.holds("f", [b'x'; 3000])),
        ),
        case(
            "gzip-garbage-behind",
            "Bytes behind the last member, which some readers ignore.",
            || layer([&gzip(&tar())[..], b"garbage"].concat(), &tar(), "+gzip"),
            Reject(&["layer sha256"]),
        ),
        case(
            "gzip-zeros-behind",
            "Zeros behind the last member, as tapes have them: still not what the digest should cover.",
            || layer([gzip(&tar()), vec![0; 512]].concat(), &tar(), "+gzip"),
            Reject(&["layer sha256"]),
        ),
        case(
            "gzip-cut",
            "A stream that ends early, with digests that fit.",
            || {
                let whole = gzip(&tar());
                layer(whole[..whole.len() - 12].to_vec(), &tar(), "+gzip")
            },
            Reject(&["gzip stream is broken"]),
        ),
        case(
            "gzip-checksum",
            "A stream whose own checksum is wrong, with digests that fit.",
            || {
                let mut blob = gzip(&tar());
                let at = blob.len() - 6;
                blob[at] ^= 1;
                layer(blob, &tar(), "+gzip")
            },
            Reject(&["gzip stream is broken"]),
        ),
        case(
            "gzip-header-fields",
            "A header with a name, a comment and extra bytes that look like a file.",
            || {
                let plain = gzip(&tar());
                let mut blob =
                    b"\x1f\x8b\x08\x1c\0\0\0\0\0\xff\x04\0abcd../../evil\0comment\0".to_vec();
                blob.extend_from_slice(&plain[10..]);
                layer(blob, &tar(), "+gzip")
            },
            Accept(|tree| tree.names(".", &["f"])),
        ),
        case(
            "gzip-called-plain",
            "A gzip file that is called a plain archive: readers that look at the first bytes unpack it.",
            || layer(gzip(&tar()), &tar(), ""),
            Reject(&["layer sha256"]),
        ),
        case(
            "plain-called-gzip",
            "The other way round.",
            || layer(tar(), &tar(), "+gzip"),
            Reject(&["gzip stream is broken"]),
        ),
        case(
            "zstd-called-gzip",
            "One compression under the other's name.",
            || layer(zstd(&tar()), &tar(), "+gzip"),
            Reject(&["gzip stream is broken"]),
        ),
        case(
            "gzip-twice",
            "A gzip file in a gzip file.",
            || layer(gzip(&gzip(&tar())), &tar(), "+gzip"),
            Reject(&["layer sha256"]),
        ),
    ]
}

fn zstd_streams() -> Vec<Case> {
    fn layer(blob: Vec<u8>, tar: &[u8]) -> Image {
        Layer::packed(blob, tar, "+zstd").into()
    }
    fn tar() -> Vec<u8> {
        Tar::new().file("f", [b'x'; 3000]).end()
    }
    vec![
        case(
            "zstd-frames",
            "Several frames, and some to be skipped between them, as zstd:chunked has them.",
            || {
                let tar = tar();
                let (one, two) = tar.split_at(700);
                let frames = [
                    zstd_skippable(b"first"),
                    zstd(one),
                    zstd(b""),
                    zstd_skippable(&hidden()),
                    zstd(two),
                    zstd_skippable(b"a table of contents"),
                ];
                layer(frames.concat(), &tar)
            },
            Accept(|tree| tree.names(".", &["f"])),
        ),
        case(
            "zstd-nothing-but-skipped",
            "Frames to be skipped and nothing else: an empty archive.",
            || layer(zstd_skippable(&hidden()), b""),
            Contain(|tree| tree.names(".", &[])),
        ),
        case(
            "zstd-garbage-behind",
            "Bytes behind the last frame.",
            || layer([&zstd(&tar())[..], b"garbage!"].concat(), &tar()),
            Reject(&["zstd stream is broken"]),
        ),
        case(
            "zstd-cut",
            "A frame that does not end.",
            || layer([zstd_frame(20), zstd_raw_block(&tar(), false)].concat(), &tar()),
            Reject(&["zstd stream is broken"]),
        ),
        case(
            "zstd-reserved-block",
            "A block of a type that is kept for later.",
            || layer([zstd_frame(20), vec![0b111, 0, 0]].concat(), b""),
            Reject(&["zstd stream is broken"]),
        ),
        case(
            "zstd-with-a-dictionary",
            "A frame that needs a dictionary which is nowhere.",
            || {
                let frame =
                    [&0xfd2f_b528_u32.to_le_bytes()[..], &[0b01, 0x50, 7, 1, 0, 0]].concat();
                layer(frame, b"")
            },
            Reject(&["zstd stream is broken"]),
        ),
    ]
}
