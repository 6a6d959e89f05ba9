//! An initramfs archive ("newc" cpio) that depends on nothing but its contents.
//!
//! Format: Linux, Documentation/driver-api/early-userspace/buffer-format.rst. Every time is 0, every
//! owner is 0:0, entries are sorted by path (so a directory precedes what it holds) and inode numbers
//! are counted from 1. One set of entries has one form, so that [`Archive::parse`] takes that form alone.

mod read;

use std::collections::BTreeMap;
use std::io::{self, Write};

pub use read::{Defect, ReadError};

/// The last entry's name.
const TRAILER: &str = "TRAILER!!!";

/// The kernel takes paths up to its own limit, with the closing zero byte.
const PATH_MAX: usize = 4096;

/// The archive's length is a multiple of this, as cpio programs write it.
const BLOCK: usize = 512;

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory,
    /// A regular file with its bytes.
    File(Vec<u8>),
    /// A character device by major and minor number.
    CharDevice(u32, u32),
}

/// The bits of a mode that say what is at a path.
const TYPE_BITS: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const REGULAR_FILE: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

impl Node {
    fn type_bits(&self) -> u32 {
        match self {
            Self::Directory => DIRECTORY,
            Self::File(_) => REGULAR_FILE,
            Self::CharDevice(..) => CHARACTER_DEVICE,
        }
    }

    /// What the number of links says.
    fn links(&self) -> u32 {
        if matches!(self, Self::Directory) { 2 } else { 1 }
    }
}

/// Why an entry was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpioError {
    /// Paths are relative and plain.
    #[error("{0:?} is no plain relative path: no leading slash, no empty, '.' or '..' parts")]
    Path(String),
    /// The same path twice.
    #[error("{0:?} was added twice")]
    Twice(String),
    /// The directory that should hold it was not added, or is none.
    #[error("{0:?} has no parent directory in the archive")]
    NoParent(String),
    /// More than permission bits.
    #[error("the mode {1:o} of {0:?} has more than the twelve permission bits")]
    Mode(String, u32),
    /// The format has 32 bits for a size.
    #[error("{0:?} is {1} bytes long, a newc archive holds files below 4 GiB")]
    Size(String, usize),
}

/// The entries of an archive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Archive {
    entries: BTreeMap<String, (u32, Node)>,
}

impl Archive {
    /// Adds `node` at `path` (relative to the root, parents first) with its permission bits.
    ///
    /// # Errors
    /// If the path is taken, not plain or nowhere, or the entry does not fit the format.
    pub fn add(&mut self, path: &str, mode: u32, node: Node) -> Result<(), CpioError> {
        let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
        if !path.split('/').all(plain) || path.len() >= PATH_MAX || path == TRAILER {
            return Err(CpioError::Path(path.to_owned()));
        }
        if mode & !0o7777 != 0 {
            return Err(CpioError::Mode(path.to_owned(), mode));
        }
        if let Node::File(bytes) = &node
            && u32::try_from(bytes.len()).is_err()
        {
            return Err(CpioError::Size(path.to_owned(), bytes.len()));
        }
        if let Some((parent, _)) = path.rsplit_once('/')
            && !matches!(self.entries.get(parent), Some((_, Node::Directory)))
        {
            return Err(CpioError::NoParent(path.to_owned()));
        }
        if self.entries.contains_key(path) {
            return Err(CpioError::Twice(path.to_owned()));
        }
        self.entries.insert(path.to_owned(), (mode, node));
        Ok(())
    }

    /// Takes the entry at `path` out; what a directory holds has to go before it.
    pub fn remove(&mut self, path: &str) -> Option<Node> {
        self.entries.remove(path).map(|(_, node)| node)
    }

    /// The bytes of the regular file at `path`.
    #[must_use]
    pub fn file(&self, path: &str) -> Option<&[u8]> {
        match self.entries.get(path) {
            Some((_, Node::File(bytes))) => Some(bytes),
            _ => None,
        }
    }

    /// What is in it, in the order in which it is written: path, permission bits, node.
    pub fn entries(&self) -> impl Iterator<Item = (&str, u32, &Node)> {
        self.entries.iter().map(|(path, (mode, node))| (path.as_str(), *mode, node))
    }

    /// The archive's bytes.
    ///
    /// # Panics
    /// Never: a `Vec` takes all that is written to it.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let content: usize = self
            .entries
            .values()
            .map(|(_, node)| if let Node::File(bytes) = node { bytes.len() } else { 0 })
            .sum();
        let mut out = Vec::with_capacity(content + 256 * (self.entries.len() + 4));
        for (inode, (path, mode, node)) in (1..).zip(self.entries()) {
            let device =
                if let Node::CharDevice(major, minor) = node { (*major, *minor) } else { (0, 0) };
            let bytes: &[u8] = if let Node::File(bytes) = node { bytes } else { &[] };
            let mode = mode | node.type_bits();
            let fields = Fields { inode, mode, links: node.links(), device };
            write_entry(&mut out, path, fields, bytes).expect("a Vec takes all that is written");
        }
        let end = Fields { inode: 0, mode: 0, links: 1, device: (0, 0) };
        write_entry(&mut out, TRAILER, end, &[]).expect("a Vec takes all that is written");
        out.resize(out.len().next_multiple_of(BLOCK), 0);
        out
    }
}

