//! Formatting, clippy and the rules for dependencies in deny.toml.

use anyhow::Result;

use crate::step::{Step, run};
use crate::tree::Tree;

/// Runs them all, the quick ones first.
pub(crate) fn all(tree: &Tree) -> Result<()> {
    let step = Step::new("formatting");
    run(tree.cargo("fmt").args(["--all", "--check"]))?;
    step.done();

    let step = Step::new("dependencies");
    let present = tree.cargo("deny").arg("--version").output().is_ok_and(|o| o.status.success());
    if present {
        run(tree.cargo("deny").args(["--locked", "check", "bans", "licenses", "sources"]))?;
        step.say("not checked here: advisories, whose database is fetched (cargo deny check)");
    } else {
        step.say("NOT CHECKED: cargo-deny is missing (cargo install --locked cargo-deny)");
    }
    step.done();

    let step = Step::new("clippy");
    let clippy = |arguments: &[&str]| {
        run(tree.cargo("clippy").arg("--locked").args(arguments).args(["--", "-D", "warnings"]))
    };
    clippy(&["--workspace", "--all-targets"])?;
    // The pause program's freestanding half exists only where a panic aborts.
    clippy(&["--profile", "freestanding", "--package", "nacre-pause"])?;
    step.done();
    Ok(())
}
