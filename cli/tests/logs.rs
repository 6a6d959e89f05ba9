//! `nacre logs --follow`, of pods that go away.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nacre_run_directory::RunDir;
use nacre_run_directory::history::History;

/// A guard against hanging; it ends at once.
const PATIENCE: Duration = Duration::from_secs(60);

fn follow(root: &Path, sandbox: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nacre"));
    command.args(["logs", sandbox, "--follow", "--run-root"]).arg(root);
    command.arg("--history-root").arg(root.join(".history"));
    command.stdout(Stdio::piped()).spawn().unwrap()
}

fn end(mut child: Child) -> String {
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("it follows what nobody writes any more");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

#[test]
fn nobody_follows_the_dead() {
    let root = tempfile::tempdir().unwrap();
    let dead = root.path().join("dead");
    std::fs::create_dir(&dead).unwrap();
    std::fs::write(dead.join("console.log"), "one\ntwo").unwrap();
    assert_eq!(end(follow(root.path(), "dead")), "one\ntwo\n");
    assert!(dead.exists());
}

#[tokio::test]
async fn what_a_pod_said_at_its_end_is_shown() {
    let root = tempfile::tempdir().unwrap();
    let history = History::at(&root.path().join(".history"));
    let living = RunDir::create(root.path(), &history, "living").await.unwrap();
    let mut console = std::fs::File::create(living.path().join("console.log")).unwrap();
    console.write_all(b"one\n").unwrap();
    let following = follow(root.path(), "living");
    let opened = |pid: u32| {
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let path = living.path().join("console.log");
        files.flatten().any(|file| std::fs::read_link(file.path()).is_ok_and(|to| to == path))
    };
    let started = Instant::now();
    while !opened(following.id()) {
        assert!(started.elapsed() < PATIENCE, "it is not read");
        std::thread::sleep(Duration::from_millis(10));
    }
    console.write_all(b"last words\n").unwrap();
    living.remove().unwrap();
    assert_eq!(end(following), "one\nlast words\n");
}
