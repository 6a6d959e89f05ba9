//! Any bytes as the manifest of an empty directory: refused, or an image whose files are all absent; and what
//! was read is the same when it is written again.
#![no_main]

use std::fs;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use nacre_image_manifest::{Fault, GuestImage};
use tempfile::TempDir;

static PLACE: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a directory"));

fuzz_target!(|bytes: &[u8]| {
    let (manifest, empty) = (PLACE.path().join("manifest"), PLACE.path().join("empty"));
    fs::create_dir_all(&empty).expect("a directory");
    fs::write(&manifest, bytes).expect("a file");
    let Ok(image) = GuestImage::open_by(&empty, &manifest) else { return };
    let problems = image.verify().expect_err("there are no files").problems;
    assert_eq!(problems.len(), 5);
    assert!(problems.iter().all(|problem| problem.fault == Fault::Absent));
    for path in [image.vmlinux(), image.bzimage(), image.initrd(), image.development_initrd()] {
        assert_eq!(path.parent(), Some(empty.as_path()));
    }
    fs::write(&manifest, image.manifest().to_bytes()).expect("a file");
    let again = GuestImage::open_by(&empty, &manifest).expect("it was written by us");
    assert_eq!(again.manifest(), image.manifest());
});
