//! The values that a report is made of.

use serde::{Deserialize, Serialize};

/// Processor generation, as AMD's key service names it. Bergamo and Siena are Genoa to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Product {
    /// EPYC 7003.
    Milan,
    /// EPYC 9004, 8004, 97x4.
    Genoa,
    /// EPYC 9005.
    Turin,
}

impl Product {
    /// All of them, oldest first.
    pub const ALL: [Product; 3] = [Product::Milan, Product::Genoa, Product::Turin];

    /// The name in certificates and in the key service's paths.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Product::Milan => "Milan",
            Product::Genoa => "Genoa",
            Product::Turin => "Turin",
        }
    }

    /// The product of a processor, where it is a known one.
    #[must_use]
    pub const fn of_cpuid(family: u8, model: u8) -> Option<Product> {
        match (family, model) {
            (0x19, 0x00..=0x0f) => Some(Product::Milan),
            (0x19, 0x10..=0x1f | 0xa0..=0xaf) => Some(Product::Genoa),
            (0x1a, 0x00..=0x11) => Some(Product::Turin),
            _ => None,
        }
    }

    /// Whether TCB versions of this product have an FMC component, and another layout for it.
    #[must_use]
    pub const fn has_fmc(self) -> bool {
        matches!(self, Product::Turin)
    }
}

impl std::fmt::Display for Product {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Security versions of the firmware's parts (ABI, `TCB_VERSION`). `fmc` is there on Turin only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tcb {
    /// Of the FMC firmware.
    #[serde(default)]
    pub fmc: Option<u8>,
    /// Of the secure processor's boot loader.
    pub bootloader: u8,
    /// Of the secure processor's operating system.
    pub tee: u8,
    /// Of the SNP firmware.
    pub snp: u8,
    /// Lowest microcode patch level of all cores.
    pub microcode: u8,
}

impl Tcb {
    /// Whether no part is older than in `floor`. An `fmc` in one of them only is not comparable: false.
    #[must_use]
    pub fn at_least(&self, floor: &Tcb) -> bool {
        self.fmc.is_some() == floor.fmc.is_some()
            && self.fmc >= floor.fmc
            && self.bootloader >= floor.bootloader
            && self.tee >= floor.tee
            && self.snp >= floor.snp
            && self.microcode >= floor.microcode
    }

    /// The layout follows from whether there is an `fmc`.
    pub(crate) const fn to_bytes(self) -> [u8; 8] {
        match self.fmc {
            None => [self.bootloader, self.tee, 0, 0, 0, 0, self.snp, self.microcode],
            Some(fmc) => [fmc, self.bootloader, self.tee, self.snp, 0, 0, 0, self.microcode],
        }
    }

    /// None where reserved bytes are not zero.
    pub(crate) const fn from_bytes(bytes: [u8; 8], has_fmc: bool) -> Option<Tcb> {
        match (has_fmc, bytes) {
            (false, [bootloader, tee, 0, 0, 0, 0, snp, microcode]) => {
                Some(Tcb { fmc: None, bootloader, tee, snp, microcode })
            }
            (true, [fmc, bootloader, tee, snp, 0, 0, 0, microcode]) => {
                Some(Tcb { fmc: Some(fmc), bootloader, tee, snp, microcode })
            }
            _ => None,
        }
    }
}

impl std::fmt::Display for Tcb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(fmc) = self.fmc {
            write!(f, "fmc {fmc}, ")?;
        }
        let Tcb { bootloader, tee, snp, microcode, .. } = self;
        write!(f, "bootloader {bootloader}, tee {tee}, snp {snp}, microcode {microcode}")
    }
}

/// Version of the SNP firmware's interface.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct FirmwareVersion {
    /// Of the ABI.
    pub major: u8,
    /// Of the ABI.
    pub minor: u8,
    /// Of this firmware.
    pub build: u8,
}

impl std::fmt::Display for FirmwareVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.build)
    }
}

/// The processor, from CPUID function 1 (reports from version 3 on).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Cpuid {
    /// Extended and base family, added.
    pub family: u8,
    /// Extended and base model, combined.
    pub model: u8,
    /// Stepping.
    pub stepping: u8,
}

/// Mitigation vectors (reports from version 5 on).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Mitigations {
    /// When the guest was launched.
    pub launch: u64,
    /// Now.
    pub current: u64,
}

/// What the guest's owner allows (ABI, "Guest Policy").
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GuestPolicy(pub u64);

impl GuestPolicy {
    const fn bit(self, bit: u32) -> bool {
        self.0 >> bit & 1 == 1
    }

    /// Least ABI version, major and minor, that the guest accepts.
    #[must_use]
    pub const fn minimum_abi(self) -> (u8, u8) {
        let [minor, major, ..] = self.0.to_le_bytes();
        (major, minor)
    }

    /// Hyper-threads may be on.
    #[must_use]
    pub const fn smt_allowed(self) -> bool {
        self.bit(16)
    }

    /// Bit 17, which must be one.
    #[must_use]
    pub const fn reserved_one(self) -> bool {
        self.bit(17)
    }

    /// A migration agent may be associated.
    #[must_use]
    pub const fn migration_agent_allowed(self) -> bool {
        self.bit(18)
    }

