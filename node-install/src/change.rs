//! A change of containerd's configuration that it has been asked about: written, and taken back where containerd does
//! not come back.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::NodeError;
use crate::dump::Dump;
use crate::files::{Root, remove, replace};
use crate::handlers::Release;
use crate::receipt::ContainerdReceipt;
use crate::services::Services;

/// How long containerd may take to come back.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Change {
    /// Files on the node, what they have and what they get, in the order in which they are written.
    pub(crate) files: Vec<(PathBuf, Option<String>, Option<String>)>,
    /// `None` when taken back.
    pub(crate) receipt: Option<ContainerdReceipt>,
    /// Who starts containerd: one of them.
    pub(crate) units: Vec<&'static str>,
    /// Its socket.
    pub(crate) address: Option<PathBuf>,
    /// What must be so once it is written.
    pub(crate) promise: Option<Promise>,
}

/// What containerd must say of the files as they then stand on the node: that it was asked about their texts before does
/// not see a file that is read in addition.
#[derive(Debug)]
pub(crate) struct Promise {
    pub(crate) program: PathBuf,
    pub(crate) release: Release,
    pub(crate) config: PathBuf,
    pub(crate) kept: Kept,
}

#[derive(Debug)]
pub(crate) enum Kept {
    /// Nacre's lines came, and nothing else changed.
    Added { before: Dump, without: Dump },
    /// They went, and nothing else.
    Removed { with: Dump },
}

impl Promise {
    fn check(&self, root: &Root) -> Result<(), NodeError> {
        // A file that is gone has nothing to be asked about, and names in an image are not this system's.
        if !root.is_own() || !self.config.exists() {
            return Ok(());
        }
        let now = Dump::of(&self.program, &self.config)?;
        match &self.kept {
            Kept::Added { before, without } => now.check_added(before, without, self.release),
            Kept::Removed { with } => now.check_removed(with, self.release),
        }
    }
}

impl Change {
    /// Nothing but a new start.
    pub(crate) fn of_nothing(units: Vec<&'static str>) -> Change {
        Change { files: Vec::new(), receipt: None, units, address: None, promise: None }
    }

    /// Files that are written or removed.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let what = |after: &Option<String>| if after.is_some() { "write" } else { "remove" };
        self.files.iter().map(move |(path, _, after)| (what(after), path.as_path()))
    }

    /// Writes them and starts containerd anew, if it runs. If it does not come back it gets what it had.
    pub(crate) fn apply(
        &self,
        root: &Root,
        services: &dyn Services,
    ) -> Result<Option<&str>, NodeError> {
        for (done, (path, _, after)) in self.files.iter().enumerate() {
            if let Err(error) = put(root, path, after.as_deref()) {
                self.take_back(root, done);
                return Err(error);
            }
        }
        if let Err(error) = self.promise.as_ref().map_or(Ok(()), |promise| promise.check(root)) {
            self.take_back(root, self.files.len());
            return Err(error);
        }
        let Some(unit) = self.unit(services) else { return Ok(None) };
        let Err(error) = self.restart(unit, services) else { return Ok(Some(unit)) };
        self.take_back(root, self.files.len());
        let restored = match self.restart(unit, services) {
            Ok(()) => String::new(),
            Err(error) => format!(", but it did not start with that either: {error}"),
        };
        Err(NodeError::Restart { unit: unit.to_owned(), problem: error.to_string(), restored })
    }

    /// The unit by which containerd runs, if it does.
    pub(crate) fn unit(&self, services: &dyn Services) -> Option<&'static str> {
        self.units.iter().copied().find(|unit| services.is_active(unit))
    }

    fn restart(&self, unit: &str, services: &dyn Services) -> Result<(), NodeError> {
        services.restart(unit)?;
        let started = Instant::now();
        let answers = || match &self.address {
            Some(address) => std::os::unix::net::UnixStream::connect(address).is_ok(),
            None => true,
        };
        while !(services.is_active(unit) && answers()) {
            if started.elapsed() > PATIENCE {
                let problem = format!("nobody answers after {} s", PATIENCE.as_secs());
                return Err(NodeError::Program { command: unit.to_owned(), problem });
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Best effort: the error that led here is the one to be told.
    fn take_back(&self, root: &Root, files: usize) {
        for (path, before, _) in self.files[..files].iter().rev() {
            let _ = put(root, path, before.as_deref());
        }
    }
}

fn put(root: &Root, path: &Path, text: Option<&str>) -> Result<(), NodeError> {
    let at = root.at(path)?;
    match text {
        Some(text) => replace(&at, text, 0o644),
        None => remove(&at).map(drop),
    }
}
