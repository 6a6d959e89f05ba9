//! Crafted layers: what they may do, and what they may not. Owners, attributes and whiteouts need
//! root, as in the guest.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use proptest::prelude::*;
use rustix::fs::{Mode, OFlags, lgetxattr, open};

use super::*;
use crate::Limits;

/// A directory with the tree in `root/` and something outside that must not change.
struct World(tempfile::TempDir);

impl World {
    fn new() -> Self {
        let world = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(world.0.path().join("root")).unwrap();
        std::fs::create_dir(world.0.path().join("outside")).unwrap();
        std::fs::write(world.0.path().join("outside/file"), "untouched").unwrap();
        world
    }

    fn unpack(&self, tar: &[u8]) -> Result<Extracted, String> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(self.0.path().join("root"), flags, Mode::empty()).unwrap();
        let budget = crate::budget::Budget::new(&Limits::default()).share();
        let unpacked = extract(&mut Archive::new(tar), root, &budget).map_err(|e| e.to_string());
        self.check_outside();
        unpacked
    }

    fn check_outside(&self) {
        let mut names: Vec<_> = std::fs::read_dir(self.0.path().join("outside"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["file"]);
        let file = self.0.path().join("outside/file");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "untouched");
        let stat = file.metadata().unwrap();
        assert_eq!((stat.nlink(), stat.uid(), stat.permissions().mode() & 0o7777), (1, 0, 0o644));
        assert_eq!(std::fs::read_dir(self.0.path()).unwrap().count(), 2);
    }

    fn at(&self, name: impl AsRef<OsStr>) -> std::path::PathBuf {
        self.0.path().join("root").join(Path::new(&name))
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.at(name)).unwrap_or_else(|e| format!("{name}: {e}"))
    }

    fn is_whiteout(&self, name: &str) -> bool {
        let Ok(stat) = self.at(name).symlink_metadata() else { return false };
        stat.file_type().is_char_device() && stat.rdev() == 0
    }

    fn is_opaque(&self, name: &str) -> bool {
        self.xattr(name, "trusted.overlay.opaque").as_deref() == Some(b"y")
    }

    fn xattr(&self, name: &str, attribute: &str) -> Option<Vec<u8>> {
        let mut value = vec![0; 256];
        let len = lgetxattr(self.at(name), attribute, &mut value).ok()?;
        value.truncate(len);
        Some(value)
    }
}

/// Writes headers as they are told, however wrong: the `tar` crate's builder refuses to.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn raw(
        mut self,
        kind: u8,
        path: &[u8],
        link: &[u8],
        content: &[u8],
        change: impl FnOnce(&mut tar::Header),
    ) -> Self {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..path.len().min(100)].copy_from_slice(&path[..path.len().min(100)]);
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
        header.as_mut_bytes()[156] = kind;
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        change(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, path: &str, content: &str) -> Self {
        self.raw(b'0', path.as_bytes(), b"", content.as_bytes(), |_| {})
    }

    fn dir(self, path: &str) -> Self {
        self.raw(b'5', path.as_bytes(), b"", b"", |header| header.set_mode(0o755))
    }

    fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(b'2', path.as_bytes(), target.as_bytes(), b"", |_| {})
    }

    fn hard_link(self, path: &str, target: &str) -> Self {
        self.raw(b'1', path.as_bytes(), target.as_bytes(), b"", |_| {})
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        self.extension(b'x', records)
    }

    fn extension(self, kind: u8, records: &[(&str, &[u8])]) -> Self {
        let mut content = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut len = rest + 1;
            while rest + len.to_string().len() != len {
                len += 1;
            }
            content.extend_from_slice(format!("{len} {key}=").as_bytes());
            content.extend_from_slice(value);
            content.push(b'\n');
        }
        self.raw(kind, b"pax", b"", &content, |_| {})
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

