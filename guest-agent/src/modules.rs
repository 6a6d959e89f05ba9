//! Kernel modules of the guest image: loaded while the guest starts, and never again.
//!
//! Nothing outside the measured initrd is ever loaded: requests cannot name a module, and once the agent
//! has loaded what this machine needs, the kernel is told to refuse every further one.
//!
//! The image holds them neither compressed nor signed. A kernel that Secure Boot has started takes none
//! of them: this guest needs firmware that measures and leaves it at that.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nacre_protocol::start_report::HOST_VISIBLE;
use rustix::io::Errno;

/// Where the guest image keeps its modules, and `modules.order` with their dependencies.
const DIRECTORY: &str = "/lib/modules/nacre";
/// Documentation/admin-guide/sysctl/kernel.rst: a 1 can be written, and nothing after it.
const SWITCH: &str = "/proc/sys/kernel/modules_disabled";

/// The modules of this guest image. Dropping it changes nothing; [`Modules::close`] ends all loading.
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

impl ModuleError {
    /// The module itself is good, but there is no device or feature of the processor for it.
    fn is_for_other_machines(&self) -> bool {
        let Self::Load { source, .. } = self else { return false };
        source.raw_os_error() == Some(Errno::NODEV.raw_os_error())
    }
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

    /// Loads what the image's owner put in to be loaded (`nacre image build`), in the order of `modules.load`.
    /// A module that finds nothing to drive on this machine is passed over; any other failure counts.
    pub(crate) fn ensure_owners(&self) -> Result<(), ModuleError> {
        let path = self.directory.join("modules.load");
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            read => read.map_err(|source| ModuleError::Read { path, source })?,
        };
        for name in text.lines() {
            match self.ensure(name) {
                Ok(()) => tracing::info!(target: HOST_VISIBLE, "loaded the owner's module {name}"),
                Err(error) if error.is_for_other_machines() => tracing::warn!("{error}"),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What was loaded, under the names that sysfs has for them.
    pub(crate) fn loaded(&self) -> HashSet<String> {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.iter().map(|name| name.replace('-', "_")).collect()
    }

    /// Makes the kernel refuse every module from now on, until the guest ends.
    pub(crate) fn close(self) -> io::Result<()> {
        fs::write(SWITCH, "1")
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
        let directory = tempfile::tempdir().unwrap();
        fs::write(
            directory.path().join("modules.order"),
            "overlay\nvirtio_net failover net_failover\n",
        )
        .unwrap();
        let modules = Modules { directory: directory.path().into(), loaded: Mutex::default() };
        assert_eq!(
            modules.load_order("virtio_net").unwrap(),
            ["failover", "net_failover", "virtio_net"]
        );
        assert_eq!(modules.load_order("overlay").unwrap(), ["overlay"]);
        let error = modules.load_order("kvm").unwrap_err().to_string();
        assert!(error.contains("\"kvm\""), "{error}");
    }

    #[test]
    fn owners_modules_are_those_of_their_file_and_all_are_needed() {
        let directory = tempfile::tempdir().unwrap();
        let modules = Modules { directory: directory.path().into(), loaded: Mutex::default() };
        modules.ensure_owners().unwrap();
        fs::write(directory.path().join("modules.order"), "overlay\n").unwrap();
        fs::write(directory.path().join("modules.load"), "").unwrap();
        modules.ensure_owners().unwrap();
        fs::write(directory.path().join("modules.load"), "overlay\nsensor\n").unwrap();
        // Its file is not there.
        let error = modules.ensure_owners().unwrap_err();
        assert!(matches!(&error, ModuleError::Read { path, .. } if path.ends_with("overlay.ko")));
        fs::write(directory.path().join("modules.load"), "sensor\n").unwrap();
        let error = modules.ensure_owners().unwrap_err();
        assert!(matches!(&error, ModuleError::Absent(name) if name == "sensor"), "{error}");
        let failed = |code: Errno| ModuleError::Load { name: "m".into(), source: code.into() };
        assert!(failed(Errno::NODEV).is_for_other_machines());
        assert!(!failed(Errno::NOEXEC).is_for_other_machines() && !error.is_for_other_machines());
    }
}
