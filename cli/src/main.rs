//! `nacre`: the tool of a pod's owner. It writes, checks, compares and tests agent policies, makes initdata,
//! computes what a genuine guest measures, encrypts and signs images, runs and administers a key broker,
//! and explains its decisions. For a node's administrator it looks whether the node can run pods.
//!
//! It distrusts what it reads: YAML, policies, recordings, registries and nodes are bounded and checked. It
//! never talks to a cluster, and what a registry sends counts only when its digest matched.

#![forbid(unsafe_code)]

mod attest;
mod check;
mod image;
mod images;
mod initdata;
mod input;
mod kbs;
mod measure;
mod moment;
mod output;
mod policy;
mod runtimeclass;
mod seal;
mod table;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// How a command ended that did its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Exit status 0.
    Good,
    /// Exit status 1: differences, findings, denials.
    Bad,
}

const EXIT_STATUS: &str = "Exit status: 0 all is well; 1 differences, findings or denials; 2 the command \
                           could not do its work.";

/// Owner's tool for pods in confidential virtual machines.
#[derive(Parser)]
#[command(version, about, after_help = EXIT_STATUS, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Policies: what the host may ask of the guest that runs a pod.
    #[command(subcommand)]
    Policy(policy::Command),
    /// Initdata: what a pod's guest takes from its owner at its start, vouched for by the hardware.
    #[command(subcommand)]
    Initdata(initdata::Command),
    Measure(measure::Arguments),
    Runtimeclass(runtimeclass::Arguments),
    Check(check::Arguments),
    /// Evidence: what a guest's hardware says about it.
    #[command(subcommand)]
    Attest(attest::Command),
    /// Sealed secrets: they travel through Kubernetes closed, and are opened in the guest.
    #[command(subcommand)]
    Seal(seal::Command),
    /// Images: of containers (inspect, encrypt, sign), and of the guest that VMs boot (build, verify).
    #[command(subcommand)]
    Image(image::Command),
    /// Key broker: gives secrets to pods that prove what they are.
    #[command(subcommand)]
    Kbs(kbs::Command),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Policy(command) => policy::run(command),
        Command::Initdata(command) => initdata::run(command),
        Command::Measure(arguments) => measure::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Runtimeclass(arguments) => runtimeclass::run(&arguments),
        Command::Attest(command) => attest::run(command),
        Command::Seal(command) => seal::run(command),
        Command::Image(command) => image::run(command),
        Command::Kbs(command) => kbs::run(command),
    };
    match done {
        Ok(Verdict::Good) => ExitCode::SUCCESS,
        Ok(Verdict::Bad) => ExitCode::from(1),
        Err(error) => {
            eprintln!("nacre: {error:#}");
            ExitCode::from(2)
        }
    }
}
