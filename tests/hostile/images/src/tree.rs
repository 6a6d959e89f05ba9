//! An unpacked, mounted image, to be looked at without being led out of it.

use std::io::Read as _;
use std::os::fd::OwnedFd;

use anyhow::{Context as _, bail, ensure};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, openat2, readlinkat, statat,
};
use rustix::io::Errno;

/// The root of an image.
pub struct Tree(OwnedFd);

impl Tree {
    /// The image mounted at `path`.
    ///
    /// # Errors
    /// There is no directory.
    pub fn open(path: &std::path::Path) -> anyhow::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// Descriptor of `name`; links are followed within the root.
    fn at(&self, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.0, name, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// Parent directory and last component.
    fn parent<'n>(&self, name: &'n [u8]) -> Result<(OwnedFd, &'n [u8]), Errno> {
        let (parent, last) = match name.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&name[..slash], &name[slash + 1..]),
            None => (&b"."[..], name),
        };
        Ok((self.at(parent, OFlags::DIRECTORY | OFlags::PATH)?, last))
    }

    /// What `name` itself is, links not followed.
    ///
    /// # Errors
    /// It is not there.
    pub fn stat(&self, name: impl AsRef<[u8]>) -> anyhow::Result<Stat> {
        let name = name.as_ref();
        let found = self
            .parent(name)
            .and_then(|(parent, last)| statat(&parent, last, AtFlags::SYMLINK_NOFOLLOW));
        found.with_context(|| format!("{:?} in the image", String::from_utf8_lossy(name)))
    }

    /// The bytes of the file `name`, links followed within the root.
    ///
    /// # Errors
    /// It is not there or no file.
    pub fn read(&self, name: impl AsRef<[u8]>) -> anyhow::Result<Vec<u8>> {
        let name = name.as_ref();
        let shown = String::from_utf8_lossy(name);
        let file = self
            .at(name, OFlags::RDONLY | OFlags::NONBLOCK)
            .with_context(|| format!("{shown:?} in the image"))?;
        let mut content = Vec::new();
        std::fs::File::from(file).read_to_end(&mut content)?;
        Ok(content)
    }

    /// `name` is a file with exactly that content.
    ///
    /// # Errors
    /// It is not.
    pub fn holds(&self, name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> anyhow::Result<()> {
        let (name, content) = (name.as_ref(), content.as_ref());
        let found = self.read(name)?;
        if found != content {
            let start =
                |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
            bail!(
                "{:?} holds {} bytes {:?}, not {} bytes {:?}",
                String::from_utf8_lossy(name),
                found.len(),
                start(&found),
                content.len(),
                start(content)
            );
        }
        Ok(())
    }

    /// There is no `name`.
    ///
    /// # Errors
    /// There is.
    pub fn lacks(&self, name: impl AsRef<[u8]>) -> anyhow::Result<()> {
        let name = name.as_ref();
        let found = self
            .parent(name)
            .and_then(|(parent, last)| statat(&parent, last, AtFlags::SYMLINK_NOFOLLOW));
        match found {
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
            other => bail!("{:?} is there: {other:?}", String::from_utf8_lossy(name)),
        }
    }

    /// The directory has exactly these names, sorted.
    ///
    /// # Errors
    /// It has others.
    pub fn names(&self, directory: &str, names: &[&str]) -> anyhow::Result<()> {
        let opened = self
            .at(directory.as_bytes(), OFlags::DIRECTORY | OFlags::RDONLY)
            .with_context(|| format!("{directory:?} in the image"))?;
        let mut found = Vec::new();
        for entry in Dir::read_from(&opened)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                found.push(name);
            }
        }
        found.sort_unstable();
        ensure!(found == names, "{directory:?} has {found:?}, not {names:?}");
        Ok(())
    }

    /// `name` is a symbolic link with that target.
    ///
    /// # Errors
    /// It is not.
    pub fn links_to(&self, name: &str, target: &str) -> anyhow::Result<()> {
        let (parent, last) = self.parent(name.as_bytes())?;
        let found = readlinkat(&parent, last, Vec::new()).with_context(|| format!("{name:?}"))?;
        ensure!(found.to_bytes() == target.as_bytes(), "{name:?} points to {found:?}");
        Ok(())
    }

    /// Type and permission bits of `name`.
    ///
    /// # Errors
    /// They are others.
    pub fn is(&self, name: impl AsRef<[u8]>, kind: FileType, mode: u32) -> anyhow::Result<()> {
        let name = name.as_ref();
        let stat = self.stat(name)?;
        let (found, bits) = (FileType::from_raw_mode(stat.st_mode), stat.st_mode & 0o7777);
        let shown = String::from_utf8_lossy(name);
        ensure!((found, bits) == (kind, mode), "{shown:?} is a {found:?} of mode {bits:o}");
        Ok(())
    }

    /// Owner and group of `name`.
    ///
    /// # Errors
    /// They are others.
    pub fn owned(&self, name: &str, uid: u32, gid: u32) -> anyhow::Result<()> {
        let stat = self.stat(name)?;
        let found = (stat.st_uid, stat.st_gid);
        ensure!(found == (uid, gid), "{name:?} belongs to {found:?}");
        Ok(())
    }

    /// Modification time of `name`, in seconds and nanoseconds since 1970.
    ///
    /// # Errors
    /// It is another.
    pub fn modified(&self, name: &str, seconds: i64, nanoseconds: i64) -> anyhow::Result<()> {
        let stat = self.stat(name)?;
        let found = (stat.st_mtime, i64::try_from(stat.st_mtime_nsec)?);
        ensure!(found == (seconds, nanoseconds), "{name:?} was modified at {found:?}");
        Ok(())
    }

    /// The value of an extended attribute of a file or directory; none if it has none.
    ///
    /// # Errors
    /// `name` is not there.
    pub fn attribute(&self, name: &str, attribute: &[u8]) -> anyhow::Result<Option<Vec<u8>>> {
        let file = self.at(name.as_bytes(), OFlags::RDONLY | OFlags::NONBLOCK)?;
        let mut value = vec![0; 64 << 10];
        match rustix::fs::fgetxattr(&file, attribute, &mut value) {
            Ok(len) => {
                value.truncate(len);
                Ok(Some(value))
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

/// Whether two names are one file.
///
/// # Errors
/// They are not.
pub fn same_file(tree: &Tree, one: &str, other: &str) -> anyhow::Result<()> {
    let (a, b) = (tree.stat(one)?, tree.stat(other)?);
    ensure!((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino), "{one:?} and {other:?} are two files");
    Ok(())
}
