//! The table at the end of OVMF images (edk2, `OvmfPkg/ResetVector`, "GUID-ed structures"), and the
//! metadata that it points to.
//!
//! The table ends 32 bytes before the image does and is read backwards: each entry is its data, then its
//! length with these two fields as 16 bits, then its GUID. The last one, read first, has the length of
//! the whole table.

use crate::{FIRMWARE_LIMIT, MeasureError, PAGE_SIZE};

/// Entries of a table; OVMF has less than ten.
const ENTRY_LIMIT: usize = 64;
/// Sections of a metadata structure; OVMF has less than ten.
const SECTION_LIMIT: usize = 64;
/// What all sections may cover together, in bytes.
const COVERED_LIMIT: u64 = 64 * 1024 * 1024;
const FOUR_GIB: u64 = 1 << 32;

const BEHIND_TABLE: usize = 32;
const GUID_SIZE: usize = 16;
const HEADER_SIZE: usize = GUID_SIZE + 2;
const WHAT: &str = "the firmware's table of GUIDs";
const FOOTER: [u8; 16] = guid(0x96b5_82de, 0x1fb2, 0x45f7, 0xbaea_a366_c55a_082d);

/// A GUID as firmware holds it: the first three groups little-endian.
pub(crate) const fn guid(a: u32, b: u16, c: u16, d: u64) -> [u8; GUID_SIZE] {
    let ([a0, a1, a2, a3], [b0, b1], [c0, c1]) =
        (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
    let [d0, d1, d2, d3, d4, d5, d6, d7] = d.to_be_bytes();
    [a0, a1, a2, a3, b0, b1, c0, c1, d0, d1, d2, d3, d4, d5, d6, d7]
}

pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(offset..offset.checked_add(2)?)?.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(offset..offset.checked_add(4)?)?.try_into().ok()?))
}

pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(offset..offset.checked_add(8)?)?.try_into().ok()?))
}

/// An offset or size as an index; what does not fit is out of every image's range.
pub(crate) fn index(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// A firmware image with a sound table.
pub(crate) struct Firmware<'a> {
    image: &'a [u8],
    entries: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> Firmware<'a> {
    pub(crate) fn parse(image: &'a [u8]) -> Result<Firmware<'a>, MeasureError> {
        let size = image.len();
        if size == 0 || size > FIRMWARE_LIMIT || !size.is_multiple_of(PAGE_SIZE) {
            return Err(MeasureError::FirmwareSize(size));
        }
        // A page at least: none of these can run out.
        let footer_end = size - BEHIND_TABLE;
        let table_end = footer_end - HEADER_SIZE;
        if image[footer_end - GUID_SIZE..footer_end] != FOOTER {
            return Err(MeasureError::Missing {
                what: "table of GUIDs at its end",
                remedy: "give an OVMF image for confidential guests, code and variables in one file",
            });
        }
        let malformed = |problem: String| MeasureError::malformed(WHAT, problem);
        let length = usize::from(u16_at(image, table_end).unwrap_or(0));
        let begin = footer_end
            .checked_sub(length)
            .filter(|_| length >= HEADER_SIZE)
            .ok_or_else(|| malformed(format!("its length of {length} bytes is impossible")))?;
        let mut table = &image[begin..table_end];
        let mut entries = Vec::new();
        while !table.is_empty() {
            if entries.len() == ENTRY_LIMIT {
                return Err(malformed(format!("more than {ENTRY_LIMIT} entries")));
            }
            let split = table.len().checked_sub(GUID_SIZE).and_then(|at| {
                let length = usize::from(u16_at(table, at.checked_sub(2)?)?);
                let data = table.len().checked_sub(length)?..at.checked_sub(2)?;
                (length >= HEADER_SIZE).then_some((data, at))
            });
            let (data, at) = split.ok_or_else(|| {
                malformed(format!("entry {} has an impossible length", entries.len()))
            })?;
            entries.push((&table[at..], &table[data.clone()]));
            table = &table[..data.start];
        }
        Ok(Firmware { image, entries })
    }

    pub(crate) const fn image(&self) -> &'a [u8] {
        self.image
    }

    /// Where the image begins in the guest: it ends at 4 GiB.
    pub(crate) const fn address(&self) -> u64 {
        FOUR_GIB - self.image.len() as u64
    }

    /// Data of the first entry with this GUID, read from the end as launchers do.
    pub(crate) fn entry(&self, guid: [u8; GUID_SIZE]) -> Option<&'a [u8]> {
        self.entries.iter().find_map(|(found, data)| (**found == guid).then_some(*data))
    }

    /// Sections of the metadata that an entry points to: signature, length of all, version 1, number
    /// of sections, sections of `section_size` bytes each. `None` without such an entry.
    pub(crate) fn metadata(
        &self,
        what: &'static str,
        guid: [u8; GUID_SIZE],
        signature: &[u8; 4],
        section_size: usize,
    ) -> Result<Option<Vec<&'a [u8]>>, MeasureError> {
        const METADATA_HEADER_SIZE: usize = 16;
        let malformed = |problem: &str| MeasureError::malformed(what, problem);
        let Some(entry) = self.entry(guid) else { return Ok(None) };
        let outside = || malformed("lies outside of the image");
        let before_end = u32_at(entry, 0).ok_or_else(|| malformed("its entry is too short"))?;
        let begin = self.image.len().checked_sub(index(before_end)).ok_or_else(outside)?;
        let metadata = &self.image[begin..];
        let field = |offset| u32_at(metadata, offset).ok_or_else(outside);
        if metadata.get(..4) != Some(signature) {
            return Err(malformed("has another signature"));
        }
        let (length, version, count) = (index(field(4)?), field(8)?, index(field(12)?));
        if version != 1 {
            return Err(malformed("is of another version than 1"));
        }
        if count > SECTION_LIMIT {
            return Err(malformed("has more than 64 sections"));
        }
        if length != METADATA_HEADER_SIZE + count * section_size {
            return Err(malformed("its length does not fit its number of sections"));
        }
        let sections = metadata.get(METADATA_HEADER_SIZE..length).ok_or_else(outside)?;
        Ok(Some(sections.chunks_exact(section_size).collect()))
    }
}

/// Places in the guest's memory that a launcher fills, checked as it checks them.
#[derive(Default)]
pub(crate) struct Covered(Vec<(u64, u64)>);

impl Covered {
    /// Adds a range of whole pages.
    pub(crate) fn add(&mut self, address: u64, size: u64) -> Result<(), String> {
        let page = PAGE_SIZE as u64;
        let end = address.checked_add(size).filter(|end| *end <= FOUR_GIB);
        let Some(end) = end.filter(|_| address.is_multiple_of(page) && size.is_multiple_of(page))
        else {
            return Err(format!("{size:#x} bytes at {address:#x} are no pages below 4 GiB"));
        };
        if self.0.iter().any(|(begin, other)| address < *other && *begin < end) {
            return Err(format!("{size:#x} bytes at {address:#x} are covered twice"));
        }
        self.0.push((address, end));
        if self.0.iter().map(|(begin, end)| end - begin).sum::<u64>() > COVERED_LIMIT {
            return Err(format!("the sections cover more than {COVERED_LIMIT} bytes"));
        }
        Ok(())
    }
}
