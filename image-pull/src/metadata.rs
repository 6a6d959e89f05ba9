//! Owner, mode, attributes and times of what was just unpacked.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{
    AtFlags, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chownat, fchmod, fchown,
    fsetxattr, fstat, lsetxattr, utimensat,
};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};

use crate::archive::{Entry, Kind, printable};
use crate::budget::Share;
use crate::extract::{ExtractError, MAX_COMPONENT, refused, write_error};

/// Gives entries what their headers say.
pub(crate) struct Metadata<'a> {
    budget: &'a Share,
    /// New files may begin with another owner or group than 0.
    inherits: bool,
}

impl<'a> Metadata<'a> {
    /// For what is made beneath `root`.
    pub(crate) fn beneath(root: &OwnedFd, budget: &'a Share) -> Self {
        Self { budget, inherits: inherits(root) }
    }

    /// Owner, attributes, mode, in the order that lets each survive the next: a change of owner clears
    /// set-user-ID and file capabilities.
    pub(crate) fn set(&mut self, fd: &OwnedFd, entry: &Entry) -> Result<(), ExtractError> {
        let write_error = |e| write_error(&entry.path, e);
        if self.must_change_owner(entry) {
            fchown(fd, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
                .map_err(write_error)?;
        }
        for (name, value) in &entry.xattrs {
            check_xattr(name, entry)?;
            let bytes = name.len() + value.len();
            self.budget.take_attribute(bytes).map_err(ExtractError::Budget)?;
            let set = fsetxattr(fd, &**name, value, XattrFlags::empty());
            kept_or_unsupported(set, name, entry)?;
        }
        let mode = Mode::from_raw_mode(entry.mode);
        // What is made in such a directory has its group.
        self.inherits |= entry.kind == Kind::Directory && mode.contains(Mode::SGID);
        fchmod(fd, mode).map_err(write_error)
    }

    /// The same for what cannot be opened: a symbolic link or a pipe.
    pub(crate) fn set_link(
        &mut self,
        at: &OwnedFd,
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), ExtractError> {
        let write_error = |e| write_error(&entry.path, e);
        if self.must_change_owner(entry) {
            let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
            chownat(at, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(write_error)?;
        }
        for (xattr, value) in &entry.xattrs {
            check_xattr(xattr, entry)?;
            let bytes = xattr.len() + value.len();
            self.budget.take_attribute(bytes).map_err(ExtractError::Budget)?;
            // No *at call sets attributes before Linux 6.13. The directory is named by its descriptor and
            // the last component is not followed, so this goes nowhere else.
            let path = [proc_path(at).as_bytes(), b"/", name].concat();
            let set = lsetxattr(&*path, &**xattr, value, XattrFlags::empty());
            kept_or_unsupported(set, xattr, entry)?;
        }
        utimensat(at, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW).map_err(write_error)
    }

    /// What was just made belongs to root. A directory may have been there before, as another's.
    fn must_change_owner(&self, entry: &Entry) -> bool {
        self.inherits || (entry.uid, entry.gid) != (0, 0) || entry.kind == Kind::Directory
    }
}

/// Whether a file that is made beneath `root` may have another owner or group than 0, because of who this
/// process is or because of the directory's own group.
fn inherits(root: &OwnedFd) -> bool {
    let plain = fstat(root).is_ok_and(|stat| {
        (stat.st_uid, stat.st_gid) == (0, 0)
            && !Mode::from_raw_mode(stat.st_mode).contains(Mode::SGID)
    });
    !plain || !geteuid().is_root() || !getegid().is_root()
}

/// overlayfs obeys attributes of its own name space: a layer that could set them could redirect a
/// directory or take a file's content from elsewhere.
fn check_xattr(name: &[u8], entry: &Entry) -> Result<(), ExtractError> {
    let forbidden = name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
    if forbidden || name.is_empty() || name.len() > MAX_COMPONENT {
        return refused(format!(
            "{} carries the extended attribute {}, which images may not bring",
            printable(&entry.path),
            printable(name)
        ));
    }
    Ok(())
}

/// Attributes of security modules or ACLs that this kernel does not have are dropped, as containerd
/// does. File capabilities are not: a program would run without them.
fn kept_or_unsupported(
    set: Result<(), Errno>,
    name: &[u8],
    entry: &Entry,
) -> Result<(), ExtractError> {
    match set {
        Err(Errno::OPNOTSUPP | Errno::PERM) if name != b"security.capability" => {
            tracing::debug!(
                entry = %printable(&entry.path), attribute = %printable(name),
                "extended attribute is not supported here, dropped"
            );
            Ok(())
        }
        Err(e) => {
            let what =
                format!("{}: extended attribute {}", printable(&entry.path), printable(name));
            Err(ExtractError::Write(what, e))
        }
        Ok(()) => Ok(()),
    }
}

/// The archive has no access times.
pub(crate) fn times(entry: &Entry) -> Timestamps {
    let (tv_sec, nanos) = entry.mtime;
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec, tv_nsec: nanos.into() },
    }
}

/// A name by which the kernel finds the descriptor.
pub(crate) fn proc_path(fd: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}
