//! The file in which a container says why it ended.
//!
//! Its content is the container's, its name is not: it is read where the agent has bound it, which no container
//! reaches.

use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nacre_protocol::termination::{self, MOST_BYTES};

/// The end of the file at `place`, as text.
pub(super) fn read(place: &Path) -> io::Result<String> {
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits();
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.read(true).custom_flags(flags.cast_signed()).open(place)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let most = MOST_BYTES as u64;
    file.seek(SeekFrom::Start(found.len().saturating_sub(most)))?;
    let mut content = Vec::new();
    file.take(most).read_to_end(&mut content)?;
    Ok(termination::last_words(&content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_file_is_read() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("bind-0");
        std::fs::write(&file, "disk on fire").unwrap();
        assert_eq!(read(&file).unwrap(), "disk on fire");
        std::fs::write(&file, "x".repeat(1_000_000) + "end").unwrap();
        let words = read(&file).unwrap();
        assert!(words.len() == MOST_BYTES && words.ends_with("xend"));
    }

    #[test]
    fn what_is_no_file_is_not_read() {
        let place = tempfile::tempdir().unwrap();
        let (link, pipe) = (place.path().join("link"), place.path().join("pipe"));
        std::fs::write(place.path().join("file"), "x").unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        for bad in [&link, &pipe, &place.path().to_owned()] {
            assert!(read(bad).is_err(), "{}", bad.display());
        }
    }
}
