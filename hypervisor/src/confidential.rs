//! What a confidential guest is launched with, whatever program launches it.
//!
//! All of it ends up in what the hardware reports about the guest, and nothing of it is a secret: the host
//! chooses it, the guest's owner compares. So a mistake here costs a refused guest, never a weaker one.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// What makes a guest confidential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Confidential {
    /// AMD SEV-SNP.
    Snp(SnpLaunch),
    /// Intel TDX.
    Tdx(TdxLaunch),
}

/// The launch of an SEV-SNP guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnpLaunch {
    /// OVMF in its `AmdSev` build: the only one that compares kernel, initial RAM disk and command line
    /// with the hashes that are measured.
    pub firmware: PathBuf,
    /// What the host may do with the guest.
    pub policy: GuestPolicy,
    /// `HOST_DATA` of its reports: what binds the initdata.
    pub host_data: [u8; 32],
    /// The processor it sees.
    pub cpu: SnpCpu,
    /// What its owner has signed, if anything.
    pub id_block: Option<IdBlock>,
}

/// The launch of a TDX guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdxLaunch {
    /// OVMF in its `IntelTdx` build (TDVF), without Secure Boot: it has no keys by which to judge the kernel,
    /// and measures it.
    pub firmware: PathBuf,
    /// `ATTRIBUTES` of the guest.
    pub attributes: TdAttributes,
    /// `MRCONFIGID`: what binds the initdata.
    pub mr_config_id: [u8; 48],
    /// `MROWNER`: who owns the guest.
    pub mr_owner: [u8; 48],
    /// `MROWNERCONFIG`: what that owner configured.
    pub mr_owner_config: [u8; 48],
    /// Who turns the guest's reports into quotes; without one it gets none.
    pub quote_generation: Option<QuoteService>,
}

/// Guest policy of SEV-SNP (SEV-SNP Firmware ABI Specification, "Guest Policy"). Migration agents, and
/// hosts without a minimal firmware version, are the same for all guests of this crate: no agent, any
/// version; the reported TCB is what an owner judges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestPolicy(u64);

impl GuestPolicy {
    const SMT: u64 = 1 << 16;
    /// Bit 17 "must be one".
    const ONE: u64 = 1 << 17;
    const DEBUG: u64 = 1 << 19;

    /// A policy under which the host may not debug the guest. `smt`: whether the guest may run on a
    /// processor with hyper-threads.
    #[must_use]
    pub fn new(smt: bool) -> GuestPolicy {
        GuestPolicy(Self::ONE | if smt { Self::SMT } else { 0 })
    }

    /// Lets the host read and write the guest's memory. Verifiers refuse such a guest.
    #[must_use]
    pub fn danger_debug(self) -> GuestPolicy {
        GuestPolicy(self.0 | Self::DEBUG)
    }

    /// Whether the guest may run on a processor with hyper-threads.
    #[must_use]
    pub fn allows_smt(self) -> bool {
        self.0 & Self::SMT != 0
    }

    /// As the firmware takes it.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.0
    }
}

/// Attributes of a TD (Intel TDX Module ABI, "ATTRIBUTES").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TdAttributes(u64);

impl TdAttributes {
    const SEPT_VE_DISABLE: u64 = 1 << 28;

    /// As the TDX module takes it.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.0
    }
}

impl Default for TdAttributes {
    /// `SEPT_VE_DISABLE` alone: no debugging, and a host that takes a page away ends the guest, rather than
    /// making it handle an exception wherever it is. Linux refuses to boot without it.
    fn default() -> Self {
        TdAttributes(Self::SEPT_VE_DISABLE)
    }
}

/// The processors that an SEV-SNP guest may see. Each is fixed in all its parts, on whatever processor the
/// host has, since family, model and stepping are measured. A newer one needs a host that is as new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SnpCpu {
    /// `EPYC-v4`: runs on every host with SEV-SNP.
    #[default]
    EpycV4,
    /// `EPYC-Rome-v4`.
    EpycRomeV4,
    /// `EPYC-Milan-v2`: the first generation with SEV-SNP.
    EpycMilanV2,
    /// `EPYC-Genoa-v1`.
    EpycGenoaV1,
}

impl SnpCpu {
    /// All of them.
    pub const ALL: [SnpCpu; 4] =
        [SnpCpu::EpycV4, SnpCpu::EpycRomeV4, SnpCpu::EpycMilanV2, SnpCpu::EpycGenoaV1];

