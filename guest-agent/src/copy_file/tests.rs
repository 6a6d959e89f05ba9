use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;

struct Copies {
    directory: tempfile::TempDir,
    root: CopyRoot,
}

fn copies() -> Copies {
    let directory = tempfile::tempdir().unwrap();
    let root = CopyRoot::create(&directory.path().join("root")).unwrap();
    Copies { directory, root }
}

impl Copies {
    fn file(&self, name: &str, data: &[u8]) -> CopyFileRequest {
        CopyFileRequest {
            path: self.root.path.join(name).to_str().unwrap().into(),
            file_size: i64::try_from(data.len()).unwrap(),
            file_mode: 0o100_640,
            dir_mode: 0o755,
            uid: i32::try_from(rustix::process::getuid().as_raw()).unwrap(),
            gid: i32::try_from(rustix::process::getgid().as_raw()).unwrap(),
            data: data.to_vec(),
            ..Default::default()
        }
    }

    fn refused(&mut self, request: &CopyFileRequest) -> String {
        self.root.copy(request).unwrap_err().to_string()
    }
}

#[test]
fn a_file_appears_when_it_is_complete() {
    let mut copies = copies();
    let mut request = copies.file("a/b/hosts", b"hello");
    request.data = b"hel".to_vec();
    copies.root.copy(&request).unwrap();
    let path = PathBuf::from(&request.path);
    assert!(!path.exists());
    (request.data, request.offset) = (b"lo".to_vec(), 3);
    copies.root.copy(&request).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"hello");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
    copies.root.open(&path).unwrap().unwrap();
}

#[test]
fn a_later_copy_replaces_an_earlier_one_whole() {
    let mut copies = copies();
    copies.root.copy(&copies.file("hosts", b"first, longer")).unwrap();
    let inode = fs::metadata(copies.root.path.join("hosts")).unwrap().ino();
    copies.root.copy(&copies.file("hosts", b"second")).unwrap();
    let path = copies.root.path.join("hosts");
    assert_eq!(fs::read(&path).unwrap(), b"second");
    assert_ne!(fs::metadata(&path).unwrap().ino(), inode);
    let empty = copies.file("empty", b"");
    copies.root.copy(&empty).unwrap();
    assert_eq!(fs::metadata(empty.path).unwrap().len(), 0);
}

#[test]
fn directories_and_links_are_made() {
    let mut copies = copies();
    let mut directory = copies.file("secret", b"");
    directory.file_mode = 0o040_750;
    copies.root.copy(&directory).unwrap();
    copies.root.copy(&directory).unwrap();
    let mut link = copies.file("secret/..data", b"..2026/key");
    link.file_mode = 0o120_777;
    copies.root.copy(&link).unwrap();
    copies.root.copy(&link).unwrap();
    assert_eq!(fs::read_link(link.path).unwrap(), Path::new("..2026/key"));
}

#[test]
fn no_path_leaves_the_root() {
    let mut copies = copies();
    let outside = copies.directory.path().join("outside");
    for path in ["/etc/passwd".to_owned(), outside.to_str().unwrap().to_owned()] {
        let mut request = copies.file("x", b"x");
        request.path = path;
        assert!(copies.refused(&request).contains("not beneath"));
    }
    for name in ["../outside", "a/../../outside", "", ".", "a/./../../outside"] {
        let request = copies.file(name, b"x");
        assert!(copies.refused(&request).contains("path:"), "{name}");
    }
    let deep = copies.file(&"a/".repeat(100), b"x");
    assert!(copies.refused(&deep).contains("deeper"));
    assert!(!outside.exists());
}

#[test]
fn no_symbolic_link_is_followed() {
    let mut copies = copies();
    let outside = copies.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), "untouched").unwrap();
    let root = copies.root.path.clone();
    // As a parent, by its absolute or relative path, and in the place of the file.
    symlink(&outside, root.join("absolute")).unwrap();
    symlink("../outside", root.join("relative")).unwrap();
    symlink(outside.join("victim"), root.join("victim")).unwrap();
    symlink(outside.join("victim"), root.join(format!("staged{STAGING}"))).unwrap();
    for name in ["absolute/victim", "relative/victim", "absolute/new"] {
        let request = copies.file(name, b"attack");
        copies.refused(&request);
    }
    copies.root.copy(&copies.file("victim", b"attack")).unwrap();
    copies.root.copy(&copies.file("staged", b"attack")).unwrap();
    let mut directory = copies.file("relative", b"");
    directory.file_mode = 0o040_777;
    copies.refused(&directory);
    assert_eq!(fs::read(outside.join("victim")).unwrap(), b"untouched");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert!(copies.root.open(&root.join("absolute/victim")).unwrap().is_err());
    assert!(copies.root.open(&outside).is_none());
    assert!(copies.root.open(&root).unwrap().is_err());
}

