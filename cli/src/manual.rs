//! `nacre completion` and `nacre man`: what shells and `man` are to know of the commands.

use std::io;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::{Args, Command};
use clap_complete::Shell;

use crate::Verdict;
use crate::input::print_bytes;

/// Print a shell's completions for this tool
#[derive(Args)]
#[command(after_help = "Examples:
  nacre completion bash > /usr/share/bash-completion/completions/nacre
  nacre completion zsh > \"${fpath[1]}/_nacre\"
  nacre completion fish > ~/.config/fish/completions/nacre.fish

Exit status: 0 printed; 2 the shell is unknown.")]
pub(crate) struct Completion {
    /// The shell
    shell: Shell,
}

/// Write the manual: one page for each command
#[derive(Args)]
#[command(after_help = "Examples:
  nacre man /usr/local/share/man/man1     then: man nacre, man nacre-policy-generate

Exit status: 0 written; 2 it could not be.")]
pub(crate) struct Man {
    /// Directory for the pages; it must exist
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

pub(crate) fn complete(arguments: &Completion, mut tree: Command) -> anyhow::Result<Verdict> {
    let mut script = Vec::new();
    let name = tree.get_name().to_owned();
    clap_complete::generate(arguments.shell, &mut tree, name, &mut script);
    print_bytes(&script)?;
    Ok(Verdict::Good)
}

pub(crate) fn man(arguments: &Man, tree: Command) -> anyhow::Result<Verdict> {
    let directory = arguments.directory.display();
    ensure!(arguments.directory.is_dir(), "{directory} is not a directory: make it first");
    // Without the date of the day, so that packages are reproducible.
    let written: io::Result<()> = clap_mangen::generate_to(tree, &arguments.directory);
    written.with_context(|| format!("failed to write the manual to {directory}"))?;
    Ok(Verdict::Good)
}
