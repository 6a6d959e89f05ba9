//! Firmware whose variable store is emptied, so that it starts the guest's kernel.
//!
//! Debian builds OVMF for TDX with the keys of Secure Boot in its variable store, Microsoft's. By those no
//! kernel of Debian's starts directly, and none through a signed boot loader either, as long as it carries no
//! revocation data (`.sbat`). A confidential guest needs no such judge: what is booted is measured, and its
//! owner compares. Without keys the firmware measures and starts it. The code stays what it was, and so does
//! MRTD, in which the variable store has no part.

use std::ops::Range;

/// `EFI_SYSTEM_NV_DATA_FV_GUID` fff12b8d-7696-4c8b-a985-2747075b4f50 (edk2, `SystemNvDataGuid.h`), as it
/// is stored.
const NV_DATA: [u8; 16] = [
    0x8d, 0x2b, 0xf1, 0xff, 0x96, 0x76, 0x8b, 0x4c, 0xa9, 0x85, 0x27, 0x47, 0x07, 0x5b, 0x4f, 0x50,
];
/// `EFI_AUTHENTICATED_VARIABLE_GUID` aaf32c78-947b-439a-a180-2e144ec37792 (edk2,
/// `AuthenticatedVariableFormat.h`).
const VARIABLES: [u8; 16] = [
    0x78, 0x2c, 0xf3, 0xaa, 0x7b, 0x94, 0x9a, 0x43, 0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92,
];
/// `EDKII_WORKING_BLOCK_SIGNATURE_GUID` 9e58292b-7c68-497d-a0ce-6500fd9f1b95 (edk2,
/// `SystemNvDataGuid.h`).
const WORKING_BLOCK: [u8; 16] = [
    0x2b, 0x29, 0x58, 0x9e, 0x68, 0x7c, 0x7d, 0x49, 0xa0, 0xce, 0x65, 0x00, 0xfd, 0x9f, 0x1b, 0x95,
];

/// Size of a variable store's header: GUID, size, format, state, reserved (edk2, `VariableFormat.h`).
const STORE_HEADER: usize = 28;
/// Size of the header of the working block of fault-tolerant writes.
const WORKING_HEADER: usize = 32;
/// What flash memory holds where nothing was written.
const ERASED: u8 = 0xff;

