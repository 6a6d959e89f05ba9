//! Any bytes as a configuration: read or refused, never a panic, and what was read can be written and
//! read again.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use nacre_kbs::Config;

fuzz_target!(|bytes: &[u8]| {
    let directory = tempfile::tempdir_in("/dev/shm").expect("memory");
    let path = directory.path().join("config.toml");
    fs::write(&path, bytes).expect("memory");
    if let Ok(config) = Config::read(&path) {
        fs::write(&path, config.to_toml()).expect("memory");
        assert_eq!(Config::read(&path).expect("what was written can be read"), config);
    }
});
