//! What kinds of TEE there are, and where the kernel shows them.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use nacre_evidence::Tee;

/// A TEE as a guest distinguishes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
    /// An emulated AMD secure processor.
    EmulatedSnp,
}

impl Kind {
    /// The name in the kernel parameter `nacre.tee`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Snp => "snp",
            Kind::Tdx => "tdx",
            Kind::EmulatedSnp => "emulated-snp",
        }
    }

    /// What the kernel parameter names.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Kind> {
        [Kind::Snp, Kind::Tdx, Kind::EmulatedSnp].into_iter().find(|kind| kind.name() == name)
    }

    /// Which it is to a relying party: emulation is told by its root, nothing else.
    #[must_use]
    pub const fn tee(self) -> Tee {
        match self {
            Kind::Snp | Kind::EmulatedSnp => Tee::Snp,
            Kind::Tdx => Tee::Tdx,
        }
    }

    /// Kernel module of its driver, where it is one.
    #[must_use]
    pub const fn driver(self) -> Option<&'static str> {
        match self {
            Kind::Snp => Some("sev_guest"),
            Kind::Tdx => Some("tdx_guest"),
            Kind::EmulatedSnp => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Snp => "AMD SEV-SNP",
            Kind::Tdx => "Intel TDX",
            Kind::EmulatedSnp => "an emulated AMD secure processor",
        })
    }
}

/// Where the kernel's file systems are.
#[derive(Debug, Clone)]
pub struct System {
    /// sysfs.
    pub sys: PathBuf,
    /// devtmpfs.
    pub dev: PathBuf,
    /// proc.
    pub proc: PathBuf,
}

impl Default for System {
    fn default() -> Self {
        System::beneath(Path::new("/"))
    }
}

impl System {
    /// A system whose root is `root`.
    #[must_use]
    pub fn beneath(root: &Path) -> System {
        System { sys: root.join("sys"), dev: root.join("dev"), proc: root.join("proc") }
    }

    /// The hardware TEE that the kernel has found itself in. The kernel asks the processor, whose answer
    /// the host cannot change: a register that only an SNP guest has set, the TDX module's own CPUID leaf.
    #[must_use]
    pub fn hardware(&self) -> Option<Kind> {
        // arch/x86/coco/sev: the device is made in SNP guests only, whether or not its driver is loaded.
        if self.sys.join("devices/platform/sev-guest").exists() {
            return Some(Kind::Snp);
        }
        let cpuinfo = fs::read_to_string(self.proc.join("cpuinfo")).unwrap_or_default();
        let mut flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
        let tdx = flags.any(|line| line.split_ascii_whitespace().any(|flag| flag == "tdx_guest"));
        tdx.then_some(Kind::Tdx)
    }
}
