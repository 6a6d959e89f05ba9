//! Pinned Debian packages: fetched from the machine's own mirror, checked, unpacked, never installed.
//!
//! apt runs with sources, lists and cache of its own beneath the given directory, so neither the
//! machine's package lists nor its installed packages change. A file counts only if its SHA-256 is the
//! pinned one, wherever it came from.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nacre_image_manifest::Sha256Hex;

use crate::pins::Package;
use crate::sources::Origin;
pub use crate::sources::SourcesError;
use crate::{FileError, Progress, make_directory, read, replace_file};

/// In an unpacked directory: which packages it was made from.
const STAMP: &str = ".packages";

/// Why a package is not there.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// A file of ours could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// No mirror is known.
    #[error(transparent)]
    Sources(#[from] SourcesError),
    /// A program could not be started.
    #[error("failed to run {program}: {source}; Nacre's packages need a Debian system")]
    Start {
        /// The program.
        program: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The package lists did not come.
    #[error("failed to get the package lists of {suite} from {uri}:\n{output}")]
    Update {
        /// The suite.
        suite: String,
        /// The mirror.
        uri: String,
        /// apt's last words.
        output: String,
    },
    /// The mirror has moved on.
    #[error(
        "{mirror} no longer has {package}: get {file} from Debian's snapshot archive and put it in \
         {directory} (its SHA-256 is checked), or move the pin in guest-image/pins.toml"
    )]
    Gone {
        /// Name and version.
        package: String,
        /// The mirror and the suite.
        mirror: String,
        /// The file that is needed.
        file: String,
        /// Where to put it.
        directory: PathBuf,
    },
    /// The package did not come.
    #[error("failed to download {package}:\n{output}")]
    Download {
        /// Name and version.
        package: String,
        /// apt's last words.
        output: String,
    },
    /// Something else came.
    #[error(
        "{path} has the SHA-256 {found}, but {expected} is pinned in guest-image/pins.toml; it was \
         not used"
    )]
    Hash {
        /// The file.
        path: PathBuf,
        /// Its hash.
        found: Sha256Hex,
        /// The pinned one.
        expected: Sha256Hex,
    },
    /// dpkg-deb failed.
    #[error("failed to unpack {path}:\n{output}")]
    Unpack {
        /// The package file.
        path: PathBuf,
        /// dpkg-deb's last words.
        output: String,
    },
}

/// The fetched packages beneath one directory: `debs/` for the files, `apt/` for apt's own.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    etc_apt: PathBuf,
}

impl Store {
    /// A store beneath `root` that asks the mirror named in `etc_apt` (the machine's `/etc/apt`).
    pub fn new(root: &Path, etc_apt: &Path) -> Self {
        Self { root: root.to_owned(), etc_apt: etc_apt.to_owned() }
    }

    /// The package's file if it was fetched before and is the pinned one.
    pub fn fetched(&self, package: &Package) -> Result<Option<PathBuf>, FetchError> {
        let path = self.file(package);
        match path.try_exists() {
            Ok(true) => check_hash(&path, package).map(|()| Some(path)),
            Ok(false) => Ok(None),
            Err(error) => Err(FileError::new("read", &path)(error).into()),
        }
    }

    /// The package's file, from the store or else from the mirror.
    pub fn fetch(&self, package: &Package, progress: Progress) -> Result<PathBuf, FetchError> {
        match self.fetched(package) {
            Ok(Some(path)) => return Ok(path),
            Ok(None) => {}
            Err(FetchError::Hash { path, .. }) => {
                progress(&format!("{} is not the pinned file, fetching it anew", path.display()));
            }
            Err(error) => return Err(error),
        }
        progress(&format!("fetching {package} from {}", package.suite));
        let apt = Apt::new(self, &package.suite)?;
        let arrived = apt.download(package, &self.debs()).or_else(|_| {
            // No lists yet, or old ones.
            apt.update()?;
            apt.download(package, &self.debs())
        })?;
        check_hash(&arrived, package)?;
        let path = self.file(package);
        fs::rename(&arrived, &path).map_err(FileError::new("write", &path))?;
        Ok(path)
    }

