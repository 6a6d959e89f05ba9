//! Whether another user of the host may open what QEMU opens by its name. The kernel is asked, by a thread that
//! is that user: permissions, access control lists and security modules all count.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;
use rustix::process::Gid;
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::HostUser;

/// Something that QEMU opens by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Where it is.
    pub path: PathBuf,
    /// What QEMU does with it.
    pub how: How,
}

/// What is done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// A program is run.
    Run,
    /// A file is read.
    Read,
    /// A device is read and written.
    Use,
    /// A socket is connected to, which takes permission to write to it (unix(7)).
    Connect,
}

/// Why QEMU cannot run as the user that the configuration names (`vm.user`).
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// Something is closed to the user.
    #[error("QEMU's user {user} (vm.user) may not {how} {}: {advice}", .path.display())]
    Closed {
        /// User and group, as numbers.
        user: HostUser,
        /// What it may not do.
        how: How,
        /// With what.
        path: PathBuf,
        /// What opens it.
        advice: String,
    },
    /// This process is not root.
    #[error("only root may start programs as another user ({user}, vm.user): run as root")]
    NotRoot {
        /// User and group, as numbers.
        user: HostUser,
    },
    /// The host refused something else.
    #[error("failed to find out what QEMU's user {user} (vm.user) may open: {source}")]
    Host {
        /// User and group, as numbers.
        user: HostUser,
        /// What it answered.
        source: io::Error,
    },
}

impl fmt::Display for How {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            How::Run => "run",
            How::Read => "read",
            How::Use => "read and write",
            How::Connect => "connect to",
        })
    }
}

impl How {
    fn access(self) -> Access {
        match self {
            How::Run => Access::READ_OK | Access::EXEC_OK,
            How::Read => Access::READ_OK,
            How::Use => Access::READ_OK | Access::WRITE_OK,
            How::Connect => Access::WRITE_OK,
        }
    }
}

impl HostUser {
    /// Asks the kernel whether this user, in `groups` beside its own, may open all of this.
    pub(crate) fn may_open(self, groups: Vec<Gid>, opened: &[Opened]) -> Result<(), UserError> {
        let user = self;
        let host = |source| UserError::Host { user, source };
        // Where links lead is found out as root: what is closed is then named by its own path.
        let canonical = |opened: &Opened| {
            let path = opened.path.canonicalize()?;
            Ok(Opened { path, how: opened.how })
        };
        let opened = opened.iter().map(canonical).collect::<io::Result<Vec<_>>>().map_err(host)?;
        // Credentials are a thread's own (credentials(7)): this one is the user until its end.
        let asking = std::thread::Builder::new()
            .name("nacre-user".to_owned())
            .spawn(move || user.ask(&groups, &opened))
            .map_err(host)?;
        asking.join().unwrap_or_else(|_| Err(host(io::Error::other("the thread that asks ended"))))
    }

    /// To be called by a thread that ends afterwards.
    fn ask(self, groups: &[Gid], opened: &[Opened]) -> Result<(), UserError> {
        let (uid, gid) = self.ids();
        let changed = set_thread_groups(groups)
            .and_then(|()| set_thread_res_gid(gid, gid, gid))
            .and_then(|()| set_thread_res_uid(uid, uid, uid));
        match changed {
            Ok(()) => {}
            Err(Errno::PERM) => return Err(UserError::NotRoot { user: self }),
            Err(error) => return Err(UserError::Host { user: self, source: error.into() }),
        }
        opened.iter().try_for_each(|Opened { path, how }| match may(path, how.access()) {
            Ok(()) => Ok(()),
            Err(Errno::ACCESS | Errno::PERM) => {
                let advice = advice(path, *how);
                Err(UserError::Closed { user: self, how: *how, path: path.clone(), advice })
            }
            Err(error) => Err(UserError::Host { user: self, source: error.into() }),
        })
    }
}

/// access(2), which judges by the real user.
fn may(path: &Path, access: Access) -> rustix::io::Result<()> {
    accessat(CWD, path, access, AtFlags::empty())
}

/// What opens `path` to the user that this thread is.
fn advice(path: &Path, how: How) -> String {
    let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
    above.reverse();
    let closed = above.into_iter().find(|directory| may(directory, Access::EXEC_OK).is_err());
    match (closed, how) {
        (Some(directory), _) => format!("`chmod o+x {}`, or move it", directory.display()),
        (None, How::Run) => format!("`chmod o+rx {}`", path.display()),
        (None, How::Read) => format!("`chmod o+r {}`", path.display()),
        (None, How::Use | How::Connect) => {
            let path = path.display();
            format!(
                "let its group read and write it (`chgrp GROUP {path}; chmod g+rw {path}`, for devices by a \
                 rule of udev); QEMU is put into that group"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown};

    use super::*;

    const NOBODY: &str = "64123:64124";

    #[test]
    fn the_kernel_says_what_is_closed_and_the_error_what_opens_it() {
        let dir = tempfile::tempdir().unwrap();
        let user = HostUser::find(NOBODY).unwrap();
        let path = dir.path().canonicalize().unwrap().join("initrd.img");
        fs::write(&path, b"x").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let ask = |how, groups: &[u32]| {
            let groups = groups.iter().copied().map(Gid::from_raw).collect();
            user.may_open(groups, &[Opened { path: path.clone(), how }])
        };
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: being another user takes root");
            let refused = ask(How::Read, &[]).unwrap_err();
            assert!(matches!(refused, UserError::NotRoot { .. }), "{refused}");
            return;
        }
        fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
        let closed = ask(How::Read, &[]).unwrap_err().to_string();
        let expected = format!(
            "QEMU's user {NOBODY} (vm.user) may not read {}: `chmod o+x {}`, or move it",
            path.display(),
            path.parent().unwrap().display()
        );
        assert_eq!(closed, expected);
        fs::set_permissions(dir.path(), Permissions::from_mode(0o711)).unwrap();
        let closed = ask(How::Read, &[]).unwrap_err().to_string();
        assert!(closed.ends_with(&format!("`chmod o+r {}`", path.display())), "{closed}");
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        ask(How::Read, &[]).unwrap();
        assert!(ask(How::Run, &[]).unwrap_err().to_string().contains("chmod o+rx"));
        assert!(ask(How::Use, &[]).unwrap_err().to_string().contains("let its group read"));
        // A device as it ought to be: by its group alone.
        fs::set_permissions(&path, Permissions::from_mode(0o660)).unwrap();
        chown(&path, Some(0), Some(64_125)).unwrap();
        assert!(ask(How::Use, &[]).is_err());
        ask(How::Use, &[64_125]).unwrap();
        assert_eq!(user.group_of(&path).map(Gid::as_raw), Some(64_125));
        // The caller is who it was.
        assert!(rustix::process::geteuid().is_root());
        fs::read(&path).unwrap();
    }

    #[test]
    fn what_is_absent_is_no_matter_of_permissions() {
        let user = HostUser::find(NOBODY).unwrap();
        let absent = Opened { path: "/absent/kernel".into(), how: How::Read };
        let error = user.may_open(vec![], &[absent]).unwrap_err();
        assert!(matches!(error, UserError::Host { .. }), "{error}");
    }
}
