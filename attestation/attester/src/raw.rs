//! The ioctls of the guest drivers. All `unsafe` of this crate is here.

use std::os::fd::AsFd;

use rustix::io;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// Largest certificate table that the kernel takes from the host, in bytes (`SEV_FW_BLOB_MAX_SIZE`).
const TABLE_SIZE: usize = 0x4000;

/// `struct snp_ext_report_req` (linux/sev-guest.h).
#[repr(C)]
struct ExtendedReportRequest {
    user_data: [u8; 64],
    vmpl: u32,
    reserved: [u8; 28],
    certs_address: u64,
    certs_len: u32,
}

/// `struct snp_report_resp`: what the firmware answers.
#[repr(C)]
struct ReportResponse {
    data: [u8; 4000],
}

/// `struct snp_guest_request_ioctl`.
#[repr(C)]
struct GuestRequest {
    message_version: u8,
    request: u64,
    response: u64,
    exit_info: u64,
}

/// `struct tdx_report_req` (linux/tdx-guest.h).
#[repr(C)]
struct TdReportRequest {
    report_data: [u8; 64],
    td_report: [u8; TD_REPORT_SIZE],
}

/// Size of a TDREPORT in bytes.
pub(crate) const TD_REPORT_SIZE: usize = 1024;

const SNP_GET_EXT_REPORT: Opcode = opcode::read_write::<GuestRequest>(b'S', 2);
const TDX_CMD_GET_REPORT0: Opcode = opcode::read_write::<TdReportRequest>(b'T', 1);

/// The host's certificate table, from `/dev/sev-guest`: 16 KiB of which what follows the table is zeros.
pub(crate) fn snp_certificates(device: impl AsFd, report_data: &[u8; 64]) -> io::Result<Vec<u8>> {
    let mut table = vec![0_u8; TABLE_SIZE];
    let request = ExtendedReportRequest {
        user_data: *report_data,
        vmpl: 0,
        reserved: [0; 28],
        certs_address: table.as_mut_ptr() as u64,
        certs_len: 0x4000,
    };
    let mut response = ReportResponse { data: [0; 4000] };
    let mut call = GuestRequest {
        message_version: 1,
        request: &raw const request as u64,
        response: &raw mut response as u64,
        exit_info: 0,
    };
    // SAFETY: the opcode is that of `SNP_GET_EXT_REPORT`, which reads and writes one
    // `snp_guest_request_ioctl`. What it points to has the layout and size that the kernel expects, is not
    // used by anyone else, and lives through the call: a request that is read, a response and a table of
    // `certs_len` bytes that are written.
    unsafe { ioctl(device, Updater::<SNP_GET_EXT_REPORT, _>::new(&mut call)) }?;
    Ok(table)
}

/// The TD's report of itself, from `/dev/tdx_guest`. It comes from the TDX module, not from the host.
pub(crate) fn td_report(device: impl AsFd) -> io::Result<[u8; TD_REPORT_SIZE]> {
    let mut request = TdReportRequest { report_data: [0; 64], td_report: [0; TD_REPORT_SIZE] };
    // SAFETY: the opcode is that of `TDX_CMD_GET_REPORT0`, which reads and writes one `tdx_report_req`;
    // it lives through the call and holds no pointers.
    unsafe { ioctl(device, Updater::<TDX_CMD_GET_REPORT0, _>::new(&mut request)) }?;
    Ok(request.td_report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_and_numbers_are_those_of_the_kernels_headers() {
        assert_eq!(size_of::<ExtendedReportRequest>(), 112);
        assert_eq!(size_of::<GuestRequest>(), 32);
        assert_eq!(size_of::<TdReportRequest>(), 1088);
        assert_eq!(SNP_GET_EXT_REPORT, 0xc020_5302);
        assert_eq!(TDX_CMD_GET_REPORT0, 0xc440_5401);
    }

    #[test]
    fn a_file_that_is_no_such_device_is_an_error() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(snp_certificates(&file, &[0; 64]).unwrap_err(), io::Errno::NOTTY);
        assert_eq!(td_report(&file).unwrap_err(), io::Errno::NOTTY);
    }
}
