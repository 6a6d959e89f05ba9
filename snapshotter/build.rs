//! Generates the server of containerd's snapshots API and the client of its content API from `proto/`.

fn main() {
    println!("cargo::rerun-if-changed=proto");
    const HELP: &str = "the .proto files are valid and protoc is installed";
    tonic_prost_build::configure()
        .build_client(false)
        .compile_protos(&["proto/snapshots.proto"], &["proto"])
        .expect(HELP);
    // The server is the tests' containerd.
    tonic_prost_build::configure()
        .compile_protos(&["proto/content.proto"], &["proto"])
        .expect(HELP);
}
