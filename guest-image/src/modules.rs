//! The kernel modules a VM needs, and the order in which they must be loaded.
//!
//! Debian's package has no `modules.dep` (depmod writes it at installation), so the dependencies are
//! read from the modules themselves: each names what it needs in its `.modinfo` section.
//!
//! They are packed decompressed and without their signatures. Both would be dealt with at every start,
//! by the guest's kernel, for nothing: the initrd is measured as a whole, and the package the modules
//! come from is pinned by its hash. For eight modules, in software emulation, that is 80 instead of
//! 925 ms of CPU (of those about 490 for xz and 350 for RSA). The kernel notes the missing signatures
//! as a taint.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use crate::elf::{Elf, ElfError};
use crate::{FileError, list, read};

const SUFFIX: &str = ".ko.xz";

/// Where the initrd has its modules.
pub(crate) const DIRECTORY: &str = "lib/modules/nacre";

/// In the initrd: a line for each module, its name and what must be loaded before it.
pub(crate) const ORDER: &str = "lib/modules/nacre/modules.order";

/// More than the largest driver that is known, uncompressed, in bytes.
pub(crate) const MAX_MODULE: u64 = 128 << 20;

/// One module to pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its name as the kernel writes it, with underscores.
    pub name: String,
    /// What must be loaded before it, in that order, without itself.
    pub dependencies: Vec<String>,
    /// The ELF file, neither compressed nor signed.
    pub content: Vec<u8>,
}

/// Why the modules could not be gathered.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// The package's files could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// No such file.
    #[error("there is no module {0:?}: the kernel package has no such {SUFFIX} file")]
    Absent(String),
    /// It cannot be unpacked to be read.
    #[error("failed to decompress the module {name:?} with xz: {reason}")]
    Xz {
        /// The module.
        name: String,
        /// What went wrong.
        reason: String,
    },
    /// The file is not a module.
    #[error("the module {name:?} cannot be read: {source}")]
    Elf {
        /// The module.
        name: String,
        /// What is wrong.
        source: ElfError,
    },
    /// No or strange `.modinfo`.
    #[error("the module {0:?} does not say what it depends on")]
    NoModinfo(String),
    /// A trailer that does not fit.
    #[error("the module {0:?} has a damaged signature")]
    Signature(String),
    /// Built for another kernel: it would be refused at load.
    #[error("the module {name:?} is for the kernel {found:?}, not {expected:?}")]
    Release {
        /// The module.
        name: String,
        /// The release it was built for.
        found: String,
        /// The pinned one.
        expected: String,
    },
    /// They need each other.
    #[error("the module {0:?} depends on itself")]
    Cycle(String),
}

/// `wanted` and all they depend on, out of an unpacked kernel package, in an order in which they can
/// be loaded one after the other.
pub fn resolve(
    package_root: &Path,
    release: &str,
    wanted: &[String],
) -> Result<Vec<Module>, ModuleError> {
    let files = PackageFiles::of(package_root, release)?;
    let source = |name: &str| match files.path(name) {
        Some(path) => decompress(name, &read(path)?).map(Some),
        None => Ok(None),
    };
    let mut resolver = Resolver::new(release, Vec::new(), &source);
    for name in wanted {
        resolver.add(name)?;
    }
    Ok(resolver.found)
}

/// Where the modules of an unpacked kernel package are.
#[derive(Debug, Default)]
pub(crate) struct PackageFiles(BTreeMap<String, PathBuf>);

impl PackageFiles {
    pub(crate) fn of(package_root: &Path, release: &str) -> Result<Self, FileError> {
        let directory = package_root.join("lib/modules").join(release).join("kernel");
        let mut files = BTreeMap::new();
        index(&directory, &mut files)?;
        Ok(Self(files))
    }

    /// Its file, compressed.
    pub(crate) fn path(&self, name: &str) -> Option<&Path> {
        self.0.get(name).map(PathBuf::as_path)
    }
}

/// The text file beside the modules: a line for each, its name and what must be loaded before it.
pub fn order_file(modules: &[Module]) -> String {
    let line = |module: &Module| {
        let words: Vec<_> = [&module.name].into_iter().chain(&module.dependencies).collect();
        words.iter().flat_map(|word| [word.as_str(), " "]).collect::<String>().trim().to_owned()
    };
    modules.iter().map(|module| line(module) + "\n").collect()
}

/// Where the initrd has the module of this name.
pub(crate) fn path_of(name: &str) -> String {
    format!("{DIRECTORY}/{name}.ko")
}

