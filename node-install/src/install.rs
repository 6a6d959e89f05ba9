//! The way onto a node.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::bundle::Bundle;
use crate::containerd::Containerd;
use crate::files::{Root, hash, link, read_text, replace};
use crate::handlers::Release;
use crate::lock::Lock;
use crate::node_files::{PATH_LINKS, SYSUSERS, UNIT_DIRECTORY, UNITS, VmUser, configurations};
use crate::receipt::Receipt;
use crate::services::Services;
use crate::versions::{CURRENT, Kept, LINKS, collect};
use crate::{NodeError, Step};

/// The node's users (passwd(5)).
const PASSWD: &str = "/etc/passwd";

/// What the administrator wants.
#[derive(Debug, Clone, Default)]
pub struct Choices {
    /// containerd's program, where it is elsewhere.
    pub containerd: Option<PathBuf>,
    /// containerd's configuration, where it is elsewhere.
    pub config: Option<PathBuf>,
    /// QEMU, where the bundle brings none and it is elsewhere.
    pub qemu: Option<PathBuf>,
    /// Whom QEMU runs as; `None`: as before, which is root at first. It is made where it is absent.
    pub vm_user: Option<VmUser>,
    /// All pods of the node are Nacre's: containerd 1.6 cannot do otherwise.
    pub danger_all_pods: bool,
    /// Change nothing.
    pub dry_run: bool,
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Installed {
    /// Name of the version that pods get from now on.
    pub version: String,
    /// containerd's release.
    pub containerd: Release,
    /// What was done, in order; empty if all was there.
    pub steps: Vec<Step>,
    /// Files that somebody changed, and that were left as they are.
    pub left: Vec<PathBuf>,
    /// Earlier versions that pods still use.
    pub kept: Vec<Kept>,
}

/// Installs a bundle. Repeating it does nothing; another bundle comes beside the first, and pods that run
/// keep theirs.
pub fn install(
    root: &Root,
    bundle: &Bundle,
    choices: &Choices,
    services: &dyn Services,
) -> Result<Installed, NodeError> {
    let dry = choices.dry_run;
    let _lock = if dry { None } else { Some(Lock::take(root)?) };
    let containerd =
        Containerd::find(root, choices.containerd.as_deref(), choices.config.as_deref())?;
    if containerd.release == Release::V1_6 && !choices.danger_all_pods {
        return Err(NodeError::WholeNode);
    }
    let mut receipt = Receipt::read(root)?.unwrap_or_default();
    if choices.vm_user.is_some() {
        receipt.vm_user.clone_from(&choices.vm_user);
    }
    // First what can fail: containerd is asked before anything is there.
    let change = containerd.plan(root, receipt.containerd.as_ref(), dry)?;
    let vm_user = receipt.vm_user.clone();
    let configurations = configurations(root, bundle, choices.qemu.as_deref(), vm_user.as_ref())?;

    let mut work = Work { root, dry, receipt, steps: Vec::new(), left: Vec::new() };
    if bundle.place(root, dry)? {
        work.steps.push(Step::new("copy", format!("/opt/nacre/{}", bundle.name())));
    }
    let mut is_new = work.link(CURRENT, bundle.name())?;
    for (path, target) in LINKS.into_iter().chain(PATH_LINKS) {
        work.link(path, target)?;
    }
    if let Some(user) = &vm_user {
        // Before a configuration names it.
        work.user(user, services)?;
    }
    for (path, text) in &configurations {
        work.file(path, text)?;
    }
    for unit in &UNITS {
        is_new |= work.file(&Path::new(UNIT_DIRECTORY).join(unit.name), unit.text)?;
    }
    is_new |= work.receipt.units_pending;
    work.receipt.units_pending = is_new;
    work.remember()?;
    if is_new && !dry {
        services.reload()?;
    }
    for unit in UNITS.iter().filter(|unit| unit.enabled) {
        // A oneshot is never active, and not worth a second run.
        if is_new {
            work.steps.push(Step::new("enable", unit.name));
            if !dry {
                services.enable(unit.name)?;
            }
        }
    }
    work.receipt.units_pending = false;
    work.remember()?;
    if let Some(change) = change {
        work.steps.extend(change.files().map(|(what, path)| Step::new(what, path.display())));
        if !dry {
            // Remembered first: whoever is interrupted here can still be taken away.
            let before = work.receipt.containerd.clone();
            work.receipt.containerd.clone_from(&change.receipt);
            work.remember()?;
            match change.apply(root, services) {
                Ok(unit) => work.steps.extend(unit.map(|unit| Step::new("restart", unit))),
                Err(error) => {
                    work.receipt.containerd = before;
                    work.remember()?;
                    return Err(error);
                }
            }
        }
    }
    let (removed, kept) = collect(root, Some(bundle.name()), dry)?;
    work.steps.extend(removed);
    Ok(Installed {
        version: bundle.name().to_owned(),
        containerd: containerd.release,
        steps: work.steps,
        left: work.left,
        kept,
    })
}

struct Work<'a> {
    root: &'a Root,
    dry: bool,
    receipt: Receipt,
    steps: Vec<Step>,
    left: Vec<PathBuf>,
}

impl Work<'_> {
    fn link(&mut self, path: &str, target: &str) -> Result<bool, NodeError> {
        let changed = link(&self.root.at(path), target, self.dry)?;
        if changed {
            self.steps.push(Step::new("link", format!("{path} -> {target}")));
        }
        self.receipt.links.insert(path.into(), target.to_owned());
        Ok(changed)
    }

    /// Makes QEMU's user. One that the node has is taken as it is.
    fn user(&mut self, user: &VmUser, services: &dyn Services) -> Result<(), NodeError> {
        let passwd = read_text(&self.root.at(PASSWD))?.unwrap_or_default();
        if user.is_in(&passwd) {
            return Ok(());
        }
        // Images of nodes make it when they first boot, by the file.
        self.file(Path::new(SYSUSERS), &user.sysusers())?;
        if self.dry || services.make_users(SYSUSERS)? {
            self.steps.push(Step::new("user", user.name()));
        }
        Ok(())
    }

    /// Writes a file, unless somebody made or changed it: then it is theirs.
    fn file(&mut self, path: &Path, text: &str) -> Result<bool, NodeError> {
        let there = read_text(&self.root.at(path))?;
        match there {
            Some(there) if there == text => {}
            Some(there) if !self.receipt.is_own(path, &there) => {
                self.left.push(path.to_owned());
                return Ok(false);
            }
            _ => {
                self.steps.push(Step::new("write", path.display()));
                if !self.dry {
                    replace(&self.root.at(path), text, 0o644)?;
                }
                self.receipt.files.insert(path.to_owned(), hash(text));
                return Ok(true);
            }
        }
        self.receipt.files.insert(path.to_owned(), hash(text));
        Ok(false)
    }

    fn remember(&self) -> Result<(), NodeError> {
        if self.dry || Receipt::read(self.root)?.as_ref() == Some(&self.receipt) {
            return Ok(());
        }
        self.receipt.write(self.root)
    }
}
