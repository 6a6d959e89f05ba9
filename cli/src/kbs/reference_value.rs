//! `nacre kbs reference-value`.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use nacre_kbs::admin::ReferenceInfo;
use nacre_verifier::ReferenceValues;
use time::format_description::well_known::Rfc3339;

use super::{Administrator, Listing, Named, block_on};
use crate::Verdict;
use crate::input::read;
use crate::table::table;

/// The commands.
#[derive(Subcommand)]
pub(crate) enum Command {
    Add(Add),
    /// List the reference values.
    #[command(after_help = "Example:
  nacre kbs reference-value list --output json")]
    List(Listing),
    /// Accept such guests no longer.
    #[command(after_help = "Example:
  nacre kbs reference-value remove nacre-0.1.0-snp-3f2a")]
    Remove(Named),
}

/// Accept guests that measure what this document says. One of the same name is replaced.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre measure --tee snp --tcb-minimum tcb.json -o guest.json && nacre kbs reference-value add guest.json

`nacre measure --help` says what is in tcb.json.")]
pub(crate) struct Add {
    /// What `nacre measure` writes; `-` is standard input.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    administrator: Administrator,
}

pub(super) fn run(command: Command) -> anyhow::Result<Verdict> {
    match command {
        Command::Add(Add { file, administrator }) => {
            let document = ReferenceValues::parse(&read(&file)?)
                .with_context(|| file.display().to_string())?;
            let client = administrator.client()?;
            block_on(async { Ok(client.add_reference_values(&document).await?) })?;
        }
        Command::List(Listing { output, administrator }) => {
            let client = administrator.client()?;
            let all = block_on(async { Ok(client.reference_values().await?) })?;
            output.show(&all, |all| listed(&all.documents))?;
        }
        Command::Remove(Named { id, administrator }) => {
            let client = administrator.client()?;
            block_on(async { Ok(client.delete_reference_values(&id).await?) })?;
        }
    }
    Ok(Verdict::Good)
}

fn listed(documents: &[ReferenceInfo]) -> String {
    let rows: Vec<_> = documents
        .iter()
        .map(|ReferenceInfo { expired, document }| {
            let expires =
                match (document.expires.and_then(|end| end.format(&Rfc3339).ok()), expired) {
                    (Some(end), true) => format!("{end} (over)"),
                    (Some(end), false) => end,
                    (None, _) => "-".to_owned(),
                };
            let note = document.note.clone().unwrap_or_default();
            [document.id.clone(), document.tee().to_string(), expires, note]
        })
        .collect();
    table(["ID", "TEE", "EXPIRES", "NOTE"], &rows)
}
