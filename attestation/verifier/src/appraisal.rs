//! What a verifier has found out.

use nacre_evidence::Tee;
use nacre_evidence::snp::{
    FirmwareVersion, GuestPolicy, Mitigations, PlatformInfo, Product, ReportFields, SigningKey, Tcb,
};
use nacre_evidence::tdx::{Quote, QuoteVersion};
use serde::Serialize;
use time::OffsetDateTime;

use crate::checks::{Check, NOT_MADE, Verdict};
use crate::references::Hex;

/// The result of an appraisal: every check, and what the evidence says. Only a verifier makes one.
#[derive(Debug, Clone, Serialize)]
pub struct Appraisal {
    tee: Tee,
    affirming: bool,
    root: Root,
    reference: Option<String>,
    checks: Vec<Check>,
    claims: Claims,
}

impl Appraisal {
    pub(crate) fn new(
        root: Root,
        reference: Option<String>,
        checks: Vec<Check>,
        claims: Claims,
    ) -> Appraisal {
        let affirming = root != Root::Unproven
            && checks.iter().any(|check| check.verdict == Verdict::Passed)
            && !checks.iter().any(Check::is_failed);
        let tee = claims.tee();
        Appraisal { tee, affirming, root, reference, checks, claims }
    }

    /// Whose evidence it was.
    #[must_use]
    pub const fn tee(&self) -> Tee {
        self.tee
    }

    /// What the evidence's chain of certificates ends in.
    #[must_use]
    pub const fn root(&self) -> &Root {
        &self.root
    }

    /// Whether the evidence ends in a root that is no vendor's: an emulated processor's.
    #[must_use]
    pub const fn is_emulated(&self) -> bool {
        matches!(self.root, Root::Extra { .. })
    }

    /// Whether no check failed. An emulated processor's evidence can be affirming too.
    #[must_use]
    pub const fn is_affirming(&self) -> bool {
        self.affirming
    }

    /// All checks, in a fixed order: those of the hardware first, then those of the guest.
    #[must_use]
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }

    /// The first check that failed, rather than could not be made because of it.
    #[must_use]
    pub fn first_failure(&self) -> Option<&Check> {
        let mut failed = self.checks.iter().filter(|check| check.is_failed());
        let any = failed.clone().next();
        failed.find(|check| check.found != NOT_MADE).or(any)
    }

    /// Id of the reference values that the evidence was compared with.
    #[must_use]
    pub fn reference(&self) -> Option<&str> {
        self.reference.as_deref()
    }

    /// What the evidence says. True only where the appraisal [is affirming](Self::is_affirming).
    #[must_use]
    pub const fn claims(&self) -> &Claims {
        &self.claims
    }
}

/// What a chain of certificates ends in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Root {
    /// The vendor's own root: real hardware.
    Vendor,
    /// A root that the operator trusts beside the vendors'.
    Extra {
        /// As configured.
        name: String,
    },
    /// The evidence is not proven to end in any.
    Unproven,
}

/// What evidence says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Claims {
    /// An SNP report.
    Snp(Box<SnpClaims>),
    /// A TDX quote.
    Tdx(Box<TdxClaims>),
}

impl Claims {
    /// Whose they are.
    #[must_use]
    pub const fn tee(&self) -> Tee {
        match self {
            Claims::Snp(_) => Tee::Snp,
            Claims::Tdx(_) => Tee::Tdx,
        }
    }
}

/// What an SNP report says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnpClaims {
    /// 2, 3 or 5.
    pub report_version: u32,
    /// By the processor's CPUID, in reports of version 2 by the certificate.
    pub product: Option<Product>,
    /// Launch digest.
    pub measurement: Hex<48>,
    /// What the guest asked to be signed.
    pub report_data: Hex<64>,
    /// What the host gave at the launch.
    pub host_data: Hex<32>,
    /// Privilege level that the report was asked for.
    pub vmpl: u32,
    /// What the guest's owner allows, all bits.
    pub policy: GuestPolicy,
    /// Of the policy: the host may debug the guest.
    pub debug_allowed: bool,
    /// Of the policy: hyper-threads may be on.
    pub smt_allowed: bool,
    /// Of the policy: a migration agent may be associated.
    pub migration_agent_allowed: bool,
    /// Of the policy: one socket only.
    pub single_socket: bool,
    /// Of the policy: least ABI version, major and minor.
    pub minimum_abi: (u8, u8),
    /// State of the platform, all bits.
    pub platform_info: PlatformInfo,
    /// Security versions from which the signing key is derived.
    pub reported_tcb: Tcb,
    /// Security versions that run.
    pub current_tcb: Tcb,
    /// Security versions that the platform cannot go below.
    pub committed_tcb: Tcb,
    /// Security versions at the launch.
    pub launch_tcb: Tcb,
    /// Firmware that runs.
    pub current_version: FirmwareVersion,
    /// Firmware that the platform cannot go below.
    pub committed_version: FirmwareVersion,
    /// Mitigation vectors, from version 5 on.
    pub mitigations: Option<Mitigations>,
    /// Of the chip; zeros where masked.
    pub chip_id: Hex<64>,
    /// The kind of key that signed.
    pub signing_key: SigningKey,
    /// SHA-384 of the key that signed the ID block.
    pub id_key_digest: Hex<48>,
    /// SHA-384 of the key that certified the ID key.
    pub author_key_digest: Hex<48>,
    /// From the ID block.
    pub family_id: Hex<16>,
    /// From the ID block.
    pub image_id: Hex<16>,
    /// From the ID block.
    pub guest_svn: u32,
    /// Of this guest, as long as it runs.
    pub report_id: Hex<32>,
}

