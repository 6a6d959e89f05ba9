//! `nacre install` with a bundle of another version.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::process::Command;

#[test]
fn another_version_is_installed_by_its_own_program() {
    let directory = tempfile::tempdir().unwrap();
    let text = directory.path().join("text");
    fs::write(&text, "#!/bin/sh\necho theirs \"$@\"\n").unwrap();
    let bin = directory.path().join("bin");
    fs::create_dir(&bin).unwrap();
    // By another process: nobody can run what this one has open for writing.
    let program = bin.join("nacre");
    assert!(Command::new("install").args([&text, &program]).status().unwrap().success());
    let words = ["install", "--dry-run", "--from", directory.path().to_str().unwrap()];
    let ran = Command::new(env!("CARGO_BIN_EXE_nacre")).args(words).output().unwrap();
    let said = String::from_utf8(ran.stdout).unwrap();
    assert_eq!(said, format!("theirs {}\n", words.join(" ")));

    // What is no bundle at all is told by the one that was asked.
    fs::remove_file(&program).unwrap();
    let ran = Command::new(env!("CARGO_BIN_EXE_nacre")).args(words).output().unwrap();
    let said = String::from_utf8(ran.stderr).unwrap();
    assert!(ran.status.code() == Some(2) && !said.contains("failed to run"), "{said}");
}
