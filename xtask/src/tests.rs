//! The tests, in two parts: what needs only a compiler, and what starts VMs.

use std::fs;

use anyhow::{Context, Result};

use crate::build::HOST;
use crate::step::{Step, run};
use crate::tree::{TARGET, Tree};

/// Unit and integration tests of the crates.
pub(crate) fn crates(tree: &Tree, filter: Option<&str>) -> Result<()> {
    let step = Step::new("tests of the crates");
    let mut cargo = tree.cargo("test");
    cargo.args(["--locked", "--workspace", "--exclude", "nacre-tests", "--exclude", "nacre-pause"]);
    run(cargo.args(filter))?;
    step.done();
    Ok(())
}

/// End-to-end tests: containerd, registry and VMs, one test at a time, as root; without those of
/// containerd releases that are not there.
pub(crate) fn with_vms(tree: &Tree, filter: Option<&str>, missing: &[String]) -> Result<()> {
    let step = Step::new("tests with VMs");
    let mut cargo = tree.cargo("test");
    cargo.args(["--locked", "--release"]);
    cargo.args(HOST.iter().flat_map(|package| ["--package", package]));
    for story in stories(tree)? {
        cargo.args(["--test", &story]);
    }
    cargo.args(filter).args(["--", "--test-threads=1"]);
    for release in missing {
        // Their names: containerd_2_1_...
        let name = format!("containerd_{}", release.replace('.', "_"));
        step.say(format!("SKIPPED: tests named {name}..."));
        cargo.args(["--skip", &name]);
    }
    // Cargo compiles as the caller and starts only the tests through this.
    let words = tree.root_words()?;
    if !words.is_empty() {
        let runner = format!("{} --preserve-env=NACRE_PREFIX,NACRE_BIN", words.join(" "));
        let variable = TARGET.to_uppercase().replace('-', "_");
        cargo.env(format!("CARGO_TARGET_{variable}_RUNNER"), runner);
    }
    run(&mut cargo)?;
    step.done();
    Ok(())
}

/// Names of the end-to-end tests: the files in `tests/tests`.
fn stories(tree: &Tree) -> Result<Vec<String>> {
    let folder = tree.root().join("tests/tests");
    let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs")
            && let Some(name) = path.file_stem().and_then(|name| name.to_str())
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}
