//! `nacre policy`.

mod diff;
mod explain;
mod generate;
mod lint;
mod replay;
mod template;
mod test;

use clap::Subcommand;

use crate::Verdict;

/// The commands.
#[derive(Subcommand)]
pub(crate) enum Command {
    Generate(Box<generate::Arguments>),
    Test(test::Arguments),
    Explain(explain::Arguments),
    Diff(diff::Arguments),
    Lint(lint::Arguments),
    /// Print a policy that allows the host everything: development only, DANGEROUS.
    ///
    /// A pod that runs under it is not confidential: the host can start other images, execute commands,
    /// read and write streams and files.
    #[command(after_help = "Example:
  nacre policy allow-all | nacre initdata create --policy - -o try.toml     for pod.default_initdata")]
    AllowAll,
    /// Print a policy that denies every request: a place to begin from by hand.
    #[command(after_help = "Example:
  nacre policy deny-all > by-hand.rego")]
    DenyAll,
}

/// Does what a command says.
pub(crate) fn run(command: Command) -> anyhow::Result<Verdict> {
    match command {
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Diff(arguments) => diff::run(&arguments),
        Command::Lint(arguments) => lint::run(&arguments),
        Command::AllowAll => template::allow_all(),
        Command::DenyAll => template::deny_all(),
    }
}
