//! What Intel publishes about platforms: TCB info, QE identity, revocation lists.

use dcap_qvl::{QeIdentity, QuoteCollateralV3, TcbInfo};
use der::Decode as _;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_cert::crl::CertificateList;

use crate::references::Hex;
use crate::x509::{self, Period};

/// Largest document, in bytes.
pub const TDX_COLLATERAL_LIMIT: usize = 1024 * 1024;

/// Why a document is no collateral.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TdxCollateralError {
    /// Larger than [`TDX_COLLATERAL_LIMIT`].
    #[error("TDX collateral: more than {TDX_COLLATERAL_LIMIT} bytes")]
    TooLarge,
    /// A part is missing or cannot be read.
    #[error("TDX collateral: {part}: {problem}")]
    Part {
        /// Which.
        part: &'static str,
        /// Why.
        problem: String,
    },
}

/// Intel's collateral for one kind of platform. Read, not verified: that is done with each quote.
#[derive(Debug, Clone)]
pub struct TdxCollateral {
    pub(super) parts: QuoteCollateralV3,
    pub(super) tcb_info: TcbInfo,
    pub(super) periods: Vec<(&'static str, Period)>,
    fmspc: Hex<6>,
}

impl TdxCollateral {
    /// Reads a JSON document with the members `root_ca_crl`, `pck_crl` (DER), `tcb_info_signature`,
    /// `qe_identity_signature` (all in hexadecimal digits), `tcb_info`, `qe_identity` (JSON as Intel
    /// signed it, as text), `pck_crl_issuer_chain`, `tcb_info_issuer_chain` and
    /// `qe_identity_issuer_chain` (PEM): as the crate `dcap-qvl` and its tools write it. A chain for the
    /// platform in it is not used; the quote brings its own.
    ///
    /// # Errors
    /// If it is too large, or a part is missing or cannot be read.
    pub fn parse(json: &[u8]) -> Result<TdxCollateral, TdxCollateralError> {
        if json.len() > TDX_COLLATERAL_LIMIT {
            return Err(TdxCollateralError::TooLarge);
        }
        let mut parts: QuoteCollateralV3 =
            serde_json::from_slice(json).map_err(|error| part("document", error))?;
        // It would stand in for the chain that the quote itself brings.
        parts.pck_certificate_chain = None;
        let tcb_info: TcbInfo =
            serde_json::from_str(&parts.tcb_info).map_err(|error| part("tcb_info", error))?;
        let qe_identity: QeIdentity =
            serde_json::from_str(&parts.qe_identity).map_err(|error| part("qe_identity", error))?;
        let mut fmspc = Hex([0; 6]);
        hex::decode_to_slice(&tcb_info.fmspc, &mut fmspc.0)
            .map_err(|error| part("fmspc", error))?;
        let periods = vec![
            ("TCB info", dates("tcb_info", &tcb_info.issue_date, &tcb_info.next_update)?),
            (
                "QE identity",
                dates("qe_identity", &qe_identity.issue_date, &qe_identity.next_update)?,
            ),
            ("root revocation list", list("root_ca_crl", &parts.root_ca_crl)?),
            ("PCK revocation list", list("pck_crl", &parts.pck_crl)?),
        ];
        Ok(TdxCollateral { parts, tcb_info, periods, fmspc })
    }

    /// The kind of platform that it is for.
    #[must_use]
    pub const fn fmspc(&self) -> Hex<6> {
        self.fmspc
    }

    /// When the first part expires, certificates not counted.
    #[must_use]
    pub fn expires(&self) -> OffsetDateTime {
        let ends = self.periods.iter().map(|(_, period)| period.to);
        ends.min().unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

fn part(part: &'static str, problem: impl std::fmt::Display) -> TdxCollateralError {
    let problem = problem.to_string().chars().take(200).collect();
    TdxCollateralError::Part { part, problem }
}

fn dates(name: &'static str, from: &str, to: &str) -> Result<Period, TdxCollateralError> {
    let parse = |text| OffsetDateTime::parse(text, &Rfc3339).map_err(|error| part(name, error));
    Ok(Period { from: parse(from)?, to: parse(to)? })
}

fn list(name: &'static str, der: &[u8]) -> Result<Period, TdxCollateralError> {
    let list = CertificateList::from_der(der).map_err(|error| part(name, error))?.tbs_cert_list;
    let from = x509::time(list.this_update);
    Ok(Period { from, to: list.next_update.map_or(from, x509::time) })
}
