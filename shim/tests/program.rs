//! The program as containerd calls it, and as somebody who types it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::process::{Command, Output};

fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let program = env!("CARGO_BIN_EXE_containerd-shim-nacre-v2");
    let Output { status, stdout, stderr } = Command::new(program).args(arguments).output().unwrap();
    let text = [stdout, stderr].concat();
    (status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn it_says_what_it_is() {
    let (code, said) = run(&["-v"]);
    assert_eq!(code, Some(0));
    assert!(said.contains(env!("CARGO_PKG_VERSION")), "{said}");
    let (code, said) = run(&["-info"]);
    assert_eq!(code, Some(0));
    assert!(said.contains("io.containerd.nacre.v2"), "{said}");
}

#[test]
fn what_it_is_not_called_for_is_named() {
    let (code, said) = run(&["start"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("-id is empty") && said.contains("by containerd"), "{said}");
    let (code, said) = run(&["-id", "a", "-namespace", "b", "dance"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("\"dance\" is unknown"), "{said}");
}
