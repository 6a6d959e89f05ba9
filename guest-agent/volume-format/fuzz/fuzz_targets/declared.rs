//! Any text as volumes.toml: read or refused with a bounded message on one line, never a panic. What was read is within
//! its limits, and no container has two volumes at one path.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_volume_format::declared::{DeclaredVolumes, Format};

fuzz_target!(|text: &str| {
    let declared = match DeclaredVolumes::parse(text) {
        Ok(declared) => declared,
        Err(error) => {
            // Keys and values of the text may be quoted, which is the owner's own.
            assert!(error.to_string().len() <= 2 * text.len() + 4096, "{error}");
            return;
        }
    };
    assert!(declared.volumes().len() <= 64);
    for volume in declared.volumes() {
        assert!(!(volume.read_only && volume.format == Format::Blank));
        assert!(volume.places().count() > 0);
        for (container, path) in volume.places() {
            let found = declared.at(container.unwrap_or("any"), path);
            assert_eq!(found.map(|found| &found.name), Some(&volume.name));
            assert!(path.starts_with('/') && !path.split('/').any(|part| part == ".."));
        }
    }
});
