//! Reads a layer's tar stream, strictly and in bounded memory. Distrusts every byte of it.
//!
//! Own reader instead of the `tar` crate: that one reads GNU long names and PAX headers of any size
//! into memory, splits PAX records at newlines (which binary extended attributes contain), and its raw
//! mode ignores a PAX size. It still writes the archives in the tests.
//!
//! Where readers in the field disagree about what an archive holds (PAX size against header size, data
//! behind a link, content after the end), an attacker can show one tree to a scanner and another to the
//! runtime (CVE-2025-62518). Such archives are refused, not interpreted.
//!
//! Formats: POSIX.1-2017 pax and ustar, GNU long names, V7; semantics of Go's `archive/tar`, which
//! builders write layers with.

use std::io::{self, Read};

use crate::pax::{PaxRecords, decimal, pax_time};

const BLOCK: usize = 512;
/// Read ahead and write in pieces of this size, in bytes.
const BUFFER: usize = 128 * 1024;
/// Longest PAX header or GNU long name, in bytes (Go's `archive/tar` has the same bound).
const MAX_EXTENSION: u64 = 1 << 20;
/// Longest path or link target, in bytes: Linux's `PATH_MAX`.
const MAX_PATH: usize = 4096;
/// What the twelve octal digits of a ustar size can hold.
const MAX_OCTAL_SIZE: u64 = 0o77_777_777_777;

/// What an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    Fifo,
}

/// One member of the archive, without its content.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    /// As written: may be absolute or hold `..`.
    pub(crate) path: Vec<u8>,
    /// Target of a link, as written.
    pub(crate) link: Vec<u8>,
    /// Permission bits with set-user-ID, set-group-ID and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub(crate) mtime: (i64, u32),
    /// Bytes of content.
    pub(crate) size: u64,
    /// Extended attributes, in the archive's order.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Why an archive is not read further.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error("{0}")]
    Refused(String),
}

pub(crate) fn refused<T>(problem: impl Into<String>) -> Result<T, ArchiveError> {
    Err(ArchiveError::Refused(problem.into()))
}

/// Shows a name from the archive in a message: bounded, printable.
pub(crate) fn printable(name: &[u8]) -> String {
    let shown: String = String::from_utf8_lossy(name).chars().take(200).collect();
    format!("{shown:?}")
}

/// A tar stream being read.
pub(crate) struct Archive<R> {
    inner: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Content bytes of the current entry that nobody has read yet.
    content: u64,
    /// Padding behind them.
    padding: u64,
    finished: bool,
}

