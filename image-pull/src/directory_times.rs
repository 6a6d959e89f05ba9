//! Times of directories, to be set when nothing is made in them any more.
//!
//! A layer's author chooses how many directories there are and how long their names: mostly each begins
//! as the one before, so only the rest of it is kept.

use rustix::fs::Timestamps;

/// Names and times in the archive's order.
#[derive(Default)]
pub(crate) struct DirectoryTimes {
    entries: Vec<Entry>,
    rests: Vec<u8>,
    last: Vec<u8>,
}

struct Entry {
    /// Bytes that the name has in common with the one before.
    common: usize,
    /// Bytes in `rests`.
    rest: usize,
    times: Timestamps,
}

impl DirectoryTimes {
    /// Memory that remembering `path` will take, in bytes.
    pub(crate) fn cost(&self, path: &[u8]) -> usize {
        size_of::<Entry>() + path.len() - self.common(path)
    }

    /// Memory that all of it takes, in bytes.
    pub(crate) fn total(&self) -> usize {
        size_of::<Entry>() * self.entries.len() + self.rests.len()
    }

    pub(crate) fn push(&mut self, path: &[u8], times: Timestamps) {
        let common = self.common(path);
        self.rests.extend_from_slice(&path[common..]);
        self.entries.push(Entry { common, rest: path.len() - common, times });
        self.last.truncate(common);
        self.last.extend_from_slice(&path[common..]);
    }

    /// Gives each name with its times to `set`. Of a directory that came twice the later times come later.
    pub(crate) fn for_each<E>(
        &self,
        mut set: impl FnMut(&[u8], &Timestamps) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut path = Vec::new();
        let mut rests = &self.rests[..];
        for Entry { common, rest, times } in &self.entries {
            let (own, others) = rests.split_at(*rest);
            path.truncate(*common);
            path.extend_from_slice(own);
            rests = others;
            set(&path, times)?;
        }
        Ok(())
    }

    fn common(&self, path: &[u8]) -> usize {
        self.last.iter().zip(path).take_while(|(a, b)| a == b).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::fs::Timespec;

    proptest! {
        #[test]
        fn names_come_back(paths in prop::collection::vec("[ab/]{0,12}", 0..20)) {
            let mut kept = DirectoryTimes::default();
            let mut cost = 0;
            for (i, path) in (0..).zip(&paths) {
                let time = Timespec { tv_sec: i, tv_nsec: 0 };
                cost += kept.cost(path.as_bytes());
                kept.push(
                    path.as_bytes(),
                    Timestamps { last_access: time, last_modification: time },
                );
            }
            prop_assert_eq!(cost, kept.total());
            let mut back = Vec::new();
            let all: Result<(), ()> = kept.for_each(|path, times| {
                back.push((String::from_utf8(path.to_vec()).unwrap(), times.last_access.tv_sec));
                Ok(())
            });
            prop_assert_eq!(all, Ok(()));
            let expected: Vec<_> = paths.into_iter().zip(0..).collect();
            prop_assert_eq!(back, expected);
        }
    }
}
