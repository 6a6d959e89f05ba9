//! What a TDX guest measures that QEMU (10.1 or later) starts with TDVF (edk2, `OvmfPkg/IntelTdx`).
//!
//! MRTD covers the firmware alone, whatever the number of processors and the size of memory. The
//! run-time registers are extended by firmware and kernel; `rtmr.rs` says by which rules.

mod metadata;
mod rtmr;

use sha2::{Digest as _, Sha384};

use crate::footer::Firmware;
use crate::{MeasureError, PAGE_SIZE};
use metadata::{Contents, Metadata};

pub use rtmr::{Event, Prediction};

/// What a TDX guest is launched with, as far as it is measured.
#[derive(Debug, Clone, Copy)]
pub struct TdxInputs<'a> {
    /// TDVF, the whole file.
    pub firmware: &'a [u8],
    /// The kernel's bzImage, as the file is.
    pub kernel: &'a [u8],
    /// The initrd.
    pub initrd: &'a [u8],
    /// Kernel command line as it is configured.
    pub command_line: &'a str,
}

/// What a guest's quote has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdxMeasurement {
    /// MRTD.
    pub mr_td: [u8; 48],
    /// RTMR0 to RTMR3, as they are when the guest's own programs begin.
    pub rtmr: [Prediction; 4],
}

/// Measures a launch.
///
/// # Errors
/// If the firmware is no TDVF, or the kernel no EFI program.
pub fn measure(inputs: &TdxInputs<'_>) -> Result<TdxMeasurement, MeasureError> {
    Ok(TdxMeasurement { mr_td: mr_td(inputs.firmware)?, rtmr: rtmr::predict(inputs)? })
}

/// MRTD of a guest with this firmware: `TDH.MEM.PAGE.ADD` for every page of every section in order,
/// each followed by `TDH.MR.EXTEND` of its 256-byte pieces where the section asks for it (Intel, "TDX
/// Module Base Architecture Specification", "MRTD"; Linux, `tdx_gmem_post_populate`; QEMU,
/// `tdx_init_fw_mem_region`).
///
/// # Errors
/// If it is no TDVF, or one that QEMU would not launch.
pub fn mr_td(firmware: &[u8]) -> Result<[u8; 48], MeasureError> {
    const PIECE: usize = 256;
    let firmware = Firmware::parse(firmware)?;
    let nothing = [0; PAGE_SIZE];
    let mut hash = Sha384::new();
    let mut operation = |name: &[u8], address: u64, contents: &[u8]| {
        let mut block = [0; 128];
        block[..name.len()].copy_from_slice(name);
        block[16..24].copy_from_slice(&address.to_le_bytes());
        hash.update(block);
        hash.update(contents);
    };
    for section in Metadata::parse(&firmware)?.sections {
        let pages = (section.address..section.address + section.size).step_by(PAGE_SIZE);
        for (number, address) in pages.enumerate() {
            operation(b"MEM.PAGE.ADD", address, &[]);
            let page = match section.contents {
                Contents::Unmeasured => continue,
                Contents::Zeros => &nothing,
                Contents::Image(bytes) => &bytes[number * PAGE_SIZE..][..PAGE_SIZE],
            };
            for (piece, address) in page.chunks(PIECE).zip((address..).step_by(PIECE)) {
                operation(b"MR.EXTEND", address, piece);
            }
        }
    }
    Ok(hash.finalize().into())
}
