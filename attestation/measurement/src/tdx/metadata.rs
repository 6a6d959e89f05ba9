//! Sections of a TDVF image (Intel, "TDX Virtual Firmware Design Guide", "TDVF descriptor"), with the
//! checks that QEMU makes (`hw/i386/tdvf.c`) and stricter ones.

use crate::MeasureError;
use crate::footer::{Covered, Firmware, guid, index, u32_at, u64_at};

const WHAT: &str = "the firmware's TDX metadata";
const METADATA: [u8; 16] = guid(0xe47a_6535, 0x984a, 0x4798, 0x865e_4685_a7bf_8ec2);

const MR_EXTEND: u32 = 1;

/// What is measured of a section beyond its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Contents<'a> {
    /// Nothing.
    Unmeasured,
    /// Zeros.
    Zeros,
    /// These bytes of the image.
    Image(&'a [u8]),
}

/// Pages that are added to the guest at its launch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Section<'a> {
    pub(super) address: u64,
    pub(super) size: u64,
    pub(super) contents: Contents<'a>,
}

/// All of them.
pub(super) struct Metadata<'a> {
    pub(super) sections: Vec<Section<'a>>,
}

impl<'a> Metadata<'a> {
    pub(super) fn parse(firmware: &Firmware<'a>) -> Result<Metadata<'a>, MeasureError> {
        let missing = |what| MeasureError::Missing {
            what,
            remedy: "give a TDVF image, such as OVMF's for Intel TDX",
        };
        let malformed = |problem: String| MeasureError::malformed(WHAT, problem);
        let found = firmware.metadata(WHAT, METADATA, b"TDVF", 32)?;
        let mut covered = Covered::default();
        let mut sections = Vec::new();
        let (mut boot_volume, mut hand_off) = (false, false);
        for bytes in found.ok_or_else(|| missing("metadata for TDX"))? {
            let narrow = |offset| u32_at(bytes, offset).unwrap_or(0);
            let wide = |offset| u64_at(bytes, offset).unwrap_or(0);
            let (offset, length) = (index(narrow(0)), narrow(4));
            let (address, size) = (wide(8), wide(16));
            let (kind, attributes) = (narrow(24), narrow(28));
            let number = sections.len();
            if attributes & !MR_EXTEND != 0 {
                let problem = format!("section {number} has unknown attributes {attributes:#x}");
                return Err(malformed(problem));
            }
            let measured = attributes & MR_EXTEND != 0;
            covered.add(address, size).map_err(malformed)?;
            let contents = match kind {
                // Boot volume and configuration volume: QEMU adds as many bytes of the image as the
                // section has memory.
                0 | 1 => {
                    boot_volume |= kind == 0;
                    let end = offset.checked_add(index(length));
                    let bytes = end.and_then(|end| firmware.image().get(offset..end));
                    let bytes = bytes.filter(|_| length != 0 && u64::from(length) == size);
                    let bytes = bytes.ok_or_else(|| {
                        malformed(format!("section {number}: its bytes do not fill its memory"))
                    })?;
                    if measured { Contents::Image(bytes) } else { Contents::Unmeasured }
                }
                // The list of hand-off blocks depends on the guest's memory.
                2 if measured => {
                    let problem =
                        "the hand-off blocks are to be measured, which nobody can predict";
                    return Err(malformed(problem.to_owned()));
                }
                2 | 3 if length != 0 => {
                    return Err(malformed(format!(
                        "section {number} has bytes and must have none"
                    )));
                }
                2 | 3 => {
                    hand_off |= kind == 2;
                    if measured { Contents::Zeros } else { Contents::Unmeasured }
                }
                other => {
                    let problem = format!("section {number} is of kind {other}; QEMU adds 0 to 3");
                    return Err(malformed(problem));
                }
            };
            sections.push(Section { address, size, contents });
        }
        if !boot_volume {
            return Err(missing("boot volume among its TDX sections"));
        }
        if !hand_off {
            return Err(missing("place for hand-off blocks among its TDX sections"));
        }
        Ok(Metadata { sections })
    }
}
