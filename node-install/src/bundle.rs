//! What is installed: a directory with `bin` and `share`, known by its contents.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nacre_image_manifest::GuestImage;
use sha2::{Digest as _, Sha256};

use crate::NodeError;
use crate::files::{Root, sync_directory};

/// Directory of all versions, on the node.
pub(crate) const PREFIX: &str = "/opt/nacre";
/// Programs without which it is no bundle.
const PROGRAMS: [&str; 4] =
    ["nacre", "containerd-shim-nacre-v2", "nacre-snapshotter", "nacre-cache"];
/// QEMU, where the bundle brings one.
const QEMU: &str = "bin/qemu-system-x86_64";
/// Most files, and most bytes of all of them.
const MOST_FILES: usize = 4096;
const MOST_BYTES: u64 = 4 << 30;
const MOST_DEPTH: usize = 16;

/// A directory whose contents have been looked through.
#[derive(Debug)]
pub struct Bundle {
    directory: PathBuf,
    name: String,
    /// Relative paths, sorted, and whether each is a program.
    files: Vec<(PathBuf, bool)>,
}

impl Bundle {
    /// Looks through a directory. `version` is the release that it is known by, beside its hash.
    pub fn open(directory: &Path, version: &str) -> Result<Bundle, NodeError> {
        let wrong =
            |problem: String| NodeError::Bundle { directory: directory.to_owned(), problem };
        let mut files = Vec::new();
        let mut bytes = 0;
        for part in ["bin", "share"] {
            list(directory, Path::new(part), 0, &mut files, &mut bytes)?;
        }
        files.sort();
        for program in PROGRAMS {
            let path = Path::new("bin").join(program);
            if !files.iter().any(|(file, executable)| *file == path && *executable) {
                return Err(wrong(format!(
                    "there is no program {}; `cargo xtask bundle` makes a complete directory",
                    path.display()
                )));
            }
        }
        let image = GuestImage::open(&directory.join("share/nacre"))
            .map_err(|error| wrong(format!("the guest image in share/nacre: {error}")))?;
        image
            .verify()
            .map_err(|error| wrong(format!("the guest image in share/nacre: {error}")))?;
        let name = format!("{version}-{}", &tree_hash(directory, &files)?[..12]);
        Ok(Bundle { directory: directory.to_owned(), name, files })
    }

    /// One of these files only.
    #[cfg(test)]
    pub(crate) fn of_files(
        directory: &Path,
        version: &str,
        files: &[&str],
    ) -> Result<Bundle, NodeError> {
        let files: Vec<_> = files.iter().map(|file| (PathBuf::from(file), true)).collect();
        let name = format!("{version}-{}", &tree_hash(directory, &files)?[..12]);
        Ok(Bundle { directory: directory.to_owned(), name, files })
    }

    /// Release and hash, such as `0.1.0-7ea4b61c92f0`: the same for the same contents only.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it was found.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether it brings firmware for SEV-SNP and TDX.
    pub(crate) fn has_firmware(&self) -> bool {
        self.files.iter().any(|(file, _)| file.starts_with("share/ovmf"))
    }

    /// Whether it brings QEMU.
    pub(crate) fn has_qemu(&self) -> bool {
        self.files.iter().any(|(file, _)| file == Path::new(QEMU))
    }

    /// Copies it beneath [`PREFIX`], under its name; whether it was not there yet. It appears as a whole.
    pub(crate) fn place(&self, root: &Root, dry: bool) -> Result<bool, NodeError> {
        let destination = root.at(PREFIX)?.join(&self.name);
        let complete = destination.is_dir() && {
            let mut files = Vec::new();
            let mut bytes = 0;
            for part in ["bin", "share"] {
                list(&destination, Path::new(part), 0, &mut files, &mut bytes)?;
            }
            files.sort();
            self.name.ends_with(&tree_hash(&destination, &files)?[..12])
        };
        if complete || dry {
            return Ok(!complete);
        }
        if destination.exists() {
            let problem = format!(
                "{} is there with other contents; remove it when no pod uses it",
                destination.display()
            );
            return Err(NodeError::Bundle { directory: self.directory.clone(), problem });
        }
        let incoming = root.at(PREFIX)?.join(".incoming");
        match fs::remove_dir_all(&incoming) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(NodeError::file("remove", &incoming)(error));
            }
            _ => {}
        }
        for (file, executable) in &self.files {
            copy(&self.directory.join(file), &incoming.join(file), *executable)?;
        }
        fs::rename(&incoming, &destination).map_err(NodeError::file("make", &destination))?;
        let prefix = root.at(PREFIX)?;
        sync_directory(&prefix).map_err(NodeError::file("write", &prefix))?;
        Ok(true)
    }
}

fn list(
    directory: &Path,
    part: &Path,
    depth: usize,
    files: &mut Vec<(PathBuf, bool)>,
    bytes: &mut u64,
) -> Result<(), NodeError> {
    let wrong = |problem: String| NodeError::Bundle { directory: directory.to_owned(), problem };
    let path = directory.join(part);
    if depth > MOST_DEPTH {
        return Err(wrong(format!("{} is too deep", part.display())));
    }
    for entry in fs::read_dir(&path).map_err(NodeError::file("list", &path))? {
        let entry = entry.map_err(NodeError::file("list", &path))?;
        let part = part.join(entry.file_name());
        // Not of what a link points to.
        let about = entry.metadata().map_err(NodeError::file("look at", &entry.path()))?;
        if about.is_dir() {
            list(directory, &part, depth + 1, files, bytes)?;
        } else if about.is_file() {
            *bytes += about.len();
            files.push((part, about.permissions().mode() & 0o111 != 0));
        } else {
            return Err(wrong(format!("{} is neither file nor directory", part.display())));
        }
        if files.len() > MOST_FILES || *bytes > MOST_BYTES {
            return Err(wrong(format!(
                "it has more than {MOST_FILES} files or {MOST_BYTES} bytes; is it a bundle at all?"
            )));
        }
    }
    Ok(())
}

/// Hash of names, modes and contents.
fn tree_hash(directory: &Path, files: &[(PathBuf, bool)]) -> Result<String, NodeError> {
    let mut tree = Sha256::new();
    for (file, executable) in files {
        let path = directory.join(file);
        let mut content = File::open(&path).map_err(NodeError::file("read", &path))?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match content.read(&mut buffer).map_err(NodeError::file("read", &path))? {
                0 => break,
                read => hash.update(&buffer[..read]),
            }
        }
        let name = file.as_os_str().as_encoded_bytes();
        tree.update((name.len() as u64).to_le_bytes());
        tree.update(name);
        tree.update([u8::from(*executable)]);
        tree.update(hash.finalize());
    }
    Ok(hex::encode(tree.finalize()))
}

fn copy(from: &Path, to: &Path, executable: bool) -> Result<(), NodeError> {
    let directory = to.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory).map_err(NodeError::file("make", directory))?;
    let mode = if executable { 0o755 } else { 0o644 };
    let copied = (|| {
        let mut source = File::open(from)?;
        let mut file = File::options().write(true).create_new(true).mode(mode).open(to)?;
        std::io::copy(&mut source, &mut file)?;
        file.flush()?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()
    })();
    copied.map_err(NodeError::file("copy", to))
}
