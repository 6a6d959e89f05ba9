//! Any text as a storage driver's mountInfo.json: a device with an absolute path, or what is wrong with it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match nacre_shim::fuzzing::direct_volume(text) {
        Ok(device) => assert!(device.is_absolute()),
        // Control characters of quoted words are escaped, each in ten characters at most.
        Err(problem) => assert!(problem.len() <= 10 * text.len() + 1024),
    }
});
