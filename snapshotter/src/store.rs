//! The snapshots that containerd believes in, kept in memory and in one small file each.
//!
//! ```text
//! ROOT/lock             held while a snapshotter uses ROOT
//! ROOT/records/12.json  one snapshot; written beside, synced, renamed: whole or not there
//! ROOT/fs/12/           the directory that is mounted for it, unless it is committed: empty, or with account
//!                       files for the names of its image's user
//! ```
//!
//! The record is the commit point. A directory without a record is what a crash left; it is removed
//! at the next start. Names that come from outside are never used as file names.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::accounts::Accounts;

/// Label by which containerd says "this is to become the layer of that name".
pub(crate) const SNAPSHOT_REF_LABEL: &str = "containerd.io/snapshot.ref";

/// Longest name of a snapshot, in bytes. containerd's are below 300.
pub(crate) const MAX_NAME: usize = 4096;
/// Most labels of one snapshot.
pub(crate) const MAX_LABELS: usize = 128;
/// Longest label, key and value together, in bytes: containerd's own limit.
pub(crate) const MAX_LABEL: usize = 4096;

/// Labels of a snapshot.
pub(crate) type Labels = BTreeMap<String, String>;

/// What a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// Mounted read-only.
    View,
    /// Mounted read-write: a container's root.
    Active,
    /// Finished, may be a parent: a layer.
    Committed,
}

/// One snapshot, as its file holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Snapshot {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) parent: Option<String>,
    pub(crate) kind: Kind,
    pub(crate) created: Timestamp,
    pub(crate) updated: Timestamp,
    pub(crate) labels: Labels,
}

/// A moment, since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Timestamp {
    pub(crate) seconds: i64,
    pub(crate) nanos: u32,
}