#[test]
fn metadata_is_kept() {
    let world = World::new();
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let tar = Tar::default()
        .raw(b'5', b"./", b"", b"", |header| header.set_mode(0o711))
        .pax(&[
            ("mtime", b"1700000000.123456789"),
            ("uid", b"3000000"),
            ("SCHILY.xattr.user.a", b"1\n2"),
        ])
        .raw(b'0', b"suid", b"", b"x", |header| header.set_mode(0o6755))
        .pax(&[("SCHILY.xattr.security.capability", capability)])
        .raw(b'0', b"capable", b"", b"x", |header| header.set_uid(7))
        .raw(b'5', b"sticky", b"", b"", |header| {
            header.set_mode(0o1777);
            header.set_gid(42);
        })
        .file("sticky/child", "later")
        .raw(b'6', b"pipe", b"", b"", |header| header.set_mode(0o620))
        .raw(b'2', b"link", b"suid", b"", |header| header.set_uid(9))
        .hard_link("hard", "suid")
        .hard_link("hard-to-link", "link")
        .end();
    world.unpack(&tar).unwrap();
    let stat = |name: &str| world.at(name).symlink_metadata().unwrap();
    assert_eq!(stat(".").mode() & 0o7777, 0o711);
    assert_eq!((stat("suid").mode() & 0o7777, stat("suid").uid()), (0o6755, 3_000_000));
    assert_eq!((stat("suid").mtime(), stat("suid").mtime_nsec()), (1_700_000_000, 123_456_789));
    assert_eq!(world.xattr("suid", "user.a").unwrap(), b"1\n2");
    assert_eq!(world.xattr("capable", "security.capability").unwrap(), capability);
    assert_eq!((stat("sticky").mode() & 0o7777, stat("sticky").gid()), (0o1777, 42));
    assert_eq!(stat("sticky").mtime(), 1_000_000_000, "in spite of the child");
    assert_eq!(stat("sticky/child").gid(), 0);
    assert!(stat("pipe").file_type().is_fifo() && stat("pipe").mode() & 0o777 == 0o620);
    assert_eq!((stat("link").uid(), stat("link").mtime()), (9, 1_000_000_000));
    assert_eq!(stat("hard").ino(), stat("suid").ino());
    assert_eq!(stat("hard-to-link").ino(), stat("link").ino());
}

#[test]
fn long_and_odd_names_are_kept() {
    let world = World::new();
    let long = "d/".repeat(60) + "name";
    let tar = Tar::default()
        .raw(b'L', b"././@LongLink", b"", format!("{long}\0").as_bytes(), |_| {})
        .file("ignored", "gnu")
        .pax(&[("path", format!("{long}2").as_bytes())])
        .file("ignored", "pax")
        .raw(b'0', b"caf\xe9\xff", b"", b"latin", |_| {})
        .raw(b'0', b"/absolute//./x", b"", b"inside", |_| {})
        .raw(0, b"v7", b"", b"old", |_| {})
        .raw(0, b"v7-dir/", b"", b"", |_| {})
        .extension(b'g', &[("comment", b"0123abcd")])
        .file("new\nline", "x")
        .end();
    world.unpack(&tar).unwrap();
    assert_eq!((world.read(&long), world.read(&format!("{long}2"))), ("gnu".into(), "pax".into()));
    assert_eq!(std::fs::read(world.at(OsStr::from_bytes(b"caf\xe9\xff"))).unwrap(), b"latin");
    assert_eq!(world.read("absolute/x"), "inside");
    assert!(world.at("v7-dir").is_dir() && world.read("v7") == "old");
}

