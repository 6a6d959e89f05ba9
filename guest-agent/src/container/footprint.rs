//! What a container occupies in the guest, and how it is given back.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nacre_image_pull::remove_tree;
use nacre_protocol::channel::CONTAINERS_ROOT;
use rustix::mount::UnmountFlags;

use crate::cgroup::Cgroup;
use crate::launcher::STATES;

/// A directory, mounts beneath it, what was written to its root, a control group, the runtime library's
/// state.
#[derive(Debug)]
pub(super) struct Footprint {
    id: String,
    directory: PathBuf,
    scratch: PathBuf,
    cgroup: Cgroup,
    mounts: Mutex<Vec<PathBuf>>,
}

impl Footprint {
    /// Makes directory and control group. `id` is a checked container name; what is written to the
    /// container's root will be in `scratch`.
    pub(super) fn make(id: &str, scratch: PathBuf) -> Result<Self, String> {
        let directory = Path::new(CONTAINERS_ROOT).join(id);
        fs::create_dir(&directory)
            .map_err(|e| format!("failed to make {}: {e}", directory.display()))?;
        match Cgroup::create(id) {
            Ok(cgroup) => {
                let (id, mounts) = (id.to_owned(), Mutex::default());
                Ok(Self { id, directory, scratch, cgroup, mounts })
            }
            Err(error) => {
                let _ = fs::remove_dir(&directory);
                Err(format!("failed to make the control group: {error}"))
            }
        }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where what is written to the container's root goes; whoever mounts the root makes it.
    pub(super) fn scratch(&self) -> &Path {
        &self.scratch
    }

    pub(super) fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Makes a directory that is to be mounted on, and remembers to unmount it.
    pub(super) fn mount_point(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.directory.join(name);
        fs::create_dir(&path)?;
        self.mounts().push(path.clone());
        Ok(path)
    }

    /// The same for a file.
    pub(super) fn file_mount_point(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.directory.join(name);
        fs::File::create_new(&path)?;
        self.mounts().push(path.clone());
        Ok(path)
    }

    /// Kills the processes, then unmounts and removes all. What is gone already is no error.
    pub(super) async fn release(&self) -> Result<(), String> {
        let mut errors = Vec::new();
        if let Err(error) = self.cgroup.remove().await {
            errors.push(format!("failed to remove the control group: {error}"));
        }
        let mounts = std::mem::take(&mut *self.mounts());
        for mount in mounts.iter().rev() {
            // EINVAL: nothing is mounted there.
            match rustix::mount::unmount(mount, UnmountFlags::DETACH) {
                Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
                Err(error) => {
                    errors.push(format!("failed to unmount {}: {error}", mount.display()));
                }
            }
        }
        let state = Path::new(STATES).join(&self.id);
        errors.extend(removed(&state).err());
        errors.extend(removed(&self.directory).err());
        // It may be large, on a disk, and of any depth.
        let scratch = self.scratch.clone();
        let removing = move || remove_tree(&scratch).map_err(|error| error.to_string());
        let removing = tokio::task::spawn_blocking(removing).await;
        errors.extend(removing.map_err(|e| e.to_string()).flatten().err());
        if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
    }

    fn mounts(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn removed(directory: &Path) -> Result<(), String> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("failed to remove {}: {error}", directory.display()))
        }
        _ => Ok(()),
    }
}
