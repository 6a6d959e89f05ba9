//! Containers that ran out of memory.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::raw;

/// Events kept for a host that does not ask.
const MOST_EVENTS: usize = 128;

/// Watches the control groups of containers and keeps what happened until the host asks.
#[derive(Debug)]
pub(crate) struct OomWatch {
    notifier: AsyncFd<OwnedFd>,
    state: Mutex<State>,
    news: Notify,
}

#[derive(Debug, Default)]
struct State {
    watched: HashMap<i32, Watched>,
    events: VecDeque<String>,
}

#[derive(Debug)]
struct Watched {
    container: String,
    events_file: PathBuf,
    kills: u64,
}

impl OomWatch {
    /// Needs the runtime.
    pub(crate) fn new() -> io::Result<Self> {
        let notifier = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self {
            notifier: raw::register(notifier)?,
            state: Mutex::default(),
            news: Notify::new(),
        })
    }

    /// Reports out-of-memory kills in `cgroup` as those of `container`, until the group is removed.
    pub(crate) fn watch(&self, container: &str, cgroup: &Path) -> io::Result<()> {
        let events_file = cgroup.join("memory.events");
        if !events_file.exists() {
            return Ok(());
        }
        let id = inotify::add_watch(self.notifier.get_ref(), &events_file, WatchFlags::MODIFY)?;
        let kills = kills(&events_file);
        let watched = Watched { container: container.to_owned(), events_file, kills };
        self.lock().watched.insert(id, watched);
        Ok(())
    }

    /// Waits for the next container that ran out of memory.
    pub(crate) async fn next(&self) -> String {
        loop {
            let news = self.news.notified();
            if let Some(container) = self.lock().events.pop_front() {
                return container;
            }
            news.await;
        }
    }

    /// Follows the control groups. Returns only if the kernel's notifier fails.
    pub(crate) async fn run(&self) -> io::Result<()> {
        loop {
            let mut ready = self.notifier.readable().await?;
            let read = ready.try_io(|fd| {
                let mut buffer = [MaybeUninit::uninit(); 4096];
                let mut reader = inotify::Reader::new(fd.get_ref(), &mut buffer);
                let mut changed = Vec::new();
                loop {
                    let event = reader.next()?;
                    changed.push((event.wd(), event.events()));
                    if reader.is_buffer_empty() {
                        return Ok(changed);
                    }
                }
            });
            match read {
                Ok(changed) => self.changed(&changed?),
                Err(_would_block) => {}
            }
        }
    }

    fn changed(&self, changed: &[(i32, inotify::ReadFlags)]) {
        let mut state = self.lock();
        for (id, flags) in changed {
            // The group is gone.
            if flags.contains(inotify::ReadFlags::IGNORED) {
                state.watched.remove(id);
                continue;
            }
            let Some(watched) = state.watched.get_mut(id) else { continue };
            let kills = kills(&watched.events_file);
            if kills > watched.kills {
                watched.kills = kills;
                let container = watched.container.clone();
                tracing::warn!(container, "a process was killed: the container is out of memory");
                if state.events.len() == MOST_EVENTS {
                    state.events.pop_front();
                }
                state.events.push_back(container);
                self.news.notify_one();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn kills(events_file: &Path) -> u64 {
    let text = fs::read_to_string(events_file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_kill_is_reported_once() {
        let group = tempfile::tempdir().unwrap();
        let file = group.path().join("memory.events");
        fs::write(&file, "oom 0\noom_kill 0\n").unwrap();
        let watch = Arc::new(OomWatch::new().unwrap());
        watch.watch("a", group.path()).unwrap();
        let following = Arc::clone(&watch);
        let task = tokio::spawn(async move { following.run().await });
        fs::write(&file, "oom 1\noom_kill 1\n").unwrap();
        assert_eq!(watch.next().await, "a");
        let second = tokio::time::timeout(Duration::from_millis(100), watch.next()).await;
        assert!(second.is_err(), "nothing new has happened");
        task.abort();
    }
}
