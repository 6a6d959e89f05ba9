//! Reads an archive back: only what the writer makes, so that equal entries mean equal bytes.
//!
//! The kernel takes much more (other owners, links, padding that is not zero, archives that follow each other).
//! What is not in the one form was not written by Nacre, and what the two readers could see differently is
//! refused here.

use super::{
    Archive, BLOCK, CHARACTER_DEVICE, CpioError, DIRECTORY, Node, PATH_MAX, REGULAR_FILE, TRAILER,
    TYPE_BITS,
};

const MAGIC: &[u8] = b"070701";

/// Of the magic and thirteen fields of eight digits.
const HEADER: usize = 110;

/// More entries than any image has, with a hundred bytes each.
const MAX_ENTRIES: usize = 1 << 16;

/// An archive that was not written by [`Archive::to_bytes`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the archive was not written by Nacre: at byte {offset}, {defect}")]
pub struct ReadError {
    /// Where the entry begins.
    pub offset: usize,
    /// What is wrong with it.
    pub defect: Defect,
}

/// What is wrong with an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Defect {
    /// Bytes are missing.
    #[error("it is cut short")]
    CutShort,
    /// No header.
    #[error("there is no entry")]
    Magic,
    /// A field is not eight hexadecimal digits in upper case.
    #[error("the field {0:?} is no number")]
    Digits(&'static str),
    /// A field has another value than the writer's.
    #[error("the field {name:?} is {found} where {expected} is written")]
    Field {
        /// Its name in the format's description.
        name: &'static str,
        /// Its value.
        found: u32,
        /// What it has to be.
        expected: u32,
    },
    /// Neither file, directory nor character device.
    #[error("the mode {0:o} is that of no file, directory or character device")]
    Kind(u32),
    /// Empty, without its end, too long, or not UTF-8.
    #[error("the name is none")]
    Name,
    /// Before its predecessor, or equal to it.
    #[error("{0:?} does not come after the entry before it")]
    Order(String),
    /// Bytes between entries or behind the last.
    #[error("there is something in the padding, or behind the end")]
    Padding,
    /// Too many.
    #[error("there are more than {MAX_ENTRIES} entries")]
    TooMany,
    /// The writer would not have taken it.
    #[error(transparent)]
    Entry(#[from] CpioError),
}

impl Archive {
    /// Reads what [`Archive::to_bytes`] writes, and nothing else: for every archive that is read,
    /// `to_bytes` gives the same bytes again.
    ///
    /// # Errors
    /// At the first entry that is not as the writer writes it.
    pub fn parse(bytes: &[u8]) -> Result<Archive, ReadError> {
        let mut reader = Reader { bytes, at: 0 };
        let mut archive = Archive::default();
        loop {
            let offset = reader.at;
            match reader.entry(&mut archive) {
                Ok(true) => {}
                Ok(false) => return Ok(archive),
                Err(defect) => return Err(ReadError { offset, defect }),
            }
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// False at the archive's end.
    fn entry(&mut self, archive: &mut Archive) -> Result<bool, Defect> {
        let header = Header::parse(self.take(HEADER)?)?;
        let name = self.name(header.name_size)?;
        self.padding(4)?;
        let zero = [
            ("c_uid", header.uid),
            ("c_gid", header.gid),
            ("c_mtime", header.mtime),
            ("c_maj", header.device_of_file.0),
            ("c_min", header.device_of_file.1),
            ("c_chksum", header.checksum),
        ];
        for (name, found) in zero {
            expect(name, found, 0)?;
        }
        if name == TRAILER {
            return self.end(&header).map(|()| false);
        }
        let count = archive.entries.len();
        if count == MAX_ENTRIES {
            return Err(Defect::TooMany);
        }
        let inode = u32::try_from(count + 1).map_err(|_| Defect::TooMany)?;
        expect("c_ino", header.inode, inode)?;
        if archive.entries.last_key_value().is_some_and(|(before, _)| before.as_str() >= name) {
            return Err(Defect::Order(name.to_owned()));
        }
        let node = self.node(&header)?;
        expect("c_nlink", header.links, node.links())?;
        archive.add(name, header.mode & !TYPE_BITS, node)?;
        self.padding(4)?;
        Ok(true)
    }

    /// What the header describes, with its bytes.
    fn node(&mut self, header: &Header) -> Result<Node, Defect> {
        let (major, minor) = header.device;
        let node = match header.mode & TYPE_BITS {
            DIRECTORY => Node::Directory,
            CHARACTER_DEVICE => Node::CharDevice(major, minor),
            REGULAR_FILE => {
                let size = usize::try_from(header.size).map_err(|_| Defect::CutShort)?;
                Node::File(self.take(size)?.to_vec())
            }
            _ => return Err(Defect::Kind(header.mode)),
        };
        if !matches!(node, Node::File(_)) {
            expect("c_filesize", header.size, 0)?;
        }
        if !matches!(node, Node::CharDevice(..)) {
            expect("c_rmaj", major, 0)?;
            expect("c_rmin", minor, 0)?;
        }
        Ok(node)
    }

    fn name(&mut self, size: u32) -> Result<&'a str, Defect> {
        let size = usize::try_from(size).ok().filter(|size| (2..=PATH_MAX).contains(size));
        let (end, name) = self.take(size.ok_or(Defect::Name)?)?.split_last().ok_or(Defect::Name)?;
        if *end != 0 {
            return Err(Defect::Name);
        }
        std::str::from_utf8(name).map_err(|_| Defect::Name)
    }

    /// After the trailer's name.
    fn end(&mut self, header: &Header) -> Result<(), Defect> {
        let expected = [
            ("c_ino", header.inode, 0),
            ("c_mode", header.mode, 0),
            ("c_nlink", header.links, 1),
            ("c_filesize", header.size, 0),
            ("c_rmaj", header.device.0, 0),
            ("c_rmin", header.device.1, 0),
        ];
        for (name, found, expected) in expected {
            expect(name, found, expected)?;
        }
        self.padding(BLOCK)?;
        if self.at == self.bytes.len() { Ok(()) } else { Err(Defect::Padding) }
    }

    fn take(&mut self, size: usize) -> Result<&'a [u8], Defect> {
        let end = self.at.checked_add(size).ok_or(Defect::CutShort)?;
        let taken = self.bytes.get(self.at..end).ok_or(Defect::CutShort)?;
        self.at = end;
        Ok(taken)
    }

    /// Zeros up to the next multiple of `unit`.
    fn padding(&mut self, unit: usize) -> Result<(), Defect> {
        let padding = self.take(self.at.next_multiple_of(unit) - self.at)?;
        if padding.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(Defect::Padding) }
    }
}

