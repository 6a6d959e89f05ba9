//! Kernel modules that an owner adds to an image: given as files, or by name out of the kernel's package.
//!
//! They join the modules that are there, whose order and dependencies `modules.order` has, and are packed as
//! those are. A file that is no module of this very kernel is refused: a guest that is told to load it at its
//! start would not start.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nacre_image_manifest::cpio::Archive;
use nacre_image_manifest::{AddedModule, Manifest, Sha256Hex};

use crate::elf::{Elf, ElfError};
use crate::modules::{
    MAX_MODULE, Modinfo, Module, ModuleError, ORDER, PackageFiles, Resolver, decompress,
    kernel_name, path_of,
};
use crate::{FileError, read};

/// A line for each module that the agent loads at its start because an owner wants it.
pub(crate) const LOAD: &str = "lib/modules/nacre/modules.load";

/// `MODULE_NAME_LEN` of 64-bit Linux is 56 with its end.
const NAME_LIMIT: usize = 55;

/// The first bytes of xz's and zstd's formats.
const XZ_MAGIC: &[u8] = b"\xfd7zXZ\0";
const ZSTD_MAGIC: &[u8] = b"\x28\xb5\x2f\xfd";

/// Why a module cannot be added.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// A file could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A module, or what it depends on, is of no use.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// Depends on what nobody gave.
    #[error(
        "there is no module {name:?}: give its file with --module, or the kernel's package ({package}) with \
         --kernel-package"
    )]
    Absent {
        /// The module.
        name: String,
        /// Debian's name and version.
        package: String,
    },
    /// Not a module at all.
    #[error("{file} is no kernel module: {problem}")]
    NoModule {
        /// As it was given.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// The names would be one.
    #[error("{first} and {second} are two files of the module {name:?}")]
    Twice {
        /// The module.
        name: String,
        /// As it was given.
        first: String,
        /// As it was given.
        second: String,
    },
    /// Nothing of the base is exchanged.
    #[error("the image that you build from has the module {0:?} already")]
    Present(String),
    /// No name that the kernel gives.
    #[error(
        "{0:?} is no name of a kernel module: letters, digits and underscores, {NAME_LIMIT} at most"
    )]
    Name(String),
    /// The same release, but other options.
    #[error(
        "the module {name:?} was built for another kernel: {found:?}, the image's is {expected:?}"
    )]
    Vermagic {
        /// The module.
        name: String,
        /// Of the module.
        found: String,
        /// Of the image's modules.
        expected: String,
    },
    /// The base was not made by this project.
    #[error("the image's {ORDER} is damaged: {0:?}")]
    Order(String),
    /// Not the package of the image's kernel.
    #[error(
        "{path} has the SHA-256 {found}; the image's kernel is from {package} with the SHA-256 {expected}"
    )]
    Package {
        /// The file.
        path: PathBuf,
        /// Its hash.
        found: Sha256Hex,
        /// Debian's name and version.
        package: String,
        /// The hash in the manifest.
        expected: Sha256Hex,
    },
    /// dpkg-deb failed.
    #[error("failed to unpack {path} with dpkg-deb: {problem}")]
    Unpack {
        /// The file.
        path: PathBuf,
        /// What it said.
        problem: String,
    },
}

/// A module's file as the owner gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleFile {
    file: String,
    name: String,
    vermagic: String,
    given: Sha256Hex,
    content: Vec<u8>,
}

