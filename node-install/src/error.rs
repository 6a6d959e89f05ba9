//! What can go wrong, and what to do about it.

use std::path::{Path, PathBuf};

/// Why a node could not be changed. containerd's configuration is what it was then. Versions, units and files that
/// were written before stay, and the next installation goes on from there: on a node that had no Nacre they are
/// harmless without containerd's configuration; on one that had, new pods can get the new version already.
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
        "containerd would do something else than before, beside what is Nacre's ({problem}); its configuration was not \
         changed. Something in it works against Nacre's lines (nacre containerd-config prints them): look for these \
         keys in it and in what it imports"
    )]
    Difference {
        /// The first differences.
        problem: String,
    },
    /// Nacre is in another configuration.
    #[error(
        "Nacre's lines are in {}, by an earlier installation: nacre uninstall takes them out, then install with {}",
        known.display(),
        wanted.display()
    )]
    OtherConfig {
        /// Where they are.
        known: PathBuf,
        /// Where they were to go.
        wanted: PathBuf,
    },
    /// Something has a name that an installation needs.
    #[error(
        "{} was not made by nacre install, which needs the name: move it away. Nothing was changed",
        .0.display()
    )]
    InTheWay(PathBuf),
    /// QEMU is too old.
    #[error(
        "{} says {answer:?}: Nacre needs QEMU 9.1 or later (10.1 for TDX); install one and name it with --qemu",
        program.display()
    )]
    Qemu {
        /// The program.
        program: PathBuf,
        /// The first line of what it said of its version.
        answer: String,
    },
    /// Nobody can make QEMU's user.
    #[error(
        "the user {name} could not be made ({problem}): make it, as useradd --system --user-group {name} does, and \
         install again"
    )]
    User {
        /// Its name.
        name: String,
        /// What was said.
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
