//! Which accelerator a VM gets, and why.

use crate::memory_encryption::MemoryEncryption;
use crate::probe::ThisHost;
use crate::qemu::QemuError;

/// The accelerator an administrator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Accelerator {
    /// KVM where it can boot a stock kernel, else software emulation with a warning.
    #[default]
    Auto,
    /// KVM, or an error where it cannot work.
    Kvm,
    /// Software emulation (QEMU's TCG): works everywhere, slow, and no isolation by hardware.
    Tcg,
}

/// The accelerator that is used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AcceleratorChoice {
    /// Hardware virtualization.
    Kvm {
        /// For people.
        why: String,
    },
    /// Software emulation.
    Tcg {
        /// For people: what is missing for KVM, or that emulation was asked for.
        why: String,
    },
}

/// What a host can do for guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostCapabilities {
    /// What runs them.
    pub accelerator: AcceleratorChoice,
    /// What SEV-SNP guests have to repeat, if the processor has SEV-SNP.
    pub memory_encryption: Option<MemoryEncryption>,
}

/// What the host offers for hardware virtualization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvmProbe {
    /// Whether `/dev/kvm` opens, speaks API version 12 and creates a VM; else what failed.
    pub device: Result<(), String>,
    /// The processor's virtualization flag in `/proc/cpuinfo`, `svm` or `vmx`; else what was found.
    ///
    /// Some hosts offer a `/dev/kvm` without either flag. It creates VMs, but a stock kernel hangs
    /// in them, so it does not count.
    pub processor: Result<&'static str, String>,
}

impl KvmProbe {
    /// Asks the host this process runs on.
    #[must_use]
    pub fn of_this_host() -> KvmProbe {
        KvmProbe::of(&ThisHost)
    }

    /// Everything that stands against KVM, empty if it can be used.
    #[must_use]
    pub fn obstacles(&self) -> Vec<&str> {
        let device = self.device.as_ref().err();
        let processor = self.processor.as_ref().err();
        device.into_iter().chain(processor).map(String::as_str).collect()
    }
}

impl Accelerator {
    /// Settles what is used on a host that offers `host`.
    pub(crate) fn choose(self, host: &KvmProbe) -> Result<AcceleratorChoice, QemuError> {
        let obstacles = host.obstacles();
        let usable = obstacles.is_empty();
        match self {
            Accelerator::Tcg => {
                let why = "the configuration asks for software emulation".to_owned();
                Ok(AcceleratorChoice::Tcg { why })
            }
            Accelerator::Auto | Accelerator::Kvm if usable => {
                let flag = host.processor.as_ref().copied().unwrap_or_default();
                Ok(AcceleratorChoice::Kvm { why: format!("/dev/kvm works on a {flag} processor") })
            }
            Accelerator::Auto => Ok(AcceleratorChoice::Tcg { why: obstacles.join("; ") }),
            Accelerator::Kvm => Err(QemuError::KvmUnusable { why: obstacles.join("; ") }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(device: bool, processor: bool) -> KvmProbe {
        KvmProbe {
            device: if device { Ok(()) } else { Err("/dev/kvm does not open".into()) },
            processor: if processor { Ok("svm") } else { Err("neither svm nor vmx".into()) },
        }
    }

    #[test]
    fn auto_takes_kvm_only_with_a_device_and_a_processor_flag() {
        let chosen =
            |device, processor| Accelerator::Auto.choose(&host(device, processor)).unwrap();
        assert!(matches!(chosen(true, true), AcceleratorChoice::Kvm { .. }));
        let AcceleratorChoice::Tcg { why } = chosen(true, false) else { panic!("KVM without svm") };
        assert_eq!(why, "neither svm nor vmx");
        let AcceleratorChoice::Tcg { why } = chosen(false, false) else { panic!("no device") };
        assert_eq!(why, "/dev/kvm does not open; neither svm nor vmx");
    }

    #[test]
    fn kvm_that_was_asked_for_is_never_replaced_by_emulation() {
        assert!(Accelerator::Kvm.choose(&host(true, true)).is_ok());
        let error = Accelerator::Kvm.choose(&host(true, false)).unwrap_err().to_string();
        assert!(error.contains("neither svm nor vmx"), "{error}");
    }
}
