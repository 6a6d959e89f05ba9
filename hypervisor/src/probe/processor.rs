//! The processor.

use std::path::Path;

use super::finding::{Finding, Status, Tee};
use super::host::{Host, Missing, Part, text};

/// What the processor is and can.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Processor {
    pub(crate) vendor: Vendor,
    pub(crate) model: String,
    /// The kernel's flags of the first processor: what the hardware has and the kernel has switched on.
    flags: Vec<&'static str>,
    /// CPUID leaf 0x8000001F.
    pub(crate) sev: Option<SevLeaf>,
}

/// Who made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vendor {
    Amd,
    Intel,
    Other,
}

/// CPUID leaf 0x8000001F (AMD64 Architecture Programmer's Manual, volume 3, appendix E.4.17): what the
/// silicon has, whatever its firmware setup and the kernel make of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SevLeaf {
    pub(crate) sev: bool,
    pub(crate) sev_es: bool,
    pub(crate) sev_snp: bool,
    /// Position of the C-bit in a page table entry.
    pub(crate) c_bit: u32,
    /// Bits of physical addresses that encryption takes.
    pub(crate) reduced_address_bits: u32,
    /// Guests that can be encrypted at a time.
    pub(crate) asids: u32,
    /// The first ASID of guests without encrypted state; those below it are for SEV-ES and SEV-SNP.
    pub(crate) first_plain_asid: u32,
}

const CPUINFO: &str = "/proc/cpuinfo";
/// Enough for the first processor, whose flags have some 1.5 KiB.
const CPUINFO_BYTES: usize = 16 * 1024;
/// The flags that matter here, as the kernel spells them.
const FLAGS: [&str; 7] =
    ["svm", "vmx", "sev", "sev_es", "sev_snp", "tdx_host_platform", "hypervisor"];
/// Vendors as CPUID and `/proc/cpuinfo` name them.
const VENDORS: [(&str, Vendor); 2] =
    [("AuthenticAMD", Vendor::Amd), ("GenuineIntel", Vendor::Intel)];

impl Processor {
    pub(crate) fn gather(host: &dyn Host) -> Result<Processor, Missing> {
        let cpuinfo = text(host, CPUINFO, Part::Beginning(CPUINFO_BYTES))?;
        let field = |name: &str| field(&cpuinfo, name).unwrap_or_default();
        let vendor = VENDORS.iter().find(|(name, _)| *name == field("vendor_id"));
        let vendor = vendor.map_or(Vendor::Other, |&(_, vendor)| vendor);
        Ok(Processor {
            vendor,
            model: field("model name").to_owned(),
            flags: FLAGS.into_iter().filter(|flag| has_word(field("flags"), flag)).collect(),
            sev: if vendor == Vendor::Amd { sev_leaf(host) } else { None },
        })
    }

    /// Whether the kernel shows a flag.
    pub(crate) fn has(&self, flag: &str) -> bool {
        self.flags.contains(&flag)
    }

    /// The flag of hardware virtualization, `svm` or `vmx`.
    pub(crate) fn virtualization(&self) -> Option<&'static str> {
        self.flags.iter().copied().find(|flag| ["svm", "vmx"].contains(flag))
    }
}

/// The flag of hardware virtualization, or why there is none.
pub(crate) fn virtualization_flag(host: &dyn Host) -> Result<&'static str, String> {
    match Processor::gather(host) {
        Ok(processor) => processor
            .virtualization()
            .ok_or_else(|| "the processor shows neither svm nor vmx".to_owned()),
        Err(missing) => Err(format!("{CPUINFO} {missing}")),
    }
}

pub(crate) fn findings(processor: &Result<Processor, Missing>, needs_kvm: Status) -> [Finding; 2] {
    const MODEL: &str = "cpu.model";
    const VIRTUALIZATION: &str = "cpu.virtualization";
    let processor = match processor {
        Ok(processor) => processor,
        Err(missing) => {
            let found = format!("{CPUINFO} {missing}");
            let advice = "mount procfs at /proc";
            return [
                Finding::fail(MODEL, &found, advice),
                Finding::new(VIRTUALIZATION, needs_kvm, &found, advice),
            ];
        }
    };
    let vm = if processor.has("hypervisor") { ", itself a virtual machine" } else { "" };
    let model = Finding::pass(MODEL, format!("{}{vm}", processor.model));
    let virtualization = match processor.virtualization() {
        Some(flag) => Finding::pass(VIRTUALIZATION, flag),
        None => Finding::new(
            VIRTUALIZATION,
            needs_kvm,
            "the processor shows neither svm nor vmx",
            if processor.has("hypervisor") {
                "run the node on hardware, or give its virtual machine nested virtualization"
            } else {
                "switch virtualization (SVM or VT-x) on in the firmware setup"
            },
        ),
    };
    [model, virtualization]
}

