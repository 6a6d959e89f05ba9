//! Any text as what containerd says of its version and its configuration, and as the record of an installation: read or
//! refused, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_node_install::Release;
use nacre_node_install::fuzzing::{compare, is_receipt};

fuzz_target!(|text: &str| {
    let _ = Release::of_version(text);
    let _ = is_receipt(text);
    let (before, after) = text.split_once('\0').unwrap_or((text, text));
    for release in [Release::V1_6, Release::V1_7, Release::V2] {
        compare(before, after, release);
    }
});
