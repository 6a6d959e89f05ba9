//! The store: one embedded transactional database. Names are in clear, values are encrypted. What is
//! acknowledged is on disk.

use std::fs;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use zeroize::Zeroizing;

use crate::sealing::{SealError, StoreKey};

/// Name of the file in the store's directory.
const FILE: &str = "store.redb";
/// Memory for pages.
const CACHE_BYTES: usize = 4 * 1024 * 1024;
/// Layout of the tables.
const FORMAT: &str = "1";
/// Bytes of a time before a value.
const TIME: usize = 8;

type Definition = TableDefinition<'static, &'static str, &'static [u8]>;

/// In clear: which format, which key.
const META: Definition = TableDefinition::new(META_NAME);
const META_NAME: &str = "meta";
const FORMAT_KEY: &str = "format";
const KEY_ID: &str = "key-id";
/// Sealed: shows that the key is the right one.
const KEY_CHECK: &str = "key-check";

/// What is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    /// Secrets, by `repository/type/tag`.
    Resources,
    /// Policies, by name.
    Policies,
    /// Documents of reference values, by identifier.
    References,
    /// Grants, by identifier.
    Grants,
    /// What the broker keeps for itself.
    Own,
}

impl Table {
    const ALL: [Table; 5] =
        [Table::Resources, Table::Policies, Table::References, Table::Grants, Table::Own];

    const fn name(self) -> &'static str {
        match self {
            Table::Resources => "resources",
            Table::Policies => "policies",
            Table::References => "references",
            Table::Grants => "grants",
            Table::Own => "own",
        }
    }

    const fn definition(self) -> Definition {
        TableDefinition::new(self.name())
    }
}

/// Why the store does not serve.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Its directory or file.
    #[error("store {path}: {error}", path = .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The database.
    #[error("the store failed: {0}")]
    Database(String),
    /// Another key than the one it was made with.
    #[error(
        "the store was made with another key (id {expected}; the one given has id {given}): give the file \
         that `nacre kbs init` made for this store"
    )]
    OtherKey {
        /// Of the key that it was made with.
        expected: String,
        /// Of the key that was given.
        given: String,
    },
    /// Of a release that this program does not know.
    #[error("the store has format {0:?}; this program knows format \"{FORMAT}\"")]
    Format(String),
    /// A value cannot be read.
    #[error(transparent)]
    Seal(#[from] SealError),
}

fn failed(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Database(error.into().to_string())
}

/// A value with its time.
pub(crate) struct Stored {
    pub(crate) value: Zeroizing<Vec<u8>>,
    pub(crate) modified: SystemTime,
}

/// What is known of a value without showing it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) key: String,
    pub(crate) bytes: usize,
    pub(crate) modified: SystemTime,
}

/// The open store.
pub(crate) struct Store {
    database: Database,
    key: StoreKey,
}

