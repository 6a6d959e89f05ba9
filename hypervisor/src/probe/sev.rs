//! AMD's secure processor: firmware, SEV-SNP platform and address space ids (ASIDs).

use super::finding::{Finding, Status, Tee};
use super::host::{DeviceCall, Host, Missing, line};
use super::misc::Misc;
use super::processor::{Processor, Vendor, forbidding_parameters};

/// A command of `SEV_ISSUE_CMD` that only asks (`linux/psp-sev.h`). The others, which reset the platform or
/// change its keys, cannot be said here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SevCommand {
    /// `SEV_PLATFORM_STATUS`: version and state of the firmware.
    PlatformStatus,
    /// `SNP_PLATFORM_STATUS`: what SEV-SNP guests are launched on.
    SnpPlatformStatus,
}

impl SevCommand {
    /// Its number.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            SevCommand::PlatformStatus => 1,
            SevCommand::SnpPlatformStatus => 9,
        }
    }

    /// Bytes of its reply: of `struct sev_user_data_status` and `struct sev_user_data_snp_status`.
    #[must_use]
    pub fn reply_size(self) -> usize {
        match self {
            SevCommand::PlatformStatus => STATUS_BYTES,
            SevCommand::SnpPlatformStatus => SNP_STATUS_BYTES,
        }
    }
}

const STATUS_BYTES: usize = 12;
const SNP_STATUS_BYTES: usize = 32;

/// `struct sev_user_data_status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlatformStatus {
    pub(crate) api: (u8, u8),
    pub(crate) state: u8,
    pub(crate) build: u8,
    pub(crate) guests: u32,
}

impl PlatformStatus {
    /// Offsets: `api_major` 0, `api_minor` 1, state 2, flags 3 (4 bytes), build 7, `guest_count` 8; packed.
    pub(crate) fn parse(reply: &[u8; STATUS_BYTES]) -> PlatformStatus {
        let [major, minor, state, _, _, _, _, build, guests @ ..] = *reply;
        PlatformStatus { api: (major, minor), state, build, guests: u32::from_le_bytes(guests) }
    }
}

/// `struct sev_user_data_snp_status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SnpPlatformStatus {
    pub(crate) api: (u8, u8),
    pub(crate) state: u8,
    pub(crate) rmp_initialized: bool,
    pub(crate) build: u32,
    pub(crate) chip_id_masked: bool,
    pub(crate) chip_key_masked: bool,
    pub(crate) vlek: bool,
    pub(crate) guests: u32,
    pub(crate) current_tcb: u64,
    pub(crate) reported_tcb: u64,
}

impl SnpPlatformStatus {
    /// Offsets: `api_major` 0, `api_minor` 1, state 2, `is_rmp_initialized` 3 (bit 0), `build_id` 4, bits 8
    /// (`mask_chip_id` 0, `mask_chip_key` 1, `vlek_en` 2), `guest_count` 12, `current_tcb_version` 16,
    /// `reported_tcb_version` 24.
    pub(crate) fn parse(reply: &[u8; SNP_STATUS_BYTES]) -> SnpPlatformStatus {
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| reply[at + byte]));
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| reply[at + byte]));
        let bits = word(8);
        SnpPlatformStatus {
            api: (reply[0], reply[1]),
            state: reply[2],
            rmp_initialized: reply[3] & 1 != 0,
            build: word(4),
            chip_id_masked: bits & 1 != 0,
            chip_key_masked: bits & 2 != 0,
            vlek: bits & 4 != 0,
            guests: word(12),
            current_tcb: long(16),
            reported_tcb: long(24),
        }
    }
}

/// What the host has for SEV-SNP, beside the processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sev {
    /// `/sys/module/kvm_amd/parameters/sev_snp`: whether KVM launches SEV-SNP guests.
    pub(crate) enabled: Result<bool, Missing>,
    /// Kernel parameters that stand against it.
    pub(crate) forbidding: Vec<String>,
    pub(crate) platform: Result<PlatformStatus, Missing>,
    /// Only asked for where KVM has initialised SEV-SNP: elsewhere the kernel would do that for the question.
    pub(crate) snp: Option<Result<SnpPlatformStatus, Missing>>,
}

impl Sev {
    pub(crate) fn gather(host: &dyn Host) -> Sev {
        let enabled = switched_on(host, "/sys/module/kvm_amd/parameters/sev_snp");
        let mut reply = [0; STATUS_BYTES];
        let platform = ask(host, SevCommand::PlatformStatus, &mut reply)
            .map(|()| PlatformStatus::parse(&reply));
        let snp = (enabled == Ok(true) && platform.is_ok()).then(|| {
            let mut reply = [0; SNP_STATUS_BYTES];
            ask(host, SevCommand::SnpPlatformStatus, &mut reply)
                .map(|()| SnpPlatformStatus::parse(&reply))
        });
        Sev { enabled, forbidding: forbidding_parameters(host), platform, snp }
    }
}

fn ask(host: &dyn Host, command: SevCommand, reply: &mut [u8]) -> Result<(), Missing> {
    let asked = host.device(DeviceCall::Sev { command, reply });
    asked.map(drop).map_err(|error| Missing::of(&error))
}

