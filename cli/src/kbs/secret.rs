//! `nacre kbs secret`.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::{Args, Subcommand};
use nacre_protocol::kbs::{RESOURCE_LIMIT, ResourceUri};
use time::format_description::well_known::Rfc3339;

use super::{Administrator, Listing, block_on};
use crate::Verdict;
use crate::input::{print, print_bytes, read};
use crate::output::print_json;
use crate::table::table;

/// The commands.
#[derive(Subcommand)]
pub(crate) enum Command {
    Set(Set),
    /// Print a stored secret. The audit log remembers that an administrator read it.
    #[command(after_help = "Example:
  nacre kbs secret get kbs:///default/web/password")]
    Get(Stored),
    /// List the stored secrets, without their contents.
    #[command(after_help = "Example:
  nacre kbs secret list --output json")]
    List(Listing),
    /// Delete a secret.
    #[command(after_help = "Example:
  nacre kbs secret delete kbs:///default/web/password")]
    Delete(Stored),
}

/// Store a secret under its URI, in place of what is there.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre kbs secret set kbs:///default/web/password --from password.txt
  openssl rand 32 | nacre kbs secret set kbs:///default/web/key --from -

The broker keeps it encrypted. Storing it gives it to nobody: see `nacre kbs grant`.")]
pub(crate) struct Set {
    /// `kbs:///repository/type/name`
    uri: ResourceUri,
    /// File with the content, taken byte by byte; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    #[command(flatten)]
    administrator: Administrator,
}

/// A stored secret.
#[derive(Args)]
pub(crate) struct Stored {
    /// `kbs:///repository/type/name`
    uri: ResourceUri,
    #[command(flatten)]
    administrator: Administrator,
}

pub(super) fn run(command: Command) -> anyhow::Result<Verdict> {
    match command {
        Command::Set(arguments) => set(&arguments),
        Command::Get(Stored { uri, administrator }) => {
            let client = administrator.client()?;
            print_bytes(&block_on(async { Ok(client.resource(&uri).await?) })?)
        }
        Command::List(arguments) => list(&arguments),
        Command::Delete(Stored { uri, administrator }) => {
            let client = administrator.client()?;
            block_on(async { Ok(client.delete_resource(&uri).await?) })
        }
    }?;
    Ok(Verdict::Good)
}

fn set(arguments: &Set) -> anyhow::Result<()> {
    let content = read(&arguments.from)?;
    ensure!(!content.is_empty(), "{} is empty", arguments.from.display());
    ensure!(
        content.len() <= RESOURCE_LIMIT,
        "{} has {} bytes; a secret has {RESOURCE_LIMIT} at most",
        arguments.from.display(),
        content.len()
    );
    if content.ends_with(b"\n") && !content.trim_ascii_end().contains(&b'\n') {
        eprintln!("note: the content ends with a line break, which is stored with it");
    }
    let client = arguments.administrator.client()?;
    block_on(async { Ok(client.set_resource(&arguments.uri, &content).await?) })
        .with_context(|| format!("failed to store {}", arguments.uri))
}

fn list(arguments: &Listing) -> anyhow::Result<()> {
    let client = arguments.administrator.client()?;
    let secrets = block_on(async { Ok(client.resources().await?) })?;
    if arguments.output.is_json() {
        return print_json(&secrets);
    }
    let rows = secrets.iter().map(|secret| {
        let modified = secret.modified.format(&Rfc3339)?;
        Ok([secret.uri.to_string(), secret.bytes.to_string(), modified])
    });
    let rows = rows.collect::<anyhow::Result<Vec<_>>>()?;
    print(&table(["URI", "BYTES", "MODIFIED"], &rows))
}
