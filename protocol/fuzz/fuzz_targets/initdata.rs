//! Any bytes as initdata, in each of its forms: read or refused, never a panic, and what was read is
//! the same in every other form.
#![no_main]

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use libfuzzer_sys::fuzz_target;
use nacre_protocol::initdata::{Initdata, TEXT_LIMIT};

fuzz_target!(|bytes: &[u8]| {
    let _ = Initdata::from_disk(bytes);
    // Fuzzers rarely guess a checksum: the same bytes, well packed.
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("into memory");
    let packed = encoder.finish().expect("into memory");
    let mut disk = b"initdata".to_vec();
    disk.extend_from_slice(&(packed.len() as u64).to_le_bytes());
    disk.extend_from_slice(&packed);
    let from_disk = Initdata::from_disk(&disk[..]);

    let Ok(text) = std::str::from_utf8(bytes) else {
        assert!(from_disk.is_err());
        return;
    };
    let _ = Initdata::from_annotation(text);
    let parsed = Initdata::parse(text);
    assert_eq!(from_disk, parsed);
    let Ok(parsed) = parsed else { return };
    assert!(parsed.text() == text && text.len() <= TEXT_LIMIT);
    if let Ok(made) = Initdata::new(parsed.algorithm(), parsed.files().clone()) {
        let again = Initdata::parse(made.text()).expect("what was made can be read");
        assert_eq!(again.files(), parsed.files());
        assert_eq!(again, made);
        let annotation = made.to_annotation().expect("small");
        assert_eq!(Initdata::from_annotation(&annotation), Ok(made));
    }
});
