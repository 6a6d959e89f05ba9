//! The digest by which firmware measures a PE image (Microsoft, "Windows Authenticode Portable Executable
//! Signature Format", "Calculating the PE Image Hash"; edk2 `DxeTpm2MeasureBootLib`): everything but the
//! checksum, the place of the signatures and the signatures themselves.

use sha2::Digest;

use crate::MeasureError;
use crate::footer::{index, u16_at, u32_at};

const WHAT: &str = "the kernel as an EFI program (PE image)";

/// Sections of an image; kernels and shims have less than ten.
const SECTION_LIMIT: usize = 96;
const SECTION_SIZE: usize = 40;

/// Hashes an image's bytes with `D`.
///
/// # Errors
/// If it is no PE32+ image, or its parts lie outside of the file or over each other.
pub fn authenticode<D: Digest>(image: &[u8]) -> Result<Vec<u8>, MeasureError> {
    let mut hash = D::new();
    for piece in pieces(image)? {
        hash.update(piece);
    }
    Ok(hash.finalize().to_vec())
}

/// What is hashed, in order.
fn pieces(image: &[u8]) -> Result<Vec<&[u8]>, MeasureError> {
    let malformed = |problem: &str| MeasureError::malformed(WHAT, problem);
    let short = || malformed("cut short");
    if image.get(..2) != Some(b"MZ") {
        return Err(malformed("does not begin with \"MZ\"; give a bzImage with an EFI stub"));
    }
    let header = index(u32_at(image, 0x3c).ok_or_else(short)?);
    let coff = header.checked_add(4).ok_or_else(short)?;
    if image.get(header..coff) != Some(b"PE\0\0") {
        return Err(malformed("has no PE header; is the kernel built with CONFIG_EFI_STUB?"));
    }
    let optional = coff.checked_add(20).ok_or_else(short)?;
    let sections = usize::from(u16_at(image, coff + 2).ok_or_else(short)?);
    let optional_size = usize::from(u16_at(image, coff + 16).ok_or_else(short)?);
    if u16_at(image, optional) != Some(0x20b) {
        return Err(malformed("is not of the 64-bit form (PE32+)"));
    }
    if sections > SECTION_LIMIT {
        return Err(malformed("has more than 96 sections"));
    }
    let checksum = optional + 64;
    let directories = u32_at(image, optional + 108).ok_or_else(short)?;
    let security = optional + 112 + 4 * 8;
    let headers_size = index(u32_at(image, optional + 60).ok_or_else(short)?);
    let table = optional + optional_size;
    let table_end = table + sections * SECTION_SIZE;
    if directories < 5 || security + 8 > table || table_end > headers_size {
        return Err(malformed("its headers do not hold what they announce"));
    }
    let headers = image.get(..headers_size).ok_or_else(short)?;
    let signatures_size = index(u32_at(headers, security + 4).ok_or_else(short)?);

    let mut contents = Vec::with_capacity(sections);
    for section in headers[table..table_end].chunks_exact(SECTION_SIZE) {
        let (size, offset) = (u32_at(section, 16).unwrap_or(0), u32_at(section, 20).unwrap_or(0));
        if size != 0 {
            let (offset, size) = (index(offset), index(size));
            contents.push((offset, offset.checked_add(size).ok_or_else(short)?));
        }
    }
    contents.sort_unstable();
    let mut pieces =
        vec![&headers[..checksum], &headers[checksum + 4..security], &headers[security + 8..]];
    let mut end = headers_size;
    for (begin, until) in contents {
        // Otherwise what is hashed would depend on who counts.
        if begin != end {
            return Err(malformed("its sections do not follow each other"));
        }
        pieces.push(image.get(begin..until).ok_or_else(short)?);
        end = until;
    }
    let behind = image.len().checked_sub(signatures_size).filter(|until| *until >= end);
    let until = behind.ok_or_else(|| malformed("its signatures do not fit the file"))?;
    pieces.push(&image[end..until]);
    Ok(pieces)
}
