//! Names and links that lead out of the root.

use rustix::fs::FileType;

use crate::case::Class::Paths;
use crate::case::Expect::{Accept, Contain, Reject};
use crate::case::{Case, Check, Expect, Hosts};
use crate::image::{Image, Layer};
use crate::tar::{Header, Tar, field};
use crate::tree::same_file;

/// That it unpacks is all.
const NOTHING: Check = |_| Ok(());

fn case(
    name: &'static str,
    attack: &'static str,
    make: impl Fn() -> Image + Send + Sync + 'static,
    expect: Expect,
) -> Case {
    Case::new(Paths, name, attack, move |_: &Hosts| make(), expect)
}

/// A link to `/mnt/outside`, with a directory of that name inside the image.
fn link_out() -> Tar {
    Tar::new().dir("mnt").dir("mnt/outside").symlink("l", "/mnt/outside")
}

pub(super) fn cases() -> Vec<Case> {
    [names(), symlinks(), hard_links(), shapes()].into_iter().flatten().collect()
}

fn names() -> Vec<Case> {
    vec![
        case(
            "dotdot-name",
            "Names a file above the root (CVE-2001-1267, and every archiver since).",
            || Tar::new().file("../canary", "!").into(),
            Reject(&["\"..\""]),
        ),
        case(
            "dotdot-in-the-middle",
            "Goes down one directory and up two.",
            || Tar::new().dir("a").file("a/../../canary", "!").into(),
            Reject(&["\"..\""]),
        ),
        case(
            "dotdot-many",
            "Goes up to the system's root and down to a known file.",
            || Tar::new().long_file("../".repeat(64) + "mnt/outside/file", "!").into(),
            Reject(&["\"..\""]),
        ),
        case(
            "dotdot-in-prefix",
            "Hides the way up in the second field of a long ustar name.",
            || {
                let name = |header: &mut Header| {
                    header.text(field::PREFIX, b"../../outside");
                };
                Tar::new().raw(b'0', "file", "", "!", name).into()
            },
            Reject(&["\"..\""]),
        ),
        case(
            "dotdot-directory",
            "Would change mode and owner of the directory above.",
            || Tar::new().dir("..").into(),
            Reject(&["\"..\""]),
        ),
        case(
            "absolute-name",
            "Names a file by its absolute path: it belongs beneath the root.",
            || Tar::new().file("/mnt/outside/file", "!").into(),
            Contain(|tree| tree.holds("mnt/outside/file", "!")),
        ),
        case(
            "slashes-and-dots",
            "An absolute path that is not written as one.",
            || Tar::new().file(".//./mnt/./outside//new", "!").into(),
            Contain(|tree| tree.holds("mnt/outside/new", "!")),
        ),
        case(
            "nul-in-pax-path",
            "A C program sees another path than the one that was checked.",
            || Tar::new().long_file("../canary\0/harmless", "!").into(),
            Reject(&["NUL"]),
        ),
        case(
            "nul-in-gnu-name",
            "The same with GNU's long names.",
            || Tar::new().raw(b'L', "././@LongLink", "", "a\0b\0", |_| {}).file("x", "!").into(),
            Reject(&["NUL"]),
        ),
        case(
            "nul-in-link-target",
            "The same with the target of a link.",
            || Tar::new().pax(&[("linkpath", b"/mnt/outside\0x")]).symlink("l", "").into(),
            Reject(&["NUL"]),
        ),
        case(
            "component-too-long",
            "A name that no file system takes.",
            || Tar::new().long_file("x".repeat(256), "").into(),
            Reject(&["longer than 255"]),
        ),
        case(
            "component-of-255",
            "The longest name there is.",
            || Tar::new().long_file("x".repeat(255), "there").into(),
            Accept(|tree| tree.holds("x".repeat(255), "there")),
        ),
        case(
            "path-too-long",
            "A path that no system call takes.",
            || Tar::new().long_file("d/".repeat(2100) + "x", "").into(),
            Reject(&["longer than 4096"]),
        ),
        case(
            "empty-name",
            "No name at all: the root as a file.",
            || Tar::new().file("", "!").into(),
            Reject(&["root itself"]),
        ),
        case(
            "names-that-are-not-text",
            "Names in Latin-1, with control characters, and those that only Windows minds.",
            || {
                Tar::new()
                    .file(b"caf\xe9\xff", "latin")
                    .file("new\nline\x1b[2J", "control")
                    .file("C:\\x", "drive")
                    .file("-rf", "option")
                    .file("...", "dots")
                    .into()
            },
            Accept(|tree| {
                tree.holds(b"caf\xe9\xff", "latin")?;
                tree.holds("new\nline\x1b[2J", "control")?;
                tree.holds("C:\\x", "drive")?;
                tree.holds("-rf", "option")?;
                tree.holds("...", "dots")
            }),
        ),
        case(
            "names-that-look-alike",
            "Upper and lower case, composed and decomposed letters: all are different files.",
            || Tar::new().file("a", "1").file("A", "2").file("é", "3").file("e\u{301}", "4").into(),
            Accept(|tree| {
                tree.holds("a", "1")?;
                tree.holds("A", "2")?;
                tree.holds("é", "3")?;
                tree.holds("e\u{301}", "4")
            }),
        ),
        case(
            "terminal-codes-in-an-error",
            "A name that would repaint the terminal of whoever reads the error.",
            || Tar::new().file("\x1b]0;owned\x07\x1b[31m/../x", "").into(),
            Reject(&["\"..\""]),
        ),
        case(
            "long-name-in-an-error",
            "A name that would fill the log of whoever reads the error.",
            || Tar::new().long_file("a".repeat(250) + "/" + &"b/".repeat(200) + "../x", "").into(),
            Reject(&["\"..\""]),
        ),
    ]
}

