//! Devices, pipes, owners, attributes, times, holes.

use anyhow::ensure;
use rustix::fs::FileType;

use crate::case::Class::Special;
use crate::case::Expect::{Accept, Contain, Reject};
use crate::case::{Case, Expect, Hosts};
use crate::image::Image;
use crate::tar::{BLOCK, Header, Tar, field};

fn case(
    name: &'static str,
    attack: &'static str,
    make: impl Fn() -> Image + Send + Sync + 'static,
    expect: Expect,
) -> Case {
    Case::new(Special, name, attack, move |_: &Hosts| make(), expect)
}

pub(super) fn cases() -> Vec<Case> {
    [kinds(), owners(), attributes(), times(), sparse()].into_iter().flatten().collect()
}

/// `cap_net_bind_service` as the kernel keeps it (`struct vfs_cap_data`, version 2, effective).
const CAPABILITY: &[u8; 20] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

fn device(header: &mut Header) {
    header.octal(field::MAJOR, 1).octal(field::MINOR, 1);
}

fn kinds() -> Vec<Case> {
    let mut cases = vec![
        case(
            "character-device",
            "A device node for the machine's memory.",
            || Tar::new().raw(b'3', "mem", "", "", device).into(),
            Reject(&["device"]),
        ),
        case(
            "block-device",
            "A device node for a disk.",
            || Tar::new().raw(b'4', "disk", "", "", device).into(),
            Reject(&["device"]),
        ),
        case(
            "pipe",
            "A pipe: kept, and never opened, for that would wait for ever.",
            || {
                let mode = |header: &mut Header| {
                    header.octal(field::MODE, 0o620).octal(field::UID, 7);
                };
                Tar::new().raw(b'6', "pipe", "", "", mode).into()
            },
            Accept(|tree| {
                tree.is("pipe", FileType::Fifo, 0o620)?;
                tree.owned("pipe", 7, 0)
            }),
        ),
        case(
            "pipe-becomes-a-file",
            "A file takes the place of a pipe: whoever opens that waits for ever.",
            || Tar::new().raw(b'6', "f", "", "", |_| {}).file("f", "content").into(),
            Accept(|tree| tree.holds("f", "content")),
        ),
        case(
            "hard-link-to-a-pipe",
            "A second name for a pipe.",
            || Tar::new().raw(b'6', "f", "", "", |_| {}).hard_link("g", "f").into(),
            Accept(|tree| tree.is("g", FileType::Fifo, 0o644)),
        ),
        case(
            "contiguous-file",
            "A type that means an ordinary file since 1988.",
            || Tar::new().raw(b'7', "f", "", "content", |_| {}).into(),
            Accept(|tree| tree.holds("f", "content")),
        ),
        case(
            "files-of-v7",
            "Types from before there were any: the slash makes a directory.",
            || Tar::new().raw(0, "d/", "", "", |_| {}).raw(0, "d/f", "", "content", |_| {}).into(),
            Accept(|tree| tree.holds("d/f", "content")),
        ),
    ];
    for (name, kind) in [
        ("type-multivolume", b'M'),
        ("type-volume-label", b'V'),
        ("type-dump-directory", b'D'),
        ("type-solaris-extension", b'X'),
        ("type-unassigned", b'8'),
        ("type-beyond-ascii", 0xff),
    ] {
        let attack =
            "A type that some readers take for a file, some for an extension, some for nothing.";
        let make = move || Tar::new().raw(kind, "f", "", "content", |_| {}).into();
        cases.push(case(name, attack, make, Reject(&["unknown tar type"])));
    }
    cases
}

