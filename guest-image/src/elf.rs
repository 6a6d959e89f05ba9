//! The little of ELF that is needed here: 64-bit little-endian x86-64 files, their segments, notes
//! and sections. Every offset is checked against the file.

use std::ops::Range;

const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const MACHINE_X86_64: u16 = 62;
const TYPE_RELOCATABLE: u16 = 1;
const SEGMENT_INTERPRETER: u32 = 3;
const SEGMENT_NOTE: u32 = 4;

/// Why a file is not the ELF that is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// Something else.
    #[error("it is no 64-bit x86-64 ELF file")]
    Kind,
    /// A header points outside.
    #[error("it is cut short or damaged: a header points outside the file")]
    Bounds,
}

/// An ELF file in memory.
pub(crate) struct Elf<'a> {
    bytes: &'a [u8],
}

struct Segment {
    kind: u32,
    range: Range<usize>,
}

impl<'a> Elf<'a> {
    /// Checks the file's kind.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, ElfError> {
        let elf = Self { bytes };
        let kind = bytes.get(..6).ok_or(ElfError::Kind)?;
        if kind[..4] != *b"\x7fELF" || kind[4..] != [CLASS_64, LITTLE_ENDIAN] {
            return Err(ElfError::Kind);
        }
        if elf.u16(18)? != MACHINE_X86_64 {
            return Err(ElfError::Kind);
        }
        Ok(elf)
    }

    /// Whether it is an object file, as kernel modules are.
    pub(crate) fn is_relocatable(&self) -> Result<bool, ElfError> {
        Ok(self.u16(16)? == TYPE_RELOCATABLE)
    }

    /// Whether it names a dynamic loader: such a program does not run without one.
    pub(crate) fn needs_loader(&self) -> Result<bool, ElfError> {
        Ok(self.segments()?.iter().any(|segment| segment.kind == SEGMENT_INTERPRETER))
    }

    /// Whether it carries a note of this owner and type.
    pub(crate) fn has_note(&self, owner: &[u8], kind: u32) -> Result<bool, ElfError> {
        for segment in self.segments()?.iter().filter(|segment| segment.kind == SEGMENT_NOTE) {
            let notes = Elf { bytes: &self.bytes[segment.range.clone()] };
            let mut at = 0;
            while at + 12 <= notes.bytes.len() {
                let name_size = to_usize(notes.u32(at)?.into())?;
                let body_size = to_usize(notes.u32(at + 4)?.into())?;
                let name = notes.slice(at + 12, name_size)?;
                if notes.u32(at + 8)? == kind && name.strip_suffix(b"\0") == Some(owner) {
                    return Ok(true);
                }
                at += 12 + name_size.next_multiple_of(4) + body_size.next_multiple_of(4);
            }
        }
        Ok(false)
    }

    /// The bytes of the first section of this name.
    pub(crate) fn section(&self, wanted: &str) -> Result<Option<&'a [u8]>, ElfError> {
        let table = to_usize(self.u64(40)?)?;
        let entry_size = usize::from(self.u16(58)?);
        let count = usize::from(self.u16(60)?);
        let header = |index: usize| {
            let at = table + index * entry_size;
            self.slice(at, entry_size).map(|_| at)
        };
        let content = |at: usize| -> Result<&'a [u8], ElfError> {
            self.slice(to_usize(self.u64(at + 24)?)?, to_usize(self.u64(at + 32)?)?)
        };
        let names = content(header(self.u16(62)?.into())?)?;
        for index in 0..count {
            let at = header(index)?;
            let name = names.get(to_usize(self.u32(at)?.into())?..).ok_or(ElfError::Bounds)?;
            if name.split(|byte| *byte == 0).next() == Some(wanted.as_bytes()) {
                return content(at).map(Some);
            }
        }
        Ok(None)
    }

    fn segments(&self) -> Result<Vec<Segment>, ElfError> {
        let table = to_usize(self.u64(32)?)?;
        let entry_size = usize::from(self.u16(54)?);
        let count = usize::from(self.u16(56)?);
        (0..count)
            .map(|index| {
                let at = table + index * entry_size;
                self.slice(at, entry_size)?;
                let start = to_usize(self.u64(at + 8)?)?;
                let size = to_usize(self.u64(at + 32)?)?;
                self.slice(start, size)?;
                Ok(Segment { kind: self.u32(at)?, range: start..start + size })
            })
            .collect()
    }

    fn slice(&self, start: usize, size: usize) -> Result<&'a [u8], ElfError> {
        let end = start.checked_add(size).ok_or(ElfError::Bounds)?;
        self.bytes.get(start..end).ok_or(ElfError::Bounds)
    }

    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], ElfError> {
        self.slice(at, N)?.try_into().map_err(|_| ElfError::Bounds)
    }

    fn u16(&self, at: usize) -> Result<u16, ElfError> {
        self.array(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Result<u32, ElfError> {
        self.array(at).map(u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> Result<u64, ElfError> {
        self.array(at).map(u64::from_le_bytes)
    }
}

fn to_usize(value: u64) -> Result<usize, ElfError> {
    // Far below the limit, so that sums of a few such numbers do not overflow.
    usize::try_from(value).ok().filter(|v| *v <= usize::MAX / 4).ok_or(ElfError::Bounds)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A small ELF file: one segment of this kind and content, and one `.modinfo` section.
    pub(crate) fn elf_file(segment: u32, content: &[u8], modinfo: &[u8]) -> Vec<u8> {
        const NAMES: &[u8] = b"\0.modinfo\0";
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(64, 0);
        file[18..20].copy_from_slice(&MACHINE_X86_64.to_le_bytes());
        let put = |file: &mut Vec<u8>, bytes: &[u8]| {
            let at = file.len() as u64;
            file.extend(bytes);
            (at, bytes.len() as u64)
        };
        let (content_at, content_size) = put(&mut file, content);
        let (modinfo_at, modinfo_size) = put(&mut file, modinfo);
        let (names_at, names_size) = put(&mut file, NAMES);

        let mut program = [0; 56];
        program[..4].copy_from_slice(&segment.to_le_bytes());
        program[8..16].copy_from_slice(&content_at.to_le_bytes());
        program[32..40].copy_from_slice(&content_size.to_le_bytes());
        let (program_at, _) = put(&mut file, &program);

        let section = |name: u32, at: u64, size: u64| {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[24..32].copy_from_slice(&at.to_le_bytes());
            header[32..40].copy_from_slice(&size.to_le_bytes());
            header
        };
        let (sections_at, _) = put(&mut file, &section(1, modinfo_at, modinfo_size));
        put(&mut file, &section(0, names_at, names_size));

        file[32..40].copy_from_slice(&program_at.to_le_bytes());
        file[40..48].copy_from_slice(&sections_at.to_le_bytes());
        file[54..64].copy_from_slice(&[56, 0, 1, 0, 64, 0, 2, 0, 1, 0]);
        file
    }

    #[test]
    fn segments_notes_and_sections_are_found() {
        let note = b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0\x78\x56\x34\x12";
        let file = elf_file(SEGMENT_NOTE, note, b"depends=a,b\0");
        let elf = Elf::parse(&file).unwrap();
        assert!(elf.has_note(b"Xen", 18).unwrap());
        assert!(!elf.has_note(b"Xen", 17).unwrap());
        assert!(!elf.has_note(b"GNU", 18).unwrap());
        assert!(!elf.needs_loader().unwrap());
        assert_eq!(elf.section(".modinfo").unwrap(), Some(&b"depends=a,b\0"[..]));
        assert_eq!(elf.section(".text").unwrap(), None);

        let file = elf_file(SEGMENT_INTERPRETER, b"/lib64/ld.so\0", b"");
        assert!(Elf::parse(&file).unwrap().needs_loader().unwrap());
    }

    #[test]
    fn damaged_files_are_errors_at_every_length_and_byte() {
        let note = b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0\x78\x56\x34\x12";
        let whole = elf_file(SEGMENT_NOTE, note, b"depends=\0");
        let ask = |bytes: &[u8]| -> Result<(), ElfError> {
            let elf = Elf::parse(bytes)?;
            elf.needs_loader()?;
            elf.has_note(b"Xen", 18)?;
            elf.section(".modinfo").map(|_| ())
        };
        ask(&whole).unwrap();
        for length in 0..whole.len() {
            ask(&whole[..length]).unwrap_err();
        }
        for at in 0..whole.len() {
            for value in [0, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                let _ = ask(&bytes);
            }
        }
    }
}