    /// Name, family, model and stepping.
    const fn facts(self) -> (&'static str, u32, u32, u32) {
        match self {
            SnpCpu::EpycV4 => ("EPYC-v4", 23, 1, 2),
            SnpCpu::EpycRomeV4 => ("EPYC-Rome-v4", 23, 49, 0),
            SnpCpu::EpycMilanV2 => ("EPYC-Milan-v2", 25, 1, 1),
            SnpCpu::EpycGenoaV1 => ("EPYC-Genoa-v1", 25, 17, 0),
        }
    }

    /// Its name with its version: the one under which tools for measurements know it too.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.facts().0
    }

    /// What `CPUID` leaf 1 answers in EAX (AMD64 Architecture Programmer's Manual 3, E.3.2): the part of
    /// the processor that is measured, for each of them begins with it in RDX.
    #[must_use]
    pub const fn cpuid_signature(self) -> u32 {
        const MOST_BASE_FAMILY: u32 = 15;
        let (_, family, model, stepping) = self.facts();
        // All of these families are extended ones: the base family is full.
        ((family - MOST_BASE_FAMILY) << 20)
            | ((model >> 4) << 16)
            | (MOST_BASE_FAMILY << 8)
            | ((model & 15) << 4)
            | stepping
    }
}

impl fmt::Display for SnpCpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that none of [`SnpCpu::ALL`] has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is {0:?}: give EPYC-v4, EPYC-Rome-v4, EPYC-Milan-v2 or EPYC-Genoa-v1")]
pub struct UnknownCpu(String);

impl FromStr for SnpCpu {
    type Err = UnknownCpu;

    fn from_str(name: &str) -> Result<Self, UnknownCpu> {
        let found = SnpCpu::ALL.into_iter().find(|cpu| cpu.name() == name);
        found.ok_or_else(|| UnknownCpu(name.to_owned()))
    }
}

/// What the owner of an SEV-SNP guest has signed: the launch digest and policy that it must have, and under
/// which names it runs (SEV-SNP Firmware ABI Specification, "`SNP_LAUNCH_FINISH`"). The firmware refuses to
/// launch anything else, and reports the keys' digests.
#[derive(Clone, PartialEq, Eq)]
pub struct IdBlock {
    block: [u8; IdBlock::BLOCK],
    authentication: Box<[u8; IdBlock::AUTHENTICATION]>,
}

/// Why bytes are no [`IdBlock`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdBlockError {
    /// Of the identity block.
    #[error("the ID block has {0} bytes, not 96")]
    Block(usize),
    /// Of the authentication information.
    #[error("the ID authentication information has {0} bytes, not 4096")]
    Authentication(usize),
}

impl IdBlock {
    /// Size of the identity block, in bytes.
    pub const BLOCK: usize = 96;
    /// Size of the authentication information, in bytes.
    pub const AUTHENTICATION: usize = 4096;

    /// Takes both as the firmware takes them.
    ///
    /// # Errors
    /// If one has another size. Signatures are for the firmware to check.
    pub fn new(block: &[u8], authentication: &[u8]) -> Result<IdBlock, IdBlockError> {
        let block = block.try_into().map_err(|_| IdBlockError::Block(block.len()))?;
        let authentication = authentication
            .try_into()
            .map_err(|_| IdBlockError::Authentication(authentication.len()))?;
        Ok(IdBlock { block, authentication: Box::new(authentication) })
    }

    /// The identity block.
    #[must_use]
    pub fn block(&self) -> &[u8; IdBlock::BLOCK] {
        &self.block
    }

    /// The authentication information: keys and signatures.
    #[must_use]
    pub fn authentication(&self) -> &[u8; IdBlock::AUTHENTICATION] {
        &self.authentication
    }

    /// The launch digest that was signed ("`LD`", offset 0).
    #[must_use]
    pub fn launch_digest(&self) -> [u8; 48] {
        let mut digest = [0; 48];
        digest.copy_from_slice(&self.block[..48]);
        digest
    }

    /// The guest policy that was signed ("POLICY", offset 58h).
    #[must_use]
    pub fn policy(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.block[0x58..0x60]);
        u64::from_le_bytes(bytes)
    }

    /// Whether an author's key vouches for the key that signed ("`AUTHOR_KEY`", offset 880h).
    #[must_use]
    pub fn has_author_key(&self) -> bool {
        self.authentication[0x880..0xc84].iter().any(|&byte| byte != 0)
    }
}

impl fmt::Debug for IdBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdBlock")
            .field("policy", &self.policy())
            .field("author_key", &self.has_author_key())
            .finish_non_exhaustive()
    }
}

