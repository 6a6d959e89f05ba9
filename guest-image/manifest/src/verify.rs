//! Whether the files of an image are what its manifest says.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File, FileType};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::cpio::{Archive, Node, ReadError};
use crate::{
    Artifact, DEVELOPMENT_MARK, DEVELOPMENT_SHELL, Entry, GuestImage, MANIFEST, MEASUREMENTS,
    Manifest, Sha256Hex,
};

/// More names than an image's directory has; what is behind them is not looked at.
const NAMES_LIMIT: usize = 256;
/// A larger document of measurements is none, in bytes; that of an image has about 10 KiB.
const MEASUREMENTS_LIMIT: u64 = 1024 * 1024;

/// What [`MEASUREMENTS`] says of the files that were measured.
#[derive(serde::Deserialize)]
struct Measurements {
    snp: Option<MeasuredLaunch>,
    tdx: Option<MeasuredLaunch>,
}

#[derive(serde::Deserialize)]
struct MeasuredLaunch {
    kernel: MeasuredFile,
    initrd: MeasuredFile,
    command_line: String,
}

#[derive(serde::Deserialize)]
struct MeasuredFile {
    sha256: Sha256Hex,
}

/// An image whose files are what its manifest says, with their bytes as they were checked.
#[derive(Debug, Clone)]
pub struct VerifiedImage {
    image: GuestImage,
    vmlinux: Vec<u8>,
    bzimage: Vec<u8>,
    archive: Archive,
    shell: Option<Vec<u8>>,
}

/// An image that is not what its manifest says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct VerifyError {
    /// The image's directory.
    pub directory: PathBuf,
    /// All that is wrong.
    pub problems: Vec<Problem>,
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the guest image in {} is not what its manifest says", self.directory.display())?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

/// One difference between image and manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file's name in the directory.
    pub file: String,
    /// In an initrd: the path of the entry.
    pub entry: Option<String>,
    /// What is wrong.
    pub fault: Fault,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Names in the directory are anybody's.
        write!(f, "{}", self.file.escape_debug())?;
        if let Some(entry) = &self.entry {
            write!(f, " {}", entry.escape_debug())?;
        }
        write!(f, ": {}", self.fault)
    }
}

/// What is wrong with a file or an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The manifest names it, and it is not there.
    #[error("it is absent")]
    Absent,
    /// It is there, and the manifest does not name it.
    #[error("the manifest does not know it")]
    Unlisted,
    /// A symbolic link, a directory, a device.
    #[error("it is {0}, not a regular file")]
    Kind(&'static str),
    /// The system does not give it.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// Shorter or longer.
    #[error("it has {found} bytes, {expected} in the manifest")]
    Size {
        /// In the directory.
        found: u64,
        /// In the manifest.
        expected: u64,
    },
    /// Other bytes.
    #[error("its SHA-256 is {found}, {expected} in the manifest")]
    Hash {
        /// Of what is there.
        found: Sha256Hex,
        /// In the manifest.
        expected: Sha256Hex,
    },
    /// An initrd that Nacre did not write.
    #[error(transparent)]
    Archive(#[from] ReadError),
    /// The manifest lists an entry twice.
    #[error("the manifest lists it twice")]
    Twice,
    /// Something else of an entry.
    #[error("its {what} is {found}, {expected} in the manifest")]
    Differs {
        /// `kind` or `mode`.
        what: &'static str,
        /// In the initrd.
        found: String,
        /// In the manifest.
        expected: String,
    },
    /// The measurements beside the manifest are of other files.
    #[error(
        "its {what} is {found}, {expected} in the manifest: it is of another image; `nacre measure --release` writes it anew"
    )]
    Stale {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// What was measured.
        found: Sha256Hex,
        /// In the manifest.
        expected: Sha256Hex,
    },
    /// They are of another command line.
    #[error(
        "its command line does not begin with that in the manifest: it is of another image; `nacre measure --release` writes it anew"
    )]
    StaleCommandLine,
    /// They are no measurements.
    #[error("it is no document of measurements: {0}")]
    NoMeasurements(String),
    /// A development image has the mark and the shell more than the image, and no other difference.
    #[error("it is not {initrd} with {DEVELOPMENT_MARK}, the shell and nothing else behind it")]
    Development {
        /// The other initrd's name.
        initrd: String,
    },
}

