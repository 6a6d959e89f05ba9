//! `nacre runtimeclass`.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use nacre_configuration::Config;
use nacre_configuration::sizing::{RuntimeClass, SHIPPED_LARGEST_LIMIT_MIB};

use crate::Verdict;
use crate::input::write_or_print;

/// Print the runtime classes for Kubernetes, with the overhead of a pod.
///
/// The scheduler and the pod's control group add the overhead to the limits of the pod's containers. It is
/// what the machine takes beside them: the guest's kernel and agent, the images, bounce buffers of
/// confidential guests, and the programs that run the machine. Some of it grows with the memory limit: it is
/// made for the largest limit that is to be covered.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre runtimeclass | kubectl apply -f -                  what deploy/kubernetes/runtimeclass.yaml has
  nacre runtimeclass --config /etc/nacre/config.toml --largest-limit-mib 16384

Exit status: 0 written; 2 the configuration cannot be used, or is for smaller pods.")]
pub(crate) struct Arguments {
    /// The nodes' configuration [default: the defaults].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Largest memory limit of a pod that the overhead is to cover, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = SHIPPED_LARGEST_LIMIT_MIB)]
    largest_limit_mib: u32,
    /// Where to write it [default: standard output].
    #[arg(short = 'o', long = "to", value_name = "FILE")]
    to: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    let config = arguments.config.as_deref().map(Config::read).transpose()?.unwrap_or_default();
    let largest = arguments.largest_limit_mib;
    let classes = RuntimeClass::all(&config, largest)
        .with_context(|| format!("--largest-limit-mib {largest}"))?;
    let mut text = format!(
        "# RuntimeClasses of Nacre, made by `nacre runtimeclass`: docs/sizing.md has the arithmetic.\n#\n\
         # The overhead covers pods with memory limits up to {largest} MiB whose images take up to {} MiB. Pods \
         beyond\n# that take more of their node than its scheduler counts: make another class for them.\n#\n\
         # Pods go only to nodes with the labels below. `nacre check --labels` writes them (docs/node-check.md), \
         or by hand:\n#   kubectl label node NODE nacre.io/tee-none=true\n\
         # Where the handler `nacre` serves tee = \"emulated-snp\", for development, leave its nodeSelector \
         out.\n",
        classes[0].images_mib
    );
    for class in classes {
        write!(text, "---\n{class}")?;
    }
    write_or_print(arguments.to.as_deref(), &text)?;
    Ok(Verdict::Good)
}
