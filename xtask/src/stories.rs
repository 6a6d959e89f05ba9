//! Test programs that boot machines: two at a time, for a machine boots on one processor and each program has all
//! that it needs to itself. What one prints comes whole, when it has ended.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, ensure};

use crate::step::Step;
use crate::tests::TestProgram;

/// How many run at once: CI has two processors.
const AT_ONCE: usize = 2;

/// These stories begin: they take longest, and one that ends long after all others has had a processor to itself.
const FIRST: [&str; 3] = ["pods", "conformance", "sizing"];

/// These stories come last, each alone.
const ALONE: [&str; 3] = [
    // Strikes at moments that a pod's life should have reached by then.
    "faults",
    // One pod is asked about a hundred things between two of containerd's own requests, which have deadlines.
    "hostile", // Starts ten machines at once, and counts what daemons hold.
    "soak",
];

/// Runs all stories; returns the names of the programs in which one failed. `command` starts a program, `logs` is
/// for what those print that run beside another.
pub(crate) fn run(
    step: &Step,
    mut programs: Vec<&TestProgram>,
    logs: &Path,
    command: impl Fn(&TestProgram) -> Result<Command> + Sync,
) -> Result<Vec<String>> {
    for name in FIRST.iter().chain(&ALONE) {
        let exists = programs.iter().any(|program| program.target == *name);
        ensure!(exists, "xtask/src/stories.rs has a place for {name}, which is no program");
    }
    programs.sort_by_key(|program| !FIRST.contains(&program.target.as_str()));
    let (alone, together): (VecDeque<_>, VecDeque<_>) =
        programs.into_iter().partition(|program| ALONE.contains(&program.target.as_str()));
    let mut failed = two_at_a_time(step, together, logs, &command)?;
    for program in alone {
        if !program.run(&mut command(program)?)? {
            failed.push(program.name());
        }
    }
    Ok(failed)
}

/// Runs programs that do not mind each other; returns the names of those that failed.
pub(crate) fn two_at_a_time(
    step: &Step,
    programs: VecDeque<&TestProgram>,
    logs: &Path,
    command: impl Fn(&TestProgram) -> Result<Command> + Sync,
) -> Result<Vec<String>> {
    fs::create_dir_all(logs).with_context(|| format!("failed to make {}", logs.display()))?;
    let waiting = Mutex::new(programs);
    let failed = Mutex::new(Vec::new());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let work = || -> Result<()> {
        while let Some(program) = next() {
            let log = logs.join(format!("{}.log", program.name().replace(' ', "-")));
            step.say(format!("{} has started; it prints to {}", program.name(), log.display()));
            if !run_beside(program, command(program)?, &log)? {
                failed.lock().unwrap_or_else(PoisonError::into_inner).push(program.name());
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    Ok(failed.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Runs a program and then shows what it has printed. Whether all its tests passed.
fn run_beside(program: &TestProgram, mut command: Command, log: &Path) -> Result<bool> {
    let shown = || format!("failed to write or read {}", log.display());
    let file = File::create(log).with_context(shown)?;
    command.stdout(file.try_clone().with_context(shown)?).stderr(file);
    let status = program.status(&mut command)?;
    let printed = fs::read(log).with_context(shown)?;
    // One call: what others print does not come between.
    print!("{}{}", program.announcement(), String::from_utf8_lossy(&printed));
    Ok(status.success())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process;

    use super::*;
    use crate::tests::Kind;

    fn program(target: &str) -> TestProgram {
        let target = target.to_owned();
        TestProgram { package: "/".into(), target, path: PathBuf::new(), kind: Kind::Story }
    }

    #[test]
    fn two_run_at_once_and_some_alone_and_failures_are_named() {
        let logs = std::env::temp_dir().join(format!("nacre-xtask-stories-{}", process::id()));
        let names = FIRST.iter().chain(&ALONE).copied().chain(["one", "bad", "two", "three"]);
        let all: Vec<_> = names.map(program).collect();
        let script = r#"echo "+$0" >>events; sleep 0.1; echo "-$0" >>events; [ "$0" != bad ]"#;
        let command = |story: &TestProgram| {
            let mut command = Command::new("sh");
            command.args(["-c", &script.replace("events", &format!("{}/events", logs.display()))]);
            command.arg(&story.target);
            Ok(command)
        };
        let step = Step::new("programs that only tell of themselves");
        let failed = run(&step, all.iter().collect(), &logs, command).unwrap();
        let events = fs::read_to_string(logs.join("events")).unwrap();
        fs::remove_dir_all(&logs).unwrap();
        assert_eq!(failed, [all.iter().find(|it| it.target == "bad").unwrap().name()]);
        assert_eq!(events.lines().count(), 2 * all.len(), "{events}");
        let mut running: Vec<&str> = Vec::new();
        for event in events.lines() {
            let (what, name) = event.split_at(1);
            match what {
                "+" => running.push(name),
                _ => running.retain(|it| *it != name),
            }
            assert!(running.len() <= AT_ONCE, "{events}");
            let is_alone = running.iter().any(|name| ALONE.contains(name));
            assert!(!is_alone || running.len() == 1, "{events}");
        }
        assert!(run(&step, Vec::new(), &logs, command).is_err(), "a place for nobody");
    }
}
