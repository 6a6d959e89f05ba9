//! TDX quotes of versions 4 and 5 (Intel TDX DCAP Quote Generation Library and Quote Verification
//! Library, appendix A "Quote Format").

use serde::Serialize;

use crate::EvidenceError;
use crate::reader::Reader;

/// Largest quote, certification data included, in bytes.
pub const QUOTE_LIMIT: usize = 16 * 1024;

const WHAT: &str = "TDX quote";
const TEE_TYPE_TDX: u32 = 0x81;
const BODY_TD_1_0: u16 = 2;
const BODY_TD_1_5: u16 = 3;
const BODY_TD_1_0_SIZE: usize = 584;
const BODY_TD_1_5_SIZE: usize = 648;
const CERTIFICATION_DATA_QE_REPORT: u16 = 6;

/// Layout of a quote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum QuoteVersion {
    /// With a TD 1.0 body.
    V4,
    /// With a body of a stated type.
    V5,
}

/// What stands in front of the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Of the quote.
    pub version: QuoteVersion,
    /// 2 is ECDSA P-256.
    pub attestation_key_type: u16,
    /// Who made the quoting enclave.
    pub qe_vendor_id: [u8; 16],
    /// Of the quoting enclave.
    pub user_data: [u8; 20],
}

/// `TD_ATTRIBUTES` (Intel TDX Module Base Architecture Specification, "ATTRIBUTES").
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct TdAttributes(pub u64);

impl TdAttributes {
    /// The host may debug the TD.
    #[must_use]
    pub const fn debug(self) -> bool {
        self.0 & 1 == 1
    }

    /// Bits 7:1, which also make a TD untrusted (group TUD).
    #[must_use]
    pub const fn other_untrusted(self) -> u8 {
        self.0.to_le_bytes()[0] >> 1
    }

    /// Page-table attributes may make a virtualization exception unless this is set.
    #[must_use]
    pub const fn sept_ve_disabled(self) -> bool {
        self.0 >> 28 & 1 == 1
    }

    /// The TD may migrate.
    #[must_use]
    pub const fn migratable(self) -> bool {
        self.0 >> 29 & 1 == 1
    }
}

/// What the TDX module says about a TD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    /// Security versions of the TDX module and its parts.
    pub tee_tcb_svn: [u8; 16],
    /// SHA-384 of the TDX module.
    pub mr_seam: [u8; 48],
    /// Who signed the TDX module; zeros: Intel.
    pub mr_signer_seam: [u8; 48],
    /// Of the TDX module; zero.
    pub seam_attributes: u64,
    /// Of the TD.
    pub td_attributes: TdAttributes,
    /// Extended processor features of the TD.
    pub xfam: u64,
    /// SHA-384 of the TD's initial contents.
    pub mr_td: [u8; 48],
    /// What the host gave at the launch.
    pub mr_config_id: [u8; 48],
    /// What the host gave at the launch.
    pub mr_owner: [u8; 48],
    /// What the host gave at the launch.
    pub mr_owner_config: [u8; 48],
    /// Registers that the guest extends at run time.
    pub rtmr: [[u8; 48]; 4],
    /// What the guest asked to be signed.
    pub report_data: [u8; 64],
    /// TD 1.5 only: TDX module's security versions that run after an update, hash of bound service TDs.
    pub td_1_5: Option<([u8; 16], [u8; 48])>,
}

/// Who vouches for the key that signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificationData {
    /// 5 is a chain of PCK certificates in PEM.
    pub kind: u16,
    /// As it came.
    pub data: Vec<u8>,
}

/// What follows the signed part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureData {
    /// ECDSA P-256 over header and body, r and s big-endian.
    pub signature: [u8; 64],
    /// The quoting enclave's key, x and y big-endian.
    pub attestation_key: [u8; 64],
    /// The quoting enclave's own report, 384 bytes.
    pub qe_report: Vec<u8>,
    /// ECDSA P-256 over it by the PCK.
    pub qe_report_signature: [u8; 64],
    /// Bound to the attestation key by the QE report's data.
    pub qe_authentication_data: Vec<u8>,
    /// Who vouches for the platform.
    pub certification_data: CertificationData,
}

/// A quote: its bytes, and what they say. Well formed; whether it is true is for the verifier to find
/// out.
#[derive(Clone, PartialEq, Eq)]
pub struct Quote {
    bytes: Vec<u8>,
    header: Header,
    body: Box<Body>,
    signature_data: SignatureData,
}

