//! The user of the host that QEMU runs as.

use std::fmt;
use std::path::Path;

use rustix::process::{Gid, Uid};

use crate::socket_access::{Access, Ownership, User};

/// The host's users (passwd(5)).
const PASSWD: &str = "/etc/passwd";

/// A user of the host, and its own group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostUser {
    uid: u32,
    gid: u32,
}

/// A name that is no user's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} (vm.user) is no user of this host ({PASSWD}), or root: make one (`nacre install --vm-user NAME`, or `useradd \
     --system --no-create-home --shell /usr/sbin/nologin NAME`), or give its numbers as UID:GID"
)]
pub struct UnknownUser {
    name: String,
}

impl HostUser {
    /// Finds a user of this host by its name in `/etc/passwd`, or takes numbers: `UID:GID`.
    ///
    /// # Errors
    /// If there is no such user. Root is one, but not for this: it is refused like an unknown name.
    pub fn find(name: &str) -> Result<HostUser, UnknownUser> {
        let passwd = std::fs::read_to_string(PASSWD).unwrap_or_default();
        HostUser::find_in(&passwd, name).ok_or_else(|| UnknownUser { name: name.to_owned() })
    }

    fn find_in(passwd: &str, name: &str) -> Option<HostUser> {
        let (uid, gid) = match name.split_once(':') {
            Some(numbers) => numbers,
            None => passwd.lines().find_map(|line| {
                let fields: Vec<_> = line.split(':').collect();
                (fields.len() == 7 && fields[0] == name).then(|| (fields[2], fields[3]))
            })?,
        };
        // The last number stands for "no change" in system calls.
        let number = |text: &str| text.parse().ok().filter(|&number| number != u32::MAX);
        let user = HostUser { uid: number(uid)?, gid: number(gid)? };
        (user.uid != 0 && user.gid != 0).then_some(user)
    }

    pub(crate) fn of_this_process() -> HostUser {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        HostUser { uid: uid.as_raw(), gid: gid.as_raw() }
    }

    pub(crate) fn ids(self) -> (Uid, Gid) {
        (Uid::from_raw(self.uid), Gid::from_raw(self.gid))
    }

    /// The group that the user must be in to write to a device; none if it need not be, or if that does not help.
    pub(crate) fn group_of(self, device: &Path) -> Option<Gid> {
        let ownership = Ownership::of(&std::fs::metadata(device).ok()?);
        match ownership.access(self.into()) {
            Access::WithGroup(gid) => Some(Gid::from_raw(gid)),
            Access::Open => None,
            Access::Closed => {
                tracing::warn!(
                    "QEMU's user {} may not open {}: let the device's group read and write it (udev)",
                    self.uid,
                    device.display()
                );
                None
            }
        }
    }
}

impl fmt::Display for HostUser {
    /// As [`HostUser::find`] takes it: `UID:GID`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.uid, self.gid)
    }
}

impl From<HostUser> for User {
    fn from(HostUser { uid, gid }: HostUser) -> User {
        User { uid, gid }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_or_number_and_root_is_not_one() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nnacre-vm:x:998:997::/:/usr/sbin/nologin\nbroken:x:1\n";
        let find = |name| HostUser::find_in(passwd, name);
        assert_eq!(find("nacre-vm"), Some(HostUser { uid: 998, gid: 997 }));
        assert_eq!(find("12:34"), Some(HostUser { uid: 12, gid: 34 }));
        for none in [
            "",
            "root",
            "0:0",
            "0:1",
            "1:0",
            "broken",
            "absent",
            "1:",
            ":1",
            "1:2:3",
            "-1:1",
            "4294967295:1",
            "1:4294967295",
            "4294967296:1",
            "x",
        ] {
            assert_eq!(find(none), None, "{none}");
        }
        let error = HostUser::find("no-such-user-here").unwrap_err().to_string();
        assert!(error.contains("\"no-such-user-here\" (vm.user) is no user"), "{error}");
    }

    #[test]
    fn a_device_is_reached_by_its_group() {
        let user = HostUser { uid: 12_345, gid: 12_345 };
        // Everybody may write to it.
        assert_eq!(user.group_of(Path::new("/dev/null")), None);
        assert_eq!(user.group_of(Path::new("/absent")), None);
    }
}