impl Artifact {
    /// Compares bytes with it.
    ///
    /// # Errors
    /// If there are more or fewer, or others.
    pub fn check(&self, bytes: &[u8]) -> Result<(), Fault> {
        let found = Artifact::new(&self.name, bytes);
        if found.size != self.size {
            return Err(Fault::Size { found: found.size, expected: self.size });
        }
        if found.sha256 != self.sha256 {
            return Err(Fault::Hash { found: found.sha256, expected: self.sha256.clone() });
        }
        Ok(())
    }
}

impl GuestImage {
    /// Compares the whole directory with the manifest: the size and hash of every file, every entry of the
    /// initrd, the development image with the image, and whether anything else is there.
    ///
    /// # Errors
    /// All differences, in the manifest's order.
    pub fn verify(&self) -> Result<VerifiedImage, VerifyError> {
        let manifest = self.manifest();
        let mut findings = Findings { image: self, problems: Vec::new() };
        // What stands in the directory is what a launch reads, wherever this manifest comes from.
        findings.artifact(self.manifest_file());
        let vmlinux = findings.artifact(&manifest.kernel.vmlinux);
        let bzimage = findings.artifact(&manifest.kernel.bzimage);
        let initrd = findings.artifact(&manifest.initrd.file);
        let archive = initrd.as_deref().and_then(|initrd| findings.archive(initrd));
        let development = findings.artifact(&manifest.initrd.development);
        let shell = match (&initrd, &development) {
            (Some(initrd), Some(development)) => findings.development(initrd, development),
            _ => None,
        };
        findings.measurements();
        findings.unlisted();
        let problems = findings.problems;
        match (vmlinux, bzimage, archive, problems.is_empty()) {
            (Some(vmlinux), Some(bzimage), Some(archive), true) => {
                Ok(VerifiedImage { image: self.clone(), vmlinux, bzimage, archive, shell })
            }
            _ => Err(VerifyError { directory: self.directory().to_owned(), problems }),
        }
    }
}

impl VerifiedImage {
    /// Manifest and directory.
    #[must_use]
    pub fn image(&self) -> &GuestImage {
        &self.image
    }

    /// What the manifest says.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        self.image.manifest()
    }

    /// The bytes of the uncompressed kernel.
    #[must_use]
    pub fn vmlinux(&self) -> &[u8] {
        &self.vmlinux
    }

    /// The bytes of the kernel that UEFI firmware starts.
    #[must_use]
    pub fn bzimage(&self) -> &[u8] {
        &self.bzimage
    }

    /// What is in the initrd.
    #[must_use]
    pub fn archive(&self) -> &Archive {
        &self.archive
    }

    /// The program that is the development image's shell, if it has one.
    #[must_use]
    pub fn development_shell(&self) -> Option<&[u8]> {
        self.shell.as_deref()
    }
}

/// The archive that makes a development image of the ordinary one: the kernel unpacks archives that follow
/// each other into one root. With `shell`, a program, for people who look into a guest.
///
/// # Panics
/// Never: the paths are plain and in order.
#[must_use]
pub fn development_archive(shell: Option<&[u8]>) -> Vec<u8> {
    let mut archive = Archive::default();
    let mut add = |path, mode, node| archive.add(path, mode, node).expect("a plain path in order");
    if let Some(shell) = shell {
        add("bin", 0o755, Node::Directory);
        add(DEVELOPMENT_SHELL, 0o755, Node::File(shell.to_vec()));
    }
    add("etc", 0o755, Node::Directory);
    add("etc/nacre", 0o755, Node::Directory);
    add(DEVELOPMENT_MARK, 0o444, Node::File(Vec::new()));
    archive.to_bytes()
}

struct Findings<'a> {
    image: &'a GuestImage,
    problems: Vec<Problem>,
}

