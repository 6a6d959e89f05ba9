//! Which numbers a container runs with: the pod's settings, the image's user, and the image's
//! `/etc/passwd` and `/etc/group`, combined as the kubelet and containerd combine them.
//!
//! The kubelet tells the runtime a user (the pod's, else the part of the image's `User` before `:`) and a
//! group only if the pod has one. containerd then looks the user up in `/etc/passwd` for its primary
//! group, and in `/etc/group` for the groups that list it; the primary group is always among the
//! additional ones (since 1.6.18, CVE-2022-36109 and CVE-2023-25173).
//!
//! Where Nacre's snapshotter keeps the image's files off the host, containerd finds neither file. It then
//! takes a numeric user as it is, with group 0 unless one is given, and no further groups. Where the image names
//! its user, the guest answers, by the image's own files (`nacre_protocol::image_user`).

use crate::document::UserData;
use crate::workload::Security;

/// Largest number that containerd takes for a user or group; beyond, it is a name.
const LARGEST_ID: u32 = i32::MAX as u32;

/// The image's part in the matter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ImageAccounts<'a> {
    /// `User` of the image configuration.
    pub(crate) user: &'a str,
    pub(crate) passwd: &'a [u8],
    pub(crate) group: &'a [u8],
}

/// Why there are no numbers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AccountError {
    #[error(
        "the image's User {0:?} is not in its /etc/passwd (of an encrypted image nobody but the guest can \
         read it: set runAsUser, or make the image with a number)"
    )]
    User(String),
    #[error("the image's User names the group {0:?}, which is not in its /etc/group")]
    Group(String),
    #[error(
        "runAsNonRoot is set, but the image's User {0:?} is a name: the kubelet only trusts numbers; set \
         runAsUser to {1}"
    )]
    NamedNonRoot(String, u32),
    #[error("runAsNonRoot is set, but the container would run as root: set runAsUser")]
    Root,
}

/// Who a container runs as: more than one answer where kubelet and a bare CRI client differ, because
/// the kubelet does not pass on the group of an image's `User`.
pub(crate) fn users(
    image: ImageAccounts<'_>,
    security: &Security,
    added: &[u32],
    strict_groups: bool,
) -> Result<Vec<UserData>, AccountError> {
    let users = passwd(image.passwd);
    let groups = groups(image.group);
    let (user_part, group_part) = match image.user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (image.user, None),
    };
    let user_part = if user_part.is_empty() { "0" } else { user_part };
    let wanted = match security.run_as_user {
        Some(uid) => uid.to_string(),
        None => user_part.to_owned(),
    };
    let number = number(&wanted);
    let known = match number {
        Some(uid) => users.iter().find(|user| user.uid == uid),
        None => users.iter().find(|user| user.name == wanted),
    };
    let uid = match (number, known) {
        (Some(uid), _) => uid,
        (None, Some(user)) => user.uid,
        (None, None) => return Err(AccountError::User(wanted)),
    };
    if security.non_root {
        if uid == 0 {
            return Err(AccountError::Root);
        }
        if number.is_none() {
            return Err(AccountError::NamedNonRoot(wanted, uid));
        }
    }
    let mut gids = vec![security.run_as_group.unwrap_or_else(|| known.map_or(0, |user| user.gid))];
    if let (None, None, Some(group)) = (security.run_as_user, security.run_as_group, group_part) {
        let gid = match self::number(group) {
            Some(gid) => gid,
            None => groups
                .iter()
                .find(|known| known.name == group)
                .map(|known| known.gid)
                .ok_or_else(|| AccountError::Group(group.to_owned()))?,
        };
        gids.push(gid);
    }
    gids.dedup();
    let listed = groups.iter().filter(|group| {
        // containerd leaves out the group that is called like the user.
        !strict_groups
            && known
                .is_some_and(|user| user.name != group.name && group.members.contains(&user.name))
    });
    let listed: Vec<u32> = listed.map(|group| group.gid).collect();
    let mut answers: Vec<UserData> =
        gids.into_iter().map(|gid| with_groups(uid, gid, &listed, added)).collect();
    if number.is_some() {
        let unseen = with_groups(uid, security.run_as_group.unwrap_or(0), &[], added);
        if !answers.contains(&unseen) {
            answers.push(unseen);
        }
    }
    Ok(answers)
}

fn with_groups(uid: u32, gid: u32, listed: &[u32], added: &[u32]) -> UserData {
    let mut groups = [listed, &[gid], added].concat();
    groups.sort_unstable();
    groups.dedup();
    UserData { uid, gid, groups }
}

fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id <= LARGEST_ID)
}

struct User {
    name: String,
    uid: u32,
    gid: u32,
}

struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// Lines that make no sense are skipped, as every C library does.
fn passwd(file: &[u8]) -> Vec<User> {
    let text = String::from_utf8_lossy(file);
    let user = |line: &str| {
        let mut fields = line.split(':');
        let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        Some(User { name: name.into(), uid: number(uid)?, gid: number(gid)? })
    };
    text.lines().filter_map(|line| user(line.trim())).collect()
}

fn groups(file: &[u8]) -> Vec<Group> {
    let text = String::from_utf8_lossy(file);
    let group = |line: &str| {
        let mut fields = line.split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
        let members = fields.next().unwrap_or_default().split(',');
        Some(Group {
            name: name.into(),
            gid: number(gid)?,
            members: members.filter(|name| !name.is_empty()).map(Into::into).collect(),
        })
    };
    text.lines().filter_map(|line| group(line.trim())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] =
        b"root:x:0:0:root:/:/bin/sh\nbroken line\napp:x:100:101::/:/bin/sh\nbig:x:4294967295:1::/:\n";
    const GROUP: &[u8] =
        b"root:x:0:root\nwheel:x:10:root,app\napp:x:105:app\nlogs:x:102:other,app\nstaff:x:50:\n";

    fn found(user: &str, security: &Security, added: &[u32]) -> Result<Vec<UserData>, String> {
        let image = ImageAccounts { user, passwd: PASSWD, group: GROUP };
        users(image, security, added, false).map_err(|e| e.to_string())
    }

    fn user(uid: u32, gid: u32, groups: &[u32]) -> UserData {
        UserData { uid, gid, groups: groups.to_vec() }
    }

    #[test]
    fn numbers_are_those_of_containerd_under_the_kubelet() {
        let none = Security::default();
        let run_as = |user: Option<u32>, group: Option<u32>| Security {
            run_as_user: user,
            run_as_group: group,
            ..Security::default()
        };
        for (image, security, added, expected) in [
            ("", &none, &[][..], vec![user(0, 0, &[0, 10]), user(0, 0, &[0])]),
            ("root", &none, &[], vec![user(0, 0, &[0, 10])]),
            // The group called app is not added, the primary group is.
            ("app", &none, &[], vec![user(100, 101, &[10, 101, 102])]),
            (
                "100",
                &none,
                &[5, 10],
                vec![user(100, 101, &[5, 10, 101, 102]), user(100, 0, &[0, 5, 10])],
            ),
            ("4000", &none, &[], vec![user(4000, 0, &[0])]),
            (
                "app:staff",
                &none,
                &[],
                vec![user(100, 101, &[10, 101, 102]), user(100, 50, &[10, 50, 102])],
            ),
            ("4000:4001", &none, &[], vec![user(4000, 0, &[0]), user(4000, 4001, &[4001])]),
            ("app", &run_as(Some(0), None), &[], vec![user(0, 0, &[0, 10]), user(0, 0, &[0])]),
            (
                "app:staff",
                &run_as(Some(100), None),
                &[],
                vec![user(100, 101, &[10, 101, 102]), user(100, 0, &[0])],
            ),
            ("app", &run_as(None, Some(7)), &[], vec![user(100, 7, &[7, 10, 102])]),
            ("x", &run_as(Some(9), Some(8)), &[7], vec![user(9, 8, &[7, 8])]),
        ] {
            assert_eq!(found(image, security, added).unwrap(), expected, "{image} {security:?}");
        }
        let image = ImageAccounts { user: "app", passwd: PASSWD, group: GROUP };
        assert_eq!(users(image, &none, &[3], true).unwrap(), [user(100, 101, &[3, 101])]);
    }

    #[test]
    fn what_the_kubelet_would_refuse_is_refused() {
        let careful = Security { non_root: true, ..Security::default() };
        for (image, security, says) in [
            ("ghost", &Security::default(), "\"ghost\" is not in its /etc/passwd"),
            ("app:ghosts", &Security::default(), "\"ghosts\", which is not in its /etc/group"),
            ("big", &Security::default(), "not in its /etc/passwd"),
            ("", &careful, "would run as root"),
            ("app", &careful, "set runAsUser to 100"),
        ] {
            let error = found(image, security, &[]).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        assert!(found("100", &careful, &[]).is_ok());
    }
}
