//! Files with holes: the four forms in which GNU tar writes them (GNU tar manual, "Storing Sparse
//! Files"), which Go's `archive/tar` and so containerd read.
//!
//! A map says where the bytes of the archive go in the file. It must be in order, without overlap, within
//! the file, and account for every byte, or the archive is refused.

use crate::archive::{ArchiveError, BLOCK, refused};
use crate::pax::decimal;
use crate::tar_header::Header;

/// Most regions of one file.
const MAX_REGIONS: usize = 65_536;

/// Where the content of a sparse file goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sparse {
    /// Bytes of the file, holes included.
    pub(crate) size: u64,
    /// Offset in the file and length of each piece of content.
    pub(crate) regions: Vec<(u64, u64)>,
    more: More,
}

/// What is still to be read of the map.
#[derive(Debug, PartialEq, Eq)]
enum More {
    Nothing,
    /// Blocks behind the header, which are not counted as content (the oldest form).
    Header,
    /// Blocks at the begin of the content (form 1.0).
    Content,
}

impl Sparse {
    /// The map that the header itself holds.
    pub(crate) fn of_header(header: &Header) -> Result<Self, ArchiveError> {
        if !header.is_gnu() {
            return refused("a sparse file has a header that is not GNU tar's");
        }
        let mut regions = Vec::new();
        for at in 0..4 {
            let start = 386 + 24 * at;
            if header.text(start..start + 24).is_empty() {
                break;
            }
            let number = |range| header.number(range, "sparse map");
            regions.push((number(start..start + 12)?, number(start + 12..start + 24)?));
        }
        let more = match header.is_extended() {
            true => More::Header,
            false => More::Nothing,
        };
        Ok(Self { size: header.number(483..495, "real size")?, regions, more })
    }

    /// Reads the rest of the map by `next`; how many bytes of it were content.
    pub(crate) fn complete(
        &mut self,
        mut next: impl FnMut(&mut [u8; BLOCK]) -> Result<(), ArchiveError>,
    ) -> Result<u64, ArchiveError> {
        let mut block = [0; BLOCK];
        match std::mem::replace(&mut self.more, More::Nothing) {
            More::Nothing => Ok(0),
            More::Header => {
                loop {
                    next(&mut block)?;
                    let extended = block[504] != 0;
                    // The numbers have the form of those in a header.
                    let map = Header::unchecked(block);
                    for at in 0..21 {
                        let start = 24 * at;
                        if map.text(start..start + 24).is_empty() {
                            break;
                        }
                        let number = |range| map.number(range, "sparse map");
                        self.add((number(start..start + 12)?, number(start + 12..start + 24)?))?;
                    }
                    if !extended {
                        return Ok(0);
                    }
                }
            }
            More::Content => {
                let mut numbers = Numbers { block: &mut block, at: BLOCK, blocks: 0, next };
                let count = numbers.next()?;
                for _ in 0..count {
                    let region = (numbers.next()?, numbers.next()?);
                    self.add(region)?;
                }
                Ok(numbers.blocks * BLOCK as u64)
            }
        }
    }

    fn add(&mut self, region: (u64, u64)) -> Result<(), ArchiveError> {
        if self.regions.len() >= MAX_REGIONS {
            return refused(format!("a sparse file has more than {MAX_REGIONS} regions"));
        }
        self.regions.push(region);
        Ok(())
    }

    /// Checks the whole map, of which `map` bytes were content of the archive; the bytes that are left
    /// for the file.
    pub(crate) fn check(&self, size: u64, map: u64) -> Result<u64, ArchiveError> {
        let mut end = 0_u64;
        let mut content = 0_u64;
        for (offset, length) in &self.regions {
            let next = offset.checked_add(*length);
            match next.filter(|next| *offset >= end && *next <= self.size) {
                Some(next) => end = next,
                None => return refused("a sparse file's map is not in order or leaves the file"),
            }
            content += length;
        }
        if self.size > i64::MAX as u64 || size.checked_sub(map) != Some(content) {
            return refused("a sparse file's map does not fit its content");
        }
        Ok(content)
    }
}

/// Decimal numbers, each with a newline, that end somewhere in a block.
struct Numbers<'a, F> {
    block: &'a mut [u8; BLOCK],
    at: usize,
    blocks: u64,
    next: F,
}

