//! The development root of one installation: made once, kept in a directory.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nacre_evidence::snp::Tcb;
use p384::ecdsa::SigningKey;
use p384::elliptic_curve::zeroize::Zeroizing;
use p384::pkcs8::{DecodePrivateKey, EncodePrivateKey, LineEnding};
use rand_core::{OsRng, RngCore};
use rustix::fs::{FlockOperation, flock};
use x509_cert::spki::SubjectPublicKeyInfoOwned;

use crate::certificates::{self, Chain};
use crate::{CHIP_ID_SIZE, TCB};

/// Names in the directory. The key is written last: without it there is no root.
const ARK: &str = "ark.der";
const ASK: &str = "ask.der";
const VCEK: &str = "vcek.der";
const VCEK_KEY: &str = "vcek.key";
const LOCK: &str = "lock";

/// A file beyond this size, in bytes, is none of ours.
const FILE_LIMIT: u64 = 16 * 1024;

/// Size of the RSA keys of ARK and ASK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RsaBits {
    /// 4096 bits, as AMD's. It takes seconds to make two.
    AsAmd,
    /// 2048 bits: for tests.
    ForTests,
}

impl RsaBits {
    pub(crate) const fn count(self) -> usize {
        match self {
            RsaBits::AsAmd => 4096,
            RsaBits::ForTests => 2048,
        }
    }
}

