//! What a container has written to its root: the size of the directory that takes it.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nacre_protocol::agent::WritableLayerStats;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use tokio::task::JoinHandle;

/// Entries that are counted at most; more would keep the guest busy for the host's statistics.
const MOST_ENTRIES: u64 = 1_000_000;
/// Directories within each other that are looked into at most: each is open meanwhile.
const MOST_DEPTH: usize = 64;
/// Files with several names that are remembered at most, to be counted once.
const MOST_REMEMBERED: usize = 65_536;
/// How long figures are given again instead of being counted anew.
const FRESH: Duration = Duration::from_secs(5);
/// For how many times as long as a count took no other one begins.
const REST: u32 = 10;

/// The last count, and one that is under way.
#[derive(Debug, Default)]
pub(super) struct LayerUsage {
    last: Arc<Mutex<Option<Counted>>>,
    counting: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Clone, Copy)]
struct Counted {
    figures: Figures,
    /// When they are to be counted anew.
    stale: Instant,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Figures {
    bytes: u64,
    inodes: u64,
}

impl LayerUsage {
    /// What was in `directory` when it was counted last; `None` before it has been. Waits for no count: it goes on in
    /// the background, one at a time, and is what the next one who asks is told.
    pub(super) fn known(&self, directory: PathBuf) -> Option<WritableLayerStats> {
        let known = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let is_fresh = known.is_some_and(|known| Instant::now() < known.stale);
        let mut counting = self.counting.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_fresh && counting.as_ref().is_none_or(JoinHandle::is_finished) {
            let last = Arc::clone(&self.last);
            *counting = Some(tokio::task::spawn_blocking(move || {
                let begun = Instant::now();
                let figures = count(&directory, MOST_ENTRIES);
                let stale = Instant::now() + FRESH.max(begun.elapsed() * REST);
                let counted = Some(Counted { figures, stale });
                *last.lock().unwrap_or_else(PoisonError::into_inner) = counted;
            }));
        }
        let Figures { bytes, inodes } = known?.figures;
        Some(WritableLayerStats { bytes, inodes, ..Default::default() })
    }
}

impl Figures {
    fn add(&mut self, found: &Stat) {
        let blocks = u64::try_from(found.st_blocks).unwrap_or_default();
        self.bytes = self.bytes.saturating_add(blocks.saturating_mul(512));
        self.inodes += 1;
    }
}

/// Goes down by directories that are open: a container that puts a link where a directory was leads it nowhere.
/// What goes away in the meantime, or lies too deep, is not counted.
fn count(directory: &Path, most: u64) -> Figures {
    const DIRECTORY: OFlags =
        OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::RDONLY);
    let mut figures = Figures::default();
    let mut several_names = HashSet::new();
    let mut levels = Vec::new();
    if let Ok(top) = rustix::fs::open(directory, DIRECTORY, Mode::empty())
        && let Ok(found) = rustix::fs::fstat(&top)
    {
        figures.add(&found);
        levels.extend(Dir::new(top));
    }
    while let Some(level) = levels.last_mut()
        && figures.inodes < most
    {
        let Some(Ok(entry)) = level.read() else {
            levels.pop();
            continue;
        };
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let Ok(level) = level.fd() else { continue };
        let Ok(found) = rustix::fs::statat(level, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        let is_directory = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
        if found.st_nlink > 1 && !is_directory {
            let file = (found.st_dev, found.st_ino);
            if several_names.contains(&file) {
                continue;
            }
            if several_names.len() < MOST_REMEMBERED {
                several_names.insert(file);
            }
        }
        figures.add(&found);
        let below = is_directory.then(|| rustix::fs::openat(level, name, DIRECTORY, Mode::empty()));
        if let Some(Ok(below)) = below
            && levels.len() < MOST_DEPTH
        {
            levels.extend(Dir::new(below));
        }
    }
    figures
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn everything_counts_once() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("upper");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/file"), vec![1; 100_000]).unwrap();
        fs::hard_link(root.join("a/file"), root.join("a/b/again")).unwrap();
        std::os::unix::fs::symlink("/", root.join("link")).unwrap();
        let found = count(&root, MOST_ENTRIES);
        // Three directories, a file, a link.
        assert_eq!(found.inodes, 5);
        assert!((100_000..400_000).contains(&found.bytes), "{found:?}");
        assert_eq!(count(&root.join("absent"), MOST_ENTRIES), Figures::default());
    }

    #[test]
    fn a_count_has_an_end() {
        let place = tempfile::tempdir().unwrap();
        for number in 0..100 {
            fs::create_dir_all(place.path().join(format!("{number}/x/y"))).unwrap();
        }
        assert_eq!(count(place.path(), MOST_ENTRIES).inodes, 301);
        assert!((30..=41).contains(&count(place.path(), 40).inodes));
    }

    #[test]
    fn it_goes_no_deeper_than_it_has_descriptors_for() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir_all(place.path().join(vec!["d"; 2 * MOST_DEPTH].join("/"))).unwrap();
        fs::write(place.path().join("file"), "x").unwrap();
        assert_eq!(count(place.path(), MOST_ENTRIES).inodes, MOST_DEPTH as u64 + 2);
    }

    #[tokio::test]
    async fn nobody_waits_for_a_count() {
        let place = tempfile::tempdir().unwrap();
        let usage = LayerUsage::default();
        let inodes = || usage.known(place.path().to_owned()).map(|layer| layer.inodes);
        let counted = || async {
            let counting = usage.counting.lock().unwrap().take();
            counting.unwrap().await.unwrap();
        };
        assert_eq!(inodes(), None);
        counted().await;
        assert_eq!(inodes(), Some(1));
        assert!(usage.counting.lock().unwrap().is_none(), "fresh figures were counted anew");
        fs::write(place.path().join("file"), "x").unwrap();
        let make_stale = || usage.last.lock().unwrap().as_mut().unwrap().stale = Instant::now();
        // One that does not end: the old figures, and no second one beside it.
        make_stale();
        *usage.counting.lock().unwrap() = Some(tokio::spawn(std::future::pending()));
        assert_eq!((inodes(), inodes()), (Some(1), Some(1)));
        usage.counting.lock().unwrap().take().unwrap().abort();
        assert_eq!(inodes(), Some(1));
        counted().await;
        assert_eq!(inodes(), Some(2));
    }
}