#[derive(Clone, Copy)]
struct Fields {
    inode: u32,
    mode: u32,
    links: u32,
    device: (u32, u32),
}

fn write_entry(out: &mut Vec<u8>, path: &str, fields: Fields, bytes: &[u8]) -> io::Result<()> {
    let Fields { inode, mode, links, device: (major, minor) } = fields;
    let (size, name_size) = (bytes.len(), path.len() + 1);
    // magic, ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor,
    // namesize, check
    write!(
        out,
        "070701{inode:08X}{mode:08X}{0:08X}{0:08X}{links:08X}{0:08X}{size:08X}{0:08X}{0:08X}\
         {major:08X}{minor:08X}{name_size:08X}{0:08X}",
        0
    )?;
    out.write_all(path.as_bytes())?;
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.write_all(bytes)?;
    out.resize(out.len().next_multiple_of(4), 0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Archive {
        let mut archive = Archive::default();
        archive.add("init", 0o755, Node::File(b"#!ELF".to_vec())).unwrap();
        archive.add("dev", 0o755, Node::Directory).unwrap();
        archive.add("dev/console", 0o600, Node::CharDevice(5, 1)).unwrap();
        archive.add("a", 0o1777, Node::Directory).unwrap();
        archive.add("a/empty", 0o644, Node::File(Vec::new())).unwrap();
        archive
    }

    type ReadBack = (String, u32, (u32, u32), Vec<u8>);

    /// Reads an archive back as the kernel does (init/initramfs.c), by field positions.
    fn read_back(mut bytes: &[u8]) -> Vec<ReadBack> {
        let mut found = Vec::new();
        let whole = bytes.len();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[6 + 8 * n..14 + 8 * n]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            assert_eq!((field(2), field(3), field(5)), (0, 0, 0), "owner and time are zero");
            let device = (field(9), field(10));
            let name = String::from_utf8(bytes[110..109 + name_size].to_vec()).unwrap();
            let start = (110 + name_size).next_multiple_of(4);
            if name == TRAILER {
                assert_eq!(whole % BLOCK, 0);
                assert!(bytes[start..].iter().all(|byte| *byte == 0));
                return found;
            }
            assert_eq!(field(0) as usize, found.len() + 1, "inode numbers are counted");
            found.push((name, mode, device, bytes[start..start + size].to_vec()));
            bytes = &bytes[(start + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn what_is_written_can_be_read_back_sorted() {
        let found = read_back(&sample().to_bytes());
        let expected = [
            ("a", 0o041_777, (0, 0), &b""[..]),
            ("a/empty", 0o100_644, (0, 0), b""),
            ("dev", 0o040_755, (0, 0), b""),
            ("dev/console", 0o020_600, (5, 1), b""),
            ("init", 0o100_755, (0, 0), b"#!ELF"),
        ];
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(name, mode, device, bytes)| (name.to_owned(), mode, device, bytes.to_vec()))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn the_order_of_adding_does_not_matter() {
        let mut other = Archive::default();
        other.add("a", 0o1777, Node::Directory).unwrap();
        other.add("dev", 0o755, Node::Directory).unwrap();
        other.add("dev/console", 0o600, Node::CharDevice(5, 1)).unwrap();
        other.add("a/empty", 0o644, Node::File(Vec::new())).unwrap();
        other.add("init", 0o755, Node::File(b"#!ELF".to_vec())).unwrap();
        assert_eq!(other.to_bytes(), sample().to_bytes());
    }

    #[test]
    fn bad_entries_are_refused() {
        let mut archive = sample();
        let file = || Node::File(Vec::new());
        for path in ["", "/x", "a/../x", "a//x", "./x", "a/", "x\0y", TRAILER] {
            assert!(matches!(archive.add(path, 0o644, file()), Err(CpioError::Path(_))), "{path}");
        }
        assert!(matches!(archive.add("init", 0o644, file()), Err(CpioError::Twice(_))));
        assert!(matches!(archive.add("init/x", 0o644, file()), Err(CpioError::NoParent(_))));
        assert!(matches!(archive.add("no/x", 0o644, file()), Err(CpioError::NoParent(_))));
        assert!(matches!(archive.add("x", 0o100_644, file()), Err(CpioError::Mode(..))));
    }
}
