//! What runs a guest's instructions, and what makes it confidential.

use super::QemuVersion;
use super::command_line::{Accel, Cpu, DeviceMemory, Firmware};
use crate::accelerator::HostCapabilities;
use crate::memory_encryption::MemoryEncryption;
use crate::{AcceleratorChoice, Confidential, LaunchError, SnpLaunch, TdxLaunch};

/// Firmware of guests that are not confidential: it loads the kernel and nothing else.
pub(super) const PLAIN_FIRMWARE: &str = "qboot.rom";

/// The first version that knows TDX.
const LEAST_FOR_TDX: QemuVersion = QemuVersion { major: 10, minor: 1 };

/// Decided once for each machine, so that a guest that was to be confidential cannot become anything less.
pub(super) enum Platform {
    Emulated,
    Virtualized,
    Snp { launch: SnpLaunch, host: MemoryEncryption },
    Tdx(TdxLaunch),
}

impl Platform {
    /// What this host and this QEMU make of the wish. Nothing stands in for what is missing.
    pub(super) fn settle(
        wish: Option<Confidential>,
        host: &HostCapabilities,
        qemu: QemuVersion,
    ) -> Result<Platform, LaunchError> {
        let unsupported =
            |tee: &'static str, problem: String| Err(LaunchError::Unsupported { tee, problem });
        let without_kvm = |why: &str| {
            format!("they need KVM, and {why}; `nacre check` tells what a host for them needs")
        };
        match (wish, &host.accelerator) {
            (None, AcceleratorChoice::Kvm { .. }) => Ok(Platform::Virtualized),
            (None, AcceleratorChoice::Tcg { .. }) => Ok(Platform::Emulated),
            (Some(Confidential::Snp(_)), AcceleratorChoice::Tcg { why }) => {
                unsupported("SEV-SNP", without_kvm(why))
            }
            (Some(Confidential::Tdx(_)), AcceleratorChoice::Tcg { why }) => {
                unsupported("TDX", without_kvm(why))
            }
            // SEV-SNP came with the earliest version that is used at all.
            (Some(Confidential::Snp(launch)), AcceleratorChoice::Kvm { .. }) => {
                match host.memory_encryption {
                    Some(host) => Ok(Platform::Snp { launch, host }),
                    None => unsupported(
                        "SEV-SNP",
                        "the processor does not show it (CPUID 8000001Fh); if it is an EPYC 7003 or \
                         later, enable SEV-SNP in the machine's firmware setup; `nacre check` tells more"
                            .to_owned(),
                    ),
                }
            }
            (Some(Confidential::Tdx(_)), _) if qemu < LEAST_FOR_TDX => {
                let problem = format!(
                    "they need QEMU {LEAST_FOR_TDX} or later, and this is {qemu}; name another in vm.qemu"
                );
                unsupported("TDX", problem)
            }
            (Some(Confidential::Tdx(launch)), AcceleratorChoice::Kvm { .. }) => {
                Ok(Platform::Tdx(launch))
            }
        }
    }

    pub(super) fn is_confidential(&self) -> bool {
        match self {
            Platform::Emulated | Platform::Virtualized => false,
            Platform::Snp { .. } | Platform::Tdx(_) => true,
        }
    }

    pub(super) fn accel(&self) -> Accel {
        match self {
            Platform::Emulated => Accel::Tcg,
            Platform::Virtualized | Platform::Snp { .. } | Platform::Tdx(_) => Accel::Kvm,
        }
    }

    pub(super) fn cpu(&self) -> Cpu {
        match self {
            Platform::Emulated => Cpu::Emulated,
            Platform::Virtualized => Cpu::Host,
            Platform::Snp { launch, .. } => Cpu::Snp(launch.cpu),
            Platform::Tdx(_) => Cpu::Td,
        }
    }

    pub(super) fn firmware(&self) -> Firmware {
        match self {
            Platform::Emulated | Platform::Virtualized => Firmware::Named(PLAIN_FIRMWARE),
            Platform::Snp { launch, .. } => Firmware::File(launch.firmware.clone()),
            Platform::Tdx(launch) => Firmware::File(launch.firmware.clone()),
        }
    }

    /// What its devices reach.
    pub(super) fn device_memory(&self) -> DeviceMemory {
        if self.is_confidential() { DeviceMemory::Shared } else { DeviceMemory::All }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GuestPolicy, SnpCpu, TdAttributes};

    const NEW: QemuVersion = LEAST_FOR_TDX;

    fn snp() -> Confidential {
        Confidential::Snp(SnpLaunch {
            firmware: "/fw".into(),
            policy: GuestPolicy::new(true),
            host_data: [0; 32],
            cpu: SnpCpu::default(),
            id_block: None,
        })
    }

    fn tdx() -> Confidential {
        Confidential::Tdx(TdxLaunch {
            firmware: "/fw".into(),
            attributes: TdAttributes::default(),
            mr_config_id: [0; 48],
            mr_owner: [0; 48],
            mr_owner_config: [0; 48],
            quote_generation: None,
        })
    }

    fn host(kvm: bool, snp: bool) -> HostCapabilities {
        let why = "there is no /dev/kvm".to_owned();
        HostCapabilities {
            accelerator: match kvm {
                true => AcceleratorChoice::Kvm { why },
                false => AcceleratorChoice::Tcg { why },
            },
            memory_encryption: snp
                .then_some(MemoryEncryption { c_bit: 51, reduced_address_bits: 5 }),
        }
    }

    #[test]
    fn a_confidential_guest_is_that_or_refused() {
        let settled = |wish, kvm, snp, qemu| Platform::settle(Some(wish), &host(kvm, snp), qemu);
        let least = QemuVersion::LEAST;
        assert!(matches!(settled(snp(), true, true, least), Ok(Platform::Snp { .. })));
        assert!(matches!(settled(tdx(), true, false, NEW), Ok(Platform::Tdx(_))));
        let refused = |wish, kvm, snp, qemu| match settled(wish, kvm, snp, qemu) {
            Ok(_) => panic!("it would be launched"),
            Err(error) => error.to_string(),
        };
        let error = refused(snp(), false, true, NEW);
        assert!(
            error.contains("SEV-SNP guests: they need KVM, and there is no /dev/kvm"),
            "{error}"
        );
        let error = refused(tdx(), false, true, NEW);
        assert!(error.contains("TDX guests: they need KVM, and there is no /dev/kvm"), "{error}");
        let error = refused(snp(), true, false, NEW);
        assert!(error.contains("does not show it (CPUID 8000001Fh)"), "{error}");
        let error = refused(tdx(), true, false, QemuVersion { major: 10, minor: 0 });
        assert!(error.contains("need QEMU 10.1 or later, and this is 10.0"), "{error}");
    }

    #[test]
    fn a_plain_guest_takes_what_there_is() {
        let settled = |kvm| Platform::settle(None, &host(kvm, true), NEW).unwrap();
        assert!(matches!(settled(true), Platform::Virtualized));
        assert!(matches!(settled(false), Platform::Emulated));
        assert!(!settled(true).is_confidential() && !settled(false).is_confidential());
    }
}
