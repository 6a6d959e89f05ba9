//! What containerd would make of a configuration that is in no file yet.
//!
//! It is given its texts in memory (`memfd_create(2)`): a configuration can hold registries' passwords, and no copy of
//! them may stay in a directory, whatever ends the installation.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use toml_edit::{Array, DocumentMut, Item};

use crate::NodeError;
use crate::dump::Dump;
use crate::files::Root;

/// The file that has Nacre's lines, where the configuration imports one.
pub(crate) struct DropIn<'a> {
    /// Where it is, on the node.
    pub(crate) path: &'a Path,
    /// What it would have; none if it were not there.
    pub(crate) text: Option<&'a str>,
}

/// Asks containerd what it makes of a text instead of its configuration `config` (on the node).
pub(crate) fn dump(
    program: &Path,
    root: &Root,
    config: &Path,
    document: &DocumentMut,
    drop_in: Option<&DropIn<'_>>,
) -> Result<Dump, NodeError> {
    let mut main = document.clone();
    // For as long as containerd reads them.
    let mut open = Vec::new();
    if main.contains_key("imports") {
        let mut imports = Array::new();
        for import in imported(root, config, document)? {
            match drop_in {
                Some(DropIn { path, text }) if import == *path => {
                    if let Some(text) = text {
                        let (file, path) = in_memory(text)?;
                        open.push(file);
                        imports.push(path.display().to_string());
                    }
                }
                _ => {
                    let pattern = import.file_name().unwrap_or_default();
                    let there = if is_pattern(&import) {
                        root.at(import.parent().unwrap_or(Path::new("/")))?.join(pattern)
                    } else {
                        root.at(&import)?
                    };
                    if !is_pattern(&import) && !there.is_file() {
                        let problem = format!(
                            "imports {}, which is not there: containerd would not start with that",
                            import.display()
                        );
                        return Err(NodeError::config(config, problem));
                    }
                    imports.push(there.display().to_string());
                }
            }
        }
        main["imports"] = toml_edit::value(imports);
    }
    let (_file, path) = in_memory(&main.to_string())?;
    Dump::of_copy(program, &path, config)
}

/// Whether an import leads to a file of this name, however it is written.
pub(crate) fn names(import: &str, config: &Path, file: &Path) -> bool {
    beside(config, import) == file
}

fn beside(config: &Path, import: &str) -> PathBuf {
    config.parent().unwrap_or(Path::new("/")).join(import)
}

/// What a configuration imports, in order, by absolute names. A pattern for all of the directory that Nacre's file
/// is in becomes the names that are there, so that another text can stand for that file.
fn imported(root: &Root, config: &Path, document: &DocumentMut) -> Result<Vec<PathBuf>, NodeError> {
    let wrong = || NodeError::config(config, "has imports that are no list of names");
    let imports = document.get("imports").and_then(Item::as_array).ok_or_else(wrong)?;
    let mut found = Vec::new();
    for import in imports {
        let path = beside(config, import.as_str().ok_or_else(wrong)?);
        let directory = path.parent().unwrap_or(Path::new("/"));
        if !path.ends_with("*.toml") || is_pattern(directory) {
            found.push(path);
            continue;
        }
        // As Go's filepath.Glob: in the order of names, and nothing where there is no directory.
        let entries = fs::read_dir(root.at(directory)?).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
        names.retain(|name| name.as_encoded_bytes().ends_with(b".toml"));
        names.sort();
        found.extend(names.into_iter().map(|name| directory.join(name)));
    }
    let mut known: Vec<PathBuf> = Vec::new();
    for path in found {
        // containerd reads each once.
        if !known.contains(&path) {
            known.push(path);
        }
    }
    Ok(known)
}

fn is_pattern(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().contains(&b'*')
}

/// A text as a file that has no name in any directory, and the name by which a child of this process opens it.
fn in_memory(text: &str) -> Result<(File, PathBuf), NodeError> {
    let path = Path::new("/proc/self/fd");
    let made = rustix::fs::memfd_create("nacre", rustix::fs::MemfdFlags::CLOEXEC);
    let mut file =
        made.map(File::from).map_err(|error| NodeError::file("make", path)(error.into()))?;
    file.write_all(text.as_bytes()).map_err(NodeError::file("write", path))?;
    let name = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    Ok((file, PathBuf::from(name)))
}
