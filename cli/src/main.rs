//! `nacre`: the tool of a pod's owner. It writes, checks, compares and tests agent policies, on the owner's
//! machine or in CI.
//!
//! It distrusts what it reads: YAML, policies, recordings and registries are bounded and checked. It never
//! talks to a cluster or a node, and what a registry sends counts only when its digest matched.

#![forbid(unsafe_code)]

mod images;
mod input;
mod policy;

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
}

fn main() -> ExitCode {
    let Command::Policy(command) = Arguments::parse().command;
    match policy::run(command) {
        Ok(Verdict::Good) => ExitCode::SUCCESS,
        Ok(Verdict::Bad) => ExitCode::from(1),
        Err(error) => {
            eprintln!("nacre: {error:#}");
            ExitCode::from(2)
        }
    }
}
