//! Obtains evidence about the guest it runs in: from AMD SEV-SNP or Intel TDX hardware through the
//! kernel's configfs-tsm, or from an emulated AMD secure processor through a port of the VM.
//!
//! Which one is found out at run time. Hardware shows itself to the kernel and cannot be hidden or
//! feigned by the host; it wins over the emulated processor, and the measured kernel command line must
//! name what is found ([`detect`]).
//!
//! What passes the host on its way (certificates, TDX quotes and event logs, everything emulated) is
//! bounded and may be wrong: the relying party verifies it. [`Attester::host_data`] alone is believed in
//! the guest itself, and on hardware comes from where the host cannot change it. This crate checks no
//! signature, decides nothing, and never makes evidence up where there is no TEE.
//!
//! **Never run on hardware.** There was no SEV-SNP or TDX machine to try it on. The emulated processor is
//! tested in VMs; the files of configfs-tsm against pipes that behave like them; that configfs mounts and
//! has its directory was seen on the guest's kernel. The ioctls of `/dev/sev-guest` and `/dev/tdx_guest`
//! and the extension of RTMR3 follow the kernel's headers and documentation
//! (`include/uapi/linux/sev-guest.h`, `include/uapi/linux/tdx-guest.h`,
//! `Documentation/ABI/testing/configfs-tsm-report`); no such driver has answered them yet.

mod emulated;
#[allow(unsafe_code)]
mod raw;
mod snp;
mod system;
mod tdx;
mod tsm;

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use nacre_evidence::{Evidence, EvidenceError, Tee};
use nacre_protocol::channel::{PROCESSOR_PORT_NAME, kernel_parameter};
use nacre_protocol::processor::ResponseError;

pub use system::{Kind, System};

/// A source of evidence about this guest.
#[async_trait]
pub trait Attester: Debug + Send + Sync {
    /// Which TEE it is to a relying party.
    fn tee(&self) -> Tee {
        self.kind().tee()
    }

    /// Which it is to this guest.
    fn kind(&self) -> Kind;

    /// Evidence that holds `report_data`.
    ///
    /// # Errors
    /// If the kernel or the processor gives none, or one that holds something else.
    async fn evidence(&self, report_data: [u8; 64]) -> Result<Evidence, AttestError>;

    /// What the host gave at the launch and cannot change any more: SNP's `HOST_DATA` (32 bytes), TDX's
    /// `MRCONFIGID` (48 bytes).
    ///
    /// # Errors
    /// If the kernel or the processor does not tell.
    async fn host_data(&self) -> Result<Vec<u8>, AttestError>;

    /// Extends the runtime measurement register (TDX's RTMR3) with SHA-384 of `event`, the data of a TCG
    /// event of kind `EV_EVENT_TAG`, and adds the event to the log that later evidence holds.
    ///
    /// # Errors
    /// [`AttestError::NoRuntimeRegister`] where there is no such register: SNP, the emulated processor,
    /// kernels before 6.16.
    async fn extend_runtime(&self, event: &[u8]) -> Result<(), AttestError> {
        let _ = event;
        Err(AttestError::NoRuntimeRegister(self.kind()))
    }
}

/// Why there is no evidence.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// The command line does not name what there is.
    #[error(
        "the kernel command line says {parameter}={named}, but this guest runs in {found}; \
         launch it in what its command line names", parameter = kernel_parameter::TEE,
        named = named.as_deref().unwrap_or("(nothing)")
    )]
    Mismatch {
        /// In the command line.
        named: Option<String>,
        /// By what this guest found.
        found: String,
    },
    /// The command line names something unknown.
    #[error(
        "the kernel parameter {parameter}={0} is not known: it names snp, tdx or emulated-snp",
        parameter = kernel_parameter::TEE
    )]
    Parameter(String),
    /// A kernel driver could not be loaded.
    #[error("the driver of {kind} could not be loaded: {problem}")]
    Driver {
        /// Whose.
        kind: Kind,
        /// What went wrong.
        problem: String,
    },
    /// A file of the kernel's interface cannot be used.
    #[error("failed to {doing} {path}: {source}")]
    File {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel's interface is there, but is that of another TEE.
    #[error("{path} says {found:?}, not {expected:?}: another driver answers")]
    Provider {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What it should say.
        expected: &'static str,
    },
    /// Somebody else used the same entry meanwhile.
    #[error("{0} was changed by another process while a report was read from it")]
    Raced(PathBuf),
    /// What came is no evidence.
    #[error("what {source_name} gave is no evidence: {cause}")]
    Evidence {
        /// Who gave it.
        source_name: &'static str,
        /// What is wrong with it.
        cause: EvidenceError,
    },
    /// The evidence is about something else.
    #[error("what {0} gave holds other report data than was asked for")]
    OtherReportData(&'static str),
    /// The VM has no emulated processor.
    #[error(
        "the VM has no virtio-serial port {PROCESSOR_PORT_NAME}: the host does not run an emulated \
         secure processor"
    )]
    NoPort,
    /// The emulated processor does not answer as it should.
    #[error("the emulated secure processor failed: {0}")]
    Port(#[from] ResponseError),
    /// The stream to the emulated processor broke at an earlier request.
    #[error("the port of the emulated secure processor broke earlier; the guest must be restarted")]
    Broken,
    /// There is no runtime measurement register.
    #[error(
        "{0} has no runtime measurement register that this kernel can extend (TDX has one, from \
         Linux 6.16 on)"
    )]
    NoRuntimeRegister(Kind),
    /// The task that did the work was ended.
    #[error("the request was cut short")]
    Cut,
}

