//! Kernel modules of the guest image, loaded when something needs them.
//!
//! The image holds them neither compressed nor signed, because nothing outside the measured initrd is
//! ever loaded: requests cannot name a module.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

/// Where the guest image keeps its modules, and `modules.order` with their dependencies.
const DIRECTORY: &str = "/lib/modules/nacre";

/// The modules of this guest image.
#[derive(Debug)]
pub(crate) struct Modules {
    directory: PathBuf,
    loaded: Mutex<HashSet<String>>,
}

/// Why a module could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModuleError {
    /// The guest image was built without it.
    #[error("the guest image holds no kernel module {0:?}")]
    Absent(String),
    /// A file of the image could not be read.
    #[error("failed to read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel refused it.
    #[error("failed to load the kernel module {name:?}: {source}")]
    Load {
        /// The module.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Modules {
    /// The modules in the guest image's directory.
    pub(crate) fn new() -> Self {
        Self { directory: DIRECTORY.into(), loaded: Mutex::default() }
    }

    /// Loads `name` and what it depends on, unless that was done before. Concurrent callers wait.
    pub(crate) fn ensure(&self, name: &str) -> Result<(), ModuleError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.contains(name) {
            return Ok(());
        }
        for module in self.load_order(name)? {
            if !loaded.contains(&module) {
                self.load(&module)?;
                loaded.insert(module);
            }
        }
        Ok(())
    }

    /// Dependencies first, `name` last.
    fn load_order(&self, name: &str) -> Result<Vec<String>, ModuleError> {
        let path = self.directory.join("modules.order");
        let text =
            fs::read_to_string(&path).map_err(|source| ModuleError::Read { path, source })?;
        let line = text.lines().find(|line| line.split(' ').next() == Some(name));
        let line = line.ok_or_else(|| ModuleError::Absent(name.to_owned()))?;
        let mut words = line.split(' ').filter(|word| !word.is_empty()).map(str::to_owned);
        let own = words.next().ok_or_else(|| ModuleError::Absent(name.to_owned()))?;
        Ok(words.chain([own]).collect())
    }

    fn load(&self, name: &str) -> Result<(), ModuleError> {
        let path = self.directory.join(Path::new(name).with_extension("ko"));
        let file = fs::File::open(&path).map_err(|source| ModuleError::Read { path, source })?;
        match rustix::system::finit_module(&file, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(ModuleError::Load { name: name.to_owned(), source: error.into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_first_and_absent_modules_are_named() {
        let directory = std::env::temp_dir().join(format!("nacre-modules-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("modules.order"), "overlay\nvirtio_net failover net_failover\n")
            .unwrap();
        let modules = Modules { directory: directory.clone(), loaded: Mutex::default() };
        assert_eq!(
            modules.load_order("virtio_net").unwrap(),
            ["failover", "net_failover", "virtio_net"]
        );
        assert_eq!(modules.load_order("overlay").unwrap(), ["overlay"]);
        let error = modules.load_order("kvm").unwrap_err().to_string();
        fs::remove_dir_all(directory).unwrap();
        assert!(error.contains("\"kvm\""), "{error}");
    }
}
