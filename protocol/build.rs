//! Generates the messages and the ttrpc service code from `proto/`.

use std::path::{Path, PathBuf};

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let sources = [
        "proto/agent.proto",
        "proto/csi.proto",
        "proto/health.proto",
        "proto/oci.proto",
        "proto/ports.proto",
        "proto/types.proto",
    ];
    println!("cargo::rerun-if-changed=proto");
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .inputs(sources)
        .include("proto")
        .rust_protobuf()
        .customize(ttrpc_codegen::Customize { async_all: true, ..Default::default() })
        .run()
        .expect("the agent API's .proto files are valid");
    for entry in std::fs::read_dir(&out).expect("OUT_DIR is readable") {
        strip_inner_attributes(&entry.expect("OUT_DIR is readable").path());
    }
}

/// Generated files open with `#![...]` and `//!`, which `include!` does not allow.
fn strip_inner_attributes(path: &Path) {
    if path.extension().is_none_or(|e| e != "rs") {
        return;
    }
    let text = std::fs::read_to_string(path).expect("generated code is UTF-8");
    let kept: Vec<&str> =
        text.lines().filter(|l| !l.starts_with("#![") && !l.starts_with("//!")).collect();
    std::fs::write(path, kept.join("\n")).expect("OUT_DIR is writable");
}
