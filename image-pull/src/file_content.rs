//! Writes a file's content, and leaves out what is zero anyway: a hole costs no memory.

use std::os::fd::OwnedFd;

use rustix::fs::ftruncate;
use rustix::io::{Errno, pwrite};

/// Zeros that become a hole, in bytes: shorter runs are not worth the system call.
const HOLE: usize = 32 << 10;
/// Memory is had by the page, in bytes.
const PAGE: usize = 4096;

/// A file whose content comes in pieces.
pub(crate) struct FileContent<'a> {
    file: &'a OwnedFd,
    /// Where the next byte goes.
    at: u64,
    /// End of what was written.
    end: u64,
    /// Regions of a sparse file that are still to be filled; none otherwise.
    regions: Option<std::slice::Iter<'a, (u64, u64)>>,
    /// Bytes that the current region still takes.
    left: u64,
}

impl<'a> FileContent<'a> {
    /// An empty file. With `regions`, its content goes there.
    pub(crate) fn new(file: &'a OwnedFd, regions: Option<&'a [(u64, u64)]>) -> Self {
        let left = if regions.is_some() { 0 } else { u64::MAX };
        Self { file, at: 0, end: 0, regions: regions.map(<[_]>::iter), left }
    }

    /// The next piece.
    pub(crate) fn put(&mut self, mut piece: &[u8]) -> Result<(), Errno> {
        while !piece.is_empty() {
            while self.left == 0 {
                // Checked before: the regions take exactly what comes.
                let next = self.regions.as_mut().and_then(Iterator::next);
                (self.at, self.left) = *next.ok_or(Errno::FBIG)?;
            }
            let len = usize::try_from(self.left).map_or(piece.len(), |left| left.min(piece.len()));
            let (now, later) = piece.split_at(len);
            self.put_here(now)?;
            self.left -= len as u64;
            piece = later;
        }
        Ok(())
    }

    /// Gives the file its size.
    pub(crate) fn finish(self, size: u64) -> Result<(), Errno> {
        if self.end == size { Ok(()) } else { ftruncate(self.file, size) }
    }

    fn put_here(&mut self, mut piece: &[u8]) -> Result<(), Errno> {
        while !piece.is_empty() {
            let (data, zeros) = until_hole(piece, self.at);
            self.write(&piece[..data])?;
            self.at += zeros as u64;
            piece = &piece[data + zeros..];
        }
        Ok(())
    }

    fn write(&mut self, mut data: &[u8]) -> Result<(), Errno> {
        while !data.is_empty() {
            match pwrite(self.file, data, self.at) {
                Ok(0) => return Err(Errno::IO),
                Ok(written) => {
                    self.at += written as u64;
                    self.end = self.at;
                    data = &data[written..];
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// How many bytes of `piece`, which begins at `at` in its file, come before the first hole, and how many
/// zeros the hole has.
fn until_hole(piece: &[u8], at: u64) -> (usize, usize) {
    if piece.len() < HOLE {
        return (piece.len(), 0);
    }
    let into_page = usize::try_from(at % PAGE as u64).unwrap_or_default();
    let first = (PAGE - into_page) % PAGE;
    let mut zeros = 0;
    for start in (first..piece.len()).step_by(PAGE) {
        let Some(page) = piece.get(start..start + PAGE) else { break };
        if page.iter().all(|byte| *byte == 0) {
            zeros += PAGE;
        } else if zeros >= HOLE {
            return (start - zeros, zeros);
        } else {
            zeros = 0;
        }
    }
    let whole = piece.len().saturating_sub(first) / PAGE * PAGE;
    if zeros >= HOLE { (first + whole - zeros, zeros) } else { (piece.len(), 0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{Read, Seek};
    use std::os::unix::fs::MetadataExt;

    fn write(pieces: &[&[u8]], regions: Option<&[(u64, u64)]>, size: u64) -> (Vec<u8>, u64) {
        let mut file = tempfile::tempfile_in("/dev/shm").unwrap();
        let fd = OwnedFd::from(file.try_clone().unwrap());
        let mut content = FileContent::new(&fd, regions);
        for piece in pieces {
            content.put(piece).unwrap();
        }
        content.finish(size).unwrap();
        let mut read = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut read).unwrap();
        (read, file.metadata().unwrap().blocks() * 512)
    }

    #[test]
    fn zeros_take_no_room() {
        let zeros = vec![0; 1 << 20];
        let (read, room) = write(&[b"a", &zeros, b"b", &zeros], None, 2 + (2 << 20));
        assert_eq!(read, [b"a", &*zeros, b"b", &*zeros].concat());
        assert!(room <= 16 << 10, "{room}");
        assert_eq!(write(&[&zeros], None, 1 << 20).1, 0);
    }

    #[test]
    fn regions_are_filled_in_order() {
        let regions = [(0, 0), (3, 2), (10, 4), (20, 0)];
        let (read, _) = write(&[b"a", b"bcd", b"ef"], Some(&regions), 22);
        assert_eq!(read, b"\0\0\0ab\0\0\0\0\0cdef\0\0\0\0\0\0\0\0");
    }

    proptest! {
        /// Runs of zeros and others, cut anywhere: what is read is what was written.
        #[test]
        fn content_survives(
            runs in prop::collection::vec((any::<bool>(), 0usize..100_000), 0..6),
            cut in 1usize..200_000,
        ) {
            let mut bytes = Vec::new();
            for (zero, len) in runs {
                bytes.resize(bytes.len() + len, if zero { 0 } else { 7 });
            }
            let pieces: Vec<&[u8]> = bytes.chunks(cut).collect();
            let (read, _) = write(&pieces, None, bytes.len() as u64);
            prop_assert!(read == bytes);
        }
    }
}
