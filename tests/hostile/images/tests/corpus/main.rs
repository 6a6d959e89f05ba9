//! Runs every hostile image and registry against Nacre's engine.
//!
//! Each case has a process of its own, in a mount namespace and on a tmpfs of its own, so that its
//! memory can be measured and its damage contained. Needs root, as the guest's agent has it: owners,
//! trusted attributes, mounts. Without, the cases are skipped and that is said.
//!
//! Arguments: parts of names of classes or cases; `--list`; `--slow` for the thirty slowest.

mod outside;
mod puller;

use std::collections::VecDeque;
use std::io::Read as _;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nacre_hostile_images::authority::Authority;
use nacre_hostile_images::case::{Case, Class, Expect, Hosts, Seen};
use nacre_hostile_images::corpus;
use nacre_hostile_images::registry::{Port, Served};
use puller::Report;

/// Cases at a time; most of their time goes into waiting.
const WORKERS: usize = 4;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(outcome) = puller::serve(&arguments) {
        return outcome;
    }
    let cases = selected(&arguments);
    if arguments.iter().any(|argument| argument == "--list") {
        for case in &cases {
            println!("{}/{}: test", case.class, case.name);
        }
        return ExitCode::SUCCESS;
    }
    if let Err(problem) = namespace("true", &[]).and_then(|child| finish(child, WAIT)) {
        println!("SKIPPED: {} hostile images, they need root to run: {problem:#}", cases.len());
        return ExitCode::SUCCESS;
    }
    let started = Instant::now();
    let outcomes = run(cases);
    let failed = outcomes.iter().filter(|outcome| outcome.problem.is_err()).count();
    print(&outcomes);
    if arguments.iter().any(|argument| argument == "--slow") {
        let mut slow: Vec<&Outcome> = outcomes.iter().collect();
        slow.sort_by_key(|outcome| std::cmp::Reverse(outcome.time));
        for outcome in slow.into_iter().take(30) {
            let peak = outcome.problem.as_ref().map_or(0, |report| report.peak_kib / 1024);
            let (time, name) = (outcome.time.as_secs_f64(), outcome.name);
            println!("{time:6.1} s {peak:4} MiB {}/{name}", outcome.class);
        }
    }
    // As other test programs end: a case is a test.
    println!(
        "\ntest result: {}. {} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out; \
         finished in {:.2}s",
        if failed == 0 { "ok" } else { "FAILED" },
        outcomes.len() - failed,
        started.elapsed().as_secs_f64()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Cases whose class or name holds one of the arguments; all without any.
fn selected(arguments: &[String]) -> Vec<Case> {
    let filters: Vec<&str> =
        arguments.iter().map(|a| &**a).filter(|argument| !argument.starts_with("--")).collect();
    let mut cases = corpus();
    cases.retain(|case| {
        let name = format!("{}/{}", case.class, case.name);
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter))
    });
    cases
}

struct Outcome {
    class: Class,
    name: &'static str,
    attack: &'static str,
    expect: Expect,
    problem: anyhow::Result<Report>,
    time: Duration,
}