/// Why there is no development root.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// A file or the directory cannot be used.
    #[error("failed to {doing} {path}: {source}")]
    File {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// Others than its owner may read the key.
    #[error("{path} has mode {mode:o}: only its owner may read the key; chmod 600 it")]
    Mode {
        /// The key's file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The files do not belong together.
    #[error("{path} {problem}; remove the directory to get a new root, and register that one")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Keys or certificates could not be made.
    #[error("failed to make a development root: {0}")]
    Make(String),
}

/// A development root, its intermediate certificate, and the key of one emulated chip.
///
/// Whoever registers [`Root::ark`] under `danger_extra_snp_roots` believes every report that this
/// installation makes, about any guest.
#[derive(Clone)]
pub struct Root {
    ark: Vec<u8>,
    ask: Vec<u8>,
    vcek: Vec<u8>,
    vcek_key: SigningKey,
    chip_id: [u8; CHIP_ID_SIZE],
}

impl Root {
    /// The root that `directory` holds; a new one if it holds none. Processes that do this at the same
    /// time get the same root: one makes it, the others wait.
    ///
    /// # Errors
    /// If the directory cannot be used, or what it holds is damaged or readable by others.
    pub fn open_or_create(directory: &Path, bits: RsaBits) -> Result<Root, RootError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed("make the directory", directory))?;
        let path = directory.join(LOCK);
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open", &path))?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|errno| failed("lock", &path)(errno.into()))?;
        if directory.join(VCEK_KEY).exists() {
            return Root::open(directory);
        }
        let root = Root::generate(bits, SystemTime::now())?;
        root.save(directory)?;
        tracing::warn!(
            directory = %directory.display(),
            "made a root for emulated secure processors: for development only, its reports prove nothing \
             to anyone who has not configured it"
        );
        Ok(root)
    }

    /// A root that is kept nowhere, valid from a day before `now`.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn generate(bits: RsaBits, now: SystemTime) -> Result<Root, RootError> {
        let mut chip_id = [0; CHIP_ID_SIZE];
        OsRng.try_fill_bytes(&mut chip_id).map_err(|error| RootError::Make(error.to_string()))?;
        let Chain { ark, ask, vcek, vcek_key } = certificates::make(bits, &chip_id, &TCB, now)
            .map_err(|error| RootError::Make(error.to_string()))?;
        Ok(Root { ark, ask, vcek, vcek_key, chip_id })
    }

    /// Certificate of the root key, in DER: what a broker is told to trust.
    #[must_use]
    pub fn ark(&self) -> &[u8] {
        &self.ark
    }

    /// Certificate of the intermediate key, in DER.
    #[must_use]
    pub fn ask(&self) -> &[u8] {
        &self.ask
    }

    /// Certificate of the chip's key, in DER.
    #[must_use]
    pub fn vcek(&self) -> &[u8] {
        &self.vcek
    }

    /// Identity of the emulated chip.
    #[must_use]
    pub const fn chip_id(&self) -> &[u8; CHIP_ID_SIZE] {
        &self.chip_id
    }

    /// Security versions of the emulated firmware.
    #[must_use]
    pub const fn tcb(&self) -> Tcb {
        TCB
    }

    pub(crate) const fn vcek_key(&self) -> &SigningKey {
        &self.vcek_key
    }

    fn open(directory: &Path) -> Result<Root, RootError> {
        let path = directory.join(VCEK_KEY);
        let metadata = fs::metadata(&path).map_err(failed("look at", &path))?;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(RootError::Mode { path, mode });
        }
        let damaged =
            |name: &str, problem| RootError::Damaged { path: directory.join(name), problem };
        let pem = Zeroizing::new(read(&path)?);
        let vcek_key = std::str::from_utf8(&pem)
            .ok()
            .and_then(|pem| SigningKey::from_pkcs8_pem(pem).ok())
            .ok_or_else(|| damaged(VCEK_KEY, "is no P-384 private key in PEM (PKCS #8)"))?;
        let vcek = read(&directory.join(VCEK))?;
        let (chip_id, public) = certificates::read_chip(&vcek)
            .ok_or_else(|| damaged(VCEK, "is no VCEK certificate"))?;
        let own = SubjectPublicKeyInfoOwned::from_key(*vcek_key.verifying_key());
        if own.ok().as_ref() != Some(&public) {
            return Err(damaged(VCEK, "is for another key than vcek.key"));
        }
        let (ark, ask) = (read(&directory.join(ARK))?, read(&directory.join(ASK))?);
        Ok(Root { ark, ask, vcek, vcek_key, chip_id })
    }

    fn save(&self, directory: &Path) -> Result<(), RootError> {
        let key = self
            .vcek_key
            .to_pkcs8_pem(LineEnding::LF)
            .map_err(|error| RootError::Make(error.to_string()))?;
        for (name, content) in [
            (ARK, self.ark.as_slice()),
            (ASK, &self.ask),
            (VCEK, &self.vcek),
            (VCEK_KEY, key.as_bytes()),
        ] {
            write(directory, name, content)?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Root").field("chip_id", &hex::encode(self.chip_id)).finish_non_exhaustive()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, RootError> {
    let read = || {
        let mut bytes = Vec::new();
        File::open(path)?.take(FILE_LIMIT + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_LIMIT {
            return Err(io::Error::other(format!("larger than {FILE_LIMIT} bytes")));
        }
        Ok(bytes)
    };
    read().map_err(failed("read", path))
}

/// Whole or not at all, also if the machine stops meanwhile.
fn write(directory: &Path, name: &str, content: &[u8]) -> Result<(), RootError> {
    let path = directory.join(name);
    let new = directory.join(format!("{name}.new"));
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(failed("write", &path))
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RootError {
    let path = path.to_owned();
    move |source| RootError::File { doing, path, source }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;
    use std::thread;

    use super::*;

    /// One generation for all tests of this file: it is what takes the time.
    static KEPT: LazyLock<(tempfile::TempDir, Root)> = LazyLock::new(|| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("emulated");
        let opened: Vec<Root> = thread::scope(|scope| {
            let open = || Root::open_or_create(&path, RsaBits::ForTests).unwrap();
            let threads: Vec<_> = (0..2).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(opened[0].vcek(), opened[1].vcek(), "two at once get the same root");
        (directory, opened[0].clone())
    });

    fn copy() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(KEPT.0.path().join("emulated")).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
        }
        directory
    }

    fn refusal(directory: &tempfile::TempDir) -> String {
        Root::open_or_create(directory.path(), RsaBits::ForTests).unwrap_err().to_string()
    }

    #[test]
    fn a_root_is_made_once_and_found_again() {
        let directory = copy();
        let again = Root::open_or_create(directory.path(), RsaBits::ForTests).unwrap();
        let root = &KEPT.1;
        assert_eq!((again.ark(), again.ask(), again.vcek()), (root.ark(), root.ask(), root.vcek()));
        assert_eq!(again.chip_id(), root.chip_id());
        assert_eq!(again.vcek_key().to_bytes(), root.vcek_key().to_bytes());
    }

    #[test]
    fn its_files_are_the_owners_alone() {
        let directory = KEPT.0.path().join("emulated");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&directory), 0o700);
        for name in [ARK, ASK, VCEK, VCEK_KEY, LOCK] {
            assert_eq!(mode(&directory.join(name)), 0o600, "{name}");
        }
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 5);
        let copy = copy();
        let key = copy.path().join(VCEK_KEY);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(refusal(&copy).contains("vcek.key has mode 640: only its owner"));
    }

    #[test]
    fn files_that_do_not_belong_together_are_refused_and_kept() {
        let directory = copy();
        let file = |name: &str| directory.path().join(name);
        let vcek = fs::read(file(VCEK)).unwrap();
        fs::write(file(VCEK), KEPT.1.ask()).unwrap();
        assert!(refusal(&directory).contains("vcek.der is no VCEK certificate"));
        fs::write(file(VCEK), &vcek).unwrap();
        fs::remove_file(file(ASK)).unwrap();
        assert!(refusal(&directory).contains("ask.der"));
        fs::write(file(ASK), vec![0; 20_000]).unwrap();
        assert!(refusal(&directory).contains("larger than 16384 bytes"));
        let other = SigningKey::random(&mut OsRng).to_pkcs8_pem(LineEnding::LF).unwrap();
        fs::write(file(VCEK_KEY), other.as_bytes()).unwrap();
        assert!(refusal(&directory).contains("vcek.der is for another key"));
        fs::write(file(VCEK_KEY), "x").unwrap();
        assert!(refusal(&directory).contains("vcek.key is no P-384 private key"));
        assert_eq!(fs::read(file(VCEK)).unwrap(), vcek, "nothing was made anew");
    }

    #[test]
    fn the_key_stays_out_of_debug_output() {
        let shown = format!("{:?}", KEPT.1);
        assert!(shown.contains(&hex::encode(KEPT.1.chip_id())), "{shown}");
        let secret = hex::encode(KEPT.1.vcek_key().to_bytes());
        assert!(!shown.contains(&secret[..16]) && shown.len() < 200, "{shown}");
    }
}