#[test]
fn later_entries_replace_earlier_ones() {
    let world = World::new();
    let tar = Tar::default()
        .file("a", "1")
        .file("a", "2")
        .dir("d")
        .file("d/x", "")
        .file("d", "now a file")
        .symlink("l", "d")
        .file("l", "not through the link")
        .dir("kept")
        .file("kept/x", "stays")
        .dir("kept")
        .symlink("m", "kept")
        .dir("m")
        .file("m/y", "")
        .end();
    world.unpack(&tar).unwrap();
    assert_eq!((world.read("a"), world.read("d")), ("2".into(), "now a file".into()));
    assert_eq!(
        (world.read("l"), world.read("kept/x")),
        ("not through the link".into(), "stays".into())
    );
    assert!(!world.at("kept/y").exists() && world.at("m/y").exists());
}

#[test]
fn links_do_not_lead_out() {
    let up = "../../../../../../../../";
    for (what, tar) in [
        ("absolute link", Tar::default().symlink("l", "/outside").file("l/file", "!")),
        ("relative link", Tar::default().symlink("l", "../outside").file("l/file", "!")),
        ("long way up", Tar::default().symlink("l", &format!("{up}tmp")).file("l/x", "!")),
        (
            "link of links",
            Tar::default().symlink("a", "..").symlink("a/b", "..").file("a/b/outside/file", "!"),
        ),
        (
            "replaced between",
            Tar::default().dir("d").file("d/x", "").symlink("d", "../outside").file("d/file", "!"),
        ),
        ("final link", Tar::default().symlink("l", "../outside/file").file("l", "!")),
        (
            "final link, directory",
            Tar::default().symlink("l", "../outside").dir("l").file("l/new", "!"),
        ),
        (
            "hard link to link",
            Tar::default().symlink("l", "../outside/file").hard_link("h", "l").raw(
                b'0',
                b"h",
                b"",
                b"!",
                |_| {},
            ),
        ),
        (
            "chown by hard link",
            Tar::default().symlink("l", "../outside/file").raw(b'1', b"h", b"l", b"", |header| {
                header.set_uid(7);
                header.set_mode(0o4777);
            }),
        ),
        ("proc link", Tar::default().symlink("l", "/proc/self/root").file("l/x", "!")),
        ("cwd link", Tar::default().symlink("l", "/proc/self/cwd/..").file("l/x", "!")),
        (
            "pipe by link",
            Tar::default().symlink("l", "../outside").raw(b'6', b"l/p", b"", b"", |_| {}),
        ),
        ("whiteout by link", Tar::default().symlink("l", "../outside").file("l/.wh.file", "")),
        ("opaque by link", Tar::default().symlink("l", "../outside").file("l/.wh..wh..opq", "")),
        (
            "hard link through link",
            Tar::default().symlink("l", "../outside").hard_link("h", "l/file"),
        ),
    ] {
        let world = World::new();
        let _ = world.unpack(&tar.end());
        world.check_outside();
        assert!(!world.at("h").symlink_metadata().is_ok_and(|stat| stat.nlink() > 2), "{what}");
    }
}

#[test]
fn hard_links_to_other_layers_are_noted() {
    let world = World::new();
    let tar = Tar::default().file("a", "old").hard_link("a", "below/x").hard_link("b", "b");
    let unpacked = world.unpack(&tar.end()).unwrap();
    let link = |path: &str, target: &str| Link { path: path.into(), target: target.into() };
    assert_eq!(unpacked.links, [link("a", "below/x"), link("b", "b")]);
    assert!(world.at("a").symlink_metadata().is_err(), "the later entry counts");
}