/// Notes the path of each module beneath `directory` by its name.
fn index(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<(), FileError> {
    for path in list(directory)? {
        if path.is_dir() {
            index(&path, files)?;
            continue;
        }
        let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(SUFFIX));
        if let Some(name) = name {
            files.insert(kernel_name(name), path.clone());
        }
    }
    Ok(())
}

/// The uncompressed file of the module of this name, signed or not; none if there is no such module.
pub(crate) type Source<'a> = &'a dyn Fn(&str) -> Result<Option<Vec<u8>>, ModuleError>;

/// Follows what modules depend on.
pub(crate) struct Resolver<'a> {
    source: Source<'a>,
    release: &'a str,
    /// In an order in which they can be loaded.
    pub(crate) found: Vec<Module>,
    /// Modules whose dependencies are being followed.
    open: Vec<String>,
}

impl<'a> Resolver<'a> {
    /// Begins with modules that are there already.
    pub(crate) fn new(release: &'a str, found: Vec<Module>, source: Source<'a>) -> Self {
        Self { source, release, found, open: Vec::new() }
    }

    /// Adds a module behind all that it depends on.
    pub(crate) fn add(&mut self, name: &str) -> Result<(), ModuleError> {
        if self.found.iter().any(|module| module.name == name) {
            return Ok(());
        }
        if self.open.iter().any(|open| open == name) {
            return Err(ModuleError::Cycle(name.to_owned()));
        }
        let content = (self.source)(name)?;
        let mut content = content.ok_or_else(|| ModuleError::Absent(name.to_owned()))?;
        remove_signature(name, &mut content)?;
        let info = Modinfo::read(name, &content)?;
        info.check_release(name, self.release)?;
        self.open.push(name.to_owned());
        let mut dependencies: Vec<String> = Vec::new();
        for needed in info.depends {
            self.add(&needed)?;
            let known = self.found.iter().find(|module| module.name == needed);
            let before = known.into_iter().flat_map(|module| module.dependencies.clone());
            for other in before.chain([needed.clone()]) {
                if !dependencies.contains(&other) {
                    dependencies.push(other);
                }
            }
        }
        self.open.pop();
        self.found.push(Module { name: name.to_owned(), dependencies, content });
        Ok(())
    }
}

/// What a module says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Modinfo {
    /// Its name.
    pub(crate) name: Option<String>,
    /// The kernel it was built for: release, and options that matter.
    pub(crate) vermagic: String,
    /// What it depends on directly.
    pub(crate) depends: Vec<String>,
}

impl Modinfo {
    /// Reads the `.modinfo` section of `module`, which is called `name` in errors.
    pub(crate) fn read(name: &str, module: &[u8]) -> Result<Self, ModuleError> {
        let of = |source| ModuleError::Elf { name: name.to_owned(), source };
        let none = || ModuleError::NoModinfo(name.to_owned());
        let modinfo = Elf::parse(module).and_then(|elf| elf.section(".modinfo")).map_err(of)?;
        // Authors' names stand there in any encoding.
        let fields: Vec<_> =
            modinfo.ok_or_else(none)?.split(|byte| *byte == 0).filter_map(ascii).collect();
        let field = |key: &str| fields.iter().find_map(|field| field.strip_prefix(key));
        let depends = field("depends=").ok_or_else(none)?.split(',');
        Ok(Self {
            name: field("name=").map(kernel_name),
            vermagic: field("vermagic=").ok_or_else(none)?.trim_end().to_owned(),
            depends: depends.filter(|name| !name.is_empty()).map(kernel_name).collect(),
        })
    }

    fn check_release(&self, name: &str, expected: &str) -> Result<(), ModuleError> {
        let found = self.vermagic.split(' ').next().unwrap_or_default();
        if found == expected {
            return Ok(());
        }
        let (name, found, expected) = (name.to_owned(), found.to_owned(), expected.to_owned());
        Err(ModuleError::Release { name, found, expected })
    }
}

fn ascii(field: &[u8]) -> Option<&str> {
    std::str::from_utf8(field).ok().filter(|field| field.is_ascii())
}

/// A module's name as the kernel writes it.
pub(crate) fn kernel_name(name: &str) -> String {
    name.replace('-', "_")
}