/// Finds the TEE that this guest runs in. `named` is the kernel parameter `nacre.tee`, `load` loads a
/// kernel module of the guest image by name. None where none is found and none is named.
///
/// # Errors
/// If what is found is not what is named, or cannot be used.
pub async fn detect(
    named: Option<&str>,
    system: System,
    load: impl Fn(&str) -> Result<(), String>,
) -> Result<Option<Arc<dyn Attester>>, AttestError> {
    let named = match named {
        Some(name) => Some(Kind::of_name(name).ok_or_else(|| AttestError::Parameter(name.into()))?),
        None => None,
    };
    let found = match system.hardware() {
        Some(hardware) => Some(hardware),
        // Without hardware nothing tells an emulated processor from any other port but its name.
        None => named.filter(|kind| *kind == Kind::EmulatedSnp),
    };
    if found != named {
        let found =
            found.map_or("no TEE that this kernel knows".to_owned(), |kind| kind.to_string());
        return Err(AttestError::Mismatch { named: named.map(|kind| kind.name().into()), found });
    }
    let Some(kind) = found else { return Ok(None) };
    if let Some(module) = kind.driver() {
        load(module).map_err(|problem| AttestError::Driver { kind, problem })?;
    }
    let attester: Arc<dyn Attester> = match kind {
        Kind::Snp => Arc::new(snp::Snp::open(system)?),
        Kind::Tdx => Arc::new(tdx::Tdx::open(system)?),
        Kind::EmulatedSnp => Arc::new(emulated::EmulatedSnp::open(&system).await?),
    };
    Ok(Some(attester))
}

/// Runs work that waits for the kernel off the runtime's threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AttestError> + Send + 'static,
) -> Result<T, AttestError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| AttestError::Cut)?
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AttestError {
    let path = path.to_owned();
    move |source| AttestError::File { doing, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system() -> (tempfile::TempDir, System) {
        let root = tempfile::tempdir().unwrap();
        let system = System::beneath(root.path());
        std::fs::create_dir_all(&system.proc).unwrap();
        std::fs::write(system.proc.join("cpuinfo"), "flags\t\t: fpu sse2\n").unwrap();
        (root, system)
    }

    fn no_module(name: &str) -> Result<(), String> {
        panic!("{name} is not to be loaded")
    }

    #[tokio::test]
    async fn without_a_tee_there_is_none() {
        let (_root, system) = system();
        assert!(detect(None, system, no_module).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_is_found_must_be_what_is_named() {
        let (_root, system) = system();
        let error = async |named: Option<&str>, system: &System| {
            detect(named, system.clone(), no_module).await.unwrap_err().to_string()
        };
        let none = error(Some("snp"), &system).await;
        assert!(none.contains("nacre.tee=snp, but this guest runs in no TEE"), "{none}");
        let unknown = error(Some("sgx"), &system).await;
        assert!(unknown.contains("nacre.tee=sgx is not known"), "{unknown}");
        // Hardware that is not named, or named as its own emulation.
        std::fs::create_dir_all(system.sys.join("devices/platform/sev-guest")).unwrap();
        for (named, shown) in
            [(None, "(nothing)"), (Some("emulated-snp"), "emulated-snp"), (Some("tdx"), "tdx")]
        {
            let error = error(named, &system).await;
            assert!(error.contains(&format!("nacre.tee={shown}, but")), "{error}");
            assert!(error.contains("runs in AMD SEV-SNP"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_driver_that_the_image_lacks_is_named() {
        let (_root, system) = system();
        std::fs::write(system.proc.join("cpuinfo"), "flags\t\t: fpu tdx_guest\n").unwrap();
        let load = |name: &str| Err(format!("no kernel module {name:?}"));
        let error = detect(Some("tdx"), system, load).await.unwrap_err().to_string();
        assert!(error.contains("no kernel module \"tdx_guest\""), "{error}");
    }

    #[tokio::test]
    async fn an_emulated_processor_needs_its_port() {
        let (_root, system) = system();
        let error = detect(Some("emulated-snp"), system, no_module).await.unwrap_err();
        assert!(matches!(error, AttestError::NoPort), "{error}");
    }
}
