//! Evidence of one of the TEEs, and the forms in which it travels.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::EvidenceError;
use crate::snp::{self, Certificate, CertificateTable, REPORT_SIZE, Report};
use crate::tdx::{EVENT_LOG_LIMIT, QUOTE_LIMIT, Quote};

/// Largest file that [`Evidence::read`] takes, in bytes.
pub const FILE_LIMIT: usize = 2 * 1024 * 1024;

/// Trusted execution environments that make evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tee {
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
}

impl Tee {
    /// The name in the key-broker protocol.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Tee::Snp => "snp",
            Tee::Tdx => "tdx",
        }
    }

    /// The TEE that the key-broker protocol calls so.
    ///
    /// # Errors
    /// If there is none.
    pub fn of_name(name: &str) -> Result<Tee, EvidenceError> {
        [Tee::Snp, Tee::Tdx]
            .into_iter()
            .find(|tee| tee.name() == name)
            .ok_or_else(|| EvidenceError::Tee(name.chars().take(32).collect()))
    }
}

impl fmt::Display for Tee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a TEE says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evidence {
    /// Of AMD SEV-SNP.
    Snp {
        /// Signed by the processor.
        report: Report,
        /// What the host gave along; may be empty.
        certificates: Vec<Certificate>,
    },
    /// Of Intel TDX.
    Tdx {
        /// Signed by the platform's quoting enclave.
        quote: Quote,
        /// Explains the quote's RTMRs; at most [`EVENT_LOG_LIMIT`] bytes, not parsed yet.
        event_log: Option<Vec<u8>>,
    },
}

impl Evidence {
    /// Whose it is.
    #[must_use]
    pub const fn tee(&self) -> Tee {
        match self {
            Evidence::Snp { .. } => Tee::Snp,
            Evidence::Tdx { .. } => Tee::Tdx,
        }
    }

    /// What the guest asked to be signed.
    #[must_use]
    pub fn report_data(&self) -> &[u8; 64] {
        match self {
            Evidence::Snp { report, .. } => &report.fields().report_data,
            Evidence::Tdx { quote, .. } => &quote.body().report_data,
        }
    }

    /// Reads the key-broker protocol's form of `tee`'s evidence.
    ///
    /// # Errors
    /// If the TEE is unknown or the evidence is not well formed.
    pub fn from_wire(tee: &str, value: &Value) -> Result<Evidence, EvidenceError> {
        match Tee::of_name(tee)? {
            Tee::Snp => {
                let (report, certificates) = snp::json::from_value(value)?;
                Ok(Evidence::Snp { report, certificates })
            }
            Tee::Tdx => tdx_from_value(value),
        }
    }

    /// The key-broker protocol's form.
    #[must_use]
    pub fn to_wire(&self) -> Value {
        match self {
            Evidence::Snp { report, certificates } => snp::json::to_value(report, certificates),
            Evidence::Tdx { quote, event_log } => {
                let wire = WireTdx {
                    quote: STANDARD.encode(quote.as_bytes()),
                    cc_eventlog: event_log.as_ref().map(|log| STANDARD.encode(log)),
                };
                serde_json::to_value(wire).expect("strings")
            }
        }
    }

    /// Reads a file: the protocol's form as JSON, a raw SNP report, possibly with a certificate table
    /// behind it, or a raw TDX quote.
    ///
    /// # Errors
    /// If it is larger than [`FILE_LIMIT`] or none of these.
    pub fn read(file: &[u8]) -> Result<Evidence, EvidenceError> {
        if file.len() > FILE_LIMIT {
            return Err(EvidenceError::TooLarge {
                what: "evidence file in bytes",
                limit: FILE_LIMIT,
            });
        }
        if file.trim_ascii_start().starts_with(b"{") {
            let value: Value = serde_json::from_slice(file)
                .map_err(|error| EvidenceError::malformed("evidence file", error))?;
            let tee = if value.get("attestation_report").is_some() { Tee::Snp } else { Tee::Tdx };
            return Evidence::from_wire(tee.name(), &value);
        }
        // A quote begins with its version, 4 or 5, and a key type; a report's version has 32 bits.
        let is_quote = matches!(file, [4 | 5, 0, kind, ..] if *kind != 0);
        if is_quote {
            return Ok(Evidence::Tdx { quote: Quote::parse(file)?, event_log: None });
        }
        let (report, table) = file.split_at_checked(REPORT_SIZE).unwrap_or((file, &[]));
        Ok(Evidence::Snp {
            report: Report::parse(report)?,
            certificates: CertificateTable::parse(table)?.into_certificates(),
        })
    }
}

