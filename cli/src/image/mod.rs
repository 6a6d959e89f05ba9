//! `nacre image`: container images as a guest sees them, encrypted and signed; and the guest image, which VMs
//! boot, verified and made one's own.

mod build;
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
mod verify;

use std::path::PathBuf;

use clap::Subcommand;
use nacre_configuration::VmSection;

use crate::Verdict;

/// The commands.
#[derive(Subcommand)]
pub(crate) enum Command {
    Inspect(inspect::Arguments),
    Encrypt(Box<encrypt::Arguments>),
    Sign(sign::Arguments),
    Keygen(keygen::Arguments),
    Build(build::Arguments),
    Verify(verify::Arguments),
}

/// Does what a command says.
pub(crate) fn run(command: Command) -> anyhow::Result<Verdict> {
    match command {
        Command::Inspect(arguments) => block_on(inspect::run(&arguments)),
        Command::Encrypt(arguments) => block_on(encrypt::run(&arguments)),
        Command::Sign(arguments) => block_on(sign::run(&arguments)),
        Command::Keygen(arguments) => keygen::run(&arguments),
        Command::Build(arguments) => build::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
    }
}

/// Where a node has its guest image unless its configuration says something else.
fn installed() -> PathBuf {
    VmSection::default().image
}

fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}
