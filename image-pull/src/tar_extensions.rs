//! What stands before an entry and describes it: PAX headers and GNU long names. Whatever two readers
//! could take differently is refused.

use crate::archive::{ArchiveError, Entry, Kind, printable, refused};
use crate::pax::{PaxRecords, decimal, pax_time};
use crate::sparse::{Sparse, SparseRecords};
use crate::tar_header::Header;

/// Longest path or link target, in bytes: Linux's `PATH_MAX`.
const MAX_PATH: usize = 4096;
/// Most extended attributes of one entry.
const MAX_ATTRIBUTES: usize = 64;
/// Most bytes of their names and values: ext4 has room for less.
const MAX_ATTRIBUTE_BYTES: usize = 64 << 10;
/// What the twelve octal digits of a ustar size can hold.
const MAX_OCTAL_SIZE: u64 = 0o77_777_777_777;

/// What extension headers say about the next entry.
#[derive(Default)]
pub(crate) struct Extensions {
    pub(crate) any: bool,
    seen_pax: bool,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: SparseRecords,
}

impl Extensions {
    pub(crate) fn long_name(&mut self, name: Vec<u8>) -> Result<(), ArchiveError> {
        self.any = true;
        set_once(&mut self.path, strip_nul(name)?, "path")
    }

    pub(crate) fn long_link(&mut self, name: Vec<u8>) -> Result<(), ArchiveError> {
        self.any = true;
        set_once(&mut self.link, strip_nul(name)?, "link target")
    }