impl Findings<'_> {
    fn add(&mut self, file: &str, entry: Option<&str>, fault: Fault) {
        let (file, entry) = (file.to_owned(), entry.map(str::to_owned));
        self.problems.push(Problem { file, entry, fault });
    }

    fn path(&self, name: &str) -> PathBuf {
        self.image.directory().join(name)
    }

    /// The file's bytes, whatever they are, unless there are too many.
    fn artifact(&mut self, artifact: &Artifact) -> Option<Vec<u8>> {
        let Artifact { name, size, .. } = artifact;
        let bytes = match read_regular(&self.path(name), *size) {
            Ok(bytes) => bytes,
            Err(fault) => {
                self.add(name, None, fault);
                return None;
            }
        };
        if let Err(fault) = artifact.check(&bytes) {
            self.add(name, None, fault);
        }
        Some(bytes)
    }

    /// Key brokers would be told what guests of another image measure.
    fn measurements(&mut self) {
        let bytes = match read_regular(&self.path(MEASUREMENTS), MEASUREMENTS_LIMIT) {
            Ok(bytes) => bytes,
            // Images go without.
            Err(Fault::Absent) => return,
            Err(fault) => return self.add(MEASUREMENTS, None, fault),
        };
        let measured: Measurements = match serde_json::from_slice(&bytes) {
            Ok(measured) => measured,
            Err(error) => {
                return self.add(MEASUREMENTS, None, Fault::NoMeasurements(error.to_string()));
            }
        };
        let manifest = self.image.manifest();
        for launch in [&measured.snp, &measured.tdx].into_iter().flatten() {
            let of = [
                ("kernel", &launch.kernel, &manifest.kernel.bzimage),
                ("initrd", &launch.initrd, &manifest.initrd.file),
            ];
            for (what, measured, ours) in of {
                if measured.sha256 != ours.sha256 {
                    let (found, expected) = (measured.sha256.clone(), ours.sha256.clone());
                    self.add(MEASUREMENTS, None, Fault::Stale { what, found, expected });
                }
            }
            // The configuration's words follow.
            let words = launch.command_line.strip_prefix(&manifest.command_line);
            if words.is_none_or(|words| !words.is_empty() && !words.starts_with(' ')) {
                self.add(MEASUREMENTS, None, Fault::StaleCommandLine);
            }
        }
    }

    /// The initrd's entries, compared with those of the manifest.
    fn archive(&mut self, initrd: &[u8]) -> Option<Archive> {
        let manifest = self.image.manifest();
        let file = manifest.initrd.file.name.as_str();
        let archive = match Archive::parse(initrd) {
            Ok(archive) => archive,
            Err(error) => {
                self.add(file, None, error.into());
                return None;
            }
        };
        let mut listed = BTreeMap::new();
        for entry in &manifest.files {
            if listed.insert(entry.path.as_str(), entry).is_some() {
                self.add(file, Some(&entry.path), Fault::Twice);
            }
        }
        for found in Entry::list(&archive) {
            match listed.remove(found.path.as_str()) {
                Some(expected) => self.entry(file, &found, expected),
                None => self.add(file, Some(&found.path), Fault::Unlisted),
            }
        }
        for path in listed.into_keys() {
            self.add(file, Some(path), Fault::Absent);
        }
        Some(archive)
    }

    fn entry(&mut self, file: &str, found: &Entry, expected: &Entry) {
        let path = Some(found.path.as_str());
        let words = [("kind", &found.kind, &expected.kind), ("mode", &found.mode, &expected.mode)];
        for (what, found, expected) in words {
            if found != expected {
                let (found, expected) = (found.clone(), expected.clone());
                self.add(file, path, Fault::Differs { what, found, expected });
            }
        }
        if found.size != expected.size {
            let or_none =
                |size: Option<u64>| size.map_or("none".to_owned(), |size| size.to_string());
            let (found, expected) = (or_none(found.size), or_none(expected.size));
            self.add(file, path, Fault::Differs { what: "size", found, expected });
        }
        if found.sha256 != expected.sha256 {
            let or_none = |hash: &Option<Sha256Hex>| {
                hash.as_ref().map_or("none".to_owned(), ToString::to_string)
            };
            let (found, expected) = (or_none(&found.sha256), or_none(&expected.sha256));
            self.add(file, path, Fault::Differs { what: "SHA-256", found, expected });
        }
    }

    /// Returns the shell.
    fn development(&mut self, initrd: &[u8], development: &[u8]) -> Option<Vec<u8>> {
        let described = &self.image.manifest().initrd;
        let more = development.strip_prefix(initrd);
        let shell = more
            .filter(|_| described.development_shell.is_some())
            .and_then(|more| Archive::parse(more).ok())
            .and_then(|archive| archive.file(DEVELOPMENT_SHELL).map(<[u8]>::to_vec));
        let hash = described.development_shell.as_ref().map(|shell| &shell.sha256);
        let is_right = more == Some(&development_archive(shell.as_deref()))
            && shell.as_deref().map(Sha256Hex::of).as_ref() == hash;
        if !is_right {
            let initrd = described.file.name.clone();
            self.add(&described.development.name, None, Fault::Development { initrd });
        }
        shell
    }

    /// Nobody vouches for what else is in the directory.
    fn unlisted(&mut self) {
        let manifest = self.image.manifest();
        let known: BTreeSet<&str> = [MANIFEST, MEASUREMENTS]
            .into_iter()
            .chain(manifest.artifacts().map(|artifact| artifact.name.as_str()))
            .collect();
        let names = fs::read_dir(self.image.directory()).and_then(|entries| {
            let name = |entry: io::Result<fs::DirEntry>| {
                Ok(entry?.file_name().to_string_lossy().into_owned())
            };
            entries.take(NAMES_LIMIT).map(name).collect::<io::Result<BTreeSet<String>>>()
        });
        match names {
            Err(error) => self.add(".", None, Fault::Unreadable(error.to_string())),
            Ok(names) => {
                for name in names.iter().filter(|name| !known.contains(name.as_str())) {
                    self.add(name, None, Fault::Unlisted);
                }
            }
        }
    }
}

