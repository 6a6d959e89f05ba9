//! Removes directory trees whose depth a layer's author chose.
//!
//! `std::fs::remove_dir_all` holds a descriptor for each level, so a tree that is deep enough (links
//! in a layer can make one deeper than any path) outlives it. Here subdirectories are moved up to the
//! top one by one: two descriptors suffice for any depth.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, RenameFlags, openat, renameat_with, unlinkat};
use rustix::io::Errno;

const OPEN: OFlags =
    OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::RDONLY);

/// Removes `name` in `at` and all beneath it, following no link. It is no error if it is not there.
pub(crate) fn remove(at: impl AsFd, name: &[u8]) -> Result<(), Errno> {
    let at = at.as_fd();
    match unlinkat(at, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    let top = openat(at, name, OPEN, Mode::empty())?;
    let mut serial = 0_u64;
    // A directory that changes while it is read may show too little: until one pass finds nothing.
    while clear(&top, |child| flatten(&top, child, &mut serial))? {}
    unlinkat(at, name, AtFlags::REMOVEDIR)
}

/// Unlinks the children of `directory`, and hands those that are directories to `nested`. Whether
/// there were any children.
fn clear(
    directory: impl AsFd,
    mut nested: impl FnMut(&[u8]) -> Result<(), Errno>,
) -> Result<bool, Errno> {
    let directory = directory.as_fd();
    let mut any = false;
    for child in Dir::read_from(directory)? {
        let child = child?;
        let name = child.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        any = true;
        match unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => nested(name)?,
            Err(e) => return Err(e),
        }
    }
    Ok(any)
}

/// Empties the directory `name` of `top` into `top`, and removes it.
fn flatten(top: impl AsFd, name: &[u8], serial: &mut u64) -> Result<(), Errno> {
    let top = top.as_fd();
    let directory = openat(top, name, OPEN, Mode::empty())?;
    while clear(&directory, |child| {
        loop {
            *serial += 1;
            let moved = format!(".removing-{serial}");
            match renameat_with(&directory, child, top, &*moved, RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                other => return other,
            }
        }
    })? {}
    unlinkat(top, name, AtFlags::REMOVEDIR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, mkdirat};

    #[test]
    fn a_tree_deeper_than_any_path_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let keep = dir.path().join("keep");
        std::fs::write(&keep, "outside").unwrap();
        let mut at = openat(CWD, dir.path(), OPEN, Mode::empty()).unwrap();
        let top = at.try_clone().unwrap();
        for _ in 0..3000 {
            mkdirat(&at, "d", Mode::RWXU).unwrap();
            std::os::unix::fs::symlink(&keep, dir.path().join("x")).unwrap();
            rustix::fs::renameat(&top, "x", &at, "link").unwrap();
            at = openat(&at, "d", OPEN, Mode::empty()).unwrap();
        }
        remove(&top, b"d").unwrap();
        assert!(!dir.path().join("d").exists());
        assert_eq!(std::fs::read_to_string(&keep).unwrap(), "outside");
        remove(&top, b"d").expect("absent is fine");
    }
}
