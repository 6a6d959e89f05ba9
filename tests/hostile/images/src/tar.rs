//! Writes tar archives byte by byte, however wrong: no library's builder makes most of what is here.

use std::ops::Range;

/// Size of a header, and what content is padded to, in bytes.
pub const BLOCK: usize = 512;
/// Modification time of entries that say nothing else, in seconds since 1970.
pub const MTIME: u64 = 1_000_000_000;

/// Fields of a ustar header (POSIX.1-2017, pax, "ustar Interchange Format").
pub mod field {
    use std::ops::Range;

    /// Path, or its last part.
    pub const NAME: Range<usize> = 0..100;
    /// Permission bits.
    pub const MODE: Range<usize> = 100..108;
    /// Owner.
    pub const UID: Range<usize> = 108..116;
    /// Group.
    pub const GID: Range<usize> = 116..124;
    /// Bytes of content.
    pub const SIZE: Range<usize> = 124..136;
    /// Modification time.
    pub const MTIME: Range<usize> = 136..148;
    /// Sum of the header's bytes.
    pub const CHECKSUM: Range<usize> = 148..156;
    /// Type of the entry.
    pub const KIND: usize = 156;
    /// Target of a link.
    pub const LINK: Range<usize> = 157..257;
    /// Magic and version.
    pub const MAGIC: Range<usize> = 257..265;
    /// Major number of a device.
    pub const MAJOR: Range<usize> = 329..337;
    /// Minor number of a device.
    pub const MINOR: Range<usize> = 337..345;
    /// First part of a long path.
    pub const PREFIX: Range<usize> = 345..500;
}

/// One header block.
#[derive(Clone)]
pub struct Header {
    block: [u8; BLOCK],
    /// Added to the right checksum.
    wrong_by: i32,
}

impl Header {
    fn new(kind: u8, name: &[u8], link: &[u8], size: u64) -> Self {
        let mut header = Self { block: [0; BLOCK], wrong_by: 0 };
        header.text(field::NAME, name);
        header.text(field::LINK, link);
        header.block[field::KIND] = kind;
        header.text(field::MAGIC, b"ustar\x0000");
        header.octal(field::MODE, if kind == b'5' { 0o755 } else { 0o644 });
        header.octal(field::UID, 0);
        header.octal(field::GID, 0);
        header.octal(field::SIZE, size);
        header.octal(field::MTIME, MTIME);
        header
    }

    /// Puts bytes into a field, cut off at its end, and zeros behind them.
    pub fn text(&mut self, field: Range<usize>, text: &[u8]) -> &mut Self {
        let field = &mut self.block[field];
        let len = text.len().min(field.len());
        field.fill(0);
        field[..len].copy_from_slice(&text[..len]);
        self
    }

    /// Octal digits and a NUL, as most writers have them.
    pub fn octal(&mut self, field: Range<usize>, value: u64) -> &mut Self {
        let width = field.len() - 1;
        self.text(field, format!("{value:0width$o}").as_bytes())
    }

    /// GNU's form of numbers that octal digits have no room for: two's complement, first bit set.
    pub fn base256(&mut self, field: Range<usize>, value: i128) -> &mut Self {
        let bytes = value.to_be_bytes();
        let field = &mut self.block[field];
        field.fill(if value < 0 { 0xff } else { 0 });
        let len = field.len().min(bytes.len());
        let start = field.len() - len;
        field[start..].copy_from_slice(&bytes[bytes.len() - len..]);
        field[0] |= 0x80;
        self
    }

    /// Makes the checksum wrong by that much.
    pub fn wrong_checksum(&mut self, by: i32) -> &mut Self {
        self.wrong_by = by;
        self
    }

    fn seal(mut self) -> [u8; BLOCK] {
        self.block[field::CHECKSUM].fill(b' ');
        let sum: i32 = self.block.iter().map(|byte| i32::from(*byte)).sum();
        let text = format!("{:06o}\0 ", sum + self.wrong_by);
        self.block[field::CHECKSUM].copy_from_slice(text.as_bytes());
        self.block
    }
}

