//! `nacre`: the tool of a pod's owner. It writes, checks, compares and tests agent policies, makes initdata,
//! computes what a genuine guest measures, encrypts and signs images, runs and administers a key broker,
//! and explains its decisions. For a node's administrator it looks whether the node can run pods.
//!
//! It distrusts what it reads: YAML, policies, recordings, registries and nodes are bounded and checked. It
//! never talks to a cluster, and what a registry sends counts only when its digest matched.

#![forbid(unsafe_code)]

mod attest;
mod check;
#[cfg(test)]
mod documented;
mod exec_vm;
mod gc;
mod image;
mod images;
mod initdata;
mod input;
mod inspect;
mod install;
mod kbs;
mod logs;
mod manual;
mod measure;
mod metrics;
mod moment;
mod output;
mod policy;
mod ps;
mod runtimeclass;
mod sandboxes;
mod seal;
mod table;
mod volumes;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// How a command ended that did its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Exit status 0.
    Good,
    /// Exit status 1: differences, findings, denials.
    Bad,
    /// The exit status of a program that it ran.
    Program(u8),
}

const MORE_HELP: &str = "\
For the owner of pods: policy, initdata, measure, seal, attest, image; to give secrets: kbs.
For a node's administrator: check, runtimeclass, and what acts on a node.

Examples:
  nacre check                                              what can this node run?
  nacre policy generate --output yaml pod.yaml             the pod, with a policy that fits it
  nacre completion bash > /usr/share/bash-completion/completions/nacre

Commands that tell something take --output json. Colours are for terminals; NO_COLOR turns them off.
Exit status: 0 all is well; 1 differences, findings or denials; 2 the command could not do its work.";

/// One tool for pods in confidential virtual machines: for their owners, for nodes and for key brokers.
#[derive(Parser)]
#[command(version, about, after_help = MORE_HELP, disable_help_subcommand = true, max_term_width = 100)]
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
    ExecVm(exec_vm::Arguments),
    Ps(ps::Arguments),
    Inspect(inspect::Arguments),
    Logs(logs::Arguments),
    /// Metrics of this node: how pods start, and how many there are.
    #[command(subcommand)]
    Metrics(metrics::Command),
    Gc(gc::Arguments),
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
    Install(install::Arguments),
    Uninstall(install::Removal),
    ContainerdConfig(install::Lines),
    Completion(manual::Completion),
    Man(manual::Man),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Policy(command) => policy::run(command),
        Command::Initdata(command) => initdata::run(command),
        Command::Measure(arguments) => measure::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::ExecVm(arguments) => exec_vm::run(&arguments),
        Command::Ps(arguments) => ps::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Logs(arguments) => logs::run(&arguments),
        Command::Metrics(command) => metrics::run(command),
        Command::Gc(arguments) => gc::run(&arguments),
        Command::Runtimeclass(arguments) => runtimeclass::run(&arguments),
        Command::Attest(command) => attest::run(command),
        Command::Seal(command) => seal::run(command),
        Command::Image(command) => image::run(command),
        Command::Kbs(command) => kbs::run(command),
        Command::Install(arguments) => install::run(&arguments),
        Command::Uninstall(arguments) => install::remove(&arguments),
        Command::ContainerdConfig(arguments) => install::print_lines(&arguments),
        Command::Completion(arguments) => manual::complete(&arguments, Arguments::command()),
        Command::Man(arguments) => manual::man(&arguments, Arguments::command()),
    };
    match done {
        Ok(Verdict::Good) => ExitCode::SUCCESS,
        Ok(Verdict::Bad) => ExitCode::from(1),
        Ok(Verdict::Program(code)) => ExitCode::from(code),
        Err(error) => {
            eprintln!("nacre: {error:#}");
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commands that only do something, or whose product is a document, a key or one line.
    const WITHOUT_OUTPUT: [&str; 31] = [
        "exec-vm",
        "logs",
        "metrics serve",
        "policy generate",
        "policy allow-all",
        "policy deny-all",
        "initdata create",
        "runtimeclass",
        "containerd-config",
        "seal key",
        "seal vault",
        "seal envelope",
        "image encrypt",
        "image sign",
        "image keygen",
        "image build",
        "kbs init",
        "kbs serve",
        "kbs secret set",
        "kbs secret get",
        "kbs secret delete",
        "kbs grant add",
        "kbs grant remove",
        "kbs policy set",
        "kbs policy show",
        "kbs policy reset",
        "kbs reference-value add",
        "kbs reference-value remove",
        "kbs collateral add",
        "completion",
        "man",
    ];

    fn leaves(command: &clap::Command, path: &str, found: &mut Vec<(String, clap::Command)>) {
        for below in command.get_subcommands() {
            let path = format!("{path} {}", below.get_name());
            if below.has_subcommands() {
                leaves(below, &path, found);
            } else {
                found.push((path.trim().to_owned(), below.clone()));
            }
        }
    }

    #[test]
    fn every_command_explains_itself_and_speaks_json() {
        let mut commands = Vec::new();
        leaves(&Arguments::command(), "", &mut commands);
        let mut wanting = Vec::new();
        for (path, command) in &commands {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            if !help.contains("Example") {
                wanting.push(format!("{path}: no example"));
            }
            if command.get_about().is_none() {
                wanting.push(format!("{path}: no description"));
            }
            let forms =
                command.get_arguments().find(|argument| argument.get_long() == Some("output"));
            let forms = forms.map(clap::Arg::get_possible_values).unwrap_or_default();
            let speaks = forms.iter().any(|form| form.get_name() == "json");
            if speaks == WITHOUT_OUTPUT.contains(&path.as_str()) {
                wanting.push(format!("{path}: --output json: {speaks}"));
            }
        }
        assert!(wanting.is_empty(), "{}", wanting.join("\n"));
    }
}