/// A module's parameter of yes or no.
pub(crate) fn switched_on(host: &dyn Host, parameter: &str) -> Result<bool, Missing> {
    match line(host, parameter)?.as_str() {
        "Y" | "1" => Ok(true),
        "N" | "0" => Ok(false),
        other => Err(Missing::Broken(format!("it says {other:?}"))),
    }
}

/// The oldest firmware that Linux launches SEV-SNP guests with: `SNP_MIN_API_MAJOR` and `_MINOR` of
/// `drivers/crypto/ccp/sev-dev.h`.
const LEAST_API: (u8, u8) = (1, 51);
/// `SNP_PLATFORM_STATUS`'s state "initialised" (SEV-SNP firmware ABI, section 8.3).
const SNP_INITIALISED: u8 = 1;

pub(crate) fn findings(
    sev: &Sev,
    processor: &Result<Processor, Missing>,
    misc: &Misc,
    tee: Tee,
) -> [Finding; 4] {
    const IDS: [&str; 4] = ["snp.kernel", "snp.firmware", "snp.platform", "snp.asids"];
    let amd = processor.as_ref().is_ok_and(|processor| processor.vendor == Vendor::Amd);
    if tee != Tee::Snp || !amd {
        // That the processor is another one fails once, as `snp.cpu`.
        let found = if amd { "not asked for" } else { "not a processor of AMD's" };
        return IDS.map(|id| Finding::skip(id, found));
    }
    [kernel(sev), firmware(sev), platform(sev), asids(processor, misc)]
}

fn kernel(sev: &Sev) -> Finding {
    const ID: &str = "snp.kernel";
    let forbidding = match sev.forbidding.as_slice() {
        [] => String::new(),
        words => format!("; the kernel's command line has {}", words.join(" ")),
    };
    match &sev.enabled {
        Ok(true) => Finding::pass(ID, "kvm_amd sev_snp=Y"),
        Ok(false) => Finding::fail(
            ID,
            format!("kvm_amd sev_snp=N{forbidding}"),
            if sev.forbidding.is_empty() {
                "load kvm_amd with sev=1 sev_es=1 sev_snp=1; if it stays N, the kernel's log says what is \
                 missing (\"SEV-SNP\", \"RMP\", \"IOMMU\"): see snp.cpu"
            } else {
                "remove these kernel parameters: SEV-SNP needs memory encryption, and an IOMMU that \
                 translates"
            },
        ),
        Err(missing) => Finding::fail(
            ID,
            format!("parameter sev_snp of kvm_amd {missing}{forbidding}"),
            "load the module kvm_amd of Linux 6.11 or later",
        ),
    }
}

fn firmware(sev: &Sev) -> Finding {
    const ID: &str = "snp.firmware";
    match &sev.platform {
        Err(Missing::Denied) => Finding::unseen(ID, "/dev/sev"),
        Err(missing) => Finding::fail(
            ID,
            format!("/dev/sev {missing}"),
            "load the module ccp; switch the secure processor (PSP) on in the firmware setup; in a \
             container, hand /dev/sev in",
        ),
        Ok(status) => {
            let (major, minor) = status.api;
            let found = format!(
                "SEV firmware {major}.{minor} build {}, state {}, {} SEV guests",
                status.build, status.state, status.guests
            );
            if status.api < LEAST_API {
                let (major, minor) = LEAST_API;
                let advice = format!(
                    "update the node's firmware (or install linux-firmware's amd/amd_sev_*.sbin and \
                     reload ccp): {major}.{minor} is the first that Linux launches SEV-SNP guests with"
                );
                return Finding::fail(ID, found, advice);
            }
            Finding::pass(ID, found)
        }
    }
}

fn platform(sev: &Sev) -> Finding {
    const ID: &str = "snp.platform";
    let status = match &sev.snp {
        Some(Ok(status)) => status,
        Some(Err(Missing::Denied)) => return Finding::unseen(ID, "/dev/sev"),
        Some(Err(missing)) => {
            return Finding::fail(
                ID,
                format!("the SEV-SNP status {missing}"),
                "see the kernel's log of ccp",
            );
        }
        None if sev.platform == Err(Missing::Denied) => return Finding::unseen(ID, "/dev/sev"),
        None => {
            let advice = "see snp.kernel and snp.firmware";
            return Finding::fail(ID, "SEV-SNP is not initialised", advice);
        }
    };
    let mut found = format!(
        "SEV-SNP firmware {}.{} build {}, TCB {:016x}, {} guests",
        status.api.0, status.api.1, status.build, status.current_tcb, status.guests
    );
    if status.vlek {
        found.push_str(", reports are signed with a VLEK");
    }
    if status.state != SNP_INITIALISED || !status.rmp_initialized {
        found.push_str("; not initialised");
        let advice =
            "reload ccp and kvm_amd; the firmware setup must reserve memory for the RMP table";
        return Finding::fail(ID, found, advice);
    }
    let mut doubts = Vec::new();
    if status.reported_tcb != status.current_tcb {
        found.push_str(&format!(", reported TCB {:016x}", status.reported_tcb));
        doubts.push("reports name an older TCB than runs: commit the firmware (SNP_COMMIT)");
    }
    if status.chip_key_masked {
        found.push_str(", chip key masked");
        doubts.push("reports are not signed: clear MASK_CHIP_KEY (SNP_SET_CONFIG)");
    }
    if status.chip_id_masked {
        found.push_str(", chip id masked");
        doubts.push("brokers cannot ask AMD for the VCEK: hand them the certificates, or clear MASK_CHIP_ID");
    }
    let status = if doubts.is_empty() { Status::Pass } else { Status::Warn };
    Finding::new(ID, status, found, doubts.join("; "))
}

