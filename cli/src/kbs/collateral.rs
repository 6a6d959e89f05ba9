//! `nacre kbs collateral`.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};
use nacre_verifier::{CollateralKey, CollateralStore, Evidence};

use crate::Verdict;
use crate::input::{print, read};

/// The commands.
#[derive(Subcommand)]
pub(crate) enum Command {
    Add(Add),
}

/// Put what the vendor publishes about a machine into a broker's cache, so that it needs no network.
///
/// Of AMD it is the certificate of a chip's key (DER), for evidence that such a chip made; of Intel one JSON
/// document with TCB info, QE identity and revocation lists of a kind of platform. It is not trusted for being
/// there: the broker verifies it with every appraisal.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre kbs collateral add --cache /var/lib/nacre-kbs/collateral --evidence report.bin vcek.der
  nacre kbs collateral add --cache /var/lib/nacre-kbs/collateral platform.json")]
pub(crate) struct Add {
    /// The broker's directory, `collateral.cache` in its configuration.
    #[arg(long, value_name = "DIRECTORY")]
    cache: PathBuf,
    /// Evidence that an AMD chip made: it says which certificate is needed.
    #[arg(long, value_name = "FILE")]
    evidence: Option<PathBuf>,
    /// What to put there.
    file: PathBuf,
}

pub(super) fn run(command: Command) -> anyhow::Result<Verdict> {
    let Command::Add(Add { cache, evidence, file }) = command;
    let bytes = read(&file)?;
    let store = CollateralStore::open(cache)?;
    let Some(path) = evidence else {
        ensure!(
            bytes.trim_ascii_start().starts_with(b"{"),
            "{} is no JSON: a certificate needs --evidence of the chip that it is for",
            file.display()
        );
        store.put_tdx(&bytes).with_context(|| file.display().to_string())?;
        return Ok(Verdict::Good);
    };
    let evidence = Evidence::read(&read(&path)?).with_context(|| path.display().to_string())?;
    // A report of version 2 does not name its product: one of the keys fits.
    let mut problem = None;
    for key in CollateralKey::needed(&evidence) {
        match store.put(&key, &bytes) {
            Ok(()) => {
                print(&format!("kept as {key}\n"))?;
                return Ok(Verdict::Good);
            }
            Err(error) => problem = Some(error),
        }
    }
    match problem {
        Some(error) => Err(error).with_context(|| file.display().to_string()),
        None => bail!("{} needs no certificate from a cache", path.display()),
    }
}
