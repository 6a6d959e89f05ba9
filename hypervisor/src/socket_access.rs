//! Whether a confined QEMU may connect to a socket that another service of the host has made.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::Gid;

use crate::HostUser;

/// Whose a file is, and what they may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ownership {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits, without the file's type.
    pub mode: u32,
}

/// A process without capabilities, with no groups but its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// What such a process needs to connect to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Nothing more.
    Open,
    /// To be in this group.
    WithGroup(u32),
    /// Nothing helps.
    Closed,
}

impl Ownership {
    pub(crate) fn of(metadata: &std::fs::Metadata) -> Ownership {
        const PERMISSIONS: u32 = 0o7777;
        Ownership { uid: metadata.uid(), gid: metadata.gid(), mode: metadata.mode() & PERMISSIONS }
    }

    /// Connecting takes permission to write to the socket (unix(7)), by the first class that fits: owner,
    /// group, others (`path_resolution(7)`).
    pub(crate) fn access(self, user: User) -> Access {
        const OWNER: u32 = 0o200;
        const GROUP: u32 = 0o020;
        const OTHERS: u32 = 0o002;
        let allowed = |bit| if self.mode & bit != 0 { Access::Open } else { Access::Closed };
        if self.uid == user.uid {
            allowed(OWNER)
        } else if self.gid == user.gid {
            allowed(GROUP)
        } else if self.mode & (OTHERS | GROUP) == GROUP {
            Access::WithGroup(self.gid)
        } else {
            allowed(OTHERS)
        }
    }
}

/// The group that a confined child has to be in to connect to `socket`: none, if it may as it is, or if
/// nothing helps, which is logged.
pub(crate) fn group_for(socket: &Path, user: HostUser) -> Option<Gid> {
    let shown = socket.display();
    let ownership = match std::fs::metadata(socket) {
        Ok(metadata) => Ownership::of(&metadata),
        Err(error) => {
            tracing::warn!(
                %error,
                "there is no quote generation service at {shown}: if only its group may connect later, this \
                 guest gets no quotes; start the service before pods"
            );
            return None;
        }
    };
    match ownership.access(user.into()) {
        Access::Open => None,
        Access::WithGroup(gid) => Some(Gid::from_raw(gid)),
        Access::Closed => {
            let Ownership { uid, gid, mode } = ownership;
            tracing::warn!(
                uid,
                gid,
                mode = format!("{mode:04o}"),
                "QEMU may not connect to {shown}: guests get no quotes; let the socket's group write to it"
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::Command;

    use super::*;
    use crate::sys;

    const ROOT: User = User { uid: 0, gid: 0 };

    #[test]
    fn the_first_class_that_fits_decides() {
        for (uid, gid, mode, expected) in [
            // As Intel's service makes it.
            (998, 997, 0o660, Access::WithGroup(997)),
            (998, 997, 0o755, Access::Closed),
            (998, 997, 0o600, Access::Closed),
            (998, 997, 0o777, Access::Open),
            // In the group it would lose what others have.
            (998, 997, 0o602, Access::Open),
            (0, 997, 0o600, Access::Open),
            (0, 997, 0o577, Access::Closed),
            (998, 0, 0o660, Access::Open),
            (998, 0, 0o606, Access::Closed),
        ] {
            assert_eq!(Ownership { uid, gid, mode }.access(ROOT), expected, "{uid} {gid} {mode:o}");
        }
    }

    #[test]
    fn without_a_socket_there_is_no_group() {
        assert_eq!(group_for(Path::new("/nowhere/qgs.socket"), HostUser::of_this_process()), None);
    }

    const SOCKET: &str = "NACRE_TEST_SOCKET";

    /// What the test below runs in a process of its own.
    #[test]
    #[ignore = "half of a_confined_child_connects_by_the_sockets_group"]
    fn connects_as_told() {
        if let Some(path) = std::env::var_os(SOCKET) {
            UnixStream::connect(path).unwrap();
        }
    }

    #[test]
    fn a_confined_child_connects_by_the_sockets_group() {
        const SERVICE: (u32, u32) = (64_998, 64_997);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qgs.socket");
        let _service = UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o660)).unwrap();
        // Our own needs no group.
        assert_eq!(group_for(&path, HostUser::of_this_process()), None);
        if let Err(error) = std::os::unix::fs::chown(&path, Some(SERVICE.0), Some(SERVICE.1)) {
            println!("SKIPPED: giving a socket to another user takes root: {error}");
            return;
        }
        let group = group_for(&path, HostUser::of_this_process());
        assert_eq!(group.map(Gid::as_raw), Some(SERVICE.1));
        let connecting = |group| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            let name = "socket_access::tests::connects_as_told";
            command.args(["--ignored", "--exact", name]).env(SOCKET, &path);
            let groups = Option::into_iter(group).collect();
            sys::confine(&mut command, sys::Confinement { groups, ..Default::default() });
            let output = command.output().unwrap();
            (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let (connected, said) = connecting(group);
        assert!(connected && said.contains("1 passed"), "{said}");
        // Confined without it, root is nobody to the service: what the group is for.
        let (connected, said) = connecting(None);
        assert!(!connected && said.contains("PermissionDenied"), "{said}");
    }
}
