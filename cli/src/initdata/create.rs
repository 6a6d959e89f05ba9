//! `nacre initdata create`.

mod images;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use nacre_policy_author::kubernetes::{SourceFile, read as read_yaml};
use nacre_protocol::initdata::{Initdata, POLICY};
use nacre_protocol::kbs::ResourceUri;
use nacre_volume_format::declared::{DeclaredVolumes, FILE};

use super::{BrokerOptions, Hash};
use crate::Verdict;
use crate::input::{read, read_initdata, read_text, write_or_print};
use crate::volumes::VolumeOptions;

/// Write an initdata document: what the pod's guest takes from its owner at its start.
///
/// The guest's hardware reports the digest of exactly this document, so the host can neither change nor
/// exchange it. It holds the policy, and where the guest gets its secrets.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre initdata create --policy web.rego --kbs-url https://kbs.example:8080 --kbs-cert ca.pem -o web.toml
  nacre initdata create --from base.toml --policy web.rego --output annotation
  nacre initdata create --kbs-url https://kbs.example:8080 --kbs-cert ca.pem -o base.toml
  nacre initdata create --from base.toml --image-policy image-policy.toml \\
      --registry-credentials kbs:///default/registry/login -o base.toml
  nacre initdata create --policy db.rego --pod db.yaml --volume data=kbs:///default/volumes/data -o db.toml
  nacre policy generate --initdata base.toml --output yaml web.yaml | kubectl apply -f -

Exit status: 0 written; 2 something stands in the way.")]
pub(crate) struct Arguments {
    /// Begin with the files of this document: TOML, an annotation's text or a pod's YAML.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// The policy (Rego), as policy.rego.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    #[command(flatten)]
    broker: BrokerOptions,
    /// Which images may run: a file with an image policy (Nacre's TOML or containers' policy.json), or the
    /// `kbs:///repository/type/name` of one.
    #[arg(long, value_name = "FILE|URI")]
    image_policy: Option<String>,
    /// The `kbs:///repository/type/name` of credentials for registries, in the form of docker's config.json, or
    /// a sealed secret with them (`nacre seal`).
    #[arg(long, value_name = "URI|SEALED")]
    registry_credentials: Option<String>,
    /// Certificates (PEM) of registries that no public CA has signed.
    #[arg(long, value_name = "FILE")]
    registry_ca: Option<PathBuf>,
    /// The `kbs:///repository/type/name` of a private key for layers that were encrypted to its public half.
    /// Keys that layers themselves name need not be listed. May be given several times.
    #[arg(long, value_name = "URI")]
    layer_key: Vec<ResourceUri>,
    /// More about images, with mirrors, a proxy, the node's cache: a file image.toml.
    #[arg(long, value_name = "FILE")]
    image_settings: Option<PathBuf>,
    /// The pod's YAML: where its containers see what --volume declares, and what a volumes.toml is checked against. May
    /// be given several times.
    #[arg(long, value_name = "FILE")]
    pod: Vec<PathBuf>,
    #[command(flatten)]
    volumes: VolumeOptions,
    /// Another file, as NAME=PATH. May be given several times.
    #[arg(long, value_name = "NAME=PATH")]
    file: Vec<String>,
    /// Digest by which the hardware vouches for the document [default: that of --from, else sha256].
    #[arg(long, value_enum)]
    algorithm: Option<Hash>,
    /// What to write.
    #[arg(long, value_enum, default_value_t = Output::Toml)]
    output: Output,
    /// Where to write it [default: standard output].
    #[arg(short = 'o', long = "to", value_name = "FILE")]
    to: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// The document.
    Toml,
    /// The value of the pod's annotation.
    Annotation,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    let base = arguments.from.as_deref().map(read_initdata).transpose()?;
    let algorithm = match (arguments.algorithm, &base) {
        (Some(hash), _) => hash.algorithm(),
        (None, Some(base)) => base.algorithm(),
        (None, None) => Hash::Sha256.algorithm(),
    };
    let mut files = base.map(|base| base.files().clone()).unwrap_or_default();
    if let Some(path) = &arguments.policy {
        let policy = read_text(path)?;
        nacre_policy::Policy::parse(&policy).with_context(|| path.display().to_string())?;
        files.insert(POLICY.to_owned(), policy);
    }
    arguments.broker.add(&mut files)?;
    images::add(&mut files, arguments)?;
    add(&mut files, &arguments.file)?;
    images::check(&files)?;
    declare_volumes(&mut files, arguments)?;
    ensure!(!files.is_empty(), "a document without files says nothing: give --policy or --kbs-url");
    if !files.contains_key(POLICY) {
        eprintln!(
            "note: there is no {POLICY} in it yet, and a guest without a policy denies everything: add one \
             with --policy, or give the document to `nacre policy generate --initdata`"
        );
    }
    let initdata = Initdata::new(algorithm, files)?;
    let result = match arguments.output {
        Output::Toml => initdata.text().to_owned(),
        Output::Annotation => format!("{}\n", initdata.to_annotation()?),
    };
    write_or_print(arguments.to.as_deref(), &result)?;
    Ok(Verdict::Good)
}

/// Declares the volumes of the pod that --pod has, and checks what is declared.
fn declare_volumes(
    files: &mut BTreeMap<String, String>,
    arguments: &Arguments,
) -> anyhow::Result<()> {
    let Arguments { pod, volumes, .. } = arguments;
    if pod.is_empty() {
        ensure!(!volumes.are_given(), "--volume and its like need the pod's YAML: add --pod FILE");
        if let Some(text) = files.get(FILE) {
            DeclaredVolumes::parse(text)?;
        }
        return Ok(());
    }
    let sources = pod
        .iter()
        .map(|path| Ok(SourceFile { name: path.display().to_string(), content: read(path)? }));
    let reading = read_yaml(&sources.collect::<anyhow::Result<Vec<_>>>()?)?;
    let [workload] = reading.workloads.as_slice() else {
        bail!("--pod has {} workloads: give the files of one", reading.workloads.len());
    };
    volumes.add(files, workload)
}

fn add(files: &mut BTreeMap<String, String>, named: &[String]) -> anyhow::Result<()> {
    for text in named {
        let (name, path) = text.split_once('=').context("--file is NAME=PATH")?;
        if files.insert(name.to_owned(), read_text(Path::new(path))?).is_some() {
            bail!("the document has a file {name} already: --file {text}");
        }
    }
    Ok(())
}
