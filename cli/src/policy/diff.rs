//! `nacre policy diff`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use nacre_policy_author::diff::diff;
use nacre_policy_author::document::Document;

use crate::Verdict;
use crate::input::read_policy;
use crate::output::Output;

/// Say in words what the second policy allows or forbids that the first does not.
///
/// Each line begins with `+` (more is allowed), `-` (less is allowed) or `~` (something else is expected),
/// then names the pod, container, volume or cluster grant. Values of secrets are not shown.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre policy diff old.rego new.rego
  nacre policy generate web.yaml | nacre policy diff deployed.rego -

Exit status: 0 both allow the same; 1 they differ; 2 a policy cannot be read.")]
pub(crate) struct Arguments {
    /// Policy document or initdata TOML; `-` is standard input.
    #[arg(value_name = "A")]
    from: PathBuf,
    /// The same.
    #[arg(value_name = "B")]
    to: PathBuf,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    let (from, to) = (document(&arguments.from)?, document(&arguments.to)?);
    let changes = diff(&from, &to);
    let lines: Vec<String> = changes.iter().map(ToString::to_string).collect();
    arguments
        .output
        .show(&lines, |lines| lines.iter().map(|line| format!("{line}\n")).collect())?;
    Ok(if changes.is_empty() { Verdict::Good } else { Verdict::Bad })
}

fn document(path: &Path) -> anyhow::Result<Document> {
    Document::parse(&read_policy(path)?).with_context(|| path.display().to_string())
}