#[test]
fn sizes_offsets_and_kinds_are_checked() {
    let mut copies = copies();
    let change = |copies: &mut Copies, change: fn(&mut CopyFileRequest)| {
        let mut request = copies.file("x", b"hello");
        change(&mut request);
        copies.refused(&request)
    };
    assert!(change(&mut copies, |r| r.file_size = -1).contains("file_size"));
    assert!(change(&mut copies, |r| r.file_size = 1 << 40).contains("file_size"));
    assert!(change(&mut copies, |r| r.file_size = 3).contains("data"));
    assert!(change(&mut copies, |r| r.offset = -3).contains("offset"));
    assert!(change(&mut copies, |r| r.file_mode = 0o020_666).contains("file_mode"));
    assert!(change(&mut copies, |r| r.file_mode = 0o104_755).contains("file_mode"));
    let mut second = copies.file("x", b"hello");
    (second.offset, second.data) = (2, b"llo".to_vec());
    assert!(copies.refused(&second).contains("offset"));
    let mut named = copies.file("x", b"");
    named.path.push_str(STAGING);
    assert!(copies.refused(&named).contains(STAGING));
}

impl Copies {
    fn at(&self, name: &str) -> PathBuf {
        self.root.path.join(name)
    }

    fn directory(&self, name: &str) -> CopyFileRequest {
        CopyFileRequest { file_mode: 0o040_755, ..self.file(name, b"") }
    }

    fn link(&self, name: &str, target: &str) -> CopyFileRequest {
        CopyFileRequest { file_mode: 0o120_777, ..self.file(name, target.as_bytes()) }
    }

    fn take(&mut self, requests: &[CopyFileRequest]) {
        for request in requests {
            self.root.copy(request).unwrap();
        }
    }

    /// A volume as the kubelet lays it out, which a container has been given.
    fn given_volume(&mut self, name: &str) {
        self.take(&[
            self.directory(name),
            self.link(&format!("{name}/..data"), "..1"),
            self.directory(&format!("{name}/..1")),
            self.file(&format!("{name}/..1/key"), b"old"),
            self.file(&format!("{name}/..1/gone"), b"old"),
            self.link(&format!("{name}/key"), "..data/key"),
            self.link(&format!("{name}/gone"), "..data/gone"),
        ]);
        self.root.open(&self.at(name)).unwrap().unwrap();
    }
}

const VOLUME: &str = "c-0123456789abcdef-config";

#[test]
fn a_volume_changes_all_at_once_and_what_is_old_goes() {
    let mut copies = copies();
    copies.given_volume(VOLUME);
    let entries = copies.root.entries.values().sum::<usize>();
    let path = |name: &str| format!("{VOLUME}/{name}");
    for generation in 2..5 {
        let new = format!("..{generation}");
        copies.take(&[
            copies.directory(&path(&new)),
            copies.file(&path(&format!("{new}/key")), b"new"),
            copies.file(&path(&format!("{new}/more")), b"new"),
            copies.link(&path("more"), "..data/more"),
        ]);
        let old = if generation == 2 { "old" } else { "new" };
        assert_eq!(fs::read_to_string(copies.at(&path("key"))).unwrap(), old);
        copies.take(&[copies.link(&path("..data"), &new)]);
        assert_eq!(fs::read_to_string(copies.at(&path("key"))).unwrap(), "new");
        assert_eq!(fs::read_to_string(copies.at(&path("more"))).unwrap(), "new");
    }
    let mut left: Vec<_> =
        fs::read_dir(copies.at(VOLUME)).unwrap().collect::<Result<_, _>>().unwrap();
    left.sort_by_key(fs::DirEntry::file_name);
    let left: Vec<_> = left.iter().map(fs::DirEntry::file_name).collect();
    assert_eq!(left, ["..4", "..data", "key", "more"]);
    // As many as at first: one file came, one went. The link was made anew each time.
    assert!(copies.root.entries.values().sum::<usize>() <= entries + 2);
}

