//! `nacre gc`, as the administrator of a node uses it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

/// With directories of its own for everything: the machine that runs the tests may be a node.
fn gc(root: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nacre"));
    command.args(["gc", "--output", "json", "--run-root"]).arg(root);
    command.arg("--history-root").arg(root.join(".history"));
    command.arg("--root").arg(root.join(".root")).args(more).output().unwrap()
}

fn told(dry_run: bool, sandboxes: &[&Value]) -> Value {
    json!({ "dry_run": dry_run, "sandboxes": sandboxes, "versions": [], "versions_failed": [] })
}

fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn what_a_dead_shim_left_is_told_and_then_removed_and_told() {
    let root = tempfile::tempdir().unwrap();
    let nothing = told(false, &[]);
    let none = gc(&root.path().join("absent"), &[]);
    assert_eq!((none.status.code(), document(&none)), (Some(0), nothing.clone()));

    let dead = root.path().join("dead");
    std::fs::create_dir(&dead).unwrap();
    let groups = tempfile::tempdir().unwrap();
    let group = groups.path().join("group");
    std::fs::create_dir(&group).unwrap();
    // A shim that has been reaped: no process has that number and that time.
    let record = json!({
        "pod": { "namespace": "default", "name": "web", "uid": "7" },
        "shim": { "pid": std::process::id(), "started": 1 },
        "control_groups": [group],
    });
    std::fs::write(dead.join("record.json"), record.to_string()).unwrap();

    let things = json!([
        { "kind": "control-group", "path": group },
        { "kind": "directory", "path": dead },
    ]);
    let sandbox = json!({
        "id": "dead",
        "pod": { "namespace": "default", "name": "web", "uid": "7" },
        "things": things,
        "failed": [],
    });
    let found = gc(root.path(), &["--dry-run"]);
    assert_eq!((found.status.code(), document(&found)), (Some(1), told(true, &[&sandbox])));
    assert!(dead.exists() && group.exists());

    let removed = gc(root.path(), &[]);
    assert_eq!((removed.status.code(), document(&removed)), (Some(0), told(false, &[&sandbox])));
    assert!(!dead.exists() && !group.exists());
    assert_eq!(document(&gc(root.path(), &[])), nothing);
}

#[test]
fn what_cannot_be_removed_is_the_exit_status() {
    let root = tempfile::tempdir().unwrap();
    let dead = root.path().join("dead");
    let groups = tempfile::tempdir().unwrap();
    let group = groups.path().join("group");
    std::fs::create_dir(&dead).unwrap();
    std::fs::create_dir_all(group.join("occupied")).unwrap();
    let record = json!({ "control_groups": [group] });
    std::fs::write(dead.join("record.json"), record.to_string()).unwrap();
    let output = gc(root.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    let failed = document(&output)["sandboxes"][0]["failed"][0].as_str().unwrap().to_owned();
    assert!(failed.contains(group.to_str().unwrap()), "{failed}");
    assert!(dead.exists(), "it is found again");
}

#[test]
fn versions_that_cannot_be_looked_at_do_not_hide_what_became_of_sandboxes() {
    let root = tempfile::tempdir().unwrap();
    let dead = root.path().join("dead");
    std::fs::create_dir(&dead).unwrap();
    let nacre = root.path().join(".root/opt/nacre");
    std::fs::create_dir_all(nacre.parent().unwrap()).unwrap();
    std::fs::write(&nacre, "not a directory").unwrap();
    let output = gc(root.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    let document = document(&output);
    assert_eq!(document["sandboxes"][0]["id"], "dead");
    assert!(document["versions_failed"][0].as_str().unwrap().contains("opt/nacre"), "{document}");
    assert!(!dead.exists());
}
