//! `nacre check`.

mod document;
mod node;
mod survey;
mod table;

use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, ValueEnum};
use nacre_hypervisor::probe::{self, Report, Tee};

use crate::Verdict;
use crate::input::print;
use crate::output::{Output, colours};
use survey::{Survey, View, own_configuration};

/// Look whether this node can run pods, with which protection, and what is missing for that.
///
/// It looks at processor, kernel, KVM, AMD's secure processor or Intel's TDX module, QEMU, firmware, the guest
/// image, containerd and its configuration, devices, memory, storage and clock. It changes nothing. What it says
/// is the host's own view: it proves nothing to the owner of a pod, for whom there is attestation.
///
/// With neither --tee nor --config it shows what the node can run at all. Some things only root may see.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre check                          what can this node run?
  nacre check --tee snp                could it run pods with SEV-SNP, and if not, what is to do?
  nacre check --config node.toml       is all there that this configuration needs?
  nacre check --output json | jq '.reports[].findings[] | select(.status == \"fail\")'
  nacre check --labels > /etc/kubernetes/node-feature-discovery/features.d/nacre

Labels are for Node Feature Discovery. To write them again and again, write a file there whose
name begins with a dot, which is left out, and rename it.

Exit status: 0 ready; 1 not ready; 2 it cannot be told: the configuration cannot be read, or
something can be seen by root alone. With neither --tee nor --config it is about what
/etc/nacre/config.toml asks for. With --labels: 0, ready or not.")]
pub(crate) struct Arguments {
    /// The node's configuration, as its shim reads it, for every TEE [default: for snp and tdx /etc/nacre/snp.toml
    /// and tdx.toml; where that is absent, and else, /etc/nacre/config.toml; without it the built-in defaults].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What is to vouch for the guests [default: what the configuration says].
    #[arg(long, value_enum)]
    tee: Option<Wanted>,
    /// containerd's configuration; what it imports is read too.
    #[arg(long, value_name = "FILE", default_value = "/etc/containerd/config.toml")]
    containerd_config: PathBuf,
    /// List checks that do not apply, too.
    #[arg(long, conflicts_with = "labels")]
    all: bool,
    /// Print labels for Node Feature Discovery, one `name=value` a line.
    #[arg(long, conflicts_with = "form")]
    labels: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Wanted {
    /// Nothing: guests that the host can look into.
    None,
    /// The emulated AMD secure processor: for development.
    EmulatedSnp,
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
}

impl From<Wanted> for Tee {
    fn from(wanted: Wanted) -> Tee {
        match wanted {
            Wanted::None => Tee::None,
            Wanted::EmulatedSnp => Tee::EmulatedSnp,
            Wanted::Snp => Tee::Snp,
            Wanted::Tdx => Tee::Tdx,
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    let mut survey = Survey {
        named: arguments.config.clone(),
        own: &own_configuration,
        containerd: &arguments.containerd_config,
        views: Vec::new(),
    };
    let asked = match arguments.tee {
        Some(wanted) => wanted.into(),
        None => survey.common()?.node.tee,
    };
    let summary = arguments.tee.is_none() && arguments.config.is_none();
    let tees = if summary || arguments.labels { Tee::ALL.to_vec() } else { vec![asked] };
    let reports: Result<Vec<Report>, _> = tees.into_iter().map(|tee| survey.report(tee)).collect();
    let reports = reports?;
    let View { node, facts, .. } = survey.view(asked)?;
    if arguments.labels {
        let labels = facts.labels(asked, &reports);
        let lines = labels.iter().map(|label| format!("{}={}\n", label.name, label.value));
        print(&lines.collect::<String>())?;
        return Ok(Verdict::Good);
    }
    arguments.output.show(&document::Document::new(asked, &node.question, &reports), |_| {
        let style = table::Style { colours: colours(), all: arguments.all };
        match reports.as_slice() {
            [report] => table::one(report, style),
            reports => table::summary(reports, asked, style),
        }
    })?;
    let verdict = reports.iter().find(|report| report.tee == asked).map(Report::verdict);
    match verdict {
        Some(probe::Verdict::Ready) => Ok(Verdict::Good),
        Some(probe::Verdict::NotReady) => Ok(Verdict::Bad),
        Some(probe::Verdict::Unknown) | None => bail!("not all can be seen: run it as root"),
    }
}