/// An archive in the making. Nothing ends it but [`Tar::end`].
#[derive(Clone, Default)]
pub struct Tar(Vec<u8>);

impl Tar {
    /// An archive with nothing in it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Any entry, with its header changed before it is sealed.
    #[must_use]
    pub fn raw(
        mut self,
        kind: u8,
        name: impl AsRef<[u8]>,
        link: impl AsRef<[u8]>,
        content: impl AsRef<[u8]>,
        change: impl FnOnce(&mut Header),
    ) -> Self {
        let content = content.as_ref();
        let mut header = Header::new(kind, name.as_ref(), link.as_ref(), content.len() as u64);
        change(&mut header);
        self.0.extend_from_slice(&header.seal());
        self.0.extend_from_slice(content);
        self.pad()
    }

    /// A regular file.
    #[must_use]
    pub fn file(self, name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        self.raw(b'0', name, "", content, |_| {})
    }

    /// A directory of mode 0755.
    #[must_use]
    pub fn dir(self, name: impl AsRef<[u8]>) -> Self {
        self.raw(b'5', name, "", "", |_| {})
    }

    /// A symbolic link.
    #[must_use]
    pub fn symlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.raw(b'2', name, target, "", |_| {})
    }

    /// A hard link.
    #[must_use]
    pub fn hard_link(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.raw(b'1', name, target, "", |_| {})
    }

    /// A PAX header for the next entry.
    #[must_use]
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        self.raw(b'x', "pax", "", pax_records(records), |_| {})
    }

    /// A PAX header for all that follows.
    #[must_use]
    pub fn global(self, records: &[(&str, &[u8])]) -> Self {
        self.raw(b'g', "pax", "", pax_records(records), |_| {})
    }

    /// A file whose path needs a PAX header.
    #[must_use]
    pub fn long_file(self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        self.pax(&[("path", path.as_ref())]).file("long", content)
    }

    /// Bytes as they are, padded to a whole block.
    #[must_use]
    pub fn bytes(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.0.extend_from_slice(bytes.as_ref());
        self.pad()
    }

    fn pad(mut self) -> Self {
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    /// The archive with its end mark, two blocks of zeros.
    #[must_use]
    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }

    /// The archive without an end mark.
    #[must_use]
    pub fn unfinished(self) -> Vec<u8> {
        self.0
    }
}

/// Records `LENGTH KEY=VALUE\n`, with lengths that are right.
#[must_use]
pub fn pax_records(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut all = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut len = rest + 1;
        while rest + len.to_string().len() != len {
            len += 1;
        }
        all.extend_from_slice(format!("{len} {key}=").as_bytes());
        all.extend_from_slice(value);
        all.push(b'\n');
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn another_reader_reads_what_is_right() {
        let long = "d/".repeat(80) + "name";
        let bytes = Tar::new()
            .dir("d")
            .file("d/a", "content")
            .symlink("l", "d/a")
            .long_file(&long, "far")
            .raw(b'0', "big", "", "", |header| {
                header.base256(field::UID, 1 << 40).octal(field::MODE, 0o4755);
            })
            .end();
        let mut archive = tar::Archive::new(&bytes[..]);
        let entries: Vec<_> = archive
            .entries()
            .expect("readable")
            .map(|entry| {
                let mut entry = entry.expect("an entry");
                let mut content = String::new();
                entry.read_to_string(&mut content).expect("content");
                let path = entry.path().expect("a path").display().to_string();
                (path, content, entry.header().uid().expect("an owner"))
            })
            .collect();
        let expected = [("d", "", 0), ("d/a", "content", 0), ("l", "", 0), (&*long, "far", 0)];
        for (entry, (path, content, uid)) in entries.iter().zip(expected) {
            assert_eq!((&*entry.0, &*entry.1, entry.2), (path, content, uid));
        }
        assert_eq!(entries[4].2, 1 << 40);
    }

    #[test]
    fn records_have_their_own_length() {
        for len in 0..1100 {
            let records = pax_records(&[("k", &vec![b'v'; len])]);
            let text = String::from_utf8(records).expect("text");
            assert_eq!(text.split(' ').next(), Some(&*text.len().to_string()));
        }
    }
}
