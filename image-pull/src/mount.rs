//! Stacks layers with overlayfs, by the mount API that takes each layer by itself: an option string is
//! cut at one page, which about a hundred layers fill.

use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, fstat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use crate::PullError;
use crate::parents::apply;
use crate::store::remove;

/// The kernel's bound on lower layers (`OVL_MAX_STACK`).
const MAX_LAYERS: usize = 500;
/// The kernel takes `fsconfig` strings of up to this many bytes.
const MAX_OPTION: usize = 255;

/// Mounts `lower` (top first) on `target`, with what is written going to `scratch`.
pub(crate) fn overlay(
    lower: &[&Path],
    scratch: &Path,
    target: &Path,
    readonly: bool,
) -> Result<(), PullError> {
    if lower.len() > MAX_LAYERS {
        return Err(PullError::Mount {
            target: target.to_owned(),
            problem: format!(
                "the image has {} layers and overlayfs stacks {MAX_LAYERS}; squash some",
                lower.len()
            ),
        });
    }
    let made = Scratch::make(lower, scratch)?;
    std::fs::create_dir_all(target)
        .map_err(|e| PullError::io(format!("failed to make {}", target.display()), e))?;
    let mounted = attach(&made, target, readonly);
    if mounted.is_err() {
        made.undo();
    }
    mounted
}

/// Directories an overlay needs beside the layers.
struct Scratch {
    upper: PathBuf,
    work: PathBuf,
    lower: Vec<PathBuf>,
    /// What was made here and goes again if there is no mount. What was there before may belong to
    /// another mount.
    made: Vec<PathBuf>,
}

impl Scratch {
    fn make(lower: &[&Path], scratch: &Path) -> Result<Self, PullError> {
        let mut this = Self {
            upper: scratch.join("upper"),
            work: scratch.join("work"),
            lower: match lower {
                // overlayfs wants at least one; an image may have none.
                [] => vec![scratch.join("empty")],
                some => some.iter().map(|tree| tree.to_path_buf()).collect(),
            },
            made: Vec::new(),
        };
        if let Err(e) = this.fill(scratch, lower.is_empty()) {
            this.undo();
            return Err(PullError::io(format!("failed to prepare {}", scratch.display()), e));
        }
        Ok(this)
    }

    fn fill(&mut self, scratch: &Path, empty: bool) -> std::io::Result<()> {
        std::fs::create_dir_all(scratch)?;
        let lower = self.lower.iter().filter(|_| empty);
        for directory in [&self.upper, &self.work].into_iter().chain(lower) {
            std::fs::create_dir(directory)?;
            self.made.push(directory.clone());
        }
        // The root of the mount looks like the upper directory.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = rustix::fs::open(&self.lower[0], flags, Mode::empty())?;
        Ok(apply(&self.upper, &fstat(&top)?)?)
    }

    fn undo(&self) {
        for directory in &self.made {
            if let Err(e) = remove(directory) {
                tracing::warn!(error = %e, "failed mount was not cleaned up");
            }
        }
    }
}

fn attach(scratch: &Scratch, target: &Path, readonly: bool) -> Result<(), PullError> {
    let failed = |problem: String| PullError::Mount { target: target.to_owned(), problem };
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| {
        failed(format!(
            "overlayfs is not available ({e}); the guest kernel needs CONFIG_OVERLAY_FS"
        ))
    })?;
    let set = |key: &str, value: &Path| {
        if value.as_os_str().len() > MAX_OPTION {
            let shown = value.display();
            return Err(failed(format!("the path {shown} is longer than {MAX_OPTION} bytes")));
        }
        fsconfig_set_string(&context, key, value)
            .map_err(|e| failed(format!("{key}={}: {}", value.display(), said(&context, e))))
    };
    set("source", Path::new("nacre"))?;
    for layer in &scratch.lower {
        set("lowerdir+", layer).map_err(|error| match error {
            PullError::Mount { target, problem } if problem.contains("Unknown parameter") => {
                let problem = format!("{problem}; the guest kernel must be Linux 6.5 or newer");
                PullError::Mount { target, problem }
            }
            other => other,
        })?;
    }
    set("upperdir", &scratch.upper)?;
    set("workdir", &scratch.work)?;
    // What the layers can say about each other is bounded: no redirects, no content from elsewhere.
    set("redirect_dir", Path::new("nofollow"))?;
    set("metacopy", Path::new("off"))?;
    set("index", Path::new("off"))?;
    fsconfig_create(&context).map_err(|e| failed(said(&context, e)))?;
    let attributes =
        if readonly { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|e| failed(said(&context, e)))?;
    move_mount(&mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|e| failed(format!("attaching failed: {e}")))
}

/// What the kernel says about a failed step, which is more than the error number.
fn said(context: &OwnedFd, errno: Errno) -> String {
    let mut text = errno.to_string();
    let mut message = [0; 512];
    while let Ok(len @ 1..) = rustix::io::read(context, &mut message) {
        let message = String::from_utf8_lossy(&message[..len]);
        let _ = write!(text, "; kernel: {}", message.trim_start_matches("e ").trim_end());
    }
    text
}