    /// The host may read and write the guest's memory for debugging.
    #[must_use]
    pub const fn debug_allowed(self) -> bool {
        self.bit(19)
    }

    /// The guest may run on one socket only.
    #[must_use]
    pub const fn single_socket(self) -> bool {
        self.bit(20)
    }

    /// CXL devices or memory may be populated.
    #[must_use]
    pub const fn cxl_allowed(self) -> bool {
        self.bit(21)
    }

    /// Memory encryption must be AES-256 XTS.
    #[must_use]
    pub const fn aes_256_xts_required(self) -> bool {
        self.bit(22)
    }

    /// Power metering must be off.
    #[must_use]
    pub const fn rapl_disabled(self) -> bool {
        self.bit(23)
    }

    /// Ciphertext hiding must be on.
    #[must_use]
    pub const fn ciphertext_hiding_required(self) -> bool {
        self.bit(24)
    }

    /// The host's page move and swap commands are off.
    #[must_use]
    pub const fn page_swap_disabled(self) -> bool {
        self.bit(25)
    }

    /// Bits 63:26, which this program knows no meaning of.
    #[must_use]
    pub const fn unknown(self) -> u64 {
        self.0 >> 26 << 26
    }
}

/// State of the platform (ABI, `PLATFORM_INFO`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PlatformInfo(pub u64);

impl PlatformInfo {
    const fn bit(self, bit: u32) -> bool {
        self.0 >> bit & 1 == 1
    }

    /// Hyper-threads are on.
    #[must_use]
    pub const fn smt_enabled(self) -> bool {
        self.bit(0)
    }

    /// All memory is encrypted, not only guests'.
    #[must_use]
    pub const fn tsme_enabled(self) -> bool {
        self.bit(1)
    }

    /// Memory has error correction.
    #[must_use]
    pub const fn ecc_enabled(self) -> bool {
        self.bit(2)
    }

    /// Power metering is off.
    #[must_use]
    pub const fn rapl_disabled(self) -> bool {
        self.bit(3)
    }

    /// Hosts read zeros instead of ciphertext.
    #[must_use]
    pub const fn ciphertext_hiding(self) -> bool {
        self.bit(4)
    }

    /// No two memory addresses are aliases of each other, as checked since the last reset.
    #[must_use]
    pub const fn alias_check_complete(self) -> bool {
        self.bit(5)
    }

    /// Trusted I/O is on.
    #[must_use]
    pub const fn tio_enabled(self) -> bool {
        self.bit(7)
    }
}

/// Which keys have to do with the report (ABI, attestation report, offset 0x48).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyInfo(pub u32);

impl KeyInfo {
    /// The author key's digest is in the report.
    #[must_use]
    pub const fn author_key_enabled(self) -> bool {
        self.0 & 1 == 1
    }

    /// The host has masked the chip key: the report carries no signature.
    #[must_use]
    pub const fn chip_key_masked(self) -> bool {
        self.0 >> 1 & 1 == 1
    }

    /// The key that signed.
    #[must_use]
    pub const fn signing_key(self) -> SigningKey {
        match self.0 >> 2 & 0b111 {
            0 => SigningKey::Vcek,
            1 => SigningKey::Vlek,
            7 => SigningKey::None,
            _ => SigningKey::Reserved,
        }
    }

    /// Bits 31:5, which are reserved.
    #[must_use]
    pub const fn unknown(self) -> u32 {
        self.0 >> 5 << 5
    }
}

/// The key that signed a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SigningKey {
    /// The chip's own, versioned chip endorsement key.
    Vcek,
    /// A cloud provider's, versioned loaded endorsement key.
    Vlek,
    /// No key: not signed.
    None,
    /// A value without a meaning.
    Reserved,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tcb_is_at_least_another_only_in_every_part() {
        let floor = Tcb { fmc: Some(1), bootloader: 2, tee: 3, snp: 4, microcode: 5 };
        assert!(floor.at_least(&floor));
        let higher = Tcb { microcode: 200, ..floor };
        assert!(higher.at_least(&floor) && !floor.at_least(&higher));
        for lower in [
            Tcb { fmc: Some(0), ..higher },
            Tcb { bootloader: 1, ..higher },
            Tcb { tee: 2, ..higher },
            Tcb { snp: 3, ..higher },
            Tcb { microcode: 4, ..floor },
            Tcb { fmc: None, ..higher },
        ] {
            assert!(!lower.at_least(&floor), "{lower}");
        }
        assert!(!higher.at_least(&Tcb { fmc: None, ..floor }), "no layout in common");
    }

    #[test]
    fn policies_are_read_bit_by_bit() {
        let policy = GuestPolicy(0x1_0203);
        assert_eq!(policy.minimum_abi(), (2, 3));
        assert!(policy.smt_allowed() && !policy.reserved_one() && !policy.debug_allowed());
        assert!(GuestPolicy(1 << 19).debug_allowed());
        assert_eq!(GuestPolicy(u64::MAX).unknown(), u64::MAX << 26);
        assert_eq!(KeyInfo(0b1_1111).signing_key(), SigningKey::None);
        assert_eq!(KeyInfo(0b0_1000).signing_key(), SigningKey::Reserved);
        assert_eq!(KeyInfo(u32::MAX).unknown(), u32::MAX << 5);
    }
}
