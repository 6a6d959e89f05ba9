//! `nacre policy lint`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};
use nacre_policy_author::document::{Document, DocumentError};
use nacre_policy_author::lint::{Finding, RULES, Severity, lint, lint_plain};
use serde::Serialize;

use crate::Verdict;
use crate::input::read_policy;
use crate::output::Output;

/// Warn of grants that are worth a second look, and say what to do.
///
/// Severities: `danger` (the host can take over the pod or read what is in it), `warning` (the host gains
/// influence), `note` (good to know).
#[derive(Args)]
#[command(after_help = "Examples:
  nacre policy lint web.rego
  nacre policy lint --fail-on danger --output json web.rego
  nacre policy lint --list-rules

Exit status: 0 nothing at or above --fail-on; 1 findings; 2 a policy cannot be read.")]
pub(crate) struct Arguments {
    /// Policy documents or initdata TOML; `-` is standard input.
    #[arg(required_unless_present = "list_rules", value_name = "POLICY")]
    policies: Vec<PathBuf>,
    /// Least severity that makes the exit status 1.
    #[arg(long, value_enum, default_value_t = FailOn::Warning)]
    fail_on: FailOn,
    /// List all checks.
    #[arg(long)]
    list_rules: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FailOn {
    Danger,
    Warning,
    Note,
    Never,
}

impl FailOn {
    fn least(self) -> Option<Severity> {
        match self {
            Self::Danger => Some(Severity::Danger),
            Self::Warning => Some(Severity::Warning),
            Self::Note => Some(Severity::Note),
            Self::Never => None,
        }
    }
}

/// One of the checks.
#[derive(Serialize)]
struct Rule {
    rule: &'static str,
    severity: Severity,
    fix: &'static str,
}

#[derive(Serialize)]
struct Found {
    policy: String,
    #[serde(flatten)]
    finding: Finding,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    if arguments.list_rules {
        let rules = RULES.iter().map(|&(rule, severity, fix)| Rule { rule, severity, fix });
        arguments.output.show(&rules.collect::<Vec<_>>(), |rules| {
            let line = |r: &Rule| format!("{:8} {:18} {}\n", r.severity.name(), r.rule, r.fix);
            rules.iter().map(line).collect()
        })?;
        return Ok(Verdict::Good);
    }
    let mut found = Vec::new();
    for path in &arguments.policies {
        let policy = path.display().to_string();
        let findings = findings(path).with_context(|| policy.clone())?;
        found.extend(findings.into_iter().map(|finding| Found { policy: policy.clone(), finding }));
    }
    arguments.output.show(&found, |found| found.iter().map(line).collect())?;
    let fails = |found: &Found| {
        arguments.fail_on.least().is_some_and(|least| found.finding.severity >= least)
    };
    Ok(if found.iter().any(fails) { Verdict::Bad } else { Verdict::Good })
}

fn findings(path: &Path) -> anyhow::Result<Vec<Finding>> {
    let text = read_policy(path)?;
    match Document::parse(&text) {
        Ok(document) => Ok(lint(&document)),
        // Plain Rego: what grants everything can be told, no more.
        Err(DocumentError::NoData) => {
            nacre_policy::Policy::parse(&text)?;
            Ok(lint_plain(&text))
        }
        Err(error) => Err(error.into()),
    }
}

fn line(found: &Found) -> String {
    let Found { policy, finding } = found;
    let container =
        finding.container.as_ref().map_or_else(String::new, |name| format!("container {name}: "));
    format!(
        "{policy}: {} [{}] {container}{}\n    {}\n",
        finding.severity.name(),
        finding.rule,
        finding.message,
        finding.fix
    )
}