impl SnpClaims {
    pub(crate) fn new(fields: &ReportFields, product: Option<Product>) -> SnpClaims {
        SnpClaims {
            report_version: fields.version.number(),
            product,
            measurement: Hex(fields.measurement),
            report_data: Hex(fields.report_data),
            host_data: Hex(fields.host_data),
            vmpl: fields.vmpl,
            policy: fields.policy,
            debug_allowed: fields.policy.debug_allowed(),
            smt_allowed: fields.policy.smt_allowed(),
            migration_agent_allowed: fields.policy.migration_agent_allowed(),
            single_socket: fields.policy.single_socket(),
            minimum_abi: fields.policy.minimum_abi(),
            platform_info: fields.platform_info,
            reported_tcb: fields.reported_tcb,
            current_tcb: fields.current_tcb,
            committed_tcb: fields.committed_tcb,
            launch_tcb: fields.launch_tcb,
            current_version: fields.current_version,
            committed_version: fields.committed_version,
            mitigations: fields.mitigations,
            chip_id: Hex(fields.chip_id),
            signing_key: fields.key_info.signing_key(),
            id_key_digest: Hex(fields.id_key_digest),
            author_key_digest: Hex(fields.author_key_digest),
            family_id: Hex(fields.family_id),
            image_id: Hex(fields.image_id),
            guest_svn: fields.guest_svn,
            report_id: Hex(fields.report_id),
        }
    }
}

/// What a TDX quote says, and what the collateral says about its platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TdxClaims {
    /// Layout of the quote.
    pub quote_version: QuoteVersion,
    /// SHA-384 of the TD's initial contents.
    pub mr_td: Hex<48>,
    /// Registers that the guest extends at run time.
    pub rtmr: [Hex<48>; 4],
    /// What the guest asked to be signed.
    pub report_data: Hex<64>,
    /// What the host gave at the launch.
    pub mr_config_id: Hex<48>,
    /// What the host gave at the launch.
    pub mr_owner: Hex<48>,
    /// What the host gave at the launch.
    pub mr_owner_config: Hex<48>,
    /// Of the TD, all bits.
    pub td_attributes: Hex<8>,
    /// Of the TD: the host may debug it.
    pub debug_allowed: bool,
    /// Extended processor features of the TD.
    pub xfam: Hex<8>,
    /// SHA-384 of the TDX module.
    pub mr_seam: Hex<48>,
    /// Who signed the TDX module; zeros: Intel.
    pub mr_signer_seam: Hex<48>,
    /// Security versions of the TDX module and its parts.
    pub tee_tcb_svn: Hex<16>,
    /// SHA-384 of service TDs bound to it; TD 1.5 only.
    pub mr_service_td: Option<Hex<48>>,
    /// What the collateral says about the platform; none where the quote could not be verified.
    pub platform: Option<TdxPlatform>,
}

/// What Intel's collateral says about a platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TdxPlatform {
    /// Family, model, stepping, platform type and SKU, as Intel numbers them.
    pub fmspc: Hex<6>,
    /// Such as `UpToDate` or `OutOfDate`; the worse of platform, TDX module and quoting enclave.
    pub tcb_status: String,
    /// Since when the platform's TCB level is known.
    #[serde(with = "time::serde::rfc3339")]
    pub tcb_date: OffsetDateTime,
    /// Intel's advisories that concern it.
    pub advisories: Vec<String>,
    /// Number of Intel's evaluation that the collateral is of; newer ones are larger.
    pub tcb_evaluation: u32,
    /// When the first piece of collateral expires.
    #[serde(with = "time::serde::rfc3339")]
    pub collateral_expires: OffsetDateTime,
    /// Hyper-threads are on, where the platform's certificate says so.
    pub smt_enabled: Option<bool>,
}

impl TdxClaims {
    pub(crate) fn new(quote: &Quote, platform: Option<TdxPlatform>) -> TdxClaims {
        let body = quote.body();
        TdxClaims {
            quote_version: quote.header().version,
            mr_td: Hex(body.mr_td),
            rtmr: body.rtmr.map(Hex),
            report_data: Hex(body.report_data),
            mr_config_id: Hex(body.mr_config_id),
            mr_owner: Hex(body.mr_owner),
            mr_owner_config: Hex(body.mr_owner_config),
            td_attributes: Hex(body.td_attributes.0.to_le_bytes()),
            debug_allowed: body.td_attributes.debug(),
            xfam: Hex(body.xfam.to_le_bytes()),
            mr_seam: Hex(body.mr_seam),
            mr_signer_seam: Hex(body.mr_signer_seam),
            tee_tcb_svn: Hex(body.tee_tcb_svn),
            mr_service_td: body.td_1_5.map(|(_, services)| Hex(services)),
            platform,
        }
    }
}
