//! The verifier itself.

use nacre_evidence::Evidence;
use time::OffsetDateTime;

use crate::appraisal::Appraisal;
use crate::collateral::Collateral;
use crate::references::ReferenceSet;
use crate::snp::{self, Hierarchies};
use crate::tdx::{self, TdxRoots};
use crate::trust::{Trust, TrustError};

/// What evidence is compared with.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// What binds the evidence to this session: nonce and key, hashed, filled with zeros.
    pub report_data: [u8; 64],
    /// Digest of the initdata that the guest presents: 32, 48 or 64 bytes. Without initdata the
    /// hardware must report zeros: a guest that leaves its initdata out cannot hide that it has some.
    pub init_data: Option<&'a [u8]>,
    /// What is expected of guests.
    pub references: &'a ReferenceSet,
    /// The time for which everything must be valid.
    pub now: OffsetDateTime,
}

/// Appraises evidence. Roots are verified once, when it is made.
pub struct Verifier {
    hierarchies: Hierarchies,
    tdx_roots: TdxRoots,
}

impl Verifier {
    /// A verifier that trusts the vendors, and whom `trust` adds.
    ///
    /// # Errors
    /// If an added root or a revocation list is no good.
    pub fn new(trust: &Trust) -> Result<Verifier, TrustError> {
        Ok(Verifier { hierarchies: Hierarchies::new(trust)?, tdx_roots: TdxRoots::new(trust) })
    }

    /// Makes every check, whatever the earlier ones said.
    #[must_use]
    pub fn appraise(
        &self,
        evidence: &Evidence,
        expected: &Expected<'_>,
        collateral: &Collateral,
    ) -> Appraisal {
        match evidence {
            Evidence::Snp { report, certificates } => {
                snp::appraise(&self.hierarchies, report, certificates, expected, collateral)
            }
            Evidence::Tdx { quote, event_log } => {
                tdx::appraise(&self.tdx_roots, quote, event_log.as_deref(), expected, collateral)
            }
        }
    }
}

/// The register's value for a digest, cut or filled with zeros to its size (Confidential Containers'
/// initdata specification); none for what is no digest.
pub(crate) fn binding_of<const N: usize>(init_data: Option<&[u8]>) -> Option<[u8; N]> {
    let mut register = [0; N];
    let Some(digest) = init_data else { return Some(register) };
    if !matches!(digest.len(), 32 | 48 | 64) {
        return None;
    }
    for (to, from) in register.iter_mut().zip(digest) {
        *to = *from;
    }
    Some(register)
}
