//! Volumes that the kubelet exchanges while the pod runs: configMap, secret, projected, downwardAPI.
//!
//! The kubelet writes new files into a directory of their own and then lets the link `..data` lead there,
//! by one rename(2). The same is done in the guest: the new directory is copied first, then the link is
//! exchanged. inotify(7) tells of the rename; where it is not to be had, and for events that got lost, the
//! links are read from time to time.
//!
//! The guest's policy decides whether it takes new files. What it refuses is logged and not tried again; the
//! container keeps the files that it has.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;

use super::{Budget, Entry, EntryKind, VolumeError, copy, join, list_beneath, unreadable};
use crate::agent::{Agent, AgentError};
use crate::sandbox::Sandbox;
use crate::spec::HostMount;

/// The link to the directory with the files.
const DATA_LINK: &str = "..data";
/// How often the links are read, whatever inotify tells.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// The kubelet renames and removes several names for one update.
const SETTLE: Duration = Duration::from_millis(50);
/// Rest after an update that failed halfway.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// How often one update is tried.
const MOST_TRIES: u32 = 5;

/// A volume that a container has been given a copy of.
#[derive(Debug)]
pub(crate) struct Changing {
    mount: Arc<HostMount>,
    /// Where its copy is in the guest.
    place: String,
    /// What `..data` leads to in the guest.
    current: OsString,
    /// Files in it that a link leads to.
    links: BTreeSet<String>,
    /// What the guest did not take.
    given_up: Option<OsString>,
    tries: u32,
}

impl Changing {
    /// `copied` is what has been copied to `place`; `None` for a volume that is not of this kind.
    pub(super) fn of(mount: &Arc<HostMount>, place: &str, copied: &[Entry]) -> Option<Self> {
        let name = |entry: &Entry| {
            let name = entry.target.strip_prefix(place).and_then(|rest| rest.strip_prefix('/'));
            name.filter(|name| !name.contains('/')).map(str::to_owned)
        };
        let mut current = None;
        let mut links = BTreeSet::new();
        for entry in copied {
            match (&entry.kind, name(entry)) {
                (EntryKind::Link(to), Some(name)) if name == DATA_LINK => {
                    current = Some(to.clone().into_os_string());
                }
                (EntryKind::Link(_), Some(name)) => {
                    links.insert(name);
                }
                _ => {}
            }
        }
        let (mount, place) = (mount.clone(), place.to_owned());
        current.map(|current| Self { mount, place, current, links, given_up: None, tries: 0 })
    }

    /// Whether there is something new to bring.
    fn is_stale(&self) -> Option<OsString> {
        let now = self.mount.source.join(DATA_LINK).read_link().ok()?.into_os_string();
        (now != self.current && self.given_up.as_ref() != Some(&now)).then_some(now)
    }

    /// Brings the files of the directory `new`.
    async fn bring(&mut self, agent: &Agent, new: &OsStr) -> Result<(), VolumeError> {
        let (mount, place) = (self.mount.clone(), self.place.clone());
        let listing = {
            let (mount, new) = (mount.clone(), new.to_owned());
            tokio::task::spawn_blocking(move || list_generation(&mount, &place, &new))
        };
        let Generation { files, names } = join(listing.await, &mount)?;
        for entry in files {
            copy(agent, &mount, entry).await?;
        }
        let link = |name: &str, to: &Path| Entry {
            source: mount.source.join(name),
            target: format!("{}/{name}", self.place),
            mode: LINK_MODE,
            uid: 0,
            gid: 0,
            kind: EntryKind::Link(to.to_owned()),
        };
        for name in names.difference(&self.links) {
            copy(agent, &mount, link(name, &Path::new(DATA_LINK).join(name))).await?;
        }
        copy(agent, &mount, link(DATA_LINK, Path::new(new))).await?;
        // The guest has removed the old files, and links to files that are no more.
        self.current = new.to_owned();
        self.links = names;
        Ok(())
    }
}