/// Runs all; in the order of the corpus.
fn run(cases: Vec<Case>) -> Vec<Outcome> {
    let mut cases: Vec<(usize, Case)> = cases.into_iter().enumerate().collect();
    // Those that mostly wait come first, so that the others fill the gaps.
    cases.sort_by_key(|(_, case)| !matches!(case.class, Class::Transport | Class::Bombs));
    let queue: Mutex<VecDeque<(usize, Case)>> = Mutex::new(cases.into());
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().expect("no panic under lock").pop_front();
                    let Some((number, case)) = next else { return };
                    let started = Instant::now();
                    let problem = one(&case);
                    let outcome = Outcome {
                        class: case.class,
                        name: case.name,
                        attack: case.attack,
                        expect: case.expect,
                        problem,
                        time: started.elapsed(),
                    };
                    outcomes.lock().expect("no panic under lock").push((number, outcome));
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().expect("no panic under lock");
    outcomes.sort_by_key(|(number, _)| *number);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

/// Serves one case and lets a process pull it.
fn one(case: &Case) -> anyhow::Result<Report> {
    let (registry, other) = (Port::take()?, Port::take()?);
    let hosts = Hosts { registry: registry.host().to_owned(), other: other.host().to_owned() };
    let mut served = (case.make)(&hosts);
    let elsewhere = Served::default();
    let elsewhere = match served.other.take() {
        Some(behaviour) => elsewhere.behaving(behaviour),
        None => elsewhere,
    };
    let name = served.reference.take().unwrap_or_else(|| "app:latest".to_owned());
    let reference = format!("{}/{name}", hosts.registry);
    let authority = case.tls.then(Authority::make).transpose()?;
    let (registry, other) =
        (registry.serve(served, authority.as_ref()), other.serve(elsewhere, authority.as_ref()));
    let certificate = authority.as_ref().map_or("", Authority::pem);
    let this = std::env::current_exe()?;
    let this = this.to_str().context("the test's own path is no text")?;
    let child = namespace(
        this,
        &[puller::COMMAND, case.name, &reference, &hosts.registry, &hosts.other, certificate],
    )?;
    let report: Report = finish(child, case.time)?.parse()?;
    report.check(case)?;
    (case.audit)(&Seen { registry: registry.requests(), other: other.requests() })?;
    Ok(report)
}

const WAIT: Duration = Duration::from_secs(10);

/// Starts a program in a mount namespace of its own.
fn namespace(program: &str, arguments: &[&str]) -> anyhow::Result<Child> {
    Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--", program])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("failed to run unshare (package util-linux)")
}

/// What a program said, if it ended well and in time.
fn finish(mut child: Child, time: Duration) -> anyhow::Result<String> {
    let deadline = Instant::now() + time;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("it did not end within {} s", time.as_secs());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let (mut output, mut errors) = (String::new(), String::new());
    child.stdout.take().context("stdout was asked for")?.read_to_string(&mut output)?;
    child.stderr.take().context("stderr was asked for")?.read_to_string(&mut errors)?;
    if !status.success() {
        bail!("it ended with {status}: {}", errors.trim());
    }
    Ok(output)
}

fn print(outcomes: &[Outcome]) {
    for class in Class::ALL {
        let of_class: Vec<&Outcome> = outcomes.iter().filter(|o| o.class == class).collect();
        let failed = of_class.iter().filter(|outcome| outcome.problem.is_err()).count();
        if !of_class.is_empty() {
            let verdict = if failed == 0 { "ok" } else { "FAILED" };
            println!("test {class} ... {verdict} ({} cases)", of_class.len());
        }
        for outcome in of_class {
            if let Err(problem) = &outcome.problem {
                println!("---- {}/{} ----\n{}\n{problem:#}\n", class, outcome.name, outcome.attack);
            }
        }
    }
    println!("\n| class | cases | accepted | rejected | contained | peak MiB | longest s |");
    println!("|---|---|---|---|---|---|---|");
    for class in Class::ALL {
        let of_class: Vec<&Outcome> = outcomes.iter().filter(|o| o.class == class).collect();
        let count = |wanted: fn(&Expect) -> bool| {
            of_class.iter().filter(|o| o.problem.is_ok() && wanted(&o.expect)).count()
        };
        if of_class.is_empty() {
            continue;
        }
        let peak =
            of_class.iter().filter_map(|o| o.problem.as_ref().ok()).map(|r| r.peak_kib).max();
        let longest = of_class.iter().map(|outcome| outcome.time).max().unwrap_or_default();
        println!(
            "| {class} | {} | {} | {} | {} | {} | {:.1} |",
            of_class.len(),
            count(|expect| matches!(expect, Expect::Accept(_))),
            count(|expect| matches!(expect, Expect::Reject(_))),
            count(|expect| matches!(expect, Expect::Contain(_))),
            peak.unwrap_or_default() / 1024,
            longest.as_secs_f64()
        );
    }
}