fn owners() -> Vec<Case> {
    fn owner(uid: i128) -> Image {
        let owned = move |header: &mut Header| {
            header.base256(field::UID, uid);
        };
        Tar::new().raw(b'0', "f", "", "", owned).into()
    }
    vec![
        case(
            "setuid-and-setgid",
            "Bits that a change of owner clears: they must come last.",
            || {
                let bits = |header: &mut Header| {
                    header.octal(field::MODE, 0o6755).octal(field::UID, 7);
                };
                Tar::new().raw(b'0', "f", "", "x", bits).into()
            },
            Accept(|tree| {
                tree.is("f", FileType::RegularFile, 0o6755)?;
                tree.owned("f", 7, 0)
            }),
        ),
        case(
            "setgid-directory",
            "A directory that gives its group to new files: the archive's word counts, not that.",
            || {
                let bits = |header: &mut Header| {
                    header.octal(field::MODE, 0o2777).octal(field::GID, 42);
                };
                Tar::new().raw(b'5', "d", "", "", bits).file("d/f", "").dir("d/e").into()
            },
            Accept(|tree| {
                tree.owned("d/f", 0, 0)?;
                tree.is("d/e", FileType::Directory, 0o755)?;
                tree.is("d", FileType::Directory, 0o2777)
            }),
        ),
        case(
            "mode-with-file-type",
            "V7 wrote the whole st_mode; only its permission bits count.",
            || {
                let bits = |header: &mut Header| {
                    header.octal(field::MODE, 0o120_640);
                };
                Tar::new().raw(b'0', "f", "", "", bits).into()
            },
            Accept(|tree| tree.is("f", FileType::RegularFile, 0o640)),
        ),
        case(
            "mode-zero",
            "Nobody may read the directory, but its files still have to come.",
            || {
                let none = |header: &mut Header| {
                    header.octal(field::MODE, 0);
                };
                Tar::new().raw(b'5', "d", "", "", none).raw(b'0', "d/f", "", "x", none).into()
            },
            Accept(|tree| {
                tree.is("d", FileType::Directory, 0)?;
                tree.is("d/f", FileType::RegularFile, 0)
            }),
        ),
        case(
            "mode-for-all",
            "The unpacker's umask must take nothing away.",
            || {
                let all = |header: &mut Header| {
                    header.octal(field::MODE, 0o777);
                };
                Tar::new().raw(b'0', "f", "", "", all).raw(b'5', "d", "", "", all).into()
            },
            Accept(|tree| {
                tree.is("f", FileType::RegularFile, 0o777)?;
                tree.is("d", FileType::Directory, 0o777)
            }),
        ),
        case(
            "owner-largest",
            "The largest owner there is.",
            || owner(0xffff_fffe),
            Accept(|tree| tree.owned("f", 0xffff_fffe, 0)),
        ),
        case(
            "owner-that-means-no-change",
            "An owner that chown takes for \"leave it\": the file stays root's.",
            || owner(0xffff_ffff),
            Reject(&["impossible uid"]),
        ),
        case(
            "owner-that-wraps",
            "An owner that becomes root's when it is cut to 32 bits.",
            || owner(1 << 32),
            Reject(&["impossible uid"]),
        ),
        case("owner-negative", "An owner below root.", || owner(-1), Reject(&["negative"])),
        case(
            "owner-in-pax",
            "Two owners: PAX's counts, as POSIX has it.",
            || Tar::new().pax(&[("uid", b"3000000"), ("gid", b"42")]).file("f", "").into(),
            Accept(|tree| tree.owned("f", 3_000_000, 42)),
        ),
        case(
            "owner-not-a-number",
            "An owner in words.",
            || Tar::new().pax(&[("uid", b"+0x0")]).file("f", "").into(),
            Reject(&["not a number"]),
        ),
    ]
}

