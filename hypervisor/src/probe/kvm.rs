//! KVM.

use kvm_bindings::{
    KVM_CAP_GUEST_MEMFD, KVM_CAP_MEMORY_ATTRIBUTES, KVM_CAP_VM_TYPES, KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_X86_SNP_VM, KVM_X86_TDX_VM,
};

use super::finding::{Finding, Status, Tee};
use super::host::{DeviceCall, Host, Missing};

/// What `/dev/kvm` answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kvm {
    /// Whether it speaks the stable API and creates a VM.
    pub(crate) device: Result<(), Missing>,
    /// Types of VMs that it creates, a bit for each; 0 if it does not tell.
    pub(crate) vm_types: u32,
    pub(crate) guest_memfd: bool,
    /// Memory attributes that VMs with private memory have.
    pub(crate) memory_attributes: u64,
}

impl Kvm {
    pub(crate) fn gather(host: &dyn Host) -> Kvm {
        let device = try_device(host);
        let extension = |number: u32| match &device {
            // Negative answers are error numbers.
            Ok(()) => {
                host.device(DeviceCall::KvmExtension(number)).map_or(0, |answer| answer.max(0))
            }
            Err(_) => 0,
        };
        let (vm_types, attributes) =
            (extension(KVM_CAP_VM_TYPES), extension(KVM_CAP_MEMORY_ATTRIBUTES));
        let guest_memfd = extension(KVM_CAP_GUEST_MEMFD) > 0;
        Kvm {
            device,
            vm_types: vm_types.unsigned_abs(),
            guest_memfd,
            memory_attributes: u64::from(attributes.unsigned_abs()),
        }
    }

    pub(crate) fn creates(&self, vm_type: u32) -> bool {
        self.vm_types & 1 << vm_type != 0
    }
}

/// Whether `/dev/kvm` opens, speaks API version 12 and creates a VM.
pub(crate) fn try_device(host: &dyn Host) -> Result<(), Missing> {
    const STABLE_API_VERSION: i32 = 12;
    let missing = |error| Missing::of(&error);
    let version = host.device(DeviceCall::KvmApiVersion).map_err(missing)?;
    if version != STABLE_API_VERSION {
        let problem = format!("it speaks API version {version}, not {STABLE_API_VERSION}");
        return Err(Missing::Broken(problem));
    }
    match host.device(DeviceCall::KvmCreateVm) {
        Ok(_) => Ok(()),
        Err(error) => Err(Missing::Broken(format!("it creates no VM: {error}"))),
    }
}

/// `needs_kvm` is the status of a host without KVM.
pub(crate) fn findings(kvm: &Kvm, tee: Tee, needs_kvm: Status) -> [Finding; 4] {
    let device = match &kvm.device {
        Ok(()) => Finding::pass("kvm.device", "/dev/kvm creates VMs"),
        Err(Missing::Denied) if needs_kvm == Status::Fail => {
            Finding::unseen("kvm.device", "/dev/kvm")
        }
        Err(missing) => Finding::new(
            "kvm.device",
            needs_kvm,
            format!("/dev/kvm {missing}"),
            match missing {
                Missing::Absent => {
                    "load kvm_amd or kvm_intel; in a container, hand /dev/kvm in; without it pods run in \
                     slow software emulation"
                }
                Missing::Denied => "run as root to see what it can",
                Missing::Broken(_) => {
                    "see the kernel's log; without it pods run in slow software emulation"
                }
            },
        ),
    };
    [device, vm_types(kvm, tee), guest_memfd(kvm, tee), memory_attributes(kvm, tee)]
}

fn vm_types(kvm: &Kvm, tee: Tee) -> Finding {
    const ID: &str = "kvm.vm-types";
    const NAMES: [&str; 6] = ["default", "software-protected", "SEV", "SEV-ES", "SEV-SNP", "TDX"];
    if kvm.device.is_err() {
        return Finding::skip(ID, "see kvm.device");
    }
    let known = NAMES.iter().zip(0..).filter(|&(_, number)| kvm.creates(number));
    let known: Vec<&str> = known.map(|(&name, _)| name).collect();
    let found = match known.as_slice() {
        [] => "KVM does not tell which types of VMs it creates".to_owned(),
        names => names.join(", "),
    };
    match tee {
        Tee::None | Tee::EmulatedSnp => Finding::skip(ID, found),
        Tee::Snp if kvm.creates(KVM_X86_SNP_VM) => Finding::pass(ID, found),
        Tee::Tdx if kvm.creates(KVM_X86_TDX_VM) => Finding::pass(ID, found),
        Tee::Snp => Finding::fail(
            ID,
            format!("{found}; no SEV-SNP"),
            "see snp.cpu, snp.kernel and snp.firmware; Linux 6.11 is the first with SEV-SNP hosts",
        ),
        Tee::Tdx => Finding::fail(
            ID,
            format!("{found}; no TDX"),
            "see tdx.cpu, tdx.kernel and tdx.module; Linux 6.16 is the first with TDX hosts",
        ),
    }
}

fn guest_memfd(kvm: &Kvm, tee: Tee) -> Finding {
    const ID: &str = "kvm.guest-memfd";
    private_memory(
        ID,
        kvm,
        tee,
        kvm.guest_memfd,
        ["guest_memfd", "no guest_memfd"],
        "boot a kernel with CONFIG_KVM_AMD_SEV or CONFIG_KVM_INTEL_TDX",
    )
}

fn memory_attributes(kvm: &Kvm, tee: Tee) -> Finding {
    const ID: &str = "kvm.memory-attributes";
    let private = kvm.memory_attributes & u64::from(KVM_MEMORY_ATTRIBUTE_PRIVATE) != 0;
    private_memory(
        ID,
        kvm,
        tee,
        private,
        ["memory can be private", "memory cannot be private"],
        "boot a kernel whose KVM has private memory (CONFIG_KVM_GENERIC_MEMORY_ATTRIBUTES)",
    )
}

fn private_memory(
    id: &'static str,
    kvm: &Kvm,
    tee: Tee,
    there: bool,
    [yes, no]: [&str; 2],
    advice: &str,
) -> Finding {
    match (&kvm.device, there) {
        (Err(_), _) => Finding::skip(id, "see kvm.device"),
        (Ok(()), true) if tee.is_hardware() => Finding::pass(id, yes),
        (Ok(()), false) if tee.is_hardware() => Finding::fail(id, no, advice),
        (Ok(()), there) => Finding::skip(id, if there { yes } else { no }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_have_the_kernels_numbers() {
        // linux/kvm.h of 6.16 and asm/kvm.h of x86.
        assert_eq!(
            (KVM_CAP_MEMORY_ATTRIBUTES, KVM_CAP_GUEST_MEMFD, KVM_CAP_VM_TYPES),
            (233, 234, 235)
        );
        assert_eq!((KVM_X86_SNP_VM, KVM_X86_TDX_VM), (4, 5));
        assert_eq!(KVM_MEMORY_ATTRIBUTE_PRIVATE, 1 << 3);
    }
}
