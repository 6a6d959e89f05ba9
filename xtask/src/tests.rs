//! The tests, in two parts: what needs only a compiler, and what starts VMs.
//!
//! All test programs come from one compilation, which makes the host's programs as well: two selections of
//! packages would have two sets of features, and cargo would compile nearly everything twice.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::step::{Step, run};
use crate::stories;
use crate::tree::Tree;

/// Every package but the pause program, which has no standard library.
const SELECTION: [&str; 4] = ["--locked", "--workspace", "--exclude", "nacre-pause"];

/// A compiled test program.
pub(crate) struct TestProgram {
    pub(crate) package: PathBuf,
    pub(crate) target: String,
    pub(crate) path: PathBuf,
    pub(crate) kind: Kind,
}

/// What a test program needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It uses all processors that there are.
    Ordinary,
    /// It boots a machine and talks to its agent, mostly one after the other: an integration test of the agent.
    Agent,
    /// It starts VMs under a real containerd: an integration test of `nacre-tests`.
    Story,
}

/// All test programs.
pub(crate) struct Compiled(Vec<TestProgram>);

/// Compiles tests, and the programs that they start.
pub(crate) fn compile(tree: &Tree) -> Result<Compiled> {
    let step = Step::new("tests and host programs");
    let mut cargo = tree.cargo("test");
    cargo.args(SELECTION).args(["--no-run", "--message-format=json-render-diagnostics"]);
    let mut child = cargo.stdout(Stdio::piped()).spawn().context("failed to start cargo")?;
    let messages = child.stdout.take().context("cargo has no output")?;
    let mut programs = Vec::new();
    for line in BufReader::new(messages).lines() {
        let message: Value = serde_json::from_str(&line?).context("a message of cargo's")?;
        programs.extend(TestProgram::of(tree, &message));
    }
    ensure!(child.wait()?.success(), "the tests do not compile; the reasons are above");
    programs.sort_by(|a, b| (&a.package, &a.target).cmp(&(&b.package, &b.target)));
    step.done();
    Ok(Compiled(programs))
}

impl TestProgram {
    /// The program that one of cargo's messages tells of (cargo's book, "JSON messages").
    fn of(tree: &Tree, message: &Value) -> Option<Self> {
        let is_test =
            message["reason"] == "compiler-artifact" && message["profile"]["test"] == true;
        let path = message["executable"].as_str().filter(|_| is_test)?.into();
        let package = PathBuf::from(message["manifest_path"].as_str()?).parent()?.to_owned();
        let target = message["target"]["name"].as_str()?.to_owned();
        let is_integration = message["target"]["kind"][0] == "test";
        let of = |name: &str| is_integration && package == tree.root().join(name);
        let kind = match (of("tests"), of("guest-agent")) {
            (true, _) => Kind::Story,
            (_, true) => Kind::Agent,
            _ => Kind::Ordinary,
        };
        Some(Self { package, target, path, kind })
    }

    /// Its name for people.
    pub(crate) fn name(&self) -> String {
        let package = self.package.file_name().unwrap_or_default().to_string_lossy();
        format!("{} of {package}", self.target)
    }

    /// As `cargo test` announces it.
    pub(crate) fn announcement(&self) -> String {
        format!("     Running {}\n", self.name())
    }

    /// Announces it and starts it as `cargo test` does. Whether all its tests passed.
    pub(crate) fn run(&self, command: &mut Command) -> Result<bool> {
        print!("{}", self.announcement());
        Ok(self.status(command)?.success())
    }

    /// Starts it as `cargo test` does, and waits for its end.
    pub(crate) fn status(&self, command: &mut Command) -> Result<ExitStatus> {
        let status = command.current_dir(&self.package).status();
        status.with_context(|| format!("failed to start {}", self.path.display()))
    }
}

impl Compiled {
    fn of(&self, kind: Kind) -> impl Iterator<Item = &TestProgram> {
        self.0.iter().filter(move |program| program.kind == kind)
    }
}

/// Where programs print to that run beside another.
fn logs(tree: &Tree) -> PathBuf {
    tree.prefix().join("test-logs")
}

/// An error that names those that failed, all of them: one run shows everything.
fn none_of(failed: &[String]) -> Result<()> {
    ensure!(failed.is_empty(), "tests failed: {}; see above", failed.join(", "));
    Ok(())
}

/// Unit and integration tests of the crates, and the examples in their documentation.
pub(crate) fn crates(tree: &Tree, compiled: &Compiled, filter: Option<&str>) -> Result<()> {
    let step = Step::new("tests of the crates");
    let mut failed = Vec::new();
    for program in compiled.of(Kind::Ordinary) {
        if !program.run(tree.command(&program.path).args(filter))? {
            failed.push(program.name());
        }
    }
    let agents = compiled.of(Kind::Agent).collect();
    failed.extend(stories::two_at_a_time(&step, agents, &logs(tree), |program| {
        let mut command = tree.command(&program.path);
        command.args(filter);
        Ok(command)
    })?);
    none_of(&failed)?;
    let mut cargo = tree.cargo("test");
    run(cargo.args(SELECTION).arg("--doc").args(filter))?;
    step.done();
    Ok(())
}

/// End-to-end tests: containerd, registry and VMs, as root; of each program one test at a time. Without those
/// of containerd releases that are not there.
pub(crate) fn with_vms(
    tree: &Tree,
    compiled: &Compiled,
    filter: Option<&str>,
    long: bool,
    missing: &[String],
) -> Result<()> {
    let step = Step::new("tests with VMs");
    // Their names: containerd_2_1_...
    let left_out =
        missing.iter().map(|release| format!("containerd_{}", release.replace('.', "_")));
    let left_out: Vec<String> = left_out.collect();
    for name in &left_out {
        step.say(format!("SKIPPED: tests named {name}..."));
    }
    let programs = compiled.of(Kind::Story).collect();
    let failed = stories::run(&step, programs, &logs(tree), |program| {
        let mut command = tree.root_command("env")?;
        command.args(long.then_some("NACRE_LONG=1")).arg(&program.path).arg("--test-threads=1");
        command.args(left_out.iter().flat_map(|name| ["--skip", name])).args(filter);
        Ok(command)
    })?;
    none_of(&failed)?;
    step.done();
    Ok(())
}

/// Runs that many pods, one after the other; nothing may grow.
pub(crate) fn soak(tree: &Tree, compiled: &Compiled, pods: u32) -> Result<()> {
    let step = Step::new("pods in a loop");
    let soak = compiled.of(Kind::Story).find(|program| program.target == "soak");
    let soak = soak.context("there is no test program named soak")?;
    let mut command = tree.root_command("env")?;
    command
        .arg(format!("NACRE_SOAK_PODS={pods}"))
        .arg(&soak.path)
        .args(["--nocapture", "pods_in_a_loop"]);
    ensure!(soak.run(&mut command)?, "the soak test failed; see above");
    step.done();
    Ok(())
}
