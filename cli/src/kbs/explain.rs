//! `nacre kbs explain`.

use clap::Args;

use super::{Administrator, audit, block_on};
use crate::Verdict;
use crate::input::print;
use crate::output::{Output, print_json};

/// Say why the broker released or refused something.
///
/// The number of the request is in the pod's event, in the error that the pod was told, and in the audit log.
#[derive(Args)]
#[command(after_help = "Example:
  nacre kbs explain 8f14e45f-ceea-4a7e-8b5e-2d5b8f1a9c3d")]
pub(crate) struct Arguments {
    /// Number of the request.
    #[arg(value_name = "REQUEST-ID")]
    id: String,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    administrator: Administrator,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    let client = arguments.administrator.client()?;
    let entries = block_on(async { Ok(client.explain(&arguments.id).await?) })?;
    if arguments.output.is_json() {
        print_json(&entries)?;
        return Ok(Verdict::Good);
    }
    let mut text = String::new();
    for entry in &entries {
        text.push_str(&audit::line(entry)?);
        if let Some(attestation) = &entry.event.attestation {
            text.push_str(&format!("  by the attestation {attestation}\n"));
        }
        let checks = entry.event.appraisal.as_ref().and_then(|value| value["checks"].as_array());
        for check in checks.into_iter().flatten() {
            let word = |name: &str| check[name].as_str().unwrap_or_default().to_owned();
            match check["verdict"].as_str() {
                Some("failed") => text.push_str(&format!(
                    "  FAIL  {}\n        expected {}\n        found    {}\n        do       {}\n",
                    word("code"),
                    word("expected"),
                    word("found"),
                    word("fix")
                )),
                Some("passed") => text.push_str(&format!("  pass  {}\n", word("code"))),
                _ => text.push_str(&format!("  none  {}  {}\n", word("code"), word("found"))),
            }
        }
    }
    print(&text)?;
    Ok(Verdict::Good)
}