impl<R: Read> Archive<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self {
            inner,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
            content: 0,
            padding: 0,
            finished: false,
        }
    }

    /// The next entry, or none after the end of the archive and whatever padding follows it.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, ArchiveError> {
        if self.finished {
            return Ok(None);
        }
        self.skip_content()?;
        let mut extensions = Extensions::default();
        loop {
            let Some(header) = self.header()? else {
                if extensions.any {
                    return refused("the archive ends after a header that describes a next entry");
                }
                self.finished = true;
                return Ok(None);
            };
            match header.type_flag() {
                b'x' => {
                    let records = self.extension(&header)?;
                    extensions.pax(&records)?;
                }
                b'g' => {
                    let records = self.extension(&header)?;
                    check_global(&records)?;
                }
                b'L' => {
                    let name = self.extension(&header)?;
                    extensions.long_name(name)?;
                }
                b'K' => {
                    let name = self.extension(&header)?;
                    extensions.long_link(name)?;
                }
                _ => {
                    let entry = extensions.apply(&header)?;
                    self.content = entry.size;
                    self.padding = padding(entry.size);
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// Hands the current entry's content to `sink`, piece by piece, without copying it.
    pub(crate) fn content<E: From<ArchiveError>>(
        &mut self,
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while self.content > 0 {
            let piece = self.available().map_err(ArchiveError::from)?;
            let len = usize::try_from(self.content).map_or(piece, |left| piece.min(left));
            if len == 0 {
                return Err(truncated().into());
            }
            sink(&self.buffer[self.start..self.start + len])?;
            self.start += len;
            self.content -= len as u64;
        }
        Ok(())
    }

    /// The stream below, read to its end if [`Archive::next`] has returned none.
    pub(crate) fn into_inner(self) -> R {
        self.inner
    }

    /// A header block; none at the end of the archive.
    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let mut block = [0; BLOCK];
        match self.block(&mut block)? {
            // containerd accepts an archive that just ends; so do all.
            0 => return Ok(None),
            BLOCK => {}
            _ => return Err(truncated()),
        }
        if block.iter().all(|b| *b == 0) {
            self.check_nothing_follows()?;
            return Ok(None);
        }
        Header::check(block).map(Some)
    }

    /// Data behind the end-of-archive mark is seen by some readers only.
    fn check_nothing_follows(&mut self) -> Result<(), ArchiveError> {
        loop {
            if self.available()? == 0 {
                return Ok(());
            }
            if self.buffer[self.start..self.end].iter().any(|b| *b != 0) {
                return refused("there is data after the end of the archive");
            }
            self.start = self.end;
        }
    }

    /// Content of an extension header, in memory.
    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, ArchiveError> {
        let size = header.size()?;
        if size > MAX_EXTENSION {
            return refused(format!("an extension header is longer than {MAX_EXTENSION} bytes"));
        }
        self.content = size;
        self.padding = padding(size);
        let mut bytes = Vec::new();
        self.content(|piece| {
            bytes.extend_from_slice(piece);
            Ok::<_, ArchiveError>(())
        })?;
        self.skip_content()?;
        Ok(bytes)
    }

    fn skip_content(&mut self) -> Result<(), ArchiveError> {
        self.content(|_| Ok::<_, ArchiveError>(()))?;
        self.content = std::mem::take(&mut self.padding);
        self.content(|_| Ok::<_, ArchiveError>(()))
    }

    /// Fills `block` as far as the stream goes; the number of bytes.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < BLOCK {
            let len = self.available()?.min(BLOCK - filled);
            if len == 0 {
                break;
            }
            block[filled..filled + len].copy_from_slice(&self.buffer[self.start..self.start + len]);
            self.start += len;
            filled += len;
        }
        Ok(filled)
    }

    /// Bytes in the buffer, after refilling it if it was empty; 0 at the end of the stream.
    fn available(&mut self) -> io::Result<usize> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            // A decompressor returns little at a time; larger pieces mean fewer writes.
            while self.end < BUFFER / 2 {
                match self.inner.read(&mut self.buffer[self.end..]) {
                    Ok(0) => break,
                    Ok(n) => self.end += n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(self.end - self.start)
    }
}

