//! `nacre attest`.

mod appraise;

use clap::Subcommand;

use crate::Verdict;

/// The commands.
#[derive(Subcommand)]
pub(crate) enum Command {
    Appraise(appraise::Arguments),
}

/// Does what a command says.
pub(crate) fn run(command: Command) -> anyhow::Result<Verdict> {
    match command {
        Command::Appraise(arguments) => appraise::run(&arguments),
    }
}