/// A regular file's bytes; links are not followed, nothing that has no end is opened, and a file that has
/// another size than `expected` is read no further than shows it.
fn read_regular(path: &Path, expected: u64) -> Result<Vec<u8>, Fault> {
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Fault::Absent,
        _ => Fault::Unreadable(error.to_string()),
    };
    let found = fs::symlink_metadata(path).map_err(unreadable)?;
    if !found.is_file() {
        return Err(Fault::Kind(kind(found.file_type())));
    }
    let mut bytes = Vec::new();
    let mut file = File::open(path).map_err(unreadable)?.take(expected + 1);
    file.read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > expected {
        return Err(Fault::Size { found: found.len(), expected });
    }
    Ok(bytes)
}

fn kind(kind: FileType) -> &'static str {
    if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_dir() {
        "a directory"
    } else {
        "a device, pipe or socket"
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;

    use super::*;
    use crate::DevelopmentShell;
    use crate::{FORMAT, Initrd, Kernel, Origin};

    /// An image in a directory of its own, and the bytes of its files.
    struct Sample {
        directory: tempfile::TempDir,
        archive: Archive,
        manifest: Manifest,
    }

    impl Sample {
        fn new() -> Sample {
            let mut archive = Archive::default();
            archive.add("etc", 0o755, Node::Directory).unwrap();
            archive.add("etc/words", 0o644, Node::File(b"words".to_vec())).unwrap();
            archive.add("console", 0o600, Node::CharDevice(5, 1)).unwrap();
            archive.add("init", 0o755, Node::File(b"agent".to_vec())).unwrap();
            let initrd = archive.to_bytes();
            let development = [initrd.as_slice(), &development_archive(None)].concat();
            let origin = || Origin {
                package: "p".into(),
                version: "1".into(),
                sha256: Sha256Hex::of(b"package"),
            };
            let manifest = Manifest {
                format: FORMAT,
                kernel: Kernel {
                    release: "6.12".into(),
                    package: origin(),
                    vmlinux: Artifact::new("vmlinux", b"kernel"),
                    bzimage: Artifact::new("vmlinuz", b"compressed"),
                },
                initrd: Initrd {
                    file: Artifact::new("initrd.img", &initrd),
                    zstd_size: 1,
                    development: Artifact::new("initrd-development.img", &development),
                    development_shell: None,
                },
                command_line: "quiet".into(),
                certificates: origin(),
                extensions: Vec::new(),
                files: Entry::list(&archive),
            };
            let sample = Sample { directory: tempfile::tempdir().unwrap(), archive, manifest };
            sample.put("vmlinux", b"kernel");
            sample.put("vmlinuz", b"compressed");
            sample.put("initrd.img", &initrd);
            sample.put("initrd-development.img", &development);
            sample.put(MANIFEST, &sample.manifest.to_bytes());
            sample
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn put(&self, name: &str, bytes: &[u8]) {
            fs::write(self.path(name), bytes).unwrap();
        }

        fn bytes(&self, name: &str) -> Vec<u8> {
            fs::read(self.path(name)).unwrap()
        }

        /// Another initrd, in the directory alone.
        fn change_initrd(&self, change: impl FnOnce(&mut Archive)) {
            let mut archive = self.archive.clone();
            change(&mut archive);
            self.put("initrd.img", &archive.to_bytes());
        }

        /// Another manifest, which the files are held to.
        fn change_manifest(&mut self, change: impl FnOnce(&mut Manifest)) {
            change(&mut self.manifest);
            self.put(MANIFEST, &self.manifest.to_bytes());
        }

        fn open(&self) -> GuestImage {
            GuestImage::open(self.directory.path()).unwrap()
        }

        /// What is found, a line each.
        fn problems(&self) -> Vec<String> {
            match self.open().verify() {
                Ok(_) => Vec::new(),
                Err(error) => error.problems.iter().map(ToString::to_string).collect(),
            }
        }
    }

    fn assert_lines(found: &[String], expected: &[&str]) {
        let fits = found.len() == expected.len()
            && found.iter().zip(expected).all(|(found, expected)| found.starts_with(expected));
        assert!(fits, "{found:#?} is not {expected:#?}");
    }

    const FILES: [&str; 4] = ["vmlinux", "vmlinuz", "initrd.img", "initrd-development.img"];

    #[test]
    fn an_image_that_is_what_its_manifest_says_gives_its_bytes() {
        let sample = Sample::new();
        sample.put(MEASUREMENTS, b"{}");
        let image = sample.open().verify().unwrap();
        assert_eq!(image.archive(), &sample.archive);
        assert_eq!((image.vmlinux(), image.bzimage()), (&b"kernel"[..], &b"compressed"[..]));
        assert_eq!(image.manifest(), &sample.manifest);
        assert_eq!(image.image().manifest_file().sha256, Sha256Hex::of(&sample.bytes(MANIFEST)));
    }

    #[test]
    fn measurements_are_of_this_image_or_a_problem() {
        let sample = Sample::new();
        let launch = |kernel: &str, initrd: &str, command_line: &str| {
            serde_json::json!({
                "kernel": { "name": "vmlinuz", "sha256": kernel },
                "initrd": { "name": "initrd.img", "sha256": initrd },
                "command_line": command_line,
            })
        };
        let (kernel, initrd) = (
            sample.manifest.kernel.bzimage.sha256.to_string(),
            sample.manifest.initrd.file.sha256.to_string(),
        );
        let other = "ab".repeat(32);
        let problems = |document: serde_json::Value| {
            sample.put(MEASUREMENTS, document.to_string().as_bytes());
            sample.problems()
        };
        let ours = launch(&kernel, &initrd, "quiet nacre.tee=snp");
        assert_lines(&problems(serde_json::json!({ "snp": ours, "tdx": ours })), &[]);
        for (launch, expected) in [
            (launch(&other, &initrd, "quiet"), "measurements.json: its kernel is ab"),
            (launch(&kernel, &other, "quiet"), "measurements.json: its initrd is ab"),
            (launch(&kernel, &initrd, "quieter"), "measurements.json: its command line "),
            (launch(&kernel, &initrd, "nacre.tee=snp"), "measurements.json: its command line "),
        ] {
            for tee in ["snp", "tdx"] {
                let mut document = serde_json::json!({ "snp": ours, "tdx": ours });
                document[tee] = launch.clone();
                assert_lines(&problems(document), &[expected]);
            }
        }
        let none = "measurements.json: it is no document of measurements: ";
        assert_lines(&problems(serde_json::json!([1, 2, 3])), &[none]);
        assert_lines(&problems(serde_json::json!({ "snp": { "kernel": 1 } })), &[none]);
        sample.put(MEASUREMENTS, &vec![b' '; 1024 * 1024 + 1]);
        assert_lines(&sample.problems(), &["measurements.json: it has "]);
        fs::remove_file(sample.path(MEASUREMENTS)).unwrap();
        symlink(sample.path(MANIFEST), sample.path(MEASUREMENTS)).unwrap();
        assert_lines(&sample.problems(), &["measurements.json: it is a symbolic link"]);
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let sample = Sample::new();
        fs::remove_file(sample.path("vmlinux")).unwrap();
        sample.put("vmlinuz", b"Compressed");
        sample.put("initrd.old", b"");
        sample.change_initrd(|archive| {
            archive.remove("etc/words");
            archive.remove("init");
            archive.add("etc/more", 0o644, Node::File(Vec::new())).unwrap();
            archive.add("init", 0o700, Node::File(b"Agent".to_vec())).unwrap();
        });
        assert_lines(
            &sample.problems(),
            &[
                "vmlinux: it is absent",
                "vmlinuz: its SHA-256 is ",
                "initrd.img: its SHA-256 is ",
                "initrd.img /etc/more: the manifest does not know it",
                "initrd.img /init: its mode is 0700, 0755 in the manifest",
                "initrd.img /init: its SHA-256 is ",
                "initrd.img /etc/words: it is absent",
                "initrd-development.img: it is not initrd.img with etc/nacre/development,",
                "initrd.old: the manifest does not know it",
            ],
        );
    }

    #[test]
    fn the_manifests_list_is_held_to_the_initrd() {
        let mut sample = Sample::new();
        sample.change_manifest(|manifest| {
            let [console, _, words, init] = &mut manifest.files[..] else { panic!("four entries") };
            console.kind = "character device 1:3".into();
            words.size = Some(4);
            init.sha256 = None;
            let twice = init.clone();
            manifest.files.push(twice);
        });
        assert_lines(
            &sample.problems(),
            &[
                "initrd.img /init: the manifest lists it twice",
                "initrd.img /console: its kind is character device 5:1, character device 1:3 in",
                "initrd.img /etc/words: its size is 5, 4 in the manifest",
                "initrd.img /init: its SHA-256 is ",
            ],
        );
    }

    #[test]
    fn sizes_are_held_to_without_reading_on() {
        let sample = Sample::new();
        for name in FILES {
            let bytes = sample.bytes(name);
            for other in [&bytes[..bytes.len() - 1], &[bytes.as_slice(), b"x"].concat()] {
                sample.put(name, other);
                let expected = format!(
                    "{name}: it has {} bytes, {} in the manifest",
                    other.len(),
                    bytes.len()
                );
                assert!(sample.problems().contains(&expected), "{:?}", sample.problems());
            }
            sample.put(name, &bytes);
        }
        // A hole in a file costs nothing.
        let large = File::create(sample.path("vmlinux")).unwrap();
        large.set_len(1 << 40).unwrap();
        assert_lines(&sample.problems(), &["vmlinux: it has 1099511627776 bytes, 6 in"]);
    }

    #[test]
    fn what_is_no_regular_file_is_not_opened() {
        let sample = Sample::new();
        let elsewhere = tempfile::tempdir().unwrap();
        for name in FILES.into_iter().chain([MANIFEST]) {
            let (bytes, moved) = (sample.bytes(name), elsewhere.path().join(name));
            fs::rename(sample.path(name), &moved).unwrap();
            symlink(&moved, sample.path(name)).unwrap();
            assert_lines(&sample.problems(), &[&format!("{name}: it is a symbolic link")]);
            fs::remove_file(sample.path(name)).unwrap();
            sample.put(name, &bytes);
        }
        fs::remove_file(sample.path("vmlinux")).unwrap();
        fs::create_dir(sample.path("vmlinux")).unwrap();
        assert_lines(&sample.problems(), &["vmlinux: it is a directory"]);
        fs::remove_dir(sample.path("vmlinux")).unwrap();
        let made = std::process::Command::new("mkfifo").arg(sample.path("vmlinux")).status();
        assert!(made.unwrap().success());
        assert_lines(&sample.problems(), &["vmlinux: it is a device, pipe or socket"]);
        fs::rename(sample.path("vmlinux"), sample.path(MANIFEST)).unwrap();
        let error = GuestImage::open(sample.directory.path()).unwrap_err().to_string();
        assert!(error.contains("no regular file"), "{error}");
    }

    #[test]
    fn a_development_image_has_one_file_more_and_nothing_else() {
        let mut sample = Sample::new();
        let initrd = sample.bytes("initrd.img");
        let mut more = Archive::default();
        more.add("etc", 0o755, Node::Directory).unwrap();
        more.add("etc/other", 0o644, Node::File(Vec::new())).unwrap();
        for tail in
            [Vec::new(), more.to_bytes(), [development_archive(None), more.to_bytes()].concat()]
        {
            let development = [initrd.as_slice(), &tail].concat();
            sample.put("initrd-development.img", &development);
            sample.change_manifest(|manifest| {
                manifest.initrd.development = Artifact::new("initrd-development.img", &development);
            });
            assert_lines(&sample.problems(), &["initrd-development.img: it is not initrd.img"]);
        }
    }

    #[test]
    fn the_shell_of_a_development_image_is_the_one_that_the_manifest_names() {
        let mut sample = Sample::new();
        let initrd = sample.bytes("initrd.img");
        let mut with = |named: Option<&[u8]>, there: Option<&[u8]>| {
            let development = [initrd.as_slice(), &development_archive(there)].concat();
            sample.put("initrd-development.img", &development);
            sample.change_manifest(|manifest| {
                manifest.initrd.development = Artifact::new("initrd-development.img", &development);
                manifest.initrd.development_shell = named.map(|shell| DevelopmentShell {
                    package: manifest.certificates.clone(),
                    sha256: Sha256Hex::of(shell),
                });
            });
            sample.open().verify()
        };
        let image = with(Some(b"shell"), Some(b"shell")).unwrap();
        assert_eq!(image.development_shell(), Some(&b"shell"[..]));
        assert_eq!(with(None, None).unwrap().development_shell(), None);
        for (named, there) in [
            (Some(&b"shell"[..]), Some(&b"other"[..])),
            (Some(b"shell"), None),
            (None, Some(b"shell")),
        ] {
            assert!(with(named, there).is_err(), "{named:?} {there:?}");
        }
    }

    #[test]
    fn an_initrd_of_another_program_is_refused_even_if_the_manifest_has_its_hash() {
        let mut sample = Sample::new();
        let twice = [sample.bytes("initrd.img"), sample.bytes("initrd.img")].concat();
        for initrd in [b"no archive".to_vec(), twice] {
            let development = [initrd.as_slice(), &development_archive(None)].concat();
            sample.put("initrd.img", &initrd);
            sample.put("initrd-development.img", &development);
            sample.change_manifest(|manifest| {
                manifest.initrd.file = Artifact::new("initrd.img", &initrd);
                manifest.initrd.development = Artifact::new("initrd-development.img", &development);
            });
            let expected = "initrd.img: the archive was not written by Nacre: at byte ";
            assert_lines(&sample.problems(), &[expected]);
        }
    }

    #[test]
    fn a_manifest_of_the_owners_is_held_against_that_of_the_directory() {
        let mut sample = Sample::new();
        let own = tempfile::NamedTempFile::new().unwrap();
        fs::copy(sample.path(MANIFEST), own.path()).unwrap();
        let verified = |sample: &Sample| {
            GuestImage::open_by(sample.directory.path(), own.path()).unwrap().verify()
        };
        verified(&sample).unwrap();
        // Consistent in itself, but another image.
        sample.put("vmlinux", b"Kernel");
        sample.change_manifest(|manifest| {
            manifest.kernel.vmlinux = Artifact::new("vmlinux", b"Kernel");
        });
        sample.open().verify().unwrap();
        let error = verified(&sample).unwrap_err().to_string();
        assert!(error.contains("\n  manifest.json: its SHA-256 is "), "{error}");
        assert!(error.contains("\n  vmlinux: its SHA-256 is "), "{error}");
        let absent = GuestImage::open_by(sample.directory.path(), Path::new("/nonexistent"));
        assert!(absent.unwrap_err().to_string().contains("the manifest /nonexistent cannot be"));
    }

    #[test]
    fn names_that_would_upset_a_terminal_are_escaped() {
        let sample = Sample::new();
        sample.put("\u{1b}[2Jx", b"");
        assert_lines(&sample.problems(), &["\\u{1b}[2Jx: the manifest does not know it"]);
    }

    #[test]
    fn every_byte_of_every_file_matters() {
        let sample = Sample::new();
        let own = tempfile::NamedTempFile::new().unwrap();
        fs::copy(sample.path(MANIFEST), own.path()).unwrap();
        let image = GuestImage::open_by(sample.directory.path(), own.path()).unwrap();
        let names = FILES.into_iter().chain([MANIFEST]).collect::<Vec<_>>();
        let any = (prop::sample::select(names), any::<prop::sample::Index>(), 1..=u8::MAX);
        proptest!(ProptestConfig::with_cases(256), |((name, at, flip) in any)| {
            let bytes = sample.bytes(name);
            let mut changed = bytes.clone();
            changed[at.index(bytes.len())] ^= flip;
            sample.put(name, &changed);
            let problems = image.verify().map_err(|error| error.problems);
            sample.put(name, &bytes);
            let problems = problems.unwrap_err();
            prop_assert!(problems.iter().any(|problem| problem.file == name), "{problems:?}");
        });
    }
}
