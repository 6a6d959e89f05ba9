//! Link arguments of the freestanding release build; other profiles link the ordinary way.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("PROFILE").as_deref() == Ok("release") {
        for argument in ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"]
        {
            println!("cargo::rustc-link-arg-bins={argument}");
        }
    }
}
