//! Compiles the library that is preloaded into QEMU.
//!
//! Not by cargo: the workspace's programs are linked with a C library of their own (`.cargo/config.toml`,
//! `+crt-static`), and a shared library that joins a foreign process cannot be. So the compiler is called
//! once more, without that, for sources that need nothing but `std`.

use std::path::PathBuf;
use std::process::Command;
use std::{env, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=src/preload");
    let variable = |name: &str| env::var_os(name).ok_or_else(|| io::Error::other(name.to_owned()));
    let library = PathBuf::from(variable("OUT_DIR")?).join("libnacre_launch_recorder.so");
    let status = Command::new(variable("RUSTC")?)
        .args(["--crate-name", "nacre_launch_recorder", "--crate-type", "cdylib"])
        .args(["--edition", "2024", "-O", "-C", "panic=abort", "-C", "target-feature=-crt-static"])
        .arg("--target")
        .arg(variable("TARGET")?)
        .arg("-o")
        .arg(&library)
        .arg("src/preload/lib.rs")
        .status()?;
    if !status.success() {
        return Err(io::Error::other("the library for QEMU does not compile"));
    }
    println!("cargo::rustc-env=NACRE_LAUNCH_RECORDER={}", library.display());
    Ok(())
}
