//! `nacre policy explain`.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use nacre_policy::Policy;

use super::replay::replay;
use crate::Verdict;
use crate::input::{print, read_policy};
use crate::output::{Output, print_json};

/// Say why a policy denies a request, in the agent's own words.
///
/// The file holds one request, `{"request": "ExecProcessRequest", "input": {...}}`, or a recording of a pod
/// (one JSON object a line), which is replayed so that what happened before counts. Denials of a recording
/// begin with file and line.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre policy explain web.rego --request exec.json
  nacre policy explain web.rego --request 3f2a.jsonl

Exit status: 0 everything is allowed; 1 something is denied; 2 a file cannot be read.")]
pub(crate) struct Arguments {
    /// Policy document or initdata TOML.
    #[arg(value_name = "POLICY")]
    policy: PathBuf,
    /// Request or recording; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    request: PathBuf,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    let text = read_policy(&arguments.policy)?;
    let policy = Policy::parse(&text).with_context(|| arguments.policy.display().to_string())?;
    let judged = replay(&policy, &arguments.request)?;
    if judged.is_empty() {
        bail!("{} holds no request", arguments.request.display());
    }
    if arguments.output.is_json() {
        print_json(&judged)?;
        let allowed = judged.iter().all(|judged| judged.denial.is_none());
        return Ok(if allowed { Verdict::Good } else { Verdict::Bad });
    }
    let single = judged.len() == 1;
    let mut result = String::new();
    for judged in &judged {
        let Some(denial) = &judged.denial else { continue };
        if !single {
            result.push_str(&format!("{}:{}: ", arguments.request.display(), judged.line));
        }
        result.push_str(denial);
        result.push('\n');
    }
    let allowed = result.is_empty();
    if allowed {
        let all = if single { "it" } else { "everything" };
        result = format!("the policy allows {all}\n");
    }
    print(&result)?;
    Ok(if allowed { Verdict::Good } else { Verdict::Bad })
}