impl<F: FnMut(&mut [u8; BLOCK]) -> Result<(), ArchiveError>> Numbers<'_, F> {
    fn next(&mut self) -> Result<u64, ArchiveError> {
        let mut digits = Vec::new();
        loop {
            if self.at == BLOCK {
                (self.next)(self.block)?;
                self.blocks += 1;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'\n' => return decimal(&digits, "sparse map"),
                _ if digits.len() == 20 => return refused("a sparse file's map has no numbers"),
                digit => digits.push(digit),
            }
        }
    }
}

/// What PAX records say about holes.
#[derive(Debug, Default)]
pub(crate) struct SparseRecords {
    any: bool,
    name: Option<Vec<u8>>,
    size: Option<u64>,
    version: (Option<u64>, Option<u64>),
    map: Option<Vec<u64>>,
    /// Offsets and lengths, one by one (form 0.0).
    pairs: Vec<u64>,
}

impl SparseRecords {
    /// Takes a record whose name is `GNU.sparse.` and `key`.
    pub(crate) fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), ArchiveError> {
        self.any = true;
        let number = || decimal(value, "GNU.sparse");
        let again = match key {
            b"name" => self.name.replace(value.to_vec()).is_some(),
            b"size" | b"realsize" => self.size.replace(number()?).is_some(),
            b"major" => self.version.0.replace(number()?).is_some(),
            b"minor" => self.version.1.replace(number()?).is_some(),
            b"map" => {
                let numbers = value.split(|b| *b == b',').filter(|number| !number.is_empty());
                let numbers = numbers.map(|number| decimal(number, "GNU.sparse.map"));
                self.map.replace(numbers.collect::<Result<_, _>>()?).is_some()
            }
            b"offset" | b"numbytes" => {
                let is_offset = key == b"offset";
                self.pairs.push(number()?);
                is_offset != (self.pairs.len() % 2 == 1)
            }
            b"numblocks" => false,
            _ => return refused("a PAX header describes a sparse file in an unknown way"),
        };
        if again || self.pairs.len() > 2 * MAX_REGIONS {
            return refused("a PAX header describes a sparse file in two ways");
        }
        Ok(())
    }

    /// The file's own name; what stands in the path's place is for readers that know no holes.
    pub(crate) fn name(&self) -> Option<&[u8]> {
        self.name.as_deref()
    }

    /// The map, if there is one.
    pub(crate) fn read(self) -> Result<Option<Sparse>, ArchiveError> {
        if !self.any {
            return Ok(None);
        }
        let Some(size) = self.size else { return refused("a sparse file has no size") };
        let (numbers, more) = match (self.version, self.map, self.pairs) {
            ((Some(1), Some(0)), None, pairs) if pairs.is_empty() => (Vec::new(), More::Content),
            ((None, None) | (Some(0), Some(1)), Some(map), pairs) if pairs.is_empty() => {
                (map, More::Nothing)
            }
            ((None, None) | (Some(0), Some(0)), None, pairs) => (pairs, More::Nothing),
            _ => return refused("a PAX header describes a sparse file in two ways"),
        };
        if numbers.len() % 2 != 0 || numbers.len() > 2 * MAX_REGIONS {
            return refused("a sparse file's map is cut off or too long");
        }
        let regions = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        Ok(Some(Sparse { size, regions, more }))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::process::Command;

    use super::*;
    use crate::Limits;
    use crate::archive::Archive;
    use crate::budget::Budget;
    use crate::extract::extract;

    fn unpack(tar: &[u8], into: &std::path::Path) -> Result<(), String> {
        let flags = rustix::fs::OFlags::DIRECTORY;
        let root = rustix::fs::open(into, flags, rustix::fs::Mode::empty()).unwrap();
        let limits = Limits { unpacked_bytes: 1 << 30, ..Limits::default() };
        let budget = Budget::new(&limits).share();
        extract(&mut Archive::new(tar), root, &budget).map(drop).map_err(|e| e.to_string())
    }

    /// GNU tar itself writes the archives, with more regions than one header or block holds.
    #[test]
    fn all_forms_of_gnu_tar_are_read() {
        let world = tempfile::tempdir_in("/dev/shm").unwrap();
        let from = std::fs::File::create(world.path().join("sparse")).unwrap();
        for i in 0..60_u64 {
            from.write_all_at(&[b'a' + (i % 26) as u8; 5000], 100 + i * 65_536).unwrap();
        }
        from.set_len(8 << 20).unwrap();
        std::fs::write(world.path().join("after"), "whole").unwrap();
        let read = |path: &std::path::Path| std::fs::read(path).unwrap();
        for (at, form) in [
            &["--format=gnu"][..],
            &["--format=posix", "--sparse-version=0.0"],
            &["--format=posix", "--sparse-version=0.1"],
            &["--format=posix", "--sparse-version=1.0"],
        ]
        .into_iter()
        .enumerate()
        {
            let tar = Command::new("tar")
                .args(["-c", "-S", "-C"])
                .arg(world.path())
                .args(form)
                .args(["sparse", "after"])
                .output()
                .unwrap();
            assert!(tar.status.success(), "{}", String::from_utf8_lossy(&tar.stderr));
            assert!(tar.stdout.len() < 1 << 20, "tar made it sparse");
            let into = world.path().join(at.to_string());
            std::fs::create_dir(&into).unwrap();
            unpack(&tar.stdout, &into).unwrap();
            assert!(read(&into.join("sparse")) == read(&world.path().join("sparse")), "{form:?}");
            assert_eq!(read(&into.join("after")), b"whole");
            let blocks = into.join("sparse").metadata().unwrap().blocks();
            assert!(blocks * 512 < 1 << 20, "{form:?}: holes are kept, {blocks}");
            // A cut map, or one that is damaged, is no file.
            for end in [600, 1100, 1600, 2100] {
                assert!(unpack(&tar.stdout[..end], &into).is_err(), "{form:?} {end}");
            }
        }
    }

    #[test]
    fn maps_must_be_true() {
        let sparse = |size, regions: &[(u64, u64)]| Sparse {
            size,
            regions: regions.to_vec(),
            more: More::Nothing,
        };
        assert_eq!(sparse(9, &[(0, 2), (4, 5), (9, 0)]).check(7, 0).unwrap(), 7);
        assert_eq!(sparse(9, &[(0, 2)]).check(514, 512).unwrap(), 2);
        assert_eq!(sparse(9, &[]).check(0, 0).unwrap(), 0);
        for (size, regions, content) in [
            (9, &[(4, 2), (0, 2)][..], 4),
            (9, &[(0, 3), (2, 2)], 5),
            (9, &[(8, 2)], 2),
            (9, &[(u64::MAX, 2)], 2),
            (9, &[(0, 2)], 3),
            (9, &[(0, 2)], 1),
            (u64::MAX, &[], 0),
        ] {
            assert!(sparse(size, regions).check(content, 0).is_err(), "{size} {regions:?}");
        }
        assert!(sparse(9, &[(0, 2)]).check(511, 512).is_err());
    }

    #[test]
    fn records_must_agree() {
        let read = |records: &[(&str, &str)]| {
            let mut sparse = SparseRecords::default();
            for (key, value) in records {
                sparse.add(key.as_bytes(), value.as_bytes())?;
            }
            sparse.read()
        };
        assert!(read(&[]).unwrap().is_none());
        let old = read(&[("size", "9"), ("offset", "1"), ("numbytes", "2")]).unwrap().unwrap();
        assert_eq!((old.size, &old.regions[..]), (9, &[(1, 2)][..]));
        for bad in [
            &[("map", "0,1")][..],
            &[("size", "9"), ("size", "9")],
            &[("size", "9"), ("realsize", "9")],
            &[("size", "9"), ("map", "0")],
            &[("size", "9"), ("map", "0,x")],
            &[("size", "9"), ("map", "0,1"), ("offset", "0"), ("numbytes", "1")],
            &[("size", "9"), ("offset", "1"), ("offset", "1")],
            &[("size", "9"), ("numbytes", "1")],
            &[("size", "9"), ("offset", "1")],
            &[("size", "9"), ("major", "2"), ("minor", "0")],
            &[("size", "9"), ("major", "1"), ("minor", "0"), ("map", "0,1")],
            &[("size", "9"), ("other", "1")],
        ] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
        let many = "0,".repeat(2 * MAX_REGIONS + 2);
        assert!(read(&[("size", "9"), ("map", &many)]).is_err());
    }
}
