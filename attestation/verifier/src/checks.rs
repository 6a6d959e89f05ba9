//! Checks: what was looked at, what was expected, what was found, what to do about it.

use std::fmt;

use nacre_evidence::Tee;
use serde::{Serialize, Serializer};

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Passed,
    /// Not as it should be, or it could not be made.
    Failed,
    /// Nothing asks for it, or this kind of evidence has nothing to check here.
    NotApplicable,
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $text:literal,)+) => {
        /// Names of checks. They do not change: programs and runbooks go by them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum CheckCode {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl CheckCode {
            /// All of them.
            pub const ALL: &[CheckCode] = &[$(CheckCode::$variant,)+];

            /// The name, such as `snp-measurement`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(CheckCode::$variant => $text,)+ }
            }

            /// Whose evidence it is a check of.
            #[must_use]
            pub fn tee(self) -> Tee {
                if self.as_str().starts_with("tdx-") { Tee::Tdx } else { Tee::Snp }
            }
        }
    };
}

codes! {
    /// The report's form: signature algorithm, reserved bits.
    SnpReport = "snp-report",
    /// A certificate of the key that should have signed is at hand.
    SnpCertificate = "snp-certificate",
    /// It chains to a trusted root: signatures, names, key identifiers, constraints.
    SnpChain = "snp-chain",
    /// All certificates of the chain are valid at this time.
    SnpValidity = "snp-validity",
    /// None of them is revoked.
    SnpRevocation = "snp-revocation",
    /// The report names the kind of key that the certificate is for.
    SnpSigningKey = "snp-signing-key",
    /// Processor, certificate and root are of one product.
    SnpProduct = "snp-product",
    /// The certificate is for the report's chip.
    SnpChipId = "snp-chip-id",
    /// The certificate is for the report's reported TCB.
    SnpCertificateTcb = "snp-certificate-tcb",
    /// The report is signed by the certificate's key.
    SnpSignature = "snp-signature",
    /// The report was asked for at VMPL 0.
    SnpVmpl = "snp-vmpl",
    /// `REPORT_DATA` is bound to this session.
    SnpReportData = "snp-report-data",
    /// `HOST_DATA` is the initdata's digest, or zero without initdata.
    SnpHostData = "snp-host-data",
    /// Committed, reported and launch TCB are not newer than the current one.
    SnpTcbOrder = "snp-tcb-order",
    /// There are reference values to compare with.
    SnpReferences = "snp-references",
    /// `MEASUREMENT` is an expected one.
    SnpMeasurement = "snp-measurement",
    /// No TCB is below the minimum.
    SnpTcbMinimum = "snp-tcb-minimum",
    /// Debugging is off.
    SnpDebug = "snp-debug",
    /// No migration agent.
    SnpMigrationAgent = "snp-migration-agent",
    /// Hyper-threads only if expected.
    SnpSmt = "snp-smt",
    /// One socket, if expected.
    SnpSingleSocket = "snp-single-socket",
    /// CXL only if expected.
    SnpCxl = "snp-cxl",
    /// Ciphertext hiding, if expected.
    SnpCiphertextHiding = "snp-ciphertext-hiding",
    /// The platform's check for aliased memory is done, if expected.
    SnpAliasCheck = "snp-alias-check",
    /// The guest policy's least ABI version is high enough.
    SnpAbi = "snp-abi",
    /// The ID block was signed by an expected key.
    SnpIdKey = "snp-id-key",
    /// That key was certified by an expected one.
    SnpAuthorKey = "snp-author-key",
    /// TCB info, QE identity and revocation lists for the platform are at hand and can be read.
    TdxCollateral = "tdx-collateral",
    /// They are current.
    TdxCollateralPeriod = "tdx-collateral-period",
    /// The TCB info is for the platform of the quote.
    TdxPlatform = "tdx-platform",
    /// No other attributes of the TD undo its protection.
    TdxAttributes = "tdx-attributes",
    /// TCB info, QE identity and revocation lists are signed by the trusted root's keys.
    TdxCollateralSignature = "tdx-collateral-signature",
    /// The platform's certificate chains to the trusted root.
    TdxChain = "tdx-chain",
    /// No certificate of the chains is revoked.
    TdxRevocation = "tdx-revocation",
    /// Intel's quoting enclave made the quote.
    TdxQuotingEnclave = "tdx-quoting-enclave",
    /// The quote is signed by the quoting enclave's key.
    TdxSignature = "tdx-signature",
    /// The TDX module is Intel's.
    TdxModule = "tdx-module",
    /// The platform's TCB status is an accepted one.
    TdxTcbStatus = "tdx-tcb-status",
    /// All advisories that concern the platform are accepted.
    TdxAdvisories = "tdx-advisories",
    /// Debugging is off.
    TdxDebug = "tdx-debug",
    /// `REPORTDATA` is bound to this session.
    TdxReportData = "tdx-report-data",
    /// `MRCONFIGID` is the initdata's digest, or zero without initdata.
    TdxConfigId = "tdx-config-id",
    /// The event log explains the registers.
    TdxEventLog = "tdx-event-log",
    /// There are reference values to compare with.
    TdxReferences = "tdx-references",
    /// `MRTD` is an expected one.
    TdxMrTd = "tdx-mr-td",
    /// `RTMR0` is an expected one.
    TdxRtmr0 = "tdx-rtmr0",
    /// `RTMR1` is an expected one.
    TdxRtmr1 = "tdx-rtmr1",
    /// `RTMR2` is an expected one.
    TdxRtmr2 = "tdx-rtmr2",
    /// `RTMR3` is an expected one.
    TdxRtmr3 = "tdx-rtmr3",
}

impl fmt::Display for CheckCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for CheckCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Which.
    pub code: CheckCode,
    /// How it ended.
    pub verdict: Verdict,
    /// What would have passed, in words or values.
    pub expected: String,
    /// What the evidence has, or why there is nothing to compare.
    pub found: String,
    /// What to do where it failed; empty where not.
    pub fix: &'static str,
}

impl Check {
    /// A check that passes if `holds`.
    pub(crate) fn of(
        code: CheckCode,
        holds: bool,
        expected: impl Into<String>,
        found: impl Into<String>,
        fix: &'static str,
    ) -> Check {
        let (verdict, fix) = if holds { (Verdict::Passed, "") } else { (Verdict::Failed, fix) };
        Check { code, verdict, expected: expected.into(), found: found.into(), fix }
    }

    pub(crate) fn not_applicable(code: CheckCode, found: impl Into<String>) -> Check {
        let expected = "nothing".to_owned();
        Check { code, verdict: Verdict::NotApplicable, expected, found: found.into(), fix: "" }
    }

    /// Whether it failed.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.verdict == Verdict::Failed
    }
}

/// What the checks say that depend on one that failed.
pub(crate) const NOT_MADE: &str = "could not be made";

/// Puts the checks of a TEE's evidence into their order; those that nobody made are failures.
pub(crate) fn complete(tee: Tee, mut made: Vec<Check>) -> Vec<Check> {
    for code in CheckCode::ALL.iter().filter(|code| code.tee() == tee) {
        if !made.iter().any(|check| check.code == *code) {
            made.push(Check {
                code: *code,
                verdict: Verdict::Failed,
                expected: "a check".to_owned(),
                found: NOT_MADE.to_owned(),
                fix: "see the checks that failed before this one",
            });
        }
    }
    made.sort_by_key(|check| check.code);
    made
}
