use std::os::unix::fs::symlink;

use super::*;

#[test]
fn only_regular_files_of_the_right_size_are_blobs() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("blob"), "abc").unwrap();
    symlink(path("blob"), path("link")).unwrap();
    std::fs::create_dir(path("directory")).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, path("fifo"), rustix::fs::FileType::Fifo, mode, 0)
        .unwrap();
    assert!(open_blob(&path("blob"), 3).is_some());
    for (name, size) in [("blob", 2), ("blob", 4), ("link", 3), ("fifo", 0), ("absent", 0)] {
        assert!(open_blob(&path(name), size).is_none(), "{name}");
    }
    let size = path("directory").metadata().unwrap().len();
    assert!(open_blob(&path("directory"), size).is_none());
}

#[test]
fn a_directory_that_others_may_write_to_is_not_used() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/b");
    make_private(&path).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    make_private(&path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
    assert!(matches!(make_private(&path), Err(StoreError::Open(_))));
}