#[test]
fn what_no_layer_may_do_is_refused_by_name() {
    let long = "x".repeat(300);
    let deep = "d/".repeat(2100) + "x";
    for (tar, says) in [
        (Tar::default().file("../x", ""), "\"..\""),
        (Tar::default().file("a/../../x", ""), "\"..\""),
        (Tar::default().hard_link("a", "../outside/file"), "\"..\""),
        (Tar::default().file("a", "").hard_link("a", "a"), "does not have"),
        (Tar::default().dir("d").hard_link("a", "d"), "hard link to a directory"),
        (Tar::default().file(".wh.a", "").hard_link("b", "a"), "does not have"),
        (Tar::default().symlink("./", "/etc"), "root itself"),
        (Tar::default().file("/", ""), "like a directory's"),
        (Tar::default().symlink("a", ""), "link to nothing"),
        (Tar::default().symlink("a", "b").symlink("b", "a").file("a/x", ""), "loop"),
        (Tar::default().symlink("a", "gone").file("a/x", ""), "dangling"),
        (Tar::default().file("a", "").file("a/x", ""), "not a directory"),
        (Tar::default().raw(b'3', b"null", b"", b"", |_| {}), "device node"),
        (Tar::default().raw(b'4', b"sda", b"", b"", |_| {}), "device node"),
        (
            Tar::default().raw(b'3', b"native-whiteout", b"", b"", |header| {
                header.set_device_major(0).unwrap();
                header.set_device_minor(0).unwrap();
            }),
            "device node",
        ),
        (Tar::default().raw(b'S', b"s", b"", b"", |_| {}), "sparse"),
        (Tar::default().raw(b'M', b"m", b"", b"", |_| {}), "unknown tar type"),
        (Tar::default().pax(&[("GNU.sparse.map", b"0,1")]).file("a", ""), "sparse"),
        (
            Tar::default().pax(&[("SCHILY.xattr.trusted.overlay.redirect", b"/etc")]).dir("a"),
            "trusted.overlay.redirect",
        ),
        (
            Tar::default().pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y")]).dir("a"),
            "trusted.overlay.opaque",
        ),
        (Tar::default().pax(&[("path", b"a\0b")]).file("a", ""), "NUL"),
        (Tar::default().pax(&[("path", long.as_bytes())]).file("a", ""), "longer than 255"),
        (Tar::default().pax(&[("path", deep.as_bytes())]).file("a", ""), "longer than 4096"),
        (Tar::default().pax(&[("path", &deep.as_bytes()[..600])]).dir("a"), "256 directories"),
        (Tar::default().pax(&[("size", b"2")]).file("a", "1"), "two sizes"),
        (Tar::default().pax(&[("size", b"0")]).file("a", "1"), "two sizes"),
        (Tar::default().pax(&[("size", b"-1")]).file("a", "1"), "not a number"),
        (Tar::default().pax(&[("size", b"1"), ("size", b"2")]).file("a", "1"), "twice"),
        (Tar::default().pax(&[("uid", b"4294967295")]).file("a", ""), "impossible uid"),
        (Tar::default().pax(&[("gid", b"99999999999")]).file("a", ""), "impossible gid"),
        (Tar::default().pax(&[("mtime", b"soon")]).file("a", ""), "mtime"),
        (Tar::default().pax(&[]).pax(&[]).file("a", ""), "two PAX"),
        (Tar::default().pax(&[("a", b"b")]), "describes a next entry"),
        (Tar::default().extension(b'g', &[("size", b"5")]).file("a", ""), "global PAX"),
        (Tar::default().extension(b'g', &[("path", b"x")]).file("a", ""), "global PAX"),
        (Tar::default().raw(b'x', b"p", b"", b"99 a=b\n", |_| {}).file("a", ""), "malformed"),
        (Tar::default().raw(b'L', b"l", b"", b"a\0b", |_| {}).file("a", ""), "NUL"),
        (Tar::default().raw(b'2', b"l", b"x", b"content", |_| {}), "not a file but has a size"),
        (
            Tar::default().file("x", "").raw(b'1', b"l", b"x", b"content", |_| {}),
            "not a file but has a size",
        ),
        (Tar::default().raw(b'5', b"d", b"", b"content", |_| {}), "not a file but has a size"),
        (
            Tar::default()
                .raw(b'0', b"a", b"", b"", |header| header.as_mut_bytes()[124..136].fill(0xff)),
            "negative",
        ),
        (
            Tar::default().raw(b'0', b"a", b"", b"", |header| {
                header.as_mut_bytes()[124..128].copy_from_slice(b"12x4");
            }),
            "not a number",
        ),
        (Tar::default().file("dir/", "x"), "like a directory's"),
        (Tar::default().file(".wh..", ""), "not a whiteout"),
        (Tar::default().file(".wh...", ""), "not a whiteout"),
        (Tar::default().file(".wh.", ""), "not a whiteout"),
        (Tar::default().file(".wh..wh.plnk", ""), "not a whiteout"),
        (Tar::default().file(".wh.a/b", ""), "beneath a whiteout"),
    ] {
        let world = World::new();
        let error = world.unpack(&tar.end()).expect_err(says);
        assert!(error.contains(says), "expected {says:?}, got {error:?}");
    }
}

