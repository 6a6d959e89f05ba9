//! What a guest and its emulated AMD secure processor say to each other on the virtio-serial port
//! [`PROCESSOR_PORT_NAME`](crate::channel::PROCESSOR_PORT_NAME).
//!
//! The messages are the firmware's own, `MSG_REPORT_REQ` and `MSG_REPORT_RSP` (SEV Secure Nested Paging
//! Firmware ABI Specification, 56860, "Attestation Report Request"), in clear: there is nobody to hide
//! them from. A response is followed by the length in bytes (`u32`, little-endian) and the bytes of a
//! certificate table, as the hypervisor adds one on hardware (GHCB Specification, 56421, "SNP Extended
//! Guest Request"). One request is answered before the next is read.
//!
//! Neither side trusts the other: sizes are checked before anything is kept.

use std::io::{self, Read};

/// Size of a request in bytes.
pub const REQUEST_SIZE: usize = 96;
/// Largest report in a response, in bytes; reports of today have 1184.
pub const REPORT_LIMIT: usize = 4096;
/// Largest certificate table in a response, in bytes.
pub const TABLE_LIMIT: usize = 64 * 1024;

/// Size of what precedes a report in a response, in bytes.
const HEADER_SIZE: usize = 32;
/// Virtual machine privilege levels are 0 to 3.
const VMPL_MOST: u32 = 3;

/// Status of a request that was served.
const SUCCESS: u32 = 0;

/// Why the processor does not make a report; its number is the response's `STATUS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A value that the specification does not allow.
    #[error("invalid parameters (0x16)")]
    InvalidParameters,
    /// A key that this processor does not have.
    #[error("invalid key selection (0x27)")]
    InvalidKey,
}

impl Refusal {
    const fn number(self) -> u32 {
        match self {
            Refusal::InvalidParameters => 0x16,
            Refusal::InvalidKey => 0x27,
        }
    }
}

/// `MSG_REPORT_REQ`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportRequest {
    /// What the report is to hold in `REPORT_DATA`.
    pub report_data: [u8; 64],
    /// What it is to hold in `VMPL`, 0 to 3.
    pub vmpl: u32,
}

impl ReportRequest {
    /// The message. `KEY_SEL` is 1: signed by the chip's own key (VCEK).
    #[must_use]
    pub fn to_bytes(&self) -> [u8; REQUEST_SIZE] {
        let mut bytes = [0; REQUEST_SIZE];
        bytes[..64].copy_from_slice(&self.report_data);
        bytes[64..68].copy_from_slice(&self.vmpl.to_le_bytes());
        bytes[68..72].copy_from_slice(&1_u32.to_le_bytes());
        bytes
    }

    /// Reads a message.
    ///
    /// # Errors
    /// If a reserved bit is set, the privilege level is none, or the key is not that of the chip.
    pub fn parse(bytes: &[u8; REQUEST_SIZE]) -> Result<ReportRequest, Refusal> {
        let mut report_data = [0; 64];
        report_data.copy_from_slice(&bytes[..64]);
        let vmpl = word(bytes, 64);
        let key_selection = word(bytes, 68);
        if vmpl > VMPL_MOST || bytes[72..].iter().any(|byte| *byte != 0) {
            return Err(Refusal::InvalidParameters);
        }
        match key_selection {
            // "VLEK if there is one, else VCEK", and "VCEK".
            0 | 1 => Ok(ReportRequest { report_data, vmpl }),
            2 => Err(Refusal::InvalidKey),
            _ => Err(Refusal::InvalidParameters),
        }
    }
}

/// `MSG_REPORT_RSP` and the certificate table behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportResponse {
    /// The attestation report.
    pub report: Vec<u8>,
    /// The certificate table; empty for none.
    pub certificates: Vec<u8>,
}

/// Why a response cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ResponseError {
    /// It did not come, or not whole.
    #[error("the secure processor's answer could not be read: {0}")]
    Read(#[from] io::Error),
    /// The processor does not make the report.
    #[error("the secure processor answers with status 0x{0:x}")]
    Status(u32),
    /// A size beyond its limit.
    #[error("the secure processor announces {what} of {size} bytes, more than {limit}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// As announced.
        size: u32,
        /// In bytes.
        limit: usize,
    },
}

impl ReportResponse {
    /// The bytes to send.
    ///
    /// # Errors
    /// If report or table exceed their limits.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ResponseError> {
        let report = announced("a report", self.report.len(), REPORT_LIMIT)?;
        let table = announced("a certificate table", self.certificates.len(), TABLE_LIMIT)?;
        let mut bytes = header(SUCCESS, report);
        bytes.extend_from_slice(&self.report);
        bytes.extend_from_slice(&table.to_le_bytes());
        bytes.extend_from_slice(&self.certificates);
        Ok(bytes)
    }

    /// Reads one response, and no byte beyond it.
    ///
    /// # Errors
    /// If it cannot be read, is a refusal, or announces more than the limits.
    pub fn read(mut from: impl Read) -> Result<ReportResponse, ResponseError> {
        let mut header = [0; HEADER_SIZE];
        from.read_exact(&mut header)?;
        let (status, size) = (word(&header, 0), word(&header, 4));
        let report = read_sized(&mut from, "a report", size, REPORT_LIMIT)?;
        let mut size = [0; 4];
        from.read_exact(&mut size)?;
        let size = u32::from_le_bytes(size);
        let certificates = read_sized(&mut from, "a certificate table", size, TABLE_LIMIT)?;
        if status != SUCCESS {
            return Err(ResponseError::Status(status));
        }
        Ok(ReportResponse { report, certificates })
    }
}