/// Cuts off an appended signature: its bytes, a descriptor (`struct module_signature` in the kernel's
/// `include/linux/module_signature.h`) and a mark.
pub(crate) fn remove_signature(name: &str, module: &mut Vec<u8>) -> Result<(), ModuleError> {
    const MARK: &[u8] = b"~Module signature appended~\n";
    const DESCRIPTOR: usize = 12; // the last four bytes: the signature's length, big-endian
    let damaged = || ModuleError::Signature(name.to_owned());
    let Some(rest) = module.strip_suffix(MARK) else { return Ok(()) };
    let (before, length) = rest.split_last_chunk::<4>().ok_or_else(damaged)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| damaged())?;
    let end = before.len().checked_sub(DESCRIPTOR - 4).and_then(|end| end.checked_sub(length));
    module.truncate(end.ok_or_else(damaged)?);
    Ok(())
}

/// Inflates what xz made, up to [`MAX_MODULE`].
pub(crate) fn decompress(name: &str, compressed: &[u8]) -> Result<Vec<u8>, ModuleError> {
    let failed = |reason: String| ModuleError::Xz { name: name.to_owned(), reason };
    let mut xz = Command::new("xz")
        .args(["--decompress", "--stdout", "--memlimit=256MiB"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("{error}; is xz-utils installed?")))?;
    let (input, inflated) = (xz.stdin.take(), xz.stdout.take());
    let content = thread::scope(|scope| {
        scope.spawn(move || {
            // A write that fails means that xz stopped; it says why itself.
            input.map(|mut input| input.write_all(compressed))
        });
        let mut content = Vec::new();
        // Closing the pipe is what stops it, where there is more.
        let read = inflated.map(|pipe| pipe.take(MAX_MODULE + 1).read_to_end(&mut content));
        read.transpose().map(|_| content)
    });
    let output = xz.wait_with_output().map_err(|error| failed(error.to_string()))?;
    let content = content.map_err(|error| failed(error.to_string()))?;
    if content.len() as u64 > MAX_MODULE {
        return Err(failed(format!("it inflates to more than {MAX_MODULE} bytes")));
    }
    if output.status.success() {
        Ok(content)
    } else {
        Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::tests::elf_file;
    use std::fs;

    /// A package root with modules made on the spot: file name, `depends=`.
    fn package(modules: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("lib/modules/6.12/kernel/drivers");
        fs::create_dir_all(&directory).unwrap();
        for (name, depends) in modules {
            let modinfo = format!("depends={depends}\0name={name}\0vermagic=6.12 SMP\0");
            let plain = directory.join(format!("{name}.ko"));
            fs::write(&plain, elf_file(1, b"", modinfo.as_bytes())).unwrap();
            assert!(Command::new("xz").arg(&plain).status().unwrap().success());
        }
        root
    }

    fn names(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let root = package(&[
            ("failover", ""),
            ("net_failover", "failover"),
            ("virtio-net", "net_failover,failover"),
            ("unneeded", ""),
        ]);
        let modules = resolve(root.path(), "6.12", &names(&["virtio_net", "failover"])).unwrap();
        let expected = "failover\nnet_failover failover\nvirtio_net failover net_failover\n";
        assert_eq!(order_file(&modules), expected);
    }

    #[test]
    fn signatures_are_cut_off() {
        let cut = |bytes: &[u8]| {
            let mut module = bytes.to_vec();
            remove_signature("m", &mut module).map(|()| module)
        };
        let signed = b"ELFsig\0\0\x02\0\0\0\0\0\0\0\0\x03~Module signature appended~\n";
        assert_eq!(cut(signed).unwrap(), b"ELF");
        assert_eq!(cut(b"unsigned").unwrap(), b"unsigned");
        assert!(matches!(cut(&signed[4..]), Err(ModuleError::Signature(_))));
        assert!(matches!(cut(&signed[16..]), Err(ModuleError::Signature(_))));
    }

    #[test]
    fn absent_foreign_and_circular_modules_are_errors() {
        let root = package(&[("a", "b"), ("b", "a"), ("c", "gone")]);
        let why = |release, name| resolve(root.path(), release, &names(&[name])).unwrap_err();
        assert!(matches!(why("6.12", "a"), ModuleError::Cycle(_)));
        assert!(matches!(why("6.12", "c"), ModuleError::Absent(name) if name == "gone"));
        assert!(matches!(why("6.11", "a"), ModuleError::File(_)));

        let drivers = root.path().join("lib/modules/6.12/kernel/drivers");
        let other = root.path().join("lib/modules/6.11/kernel");
        fs::create_dir_all(&other).unwrap();
        fs::copy(drivers.join("a.ko.xz"), other.join("a.ko.xz")).unwrap();
        fs::write(other.join("d.ko.xz"), "not xz").unwrap();
        assert!(matches!(why("6.11", "a"), ModuleError::Release { .. }));
        assert!(why("6.11", "d").to_string().contains("xz"));
    }
}
