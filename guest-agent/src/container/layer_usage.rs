//! What a container has written to its root: the size of the directory that takes it.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nacre_protocol::agent::WritableLayerStats;
use tokio::sync::Mutex;

/// Entries that are counted at most; more would keep the guest busy for the host's statistics.
const MOST_ENTRIES: u64 = 1_000_000;
/// How long figures are given again instead of being counted anew.
const FRESH: Duration = Duration::from_secs(5);

/// The last count.
#[derive(Debug, Clone, Default)]
pub(super) struct LayerUsage {
    last: Arc<Mutex<Option<(Instant, Figures)>>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Figures {
    bytes: u64,
    inodes: u64,
}

impl LayerUsage {
    /// Counts what is in `directory`, one count at a time.
    pub(super) async fn of(&self, directory: PathBuf) -> WritableLayerStats {
        let mut last = Arc::clone(&self.last).lock_owned().await;
        let known = *last;
        let figures = match known {
            Some((at, figures)) if at.elapsed() < FRESH => figures,
            _ => {
                // The lock goes with it: a request that is given up does not make room for a second count.
                let counting = tokio::task::spawn_blocking(move || {
                    let figures = count(&directory, MOST_ENTRIES);
                    *last = Some((Instant::now(), figures));
                    figures
                });
                counting.await.unwrap_or_default()
            }
        };
        WritableLayerStats { bytes: figures.bytes, inodes: figures.inodes, ..Default::default() }
    }
}

/// Follows no link; what goes away in the meantime, or lies deeper than a path can say, is not counted.
fn count(directory: &Path, most: u64) -> Figures {
    let mut figures = Figures::default();
    let mut several_names = HashSet::new();
    let mut ahead = vec![directory.to_owned()];
    while let Some(path) = ahead.pop() {
        let Ok(found) = fs::symlink_metadata(&path) else { continue };
        if found.nlink() > 1 && !found.is_dir() && !several_names.insert((found.dev(), found.ino()))
        {
            continue;
        }
        figures.bytes = figures.bytes.saturating_add(found.blocks().saturating_mul(512));
        figures.inodes += 1;
        if found.is_dir()
            && let Ok(entries) = fs::read_dir(&path)
        {
            let left = most.saturating_sub(figures.inodes + ahead.len() as u64);
            let left = usize::try_from(left).unwrap_or(usize::MAX);
            ahead.extend(entries.take(left).flatten().map(|entry| entry.path()));
        }
    }
    figures
}

#[cfg(test)]
mod tests {
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

    #[tokio::test]
    async fn figures_are_given_again_while_they_are_fresh() {
        let place = tempfile::tempdir().unwrap();
        let usage = LayerUsage::default();
        let first = usage.of(place.path().to_owned()).await;
        assert_eq!(first.inodes, 1);
        fs::write(place.path().join("file"), "x").unwrap();
        assert_eq!(usage.of(place.path().to_owned()).await.inodes, 1);
        *usage.last.lock().await = None;
        assert_eq!(usage.of(place.path().to_owned()).await.inodes, 2);
    }
}
