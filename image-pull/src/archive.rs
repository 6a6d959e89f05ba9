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

use crate::sparse::Sparse;
use crate::tar_extensions::{Extensions, check_global};
use crate::tar_header::Header;

/// Everything in a tar archive comes in blocks, in bytes.
pub(crate) const BLOCK: usize = 512;
/// Read ahead and write in pieces of this size, in bytes.
const BUFFER: usize = 128 * 1024;
/// Longest PAX header or GNU long name, in bytes (Go's `archive/tar` has the same bound).
const MAX_EXTENSION: u64 = 1 << 20;

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
    /// Bytes of content in the archive.
    pub(crate) size: u64,
    /// Where these go, if the file has holes.
    pub(crate) sparse: Option<Sparse>,
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
                    let mut entry = extensions.apply(&header)?;
                    self.content = entry.size;
                    self.padding = padding(entry.size);
                    if let Some(sparse) = &mut entry.sparse {
                        // Part of the map may stand between header and content.
                        let map = sparse.complete(|block| self.map_block(block))?;
                        entry.size = sparse.check(entry.size, map)?;
                        self.content = entry.size;
                    }
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

    /// A block of a sparse file's map.
    fn map_block(&mut self, block: &mut [u8; BLOCK]) -> Result<(), ArchiveError> {
        match self.block(block)? {
            BLOCK => Ok(()),
            _ => Err(truncated()),
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