/// The bytes that refuse a request: its status, no report, no certificates.
#[must_use]
pub fn refusal(why: Refusal) -> Vec<u8> {
    let mut bytes = header(why.number(), 0);
    bytes.extend_from_slice(&0_u32.to_le_bytes());
    bytes
}

fn header(status: u32, report_size: u32) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_SIZE];
    bytes[..4].copy_from_slice(&status.to_le_bytes());
    bytes[4..8].copy_from_slice(&report_size.to_le_bytes());
    bytes
}

fn announced(what: &'static str, size: usize, limit: usize) -> Result<u32, ResponseError> {
    let size = u32::try_from(size).unwrap_or(u32::MAX);
    within(what, size, limit)?;
    Ok(size)
}

/// Returns the size once it is known to be within the limit.
fn within(what: &'static str, size: u32, limit: usize) -> Result<usize, ResponseError> {
    let bytes = usize::try_from(size).unwrap_or(usize::MAX);
    if bytes > limit { Err(ResponseError::TooLarge { what, size, limit }) } else { Ok(bytes) }
}

fn read_sized(
    from: &mut impl Read,
    what: &'static str,
    size: u32,
    limit: usize,
) -> Result<Vec<u8>, ResponseError> {
    let mut bytes = vec![0; within(what, size, limit)?];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The little-endian `u32` at `offset`, which lies within `bytes`.
fn word<const N: usize>(bytes: &[u8; N], offset: usize) -> u32 {
    u32::from_le_bytes([bytes[offset], bytes[offset + 1], bytes[offset + 2], bytes[offset + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> ReportRequest {
        let mut report_data = [0; 64];
        report_data[0] = 1;
        report_data[63] = 2;
        ReportRequest { report_data, vmpl: 3 }
    }

    #[test]
    fn a_request_has_the_firmwares_layout() {
        let bytes = request().to_bytes();
        assert_eq!((bytes[0], bytes[63]), (1, 2));
        assert_eq!(bytes[64..72], [3, 0, 0, 0, 1, 0, 0, 0]);
        assert!(bytes[72..].iter().all(|byte| *byte == 0));
        assert_eq!(ReportRequest::parse(&bytes), Ok(request()));
    }

    #[test]
    fn requests_that_the_specification_does_not_allow_are_refused() {
        let refused = |offset: usize, value: u8| {
            let mut bytes = request().to_bytes();
            bytes[offset] = value;
            ReportRequest::parse(&bytes).unwrap_err()
        };
        assert_eq!(refused(64, 4), Refusal::InvalidParameters);
        assert_eq!(refused(67, 1), Refusal::InvalidParameters);
        assert_eq!(refused(68, 2), Refusal::InvalidKey);
        assert_eq!(refused(68, 3), Refusal::InvalidParameters);
        assert_eq!(refused(71, 1), Refusal::InvalidParameters);
        assert_eq!(refused(72, 1), Refusal::InvalidParameters);
        assert_eq!(refused(95, 1), Refusal::InvalidParameters);
        let mut either_key = request().to_bytes();
        either_key[68] = 0;
        assert_eq!(ReportRequest::parse(&either_key), Ok(request()));
    }

    #[test]
    fn a_response_is_read_to_its_end_and_not_beyond() {
        let response = ReportResponse { report: vec![7; 1184], certificates: vec![9; 100] };
        let mut bytes = response.to_bytes().unwrap();
        assert_eq!(bytes.len(), 32 + 1184 + 4 + 100);
        assert_eq!(bytes[..8], [0, 0, 0, 0, 0xa0, 0x04, 0, 0]);
        for length in 0..bytes.len() {
            let cut = ReportResponse::read(&bytes[..length]).unwrap_err();
            assert!(matches!(cut, ResponseError::Read(_)), "{length}: {cut}");
        }
        bytes.push(1);
        let mut rest = &bytes[..];
        assert_eq!(ReportResponse::read(&mut rest).unwrap(), response);
        assert_eq!(rest, [1]);
    }

    #[test]
    fn a_refusal_tells_its_status_and_leaves_the_stream_in_step() {
        let mut bytes = refusal(Refusal::InvalidKey);
        bytes.extend(refusal(Refusal::InvalidParameters));
        let mut rest = &bytes[..];
        for status in [0x27, 0x16] {
            let error = ReportResponse::read(&mut rest).unwrap_err();
            assert!(matches!(error, ResponseError::Status(found) if found == status), "{error}");
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn announced_sizes_are_bounded_before_they_are_believed() {
        let large = ReportResponse { report: vec![0; REPORT_LIMIT + 1], certificates: vec![] };
        assert!(matches!(large.to_bytes(), Err(ResponseError::TooLarge { .. })));
        let mut bytes = header(SUCCESS, u32::MAX);
        let error = ReportResponse::read(&bytes[..]).unwrap_err().to_string();
        assert!(error.contains("a report of 4294967295 bytes, more than 4096"), "{error}");
        bytes = header(SUCCESS, 0);
        bytes.extend((64 * 1024 + 1_u32).to_le_bytes());
        let error = ReportResponse::read(&bytes[..]).unwrap_err().to_string();
        assert!(error.contains("a certificate table of 65537 bytes"), "{error}");
    }
}
