//! `nacre initdata`.

mod broker;
mod create;
mod digest;
mod show;
mod verify;

use clap::{Subcommand, ValueEnum};
use nacre_protocol::initdata::{Algorithm, Digest};

use crate::Verdict;

pub(crate) use broker::BrokerOptions;

/// The commands.
#[derive(Subcommand)]
pub(crate) enum Command {
    Create(Box<create::Arguments>),
    Show(show::Arguments),
    Digest(digest::Arguments),
    Verify(verify::Arguments),
}

/// Does what a command says.
pub(crate) fn run(command: Command) -> anyhow::Result<Verdict> {
    match command {
        Command::Create(arguments) => create::run(&arguments),
        Command::Show(arguments) => show::run(&arguments),
        Command::Digest(arguments) => digest::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
    }
}

/// The digest algorithm of a new document.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Hash {
    /// AMD SEV-SNP.
    Sha256,
    /// Intel TDX.
    Sha384,
    /// Longer than either takes: cut to fit.
    Sha512,
}

impl Hash {
    /// The same in the document's words.
    pub(crate) fn algorithm(self) -> Algorithm {
        match self {
            Self::Sha256 => Algorithm::Sha256,
            Self::Sha384 => Algorithm::Sha384,
            Self::Sha512 => Algorithm::Sha512,
        }
    }
}

/// A place in the hardware's evidence that holds a digest of initdata.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Field {
    /// SEV-SNP: `HOST_DATA`, 32 bytes.
    HostData,
    /// TDX: `MRCONFIGID`, 48 bytes.
    Mrconfigid,
}

impl Field {
    /// What the hardware reports there for a document of that digest, in hexadecimal digits.
    fn value(self, digest: &Digest) -> String {
        match self {
            Self::HostData => hex::encode(digest.host_data()),
            Self::Mrconfigid => hex::encode(digest.mr_config_id()),
        }
    }
}