/// Why an image is not what is expected, and was left alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the firmware does not begin with a variable store as edk2 makes it: {0}")]
pub struct FirmwareError(&'static str);

/// The image with all variables erased; the rest is the same.
///
/// # Errors
/// If the image does not begin with a firmware volume of variables, or the volume holds anything beside them.
pub fn without_variables(image: &[u8]) -> Result<Vec<u8>, FirmwareError> {
    let variables = variables(image)?;
    let mut emptied = image.to_vec();
    emptied[variables].fill(ERASED);
    Ok(emptied)
}

/// Where the variables are (UEFI Platform Initialization Specification 1.8, volume 3, 3.2.1, "Firmware Volume
/// Header").
fn variables(image: &[u8]) -> Result<Range<usize>, FirmwareError> {
    let wrong = |what| Err(FirmwareError(what));
    let header = Bytes(image);
    if header.at(0x10, &NV_DATA).is_none() || header.at(0x28, b"_FVH").is_none() {
        return wrong("no firmware volume of variables is there");
    }
    let (Some(volume), Some(header_size)) = (header.u64(0x20), header.u16(0x30)) else {
        return wrong("it ends within its header");
    };
    let Some(volume) = image.get(..volume) else {
        return wrong("the volume is longer than the image");
    };
    if volume.get(..header_size).is_none_or(|header| !is_sum_zero(header)) {
        return wrong("the volume's header has another checksum");
    }
    let Some(store) = volume.get(header_size..) else {
        return wrong("the volume's header is longer than the volume");
    };
    if Bytes(store).at(0, &VARIABLES).is_none() {
        return wrong("the volume holds no authenticated variables");
    }
    match Bytes(store).u32(0x10) {
        Some(size) if (STORE_HEADER..=store.len()).contains(&size) => {
            if !is_unused(&store[size..]) {
                return wrong("a write to it was not finished");
            }
            Ok(header_size + STORE_HEADER..header_size + size)
        }
        _ => wrong("its size does not fit"),
    }
}

/// Whether a firmware volume's header adds up to zero, in units of two bytes.
fn is_sum_zero(header: &[u8]) -> bool {
    let words = header.chunks_exact(2).map(|word| u16::from_le_bytes([word[0], word[1]]));
    header.len().is_multiple_of(2) && words.fold(0, u16::wrapping_add) == 0
}

/// Whether what follows the variables is the log and spare space of fault-tolerant writes, without a write
/// in it: that would bring variables back.
fn is_unused(rest: &[u8]) -> bool {
    let begin = rest.iter().position(|&byte| byte != ERASED).unwrap_or(rest.len());
    let (_, used) = rest.split_at(begin);
    used.is_empty()
        || used.starts_with(&WORKING_BLOCK)
            && used.iter().skip(WORKING_HEADER).all(|&byte| byte == ERASED)
}

/// Little-endian numbers out of bytes that may be too few.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn take<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    fn at(&self, at: usize, expected: &[u8]) -> Option<()> {
        (self.0.get(at..)?.get(..expected.len())? == expected).then_some(())
    }

    fn u16(&self, at: usize) -> Option<usize> {
        self.take(at).map(|bytes| u16::from_le_bytes(bytes).into())
    }

    fn u32(&self, at: usize) -> Option<usize> {
        self.take(at).and_then(|bytes| u32::from_le_bytes(bytes).try_into().ok())
    }

    fn u64(&self, at: usize) -> Option<usize> {
        self.take(at).and_then(|bytes| u64::from_le_bytes(bytes).try_into().ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORE: usize = 0x200;
    const VOLUME: usize = 0x400;

    /// An image of a variable store with some variables, its log, and code.
    fn image() -> Vec<u8> {
        let mut image = vec![ERASED; VOLUME];
        image[..0x48].fill(0);
        image[0x10..0x20].copy_from_slice(&NV_DATA);
        image[0x20..0x28].copy_from_slice(&(VOLUME as u64).to_le_bytes());
        image[0x28..0x2c].copy_from_slice(b"_FVH");
        image[0x30..0x32].copy_from_slice(&0x48_u16.to_le_bytes());
        let words = image[..0x48].chunks_exact(2);
        let sum = words.fold(0_u16, |sum, w| sum.wrapping_add(u16::from_le_bytes([w[0], w[1]])));
        image[0x32..0x34].copy_from_slice(&sum.wrapping_neg().to_le_bytes());
        image[0x48..0x58].copy_from_slice(&VARIABLES);
        image[0x58..0x5c].copy_from_slice(&u32::try_from(STORE - 0x48).unwrap().to_le_bytes());
        image[0x5c..0x64].copy_from_slice(&[0x5a, 0xfe, 0, 0, 0, 0, 0, 0]);
        image[0x64..0x164].fill(0x55);
        image[0x300..0x310].copy_from_slice(&WORKING_BLOCK);
        image[0x310..0x320].fill(1);
        image.extend([0xcc; 64]);
        image
    }

    #[test]
    fn variables_are_erased_and_nothing_else() {
        let image = image();
        let emptied = without_variables(&image).unwrap();
        assert_eq!(emptied.len(), image.len());
        assert_eq!(emptied[..0x64], image[..0x64]);
        assert!(emptied[0x64..STORE].iter().all(|&byte| byte == ERASED));
        assert_eq!(emptied[STORE..], image[STORE..]);
        assert_eq!(without_variables(&emptied).unwrap(), emptied);
    }

    #[test]
    fn anything_else_is_left_alone() {
        let refused = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut image = image();
            change(&mut image);
            without_variables(&image).unwrap_err().to_string()
        };
        assert!(refused(&|image| image[0x28] = b'X').contains("no firmware volume"));
        assert!(refused(&|image| image[0x10] = 0).contains("no firmware volume"));
        assert!(refused(&|image| image[0x27] = 1).contains("longer than the image"));
        assert!(refused(&|image| image[0x34] ^= 1).contains("checksum"));
        assert!(refused(&|image| image[0x48] ^= 1).contains("no authenticated variables"));
        assert!(refused(&|image| image[0x5b] = 1).contains("size does not fit"));
        assert!(refused(&|image| image[0x58..0x5a].fill(0)).contains("size does not fit"));
        assert!(refused(&|image| image[0x59] = 0).contains("not finished"));
        assert!(refused(&|image| image[VOLUME - 1] = 0).contains("not finished"));
        assert!(refused(&|image| image[0x300] = 0).contains("not finished"));
        for length in 0..VOLUME {
            refused(&|image| image.truncate(length));
        }
        assert!(without_variables(b"").is_err());
    }
}
