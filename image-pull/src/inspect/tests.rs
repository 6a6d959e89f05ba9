use super::*;

enum Made {
    Dir(&'static str),
    File(&'static str, &'static str),
    Link(&'static str, &'static str),
    Hard(&'static str, &'static str),
}
use Made::{Dir, File, Hard, Link};

fn layer(entries: &[Made], names: &BTreeSet<Vec<u8>>) -> Result<Layer, String> {
    let mut tar = tar::Builder::new(Vec::new());
    for made in entries {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(0);
        match made {
            Dir(path) => {
                header.set_entry_type(tar::EntryType::Directory);
                tar.append_data(&mut header, path, &[][..]).unwrap();
            }
            File(path, content) => {
                header.set_size(content.len() as u64);
                tar.append_data(&mut header, path, content.as_bytes()).unwrap();
            }
            Link(path, to) => {
                header.set_entry_type(tar::EntryType::Symlink);
                tar.append_link(&mut header, path, to).unwrap();
            }
            Hard(path, to) => {
                header.set_entry_type(tar::EntryType::Link);
                tar.append_link(&mut header, path, to).unwrap();
            }
        }
    }
    let bytes = tar.into_inner().unwrap();
    let budget = Budget::new(&Limits::default()).share();
    Layer::read(&mut Archive::new(&bytes[..]), names.clone(), &budget).map_err(|e| e.to_string())
}

/// Content of `/etc/passwd` and how many layers it took; layers top first.
fn passwd(layers: &[&[Made]]) -> Result<(String, usize), String> {
    let mut names: BTreeSet<Vec<u8>> = [PASSWD.to_vec()].into();
    'names: loop {
        let mut seen = Seen { layers: Vec::new(), unseen: layers.len() };
        loop {
            match seen.find(PASSWD).map_err(|e| e.to_string())? {
                Found::Content(content) => {
                    return Ok((String::from_utf8(content).unwrap(), seen.layers.len()));
                }
                Found::Below => {
                    seen.layers.push(layer(layers[seen.layers.len()], &names)?);
                    seen.unseen -= 1;
                }
                Found::Unasked(name) => {
                    assert!(names.insert(name), "asked twice for the same name");
                    continue 'names;
                }
            }
        }
    }
}

#[test]
fn the_merged_file_is_what_overlayfs_would_show() {
    let bottom: &[Made] = &[Dir("etc"), File("etc/passwd", "bottom")];
    for (name, layers, expected) in [
        ("no layers", &[][..], ("", 0)),
        ("one", &[bottom], ("bottom", 1)),
        ("other names do not matter", &[&[File("etc/passwd-", "x")], bottom], ("bottom", 2)),
        ("the upper wins, and is enough", &[&[File("./etc/passwd", "top")], bottom], ("top", 1)),
        ("the later entry wins", &[&[File("etc/passwd", "a"), File("etc/passwd", "b")]], ("b", 1)),
        ("whiteout", &[&[File("etc/.wh.passwd", "")], bottom], ("", 1)),
        (
            "a whiteout spares its own layer",
            &[&[File("etc/passwd", "own"), File("etc/.wh.passwd", "")], bottom],
            ("own", 1),
        ),
        ("opaque", &[&[File("etc/.wh..wh..opq", "")], bottom], ("", 1)),
        ("opaque root", &[&[File(".wh..wh..opq", "")], bottom], ("", 1)),
        (
            "opaque in the middle",
            &[&[Dir("etc")], &[File("etc/.wh..wh..opq", "")], bottom],
            ("", 2),
        ),
        ("directory gone", &[&[File(".wh.etc", "")], bottom], ("", 1)),
        ("directory replaced", &[&[File("etc", "x")], bottom], ("", 1)),
        (
            "a directory made again shows nothing below",
            &[&[Dir("etc")], &[File("etc", "x")], bottom],
            ("", 2),
        ),
        ("link", &[&[Link("etc/passwd", "../lib/./p")], &[File("lib/p", "linked")]], ("linked", 2)),
        ("absolute link", &[&[Link("etc/passwd", "/lib/p"), File("lib/p", "l")]], ("l", 1)),
        ("link out", &[&[Link("etc/passwd", "../../../x"), File("x", "in")]], ("in", 1)),
        ("directory link", &[&[Link("etc", "usr/etc")], &[File("usr/etc/passwd", "u")]], ("u", 2)),
        ("dangling", &[&[Link("etc/passwd", "/nowhere")], bottom], ("", 2)),
        (
            "hard link",
            &[&[File("a", "x")], &[File("a", "hard"), Hard("etc/passwd", "a")], bottom],
            ("hard", 2),
        ),
    ] {
        let (content, read) = passwd(layers).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((content.as_str(), read), expected, "{name}");
    }
}

#[test]
fn what_is_not_followed_is_an_error() {
    for (layers, says) in [
        (&[&[Link("etc/passwd", "passwd")][..]][..], "too many links"),
        (&[&[Dir("etc/passwd")]], "not regular files"),
        (&[&[Link("etc/passwd", "/")]], "not regular files"),
        (&[&[Link("etc", "usr/etc"), File("etc/passwd", "x")]], "not followed"),
        (&[&[Hard("etc/passwd", "etc/passwd")]], "hard links"),
    ] {
        let error = passwd(layers).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
    let large: &'static str = Box::leak("x".repeat(2 << 20).into_boxed_str());
    assert!(passwd(&[&[File("etc/passwd", large)]]).unwrap_err().contains("above 1048576"));
}
