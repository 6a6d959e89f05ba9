//! The program as somebody types it.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let program = env!("CARGO_BIN_EXE_nacre-snapshotter");
    let Output { status, stdout, stderr } = Command::new(program).args(arguments).output().unwrap();
    (status.code(), String::from_utf8([stdout, stderr].concat()).unwrap())
}

#[test]
fn help_has_the_lines_for_each_containerd() {
    let (code, said) = run(&["--help"]);
    assert_eq!(code, Some(0));
    for line in ["[proxy_plugins.nacre]", "containerd 1.6", "containerd 1.7", "containerd 2.x"] {
        assert!(said.contains(line), "{line}: {said}");
    }
}

#[test]
fn a_place_that_cannot_be_used_is_named() {
    let (code, said) = run(&["--root", "/proc/nowhere", "--socket", "/proc/nowhere/s"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("failed to open the snapshots in /proc/nowhere"), "{said}");
}
