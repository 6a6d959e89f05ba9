//! Any bytes as an initrd: refused, or read into what gives the same bytes again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_image_manifest::Entry;
use nacre_image_manifest::cpio::Archive;

fuzz_target!(|bytes: &[u8]| {
    let Ok(archive) = Archive::parse(bytes) else { return };
    assert_eq!(archive.to_bytes(), bytes);
    assert_eq!(Entry::list(&archive).len(), archive.entries().count());
});