impl Quote {
    /// Reads a quote. Zero bytes may follow it, as drivers with buffers of a fixed size leave some; they
    /// are dropped.
    ///
    /// # Errors
    /// If it is no TDX quote of version 4 or 5, larger than [`QUOTE_LIMIT`], or lengths do not agree.
    pub fn parse(bytes: &[u8]) -> Result<Quote, EvidenceError> {
        if bytes.len() > QUOTE_LIMIT {
            return Err(EvidenceError::TooLarge { what: "TDX quote in bytes", limit: QUOTE_LIMIT });
        }
        let mut reader = Reader::new(WHAT, bytes);
        let header = header(&mut reader)?;
        let body = match header.version {
            QuoteVersion::V4 => body(&mut reader, false)?,
            QuoteVersion::V5 => {
                let (kind, size) = (reader.u16()?, reader.length()?);
                match (kind, size) {
                    (BODY_TD_1_0, BODY_TD_1_0_SIZE) => body(&mut reader, false)?,
                    (BODY_TD_1_5, BODY_TD_1_5_SIZE) => body(&mut reader, true)?,
                    _ => {
                        let problem = format!(
                            "a body of type {kind} with {size} bytes; this program reads TD 1.0 \
                             (2, {BODY_TD_1_0_SIZE}) and TD 1.5 (3, {BODY_TD_1_5_SIZE})"
                        );
                        return Err(EvidenceError::malformed(WHAT, problem));
                    }
                }
            }
        };
        let length = reader.length()?;
        let signature_data = signature_data(reader.slice(length)?)?;
        if reader.rest().iter().any(|byte| *byte != 0) {
            return Err(EvidenceError::malformed(WHAT, "bytes follow the signature data"));
        }
        let bytes = bytes[..reader.position()].to_vec();
        Ok(Quote { bytes, header, body: Box::new(body), signature_data })
    }

    /// What stands in front of the body.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// What the TDX module says about the TD.
    #[must_use]
    pub fn body(&self) -> &Body {
        &self.body
    }

    /// What follows the signed part.
    #[must_use]
    pub const fn signature_data(&self) -> &SignatureData {
        &self.signature_data
    }

    /// The whole, without zeros after it.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl std::fmt::Debug for Quote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Quote")
            .field("header", &self.header)
            .field("body", &self.body)
            .finish_non_exhaustive()
    }
}

fn header(reader: &mut Reader<'_>) -> Result<Header, EvidenceError> {
    let version = match reader.u16()? {
        4 => QuoteVersion::V4,
        5 => QuoteVersion::V5,
        other => {
            let version = u32::from(other);
            return Err(EvidenceError::Version { what: WHAT, version, known: "4 and 5" });
        }
    };
    let attestation_key_type = reader.u16()?;
    let tee_type = reader.u32()?;
    if tee_type != TEE_TYPE_TDX {
        return Err(EvidenceError::malformed(WHAT, format!("TEE type {tee_type:#x} is not TDX")));
    }
    // Security versions of QE and PCE in quotes of version 3; in later ones they are elsewhere.
    reader.slice(4)?;
    Ok(Header {
        version,
        attestation_key_type,
        qe_vendor_id: reader.array()?,
        user_data: reader.array()?,
    })
}

fn body(reader: &mut Reader<'_>, td_1_5: bool) -> Result<Body, EvidenceError> {
    Ok(Body {
        tee_tcb_svn: reader.array()?,
        mr_seam: reader.array()?,
        mr_signer_seam: reader.array()?,
        seam_attributes: reader.u64()?,
        td_attributes: TdAttributes(reader.u64()?),
        xfam: reader.u64()?,
        mr_td: reader.array()?,
        mr_config_id: reader.array()?,
        mr_owner: reader.array()?,
        mr_owner_config: reader.array()?,
        rtmr: [reader.array()?, reader.array()?, reader.array()?, reader.array()?],
        report_data: reader.array()?,
        td_1_5: if td_1_5 { Some((reader.array()?, reader.array()?)) } else { None },
    })
}