#[derive(Serialize, Deserialize)]
struct WireTdx {
    quote: String,
    #[serde(default)]
    cc_eventlog: Option<String>,
}

fn tdx_from_value(value: &Value) -> Result<Evidence, EvidenceError> {
    let wire = WireTdx::deserialize(value)
        .map_err(|error| EvidenceError::malformed("TDX evidence", error))?;
    let quote = Quote::parse(&decode("TDX quote in bytes", &wire.quote, QUOTE_LIMIT)?)?;
    let event_log = wire
        .cc_eventlog
        .map(|log| decode("event log in bytes", &log, EVENT_LOG_LIMIT))
        .transpose()?;
    Ok(Evidence::Tdx { quote, event_log })
}

fn decode(what: &'static str, text: &str, limit: usize) -> Result<Vec<u8>, EvidenceError> {
    let too_large = EvidenceError::TooLarge { what, limit };
    if text.len() > limit.div_ceil(3) * 4 {
        return Err(too_large);
    }
    let bytes = STANDARD.decode(text).map_err(|error| EvidenceError::malformed(what, error))?;
    if bytes.len() > limit { Err(too_large) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tees_have_names() {
        for tee in [Tee::Snp, Tee::Tdx] {
            assert_eq!(Tee::of_name(tee.name()), Ok(tee));
            assert_eq!(serde_json::to_value(tee).unwrap(), tee.name());
        }
        for name in ["", "SNP", "sample", "az-snp-vtpm"] {
            assert_eq!(Tee::of_name(name), Err(EvidenceError::Tee(name.to_owned())));
        }
        let long = "x".repeat(1000);
        assert!(Tee::of_name(&long).unwrap_err().to_string().len() < 200);
    }

    #[test]
    fn hostile_forms_are_refused() {
        let quote = STANDARD.encode([0; QUOTE_LIMIT + 1]);
        let log = STANDARD.encode(vec![0; EVENT_LOG_LIMIT + 1]);
        for value in [
            json!(null),
            json!([]),
            json!({}),
            json!({ "quote": 1 }),
            json!({ "quote": "!" }),
            json!({ "quote": "" }),
            json!({ "quote": quote }),
            json!({ "quote": "AAAA", "cc_eventlog": log }),
        ] {
            assert!(Evidence::from_wire("tdx", &value).is_err());
            assert!(Evidence::from_wire("snp", &value).is_err());
        }
    }

    #[test]
    fn files_of_other_kinds_are_refused() {
        for file in [&b""[..], b"{", b"{}", b"\x02", b"\x04\0\x02", b"[1]", &[0; 1184]] {
            assert!(Evidence::read(file).is_err(), "{file:?}");
        }
        let error = Evidence::read(&vec![b' '; FILE_LIMIT + 1]).unwrap_err();
        assert!(matches!(error, EvidenceError::TooLarge { limit: FILE_LIMIT, .. }));
    }

    #[test]
    fn a_report_may_bring_its_table_along() {
        let mut file = vec![0; REPORT_SIZE];
        file[0] = 3;
        file[0x188..0x18a].copy_from_slice(&[0x19, 0x11]);
        let certificate = Certificate { cert_type: snp::CertType::Vcek, data: vec![1, 2, 3] };
        file.extend(CertificateTable::new(vec![certificate.clone()]).unwrap().encode());
        let Evidence::Snp { certificates, .. } = Evidence::read(&file).unwrap() else {
            panic!("not SNP")
        };
        assert_eq!(certificates, [certificate]);
        assert!(Evidence::read(&file[..file.len() - 1]).is_err());
    }
}