fn symlinks() -> Vec<Case> {
    vec![
        case(
            "file-through-absolute-link",
            "Writes through a link to an absolute directory (CVE-2018-15664's family).",
            || link_out().file("l/file", "!").into(),
            Contain(|tree| tree.holds("mnt/outside/file", "!")),
        ),
        case(
            "file-through-dangling-link",
            "The same, with nothing in the image where the link points.",
            || Tar::new().symlink("l", "/mnt/outside").file("l/file", "!").into(),
            Reject(&["dangling"]),
        ),
        case(
            "file-through-relative-link",
            "A link as far up as the store is deep.",
            || {
                let up = "../".repeat(8) + "outside";
                Tar::new().dir("outside").symlink("l", up).file("l/file", "!").into()
            },
            Contain(|tree| tree.holds("outside/file", "!")),
        ),
        case(
            "link-to-a-link-up",
            "Two links that are harmless each, one above the other.",
            || {
                Tar::new()
                    .dir("outside")
                    .dir("d")
                    .symlink("d/a", "..")
                    .symlink("d/a/b", "..")
                    .file("b/outside/file", "!")
                    .into()
            },
            Contain(|tree| tree.holds("outside/file", "!")),
        ),
        case(
            "directory-becomes-link",
            "A directory that later entries go through is replaced by a link (CVE-2021-30465's way).",
            || {
                let tar = Tar::new().dir("mnt").dir("mnt/outside").dir("d").file("d/x", "");
                tar.symlink("d", "/mnt/outside").file("d/file", "!").into()
            },
            Contain(|tree| tree.holds("mnt/outside/file", "!")),
        ),
        case(
            "cached-parent-becomes-link",
            "The directory of the last entry is replaced from above, so that whoever remembers it is \
             wrong.",
            || {
                let tar = Tar::new().dir("mnt").dir("mnt/outside").dir("a").dir("a/b");
                tar.file("a/b/x", "").symlink("a", "/mnt/outside").file("a/b/y", "!").into()
            },
            Contain(|tree| tree.holds("mnt/outside/b/y", "!")),
        ),
        case(
            "link-becomes-directory",
            "A link out of the root gets a directory entry, then a file.",
            || link_out().dir("l").file("l/new", "!").into(),
            Contain(|tree| {
                tree.holds("l/new", "!")?;
                tree.lacks("mnt/outside/new")
            }),
        ),
        case(
            "file-over-link",
            "A file takes the place of a link: whoever opens it without O_NOFOLLOW writes outside.",
            || Tar::new().symlink("l", "/mnt/outside/file").file("l", "!").into(),
            Contain(|tree| tree.is("l", FileType::RegularFile, 0o644)),
        ),
        case(
            "pipe-through-link",
            "Makes a pipe where a link points.",
            || link_out().raw(b'6', "l/pipe", "", "", |_| {}).into(),
            Contain(|tree| tree.is("mnt/outside/pipe", FileType::Fifo, 0o644)),
        ),
        case(
            "metadata-through-link",
            "Mode, owner, time and attributes for a link, meant for what it points to.",
            || {
                let link = |header: &mut Header| {
                    header.octal(field::MODE, 0o6777).octal(field::UID, 7).octal(field::MTIME, 1);
                };
                Tar::new()
                    .pax(&[("SCHILY.xattr.user.evil", b"1")])
                    .raw(b'2', "l", "/mnt/outside/file", "", link)
                    .into()
            },
            Contain(|tree| {
                tree.links_to("l", "/mnt/outside/file")?;
                tree.owned("l", 7, 0)
            }),
        ),
        case(
            "late-times-through-link",
            "A directory's time is set when all is unpacked; by then a link is in its place.",
            || {
                let old = |header: &mut Header| {
                    header.octal(field::MTIME, 1);
                };
                let tar = Tar::new().raw(b'5', "directory", "", "", old);
                tar.symlink("directory", "/mnt/outside/directory").into()
            },
            Contain(|tree| tree.links_to("directory", "/mnt/outside/directory")),
        ),
        case(
            "proc-root-link",
            "The kernel's own links lead anywhere: /proc/self/root.",
            || Tar::new().symlink("l", "/proc/self/root/mnt/outside").file("l/file", "!").into(),
            Reject(&["dangling"]),
        ),
        case(
            "proc-fd-link",
            "The same by a descriptor of the unpacking process.",
            || Tar::new().symlink("l", "/proc/self/fd/3").file("l/../canary", "!").into(),
            Reject(&["\"..\""]),
        ),
        case(
            "link-loop",
            "Links in a circle, on the way to a file.",
            || Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", "").into(),
            Reject(&["loop"]),
        ),
        case(
            "link-maze",
            "Links that each double the way: 2^40 steps for whoever follows them all.",
            || {
                let mut tar = Tar::new().symlink("l0", ".");
                for i in 1..=40 {
                    let last = i - 1;
                    tar = tar.symlink(format!("l{i}"), format!("l{last}/l{last}"));
                }
                tar.file("l40/x", "").into()
            },
            Reject(&["loop"]),
        ),
        case(
            "link-to-nothing",
            "A link with an empty target, which the kernel cannot make.",
            || Tar::new().symlink("l", "").into(),
            Reject(&["link to nothing"]),
        ),
        case(
            "longest-link",
            "A link with the longest target there is.",
            || {
                Tar::new()
                    .pax(&[("linkpath", "t/".repeat(2047).as_bytes())])
                    .symlink("l", "")
                    .into()
            },
            Accept(|tree| tree.links_to("l", &"t/".repeat(2047))),
        ),
        case(
            "link-below-across-layers",
            "A link out of the root in one layer, a file through it in the next.",
            || {
                let file = Tar::new().file("l/file", "!");
                [Tar::new().dir("mnt").dir("mnt/outside").symlink("l", "/mnt/outside"), file].into()
            },
            Contain(|tree| tree.holds("l/file", "!")),
        ),
        case(
            "link-above-across-layers",
            "A directory in one layer is a link out of the root in the next, and is used in a third.",
            || {
                [
                    Tar::new().dir("mnt").dir("mnt/outside").dir("d").file("d/x", "1"),
                    Tar::new().symlink("d", "/mnt/outside"),
                    Tar::new().file("d/file", "!"),
                ]
                .into()
            },
            Contain(|tree| tree.holds("d/file", "!")),
        ),
        case(
            "implied-parent-across-layers",
            "The owner of a directory that a layer implies is taken from below: where a link is.",
            || {
                [
                    Tar::new().symlink("d", "/mnt/outside/directory"),
                    Tar::new().file("d/e/file", "!"),
                    Tar::new().file("d/e/f/file", "!"),
                ]
                .into()
            },
            Contain(|tree| tree.holds("d/e/file", "!")),
        ),
    ]
}