impl ModuleFile {
    /// Reads a module: a `.ko` file as the kernel's build leaves it, or compressed with xz or zstd; signed or
    /// not. `file` is what messages call it.
    ///
    /// # Errors
    /// If it is no module for this processor.
    pub fn read(file: &str, bytes: &[u8]) -> Result<Self, DriverError> {
        let no = |problem: String| DriverError::NoModule { file: file.to_owned(), problem };
        let content = inflate(file, bytes)?;
        let object = Elf::parse(&content).and_then(|elf| elf.is_relocatable());
        match object {
            Ok(true) => {}
            Ok(false) => return Err(no("it is a program or library, not an object file".into())),
            Err(ElfError::Kind) => return Err(no(ElfError::Kind.to_string())),
            Err(error) => return Err(no(error.to_string())),
        }
        let info = Modinfo::read(file, &content)?;
        let name = info.name.ok_or_else(|| no("it does not say its name".into()))?;
        check_name(&name)?;
        let (file, given) = (file.to_owned(), Sha256Hex::of(bytes));
        Ok(Self { file, name, vermagic: info.vermagic, given, content })
    }
}

fn inflate(file: &str, bytes: &[u8]) -> Result<Vec<u8>, DriverError> {
    let no = |problem: String| DriverError::NoModule { file: file.to_owned(), problem };
    let large = || no(format!("it has more than {MAX_MODULE} bytes"));
    if bytes.len() as u64 > MAX_MODULE {
        return Err(large());
    }
    if bytes.starts_with(XZ_MAGIC) {
        return Ok(decompress(file, bytes)?);
    }
    if !bytes.starts_with(ZSTD_MAGIC) {
        return Ok(bytes.to_vec());
    }
    let mut content = Vec::new();
    zstd::Decoder::with_buffer(bytes)
        .and_then(|decoder| decoder.take(MAX_MODULE + 1).read_to_end(&mut content))
        .map_err(|error| no(format!("zstd: {error}")))?;
    if content.len() as u64 > MAX_MODULE { Err(large()) } else { Ok(content) }
}

fn check_name(name: &str) -> Result<(), DriverError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if !name.is_empty() && name.len() <= NAME_LIMIT && name.chars().all(plain) {
        Ok(())
    } else {
        Err(DriverError::Name(name.to_owned()))
    }
}

/// The package that the image's kernel is from, unpacked.
#[derive(Debug)]
pub struct KernelPackage {
    root: tempfile::TempDir,
    files: PackageFiles,
}

impl KernelPackage {
    /// Unpacks the package if it is the one that the image's manifest names.
    ///
    /// # Errors
    /// If it is another, or `dpkg-deb` fails.
    pub fn open(path: &Path, manifest: &Manifest) -> Result<Self, DriverError> {
        let origin = &manifest.kernel.package;
        let package = read(path)?;
        let found = Sha256Hex::of(&package);
        if found != origin.sha256 {
            return Err(DriverError::Package {
                path: path.to_owned(),
                found,
                package: package_of(manifest),
                expected: origin.sha256.clone(),
            });
        }
        let failed = |problem| DriverError::Unpack { path: path.to_owned(), problem };
        let root = tempfile::tempdir().map_err(|error| failed(error.to_string()))?;
        // The bytes that were hashed: another file may be under that name by now.
        let copy = tempfile::NamedTempFile::new().map_err(|error| failed(error.to_string()))?;
        fs::write(copy.path(), package).map_err(|error| failed(error.to_string()))?;
        let mut dpkg = Command::new("dpkg-deb");
        let output = dpkg.arg("--extract").arg(copy.path()).arg(root.path()).output();
        let output = output.map_err(|error| failed(format!("{error}; is dpkg installed?")))?;
        if !output.status.success() {
            return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        let files = PackageFiles::of(root.path(), &manifest.kernel.release)?;
        Ok(Self { root, files })
    }

    /// Where it is unpacked, until this value goes.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.root.path()
    }
}

fn package_of(manifest: &Manifest) -> String {
    let origin = &manifest.kernel.package;
    format!("{} {}", origin.package, origin.version)
}

/// What an owner wants loaded.
#[derive(Debug, Default)]
pub(crate) struct Wanted<'a> {
    pub(crate) files: &'a [ModuleFile],
    pub(crate) names: &'a [String],
    pub(crate) package: Option<&'a KernelPackage>,
}

