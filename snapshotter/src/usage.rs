//! What containers have written to their roots. Nothing of that is here: it is in their guests, and the shims
//! keep what these say of it in their run directories.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nacre_run_directory::usage::{Usage, read_all};

/// containerd asks for all snapshots one after the other, each ten seconds: one look does for all.
const FRESH: Duration = Duration::from_secs(2);

/// What the shims said last.
#[derive(Debug)]
pub(crate) struct Usages {
    root: PathBuf,
    read: Option<(Instant, HashMap<String, Usage>)>,
}

impl Usages {
    /// Those of the sandboxes whose run directories are in `root`.
    pub(crate) fn new(root: PathBuf) -> Usages {
        Usages { root, read: None }
    }

    /// What the container of a snapshot uses, if its shim has said. containerd names a snapshot
    /// `<namespace>/<number>/<key>`, and CRI takes the container's id as the key.
    pub(crate) fn of(&mut self, snapshot: &str) -> Option<Usage> {
        let container = snapshot.rsplit('/').next()?;
        let fresh = self.read.take().filter(|(at, _)| at.elapsed() < FRESH);
        let (_, usages) =
            self.read.insert(fresh.unwrap_or_else(|| (Instant::now(), read_all(&self.root))));
        usages.get(container).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_its_containers() {
        let root = tempfile::tempdir().unwrap();
        let run_dir = root.path().join("sandbox");
        std::fs::create_dir(&run_dir).unwrap();
        let usage = Usage { bytes: 8192, inodes: 3 };
        nacre_run_directory::usage::write(&run_dir, "abc", usage).unwrap();
        let mut usages = Usages::new(root.path().to_owned());
        assert_eq!(usages.of("k8s.io/12/abc"), Some(usage));
        assert_eq!(usages.of("abc"), Some(usage));
        for other in ["k8s.io/12/sha256:00", "", "abc/", "k8s.io/12/ab"] {
            assert_eq!(usages.of(other), None, "{other}");
        }
    }
}
