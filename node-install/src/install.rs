//! The way onto a node.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::bundle::{Bundle, PREFIX};
use crate::change::Change;
use crate::containerd::Containerd;
use crate::files::{Root, hash, link, read_text, replace};
use crate::handlers::Release;
use crate::lock::Lock;
use crate::node_files::{
    PATH_LINKS, SYSUSERS, UNIT_DIRECTORY, UNITS, Unit, VmUser, configurations,
};
use crate::receipt::Receipt;
use crate::services::{Services, Start};
use crate::versions::{CURRENT, Kept, LINKS, collect};
use crate::{NodeError, Step};

/// The node's users (passwd(5)).
const PASSWD: &str = "/etc/passwd";

/// What the administrator wants.
#[derive(Debug, Clone, Default)]
pub struct Choices {
    /// containerd's program, where it is elsewhere. This and the next two are remembered.
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
    /// Files that somebody changed and links that somebody made, which were left as they are.
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
    let mut receipt = Receipt::read(root)?.unwrap_or_default();
    if choices.vm_user.is_some() {
        receipt.vm_user.clone_from(&choices.vm_user);
    }
    receipt.keep(choices);
    let program = receipt.program(choices);
    let config = receipt.config();
    let containerd = Containerd::find(root, program.as_deref(), config.as_deref())?;
    let known = receipt.containerd.as_ref();
    if let Some(known) = known.filter(|known| known.config != containerd.place.changed()) {
        let (known, wanted) = (known.config.clone(), containerd.place.changed().to_owned());
        return Err(NodeError::OtherConfig { known, wanted });
    }
    if containerd.release == Release::V1_6 && !choices.danger_all_pods && known.is_none() {
        return Err(NodeError::WholeNode);
    }
    // First what can fail: containerd is asked before anything is there, and so is every name that is needed.
    let change = containerd.plan(root, known, dry)?;
    let vm_user = receipt.vm_user.clone();
    let configurations =
        configurations(root, bundle, receipt.named.qemu.as_deref(), vm_user.as_ref())?;
    let mut links = vec![(PathBuf::from(CURRENT), bundle.name().to_owned())];
    let fixed = LINKS.into_iter().chain(PATH_LINKS);
    links.extend(fixed.map(|(path, target)| (PathBuf::from(path), target.to_owned())));
    for (path, _) in &links {
        let at = root.name(path)?;
        if at.symlink_metadata().is_ok_and(|about| !about.is_symlink()) {
            return Err(NodeError::InTheWay(at));
        }
    }

