//! The guest image: kernel and initrd that every Nacre VM boots, the same bytes from the same inputs.
//!
//! The kernel is Debian's, pinned by version and hash ([`pins`]), fetched and unpacked without being
//! installed ([`debian`]), and taken out of its bzImage so that the VM starts it directly ([`kernel`]).
//! The initrd holds the agent, the pause program, the few modules a VM needs ([`modules`]) and the
//! certificate authorities of a pinned package ([`certificates`]); [`cpio`] writes it without clocks,
//! owners or directory order. A JSON manifest lists every file.
//!
//! An owner makes an image of one's own from one that is there ([`extend`]), with further authorities
//! ([`authorities`]) and modules ([`drivers`]).
//!
//! It runs on a build machine and trusts it, but neither mirrors nor caches: a package whose hash is
//! not the pinned one is refused, and so is a base that is not what its manifest says. It never reads
//! the host's kernel, modules or certificates.

pub mod authorities;
pub mod certificates;
mod command_line;
pub mod debian;
pub mod drivers;
mod elf;
mod extend;
pub mod firmware;
mod image;
pub mod kernel;
pub mod modules;
pub mod pins;
mod sources;

pub use nacre_image_manifest::cpio;

pub use extend::{Additions, ExtendError, extend};
pub use image::{ImageError, Inputs, MAX_COMPRESSED_INITRD, build};
pub use pins::{Package, Pins};

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Where a long step says what it is doing, one line a call.
pub type Progress<'a> = &'a dyn Fn(&str);

/// A file of the build machine that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action} {path}: {source}")]
pub struct FileError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl FileError {
    fn new(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { action, path, source }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    fs::read(path).map_err(FileError::new("read", path))
}

/// The paths in a directory, sorted.
fn list(directory: &Path) -> Result<Vec<PathBuf>, FileError> {
    let entries = fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>());
    let mut paths = entries.map_err(FileError::new("list", directory))?;
    paths.sort_unstable();
    Ok(paths)
}

/// Creates the directory and its parents.
fn make_directory(path: &Path) -> Result<(), FileError> {
    fs::create_dir_all(path).map_err(FileError::new("create the directory", path))
}

/// Removes a file; that there is none is no mistake.
fn remove_file(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(FileError::new("remove", path)(source))
        }
        _ => Ok(()),
    }
}

/// Puts `bytes` at `path` in one step: readers see the old file or the new one. A file that already
/// holds them is left alone.
fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    if fs::metadata(path).is_ok_and(|m| m.len() == bytes.len() as u64) && read(path)? == bytes {
        return Ok(());
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = PathBuf::from(name);
    let written = fs::File::create(&new)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&new, path));
    written.map_err(|source| {
        let _ = fs::remove_file(&new);
        FileError::new("write", path)(source)
    })
}
