//! Any bytes as a kernel module, plain or compressed with zstd: read or refused, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_guest_image::drivers::ModuleFile;

fuzz_target!(|bytes: &[u8]| {
    // xz is a program of its own, too slow to start for each input.
    if !bytes.starts_with(b"\xfd7zXZ") {
        let _ = ModuleFile::read("module.ko", bytes);
    }
});
