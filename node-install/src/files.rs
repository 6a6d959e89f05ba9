//! Files of a node: read with a bound, replaced as a whole.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{
    MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown, symlink,
};
use std::path::{Component, Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::NodeError;

/// Largest text that is read here: configurations have some 10 KiB.
pub(crate) const MOST_TEXT: u64 = 1 << 20;

/// The file system that is changed: the node's own, or the image of one.
#[derive(Debug, Clone)]
pub struct Root(PathBuf);

/// Most symbolic links on the way to a file, as the kernel has it (`path_resolution(7)`).
const MOST_LINKS: u32 = 40;

impl Root {
    /// `/` for the node itself.
    pub fn new(directory: &Path) -> Root {
        Root(directory.to_owned())
    }

    /// Whether it is the file system that this program runs in.
    pub(crate) fn is_own(&self) -> bool {
        self.0 == Path::new("/")
    }

    /// Where a file of the node is. Symbolic links are followed as the node would: an absolute one in an image leads
    /// to another file of the image, never to one of who makes it.
    pub(crate) fn at(&self, path: impl AsRef<Path>) -> Result<PathBuf, NodeError> {
        self.resolve(path.as_ref(), true)
    }

    /// Where a name of the node is, which may be that of a link.
    pub(crate) fn name(&self, path: impl AsRef<Path>) -> Result<PathBuf, NodeError> {
        self.resolve(path.as_ref(), false)
    }

    fn resolve(&self, path: &Path, follow_last: bool) -> Result<PathBuf, NodeError> {
        let mut rest = vec![path.to_owned()];
        let mut found: Vec<OsString> = Vec::new();
        let mut links = 0;
        while let Some(part) = rest.pop() {
            let mut components = part.components();
            let Some(first) = components.next() else { continue };
            rest.push(components.as_path().to_owned());
            let name = match first {
                Component::RootDir | Component::Prefix(_) => {
                    found.clear();
                    continue;
                }
                Component::CurDir => continue,
                Component::ParentDir => {
                    found.pop();
                    continue;
                }
                Component::Normal(name) => name.to_owned(),
            };
            let is_last = rest.iter().all(|part| part.as_os_str().is_empty());
            found.push(name);
            if is_last && !follow_last {
                continue;
            }
            let Ok(target) = fs::read_link(self.beneath(&found)) else { continue };
            links += 1;
            if links > MOST_LINKS {
                let source = std::io::Error::from(rustix::io::Errno::LOOP);
                return Err(NodeError::File { doing: "find", path: path.to_owned(), source });
            }
            found.pop();
            rest.push(target);
        }
        Ok(self.beneath(&found))
    }

    fn beneath(&self, names: &[OsString]) -> PathBuf {
        names.iter().fold(self.0.clone(), |path, name| path.join(name))
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

/// Replaces a file (found by [`Root::at`]) as a whole; owner and mode are kept, or `mode` for a new one. Whoever
/// opens it sees the old or the new.
pub(crate) fn replace(path: &Path, text: &str, mode: u32) -> Result<(), NodeError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory).map_err(NodeError::file("make", directory))?;
    let known = fs::metadata(path).ok();
    let mode = known.as_ref().map_or(mode, |known| known.permissions().mode() & 0o7777);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".nacre-new");
    let new = path.with_file_name(name);
    let written = (|| {
        let mut file =
            File::options().write(true).create(true).truncate(true).mode(mode).open(&new)?;
        file.write_all(text.as_bytes())?;
        if let Some(known) = &known {
            fchown(&file, Some(known.uid()), Some(known.gid()))?;
        }
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        sync_directory(directory)
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

/// Points a symbolic link (found by [`Root::name`]) somewhere, at once for all who look.
pub(crate) fn link(path: &Path, target: &str) -> Result<(), NodeError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory).map_err(NodeError::file("make", directory))?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".nacre-new");
    let new = path.with_file_name(name);
    remove(&new)?;
    symlink(target, &new).map_err(NodeError::file("make", &new))?;
    fs::rename(&new, path).map_err(NodeError::file("replace", path))?;
    sync_directory(directory).map_err(NodeError::file("write", directory))
}

/// SHA-256 of a text, in hexadecimal digits.
pub(crate) fn hash(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_an_image_stay_in_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = Root::new(directory.path());
        let inside = |path: &str| directory.path().join(path);
        fs::create_dir_all(inside("etc")).expect("made");
        fs::create_dir_all(inside("usr/share/c")).expect("made");
        for (at, target) in [
            ("etc/absolute", "/usr/share/c/config.toml"),
            ("etc/relative", "../usr/share/c/config.toml"),
            ("etc/out", "../../../../../etc/passwd"),
            ("etc/directory", "/usr/share/c"),
            ("etc/chain", "absolute"),
            ("etc/loop", "/etc/loop"),
        ] {
            symlink(target, inside(at)).expect("linked");
        }
        let file = inside("usr/share/c/config.toml");
        for name in ["/etc/absolute", "/etc/relative", "/etc/directory/config.toml", "/etc/chain"] {
            assert_eq!(root.at(name).expect(name), file);
        }
        assert_eq!(root.at("/etc/out").expect("found"), inside("etc/passwd"));
        assert_eq!(root.name("/etc/absolute").expect("found"), inside("etc/absolute"));
        assert_eq!(root.name("/etc/directory/x").expect("found"), inside("usr/share/c/x"));
        root.at("/etc/loop").expect_err("it never ends");
        assert_eq!(root.at("/").expect("found"), directory.path());
        assert_eq!(Root::new(Path::new("/")).at("/absent/x").expect("it"), Path::new("/absent/x"));
    }

    #[test]
    fn what_is_replaced_stays_its_owners() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("config.toml");
        replace(&path, "new", 0o640).expect("written");
        let about = |path: &Path| {
            let about = fs::metadata(path).expect("a file");
            (about.uid(), about.gid(), about.permissions().mode() & 0o7777)
        };
        assert_eq!(about(&path).2, 0o640);
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(7), Some(4)).expect("given away");
        } else {
            println!("SKIPPED: only root gives files away");
        }
        let before = about(&path);
        replace(&path, "newer", 0o600).expect("written");
        assert_eq!(about(&path), before);
        assert_eq!(fs::read_to_string(&path).expect("a file"), "newer");
    }
}