    /// Fetches the packages and unpacks them together into `destination`, unless that was done.
    pub fn unpack(
        &self,
        packages: &[Package],
        destination: &Path,
        progress: Progress,
    ) -> Result<(), FetchError> {
        let stamp: String =
            packages.iter().map(|p| format!("{} {} {}\n", p.name, p.version, p.sha256)).collect();
        if fs::read_to_string(destination.join(STAMP)).is_ok_and(|found| found == stamp) {
            return Ok(());
        }
        let fresh = beside(destination, "new");
        remove(&fresh)?;
        make_directory(&fresh)?;
        for package in packages {
            let file = self.fetch(package, progress)?;
            progress(&format!("unpacking {package}"));
            let mut dpkg = Command::new("dpkg-deb");
            let output = run("dpkg-deb", dpkg.arg("--extract").arg(&file).arg(&fresh))?;
            if !output.status.success() {
                remove(&fresh)?;
                return Err(FetchError::Unpack { path: file, output: last_words(&output) });
            }
        }
        replace_file(&fresh.join(STAMP), stamp.as_bytes())?;
        let old = beside(destination, "old");
        remove(&old)?;
        if destination.exists() {
            fs::rename(destination, &old).map_err(FileError::new("move away", destination))?;
        }
        fs::rename(&fresh, destination).map_err(FileError::new("create", destination))?;
        Ok(remove(&old)?)
    }

    fn debs(&self) -> PathBuf {
        self.root.join("debs")
    }

    fn file(&self, package: &Package) -> PathBuf {
        self.debs().join(package.file_name())
    }
}

/// apt with directories of its own, for one suite.
struct Apt {
    suite: String,
    uri: String,
    options: Vec<OsString>,
    /// Where downloads arrive before they are checked.
    incoming: PathBuf,
}

impl Apt {
    fn new(store: &Store, suite: &str) -> Result<Self, FetchError> {
        let origin = Origin::of_machine(&store.etc_apt)?;
        let home = store.root.join("apt").join(suite);
        let (sources, lists, cache) =
            (home.join("sources"), home.join("lists"), home.join("cache"));
        let incoming = home.join(format!("incoming.{}", std::process::id()));
        let partial = [lists.join("partial"), cache.join("archives/partial")];
        for directory in partial.iter().chain([&sources, &incoming, &store.debs()]) {
            make_directory(directory)?;
        }
        replace_file(&sources.join("nacre.sources"), origin.source_of(suite).as_bytes())?;
        let none = Path::new("/dev/null");
        let directories = [
            ("Dir::Etc::SourceList", none),
            ("Dir::Etc::SourceParts", sources.as_path()),
            ("Dir::Etc::Preferences", none),
            ("Dir::Etc::PreferencesParts", none),
            ("Dir::State::Lists", lists.as_path()),
            ("Dir::Cache", cache.as_path()),
        ];
        let absolute =
            |path: &Path| std::path::absolute(path).map_err(FileError::new("find", path));
        // Download as the caller, whose directories apt's own user may not be able to enter; fetch
        // no translations; try three times.
        let plain = ["APT::Sandbox::User=root", "Acquire::Languages=none", "Acquire::Retries=3"];
        let mut options: Vec<OsString> = plain.into_iter().map(OsString::from).collect();
        for (key, path) in directories {
            let mut option = OsString::from(key);
            option.push("=");
            option.push(absolute(path)?);
            options.push(option);
        }
        Ok(Self { suite: suite.to_owned(), uri: origin.uri, options, incoming })
    }

    fn update(&self) -> Result<(), FetchError> {
        let output = run("apt-get", self.command().arg("--error-on=any").arg("update"))?;
        if output.status.success() {
            return Ok(());
        }
        let (suite, uri) = (self.suite.clone(), self.uri.clone());
        Err(FetchError::Update { suite, uri, output: last_words(&output) })
    }