/// A symbolic link, as lstat(2) says it.
const LINK_MODE: u32 = libc::S_IFLNK | 0o777;

/// The files of one state of a volume.
#[derive(Debug)]
struct Generation {
    files: Vec<Entry>,
    /// Those at its top.
    names: BTreeSet<String>,
}

fn list_generation(mount: &HostMount, place: &str, new: &OsStr) -> Result<Generation, VolumeError> {
    let directory = mount.source.join(new);
    let name = new.to_str().filter(|name| {
        name.starts_with("..") && name.len() > 2 && *name != DATA_LINK && !name.contains('/')
    });
    let name = name.ok_or_else(|| {
        let cause = io::Error::other("..data does not lead to a directory beside it");
        unreadable(mount, &directory, cause)
    })?;
    let found =
        directory.symlink_metadata().map_err(|cause| unreadable(mount, &directory, cause))?;
    if !found.is_dir() {
        let cause = io::ErrorKind::NotADirectory.into();
        return Err(unreadable(mount, &directory, cause));
    }
    let target = format!("{place}/{name}");
    let (files, _) = list_beneath(mount, directory, target.clone(), Budget::WHOLE)?;
    let names = files.iter().filter_map(|entry| {
        let name = entry.target.strip_prefix(&target)?.strip_prefix('/')?;
        (!name.contains('/')).then(|| name.to_owned())
    });
    Ok(Generation { names: names.collect(), files })
}

/// Follows the volumes of a container until it is dropped.
#[derive(Debug)]
pub(crate) struct Following(AbortHandle);

impl Following {
    pub(crate) fn start(
        sandbox: &Arc<Sandbox>,
        container: &str,
        volumes: Vec<Changing>,
    ) -> Option<Self> {
        if volumes.is_empty() {
            return None;
        }
        let following = follow(sandbox.clone(), container.to_owned(), volumes);
        Some(Self(tokio::spawn(following).abort_handle()))
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn follow(sandbox: Arc<Sandbox>, container: String, mut volumes: Vec<Changing>) {
    let events = Events::of(&volumes)
        .inspect_err(|error| {
            tracing::warn!(
                "container {container}: changes of its volumes are looked for only every {} s: {error}",
                LOOK_EVERY.as_secs()
            );
        })
        .ok();
    loop {
        let mut again = LOOK_EVERY;
        for volume in &mut volumes {
            let Some(new) = volume.is_stale() else { continue };
            match volume.bring(&sandbox.agent, &new).await {
                Ok(()) => {
                    volume.tries = 0;
                    tracing::info!(
                        "container {container}: {} has changed, in the guest too",
                        volume.mount.destination.display()
                    );
                }
                Err(VolumeError::Agent { cause: AgentError::Gone(_), .. }) => return,
                Err(error) => {
                    volume.tries += 1;
                    let refused = matches!(
                        &error,
                        VolumeError::Agent { cause: AgentError::Refused { .. }, .. }
                    );
                    if refused || volume.tries >= MOST_TRIES {
                        volume.tries = 0;
                        volume.given_up = Some(new);
                        tracing::warn!(
                            "container {container}: {} keeps its files: {error}",
                            volume.mount.destination.display()
                        );
                    } else {
                        tracing::info!("container {container}: will try again: {error}");
                        again = RETRY_AFTER;
                    }
                }
            }
        }
        match &events {
            Some(events) => {
                if let Ok(Err(error)) = tokio::time::timeout(again, events.next()).await {
                    tracing::warn!("container {container}: inotify: {error}");
                    tokio::time::sleep(again).await;
                }
            }
            None => tokio::time::sleep(again).await,
        }
    }
}

/// Tells that something was renamed in one of the volumes.
struct Events(AsyncFd<OwnedFd>);

impl Events {
    fn of(volumes: &[Changing]) -> io::Result<Self> {
        let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let what = WatchFlags::MOVED_TO | WatchFlags::CREATE | WatchFlags::ONLYDIR;
        for volume in volumes {
            inotify::add_watch(&queue, &volume.mount.source, what)?;
        }
        #[expect(
            deprecated,
            reason = "`register` is unsafe, which this crate has none of; an owned descriptor stays open \
                      for as long as it is registered"
        )]
        let queue = AsyncFd::new(queue)?;
        Ok(Self(queue))
    }