#[test]
fn archives_that_end_in_two_ways_are_refused() {
    let hidden = Tar::default().file("hidden", "x").0;
    let good = Tar::default().file("a", "x").end();
    let world = World::new();
    let error = world.unpack(&[&good[..], &hidden].concat()).unwrap_err();
    assert!(error.contains("after the end"), "{error}");
    world.unpack(&[&good[..], &[0; 8192]].concat()).expect("padding is no content");
    let mut broken = good.clone();
    broken[0] ^= 1;
    assert!(world.unpack(&broken).unwrap_err().contains("checksum"));
    assert!(world.unpack(&good[..600]).unwrap_err().contains("cut off"));
    let bomb = Tar::default().raw(b'x', b"p", b"", &vec![b'a'; (1 << 20) + 1], |_| {});
    assert!(world.unpack(&bomb.file("a", "").end()).unwrap_err().contains("extension header"));
}

#[test]
fn whiteouts_speak_of_lower_layers_only() {
    let world = World::new();
    let tar = Tar::default()
        .file(".wh.gone", "")
        .file(".wh.before", "")
        .file("before", "new")
        .file("after", "new")
        .file(".wh.after", "")
        .file(".wh.dir-before", "")
        .dir("dir-before")
        .file("dir-before/x", "")
        .dir("dir-after")
        .file("dir-after/x", "")
        .file(".wh.dir-after", "")
        .file(".wh.implied", "")
        .file("implied/x", "")
        .file("opaque/x", "")
        .file("opaque/.wh..wh..opq", "")
        .symlink("link", "opaque")
        .file(".wh.link", "")
        .file(".wh.gone", "")
        .end();
    let extracted = world.unpack(&tar).unwrap();
    assert!(world.is_whiteout("gone"));
    assert_eq!((world.read("before"), world.read("after")), ("new".into(), "new".into()));
    for directory in ["dir-before", "dir-after", "implied", "opaque"] {
        assert!(world.is_opaque(directory), "{directory}");
        assert!(world.at(directory).join("x").exists());
    }
    assert!(world.at("link").is_symlink());
    assert!(!extracted.opaque_root);
    assert_eq!(extracted.implied, [b"".to_vec(), b"opaque".to_vec()]);

    let world = World::new();
    assert!(world.unpack(&Tar::default().file(".wh..wh..opq", "").end()).unwrap().opaque_root);
}

#[test]
fn a_tree_deeper_than_any_path_can_be_replaced() {
    let world = World::new();
    let deep = "d/".repeat(250);
    let mut tar = Tar::default().dir("top");
    for i in 0..10 {
        tar = tar
            .pax(&[(
                "path",
                format!("{}{deep}x", if i == 0 { "top/".into() } else { format!("l{i}/") })
                    .as_bytes(),
            )])
            .file("x", "");
        let through = if i == 0 { format!("top/{deep}") } else { format!("l{i}/{deep}") };
        tar = tar.pax(&[("linkpath", through.as_bytes())]).symlink(&format!("l{}", i + 1), "");
    }
    world.unpack(&tar.file("top", "now a file").end()).unwrap();
    assert_eq!(world.read("top"), "now a file");
}

