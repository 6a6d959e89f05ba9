//! Any bytes as a layer's tar stream: no panic, and nothing outside the root changes. Needs root.
#![no_main]
#![allow(dead_code, unexpected_cfgs)]

use libfuzzer_sys::fuzz_target;
use rustix::fs::{Mode, OFlags};

// The modules themselves: they are no public interface.
#[path = "../../src/archive.rs"]
mod archive;
#[path = "../../src/budget.rs"]
mod budget;
#[path = "../../src/directory_times.rs"]
mod directory_times;
#[path = "../../src/error.rs"]
mod error;
#[path = "../../src/extract.rs"]
mod extract;
#[path = "../../src/file_content.rs"]
mod file_content;
#[path = "../../src/limits.rs"]
mod limits;
#[path = "../../src/metadata.rs"]
mod metadata;
#[path = "../../src/pax.rs"]
mod pax;
#[path = "../../src/removal.rs"]
mod removal;
#[path = "../../src/sparse.rs"]
mod sparse;
#[path = "../../src/tar_extensions.rs"]
mod tar_extensions;
#[path = "../../src/tar_header.rs"]
mod tar_header;

use error::PullError;
use limits::Limits;

/// Fuzzers rarely guess a checksum: each block that looks like a header gets the right one.
fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for block in bytes.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    bytes
}

fuzz_target!(|bytes: &[u8]| {
    let world = tempfile::tempdir().expect("temporary directory");
    let outside = world.path().join("outside");
    std::fs::write(&outside, "untouched").expect("writable");
    let root = world.path().join("root");
    std::fs::create_dir(&root).expect("writable");
    let fd = rustix::fs::open(&root, OFlags::DIRECTORY, Mode::empty()).expect("just made");
    let limits = Limits { entries: 100, unpacked_bytes: 1 << 24, ..Limits::default() };
    let budget = budget::Budget::new(&limits).share();
    let bytes = with_checksums(bytes);
    let _ = extract::extract(&mut archive::Archive::new(&bytes[..]), fd, &budget);
    assert_eq!(std::fs::read(&outside).expect("still there"), b"untouched");
    assert_eq!(std::fs::read_dir(world.path()).expect("readable").count(), 2);
    removal::remove(rustix::fs::CWD, root.as_os_str().as_encoded_bytes()).expect("removable");
});
