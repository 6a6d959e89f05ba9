//! The host probe: can this node run pods, with which protection, and what is missing for that?
//!
//! [`Facts::gather`] asks a [`Host`] once, [`Facts::report`] judges what was found for one [`Tee`]. Everything
//! that leaves the probe is a typed [`Finding`] with a stable id, what was found and what to do.
//!
//! It changes nothing: it opens devices, reads files and runs QEMU's and containerd's `--version`. It never
//! issues a command to AMD's secure processor that does more than ask, and starts no guest. It distrusts
//! what it reads, which may be cut, huge or of another program: every size, count and duration is bounded,
//! and what is shown to people is one line without control characters. What it says is about the host's
//! own view, for the host's administrator: only attestation proves anything to a pod's owner.

mod containerd;
mod finding;
mod firmware;
mod host;
mod image;
mod kvm;
mod labels;
mod misc;
mod processor;
mod programs;
mod sev;
mod system;
mod tdx;
#[cfg(test)]
mod tests;
mod this_host;
mod user;

use std::path::{Path, PathBuf};

pub use containerd::ContainerdPaths;
pub use finding::{Finding, Report, Status, Tee, Verdict};
pub use firmware::FirmwarePaths;
pub use host::{Device, DeviceCall, Entry, Host, Kind, Part};
pub use image::{ImagePaths, ImageSummary};
pub use labels::Label;
pub use sev::SevCommand;
pub use system::Needs;
pub use this_host::ThisHost;
pub use user::{UserAccess, UserProblem};

pub use crate::socket_access::Ownership;

pub(crate) use kvm::try_device as try_kvm_device;
pub(crate) use processor::virtualization_flag;

use crate::{Accelerator, KvmProbe, QuoteService};
use containerd::Setup;
use firmware::Firmware;
use host::Missing;
use image::Image;
use kvm::Kvm;
use misc::Misc;
use processor::Processor;
use programs::Qemu;
use sev::Sev;
use system::System;
use tdx::Tdx;
use user::User;

/// Where a node's configuration says that things are.
#[derive(Debug, Clone)]
pub struct Question {
    /// The configuration itself; `None`: there is none, and the built-in defaults hold.
    pub configuration: Option<PathBuf>,
    /// QEMU.
    pub qemu: PathBuf,
    /// Whom QEMU runs as, by name or as `UID:GID`; empty: root.
    pub user: String,
    /// What runs guests without protection.
    pub accelerator: Accelerator,
    /// Firmware of guests.
    pub firmware: FirmwarePaths,
    /// The guest image.
    pub image: ImagePaths,
    /// Where TD reports are made into quotes.
    pub quote_generation: Option<QuoteService>,
    /// Directory of scratch disks.
    pub storage: PathBuf,
    /// What a pod takes.
    pub needs: Needs,
    /// containerd.
    pub containerd: ContainerdPaths,
}

/// What was found on a host.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    processor: Result<Processor, Missing>,
    kvm: Kvm,
    sev: Sev,
    tdx: Tdx,
    misc: Misc,
    qemu: Qemu,
    firmware: Firmware,
    image: Image,
    user: User,
    system: System,
    containerd: Setup,
}

impl Facts {
    /// Asks a host.
    #[must_use]
    pub fn gather(host: &dyn Host, question: &Question) -> Facts {
        let image = image::gather(host, &question.image);
        Facts {
            user: User::gather(host, question, &image),
            processor: Processor::gather(host),
            kvm: Kvm::gather(host),
            sev: Sev::gather(host),
            tdx: Tdx::gather(host, question.quote_generation.as_ref()),
            misc: Misc::gather(host),
            qemu: Qemu::gather(host, &question.qemu),
            firmware: Firmware::gather(host, &question.firmware),
            image,
            system: System::gather(host, &question.storage),
            containerd: Setup::gather(host, &question.containerd),
        }
    }

    /// Judges what was found: could the host run pods with this?
    #[must_use]
    pub fn report(&self, question: &Question, tee: Tee) -> Report {
        let Facts { processor, kvm, sev, tdx, misc, qemu, firmware, system, containerd, .. } = self;
        let service = question.quote_generation.as_ref();
        // Without KVM guests with protection cannot run; others fall back to emulation if they may.
        let needs_kvm = match (tee, question.accelerator) {
            (Tee::Snp | Tee::Tdx, _) | (_, Accelerator::Kvm) => Status::Fail,
            (_, Accelerator::Auto) => Status::Warn,
            (_, Accelerator::Tcg) => Status::NotApplicable,
        };
        let mut findings = vec![configuration(question.configuration.as_deref())];
        findings.extend(processor::findings(processor, needs_kvm));
        findings.extend(system::kernel_findings(system, tee));
        findings.extend(kvm::findings(kvm, tee, needs_kvm));
        findings.push(processor::snp_finding(processor, tee));
        findings.extend(sev::findings(sev, processor, misc, tee));
        findings.push(processor::tdx_finding(processor, tee));
        findings.extend(tdx::findings(tdx, processor, kvm, misc, service, tee));
        findings.extend(system::device_findings(system));
        findings.extend(programs::qemu_findings(qemu, tee));
        findings.push(user::finding(&self.user, &question.user, tee));
        findings.extend(firmware::findings(firmware, &question.firmware, tee));
        findings.push(image::finding(&self.image, &question.image.directory));
        findings.extend(containerd::findings(containerd, &question.containerd, tee));
        findings.extend(system::resource_findings(system, question.needs, &question.storage));
        Report { tee, findings }
    }

    /// Names of containerd's handlers whose pods are Nacre's.
    pub fn handlers(&self) -> impl Iterator<Item = &str> {
        self.containerd.handlers()
    }

    fn kvm_usable(&self) -> bool {
        let processor = self.processor.as_ref().ok().and_then(Processor::virtualization);
        self.kvm.device.is_ok() && processor.is_some()
    }

    fn snp_firmware(&self) -> Option<String> {
        let status = self.sev.platform.as_ref().ok()?;
        Some(format!("{}.{}.{}", status.api.0, status.api.1, status.build))
    }
}

fn configuration(path: Option<&Path>) -> Finding {
    const ID: &str = "configuration";
    match path {
        Some(path) => Finding::pass(ID, path.display().to_string()),
        None => Finding::warn(
            ID,
            "there is none: the built-in defaults hold",
            "write /etc/nacre/config.toml: tee is \"none\" without it",
        ),
    }
}

impl KvmProbe {
    /// Asks a host.
    #[must_use]
    pub(crate) fn of(host: &dyn Host) -> KvmProbe {
        KvmProbe {
            device: try_kvm_device(host).map_err(|missing| format!("/dev/kvm {missing}")),
            processor: virtualization_flag(host),
        }
    }
}