/// In the order of the format.
struct Header {
    inode: u32,
    mode: u32,
    uid: u32,
    gid: u32,
    links: u32,
    mtime: u32,
    size: u32,
    /// Where the file was stored.
    device_of_file: (u32, u32),
    /// What a device file stands for.
    device: (u32, u32),
    name_size: u32,
    checksum: u32,
}

impl Header {
    fn parse(header: &[u8]) -> Result<Self, Defect> {
        let mut rest = header.strip_prefix(MAGIC).ok_or(Defect::Magic)?;
        let mut field = |name| {
            let (digits, behind) = rest.split_first_chunk::<8>().ok_or(Defect::CutShort)?;
            rest = behind;
            number(digits).ok_or(Defect::Digits(name))
        };
        Ok(Self {
            inode: field("c_ino")?,
            mode: field("c_mode")?,
            uid: field("c_uid")?,
            gid: field("c_gid")?,
            links: field("c_nlink")?,
            mtime: field("c_mtime")?,
            size: field("c_filesize")?,
            device_of_file: (field("c_maj")?, field("c_min")?),
            device: (field("c_rmaj")?, field("c_rmin")?),
            name_size: field("c_namesize")?,
            checksum: field("c_chksum")?,
        })
    }
}

fn number(digits: &[u8; 8]) -> Option<u32> {
    digits.iter().try_fold(0_u32, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'A'..=b'F' => digit - b'A' + 10,
            _ => return None,
        };
        Some(number << 4 | u32::from(value))
    })
}

