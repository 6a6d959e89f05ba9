//! Intel TDX: the kernel, the TDX module, its key ids, and the quote generation service.

use kvm_bindings::KVM_X86_TDX_VM;

use super::finding::{Finding, Tee};
use super::host::{Entry, Host, Kind, Missing, line};
use super::kvm::Kvm;
use super::misc::Misc;
use super::processor::{Processor, Vendor};
use super::sev::switched_on;
use crate::QuoteService;
use crate::socket_access::{Access, Ownership, User};

/// Who starts QEMU, and leaves it no capability.
const SHIM: User = User { uid: 0, gid: 0 };

/// What the host has for TDX, beside the processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tdx {
    /// `/sys/module/kvm_intel/parameters/tdx`: whether KVM launches TDX guests.
    enabled: Result<bool, Missing>,
    /// `/sys/devices/faux/tdx_host/version`, "major.minor.update", from Linux 7.2 on
    /// (Documentation/ABI/testing/sysfs-devices-faux-tdx-host).
    module: Result<String, Missing>,
    /// What is at the service's socket, if it has one.
    quote_socket: Option<Result<Entry, Missing>>,
}

impl Tdx {
    pub(crate) fn gather(host: &dyn Host, service: Option<&QuoteService>) -> Tdx {
        let quote_socket = match service {
            Some(QuoteService::Unix(path)) => {
                Some(host.look(path).map_err(|error| Missing::of(&error)))
            }
            Some(QuoteService::Vsock { .. }) | None => None,
        };
        Tdx {
            enabled: switched_on(host, "/sys/module/kvm_intel/parameters/tdx"),
            module: line(host, "/sys/devices/faux/tdx_host/version"),
            quote_socket,
        }
    }

    /// Version of the TDX module, where the kernel shows it.
    pub(crate) fn module_version(&self) -> Option<String> {
        self.module.clone().ok()
    }
}

pub(crate) fn findings(
    tdx: &Tdx,
    processor: &Result<Processor, Missing>,
    kvm: &Kvm,
    misc: &Misc,
    service: Option<&QuoteService>,
    tee: Tee,
) -> [Finding; 4] {
    const IDS: [&str; 4] = ["tdx.kernel", "tdx.module", "tdx.keys", "tdx.quote-service"];
    let intel = processor.as_ref().is_ok_and(|processor| processor.vendor == Vendor::Intel);
    if tee != Tee::Tdx || !intel {
        // That the processor is another one fails once, as `tdx.cpu`.
        let found = if intel { "not asked for" } else { "not a processor of Intel's" };
        return IDS.map(|id| Finding::skip(id, found));
    }
    [kernel(tdx), module(tdx, kvm), keys(misc), quotes(tdx, service)]
}

fn kernel(tdx: &Tdx) -> Finding {
    const ID: &str = "tdx.kernel";
    match &tdx.enabled {
        Ok(true) => Finding::pass(ID, "kvm_intel tdx=Y"),
        Ok(false) => Finding::fail(
            ID,
            "kvm_intel tdx=N",
            "load kvm_intel with tdx=1 (kernel parameter kvm_intel.tdx=1); if it stays N, the kernel's log \
             says what is missing (\"virt/tdx\"): often the TDX module, or hibernation, which \"nohibernate\" \
             switches off",
        ),
        Err(missing) => Finding::fail(
            ID,
            format!("parameter tdx of kvm_intel {missing}"),
            "load the module kvm_intel of Linux 6.16 or later with CONFIG_INTEL_TDX_HOST and \
             CONFIG_KVM_INTEL_TDX",
        ),
    }
}

fn module(tdx: &Tdx, kvm: &Kvm) -> Finding {
    const ID: &str = "tdx.module";
    match &tdx.module {
        Ok(version) => Finding::pass(ID, format!("TDX module {version}")),
        // KVM offers the type only when the module is initialised.
        Err(_) if kvm.creates(KVM_X86_TDX_VM) => {
            Finding::pass(ID, "initialised; Linux shows its version from 7.2 on")
        }
        Err(_) if kvm.device == Err(Missing::Denied) => Finding::unseen(ID, "/dev/kvm"),
        Err(_) => Finding::fail(
            ID,
            "the TDX module is not initialised",
            "switch on TDX and the SEAM loader in the firmware setup, and install the TDX module that the \
             node's firmware brings or Intel publishes (intel/confidential-computing.tdx.tdx-module)",
        ),
    }
}

fn keys(misc: &Misc) -> Finding {
    const ID: &str = "tdx.keys";
    const RESOURCE: &str = "tdx";
    match (misc.capacity(RESOURCE), misc.current(RESOURCE)) {
        (None, _) => Finding::warn(
            ID,
            "the kernel does not tell how many TDX guests can run at a time",
            "mount the misc controller of cgroups (CONFIG_CGROUP_MISC)",
        ),
        (Some(0), _) => Finding::fail(
            ID,
            "no key ids for TDX guests",
            "leave key ids to TDX in the firmware setup (TME-MT/TDX key split)",
        ),
        (Some(most), Some(used)) if used >= most => Finding::warn(
            ID,
            format!("{used} of {most} key ids for TDX guests in use"),
            "no further pod starts until one has ended",
        ),
        (Some(most), Some(used)) => {
            Finding::pass(ID, format!("{used} of {most} key ids for TDX guests in use"))
        }
        (Some(most), None) => Finding::pass(ID, format!("{most} key ids for TDX guests")),
    }
}

fn quotes(tdx: &Tdx, service: Option<&QuoteService>) -> Finding {
    const ID: &str = "tdx.quote-service";
    match (service, &tdx.quote_socket) {
        (None, _) => Finding::warn(
            ID,
            "no quote generation service is configured",
            "set tdx.quote_generation: without it guests boot, and no broker gives them a secret",
        ),
        (Some(QuoteService::Vsock { cid, port }), _) => {
            Finding::pass(ID, format!("vsock {cid}:{port}; not asked"))
        }
        (Some(QuoteService::Unix(path)), Some(Ok(Entry { kind: Kind::Socket, ownership, .. }))) => {
            let Ownership { uid, gid, mode } = ownership;
            let found = format!("{}: uid {uid}, gid {gid}, mode {mode:04o}", path.display());
            match ownership.access(SHIM) {
                Access::Open | Access::WithGroup(_) => {
                    Finding::pass(ID, format!("{found}; not asked"))
                }
                Access::Closed => Finding::fail(
                    ID,
                    format!("{found}: QEMU may not connect"),
                    "let its group write to it (mode 0660): QEMU runs as root without capabilities, and \
                     in the socket's group",
                ),
            }
        }
        (Some(QuoteService::Unix(path)), Some(Err(Missing::Denied))) => {
            Finding::unseen(ID, path.display().to_string())
        }
        (Some(QuoteService::Unix(path)), looked) => {
            let found = match looked {
                Some(Err(missing)) => format!("{} {missing}", path.display()),
                _ => format!("{} is no socket", path.display()),
            };
            let advice = "start Intel's quote generation service (qgsd), or correct \
                          tdx.quote_generation: without it no broker gives guests a secret";
            Finding::fail(ID, found, advice)
        }
    }
}
