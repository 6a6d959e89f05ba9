//! One installation at a time.

use std::fs::{self, File};

use rustix::fs::{FlockOperation, flock};

use crate::NodeError;
use crate::files::Root;

/// Held for as long as it lives; the kernel lets go when the process ends.
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Not only closed: a child that is about to run a program can have it open, too.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

impl Lock {
    pub(crate) fn take(root: &Root) -> Result<Lock, NodeError> {
        let path = root.at("/var/lib/nacre/install/lock")?;
        let directory = path.with_file_name("");
        fs::create_dir_all(&directory).map_err(NodeError::file("make", &directory))?;
        let file = File::options().create(true).append(true).open(&path);
        let file = file.map_err(NodeError::file("open", &path))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| NodeError::Busy(path))?;
        Ok(Lock(file))
    }
}
