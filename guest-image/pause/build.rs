//! Link arguments for the workspace's profile "freestanding"; other profiles link the ordinary way.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Cargo tells a custom profile's name only by where the output goes.
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    if out.components().any(|part| part.as_os_str() == "freestanding") {
        for argument in ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"]
        {
            println!("cargo::rustc-link-arg-bins={argument}");
        }
    }
}