/// Why a request was refused, or failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("snapshot {0:?} does not exist")]
    NotFound(String),
    #[error("snapshot {0:?} exists already")]
    AlreadyExists(String),
    #[error("parent {parent:?} of snapshot {name:?} does not exist; pull the image again")]
    NoParent { name: String, parent: String },
    #[error("parent {0:?} is not a committed snapshot")]
    ParentNotCommitted(String),
    #[error("snapshot {name:?} has the child {child:?}; remove that first")]
    HasChild { name: String, child: String },
    #[error("snapshot {0:?} is committed and has no mounts; prepare a snapshot on top of it")]
    NoMounts(String),
    #[error("snapshot {0:?} is not active and cannot be committed")]
    NotActive(String),
    #[error("snapshot {0:?} exists already and is not the layer that was asked for")]
    NotThatLayer(String),
    #[error("{0}")]
    Invalid(String),
    #[error("failed to {action} {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("{0} is in use by another nacre-snapshotter; give each its own --root")]
    InUse(PathBuf),
    #[error(
        "{path} is not a snapshot record of this program: {reason}; \
             restore it, or stop containerd and remove its record of snapshotter contents with it"
    )]
    BadRecord { path: PathBuf, reason: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// All snapshots beneath one root directory.
#[derive(Debug)]
pub(crate) struct Store {
    records: PathBuf,
    directories: PathBuf,
    snapshots: HashMap<String, Snapshot>,
    next_id: u64,
    /// Locked for as long as it is open.
    _lock: File,
}

impl Store {
    /// Opens the store beneath `root`, made if absent, and removes what a crash left there.
    pub(crate) fn open(root: &Path) -> Result<Store, OpenError> {
        let (records, directories) = (root.join("records"), root.join("fs"));
        for directory in [&records, &directories] {
            fs::create_dir_all(directory).map_err(failed("create", directory))?;
        }
        let mut store = Store {
            _lock: lock(root)?,
            snapshots: load(&records)?,
            records,
            directories,
            next_id: 1,
        };
        store.next_id = store.snapshots.values().map(|s| s.id).max().unwrap_or(0) + 1;
        store.sweep()?;
        Ok(store)
    }

    /// How many snapshots there are.
    pub(crate) fn len(&self) -> usize {
        self.snapshots.len()
    }

    /// Makes an active or view snapshot on top of `parent` (empty: none).
    pub(crate) fn create(
        &mut self,
        kind: Kind,
        name: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<&Snapshot, StoreError> {
        self.create_with(kind, name, parent, labels, &Accounts::default())
    }

    /// The same, with account files for the names of its image's user.
    pub(crate) fn create_with(
        &mut self,
        kind: Kind,
        name: &str,
        parent: &str,
        labels: Labels,
        accounts: &Accounts,
    ) -> Result<&Snapshot, StoreError> {
        self.check_new(name, parent, &labels)?;
        if self.snapshots.contains_key(name) {
            return Err(StoreError::AlreadyExists(name.to_owned()));
        }
        let snapshot = self.new_snapshot(kind, name, parent, labels);
        let directory = self.directory(&snapshot);
        fs::create_dir(&directory).map_err(failed("create", &directory))?;
        // This program's umask hides everything; a container's root is for everyone.
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))
            .map_err(failed("set the mode of", &directory))?;
        if !accounts.is_empty() {
            let etc = directory.join("etc");
            fs::create_dir(&etc).map_err(failed("create", &etc))?;
            for (file, text) in [("passwd", accounts.passwd()), ("group", accounts.group())] {
                let path = etc.join(file);
                fs::write(&path, text).map_err(failed("write", &path))?;
            }
        }
        self.insert(snapshot)
    }

    /// Records a layer that stays in the registry: the guest fetches it. Done twice, it stays.
    pub(crate) fn record_layer(
        &mut self,
        name: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<&Snapshot, StoreError> {
        self.check_new(name, parent, &labels)?;
        if let Some(present) = self.snapshots.get(name) {
            let same = present.kind == Kind::Committed
                && present.parent.as_deref().unwrap_or_default() == parent;
            if !same {
                return Err(StoreError::NotThatLayer(name.to_owned()));
            }
            return self.get(name);
        }
        let snapshot = self.new_snapshot(Kind::Committed, name, parent, labels);
        self.insert(snapshot)
    }

    /// Turns the active snapshot `key` into the committed snapshot `name`.
    ///
    /// Some clients unpack layers without asking first (`ctr image pull` of containerd 1.6); nobody
    /// will ever look at what they unpacked, so it is dropped.
    pub(crate) fn commit(
        &mut self,
        name: &str,
        key: &str,
        labels: Labels,
    ) -> Result<(), StoreError> {
        check_name("name", name)?;
        check_labels(&labels)?;
        let active = self.get(key)?;
        if active.kind != Kind::Active {
            return Err(StoreError::NotActive(key.to_owned()));
        }
        if self.snapshots.contains_key(name) {
            return Err(StoreError::AlreadyExists(name.to_owned()));
        }
        let mut committed = active.clone();
        name.clone_into(&mut committed.name);
        committed.kind = Kind::Committed;
        committed.labels = labels;
        committed.updated = now();
        // The same record under its new name: one rename, nothing between.
        let directory = self.directory(&committed);
        self.insert(committed)?;
        self.snapshots.remove(key);
        remove_tree(&directory)
    }

    /// Removes a snapshot that has no children.
    pub(crate) fn remove(&mut self, name: &str) -> Result<(), StoreError> {
        let snapshot = self.get(name)?;
        if let Some(child) = self.snapshots.values().find(|s| s.parent.as_deref() == Some(name)) {
            let (name, child) = (name.to_owned(), child.name.clone());
            return Err(StoreError::HasChild { name, child });
        }
        let (record, directory) = (self.record(snapshot), self.directory(snapshot));
        fs::remove_file(&record).map_err(failed("remove", &record))?;
        self.snapshots.remove(name);
        sync_directory(&self.records)?;
        remove_tree(&directory)
    }

    /// The snapshot of that name.
    pub(crate) fn get(&self, name: &str) -> Result<&Snapshot, StoreError> {
        self.snapshots.get(name).ok_or_else(|| StoreError::NotFound(name.to_owned()))
    }

    /// The directory to mount for an active or view snapshot.
    pub(crate) fn mount_source(&self, name: &str) -> Result<PathBuf, StoreError> {
        let snapshot = self.get(name)?;
        match snapshot.kind {
            Kind::View | Kind::Active => Ok(self.directory(snapshot)),
            Kind::Committed => Err(StoreError::NoMounts(name.to_owned())),
        }
    }

    /// Gives a snapshot new labels.
    pub(crate) fn set_labels(
        &mut self,
        name: &str,
        labels: Labels,
    ) -> Result<&Snapshot, StoreError> {
        check_labels(&labels)?;
        let changed = Snapshot { labels, updated: now(), ..self.get(name)?.clone() };
        self.insert(changed)
    }

    /// All snapshots, parents before their children.
    pub(crate) fn all(&self) -> Vec<&Snapshot> {
        let mut all: Vec<_> = self.snapshots.values().collect();
        all.sort_by_key(|s| s.id);
        all
    }

    /// Bytes and inodes that a snapshot's directory takes: nothing for a layer, since it is not here.
    pub(crate) fn usage(&self, name: &str) -> Result<(u64, u64), StoreError> {
        let directory = self.directory(self.get(name)?);
        let (mut bytes, mut inodes) = (0, 0);
        let mut pending = vec![directory];
        while let Some(path) = pending.pop() {
            let status = match fs::symlink_metadata(&path) {
                Ok(status) => status,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed("read", &path)(error)),
            };
            bytes += status.blocks() * 512;
            inodes += 1;
            if status.is_dir() {
                for entry in fs::read_dir(&path).map_err(failed("read", &path))? {
                    pending.push(entry.map_err(failed("read", &path))?.path());
                }
            }
        }
        Ok((bytes, inodes))
    }

    /// Removes directories and half-written files that no record speaks for.
    pub(crate) fn sweep(&self) -> Result<(), StoreError> {
        for path in entries(&self.records)? {
            if path.extension().is_some_and(|e| e == "new") {
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        for path in entries(&self.directories)? {
            let known = self
                .snapshots
                .values()
                .any(|s| s.kind != Kind::Committed && self.directory(s) == path);
            if !known {
                remove_tree(&path)?;
            }
        }
        Ok(())
    }

    fn check_new(&self, name: &str, parent: &str, labels: &Labels) -> Result<(), StoreError> {
        check_name("key", name)?;
        check_labels(labels)?;
        if parent.is_empty() {
            return Ok(());
        }
        match self.snapshots.get(parent) {
            None => Err(StoreError::NoParent { name: name.to_owned(), parent: parent.to_owned() }),
            Some(p) if p.kind != Kind::Committed => {
                Err(StoreError::ParentNotCommitted(parent.to_owned()))
            }
            Some(_) => Ok(()),
        }
    }

    fn new_snapshot(&mut self, kind: Kind, name: &str, parent: &str, labels: Labels) -> Snapshot {
        let id = self.next_id;
        self.next_id += 1;
        let parent = (!parent.is_empty()).then(|| parent.to_owned());
        let created = now();
        Snapshot { id, name: name.to_owned(), parent, kind, created, updated: created, labels }
    }

    /// Writes the record, then believes it.
    fn insert(&mut self, snapshot: Snapshot) -> Result<&Snapshot, StoreError> {
        let record = self.record(&snapshot);
        let beside = record.with_extension("new");
        let text = serde_json::to_vec(&snapshot).expect("a snapshot is plain data");
        let written = File::create(&beside).and_then(|mut file| {
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&beside, &record)
        });
        written.map_err(failed("write", &record))?;
        sync_directory(&self.records)?;
        Ok(self.snapshots.entry(snapshot.name.clone()).insert_entry(snapshot).into_mut())
    }

    fn record(&self, snapshot: &Snapshot) -> PathBuf {
        self.records.join(format!("{}.json", snapshot.id))
    }

    fn directory(&self, snapshot: &Snapshot) -> PathBuf {
        self.directories.join(snapshot.id.to_string())
    }
}

fn lock(root: &Path) -> Result<File, OpenError> {
    let path = root.join("lock");
    let file = File::create(&path).map_err(failed("create", &path))?;
    let exclusive = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    match rustix::fs::flock(&file, exclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::InUse(root.to_owned())),
        Err(error) => Err(failed("lock", &path)(error.into()).into()),
    }
}