fn signature_data(bytes: &[u8]) -> Result<SignatureData, EvidenceError> {
    const WHAT: &str = "TDX quote's signature data";
    let mut reader = Reader::new(WHAT, bytes);
    let (signature, attestation_key) = (reader.array()?, reader.array()?);
    let kind = reader.u16()?;
    if kind != CERTIFICATION_DATA_QE_REPORT {
        let problem = format!("certification data of type {kind}, not 6 (QE report)");
        return Err(EvidenceError::malformed(WHAT, problem));
    }
    let length = reader.length()?;
    if length != reader.rest().len() {
        return Err(EvidenceError::malformed(WHAT, "lengths do not agree"));
    }
    let qe_report = reader.slice(384)?.to_vec();
    let qe_report_signature = reader.array()?;
    let length = usize::from(reader.u16()?);
    let qe_authentication_data = reader.slice(length)?.to_vec();
    let kind = reader.u16()?;
    let length = reader.length()?;
    let data = reader.slice(length)?.to_vec();
    if !reader.rest().is_empty() {
        return Err(EvidenceError::malformed(WHAT, "bytes follow the certification data"));
    }
    Ok(SignatureData {
        signature,
        attestation_key,
        qe_report,
        qe_report_signature,
        qe_authentication_data,
        certification_data: CertificationData { kind, data },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A quote whose bytes count up, with the lengths that belong to its version and body.
    fn quote(version: u16, body: Option<(u16, u32)>, size: usize) -> Vec<u8> {
        let count = |length: usize| (0..=255).cycle().take(length).collect::<Vec<u8>>();
        let mut bytes = version.to_le_bytes().to_vec();
        bytes.extend_from_slice(&[2, 0, 0x81, 0, 0, 0]);
        bytes.extend_from_slice(&count(40));
        if let Some((kind, size)) = body {
            bytes.extend_from_slice(&kind.to_le_bytes());
            bytes.extend_from_slice(&size.to_le_bytes());
        }
        bytes.extend_from_slice(&count(size));
        let mut inner = count(384 + 64);
        inner.extend_from_slice(&[3, 0, 7, 8, 9]);
        inner.extend_from_slice(&[5, 0, 4, 0, 0, 0]);
        inner.extend_from_slice(b"PEM\n");
        let mut data = count(128);
        data.extend_from_slice(&6_u16.to_le_bytes());
        data.extend_from_slice(&u32::try_from(inner.len()).unwrap().to_le_bytes());
        data.extend_from_slice(&inner);
        bytes.extend_from_slice(&u32::try_from(data.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(&data);
        bytes
    }

    #[test]
    fn quotes_of_each_layout_are_read() {
        for (bytes, version, td_1_5) in [
            (quote(4, None, 584), QuoteVersion::V4, false),
            (quote(5, Some((2, 584)), 584), QuoteVersion::V5, false),
            (quote(5, Some((3, 648)), 648), QuoteVersion::V5, true),
        ] {
            let parsed = Quote::parse(&bytes).unwrap();
            assert_eq!(parsed.as_bytes(), bytes);
            assert_eq!(parsed.header().version, version);
            assert_eq!(parsed.body().tee_tcb_svn[15], 15);
            // 520 bytes before it, counted up from zero.
            assert_eq!(parsed.body().report_data[0], u8::try_from(520 % 256).unwrap());
            assert_eq!(parsed.body().td_1_5.is_some(), td_1_5);
            let data = parsed.signature_data();
            assert_eq!(data.qe_authentication_data, [7, 8, 9]);
            assert_eq!(
                data.certification_data,
                CertificationData { kind: 5, data: b"PEM\n".into() }
            );
            let padded = [bytes.as_slice(), &[0; 100]].concat();
            assert_eq!(Quote::parse(&padded).unwrap(), parsed);
        }
    }

    #[test]
    fn other_bytes_are_refused() {
        let good = quote(4, None, 584);
        for cut in 0..good.len() {
            assert!(Quote::parse(&good[..cut]).is_err(), "cut at {cut}");
        }
        assert!(Quote::parse(&[good.as_slice(), &[1]].concat()).is_err(), "trailing bytes");
        assert!(Quote::parse(&vec![0; QUOTE_LIMIT + 1]).is_err());
        for (offset, byte) in [(0, 3), (0, 6), (4, 0), (48 + 584, 0xff), (48 + 584 + 4 + 128, 5)] {
            let mut bytes = good.clone();
            bytes[offset] = byte;
            assert!(Quote::parse(&bytes).is_err(), "{offset}: {byte}");
        }
        for (kind, size) in [(1, 384), (2, 648), (3, 584), (4, 885), (3, u32::MAX)] {
            assert!(Quote::parse(&quote(5, Some((kind, size)), 648)).is_err(), "{kind}, {size}");
        }
    }

    #[test]
    fn attributes_are_read_bit_by_bit() {
        assert!(TdAttributes(1).debug() && !TdAttributes(2).debug());
        assert_eq!(TdAttributes(0b1001_0001).other_untrusted(), 0b100_1000);
        assert!(TdAttributes(1 << 28).sept_ve_disabled());
        assert!(TdAttributes(1 << 29).migratable());
    }
}