    pub(crate) fn pax(&mut self, records: &[u8]) -> Result<(), ArchiveError> {
        if self.seen_pax {
            return refused("two PAX headers describe the same entry");
        }
        (self.any, self.seen_pax) = (true, true);
        for record in PaxRecords(records) {
            let (key, value) = record?;
            match key {
                b"path" => set_once(&mut self.path, value.to_vec(), "path")?,
                b"linkpath" => set_once(&mut self.link, value.to_vec(), "link target")?,
                b"size" => set_once(&mut self.size, decimal(value, "size")?, "size")?,
                b"uid" => set_once(&mut self.uid, decimal(value, "uid")?, "uid")?,
                b"gid" => set_once(&mut self.gid, decimal(value, "gid")?, "gid")?,
                b"mtime" => set_once(&mut self.mtime, pax_time(value)?, "mtime")?,
                b"hdrcharset" if value != b"ISO-IR 10646 2000 UTF-8" && value != b"BINARY" => {
                    return refused("a PAX header is in an unknown character set");
                }
                _ => {
                    if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                        self.sparse.add(key, value)?;
                    } else if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.attribute(name, value)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn attribute(&mut self, name: &[u8], value: &[u8]) -> Result<(), ArchiveError> {
        let bytes = |(name, value): &(Vec<u8>, Vec<u8>)| name.len() + value.len();
        let taken: usize = self.xattrs.iter().map(bytes).sum();
        let all = taken + name.len() + value.len();
        if self.xattrs.len() >= MAX_ATTRIBUTES || all > MAX_ATTRIBUTE_BYTES {
            return refused(format!(
                "an entry has more than {MAX_ATTRIBUTES} extended attributes, or more than \
                 {MAX_ATTRIBUTE_BYTES} bytes of them"
            ));
        }
        self.xattrs.push((name.to_vec(), value.to_vec()));
        Ok(())
    }

    /// The entry that `header` and these extensions describe together.
    pub(crate) fn apply(self, header: &Header) -> Result<Entry, ArchiveError> {
        let sparse_name = self.sparse.name().map(<[u8]>::to_vec);
        let path = sparse_name.or(self.path).unwrap_or_else(|| header.path());
        let shown = printable(&path);
        let kind = match header.type_flag() {
            b'0' if path.ends_with(b"/") => {
                return refused(format!("{shown} is a file whose name ends like a directory's"));
            }
            // V7 had no directories: the slash makes one.
            0 if path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' => {
                return refused(format!(
                    "{shown} is a device node; images may not bring devices, remove it from the layer"
                ));
            }
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                return refused(format!(
                    "{shown} is of the unknown tar type {:?}",
                    char::from(other)
                ));
            }
        };
        let header_size = header.size()?;
        let size = match self.size {
            Some(size) if size != header_size && size <= MAX_OCTAL_SIZE => {
                return refused(format!(
                    "{shown} has two sizes, {size} in its PAX header and {header_size} in its tar \
                     header"
                ));
            }
            Some(size) => size,
            None => header_size,
        };
        if size != 0 && kind != Kind::File {
            return refused(format!("{shown} is not a file but has a size of {size}"));
        }
        if size > i64::MAX as u64 {
            return refused(format!("{shown} has an impossible size"));
        }
        let sparse = match (self.sparse.read()?, header.type_flag()) {
            (None, b'S') => Some(Sparse::of_header(header)?),
            (Some(_), b'S') => return refused(format!("{shown} is sparse in two ways")),
            (Some(_), _) if kind != Kind::File => {
                return refused(format!("{shown} is sparse, but not a file"));
            }
            (sparse, _) => sparse,
        };
        let link = match kind {
            Kind::HardLink | Kind::Symlink => {
                self.link.unwrap_or_else(|| header.text(157..257).to_vec())
            }
            _ => Vec::new(),
        };
        for (name, what) in [(&path, "a path"), (&link, "a link target")] {
            if name.len() >= MAX_PATH {
                return refused(format!("{what} is longer than {MAX_PATH} bytes: {shown}"));
            }
            if name.contains(&0) {
                return refused(format!("{what} contains a NUL byte: {shown}"));
            }
        }
        let mtime = match self.mtime {
            Some(mtime) => mtime,
            None => (header.signed(136..148, "mtime")?, 0),
        };
        Ok(Entry {
            kind,
            mode: u32::try_from(header.number(100..108, "mode")? & 0o7777).unwrap_or_default(),
            uid: id(self.uid.map_or_else(|| header.number(108..116, "uid"), Ok)?, "uid", &shown)?,
            gid: id(self.gid.map_or_else(|| header.number(116..124, "gid"), Ok)?, "gid", &shown)?,
            mtime,
            size,
            xattrs: self.xattrs,
            sparse,
            path,
            link,
        })
    }
}

/// Global headers apply to all that follows, in some readers. Go's and so containerd's ignore them;
/// what would make a difference is refused, the rest (such as git's comment) ignored.
pub(crate) fn check_global(records: &[u8]) -> Result<(), ArchiveError> {
    const HARMLESS: [&[u8]; 6] =
        [b"comment", b"charset", b"hdrcharset", b"atime", b"ctime", b"mtime"];
    for record in PaxRecords(records) {
        let (key, _) = record?;
        if !HARMLESS.contains(&key) {
            return refused(format!("a global PAX header sets {} for all entries", printable(key)));
        }
    }
    Ok(())
}

fn set_once<T>(slot: &mut Option<T>, value: T, field: &str) -> Result<(), ArchiveError> {
    if slot.replace(value).is_some() {
        return refused(format!("an entry's {field} is given twice"));
    }
    Ok(())
}

/// A GNU long name ends with NUL; a NUL inside would be seen by some readers only.
fn strip_nul(mut name: Vec<u8>) -> Result<Vec<u8>, ArchiveError> {
    while name.last() == Some(&0) {
        name.pop();
    }
    if name.contains(&0) {
        return refused("a GNU long name contains a NUL byte");
    }
    Ok(name)
}

fn id(number: u64, field: &str, shown: &str) -> Result<u32, ArchiveError> {
    match u32::try_from(number) {
        // The kernel takes the largest as "do not change".
        Ok(u32::MAX) | Err(_) => refused(format!("{shown} has an impossible {field}, {number}")),
        Ok(id) => Ok(id),
    }
}