fn asids(processor: &Result<Processor, Missing>, misc: &Misc) -> Finding {
    const ID: &str = "snp.asids";
    const RESOURCE: &str = "sev_es";
    let leaf = processor.as_ref().ok().and_then(|processor| processor.sev);
    let of_processor = leaf.map(|leaf| u64::from(leaf.first_plain_asid.saturating_sub(1)));
    let capacity = misc.capacity(RESOURCE);
    let Some(most) = capacity.or(of_processor) else {
        return Finding::fail(ID, "the processor has no ASIDs", "see snp.cpu");
    };
    let used = misc.current(RESOURCE);
    let found = match used {
        Some(used) => format!("{used} of {most} ASIDs for SEV-ES and SEV-SNP guests in use"),
        None => format!("{most} ASIDs for SEV-ES and SEV-SNP guests"),
    };
    if most == 0 {
        let advice = "raise \"SEV-ES ASID space limit\" (minimum SEV non-ES ASID) in the firmware setup: \
                      it is one more than the SEV-SNP guests that run at a time";
        return Finding::fail(ID, found, advice);
    }
    if used.is_some_and(|used| used >= most) {
        return Finding::warn(ID, found, "no further pod starts until one has ended");
    }
    Finding::pass(ID, found)
}

#[cfg(test)]
mod tests {
    use sev::firmware::host::SnpPlatformStatus as PeerStatus;
    use sev::parser::ByteParser;

    use super::*;

    /// Each byte another, so that a field that is read from a wrong place differs.
    fn reply<const SIZE: usize>() -> [u8; SIZE] {
        std::array::from_fn(|at| u8::try_from(at + 1).unwrap())
    }

    #[test]
    fn commands_are_those_of_the_kernels_header_that_only_ask() {
        // linux/psp-sev.h of 6.11: SEV_PLATFORM_STATUS is the second of its enumeration, SNP_PLATFORM_STATUS
        // the tenth.
        assert_eq!(SevCommand::PlatformStatus.number(), 1);
        assert_eq!(SevCommand::SnpPlatformStatus.number(), 9);
        // Packed: 1 + 1 + 1 + 4 + 1 + 4, and 1 + 1 + 1 + 1 + 4 + 4 + 4 + 8 + 8.
        assert_eq!(SevCommand::PlatformStatus.reply_size(), 12);
        assert_eq!(SevCommand::SnpPlatformStatus.reply_size(), 32);
    }

    #[test]
    fn replies_are_read_where_the_kernel_writes_them() {
        let status = PlatformStatus::parse(&reply());
        assert_eq!((status.api, status.state, status.build), ((1, 2), 3, 8));
        assert_eq!(status.guests, 0x0c0b_0a09);
        let mut bytes = reply();
        bytes[8] = 0b101;
        let snp = SnpPlatformStatus::parse(&bytes);
        assert_eq!((snp.api, snp.state, snp.rmp_initialized), ((1, 2), 3, false));
        assert_eq!((snp.build, snp.guests), (0x0807_0605, 0x100f_0e0d));
        assert_eq!((snp.chip_id_masked, snp.chip_key_masked, snp.vlek), (true, false, true));
        assert_eq!(snp.current_tcb, 0x1817_1615_1413_1211);
        assert_eq!(snp.reported_tcb, 0x201f_1e1d_1c1b_1a19);
    }

    #[test]
    fn the_sev_crate_reads_the_same() {
        let mut bytes: [u8; SNP_STATUS_BYTES] = reply();
        bytes[3] = 1;
        bytes[8..12].copy_from_slice(&7_u32.to_le_bytes());
        // Reserved in a TCB version of this generation.
        bytes[18..22].fill(0);
        bytes[26..30].fill(0);
        let peer =
            PeerStatus::from_bytes_with(&bytes, sev::Generation::Milan).expect("a right status");
        let own = SnpPlatformStatus::parse(&bytes);
        assert_eq!((peer.version, peer.state), (own.api, own.state));
        assert_eq!((peer.build_id, peer.guest_count), (own.build, own.guests));
        assert_eq!(peer.platform_tcb_version.microcode, own.current_tcb.to_le_bytes()[7]);
        assert_eq!(peer.reported_tcb_version.bootloader, own.reported_tcb.to_le_bytes()[0]);
        assert!(peer.platform_policy.mask_chip_id() == own.chip_id_masked);
    }
}