    let mut work = Work { root, dry, receipt, steps: Vec::new(), left: Vec::new() };
    if bundle.place(root, dry)? {
        work.steps.push(Step::new("copy", format!("/opt/nacre/{}", bundle.name())));
    }
    let mut is_new = false;
    for (path, target) in &links {
        let changed = work.link(path, target)?;
        is_new |= changed && path == Path::new(CURRENT);
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
    let mut wanted = Vec::new();
    for unit in UNITS.iter().filter(|unit| unit.enabled) {
        is_new |= work.enable(unit)?;
        if work.is_wanted(unit)? && !unit.is_oneshot() {
            wanted.push(unit.name);
        }
    }
    work.receipt.units_pending |= is_new;
    work.remember()?;
    if work.receipt.units_pending && services.start() == Start::Now {
        if !dry {
            services.reload()?;
        }
        // And those that the administrator started: they would run the old program for ever.
        let others = UNITS.iter().filter(|unit| !unit.is_oneshot() && !wanted.contains(&unit.name));
        let others = others.map(|unit| unit.name).filter(|unit| services.is_active(unit));
        for unit in wanted.iter().copied().chain(others) {
            work.steps.push(Step::new("restart", unit));
            if !dry {
                services.restart(unit)?;
            }
        }
    }
    work.receipt.units_pending &= services.start() == Start::ByHand;
    work.remember()?;
    work.containerd(change, &containerd, services)?;
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
    /// Makes a link, unless there is one that somebody else made: then it is theirs.
    fn link(&mut self, path: &Path, target: &str) -> Result<bool, NodeError> {
        let at = self.root.name(path)?;
        let there = fs::read_link(&at).ok();
        if let Some(there) = &there {
            let known = self.receipt.links.get(path);
            let is_own = path.starts_with(PREFIX)
                || there.starts_with(PREFIX)
                || known.is_some_and(|known| Path::new(known) == there);
            if !is_own {
                self.left.push(path.to_owned());
                return Ok(false);
            }
        }
        let changed = there.as_deref() != Some(Path::new(target));
        // Remembered first: whoever is interrupted here can still take it away.
        self.receipt.links.insert(path.to_owned(), target.to_owned());
        if changed {
            self.steps.push(Step::new("link", format!("{} -> {target}", path.display())));
            self.remember()?;
            if !self.dry {
                link(&at, target)?;
            }
        }
        Ok(changed)
    }

    /// Lets a unit start at boot, once: who switches it off afterwards has it off.
    fn enable(&mut self, unit: &Unit) -> Result<bool, NodeError> {
        let Some((path, target)) = unit.wanted() else { return Ok(false) };
        let at = self.root.name(&path)?;
        if self.receipt.links.contains_key(&path) || at.symlink_metadata().is_ok() {
            return Ok(false);
        }
        self.steps.push(Step::new("enable", unit.name));
        self.receipt.links.insert(path, target.clone());
        self.remember()?;
        if !self.dry {
            link(&at, &target)?;
        }
        Ok(true)
    }

    fn is_wanted(&self, unit: &Unit) -> Result<bool, NodeError> {
        let Some((path, _)) = unit.wanted() else { return Ok(false) };
        Ok(self.dry || self.root.name(&path)?.symlink_metadata().is_ok())
    }

    /// Changes containerd's configuration and starts it anew, or only that where an earlier installation was not to
    /// start anything.
    fn containerd(
        &mut self,
        change: Option<Change>,
        containerd: &Containerd,
        services: &dyn Services,
    ) -> Result<(), NodeError> {
        let is_changed = change.is_some();
        let is_pending = self.receipt.containerd_pending && services.start() == Start::Now;
        if !is_changed && !is_pending {
            return Ok(());
        }
        let change = change.unwrap_or_else(|| Change::of_nothing(containerd.place.units()));
        self.steps.extend(change.files().map(|(what, path)| Step::new(what, path.display())));
        if self.dry {
            self.steps.extend(change.unit(services).map(|unit| Step::new("restart", unit)));
            return Ok(());
        }
        // Remembered first: whoever is interrupted here can still be taken away.
        let before = self.receipt.clone();
        if is_changed {
            self.receipt.containerd.clone_from(&change.receipt);
        }
        self.receipt.containerd_pending = services.start() != Start::AtBoot;
        self.remember()?;
        match change.apply(self.root, services) {
            Ok(unit) => self.steps.extend(unit.map(|unit| Step::new("restart", unit))),
            Err(error) => {
                self.receipt = before;
                self.remember()?;
                return Err(error);
            }
        }
        self.receipt.containerd_pending = services.start() == Start::ByHand;
        self.remember()
    }

    /// Makes QEMU's user. One that the node has is taken as it is.
    fn user(&mut self, user: &VmUser, services: &dyn Services) -> Result<(), NodeError> {
        let passwd = read_text(&self.root.at(PASSWD)?)?.unwrap_or_default();
        if user.is_in(&passwd) {
            return Ok(());
        }
        // Images of nodes make it when they first boot, by the file.
        self.file(Path::new(SYSUSERS), &user.sysusers())?;
        let failed = |error: NodeError| NodeError::User {
            name: user.name().to_owned(),
            problem: error.to_string(),
        };
        if self.dry || services.make_users(SYSUSERS).map_err(failed)? {
            self.steps.push(Step::new("user", user.name()));
        }
        Ok(())
    }

    /// Writes a file, unless somebody made or changed it: then it is theirs.
    fn file(&mut self, path: &Path, text: &str) -> Result<bool, NodeError> {
        let there = read_text(&self.root.at(path)?)?;
        match there {
            Some(there) if there == text => {}
            Some(there) if !self.receipt.is_own(path, &there) => {
                self.left.push(path.to_owned());
                return Ok(false);
            }
            _ => {
                self.steps.push(Step::new("write", path.display()));
                if !self.dry {
                    replace(&self.root.at(path)?, text, 0o644)?;
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

#[cfg(test)]
mod tests;
