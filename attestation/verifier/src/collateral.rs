//! What is needed beside evidence, and what it is called.

use std::fmt;

use nacre_evidence::Evidence;
use nacre_evidence::snp::{Product, SigningKey, Tcb};

use crate::snp::chip_id_length;
use crate::tdx::TdxCollateral;

/// Certificates and the like beside the evidence. Untrusted: what is wrong in here fails checks.
#[derive(Debug, Clone, Default)]
pub struct Collateral {
    /// Certificates of SNP report keys, in DER; the first 8 are looked at.
    pub snp_certificates: Vec<Vec<u8>>,
    /// Intel's data about the platform of a TDX quote.
    pub tdx: Option<TdxCollateral>,
}

/// Names a piece of collateral.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CollateralKey {
    /// The certificate of a chip's key at a security version.
    Vcek {
        /// Of the processor.
        product: Product,
        /// As in the report, 64 bytes.
        chip_id: Box<[u8; 64]>,
        /// From which the key is derived.
        tcb: Tcb,
    },
}

impl CollateralKey {
    /// What would help to appraise `evidence`: a report's chip key certificate. A report of version 2
    /// does not say whether it is of Milan or Genoa; one of two keys is its. VLEKs come from the cloud
    /// provider, with the evidence.
    #[must_use]
    pub fn needed(evidence: &Evidence) -> Vec<CollateralKey> {
        let Evidence::Snp { report, .. } = evidence else { return Vec::new() };
        let fields = report.fields();
        if fields.key_info.signing_key() != SigningKey::Vcek || fields.chip_id == [0; 64] {
            return Vec::new();
        }
        let tcb = fields.reported_tcb;
        Product::ALL
            .into_iter()
            .filter(|product| match fields.product() {
                Some(own) => *product == own,
                None => product.has_fmc() == tcb.fmc.is_some(),
            })
            .map(|product| CollateralKey::Vcek { product, chip_id: Box::new(fields.chip_id), tcb })
            .collect()
    }

    /// Path and query at the vendor's service (AMD: `https://kdsintf.amd.com`; 57230, "Get VCEK").
    #[must_use]
    pub fn path(&self) -> String {
        let CollateralKey::Vcek { product, chip_id, tcb } = self;
        let id = hex::encode(&chip_id[..chip_id_length(*product)]);
        let Tcb { fmc, bootloader, tee, snp, microcode } = tcb;
        let fmc = fmc.map_or(String::new(), |fmc| format!("fmcSPL={fmc:02}&"));
        format!(
            "/vcek/v1/{product}/{id}?{fmc}blSPL={bootloader:02}&teeSPL={tee:02}&snpSPL={snp:02}\
             &ucodeSPL={microcode:02}"
        )
    }

    /// Name of its file in a store: letters, digits and dashes.
    pub(crate) fn file_name(&self) -> String {
        let CollateralKey::Vcek { product, chip_id, tcb } = self;
        let id = hex::encode(&chip_id[..chip_id_length(*product)]);
        let Tcb { fmc, bootloader, tee, snp, microcode } = tcb;
        let fmc = fmc.map_or(String::new(), |fmc| format!("{fmc}-"));
        format!("vcek-{product}-{id}-{fmc}{bootloader}-{tee}-{snp}-{microcode}.der")
    }
}

impl fmt::Display for CollateralKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())
    }
}