#[test]
fn what_a_container_has_changes_in_no_other_way() {
    let mut copies = copies();
    copies.given_volume(VOLUME);
    copies.take(&[copies.file("c-0123456789abcdef-hosts", b"x")]);
    copies.root.open(&copies.at("c-0123456789abcdef-hosts")).unwrap().unwrap();
    let path = |name: &str| format!("{VOLUME}/{name}");
    for request in [
        copies.file("c-0123456789abcdef-hosts", b"y"),
        copies.file(&path("..1/key"), b"y"),
        copies.file(&path("..1/new"), b"y"),
        copies.file(&path("..2"), b"y"),
        copies.directory(&path("..1")),
        copies.directory(VOLUME),
        copies.file(&path("key"), b"y"),
        copies.file(&path("..data/key"), b"y"),
        copies.file(&path("..data"), b"y"),
        copies.directory(&path("..data")),
        copies.file(&path("plain/key"), b"y"),
        copies.link(&path("key"), "/etc/passwd"),
        copies.link(&path("new"), "..data/other"),
        copies.link(&path("..2"), "..1"),
        copies.link(&path("..2/key"), "..data/key"),
        copies.link(&path("..data"), "..absent"),
        copies.link(&path("..data"), "key"),
        copies.link(&path("..data"), "/etc"),
        copies.link(&path("..data"), "..1/../../x"),
    ] {
        let refused = copies.refused(&request);
        assert!(refused.contains("a container has it already"), "{}: {refused}", request.path);
    }
    assert_eq!(fs::read(copies.at(&path("key"))).unwrap(), b"old");
    // Those that hold sealed secrets stay.
    copies.root.holds_sealed(&copies.at(VOLUME));
    let new = copies.directory(&path("..2"));
    assert!(copies.refused(&new).contains("unsealed"));
}

#[test]
fn a_volume_whose_link_leads_astray_does_not_change() {
    for (number, target) in
        ["./..1", "..1/", "..1/.", "..5", "..1/sub", "..6", "sub"].iter().enumerate()
    {
        let mut copies = copies();
        let volume = format!("c-0123456789abcde{number}-config");
        let path = |name: &str| format!("{volume}/{name}");
        copies.take(&[
            copies.link(&path("..data"), target),
            copies.file(&path("..1/key"), b"old"),
            copies.file(&path("..1/sub/key"), b"old"),
            copies.file(&path("sub/key"), b"old"),
        ]);
        symlink("..1", copies.at(&path("..5"))).unwrap();
        copies.root.open(&copies.at(&volume)).unwrap().unwrap();
        for request in [
            copies.file(&path("..1/key"), b"new"),
            copies.file(&path("..1/sub/key"), b"new"),
            copies.file(&path("..5/key"), b"new"),
            copies.directory(&path("..2")),
            copies.link(&path("..data"), "..1"),
        ] {
            let refused = copies.refused(&request);
            assert!(refused.contains("does not lead"), "{target}: {}: {refused}", request.path);
        }
    }
}

#[test]
fn nothing_but_the_link_data_leads_to_new_files() {
    let mut copies = copies();
    let path = |name: &str| format!("{VOLUME}/{name}");
    copies.take(&[copies.link(&path("..data"), "..1"), copies.file(&path("..2/key"), b"x")]);
    for (name, target) in [
        ("key", "..2/key"),
        ("key", "./..2"),
        ("key", "/etc/config/..2/key"),
        ("..1/key", "../..2/key"),
        ("..1/..data", "../..2"),
        ("sub/..data", "../..2"),
    ] {
        let refused = copies.refused(&copies.link(&path(name), target));
        assert!(refused.contains("only the link ..data"), "{name}: {target}: {refused}");
        assert!(fs::symlink_metadata(copies.at(&path(name))).is_err(), "{name}");
    }
    copies.take(&[
        copies.link(&path("key"), "..data/key"),
        copies.link(&path("up"), "../x/..y.nacre-partial"),
        copies.link(&path("sub/..data"), "..1"),
    ]);
    for name in ["..2", "..2/key"] {
        assert!(copies.root.open(&copies.at(&path(name))).unwrap().is_err(), "{name}");
    }
}

