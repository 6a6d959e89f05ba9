//! The pause program as it goes into the image, started on this machine.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Builds the freestanding program: this test's own profile has the hosted one.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pause");
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--profile", "freestanding", "--locked"])
            .args(["--package", "nacre-pause"])
            .arg("--target-dir")
            .arg(&target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status();
        assert!(built.unwrap().success());
        target.join("x86_64-unknown-linux-gnu/freestanding/nacre-pause")
    })
}

fn signal(process: u32, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &process.to_string()]).status();
    assert!(sent.unwrap().success());
}

fn children(process: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap();
    list.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "still waiting until {what}");
        sleep(Duration::from_millis(10));
    }
}

/// Until it sleeps for the first time, in its wait for signals, one could end it the ordinary way.
fn wait_until_it_waits(process: u32) {
    wait_until("the program waits for signals", || {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        status.lines().any(|line| line.starts_with("Name:\tnacre-pause"))
            && status.lines().any(|line| line.starts_with("State:\tS"))
    });
}

/// A process that does not outlive its test.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    fn id(&self) -> u32 {
        self.0.id()
    }

    fn exit_code(mut self) -> Option<i32> {
        self.0.wait().unwrap().code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn it_is_a_few_kib() {
    assert!(fs::metadata(program()).unwrap().len() < 8 << 10);
}

#[test]
fn it_ends_with_zero_on_sigterm_and_sigint_and_not_on_others() {
    for last in ["TERM", "INT"] {
        let mut pause = Process::start(&mut Command::new(program()));
        wait_until_it_waits(pause.id());
        for other in ["HUP", "USR1", "ALRM", "CHLD"] {
            signal(pause.id(), other);
        }
        sleep(Duration::from_millis(100));
        assert!(pause.0.try_wait().unwrap().is_none(), "ended by another signal");
        signal(pause.id(), last);
        assert_eq!(pause.exit_code(), Some(0), "SIG{last}");
    }
}

#[test]
fn as_process_1_it_reaps_orphans_and_hears_sigterm_from_within() {
    let mut unshare = Command::new("unshare");
    let possible = unshare.args(["--pid", "--fork", "true"]).output().unwrap().status.success();
    if !possible {
        println!("SKIPPED: no PID namespace can be made here; run as root");
        return;
    }
    let mut unshare = Command::new("unshare");
    unshare.args(["--pid", "--fork", "--kill-child"]).arg(program());
    let outer = Process::start(&mut unshare);
    wait_until("the namespace has its first process", || children(outer.id()).len() == 1);
    let pause = children(outer.id())[0];
    wait_until_it_waits(pause);
    let inside = |words: &[&str]| {
        let target = pause.to_string();
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--target", &target, "--pid"]).args(words).status().unwrap().success()
    };

    assert!(inside(&["sh", "-c", "sleep 0.3 & sleep 0.4 &"]));
    wait_until("the orphans are its children", || children(pause).len() == 2);
    wait_until("they have ended and are reaped", || children(pause).is_empty());

    // Whether the shell or the namespace it is in ends first does not matter.
    let _ = inside(&["sh", "-c", "kill -TERM 1"]);
    assert_eq!(outer.exit_code(), Some(0));
}
