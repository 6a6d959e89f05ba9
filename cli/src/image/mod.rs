//! `nacre image`: images as a guest sees them; encrypts and signs them.

mod encrypt;
mod inspect;
mod keygen;
mod layout;
mod manifest;
mod place;
mod push;
mod registry;
mod sign;
mod source;

use clap::Subcommand;

use crate::Verdict;

/// The commands.
#[derive(Subcommand)]
pub(crate) enum Command {
    Inspect(inspect::Arguments),
    Encrypt(Box<encrypt::Arguments>),
    Sign(sign::Arguments),
    Keygen(keygen::Arguments),
}

/// Does what a command says.
pub(crate) fn run(command: Command) -> anyhow::Result<Verdict> {
    match command {
        Command::Inspect(arguments) => block_on(inspect::run(&arguments)),
        Command::Encrypt(arguments) => block_on(encrypt::run(&arguments)),
        Command::Sign(arguments) => block_on(sign::run(&arguments)),
        Command::Keygen(arguments) => keygen::run(&arguments),
    }
}

fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}
