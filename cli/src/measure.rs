//! `nacre measure`.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use nacre_configuration::{Config, DEFAULT_PATH, Tee};
use nacre_emulated::Launch;
use nacre_verifier::{Hex, ReferenceValues, SnpPolicy, SnpReferences, TcbMinimum, Values};

use crate::Verdict;
use crate::input::write_or_print;

/// Compute what a genuine guest measures, before any is started.
///
/// It hashes the guest image, the firmware and the command line of a node's configuration, and writes the
/// document that `nacre kbs reference-value add` takes: one measurement for each number of processors that
/// pods may have.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre measure --tee emulated-snp -o guest.json
  nacre measure --tee emulated-snp --config node.toml --vcpus 1 --vcpus 2

Exit status: 0 written; 2 something cannot be read.")]
pub(crate) struct Arguments {
    /// What vouches for the guest.
    #[arg(long, value_enum)]
    tee: Hardware,
    /// The node's configuration, as its shim reads it.
    #[arg(long, default_value = DEFAULT_PATH, value_name = "FILE")]
    config: PathBuf,
    /// Number of processors; may be given several times [default: each that the configuration allows].
    #[arg(long, value_name = "NUMBER")]
    vcpus: Vec<u32>,
    /// Name of the document [default: nacre-VERSION].
    #[arg(long)]
    id: Option<String>,
    /// Where to write it [default: standard output].
    #[arg(short = 'o', long = "to", value_name = "FILE")]
    to: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Hardware {
    /// The emulated AMD secure processor: for development.
    EmulatedSnp,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    let Hardware::EmulatedSnp = arguments.tee;
    let mut config = Config::read(&arguments.config)?;
    config.vm.tee = Tee::EmulatedSnp;
    let vcpus = match arguments.vcpus.as_slice() {
        [] => (1..=config.vm.max_vcpus).collect(),
        given => given.to_vec(),
    };
    let guest = config.guest()?;
    let firmware = config.qemu_paths().firmware().context("the firmware is not there")?;
    let launch = Launch::of_files(&firmware, &guest.kernel, &guest.initrd, &guest.command_line, 1)?;
    let mut measurements = Vec::new();
    for count in vcpus {
        let most = config.vm.max_vcpus;
        ensure!(count <= most, "--vcpus {count}: the configuration's vm.max_vcpus is {most}");
        measurements.push(Hex(nacre_emulated::measure(&launch.with_vcpus(count)?)));
    }
    let document = document(arguments.id.as_deref(), measurements)?;
    write_or_print(
        arguments.to.as_deref(),
        &format!("{}\n", serde_json::to_string_pretty(&document)?),
    )?;
    Ok(Verdict::Good)
}

fn document(id: Option<&str>, measurements: Vec<Hex<48>>) -> anyhow::Result<ReferenceValues> {
    let id = id.map_or_else(|| format!("nacre-{}", env!("CARGO_PKG_VERSION")), str::to_owned);
    let values = Values::Snp(SnpReferences {
        measurements,
        // There is no firmware that could have holes.
        tcb_minimum: TcbMinimum::Any,
        policy: SnpPolicy::default(),
        id_key_digests: Vec::new(),
        author_key_digests: Vec::new(),
    });
    let note = Some("emulated AMD secure processor: for development".to_owned());
    let document = ReferenceValues { id, expires: None, note, values };
    // The same rules as for documents that people write.
    Ok(ReferenceValues::parse(&serde_json::to_vec(&document)?)?)
}
