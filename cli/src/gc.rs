//! `nacre gc`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use nacre_node_install::{NodeError, Root, Step, collect_unused};
use nacre_run_directory::history::{HISTORY_ROOT, History};
use nacre_run_directory::{Leftover, PodName, RUN_ROOT, Swept, Thing, leftovers, sweep};
use serde::Serialize;

use crate::Verdict;
use crate::output::Output;

/// Remove what dead sandboxes left on this node.
///
/// A sandbox is dead when its shim is: killed, crashed, or from before a reboot. What the shim made for it and
/// recorded is removed: the machine's process, redirects of the pod's network, the shim's socket, control groups,
/// the run directory. Its start report goes to those of the sandboxes that are gone: `nacre inspect` still has it.
/// What containerd and CNI made (tasks, mounts, network namespaces, addresses) is theirs and stays. Versions of Nacre that `nacre install` put beside the current one go when no process uses them any more.
/// Living pods are not touched, and shims may start and end meanwhile.
#[derive(Args)]
#[command(after_help = "Examples:
  nacre gc --dry-run                   what is there to be removed?
  nacre gc                             remove it
  nacre gc --output json | jq '.sandboxes[].failed[]'

Each shim does the same when a pod starts, and the unit nacre-gc.service when the node does.

Exit status: 0 nothing is left; 1 something could not be removed, or, with --dry-run, something is
there; 2 the run directories cannot be read: this needs root.")]
pub(crate) struct Arguments {
    /// Only tell what would be removed.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: Output,
    /// Where the run directories are; shims know only the default.
    #[arg(long, value_name = "DIRECTORY", default_value = RUN_ROOT, hide = true)]
    run_root: PathBuf,
    /// Where the reports of sandboxes that are gone are.
    #[arg(long, value_name = "DIRECTORY", default_value = HISTORY_ROOT, hide = true)]
    history_root: PathBuf,
    /// The file system whose versions are looked at.
    #[arg(long, value_name = "DIRECTORY", default_value = "/", hide = true)]
    root: PathBuf,
}

#[derive(Serialize)]
struct Document {
    dry_run: bool,
    sandboxes: Vec<Dead>,
    /// Versions beneath /opt/nacre from which nothing runs.
    versions: Vec<Step>,
    /// Why no version, or not each of them, could be removed.
    versions_failed: Vec<String>,
}

/// A dead sandbox.
#[derive(Serialize)]
struct Dead {
    /// Nothing for one that died while its run directory was being made.
    id: Option<String>,
    pod: Option<PodName>,
    /// What is there, or was and is removed now.
    things: Vec<Thing>,
    /// Why something could not be removed.
    failed: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    let sandboxes = collect(arguments)?;
    let mut document = Document {
        dry_run: arguments.dry_run,
        sandboxes,
        versions: Vec::new(),
        versions_failed: Vec::new(),
    };
    match collect_unused(&Root::new(&arguments.root), arguments.dry_run) {
        Ok((versions, _)) => document.versions = versions,
        // Whoever installs removes what is not used any more, too.
        Err(error @ NodeError::Busy(_)) => eprintln!("nacre: versions stay as they are: {error}"),
        Err(error) => document.versions_failed.push(error.to_string()),
    }
    arguments.output.show(&document, text)?;
    Ok(if document.is_good() { Verdict::Good } else { Verdict::Bad })
}

impl Document {
    fn is_good(&self) -> bool {
        let has_failed = |dead: &Dead| !dead.failed.is_empty();
        let is_there = !self.sandboxes.is_empty() || !self.versions.is_empty();
        let failed = self.sandboxes.iter().any(has_failed) || !self.versions_failed.is_empty();
        !(failed || self.dry_run && is_there)
    }
}

fn collect(arguments: &Arguments) -> anyhow::Result<Vec<Dead>> {
    const LOOKING: &str = "cannot look for dead sandboxes";
    if arguments.dry_run {
        let found = leftovers(&arguments.run_root).context(LOOKING)?;
        let dead = |Leftover { id, pod, things }| Dead { id, pod, things, failed: Vec::new() };
        return Ok(found.into_iter().map(dead).collect());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let history = History::at(&arguments.history_root);
    let swept = runtime.block_on(sweep(&arguments.run_root, &history)).context(LOOKING)?;
    let dead = |Swept { id, pod, removal }| Dead {
        id,
        pod,
        things: removal.removed,
        failed: removal.failed,
    };
    Ok(swept.into_iter().map(dead).collect())
}

fn text(document: &Document) -> String {
    let has_versions = !document.versions.is_empty() || !document.versions_failed.is_empty();
    if document.sandboxes.is_empty() && !has_versions {
        return "No dead sandbox has left anything.\n".to_owned();
    }
    let doing = if document.dry_run { "there is" } else { "removed" };
    let mut text = String::new();
    for version in &document.versions {
        text.push_str(&format!("version\n  {doing} {}, which nothing uses\n", version.to));
    }
    for reason in &document.versions_failed {
        text.push_str(&format!("version\n  FAILED {reason}\n"));
    }
    for dead in &document.sandboxes {
        let id = dead.id.as_deref().unwrap_or("(unfinished)");
        let pod = dead.pod.as_ref().map(|pod| format!(" of pod {}/{}", pod.namespace, pod.name));
        text.push_str(&format!("sandbox {id}{}\n", pod.unwrap_or_default()));
        for thing in &dead.things {
            text.push_str(&format!("  {doing} {}\n", describe(thing)));
        }
        for reason in &dead.failed {
            text.push_str(&format!("  FAILED {reason}\n"));
        }
    }
    text
}

fn describe(thing: &Thing) -> String {
    match thing {
        Thing::Machine { pid } => format!("the machine, process {pid}"),
        Thing::Redirect { namespace, interface } => {
            format!("the redirect of {interface} in {}", namespace.display())
        }
        Thing::Socket { path } => format!("the shim's socket {}", path.display()),
        Thing::ControlGroup { path } => format!("the control group {}", path.display()),
        Thing::Directory { path } => format!("the run directory {}", path.display()),
    }
}