fn truncated() -> ArchiveError {
    ArchiveError::Refused("the archive is cut off in the middle of an entry".into())
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

/// A header block whose checksum is right.
struct Header([u8; BLOCK]);

impl Header {
    fn check(block: [u8; BLOCK]) -> Result<Self, ArchiveError> {
        let counted = |range: &[u8]| range.iter().map(|b| u64::from(*b)).sum::<u64>();
        let sum = counted(&block[..148]) + 8 * u64::from(b' ') + counted(&block[156..]);
        let header = Self(block);
        if header.number(148..156, "checksum")? != sum {
            return refused("a header's checksum is wrong");
        }
        Ok(header)
    }

    fn type_flag(&self) -> u8 {
        self.0[156]
    }

    fn is_ustar(&self) -> bool {
        &self.0[257..263] == b"ustar\0"
    }

    fn size(&self) -> Result<u64, ArchiveError> {
        self.number(124..136, "size")
    }

    /// Octal digits, or a GNU base-256 number that is not negative.
    fn number(&self, range: std::ops::Range<usize>, field: &str) -> Result<u64, ArchiveError> {
        match self.signed(range, field)?.try_into() {
            Ok(number) => Ok(number),
            Err(_) => refused(format!("the header field {field} is negative")),
        }
    }

    fn signed(&self, range: std::ops::Range<usize>, field: &str) -> Result<i64, ArchiveError> {
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

    fn text(&self, range: std::ops::Range<usize>) -> &[u8] {
        self.0[range].split(|b| *b == 0).next().unwrap_or_default()
    }

    fn path(&self) -> Vec<u8> {
        let name = self.text(0..100);
        let prefix = if self.is_ustar() { self.text(345..500) } else { &[] };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }
}

/// What extension headers say about the next entry.
#[derive(Default)]
struct Extensions {
    any: bool,
    seen_pax: bool,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Extensions {
    fn long_name(&mut self, name: Vec<u8>) -> Result<(), ArchiveError> {
        self.any = true;
        set_once(&mut self.path, strip_nul(name)?, "path")
    }

    fn long_link(&mut self, name: Vec<u8>) -> Result<(), ArchiveError> {
        self.any = true;
        set_once(&mut self.link, strip_nul(name)?, "link target")
    }

    fn pax(&mut self, records: &[u8]) -> Result<(), ArchiveError> {
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
                _ if key.starts_with(b"GNU.sparse.") => {
                    return refused("sparse files are not supported; build the layer without them");
                }
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }

    /// The entry that `header` and these extensions describe together.
    fn apply(self, header: &Header) -> Result<Entry, ArchiveError> {
        let path = self.path.unwrap_or_else(|| header.path());
        let shown = printable(&path);
        let kind = match header.type_flag() {
            b'0' if path.ends_with(b"/") => {
                return refused(format!("{shown} is a file whose name ends like a directory's"));
            }
            // V7 had no directories: the slash makes one.
            0 if path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' => {
                return refused(format!(
                    "{shown} is a device node; images may not bring devices, remove it from the layer"
                ));
            }
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'S' => {
                return refused(format!("{shown} is sparse; build the layer without sparse files"));
            }
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
            path,
            link,
        })
    }
}

/// Global headers apply to all that follows, in some readers. Go's and so containerd's ignore them;
/// what would make a difference is refused, the rest (such as git's comment) ignored.
fn check_global(records: &[u8]) -> Result<(), ArchiveError> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(bytes: &[u8]) -> Result<Vec<Entry>, ArchiveError> {
        let mut archive = Archive::new(bytes);
        let mut entries = Vec::new();
        while let Some(entry) = archive.next()? {
            entries.push(entry);
        }
        Ok(entries)
    }

    #[test]
    fn an_archive_that_just_ends_is_read() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(3);
        header.set_mode(0o4755);
        builder.append_data(&mut header, "a/b", &b"abc"[..]).unwrap();
        let whole = builder.into_inner().unwrap();
        for end in [1024, 1536, 2048] {
            let entries = read(&whole[..end]).unwrap();
            assert_eq!(entries.len(), 1, "{end}");
            assert_eq!((entries[0].mode, entries[0].size), (0o4755, 3));
        }
        assert!(read(&whole[..700]).is_err());
        assert!(read(&whole[..513]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
            let _ = read(&bytes);
        }

        /// Random damage to a valid archive, with its checksums made right again.
        #[test]
        fn damaged_headers_are_read_without_panic(
            damage in prop::collection::vec((0usize..3072, any::<u8>()), 1..20)
        ) {
            let mut builder = tar::Builder::new(Vec::new());
            builder
                .append_pax_extensions([("SCHILY.xattr.user.a", &b"1"[..]), ("size", b"3")])
                .unwrap();
            let mut header = tar::Header::new_ustar();
            header.set_size(3);
            builder.append_data(&mut header, "a", &b"abc"[..]).unwrap();
            let mut bytes = builder.into_inner().unwrap();
            for (at, value) in damage {
                bytes[at] = value;
            }
            for start in [0, 1024] {
                let block = &mut bytes[start..start + 512];
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
            let _ = read(&bytes);
        }
    }
}
