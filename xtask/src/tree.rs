//! Where things are, and how programs are started from there.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The target the workspace is built for (`.cargo/config.toml`, `[build] target`).
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The source tree and its places.
pub(crate) struct Tree {
    root: PathBuf,
    /// Profile of the host's programs, as cargo names its directory.
    profile: &'static str,
    /// The words that make a command run as root: none, or `sudo` with its options.
    as_root: Option<Vec<&'static str>>,
}

impl Tree {
    pub(crate) fn new() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
        let root = root.context("xtask is not in a workspace")?.to_owned();
        Ok(Self { root, profile: "release", as_root: as_root() })
    }

    /// The top of the tree.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Cargo's directory, also when the caller's environment names another: the programs and the
    /// harness must agree on one.
    pub(crate) fn target(&self) -> PathBuf {
        self.root.join("target")
    }

    /// All that is fetched and made by us: `NACRE_PREFIX`.
    pub(crate) fn prefix(&self) -> PathBuf {
        self.target().join("nacre")
    }

    /// The same tree, whose host programs are those that were compiled along with the tests.
    pub(crate) fn with_test_programs(self) -> Self {
        Self { profile: "debug", ..self }
    }

    /// The host's programs: `NACRE_BIN`.
    pub(crate) fn programs(&self) -> PathBuf {
        self.programs_of(self.profile)
    }

    /// The programs of a profile.
    pub(crate) fn programs_of(&self, profile: &str) -> PathBuf {
        self.target().join(TARGET).join(profile)
    }

    /// A cargo command of this workspace.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        let mut cargo = self.command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.arg(subcommand).current_dir(&self.root).env("CARGO_TARGET_DIR", self.target());
        cargo
    }

    /// A command with our two variables in its environment.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("NACRE_PREFIX", self.prefix()).env("NACRE_BIN", self.programs());
        command
    }

    /// A command that runs as root, with our two variables in its environment.
    pub(crate) fn root_command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let Some((sudo, options)) = self.root_words()?.split_first() else {
            return Ok(self.command(program));
        };
        // `env` behind sudo: sudo's own rules for variables do not matter then.
        let mut command = Command::new(sudo);
        command.args(options).arg("env");
        for (name, path) in [("NACRE_PREFIX", self.prefix()), ("NACRE_BIN", self.programs())] {
            let mut variable = std::ffi::OsString::from(name);
            variable.push("=");
            variable.push(path);
            command.arg(variable);
        }
        command.arg(program);
        Ok(command)
    }

    /// The words before a command that make it run as root.
    pub(crate) fn root_words(&self) -> Result<&[&'static str]> {
        match &self.as_root {
            Some(words) => Ok(words),
            None => bail!(
                "this needs root: run it as root, or install sudo and allow yourself to use it"
            ),
        }
    }
}

fn as_root() -> Option<Vec<&'static str>> {
    let id = Command::new("id").arg("-u").output().ok()?;
    if id.stdout.trim_ascii() == b"0" {
        return Some(Vec::new());
    }
    find_program("sudo").map(|_| vec!["sudo"])
}

/// Looks a program up on PATH and in the directories for root's programs.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(extra).map(|dir| dir.join(name)).find(|file| file.is_file())
}
