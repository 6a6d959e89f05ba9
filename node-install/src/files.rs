//! Files of a node: read with a bound, replaced as a whole.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::NodeError;

/// Largest text that is read here: configurations have some 10 KiB.
pub(crate) const MOST_TEXT: u64 = 1 << 20;

/// The file system that is changed: the node's own, or the image of one.
#[derive(Debug, Clone)]
pub struct Root(PathBuf);

impl Root {
    /// `/` for the node itself.
    pub fn new(directory: &Path) -> Root {
        Root(directory.to_owned())
    }

    /// Where a path of the node is.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }
}

/// A text file; `None` if there is none.
pub(crate) fn read_text(path: &Path) -> Result<Option<String>, NodeError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(NodeError::file("read", path))?,
    };
    let mut bytes = Vec::new();
    file.take(MOST_TEXT + 1).read_to_end(&mut bytes).map_err(NodeError::file("read", path))?;
    if bytes.len() as u64 > MOST_TEXT {
        return Err(NodeError::TooLarge { path: path.to_owned(), most: MOST_TEXT });
    }
    let text = String::from_utf8(bytes).map_err(|_| NodeError::config(path, "is not UTF-8"))?;
    Ok(Some(text))
}

/// Replaces a file as a whole; the mode is kept, or `mode` for a new one. Whoever opens it sees the old or the new.
pub(crate) fn replace(path: &Path, text: &str, mode: u32) -> Result<(), NodeError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory).map_err(NodeError::file("make", directory))?;
    // What a link points to is meant.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mode = fs::metadata(&target).map_or(mode, |known| known.permissions().mode() & 0o7777);
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(".nacre-new");
    let new = target.with_file_name(name);
    let written = (|| {
        let mut file =
            File::options().write(true).create(true).truncate(true).mode(mode).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&new, &target)?;
        sync_directory(target.parent().unwrap_or(Path::new("/")))
    })();
    written.map_err(|source| {
        let _ = fs::remove_file(&new);
        NodeError::File { doing: "write", path: path.to_owned(), source }
    })
}

/// Makes a name lasting.
pub(crate) fn sync_directory(directory: &Path) -> std::io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Removes a file; whether there was one.
pub(crate) fn remove(path: &Path) -> Result<bool, NodeError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(NodeError::File { doing: "remove", path: path.to_owned(), source }),
    }
}

/// Points a symbolic link somewhere, at once for all who look; whether it pointed elsewhere before. What is
/// there and is no link is an error.
pub(crate) fn link(path: &Path, target: &str, dry: bool) -> Result<bool, NodeError> {
    match fs::read_link(path) {
        Ok(known) if known == Path::new(target) => return Ok(false),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => {
            return Err(NodeError::File { doing: "replace", path: path.to_owned(), source });
        }
    }
    if dry {
        return Ok(true);
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory).map_err(NodeError::file("make", directory))?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".nacre-new");
    let new = path.with_file_name(name);
    remove(&new)?;
    symlink(target, &new).map_err(NodeError::file("make", &new))?;
    fs::rename(&new, path).map_err(NodeError::file("replace", path))?;
    sync_directory(directory).map_err(NodeError::file("write", directory))?;
    Ok(true)
}

/// SHA-256 of a text, in hexadecimal digits.
pub(crate) fn hash(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}