fn attributes() -> Vec<Case> {
    fn attribute(name: &str, value: &[u8]) -> Image {
        Tar::new().pax(&[(&format!("SCHILY.xattr.{name}"), value)]).file("f", "x").into()
    }
    vec![
        case(
            "file-capability",
            "A program's capability: it must be kept, and survive the change of owner.",
            || {
                let owner = |header: &mut Header| {
                    header.octal(field::UID, 7);
                };
                let tar = Tar::new().pax(&[("SCHILY.xattr.security.capability", CAPABILITY)]);
                tar.raw(b'0', "f", "", "x", owner).into()
            },
            Accept(|tree| {
                let found = tree.attribute("f", b"security.capability")?;
                ensure!(found.as_deref() == Some(&CAPABILITY[..]), "{found:?}");
                tree.owned("f", 7, 0)
            }),
        ),
        case(
            "file-capability-broken",
            "A capability that the kernel does not take: without it the program would run otherwise.",
            || attribute("security.capability", b"all of them"),
            Reject(&["security.capability"]),
        ),
        case(
            "attribute-with-any-bytes",
            "A value with line ends, NUL and equals signs, where records end with a line.",
            || attribute("user.a", b"1\n2=3\0\n11 path=evil\n"),
            Accept(|tree| {
                let found = tree.attribute("f", b"user.a")?;
                ensure!(found.as_deref() == Some(b"1\n2=3\0\n11 path=evil\n"), "{found:?}");
                Ok(())
            }),
        ),
        case(
            "attributes-sixty-four",
            "As many attributes as an entry may have.",
            || {
                let records: Vec<(String, Vec<u8>)> = (0..64)
                    .map(|i| (format!("SCHILY.xattr.user.{i}"), format!("{i}").into_bytes()))
                    .collect();
                let records: Vec<(&str, &[u8])> =
                    records.iter().map(|(key, value)| (&**key, &**value)).collect();
                Tar::new().pax(&records).file("f", "").into()
            },
            Accept(|tree| {
                for i in 0..64 {
                    let found = tree.attribute("f", format!("user.{i}").as_bytes())?;
                    ensure!(found == Some(format!("{i}").into_bytes()), "{i}: {found:?}");
                }
                Ok(())
            }),
        ),
        case(
            "attribute-name-too-long",
            "A name that the kernel does not take.",
            || attribute(&("user.".to_owned() + &"x".repeat(300)), b"1"),
            Reject(&["extended attribute"]),
        ),
        case(
            "attribute-without-a-name",
            "No name at all.",
            || attribute("", b"1"),
            Reject(&["extended attribute"]),
        ),
        case(
            "attribute-value-too-long",
            "A value of 64 KiB and one byte: the kernel's bound.",
            || attribute("user.a", &[b'1'; (64 << 10) + 1]),
            Reject(&["extended attribute"]),
        ),
        case(
            "attribute-of-another-namespace",
            "An attribute that this kernel has no use for: dropped, as other runtimes do.",
            || attribute("com.apple.quarantine", b"1"),
            Accept(|tree| tree.holds("f", "x")),
        ),
        case(
            "attributes-of-a-link",
            "Attributes of a symbolic link, which must not end up on its target.",
            || {
                let tar = Tar::new().file("f", "");
                tar.pax(&[("SCHILY.xattr.user.a", b"1")]).symlink("l", "f").into()
            },
            Contain(|tree| {
                let found = tree.attribute("f", b"user.a")?;
                ensure!(found.is_none(), "the target has it");
                tree.links_to("l", "f")
            }),
        ),
    ]
}

fn times() -> Vec<Case> {
    fn time(seconds: i128) -> Image {
        let modified = move |header: &mut Header| {
            header.base256(field::MTIME, seconds);
        };
        Tar::new().raw(b'0', "f", "", "there", modified).into()
    }
    vec![
        case(
            "time-with-nanoseconds",
            "PAX times have fractions.",
            || Tar::new().pax(&[("mtime", b"1700000000.123456789")]).file("f", "").into(),
            Accept(|tree| tree.modified("f", 1_700_000_000, 123_456_789)),
        ),
        case(
            "time-before-1970",
            "A negative time with a fraction, which counts backwards.",
            || Tar::new().pax(&[("mtime", b"-1.25")]).file("f", "").into(),
            Accept(|tree| tree.modified("f", -2, 750_000_000)),
        ),
        case(
            "time-farthest",
            "The last second that there will be.",
            || time(i128::from(i64::MAX)),
            Accept(|tree| tree.holds("f", "there")),
        ),
        case(
            "time-before-the-first",
            "The first second that there was.",
            || time(i128::from(i64::MIN)),
            Accept(|tree| tree.holds("f", "there")),
        ),
        case(
            "time-beyond-64-bits",
            "A time that no clock can show.",
            || time(i128::from(i64::MAX) + 1),
            Reject(&["not a number"]),
        ),
        case(
            "time-not-a-number",
            "A time in words.",
            || Tar::new().pax(&[("mtime", b"nan")]).file("f", "").into(),
            Reject(&["not a time"]),
        ),
        case(
            "time-of-a-directory",
            "Files come after their directory and must not change its time.",
            || Tar::new().dir("d").file("d/f", "").dir("d/e").file("d/e/f", "").into(),
            Accept(|tree| {
                tree.modified("d", 1_000_000_000, 0)?;
                tree.modified("d/e", 1_000_000_000, 0)
            }),
        ),
    ]
}

/// Offset and length of the pieces, as GNU's formats write them.
type Map<'a> = &'a [(u64, u64)];

/// GNU's old format: the map is in the header itself.
fn sparse_gnu(map: Map<'_>, real_size: u64, data: &[u8]) -> Image {
    let header = |header: &mut Header| {
        header.text(field::MAGIC, b"ustar  \0");
        // `struct sparse sp[4]`, `isextended`, `realsize` of GNU's header.
        for (i, (offset, len)) in map.iter().take(4).enumerate() {
            header.octal(386 + i * 24..398 + i * 24, *offset);
            header.octal(398 + i * 24..410 + i * 24, *len);
        }
        header.base256(483..495, real_size.into());
    };
    Tar::new().raw(b'S', "f", "", data, header).file("after", "seen").into()
}