fn hard_links() -> Vec<Case> {
    vec![
        case(
            "hard-link-absolute",
            "Links to a file by its absolute path, to write to it later.",
            || Tar::new().hard_link("h", "/mnt/outside/file").file("h", "!").into(),
            Reject(&["hard link to"]),
        ),
        case(
            "hard-link-dotdot",
            "The same by a way up.",
            || Tar::new().hard_link("h", "../../../../outside/file").into(),
            Reject(&["\"..\""]),
        ),
        case(
            "hard-link-through-link",
            "Links to a file behind a link.",
            || Tar::new().symlink("l", "/mnt/outside").hard_link("h", "l/file").into(),
            Reject(&["hard link to"]),
        ),
        case(
            "hard-link-to-link",
            "A hard link to a symbolic link, then a file in its place.",
            || {
                let tar = Tar::new().symlink("l", "/mnt/outside/file").hard_link("h", "l");
                tar.file("h", "!").into()
            },
            Contain(|tree| {
                tree.is("h", FileType::RegularFile, 0o644)?;
                tree.links_to("l", "/mnt/outside/file")
            }),
        ),
        case(
            "hard-link-to-link-metadata",
            "A hard link to a symbolic link: chown, chmod or utimes that follow it hit the file \
             (CVE-2019-14271's family).",
            || {
                let change = |header: &mut Header| {
                    header.octal(field::MODE, 0o4777).octal(field::UID, 7).octal(field::MTIME, 1);
                };
                let tar = Tar::new().symlink("l", "/mnt/outside/file");
                tar.raw(b'1', "h", "l", "", change).into()
            },
            Contain(|tree| same_file(tree, "h", "l")),
        ),
        case(
            "hard-link-to-link-across-layers",
            "The symbolic link is in the layer below.",
            || {
                let link = Tar::new().symlink("l", "/mnt/outside/file");
                [link, Tar::new().hard_link("h", "l").file("h2", "!")].into()
            },
            Contain(|tree| tree.links_to("h", "/mnt/outside/file")),
        ),
        case(
            "hard-link-across-layers",
            "A hard link to a file of a layer below, as `ln` in a build step makes it.",
            || {
                let change = |header: &mut Header| {
                    header.octal(field::MODE, 0o4750).octal(field::UID, 7);
                };
                let below = Tar::new().dir("bin").raw(b'0', "bin/a", "", "content", change);
                [below, Tar::new().hard_link("bin/b", "bin/a")].into()
            },
            Accept(|tree| {
                tree.holds("bin/b", "content")?;
                tree.is("bin/b", FileType::RegularFile, 0o4750)?;
                tree.owned("bin/b", 7, 0)
            }),
        ),
        case(
            "hard-link-to-hidden-file",
            "The file below is hidden by a whiteout of the same layer.",
            || {
                let below = Tar::new().file("secret", "of another stage");
                [below, Tar::new().file(".wh.secret", "").hard_link("h", "secret")].into()
            },
            Reject(&["hard link to"]),
        ),
        case(
            "hard-link-to-itself",
            "A link that takes the place of its own target.",
            || Tar::new().file("a", "").hard_link("a", "a").into(),
            Reject(&["hard link to"]),
        ),
        case(
            "hard-link-to-directory",
            "A tree with a circle in it.",
            || Tar::new().dir("d").hard_link("d/again", "d").into(),
            Reject(&["hard link to a directory"]),
        ),
        case(
            "hard-link-to-root",
            "The same with the root.",
            || Tar::new().hard_link("again", "/").into(),
            Reject(&["hard link to"]),
        ),
        case(
            "hard-links-many",
            "A thousand names for one file.",
            || {
                let tar = Tar::new().file("f", "one");
                (0..1000).fold(tar, |tar, i| tar.hard_link(format!("h{i}"), "f")).into()
            },
            Accept(|tree| {
                anyhow::ensure!(tree.stat("f")?.st_nlink == 1001, "{:?}", tree.stat("f")?.st_nlink);
                same_file(tree, "f", "h999")
            }),
        ),
    ]
}