    /// Waits for some. Which volume it was does not matter: all links are read.
    async fn next(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        tokio::time::sleep(SETTLE).await;
        let mut buffer = [0; 4096];
        while rustix::io::read(&self.0, &mut buffer).is_ok_and(|read| read > 0) {}
        ready.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn volume(root: &Path, generation: &str, files: &[&str]) {
        fs::create_dir(root.join(generation)).unwrap();
        for name in files {
            let path = root.join(generation).join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, generation).unwrap();
        }
        let staged = root.join("..data_tmp");
        symlink(generation, &staged).unwrap();
        fs::rename(staged, root.join(DATA_LINK)).unwrap();
    }

    fn changing(root: &Path) -> Changing {
        let mount = Arc::new(HostMount {
            position: 0,
            source: root.to_owned(),
            destination: "/in/container".into(),
            read_only: true,
        });
        let copied = list_beneath(&mount, root.to_owned(), "P".into(), Budget::WHOLE).unwrap().0;
        Changing::of(&mount, "P", &copied).unwrap()
    }

    #[test]
    fn a_new_state_is_noticed_and_listed() {
        let root = tempfile::tempdir().unwrap();
        volume(root.path(), "..2026_a", &["key"]);
        symlink("..data/key", root.path().join("key")).unwrap();
        let mut changing = changing(root.path());
        assert_eq!(changing.is_stale(), None);
        assert_eq!(changing.links, BTreeSet::from(["key".to_owned()]));
        volume(root.path(), "..2026_b", &["key", "sub/more"]);
        let new = changing.is_stale().unwrap();
        assert_eq!(new, "..2026_b");
        let listed = list_generation(&changing.mount, "P", &new).unwrap();
        assert_eq!(listed.names, BTreeSet::from(["key".to_owned(), "sub".to_owned()]));
        assert_eq!(listed.files.len(), 4);
        assert!(listed.files.iter().all(|entry| entry.target.starts_with("P/..2026_b")));
        changing.given_up = Some(new);
        assert_eq!(changing.is_stale(), None);
    }

    #[test]
    fn what_data_must_not_lead_to_is_refused() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("plain")).unwrap();
        volume(root.path(), "..2026_a", &["key"]);
        symlink("/etc", root.path().join("..link")).unwrap();
        let changing = changing(root.path());
        for bad in
            ["/etc", "plain", "..", "..data", "../x", "..2026_a/../plain", "..absent", "..link"]
        {
            assert!(list_generation(&changing.mount, "P", OsStr::new(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn other_directories_are_not_followed() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("plain"), "").unwrap();
        let mount = Arc::new(HostMount {
            position: 0,
            source: root.path().to_owned(),
            destination: "/x".into(),
            read_only: true,
        });
        let copied =
            list_beneath(&mount, root.path().to_owned(), "P".into(), Budget::WHOLE).unwrap().0;
        assert!(Changing::of(&mount, "P", &copied).is_none());
    }

    #[tokio::test]
    async fn inotify_tells_of_the_rename() {
        let root = tempfile::tempdir().unwrap();
        volume(root.path(), "..2026_a", &["key"]);
        let changing = changing(root.path());
        let events = Events::of(std::slice::from_ref(&changing)).unwrap();
        volume(root.path(), "..2026_b", &["key"]);
        events.next().await.unwrap();
        assert!(changing.is_stale().is_some());
    }
}
