//! `nacre initdata show`.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde_json::json;

use super::Field;
use crate::Verdict;
use crate::input::{print, read_initdata};
use crate::output::{Output, print_json};

/// Say what is in an initdata document, and what the hardware reports for it.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre initdata show web.toml
  nacre initdata show web.yaml                    what the annotation of the pod carries
  nacre initdata show web.yaml --file policy.rego
  kubectl get pod web -o yaml | nacre initdata show - --output json

Exit status: 0 shown; 2 it cannot be read.")]
pub(crate) struct Arguments {
    /// Initdata TOML, an annotation's text, or YAML of one pod that has the annotation; `-` is standard input.
    #[arg(value_name = "FILE")]
    document: PathBuf,
    /// Print one of its files as it is, and nothing else.
    #[arg(long, value_name = "NAME", conflicts_with = "form")]
    file: Option<String>,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    let initdata = read_initdata(&arguments.document)?;
    if let Some(name) = &arguments.file {
        let names = || initdata.files().keys().cloned().collect::<Vec<_>>().join(", ");
        let content = initdata.files().get(name);
        print(content.with_context(|| format!("there is no {name}; there are {}", names()))?)?;
        return Ok(Verdict::Good);
    }
    let digest = initdata.digest();
    let (host_data, mrconfigid) =
        (Field::HostData.value(&digest), Field::Mrconfigid.value(&digest));
    let sizes = initdata.files().iter().map(|(name, content)| (name, content.len()));
    let annotation = initdata.to_annotation()?.len();
    if arguments.output.is_json() {
        let files: serde_json::Map<_, _> =
            sizes.map(|(name, bytes)| (name.clone(), json!({ "bytes": bytes }))).collect();
        let shown = json!({
            "algorithm": initdata.algorithm().name(),
            "digest": digest.to_string(),
            "host_data": host_data,
            "mrconfigid": mrconfigid,
            "annotation_bytes": annotation,
            "files": files,
        });
        print_json(&shown)?;
        return Ok(Verdict::Good);
    }
    let mut text = format!(
        "digest       {digest}\nHOST_DATA    {host_data}   (SEV-SNP)\nMRCONFIGID   {mrconfigid}   (TDX)\n\
         annotation   {annotation} bytes\n"
    );
    for (name, bytes) in sizes {
        text.push_str(&format!("file         {name}, {bytes} bytes\n"));
    }
    print(&text)?;
    Ok(Verdict::Good)
}
