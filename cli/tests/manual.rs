//! What shells and `man` are told of the commands.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::process::Command;

fn nacre(words: &[&str]) -> (Option<i32>, String, String) {
    let ran = Command::new(env!("CARGO_BIN_EXE_nacre")).args(words).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (ran.status.code(), text(ran.stdout), text(ran.stderr))
}

#[test]
fn bash_takes_the_completions_and_completes_with_them() {
    let (code, script, _) = nacre(&["completion", "bash"]);
    assert_eq!(code, Some(0));
    let script = format!(
        "{script}\nCOMP_WORDS=(nacre policy gen) COMP_CWORD=2\n_nacre nacre gen policy\necho \"${{COMPREPLY[@]}}\""
    );
    let ran = Command::new("bash").args(["--norc", "-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&ran.stdout).trim(), "generate", "{ran:?}");
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        assert!(nacre(&["completion", shell]).1.contains("generate"), "{shell}");
    }
    let (code, _, error) = nacre(&["completion", "csh"]);
    assert_eq!(code, Some(2));
    assert!(error.contains("possible values: bash"), "{error}");
}

#[test]
fn the_manual_has_a_page_for_each_command() {
    let to = tempfile::tempdir().unwrap();
    let path = to.path().to_str().unwrap();
    assert_eq!(nacre(&["man", path]).0, Some(0));
    let page = |name: &str| fs::read_to_string(to.path().join(name)).unwrap();
    assert!(page("nacre.1").contains(".TH nacre 1"));
    let generate = page("nacre-policy-generate.1");
    assert!(generate.contains("nacre\\-policy\\-generate") && generate.contains("Examples"));
    assert!(page("nacre-kbs-secret-set.1").contains("standard input"));
    let (code, _, error) = nacre(&["man", "/no/such/place"]);
    assert_eq!(code, Some(2));
    assert!(error.contains("/no/such/place is not a directory"), "{error}");
}

#[test]
fn nothing_is_coloured_that_no_terminal_shows() {
    for words in [&["check"][..], &["--help"], &["no-such-command"]] {
        let (_, out, error) = nacre(words);
        assert!(!format!("{out}{error}").contains('\x1b'), "{words:?}");
    }
}
