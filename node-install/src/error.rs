//! What can go wrong, and what to do about it.

use std::path::{Path, PathBuf};

/// Why a node could not be changed. containerd's configuration is what it was then; versions, units and files that
/// were written before stay, harmless without it, and the next installation goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A file.
    #[error("failed to {doing} {}", path.display())]
    File {
        /// What was to be done.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file that is larger than anything it should be.
    #[error("{} has more than {most} bytes", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// Most bytes.
        most: u64,
    },
    /// Something is missing in what is to be installed, or does not belong there.
    #[error("{} cannot be installed: {problem}", directory.display())]
    Bundle {
        /// The bundle.
        directory: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A program that could not be asked.
    #[error("failed to run {command}: {problem}")]
    Program {
        /// With its arguments.
        command: String,
        /// What it said.
        problem: String,
    },
    /// No containerd.
    #[error("no containerd was found ({looked}); name its program with --containerd")]
    NoContainerd {
        /// Where.
        looked: String,
    },
    /// A release that is not known.
    #[error("containerd says {0:?}: Nacre needs 1.6, 1.7 or 2.x")]
    Release(String),
    /// 1.6 has one snapshotter for all pods.
    #[error(
        "containerd 1.6 has one snapshotter for all of CRI: with Nacre's, pods that run without Nacre find no \
         files. Take containerd 1.7 or later, or give the whole node to Nacre with --danger-all-pods"
    )]
    WholeNode,
    /// containerd's configuration cannot be used as it is.
    #[error("containerd's configuration {} {problem}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// containerd would not do what it did before, or not what is needed.
    #[error(
        "with Nacre's lines containerd would read its configuration differently ({problem}); nothing was changed. \
         Put them there by hand: nacre containerd-config"
    )]
    Difference {
        /// The first differences.
        problem: String,
    },
    /// It did not come back.
    #[error(
        "{unit} did not come back with the new configuration ({problem}); the old one is in place again{restored}"
    )]
    Restart {
        /// The unit.
        unit: String,
        /// What it said.
        problem: String,
        /// How it went with the old one.
        restored: String,
    },
    /// Pods would lose what they run on.
    #[error(
        "{count} processes of Nacre's pods run ({examples}): drain the node first, or leave them behind with \
         --danger-with-running-pods"
    )]
    PodsRun {
        /// How many.
        count: usize,
        /// Some of them.
        examples: String,
    },
    /// Two at a time.
    #[error("another nacre install or uninstall runs: {} is locked", .0.display())]
    Busy(PathBuf),
    /// The record of an installation.
    #[error("{} is no record of an installation: {problem}", path.display())]
    Receipt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

impl NodeError {
    pub(crate) fn file(
        doing: &'static str,
        path: &Path,
    ) -> impl FnOnce(std::io::Error) -> NodeError {
        let path = path.to_owned();
        move |source| NodeError::File { doing, path, source }
    }

    pub(crate) fn config(path: &Path, problem: impl Into<String>) -> NodeError {
        NodeError::Config { path: path.to_owned(), problem: problem.into() }
    }
}
