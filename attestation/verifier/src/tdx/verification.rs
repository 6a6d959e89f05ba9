//! Verification of a quote and its collateral by `dcap-qvl`, told as single checks.

use dcap_qvl::intel::{PckExtension, parse_pck_extension_from_pem};
use dcap_qvl::verify::QuoteVerifier;
use dcap_qvl::{PckCertFlag, QuoteClaims, QuotePolicy};
use nacre_evidence::tdx::Quote;
use time::OffsetDateTime;

use super::collateral::TdxCollateral;
use crate::appraisal::{Root, TdxPlatform};
use crate::checks::{Check, CheckCode};
use crate::references::Hex;
use crate::trust::{ExtraTdxRoot, Trust};

/// What a verification proves, and what to expect of each step.
const STEPS: [(CheckCode, &str, &str); 6] = [
    (
        CheckCode::TdxCollateralSignature,
        "TCB info, QE identity and revocation lists signed by the root's keys",
        "fetch the collateral anew from Intel's provisioning certification service or a cache of it",
    ),
    (
        CheckCode::TdxChain,
        "a platform certificate (PCK) that chains to the trusted root",
        "this is no evidence of Intel hardware",
    ),
    (
        CheckCode::TdxRevocation,
        "no certificate of the chains on the revocation lists",
        "do not trust this hardware; ask its operator",
    ),
    (
        CheckCode::TdxQuotingEnclave,
        "Intel's quoting enclave (TD_QE), as its identity says",
        "the platform runs a quoting enclave that Intel does not vouch for, or one that is too old",
    ),
    (
        CheckCode::TdxSignature,
        "a quote signed by the quoting enclave's key",
        "the quote was changed on its way, or is not verifiable: attest anew",
    ),
    (
        CheckCode::TdxModule,
        "Intel's TDX module, of a known version",
        "the platform's TDX module is unknown to the collateral: update one or the other",
    ),
];

/// Roots of quotes: Intel's, and whom the operator adds.
pub(crate) struct TdxRoots {
    extra: Vec<ExtraTdxRoot>,
}

impl TdxRoots {
    pub(crate) fn new(trust: &Trust) -> TdxRoots {
        TdxRoots { extra: trust.danger_extra_tdx_roots.clone() }
    }

    /// The verification itself. It stops at its first problem; the checks behind that one are not made.
    pub(super) fn verify(
        &self,
        quote: &Quote,
        collateral: &TdxCollateral,
        now: OffsetDateTime,
    ) -> (Root, Vec<Check>, Option<TdxPlatform>) {
        let (root, verifier) = self.verifier(quote);
        let seconds = u64::try_from(now.unix_timestamp()).unwrap_or(0);
        // What is allowed here is checked by the caller, against reference values.
        let verified = verifier.allow_debug(true).verify_with_policy(
            quote.as_bytes(),
            &collateral.parts,
            seconds,
            &QuotePolicy::claims_only(seconds),
        );
        match verified {
            Ok(claims) => {
                let found = "verified";
                let checks = STEPS
                    .into_iter()
                    .map(|(code, expected, _)| Check::of(code, true, expected, found, ""));
                (root, checks.collect(), Some(platform(&claims)))
            }
            Err(error) => {
                let problem = format!("{error:#}");
                (Root::Unproven, vec![failed(&problem)], None)
            }
        }
    }

    /// Intel's root, unless the quote itself brings one that the operator has added.
    fn verifier(&self, quote: &Quote) -> (Root, QuoteVerifier) {
        let chain = &quote.signature_data().certification_data.data;
        let brought = |extra: &&ExtraTdxRoot| {
            use rustls_pki_types::CertificateDer;
            use rustls_pki_types::pem::PemObject as _;
            CertificateDer::pem_slice_iter(chain)
                .any(|certificate| certificate.is_ok_and(|der| *der == *extra.root_der))
        };
        match self.extra.iter().find(brought) {
            Some(extra) => {
                let root = Root::Extra { name: extra.name.clone() };
                (root, QuoteVerifier::new(extra.root_der.clone()))
            }
            None => (Root::Vendor, QuoteVerifier::new_prod()),
        }
    }
}

/// What the platform's certificate says. Not verified here.
pub(super) fn platform_extension(quote: &Quote) -> Result<PckExtension, String> {
    let certification = &quote.signature_data().certification_data;
    if certification.kind != 5 {
        let kind = certification.kind;
        return Err(format!("certification data of type {kind}, not a chain of certificates (5)"));
    }
    parse_pck_extension_from_pem(&certification.data).map_err(|error| format!("{error:#}"))
}

/// The check that a problem belongs to, by its words. A problem that is told otherwise one day lands
/// with the signature: it fails all the same.
fn failed(problem: &str) -> Check {
    let words: [(&str, CheckCode); 9] = [
        ("evoked", CheckCode::TdxRevocation),
        ("RevocationStatus", CheckCode::TdxRevocation),
        ("CRL", CheckCode::TdxCollateralSignature),
        ("TDX module", CheckCode::TdxModule),
        ("TCB Info", CheckCode::TdxCollateralSignature),
        ("quote_collateral", CheckCode::TdxCollateralSignature),
        ("QE ", CheckCode::TdxQuotingEnclave),
        ("qe_report", CheckCode::TdxQuotingEnclave),
        ("certificate", CheckCode::TdxChain),
    ];
    let code = words
        .into_iter()
        .find_map(|(word, code)| problem.contains(word).then_some(code))
        .unwrap_or(CheckCode::TdxSignature);
    let (_, expected, fix) =
        STEPS.into_iter().find(|step| step.0 == code).expect("all codes above are steps");
    let found: String = problem.chars().take(300).collect();
    Check::of(code, false, expected, found, fix)
}

fn platform(claims: &QuoteClaims) -> TdxPlatform {
    let date = |seconds: u64| {
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    };
    TdxPlatform {
        fmspc: Hex(claims.platform.pck.fmspc),
        tcb_status: claims.tcb.status.to_string(),
        tcb_date: date(claims.platform.tcb_date_tag),
        advisories: claims.tcb.advisory_ids.clone(),
        tcb_evaluation: claims.tcb.eval_data_number,
        collateral_expires: date(claims.earliest_expiration_date),
        smt_enabled: match claims.platform.pck.smt_enabled {
            PckCertFlag::True => Some(true),
            PckCertFlag::False => Some(false),
            PckCertFlag::Undefined => None,
        },
    }
}