/// Where a quote generation service listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QuoteService {
    /// On a Unix socket.
    Unix(PathBuf),
    /// On a vsock address; the host itself is context id 2.
    Vsock {
        /// Context id.
        cid: u32,
        /// Port.
        port: u32,
    },
}

/// A text that names no [`QuoteService`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "is {0:?}: give \"unix:\" with an absolute path, or \"vsock:CID:PORT\" such as vsock:2:4050"
)]
pub struct UnknownQuoteService(String);

impl FromStr for QuoteService {
    type Err = UnknownQuoteService;

    fn from_str(text: &str) -> Result<Self, UnknownQuoteService> {
        let unix = || text.strip_prefix("unix:").filter(|path| path.starts_with('/'));
        let vsock = || {
            let (cid, port) = text.strip_prefix("vsock:")?.split_once(':')?;
            Some(QuoteService::Vsock { cid: cid.parse().ok()?, port: port.parse().ok()? })
        };
        let found = unix().map(|path| QuoteService::Unix(path.into())).or_else(vsock);
        found.ok_or_else(|| UnknownQuoteService(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use sev::measurement::vcpu_types::CpuType;

    use super::*;

    #[test]
    fn signatures_are_those_of_another_table() {
        let mut compared = 0;
        for cpu in SnpCpu::ALL {
            // It does not know all of them.
            if let Ok(other) = CpuType::try_from(cpu.name()) {
                assert_eq!(i64::from(cpu.cpuid_signature()), i64::from(other.sig()), "{cpu}");
                compared += 1;
            }
        }
        assert_eq!(compared, 3);
        // Of an actual processor: EPYC 7xx3 (Milan), stepping B1.
        assert_eq!(SnpCpu::EpycMilanV2.cpuid_signature(), 0x00a0_0f11);
    }

    #[test]
    fn processors_have_full_names() {
        for cpu in SnpCpu::ALL {
            assert_eq!(cpu.name().parse(), Ok(cpu));
            assert!(UnknownCpu(String::new()).to_string().contains(cpu.name()));
        }
        for name in ["EPYC", "epyc-v4", "host", "EPYC-v4,+sev", ""] {
            assert!(name.parse::<SnpCpu>().unwrap_err().to_string().contains("EPYC-Milan-v2"));
        }
    }

    #[test]
    fn policies_are_what_the_specification_says() {
        assert_eq!(GuestPolicy::new(true).bits(), 0x3_0000);
        assert_eq!(GuestPolicy::new(false).bits(), 0x2_0000);
        assert_eq!(GuestPolicy::new(true).danger_debug().bits(), 0xb_0000);
        assert_eq!(TdAttributes::default().bits(), 0x1000_0000);
    }

    #[test]
    fn an_id_block_is_two_pieces_of_fixed_size() {
        let mut block = [7; 96];
        block[0x58..].copy_from_slice(&0x3_0000_u64.to_le_bytes());
        let mut authentication = [0; 4096];
        let made = IdBlock::new(&block, &authentication).unwrap();
        assert_eq!(made.policy(), 0x3_0000);
        assert_eq!(made.launch_digest(), [7; 48]);
        assert!(!made.has_author_key());
        authentication[0x880] = 2;
        assert!(IdBlock::new(&block, &authentication).unwrap().has_author_key());
        assert_eq!(IdBlock::new(&block[1..], &authentication), Err(IdBlockError::Block(95)));
        let short = &authentication[..4095];
        assert_eq!(IdBlock::new(&block, short), Err(IdBlockError::Authentication(4095)));
        assert_eq!(IdBlock::new(b"", b""), Err(IdBlockError::Block(0)));
    }

    #[test]
    fn quote_services_are_named_in_full() {
        let named = |text: &str| text.parse::<QuoteService>();
        assert_eq!(named("unix:/run/q,s"), Ok(QuoteService::Unix("/run/q,s".into())));
        assert_eq!(named("vsock:2:4050"), Ok(QuoteService::Vsock { cid: 2, port: 4050 }));
        for text in [
            "",
            "unix:",
            "unix:run/qgs",
            "/run/qgs",
            "vsock:2",
            "vsock:2:",
            "vsock:a:1",
            "vsock:2:4294967296",
            "vsock:2:1:1",
            "tcp:1:2",
        ] {
            assert!(named(text).unwrap_err().to_string().contains("vsock:CID:PORT"), "{text}");
        }
    }
}
