//! `nacre kbs audit`.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use nacre_kbs::audit::{AuditError, Entry, Verified, verify};
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;

use super::{Administrator, block_on};
use crate::Verdict;
use crate::input::print;
use crate::output::{Output, print_json};

/// The commands.
#[derive(Subcommand)]
pub(crate) enum Command {
    List(List),
    Verify(Verify),
}

/// Show the last entries, oldest first.
#[derive(Args)]
#[command(after_help = "Example:
  nacre kbs audit list --last 5")]
pub(crate) struct List {
    /// How many.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    last: u32,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    administrator: Administrator,
}

/// Check on the broker's machine that no entry of the log was changed, removed or put in.
///
/// Each entry has the hash of the one before it. Cutting entries off at the end cannot be seen from the log
/// alone: compare the printed head with one that was noted elsewhere.
#[derive(Args)]
#[command(after_help = "Example:
  nacre kbs audit verify /var/lib/nacre-kbs/audit

Exit status: 0 the log is whole; 1 it is not; 2 it cannot be read.")]
pub(crate) struct Verify {
    /// Directory of the log.
    #[arg(value_name = "DIRECTORY")]
    log: PathBuf,
    #[command(flatten)]
    output: Output,
}

/// Entries of one answer.
const PAGE: usize = 1000;

pub(super) fn run(command: Command) -> anyhow::Result<Verdict> {
    match command {
        Command::List(arguments) => list(&arguments)?,
        Command::Verify(Verify { log, output }) => return check(&log, output),
    }
    Ok(Verdict::Good)
}

fn list(arguments: &List) -> anyhow::Result<()> {
    let (client, most) = (arguments.administrator.client()?, arguments.last as usize);
    let entries = block_on(async {
        let mut last = VecDeque::new();
        loop {
            let after = last.back().map_or(0, |entry: &Entry| entry.seq);
            let page = client.audit(after, PAGE).await?;
            let whole = page.len() < PAGE;
            last.extend(page);
            last.drain(..last.len().saturating_sub(most));
            if whole {
                return Ok(last);
            }
        }
    })?;
    if arguments.output.is_json() {
        return print_json(&entries);
    }
    let lines: anyhow::Result<String> = entries.iter().map(line).collect();
    print(&lines?)
}

/// An entry on one line.
pub(super) fn line(entry: &Entry) -> anyhow::Result<String> {
    let event = &entry.event;
    let word = |value: &Option<String>| value.as_deref().unwrap_or("-").to_owned();
    let who = event.administrator.as_ref().or(event.client.as_ref()).cloned();
    let emulated = if event.emulated == Some(true) { " emulated" } else { "" };
    let name = |value: Value| value.as_str().unwrap_or_default().to_owned();
    Ok(format!(
        "{} {} {} {} {} {}{emulated} {}\n",
        entry.time.format(&Rfc3339)?,
        name(serde_json::to_value(event.action)?),
        name(serde_json::to_value(event.outcome)?),
        word(&event.subject),
        word(&who),
        word(&event.request),
        event.reason,
    ))
}

fn check(log: &Path, output: Output) -> anyhow::Result<Verdict> {
    let result = match verify(log) {
        Ok(Verified { files, entries, first, last, hash, torn }) => {
            json!({ "whole": true, "files": files, "entries": entries, "first": first, "last": last,
                    "head": hash, "bytes_behind_the_last_line": torn })
        }
        Err(error @ AuditError::File { .. }) => return Err(error.into()),
        Err(error) => json!({ "whole": false, "problem": error.to_string() }),
    };
    output.show(&result, text)?;
    Ok(if result["whole"] == true { Verdict::Good } else { Verdict::Bad })
}

fn text(result: &Value) -> String {
    let word = |name: &str| match &result[name] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if result["whole"] != true {
        return format!("NOT whole: {}\n", word("problem"));
    }
    let [entries, first, last, files, head] =
        ["entries", "first", "last", "files", "head"].map(word);
    let mut text =
        format!("whole: {entries} entries ({first} to {last}) in {files} files\nhead   {head}\n");
    if result["bytes_behind_the_last_line"] != 0 {
        let torn = word("bytes_behind_the_last_line");
        text.push_str(&format!(
            "note   {torn} bytes behind the last entry are no whole line yet\n"
        ));
    }
    text
}
