//! `nacre kbs policy`.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};

use super::{Administrator, block_on};
use crate::Verdict;
use crate::input::{print, read_text};

/// The commands.
#[derive(Subcommand)]
pub(crate) enum Command {
    Set(Set),
    Show(Show),
    Reset(Reset),
}

/// Let a policy decide who gets which secret, in place of the grants.
///
/// It is Rego: `allow` in the package `policy`, over the claims of the token as input; `data` has
/// `resource-path`, `plugin`, `query` and `grants`. Policies written for Trustee work unchanged. Whatever it
/// says, only guests whose appraisal is affirming are asked about.
#[derive(Args)]
#[command(after_help = "Example:
  nacre kbs policy set who-gets-what.rego")]
pub(crate) struct Set {
    /// The policy; `-` is standard input.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    administrator: Administrator,
}

/// Print the policy that is set.
#[derive(Args)]
#[command(after_help = "Example:
  nacre kbs policy show > who-gets-what.rego")]
pub(crate) struct Show {
    #[command(flatten)]
    administrator: Administrator,
}

/// Let the grants decide again.
#[derive(Args)]
#[command(after_help = "Example:
  nacre kbs policy reset")]
pub(crate) struct Reset {
    #[command(flatten)]
    administrator: Administrator,
}

pub(super) fn run(command: Command) -> anyhow::Result<Verdict> {
    match command {
        Command::Set(Set { file, administrator }) => {
            let (policy, client) = (read_text(&file)?, administrator.client()?);
            block_on(async { Ok(client.set_policy(&policy).await?) })
                .with_context(|| file.display().to_string())?;
        }
        Command::Show(Show { administrator }) => {
            let client = administrator.client()?;
            match block_on(async { Ok(client.policy().await?) })? {
                Some(policy) => print(&policy)?,
                None => print("# no policy is set: the grants decide\n")?,
            }
        }
        Command::Reset(Reset { administrator }) => {
            let client = administrator.client()?;
            block_on(async { Ok(client.delete_policy().await?) })?;
        }
    }
    Ok(Verdict::Good)
}
