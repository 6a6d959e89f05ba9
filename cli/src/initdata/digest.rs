//! `nacre initdata digest`.

use std::path::PathBuf;

use clap::Args;

use super::Field;
use crate::Verdict;
use crate::input::read_initdata;
use crate::output::Output;

/// Print the digest of an initdata document.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre initdata digest web.toml                       sha256:...
  nacre initdata digest web.toml --field host-data     as an SNP report has it, in hexadecimal digits

Exit status: 0 printed; 2 it cannot be read.")]
pub(crate) struct Arguments {
    /// Initdata TOML, an annotation's text, or YAML of one pod that has the annotation; `-` is standard input.
    #[arg(value_name = "FILE")]
    document: PathBuf,
    /// Print what the hardware reports in this field instead: the digest's first bytes, or the digest and
    /// zero bytes.
    #[arg(long, value_enum)]
    field: Option<Field>,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    let digest = read_initdata(&arguments.document)?.digest();
    let text = match arguments.field {
        Some(field) => field.value(&digest),
        None => digest.to_string(),
    };
    arguments.output.show(&text, |text| format!("{text}\n"))?;
    Ok(Verdict::Good)
}
