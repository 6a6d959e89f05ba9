//! Generates the server of containerd's snapshots API from `proto/`.

fn main() {
    println!("cargo::rerun-if-changed=proto");
    tonic_prost_build::configure()
        .build_client(false)
        .compile_protos(&["proto/snapshots.proto"], &["proto"])
        .expect("the snapshots API's .proto files are valid and protoc is installed");
}