fn load(records: &Path) -> Result<HashMap<String, Snapshot>, OpenError> {
    let mut snapshots: HashMap<String, Snapshot> = HashMap::new();
    for path in entries(records)? {
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        let bad = |reason: String| OpenError::BadRecord { path: path.clone(), reason };
        let text = fs::read(&path).map_err(failed("read", &path))?;
        let snapshot: Snapshot = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
        if path.file_stem().is_none_or(|stem| stem != snapshot.id.to_string().as_str()) {
            return Err(bad(format!("it holds the record of snapshot {}", snapshot.id)));
        }
        if let Some(other) = snapshots.insert(snapshot.name.clone(), snapshot) {
            return Err(bad(format!("snapshot {} has the same name", other.id)));
        }
    }
    for snapshot in snapshots.values() {
        if let Some(parent) = &snapshot.parent
            && !snapshots.contains_key(parent)
        {
            let path = records.join(format!("{}.json", snapshot.id));
            return Err(OpenError::BadRecord { path, reason: format!("no parent {parent:?}") });
        }
    }
    Ok(snapshots)
}

fn check_name(field: &str, name: &str) -> Result<(), StoreError> {
    if name.is_empty() || name.len() > MAX_NAME || name.contains('\0') {
        let length = name.len();
        return Err(StoreError::Invalid(format!(
            "{field} must be 1 to {MAX_NAME} bytes without NUL, this one has {length}"
        )));
    }
    Ok(())
}