#[test]
fn entries_are_counted_once_and_before_they_are_made() {
    let mut copies = copies();
    for _ in 0..3 {
        copies.take(&[
            copies.file("v/a/b/file", b"x"),
            copies.directory("v/a/b"),
            copies.link("v/link", "a"),
        ]);
    }
    // v, a, b, file, link
    assert_eq!(copies.root.entries.values().sum::<usize>(), 5);
    copies.root.entries.insert(("others".into(), String::new()), MOST_ENTRIES - 6);
    let deep = copies.file("w/x/y/file", b"x");
    assert!(copies.refused(&deep).contains("the most"));
    assert!(copies.at("w").is_dir() && !copies.at("w/x").exists());
    copies.take(&[copies.file("v/a/b/file", b"again")]);
}

#[test]
fn what_waits_for_a_reader_does_not_stop_the_agent() {
    let mut copies = copies();
    copies.take(&[copies.directory("v")]);
    let fifo = copies.at(&format!("v/file{STAGING}"));
    rustix::fs::mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
    let mut request = copies.file("v/file", b"hello");
    (request.offset, request.data) = (2, b"llo".to_vec());
    copies.refused(&request);
    // Somebody who holds the other end makes it no file.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let _reader = rustix::fs::open(&fifo, flags, Mode::empty()).unwrap();
    copies.refused(&request);
}

#[test]
fn the_copies_of_a_container_go_with_it() {
    let mut copies = copies();
    copies.given_volume("c-0123456789abcdef-config");
    copies.given_volume("c-0123456789abcdef-0123456789abcdef-x");
    copies.given_volume("cc-0123456789abcdef-config");
    copies.given_volume("c-d-0123456789abcdef-config");
    copies.root.forget("c").unwrap();
    let mut left: Vec<_> =
        fs::read_dir(&copies.root.path).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["c-d-0123456789abcdef-config", "cc-0123456789abcdef-config"]);
    assert_eq!(copies.root.given.len(), 2);
    copies.root.forget("c").unwrap();
}

/// The files beneath a directory, without those that are not complete.
fn tree(directory: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap();
        assert!(!kind.is_symlink(), "{}", path.display());
        if kind.is_dir() {
            found.extend(tree(&path));
        }
        let content = (!kind.is_dir()).then(|| fs::read(&path).unwrap());
        found.insert(path, content);
    }
    found
}

#[test]
fn whatever_is_asked_a_container_sees_whole_states_only_and_nothing_outside() {
    let mut copies = copies();
    let outside = copies.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), "untouched").unwrap();
    copies.given_volume(VOLUME);
    let names =
        ["..1", "..2", "..3", "..data", "key", "sub", "..", ".", "gone", "..data.nacre-partial"];
    let targets = [
        "..1",
        "..2",
        "..3",
        "..data",
        "..data/key",
        "..data/gone",
        "key",
        "/etc",
        "../../outside",
        "..x",
    ];
    // xorshift: the same requests each time.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap() % below
    };
    let (volume, mut accepted, mut exchanged) = (copies.at(VOLUME), 0, 0);
    let current = || fs::read_link(volume.join(DATA_LINK)).unwrap();
    let (mut leads_to, mut seen) = (current(), tree(&volume.join(current())));
    for round in 0..20_000_u32 {
        let parts = (0..=next(3)).map(|_| names[next(names.len())]).collect::<Vec<_>>().join("/");
        let name = if next(20) == 0 { parts } else { format!("{VOLUME}/{parts}") };
        let request = match next(3) {
            0 => copies.directory(&name),
            1 => copies.link(&name, targets[next(targets.len())]),
            _ => copies.file(&name, &round.to_le_bytes()),
        };
        if copies.root.copy(&request).is_ok() {
            accepted += 1;
        }
        let now = current();
        if now == leads_to {
            assert_eq!(tree(&volume.join(&now)), seen, "{}", request.path);
        } else {
            exchanged += 1;
            (leads_to, seen) = (now.clone(), tree(&volume.join(now)));
        }
    }
    assert!(accepted > 100 && exchanged > 10, "{accepted} {exchanged}");
    assert_eq!(fs::read(outside.join("victim")).unwrap(), b"untouched");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert!(copies.root.entries.values().sum::<usize>() <= MOST_ENTRIES);
}