#[test]
fn entries_are_counted() {
    let world = World::new();
    let root = open(world.at(""), OFlags::DIRECTORY, Mode::empty()).unwrap();
    let budget = crate::budget::Budget::new(&Limits { entries: 2, ..Limits::default() }).share();
    let tar = Tar::default().file("a", "").file("b", "").file("c", "").end();
    let error = extract(&mut Archive::new(&tar[..]), root, &budget).unwrap_err();
    assert!(error.to_string().contains("limit of 2 files"), "{error}");
    // What is made without an entry counts, too.
    let world = World::new();
    let root = open(world.at(""), OFlags::DIRECTORY, Mode::empty()).unwrap();
    let budget = crate::budget::Budget::new(&Limits { entries: 2, ..Limits::default() }).share();
    let tar = Tar::default().file("a/b/c", "").end();
    let error = extract(&mut Archive::new(&tar[..]), root, &budget).unwrap_err();
    assert!(error.to_string().contains("limit of 2 files"), "{error}");
}

#[test]
fn attributes_and_names_are_bounded() {
    let value = vec![b'v'; 60_000];
    let (name, same) = ("SCHILY.xattr.user.a", "SCHILY.xattr.user.b");
    let large = Tar::default().pax(&[(name, &value), (same, &value)]).file("a", "");
    let many: Vec<String> = (0..65).map(|i| format!("SCHILY.xattr.user.a{i}")).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|name| (&**name, &b"v"[..])).collect();
    for tar in [large, Tar::default().pax(&many).file("a", "")] {
        let error = World::new().unpack(&tar.end()).unwrap_err();
        assert!(error.contains("64 extended attributes"), "{error}");
    }
    let names = (0..10_000).fold(Tar::default(), |tar, i| {
        // They differ at the begin, so nothing of one helps with the next.
        let path =
            format!("{i}/{}", "n".repeat(200) + &("/".to_owned() + &"n".repeat(200)).repeat(18));
        tar.pax(&[("path", path.as_bytes())]).dir("x")
    });
    let error = World::new().unpack(&names.end()).unwrap_err();
    assert!(error.contains("bytes of directory names"), "{error}");
}

/// Names that meet each other, and lead out if anything lets them.
fn name() -> impl Strategy<Value = String> {
    prop::collection::vec(
        prop::sample::select(vec!["a", "b", "c", "..", ".", "", ".wh.a", ".wh.b", ".wh..wh..opq"]),
        1..4,
    )
    .prop_map(|parts| parts.join("/"))
}

fn target() -> impl Strategy<Value = String> {
    let way =
        prop::sample::select(vec!["a", "b", "c", "..", "../outside", "/outside", "file", "/", "."]);
    prop::collection::vec(way, 1..4).prop_map(|parts| parts.join("/"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn no_sequence_of_entries_escapes(
        entries in prop::collection::vec((0..5_u8, name(), target(), 0..0o10000_u32), 1..16)
    ) {
        // One refused entry ends a layer, so each is a layer first; those that pass are one together.
        let (world, together) = (World::new(), World::new());
        let mut passed = Tar::default();
        for (kind, path, target, mode) in entries {
            let kind = [b'0', b'5', b'2', b'1', b'6'][usize::from(kind)];
            let (link, content) = match kind {
                b'1' | b'2' => (target.as_bytes(), &b""[..]),
                b'0' => (&b""[..], &b"!"[..]),
                _ => (&b""[..], &b""[..]),
            };
            let add = |tar: Tar| {
                tar.raw(kind, path.as_bytes(), link, content, |header| {
                    header.set_mode(mode);
                    header.set_uid(mode.into());
                })
            };
            if world.unpack(&add(Tar::default()).end()).is_ok() {
                passed = add(passed);
            }
        }
        let _ = together.unpack(&passed.end());
    }
}
