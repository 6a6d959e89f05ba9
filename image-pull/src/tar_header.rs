//! The fixed part of a tar entry: one block of 512 bytes (POSIX.1-2017, pax, "ustar Interchange Format";
//! GNU tar manual, "Basic Tar Format").

use crate::archive::{ArchiveError, BLOCK, refused};

/// A header block whose checksum is right.
pub(crate) struct Header([u8; BLOCK]);

impl Header {
    pub(crate) fn check(block: [u8; BLOCK]) -> Result<Self, ArchiveError> {
        let counted = |range: &[u8]| range.iter().map(|b| u64::from(*b)).sum::<u64>();
        let sum = counted(&block[..148]) + 8 * u64::from(b' ') + counted(&block[156..]);
        let header = Self(block);
        if header.number(148..156, "checksum")? != sum {
            return refused("a header's checksum is wrong");
        }
        Ok(header)
    }

    /// A block that continues a header and has no checksum of its own.
    pub(crate) fn unchecked(block: [u8; BLOCK]) -> Self {
        Self(block)
    }

    /// A GNU sparse map goes on in the next block.
    pub(crate) fn is_extended(&self) -> bool {
        self.0[482] != 0
    }

    pub(crate) fn type_flag(&self) -> u8 {
        self.0[156]
    }

    /// The format that has sparse maps in its headers.
    pub(crate) fn is_gnu(&self) -> bool {
        &self.0[257..265] == b"ustar  \0"
    }

    fn is_ustar(&self) -> bool {
        &self.0[257..263] == b"ustar\0"
    }

    pub(crate) fn size(&self) -> Result<u64, ArchiveError> {
        self.number(124..136, "size")
    }

    /// Octal digits, or a GNU base-256 number that is not negative.
    pub(crate) fn number(
        &self,
        range: std::ops::Range<usize>,
        field: &str,
    ) -> Result<u64, ArchiveError> {
        match self.signed(range, field)?.try_into() {
            Ok(number) => Ok(number),
            Err(_) => refused(format!("the header field {field} is negative")),
        }
    }

    pub(crate) fn signed(
        &self,
        range: std::ops::Range<usize>,
        field: &str,
    ) -> Result<i64, ArchiveError> {
        let bytes = &self.0[range];
        let invalid = || ArchiveError::Refused(format!("the header field {field} is not a number"));
        if bytes[0] & 0x80 != 0 {
            // GNU base-256: two's complement, the top bit of the first byte is a flag.
            let negative = bytes[0] & 0x40 != 0;
            let mut value: i128 = if negative { -1 } else { 0 };
            for (i, byte) in bytes.iter().enumerate() {
                let byte = match i {
                    0 if negative => *byte | 0x80,
                    0 => *byte & 0x7f,
                    _ => *byte,
                };
                value = (value << 8) | i128::from(byte);
            }
            return i64::try_from(value).map_err(|_| invalid());
        }
        let text = bytes.split(|b| *b == 0).next().unwrap_or_default().trim_ascii();
        text.iter().try_fold(0_i64, |value, digit| match digit {
            b'0'..=b'7' => value
                .checked_mul(8)
                .and_then(|value| value.checked_add(i64::from(digit - b'0')))
                .ok_or_else(invalid),
            _ => Err(invalid()),
        })
    }

    pub(crate) fn text(&self, range: std::ops::Range<usize>) -> &[u8] {
        self.0[range].split(|b| *b == 0).next().unwrap_or_default()
    }

    pub(crate) fn path(&self) -> Vec<u8> {
        let name = self.text(0..100);
        let prefix = if self.is_ustar() { self.text(345..500) } else { &[] };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }
}