fn check_labels(labels: &Labels) -> Result<(), StoreError> {
    let count = labels.len();
    if count > MAX_LABELS {
        return Err(StoreError::Invalid(format!(
            "labels must be at most {MAX_LABELS}, these are {count}"
        )));
    }
    match labels.iter().find(|(key, value)| key.len() + value.len() > MAX_LABEL) {
        Some((key, value)) => Err(StoreError::Invalid(format!(
            "labels must have at most {MAX_LABEL} bytes each, {:.60?} has {}",
            key,
            key.len() + value.len()
        ))),
        None => Ok(()),
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos(),
    }
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    fs::read_dir(directory)
        .and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect())
        .map_err(failed("read", directory))
}

fn remove_tree(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(failed("remove", path)(error))
        }
        _ => Ok(()),
    }
}

fn sync_directory(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|d| d.sync_all()).map_err(failed("sync", path))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        (root, store)
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_container_gets_an_empty_directory_on_top_of_layers_that_are_not_here() {
        let (_root, mut store) = store();
        store.record_layer("one", "", Labels::new()).unwrap();
        store.record_layer("two", "one", Labels::new()).unwrap();
        store.create(Kind::Active, "container", "two", Labels::new()).unwrap();
        let source = store.mount_source("container").unwrap();
        assert_eq!(fs::read_dir(source).unwrap().count(), 0);
        assert_eq!(store.usage("two").unwrap(), (0, 0));
        assert!(matches!(store.mount_source("two"), Err(StoreError::NoMounts(_))));
    }

    #[test]
    fn a_container_whose_image_names_its_user_gets_account_files_that_go_with_it() {
        let (_root, mut store) = store();
        let mut accounts = Accounts::default();
        accounts.add(br#"{"config":{"User":"app:staff"}}"#).unwrap();
        store.create_with(Kind::Active, "c", "", Labels::new(), &accounts).unwrap();
        let source = store.mount_source("c").unwrap();
        let file = |name: &str| fs::read_to_string(source.join(name)).unwrap();
        assert_eq!(file("etc/passwd"), accounts.passwd());
        assert_eq!(file("etc/group"), accounts.group());
        store.remove("c").unwrap();
        assert!(!source.exists());
    }

    #[test]
    fn the_state_is_the_same_after_a_restart() {
        let (root, mut store) = store();
        store.record_layer("layer", "", labels(&[(SNAPSHOT_REF_LABEL, "layer")])).unwrap();
        store.create(Kind::Active, "c", "layer", Labels::new()).unwrap();
        store.create(Kind::View, "v", "layer", Labels::new()).unwrap();
        store.set_labels("c", labels(&[("a", "b")])).unwrap();
        store.remove("v").unwrap();
        let before: Vec<Snapshot> = store.all().into_iter().cloned().collect();
        drop(store);
        let mut again = Store::open(root.path()).unwrap();
        assert_eq!(again.all().into_iter().cloned().collect::<Vec<_>>(), before);
        assert!(again.mount_source("c").unwrap().is_dir());
        let fresh = again.create(Kind::Active, "d", "layer", Labels::new()).unwrap();
        assert!(before.iter().all(|s| s.id != fresh.id));
    }

    #[test]
    fn a_crash_between_two_steps_leaves_nothing() {
        let (root, store) = store();
        drop(store);
        fs::create_dir(root.path().join("fs/7")).unwrap();
        fs::write(root.path().join("records/8.new"), "{\"id\":").unwrap();
        let store = Store::open(root.path()).unwrap();
        assert_eq!(store.len(), 0);
        assert!(!root.path().join("fs/7").exists());
        assert!(!root.path().join("records/8.new").exists());
    }

    #[test]
    fn a_damaged_record_is_named() {
        let (root, store) = store();
        drop(store);
        fs::write(root.path().join("records/3.json"), "{}").unwrap();
        let error = Store::open(root.path()).unwrap_err().to_string();
        assert!(error.contains("records/3.json"), "{error}");
    }

    #[test]
    fn two_programs_cannot_share_a_root() {
        let (root, _store) = store();
        assert!(matches!(Store::open(root.path()), Err(OpenError::InUse(_))));
    }

    #[test]
    fn a_parent_outlives_its_children() {
        let (_root, mut store) = store();
        store.record_layer("layer", "", Labels::new()).unwrap();
        store.create(Kind::Active, "c", "layer", Labels::new()).unwrap();
        assert!(matches!(store.remove("layer"), Err(StoreError::HasChild { .. })));
        store.remove("c").unwrap();
        store.remove("layer").unwrap();
        assert!(matches!(store.remove("layer"), Err(StoreError::NotFound(_))));
    }

    #[test]
    fn a_parent_must_be_there_and_committed() {
        let (_root, mut store) = store();
        let absent = store.create(Kind::Active, "c", "gone", Labels::new());
        assert!(matches!(absent, Err(StoreError::NoParent { .. })));
        store.create(Kind::Active, "a", "", Labels::new()).unwrap();
        let active = store.create(Kind::View, "v", "a", Labels::new());
        assert!(matches!(active, Err(StoreError::ParentNotCommitted(_))));
    }

    #[test]
    fn commit_renames_keeps_the_parent_and_drops_the_content() {
        let (_root, mut store) = store();
        store.record_layer("base", "", Labels::new()).unwrap();
        store.create(Kind::Active, "work", "base", labels(&[("gone", "1")])).unwrap();
        let unpacked = store.mount_source("work").unwrap();
        fs::write(unpacked.join("file"), "from the layer").unwrap();
        store.commit("layer", "work", labels(&[("kept", "1")])).unwrap();
        assert!(!unpacked.exists(), "no layer stays on the host");
        assert!(matches!(store.get("work"), Err(StoreError::NotFound(_))));
        let layer = store.get("layer").unwrap();
        assert_eq!((layer.kind, layer.parent.as_deref()), (Kind::Committed, Some("base")));
        assert_eq!(layer.labels, labels(&[("kept", "1")]));
        assert!(matches!(
            store.commit("again", "layer", Labels::new()),
            Err(StoreError::NotActive(_))
        ));
    }

    #[test]
    fn a_layer_recorded_twice_is_one_layer() {
        let (_root, mut store) = store();
        store.record_layer("layer", "", Labels::new()).unwrap();
        store.record_layer("layer", "", Labels::new()).unwrap();
        assert_eq!(store.len(), 1);
        store.create(Kind::Active, "c", "", Labels::new()).unwrap();
        let taken = store.record_layer("c", "", Labels::new());
        assert!(matches!(taken, Err(StoreError::NotThatLayer(_))));
    }

    #[test]
    fn hostile_names_and_labels_are_bounded_and_never_paths() {
        let (root, mut store) = store();
        for bad in [String::new(), "x".repeat(MAX_NAME + 1), "a\0b".to_owned()] {
            let refused = store.create(Kind::Active, &bad, "", Labels::new());
            assert!(matches!(refused, Err(StoreError::Invalid(_))), "{bad:.20?}");
        }
        let big = labels(&[("k", &"v".repeat(MAX_LABEL))]);
        assert!(matches!(store.record_layer("l", "", big), Err(StoreError::Invalid(_))));
        store.create(Kind::Active, "../../escape", "", Labels::new()).unwrap();
        assert_eq!(store.mount_source("../../escape").unwrap(), root.path().join("fs/1"));
        store.remove("../../escape").unwrap();
    }
}