impl Store {
    /// Opens the store in `directory`; makes it if there is none.
    pub(crate) fn open(directory: &Path, key: StoreKey) -> Result<Store, StoreError> {
        let at = |path: &Path, error| StoreError::File { path: path.to_owned(), error };
        fs::create_dir_all(directory)
            .and_then(|()| fs::set_permissions(directory, fs::Permissions::from_mode(0o700)))
            .map_err(|error| at(directory, error))?;
        let path = directory.join(FILE);
        // The database makes no file itself: its mode would be the process's.
        fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| at(&path, error))?;
        let database =
            Database::builder().set_cache_size(CACHE_BYTES).create(&path).map_err(failed)?;
        let store = Store { database, key };
        store.check_key()?;
        Ok(store)
    }

    fn check_key(&self) -> Result<(), StoreError> {
        let transaction = self.database.begin_write().map_err(failed)?;
        {
            let mut meta = transaction.open_table(META).map_err(failed)?;
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let read = |key| {
                let value = meta.get(key).map_err(failed)?;
                Ok::<_, StoreError>(value.map(|value| value.value().to_vec()))
            };
            match (read(FORMAT_KEY)?, read(KEY_ID)?, read(KEY_CHECK)?) {
                (None, None, None) => {
                    let check = self.key.seal(META_NAME, KEY_CHECK, FORMAT.as_bytes())?;
                    for (key, value) in [
                        (FORMAT_KEY, FORMAT.as_bytes()),
                        (KEY_ID, self.key.id().as_bytes()),
                        (KEY_CHECK, &check),
                    ] {
                        meta.insert(key, value).map_err(failed)?;
                    }
                }
                (Some(format), _, _) if format != FORMAT.as_bytes() => {
                    return Err(StoreError::Format(text(&format).chars().take(32).collect()));
                }
                (_, id, check) => {
                    let check = check.unwrap_or_default();
                    if self.key.open(META_NAME, KEY_CHECK, &check).is_err() {
                        return Err(StoreError::OtherKey {
                            expected: text(&id.unwrap_or_default()).chars().take(32).collect(),
                            given: self.key.id().to_owned(),
                        });
                    }
                }
            }
        }
        for table in Table::ALL {
            transaction.open_table(table.definition()).map_err(failed)?;
        }
        transaction.commit().map_err(failed)
    }

    /// Writes a value; on return it is on disk.
    pub(crate) fn put(&self, table: Table, key: &str, value: &[u8]) -> Result<(), StoreError> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let timed = Zeroizing::new([&since.as_secs().to_be_bytes(), value].concat());
        let sealed = self.key.seal(table.name(), key, &timed)?;
        let transaction = self.database.begin_write().map_err(failed)?;
        {
            let mut open = transaction.open_table(table.definition()).map_err(failed)?;
            open.insert(key, sealed.as_slice()).map_err(failed)?;
        }
        transaction.commit().map_err(failed)
    }

    /// Deletes a value; on return that is on disk. Whether there was one.
    pub(crate) fn delete(&self, table: Table, key: &str) -> Result<bool, StoreError> {
        let transaction = self.database.begin_write().map_err(failed)?;
        let was = {
            let mut open = transaction.open_table(table.definition()).map_err(failed)?;
            open.remove(key).map_err(failed)?.is_some()
        };
        transaction.commit().map_err(failed)?;
        Ok(was)
    }

    /// Reads a value.
    pub(crate) fn get(&self, table: Table, key: &str) -> Result<Option<Stored>, StoreError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let open = transaction.open_table(table.definition()).map_err(failed)?;
        let sealed = open.get(key).map_err(failed)?;
        sealed.map(|sealed| self.unseal(table, key, sealed.value())).transpose()
    }

    /// Everything in a table, sorted by key.
    pub(crate) fn all(&self, table: Table) -> Result<Vec<(String, Stored)>, StoreError> {
        self.each(table, |key, stored| (key.to_owned(), stored))
    }

    /// Sizes and times of a table, sorted by key.
    pub(crate) fn list(&self, table: Table) -> Result<Vec<Listed>, StoreError> {
        self.each(table, |key, stored| Listed {
            key: key.to_owned(),
            bytes: stored.value.len(),
            modified: stored.modified,
        })
    }

    /// One value after the other.
    fn each<T>(
        &self,
        table: Table,
        visit: impl Fn(&str, Stored) -> T,
    ) -> Result<Vec<T>, StoreError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let open = transaction.open_table(table.definition()).map_err(failed)?;
        let mut all = Vec::new();
        for entry in open.iter().map_err(failed)? {
            let (key, sealed) = entry.map_err(failed)?;
            all.push(visit(key.value(), self.unseal(table, key.value(), sealed.value())?));
        }
        Ok(all)
    }

    /// How many there are in a table.
    pub(crate) fn count(&self, table: Table) -> Result<u64, StoreError> {
        use redb::ReadableTableMetadata as _;
        let transaction = self.database.begin_read().map_err(failed)?;
        let open = transaction.open_table(table.definition()).map_err(failed)?;
        open.len().map_err(failed)
    }

    fn unseal(&self, table: Table, key: &str, sealed: &[u8]) -> Result<Stored, StoreError> {
        let mut value = self.key.open(table.name(), key, sealed)?;
        let (time, _) = value.split_first_chunk::<TIME>().ok_or(SealError::Broken)?;
        let seconds = u64::from_be_bytes(*time);
        value.drain(..TIME);
        let modified = UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
        Ok(Stored { value, modified: modified.unwrap_or(UNIX_EPOCH) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> StoreKey {
        StoreKey::new(&[byte; 32]).unwrap()
    }

    #[test]
    fn what_was_put_is_there_after_reopening() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        {
            let store = Store::open(&path, key(1)).unwrap();
            store.put(Table::Resources, "a/b/c", b"secret").unwrap();
            store.put(Table::Resources, "a/b/d", b"").unwrap();
            store.put(Table::Grants, "a/b/c", b"other").unwrap();
            store.put(Table::Resources, "a/b/e", b"gone").unwrap();
            assert!(store.delete(Table::Resources, "a/b/e").unwrap());
            assert!(!store.delete(Table::Resources, "a/b/e").unwrap());
        }
        let store = Store::open(&path, key(1)).unwrap();
        let read =
            |name| store.get(Table::Resources, name).unwrap().map(|stored| stored.value.to_vec());
        assert_eq!(read("a/b/c").as_deref(), Some(b"secret".as_slice()));
        assert_eq!(read("a/b/d").as_deref(), Some(b"".as_slice()));
        assert_eq!(read("a/b/e"), None);
        let listed = store.list(Table::Resources).unwrap();
        let sizes: Vec<_> = listed.iter().map(|one| (one.key.as_str(), one.bytes)).collect();
        assert_eq!(sizes, [("a/b/c", 6), ("a/b/d", 0)]);
        assert!(listed[0].modified.elapsed().unwrap() < Duration::from_secs(100));
        assert_eq!(store.count(Table::Resources).unwrap(), 2);
    }

    #[test]
    fn nothing_of_a_value_is_on_disk_in_clear() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), key(1)).unwrap();
        let secret = b"a very well known secret";
        store.put(Table::Resources, "a/b/c", secret).unwrap();
        drop(store);
        let file = fs::read(directory.path().join(FILE)).unwrap();
        assert!(!file.windows(secret.len()).any(|window| window == secret));
        let mode = fs::metadata(directory.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn another_key_opens_nothing() {
        let directory = tempfile::tempdir().unwrap();
        drop(Store::open(directory.path(), key(1)).unwrap());
        let error = Store::open(directory.path(), key(2)).err().unwrap().to_string();
        assert!(error.contains(key(1).id()) && error.contains(key(2).id()), "{error}");
        Store::open(directory.path(), key(1)).unwrap();
    }

    #[test]
    fn a_file_that_is_no_store_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE), vec![7; 8192]).unwrap();
        assert!(Store::open(directory.path(), key(1)).is_err());
    }
}