fn expect(name: &'static str, found: u32, expected: u32) -> Result<(), Defect> {
    if found == expected { Ok(()) } else { Err(Defect::Field { name, found, expected }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Archive {
        let mut archive = Archive::default();
        archive.add("a", 0o1777, Node::Directory).unwrap();
        archive.add("a/empty", 0o644, Node::File(Vec::new())).unwrap();
        archive.add("dev", 0o755, Node::Directory).unwrap();
        archive.add("dev/console", 0o600, Node::CharDevice(5, 1)).unwrap();
        archive.add("init", 0o755, Node::File(b"#!ELF".to_vec())).unwrap();
        archive
    }

    fn defect(bytes: &[u8]) -> Defect {
        Archive::parse(bytes).unwrap_err().defect
    }

    /// Writes a value over the field with this number of the entry of this name.
    fn with_field(name: &str, field: usize, value: u32) -> Vec<u8> {
        let mut bytes = sample().to_bytes();
        let named = format!("{name}\0");
        let at = bytes.windows(named.len()).position(|window| window == named.as_bytes());
        let at = at.unwrap() - HEADER + MAGIC.len() + 8 * field;
        bytes[at..at + 8].copy_from_slice(format!("{value:08X}").as_bytes());
        bytes
    }

    #[test]
    fn what_is_written_is_read() {
        for archive in [sample(), Archive::default()] {
            assert_eq!(Archive::parse(&archive.to_bytes()).unwrap(), archive);
        }
    }

    #[test]
    fn every_byte_matters_and_every_length_but_the_whole_is_an_error() {
        let whole = sample();
        let bytes = whole.to_bytes();
        for at in 0..bytes.len() {
            for value in [0, b'1', b'a', b'F', 0xff] {
                let mut changed = bytes.clone();
                if changed[at] == value {
                    continue;
                }
                changed[at] = value;
                if let Ok(read) = Archive::parse(&changed) {
                    assert_ne!(read, whole, "byte {at} says nothing");
                    assert_eq!(read.to_bytes(), changed);
                }
            }
        }
        for length in 0..bytes.len() {
            Archive::parse(&bytes[..length]).unwrap_err();
        }
    }

    #[test]
    fn a_second_archive_and_garbage_behind_the_first_are_refused() {
        let bytes = sample().to_bytes();
        assert_eq!(defect(&[bytes.as_slice(), &bytes].concat()), Defect::Padding);
        assert_eq!(defect(&[bytes.as_slice(), &[0; BLOCK]].concat()), Defect::Padding);
        assert_eq!(defect(&[bytes.as_slice(), b"x"].concat()), Defect::Padding);
        assert_eq!(defect(b""), Defect::CutShort);
        assert_eq!(defect(&[b'x'; 200]), Defect::Magic);
    }

    #[test]
    fn what_the_writer_never_writes_is_named() {
        let field = |name, found, expected| Defect::Field { name, found, expected };
        assert_eq!(defect(&with_field("a", 0, 7)), field("c_ino", 7, 1));
        assert_eq!(defect(&with_field("a", 2, 1000)), field("c_uid", 1000, 0));
        assert_eq!(defect(&with_field("a", 3, 5)), field("c_gid", 5, 0));
        assert_eq!(defect(&with_field("init", 4, 2)), field("c_nlink", 2, 1));
        assert_eq!(defect(&with_field("init", 5, 1)), field("c_mtime", 1, 0));
        assert_eq!(defect(&with_field("dev", 6, 4)), field("c_filesize", 4, 0));
        assert_eq!(defect(&with_field("init", 7, 4)), field("c_maj", 4, 0));
        assert_eq!(defect(&with_field("init", 9, 4)), field("c_rmaj", 4, 0));
        assert_eq!(defect(&with_field("init", 12, 4)), field("c_chksum", 4, 0));
        assert_eq!(defect(&with_field(TRAILER, 1, 0o644)), field("c_mode", 0o644, 0));
        // Symbolic links, block devices, bits beyond the mode's sixteen.
        for mode in [0o120_777, 0o060_600, 0] {
            assert_eq!(defect(&with_field("init", 1, mode)), Defect::Kind(mode));
        }
        let bits = with_field("init", 1, 0x1_0000 | 0o100_755);
        assert!(matches!(defect(&bits), Defect::Entry(CpioError::Mode(..))));
    }

    #[test]
    fn sizes_beyond_the_file_cost_nothing() {
        assert_eq!(defect(&with_field("init", 6, u32::MAX)), Defect::CutShort);
        for size in [0, 1, 4097, u32::MAX] {
            assert_eq!(defect(&with_field("init", 11, size)), Defect::Name);
        }
        let mut bytes = sample().to_bytes();
        bytes[MAGIC.len()] = b'x';
        assert_eq!(defect(&bytes), Defect::Digits("c_ino"));
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        let renamed = |from: &str, to: &str| {
            assert_eq!(from.len(), to.len());
            let mut bytes = sample().to_bytes();
            let at = bytes.windows(from.len()).position(|window| window == from.as_bytes());
            let at = at.unwrap();
            bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
            defect(&bytes)
        };
        let path = |to: &str| Defect::Entry(CpioError::Path(to.to_owned()));
        assert_eq!(renamed("a/empty", "a/../xy"), path("a/../xy"));
        assert_eq!(renamed("a/empty", "a//mpty"), path("a//mpty"));
        assert_eq!(renamed("init\0", "i\0it\0"), path("i\0it"));
        assert_eq!(renamed("a/empty", "/aempty"), Defect::Order("/aempty".to_owned()));
        assert_eq!(renamed("init\0", "dev/\0"), Defect::Order("dev/".to_owned()));
        assert_eq!(renamed("init\0", "x/it\0"), Defect::Entry(CpioError::NoParent("x/it".into())));
        assert_eq!(renamed("init\0", "inity"), Defect::Name);
    }

    #[test]
    fn the_number_of_entries_is_bounded() {
        let mut archive = Archive::default();
        for number in 0..=MAX_ENTRIES {
            archive.add(&format!("{number:06}"), 0o644, Node::File(Vec::new())).unwrap();
        }
        assert_eq!(defect(&archive.to_bytes()), Defect::TooMany);
    }
}