fn shapes() -> Vec<Case> {
    vec![
        case(
            "root-is-a-link",
            "The root itself as a symbolic link: all that follows would go elsewhere.",
            || Tar::new().symlink("./", "/mnt/outside").file("file", "!").into(),
            Reject(&["root itself"]),
        ),
        case(
            "root-is-a-file",
            "The root itself as a file.",
            || Tar::new().file(".", "!").into(),
            Reject(&["root itself"]),
        ),
        case(
            "root-is-a-hard-link",
            "The root itself as a hard link.",
            || Tar::new().file("f", "").hard_link("/", "f").into(),
            Reject(&["root itself"]),
        ),
        case(
            "root-has-an-entry",
            "Mode, owner and time of the root, as most layers have them.",
            || {
                let root = |header: &mut Header| {
                    header.octal(field::MODE, 0o711).octal(field::UID, 7);
                };
                Tar::new().raw(b'5', "./", "", "", root).file("a", "").into()
            },
            Accept(|tree| {
                tree.is(".", FileType::Directory, 0o711)?;
                tree.owned(".", 7, 0)
            }),
        ),
        case(
            "file-beneath-a-file",
            "A directory that is a file.",
            || Tar::new().file("a", "").file("a/b", "").into(),
            Reject(&["not a directory"]),
        ),
        case(
            "file-named-like-a-directory",
            "Go makes a file of it, others a directory.",
            || Tar::new().file("a/", "content").into(),
            Reject(&["like a directory"]),
        ),
        case(
            "entries-replace-each-other",
            "The same name as file, directory, link and file again: the last one counts.",
            || {
                Tar::new()
                    .file("a", "1")
                    .dir("a")
                    .file("a/x", "2")
                    .symlink("a", "/mnt/outside/file")
                    .file("a", "3")
                    .dir("kept")
                    .file("kept/x", "stays")
                    .dir("kept")
                    .into()
            },
            Accept(|tree| {
                tree.holds("a", "3")?;
                tree.holds("kept/x", "stays")
            }),
        ),
        case(
            "deep-path",
            "A path of two thousand directories in one entry: whoever recurses, or remembers each of its \
             beginnings, is killed by a few of them.",
            || Tar::new().long_file("d/".repeat(2000) + "f", "").into(),
            Reject(&["directories above each other"]),
        ),
        case(
            "deeper-than-any-path",
            "Directories that links make deeper than any path can say: hard to remove again.",
            || deep_tree().file("top", "now a file").into(),
            Accept(|tree| tree.holds("top", "now a file")),
        ),
        case(
            "deep-tree-in-a-broken-layer",
            "The same, and then the layer turns out to be broken: all of it has to go.",
            || Layer::plain(&deep_tree().file("../x", "").end()).into(),
            Reject(&["\"..\""]),
        ),
        case("no-entries", "An archive with nothing in it.", || Tar::new().into(), Accept(NOTHING)),
    ]
}

/// 1600 directories, one in the other, beneath `top`.
fn deep_tree() -> Tar {
    let deep = "d/".repeat(200);
    let mut tar = Tar::new().dir("top");
    let mut through = "top/".to_owned();
    for i in 1..9 {
        tar = tar.long_file(format!("{through}{deep}x"), "x");
        tar = tar.pax(&[("linkpath", format!("{through}{deep}").as_bytes())]);
        tar = tar.symlink(format!("l{i}"), "");
        through = format!("l{i}/");
    }
    tar
}
