//! `cargo xtask`: the one door for developers. Each command does what it needs first (missing Debian
//! packages, builds, guest image), says what it is doing and how long it took, and can be repeated.
//!
//! Everything it makes is beneath `target/`; outside of it only missing Debian packages are installed.

mod build;
mod bundle;
mod confidential;
mod interop;
mod lint;
mod setup;
mod step;
mod stories;
mod tests;
mod tree;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use setup::Purpose;
use tree::Tree;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Nacre's developer commands", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show it: a real containerd starts a pod in its own VM, and the agent inside pulls the image
    Demo {
        /// Leave everything running and print the `ctr` lines to play with
        #[arg(long)]
        keep: bool,
        /// Further arguments for nacre-demo
        #[arg(last = true)]
        rest: Vec<String>,
    },
    /// Run all tests: crates first, then those that start VMs, one after the other
    Test {
        /// Only tests whose name contains this
        filter: Option<String>,
        /// Only the crates' tests: no root, no VM
        #[arg(long)]
        no_vm: bool,
        /// Leave nothing out: faults in each phase of a pod's life
        #[arg(long, conflicts_with = "no_vm")]
        long: bool,
    },
    /// Run pods one after the other and see that descriptors, memory, mounts, network namespaces and control
    /// groups do not grow
    Soak {
        /// How many pods
        #[arg(long, default_value_t = 200)]
        pods: u32,
    },
    /// Measure
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Build the guest image: kernel, initrd, manifest
    Image {
        /// Leave out what its guests measure: quicker, since that takes the release build of `nacre`
        #[arg(long)]
        no_measurements: bool,
    },
    /// Build all programs with --release
    Build,
    /// Put together what `nacre install` takes, beneath target/nacre/bundle
    Bundle,
    /// Install what is missing: Debian packages; beneath target/ QEMU if the system's is too old, and what
    /// confidential guests need
    Setup,
    /// Formatting, clippy and dependency rules
    Lint,
    /// Attest to a Trustee server with the guest's client; without --server, say how to set up both
    /// directions
    InteropKbs {
        /// URL of a Trustee server that takes sample evidence
        #[arg(long)]
        server: Option<String>,
        /// Further arguments for nacre-interop
        #[arg(last = true)]
        rest: Vec<String>,
    },
}

#[derive(Subcommand)]
enum Bench {
    /// From `RunPodSandbox` to the first output byte, by phase, against a bare boot
    Start {
        /// Further arguments for nacre-bench
        #[arg(last = true)]
        rest: Vec<String>,
    },
    /// What a secret adds to the start of a pod
    Secrets {
        /// Further arguments for nacre-bench
        #[arg(last = true)]
        rest: Vec<String>,
    },
    /// What pulling an image costs, against skopeo with umoci and containerd
    Images {
        /// Further arguments for nacre-bench
        #[arg(last = true)]
        rest: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    let tree = Tree::new()?;
    match command {
        Command::Setup => {
            setup::prepare(&tree, Purpose::Vms)?;
            confidential::fetch(&tree)
        }
        Command::Build => {
            setup::prepare(&tree, Purpose::Building)?;
            build::programs(&tree)
        }
        Command::Image { no_measurements } => image(&tree, no_measurements),
        Command::Bundle => {
            image(&tree, false)?;
            build::programs(&tree)?;
            bundle::make(&tree)
        }
        Command::Demo { keep, rest } => {
            everything(&tree)?;
            let keep = keep.then(|| "--keep".to_owned());
            build::exec(&tree, "nacre-demo", keep.into_iter().chain(rest))
        }
        Command::Bench { what } => {
            let (what, rest) = match what {
                Bench::Start { rest } => ("start", rest),
                Bench::Secrets { rest } => ("secrets", rest),
                Bench::Images { rest } => ("images", rest),
            };
            if what == "images" {
                setup::prepare(&tree, Purpose::Building)?;
                build::image_bench(&tree)?;
            } else {
                everything(&tree)?;
            }
            build::exec(&tree, "nacre-bench", [what.to_owned()].into_iter().chain(rest))
        }
        Command::Test { filter, no_vm: true, .. } => {
            setup::prepare(&tree, Purpose::Building)?;
            let tree = tree.with_test_programs();
            tests::crates(&tree, &tests::compile(&tree)?, filter.as_deref())
        }
        Command::Test { filter, no_vm: false, long } => {
            setup::prepare(&tree, Purpose::Vms)?;
            build::guest_programs(&tree)?;
            build::image(&tree)?;
            let missing = setup::further_containerds(&tree)?;
            setup::docker(&tree)?;
            confidential::fetch(&tree)?;
            let tree = tree.with_test_programs();
            let compiled = tests::compile(&tree)?;
            tests::crates(&tree, &compiled, filter.as_deref())?;
            tests::with_vms(&tree, &compiled, filter.as_deref(), long, &missing)
        }
        Command::Soak { pods } => {
            setup::prepare(&tree, Purpose::Vms)?;
            build::guest_programs(&tree)?;
            build::image(&tree)?;
            let tree = tree.with_test_programs();
            tests::soak(&tree, &tests::compile(&tree)?, pods)
        }
        Command::InteropKbs { server, rest } => interop::kbs(&tree, server, rest),
        Command::Lint => {
            setup::prepare(&tree, Purpose::Building)?;
            lint::all(&tree)
        }
    }
}

/// The guest image, and what its guests measure.
fn image(tree: &Tree, no_measurements: bool) -> Result<()> {
    setup::prepare(tree, Purpose::Building)?;
    build::guest_programs(tree)?;
    build::image(tree)?;
    if no_measurements {
        return Ok(());
    }
    confidential::fetch_firmware(tree)?;
    build::measurements(tree)
}

/// All that a VM needs.
fn everything(tree: &Tree) -> Result<()> {
    setup::prepare(tree, Purpose::Vms)?;
    build::programs(tree)?;
    build::image(tree)
}
