//! `nacre ps`.

use clap::Args;
use nacre_run_directory::report::now_us;
use serde::Serialize;

use crate::Verdict;
use crate::output::Output;
use crate::sandboxes::{Known, Places, duration};
use crate::table::table;

/// List this node's pods in virtual machines.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre ps                             the pods that are there
  nacre ps --all                       and the last that are gone, with those that failed
  nacre ps --output json | jq '.sandboxes[] | select(.condition == \"failed\") | .reason'

A pod that is dead has lost its shim: `nacre gc` removes what is left of it.")]
pub(crate) struct Arguments {
    /// Pods that failed or ended, too
    #[arg(long, short)]
    all: bool,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    places: Places,
}

#[derive(Serialize)]
struct Document {
    sandboxes: Vec<Known>,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    let Arguments { all, output, places } = arguments;
    let sandboxes = if *all { places.all()? } else { places.present()? };
    output.show(&Document { sandboxes }, |document| text(document, now_us()))?;
    Ok(Verdict::Good)
}

fn text(document: &Document, now_us: u64) -> String {
    let row = |known: &Known| {
        let report = &known.report;
        let is_app = |container: &&nacre_run_directory::report::ContainerName| {
            !container.name.is_empty() || container.id != report.sandbox
        };
        [
            report.name(),
            report.sandbox.chars().take(12).collect(),
            known.condition.name().to_owned(),
            report.tee.clone(),
            report.containers.iter().filter(is_app).count().to_string(),
            duration(report.start_us()),
            duration(now_us.saturating_sub(report.began_us)),
        ]
    };
    let rows: Vec<_> = document.sandboxes.iter().map(row).collect();
    table(["POD", "SANDBOX", "STATE", "TEE", "CONTAINERS", "START", "AGE"], &rows)
}
