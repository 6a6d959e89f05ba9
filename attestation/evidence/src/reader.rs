//! Reads little-endian fields in order; every read is checked against what is left.

use crate::EvidenceError;

pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// `what` names the structure in errors.
    pub(crate) const fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0, what }
    }

    pub(crate) const fn position(&self) -> usize {
        self.position
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        &self.bytes[self.position..]
    }

    pub(crate) fn slice(&mut self, length: usize) -> Result<&'a [u8], EvidenceError> {
        let piece = self
            .rest()
            .get(..length)
            .ok_or(EvidenceError::Truncated { what: self.what, offset: self.bytes.len() })?;
        self.position += length;
        Ok(piece)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], EvidenceError> {
        let mut array = [0; N];
        array.copy_from_slice(self.slice(N)?);
        Ok(array)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, EvidenceError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, EvidenceError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, EvidenceError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A `u32` that counts bytes or entries.
    pub(crate) fn length(&mut self) -> Result<usize, EvidenceError> {
        Ok(usize::try_from(self.u32()?).unwrap_or(usize::MAX))
    }

    /// Passes over a reserved field, which must be zero.
    pub(crate) fn reserved(&mut self, length: usize) -> Result<(), EvidenceError> {
        let offset = self.position;
        if self.slice(length)?.iter().any(|byte| *byte != 0) {
            return Err(EvidenceError::Reserved { what: self.what, offset });
        }
        Ok(())
    }
}
