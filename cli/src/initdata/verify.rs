//! `nacre initdata verify`.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Args;
use nacre_evidence::Evidence;
use serde_json::json;

use super::Field;
use crate::Verdict;
use crate::input::{read, read_initdata};
use crate::output::Output;

/// Check an initdata document against a digest, or against evidence of a guest that took it.
///
/// Evidence is compared, not judged: whether it is genuine says `nacre attest appraise`.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre initdata verify web.toml --digest sha256:9f86...
  nacre initdata verify web.yaml --evidence evidence.json

Exit status: 0 it is that document; 1 it is another; 2 something cannot be read.")]
pub(crate) struct Arguments {
    /// Initdata TOML, an annotation's text, or YAML of one pod that has the annotation; `-` is standard input.
    #[arg(value_name = "FILE")]
    document: PathBuf,
    #[command(flatten)]
    against: Against,
    #[command(flatten)]
    output: Output,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Against {
    /// The digest as `nacre initdata digest` prints it: algorithm:hex.
    #[arg(long, value_name = "DIGEST")]
    digest: Option<String>,
    /// The field `HOST_DATA` of an SNP report: 64 hexadecimal digits.
    #[arg(long, value_name = "HEX")]
    host_data: Option<String>,
    /// The field `MRCONFIGID` of a TDX quote: 96 hexadecimal digits.
    #[arg(long, value_name = "HEX")]
    mrconfigid: Option<String>,
    /// Evidence: an SNP report, a TDX quote, or the JSON form that guests send.
    #[arg(long, value_name = "FILE")]
    evidence: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    let initdata = read_initdata(&arguments.document)?;
    let digest = initdata.digest();
    let Against { digest: given, host_data, mrconfigid, evidence } = &arguments.against;
    let (what, expected, found) = if let Some(given) = given {
        ensure!(given.contains(':'), "--digest is algorithm:hex, such as {digest}");
        ("digest", digest.to_string(), given.to_lowercase())
    } else if let Some(given) = host_data {
        ("HOST_DATA", Field::HostData.value(&digest), given.to_lowercase())
    } else if let Some(given) = mrconfigid {
        ("MRCONFIGID", Field::Mrconfigid.value(&digest), given.to_lowercase())
    } else {
        let path = evidence.as_deref().context("nothing to verify against")?;
        let read = Evidence::read(&read(path)?).with_context(|| path.display().to_string())?;
        match read {
            Evidence::Snp { report, .. } => (
                "HOST_DATA",
                Field::HostData.value(&digest),
                hex::encode(report.fields().host_data),
            ),
            Evidence::Tdx { quote, .. } => {
                let found = hex::encode(quote.body().mr_config_id);
                ("MRCONFIGID", Field::Mrconfigid.value(&digest), found)
            }
        }
    };
    let is_same = expected == found;
    let result = json!({
        "same": is_same, "compared": what, "digest": digest.to_string(), "expected": expected, "found": found
    });
    arguments.output.show(&result, |_| match is_same {
        true => format!("{what} is that of the document: {digest}\n"),
        false => {
            format!("{what} is another\n  this document  {expected}\n  given          {found}\n")
        }
    })?;
    Ok(if is_same { Verdict::Good } else { Verdict::Bad })
}
