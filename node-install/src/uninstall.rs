//! The way off a node.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::containerd::{Containerd, plan_removal};
use crate::files::{Root, read_text, remove};
use crate::install::Choices;
use crate::lock::Lock;
use crate::node_files::{UNIT_DIRECTORY, UNITS};
use crate::receipt::{RECEIPT, Receipt};
use crate::services::Services;
use crate::versions::{Kept, collect, current, uses};
use crate::{NodeError, Step};

/// The program that lives for as long as a pod.
const SHIM: &str = "containerd-shim-nacre-v2";

/// What nacre-labels.service says of the node to Node Feature Discovery, and what it has not said yet: with them the
/// scheduler would go on sending pods here.
const LABELS: [&str; 2] = [
    "/etc/kubernetes/node-feature-discovery/features.d/nacre",
    "/etc/kubernetes/node-feature-discovery/features.d/.nacre",
];

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Uninstalled {
    /// What was done, in order; empty if nothing was installed.
    pub steps: Vec<Step>,
    /// Files that somebody changed, and that stay.
    pub left: Vec<PathBuf>,
    /// Versions that pods still use.
    pub kept: Vec<Kept>,
    /// Why containerd could not be asked about its configuration without Nacre, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unasked: Option<String>,
}

/// Takes away what [`install`](crate::install) put there: containerd's configuration becomes what it was, and
/// files that somebody changed since stay. With pods that still run it refuses, unless told.
pub fn uninstall(
    root: &Root,
    choices: &Choices,
    danger_with_running_pods: bool,
    services: &dyn Services,
) -> Result<Uninstalled, NodeError> {
    let dry = choices.dry_run;
    let _lock = if dry { None } else { Some(Lock::take(root)?) };
    let mut done =
        Uninstalled { steps: Vec::new(), left: Vec::new(), kept: Vec::new(), unasked: None };
    let Some(receipt) = Receipt::read(root)? else {
        (done.steps, done.kept) = collect(root, current(root).as_deref(), dry)?;
        return Ok(done);
    };
    if !danger_with_running_pods {
        refuse_with_pods(root)?;
    }
    if let Some(known) = &receipt.containerd {
        let mut named = receipt.clone();
        named.keep(choices);
        let program = named.program(choices);
        let found = Containerd::find(root, program.as_deref(), named.config().as_deref());
        let (change, unasked) = plan_removal(found, root, known, dry)?;
        done.unasked = unasked;
        done.steps.extend(change.files().map(|(what, path)| Step::new(what, path.display())));
        if dry {
            done.steps.extend(change.unit(services).map(|unit| Step::new("restart", unit)));
        } else {
            let unit = change.apply(root, services)?;
            done.steps.extend(unit.map(|unit| Step::new("restart", unit)));
            let rest = Receipt { containerd: None, ..receipt.clone() };
            rest.write(root)?;
        }
    }
    for unit in &UNITS {
        let path = Path::new(UNIT_DIRECTORY).join(unit.name);
        if root.at(&path)?.exists() {
            done.steps.push(Step::new("disable", unit.name));
            if !dry {
                services.disable(unit.name)?;
            }
        }
    }
    for path in receipt.files.keys() {
        let at = root.at(path)?;
        match read_text(&at)? {
            Some(text) if !receipt.is_own(path, &text) => done.left.push(path.clone()),
            Some(_) => {
                done.steps.push(Step::new("remove", path.display()));
                if !dry {
                    remove(&at)?;
                }
            }
            None => {}
        }
    }
    for (path, target) in &receipt.links {
        let at = root.name(path)?;
        if fs::read_link(&at).is_ok_and(|found| found == Path::new(target)) {
            done.steps.push(Step::new("remove", path.display()));
            if !dry {
                remove(&at)?;
            }
        }
    }
    for name in LABELS {
        let at = root.at(name)?;
        if at.exists() {
            done.steps.push(Step::new("remove", name));
            if !dry {
                remove(&at)?;
            }
        }
    }
    if !dry {
        services.reload()?;
    }
    // With no current one, all that nobody uses.
    let (removed, kept) = collect(root, None, dry)?;
    done.steps.extend(removed);
    done.kept = kept;
    if !dry {
        remove(&root.at(RECEIPT)?)?;
    }
    Ok(done)
}

/// An error if shims of an installed version run.
fn refuse_with_pods(root: &Root) -> Result<(), NodeError> {
    let mut pods: Vec<String> = Vec::new();
    for pid in uses(root)?.into_values().flatten() {
        let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        // The path of a program that was replaced ends in " (deleted)".
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.trim_end_matches(" (deleted)") == SHIM {
            pods.push(format!("process {pid}"));
        }
    }
    if pods.is_empty() {
        return Ok(());
    }
    let count = pods.len();
    pods.truncate(3);
    Err(NodeError::PodsRun { count, examples: pods.join(", ") })
}