/// What is put into the initrd for it.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// New ones, in an order in which they can be loaded after those of the base.
    pub(crate) modules: Vec<Module>,
    /// For the manifest, in the same order.
    pub(crate) described: Vec<AddedModule>,
}

/// Finds all modules that have to be added so that those which are wanted can be loaded.
pub(crate) fn resolve(
    wanted: &Wanted,
    archive: &Archive,
    manifest: &Manifest,
) -> Result<Resolved, DriverError> {
    let base = base_modules(archive)?;
    let release = manifest.kernel.release.as_str();
    let mut given: BTreeMap<&str, &ModuleFile> = BTreeMap::new();
    for file in wanted.files {
        let before = given.insert(&file.name, file);
        if let Some(before) = before.filter(|before| before.content != file.content) {
            let (first, second) = (before.file.clone(), file.file.clone());
            return Err(DriverError::Twice { name: file.name.clone(), first, second });
        }
    }
    let mut names: BTreeSet<String> = given.keys().map(|name| (*name).to_owned()).collect();
    for name in wanted.names {
        check_name(&kernel_name(name))?;
        names.insert(kernel_name(name));
    }
    if let Some(name) = names.iter().find(|name| base.iter().any(|module| module.name == **name)) {
        return Err(DriverError::Present(name.clone()));
    }
    if let Some(expected) = vermagic(archive, &base)?
        && let Some(file) = given.values().find(|file| file.vermagic != expected)
    {
        let (name, found) = (file.name.clone(), file.vermagic.clone());
        return Err(DriverError::Vermagic { name, found, expected });
    }

    let in_package = |name: &str| wanted.package.and_then(|package| package.files.path(name));
    let source = |name: &str| match (given.get(name), in_package(name)) {
        (Some(file), _) => Ok(Some(file.content.clone())),
        (None, Some(path)) => decompress(name, &read(path)?).map(Some),
        (None, None) => Ok(None),
    };
    let there = base.len();
    let mut resolver = Resolver::new(release, base, &source);
    for name in &names {
        resolver.add(name).map_err(|error| match error {
            ModuleError::Absent(name) => {
                DriverError::Absent { name, package: package_of(manifest) }
            }
            error => error.into(),
        })?;
    }
    let modules = resolver.found.split_off(there);
    let mut described = Vec::new();
    for Module { name, .. } in &modules {
        let sha256 = match (given.get(name.as_str()), in_package(name)) {
            (Some(file), _) => file.given.clone(),
            (None, Some(path)) => Sha256Hex::of(&read(path)?),
            (None, None) => continue,
        };
        described.push(AddedModule { name: name.clone(), loaded: names.contains(name), sha256 });
    }
    Ok(Resolved { modules, described })
}

/// The modules that the base has, by its `modules.order`.
fn base_modules(archive: &Archive) -> Result<Vec<Module>, DriverError> {
    let text = archive.file(ORDER).unwrap_or_default();
    let text = std::str::from_utf8(text).map_err(|e| DriverError::Order(e.to_string()))?;
    let module = |line: &str| {
        let mut words = line.split(' ').map(str::to_owned);
        let name = words.next().unwrap_or_default();
        let dependencies: Vec<String> = words.collect();
        let there = |name: &String| archive.file(&path_of(name)).is_some();
        if !there(&name) || !dependencies.iter().all(there) {
            return Err(DriverError::Order(line.to_owned()));
        }
        Ok(Module { name, dependencies, content: Vec::new() })
    };
    text.lines().map(module).collect()
}

/// What modules of the image's kernel say they were built for; none if the image has no module.
fn vermagic(archive: &Archive, base: &[Module]) -> Result<Option<String>, DriverError> {
    let Some(Module { name, .. }) = base.first() else { return Ok(None) };
    let content = archive.file(&path_of(name)).unwrap_or_default();
    Ok(Some(Modinfo::read(name, content)?.vermagic))
}