/// The PAX format 1.0: the map is at the beginning of the content.
fn sparse_pax(map: Map<'_>, real_size: u64, data: &[u8]) -> Image {
    let mut content = format!("{}\n", map.len());
    for (offset, len) in map {
        content += &format!("{offset}\n{len}\n");
    }
    let mut content = content.into_bytes();
    content.resize(content.len().next_multiple_of(BLOCK), 0);
    content.extend_from_slice(data);
    let size = real_size.to_string();
    let records: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"f"),
        ("GNU.sparse.realsize", size.as_bytes()),
    ];
    Tar::new().pax(&records).file("GNUSparseFile.0/f", content).file("after", "seen").into()
}

/// The PAX format 0.1: the map is in the PAX header.
fn sparse_pax_header(map: Map<'_>, real_size: u64, data: &[u8]) -> Image {
    let numbers: Vec<String> = map.iter().map(|(offset, len)| format!("{offset},{len}")).collect();
    let (size, blocks, map) = (real_size.to_string(), map.len().to_string(), numbers.join(","));
    let records: [(&str, &[u8]); 4] = [
        ("GNU.sparse.size", size.as_bytes()),
        ("GNU.sparse.numblocks", blocks.as_bytes()),
        ("GNU.sparse.name", b"f"),
        ("GNU.sparse.map", map.as_bytes()),
    ];
    Tar::new().pax(&records).file("GNUSparseFile.0/f", data).file("after", "seen").into()
}

/// 4 KiB of zeros, "data", a hole up to 1 MiB.
fn holes() -> Vec<u8> {
    let mut content = vec![0; 1 << 20];
    content[4096..4100].copy_from_slice(b"data");
    content
}

fn sparse() -> Vec<Case> {
    let good: Expect = Accept(|tree| {
        tree.holds("f", holes())?;
        tree.holds("after", "seen")
    });
    vec![
        case(
            "sparse-gnu",
            "A file with holes in GNU's old format.",
            || sparse_gnu(&[(4096, 4), (1 << 20, 0)], 1 << 20, b"data"),
            good,
        ),
        case(
            "sparse-pax-0.1",
            "A file with holes and its map in a PAX header.",
            || sparse_pax_header(&[(4096, 4), (1 << 20, 0)], 1 << 20, b"data"),
            good,
        ),
        case(
            "sparse-pax-1.0",
            "A file with holes and its map in the content.",
            || sparse_pax(&[(4096, 4), (1 << 20, 0)], 1 << 20, b"data"),
            good,
        ),
        case(
            "sparse-overlapping",
            "Pieces that overlap: what is in the file depends on the reader.",
            || sparse_pax(&[(0, 4), (2, 4)], 8, b"aaaabbbb"),
            Reject(&["sparse"]),
        ),
        case(
            "sparse-backwards",
            "Pieces in the wrong order.",
            || sparse_gnu(&[(4096, 4), (0, 4)], 8192, b"aaaabbbb"),
            Reject(&["sparse"]),
        ),
        case(
            "sparse-beyond-its-end",
            "A piece behind the end of the file.",
            || sparse_pax_header(&[(4096, 4)], 100, b"data"),
            Reject(&["sparse"]),
        ),
        case(
            "sparse-overflow",
            "A piece whose end wraps around.",
            || sparse_pax(&[(u64::MAX - 1, 4)], 100, b"data"),
            Reject(&["sparse"]),
        ),
        case(
            "sparse-more-than-there-is",
            "A map that needs more content than the entry has: the next header would be read as data.",
            || sparse_gnu(&[(0, 4096)], 4096, b"data"),
            Reject(&["sparse"]),
        ),
        case(
            "sparse-without-a-map",
            "A PAX header that says sparse and nothing else.",
            || Tar::new().pax(&[("GNU.sparse.major", b"1")]).file("f", "x").into(),
            Reject(&["sparse"]),
        ),
        case(
            "sparse-name-leads-out",
            "The real name is in the PAX header, and checked less often.",
            || {
                let records: [(&str, &[u8]); 4] = [
                    ("GNU.sparse.size", b"4"),
                    ("GNU.sparse.numblocks", b"1"),
                    ("GNU.sparse.name", b"../canary"),
                    ("GNU.sparse.map", b"0,4"),
                ];
                Tar::new().pax(&records).file("harmless", "data").into()
            },
            Reject(&["\"..\""]),
        ),
    ]
}