/// What the processor has to do with SEV-SNP.
pub(crate) fn snp_finding(processor: &Result<Processor, Missing>, tee: Tee) -> Finding {
    const ID: &str = "snp.cpu";
    let Ok(processor) = processor else {
        return Finding::new(ID, needed(tee, Tee::Snp), "unknown processor", "see cpu.model");
    };
    if processor.vendor != Vendor::Amd {
        return Finding::new(
            ID,
            needed(tee, Tee::Snp),
            "not a processor of AMD's",
            "SEV-SNP needs AMD EPYC 7003 (Milan) or later",
        );
    }
    let Some(leaf) = processor.sev.filter(|leaf| leaf.sev_snp) else {
        return Finding::new(
            ID,
            needed(tee, Tee::Snp),
            "the processor has no SEV-SNP",
            "SEV-SNP needs AMD EPYC 7003 (Milan) or later, and a node that is not a virtual machine",
        );
    };
    let silicon = format!(
        "C-bit {}, {} address bits reduced, {} ASIDs, {} of them for SEV-ES and SEV-SNP",
        leaf.c_bit,
        leaf.reduced_address_bits,
        leaf.asids,
        leaf.first_plain_asid.saturating_sub(1).min(leaf.asids)
    );
    if processor.has("sev_snp") {
        return Finding::new(ID, passed(tee, Tee::Snp), format!("sev_snp; {silicon}"), "");
    }
    Finding::new(
        ID,
        needed(tee, Tee::Snp),
        format!("the processor has SEV-SNP, the kernel does not show sev_snp; {silicon}"),
        "switch on in the firmware setup: SMEE, IOMMU, SEV-SNP support, SNP memory (RMP table) coverage; \
         boot a kernel with CONFIG_KVM_AMD_SEV (6.11 or later), without iommu=pt, iommu=off or \
         mem_encrypt=off",
    )
}

/// What the processor has to do with TDX.
pub(crate) fn tdx_finding(processor: &Result<Processor, Missing>, tee: Tee) -> Finding {
    const ID: &str = "tdx.cpu";
    match processor {
        Ok(processor) if processor.has("tdx_host_platform") => {
            Finding::new(ID, passed(tee, Tee::Tdx), "tdx_host_platform", "")
        }
        Ok(processor) if processor.vendor == Vendor::Intel => Finding::new(
            ID,
            needed(tee, Tee::Tdx),
            "the kernel does not show tdx_host_platform",
            "TDX needs 5th generation Xeon (Emerald Rapids) or later, or a 4th generation one made for it; \
             switch on in the firmware setup: TME, TME-MT, TDX, SEAM loader, and key ids for TDX",
        ),
        Ok(_) => Finding::new(
            ID,
            needed(tee, Tee::Tdx),
            "not a processor of Intel's",
            "TDX needs an Intel Xeon that has it",
        ),
        Err(_) => Finding::new(ID, needed(tee, Tee::Tdx), "unknown processor", "see cpu.model"),
    }
}

/// The status of what is missing and only `by` needs.
pub(crate) fn needed(tee: Tee, by: Tee) -> Status {
    if tee == by { Status::Fail } else { Status::NotApplicable }
}

/// The status of what is there and only `by` needs.
pub(crate) fn passed(tee: Tee, by: Tee) -> Status {
    if tee == by { Status::Pass } else { Status::NotApplicable }
}

/// The first field of a name in `/proc/cpuinfo`.
fn field<'a>(cpuinfo: &'a str, name: &str) -> Option<&'a str> {
    let fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    let mut fields = fields.filter(|(found, _)| found.trim() == name);
    fields.next().map(|(_, value)| value.trim())
}

fn has_word(text: &str, word: &str) -> bool {
    text.split_ascii_whitespace().any(|found| found == word)
}

fn sev_leaf(host: &dyn Host) -> Option<SevLeaf> {
    const HIGHEST: u32 = 0x8000_0000;
    const ENCRYPTED_MEMORY: u32 = 0x8000_001f;
    if host.cpuid(HIGHEST).eax < ENCRYPTED_MEMORY {
        return None;
    }
    let leaf = host.cpuid(ENCRYPTED_MEMORY);
    let bit = |number: u32| leaf.eax & 1 << number != 0;
    Some(SevLeaf {
        sev: bit(1),
        sev_es: bit(3),
        sev_snp: bit(4),
        c_bit: leaf.ebx & 0x3f,
        reduced_address_bits: leaf.ebx >> 6 & 0x3f,
        asids: leaf.ecx,
        first_plain_asid: leaf.edx,
    })
}

/// Kernel parameters that forbid SEV-SNP: the IOMMU must translate (`amd_iommu`: "SNP cannot be
/// supported" in its passthrough mode), and memory encryption must not be off.
pub(crate) fn forbidding_parameters(host: &dyn Host) -> Vec<String> {
    const FORBIDDING: [&str; 7] = [
        "iommu=pt",
        "iommu=off",
        "iommu.passthrough=1",
        "amd_iommu=off",
        "mem_encrypt=off",
        "kvm_amd.sev=0",
        "kvm_amd.sev_snp=0",
    ];
    const LONGEST: usize = 64 * 1024;
    let line = host.read(Path::new("/proc/cmdline"), Part::Whole(LONGEST)).unwrap_or_default();
    let line = String::from_utf8_lossy(&line);
    FORBIDDING.into_iter().filter(|word| has_word(&line, word)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_whole_words() {
        let flags = |line| field(line, "flags").unwrap_or_default();
        assert!(!has_word(flags("flags\t\t: fpu svm_lock avx\n"), "svm"));
        assert!(has_word(flags("vmx flags : x\nflags\t\t: fpu vmx avx\n"), "vmx"));
        assert!(!has_word(flags(""), "svm"));
    }
}