    fn download(&self, package: &Package, debs: &Path) -> Result<PathBuf, FetchError> {
        let exact = format!("{}={}", package.name, package.version);
        let output = run("apt-get", self.command().arg("download").arg(exact))?;
        let file = self.incoming.join(package.file_name());
        if output.status.success() && file.is_file() {
            return Ok(file);
        }
        let words = last_words(&output);
        let gone = ["was not found", "Unable to locate"].iter().any(|text| words.contains(text));
        Err(if gone {
            FetchError::Gone {
                package: package.to_string(),
                mirror: format!("{} {}", self.uri, self.suite),
                file: package.file_name(),
                directory: debs.to_owned(),
            }
        } else {
            FetchError::Download { package: package.to_string(), output: words }
        })
    }

    fn command(&self) -> Command {
        let mut command = Command::new("apt-get");
        command.current_dir(&self.incoming).env("LC_ALL", "C").arg("--quiet");
        for option in &self.options {
            command.arg("-o").arg(option);
        }
        command
    }
}

impl Drop for Apt {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.incoming);
    }
}

fn check_hash(path: &Path, package: &Package) -> Result<(), FetchError> {
    let found = Sha256Hex::of(&read(path)?);
    if found == package.sha256 {
        return Ok(());
    }
    Err(FetchError::Hash { path: path.to_owned(), found, expected: package.sha256.clone() })
}

fn run(program: &'static str, command: &mut Command) -> Result<Output, FetchError> {
    command.output().map_err(|source| FetchError::Start { program, source })
}

/// The end of what a program printed, for an error message.
fn last_words(output: &Output) -> String {
    let text = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{suffix}"));
    name.into()
}

fn remove(directory: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FileError::new("remove", directory)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::slice::from_ref;

    const SILENT: Progress = &|_| {};

    /// Builds a package with one file and pins it.
    fn package(root: &Path, content: &str) -> Package {
        let tree = root.join("tree");
        fs::create_dir_all(tree.join("DEBIAN")).unwrap();
        fs::create_dir_all(tree.join("usr/share")).unwrap();
        let control = "Package: sample\nVersion: 1:2\nArchitecture: all\nMaintainer: x\n\
                       Description: x\n";
        fs::write(tree.join("DEBIAN/control"), control).unwrap();
        fs::write(tree.join("usr/share/sample"), content).unwrap();
        let debs = root.join("debs");
        fs::create_dir_all(&debs).unwrap();
        let file = debs.join("sample_1%3a2_all.deb");
        let mut dpkg = Command::new("dpkg-deb");
        let built = dpkg.arg("--build").arg(&tree).arg(&file).output().unwrap();
        assert!(built.status.success());
        Package {
            name: "sample".into(),
            version: "1:2".into(),
            architecture: "all".into(),
            suite: "sid".into(),
            sha256: Sha256Hex::of(&fs::read(file).unwrap()),
        }
    }

    #[test]
    fn a_fetched_package_is_checked_unpacked_once_and_replaced_when_the_pin_moves() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path(), &root.path().join("no-apt"));
        let destination = root.path().join("out");
        let sample = destination.join("usr/share/sample");

        let first = package(root.path(), "one");
        store.unpack(from_ref(&first), &destination, SILENT).unwrap();
        assert_eq!(fs::read_to_string(&sample).unwrap(), "one");
        fs::write(&sample, "kept").unwrap();
        store.unpack(from_ref(&first), &destination, SILENT).unwrap();
        assert_eq!(fs::read_to_string(&sample).unwrap(), "kept", "not unpacked a second time");

        let second = package(root.path(), "two");
        store.unpack(from_ref(&second), &destination, SILENT).unwrap();
        assert_eq!(fs::read_to_string(&sample).unwrap(), "two");
    }

    #[test]
    fn another_file_is_refused_and_without_a_mirror_the_error_says_so() {
        let root = tempfile::tempdir().unwrap();
        let etc_apt = root.path().join("no-apt");
        let store = Store::new(root.path(), &etc_apt);
        let mut package = package(root.path(), "one");
        package.sha256 = Sha256Hex::of(b"something else");
        assert!(matches!(store.fetched(&package), Err(FetchError::Hash { .. })));
        let error = store.fetch(&package, SILENT).unwrap_err();
        assert!(matches!(error, FetchError::Sources(_)), "{error}");
        assert!(!root.path().join("out").exists());
    }
}
