//! The account files that a container's directory gets on this host, where its image names a user.
//!
//! containerd looks a name up in `etc/passwd` and `etc/group` of a container's root before it calls a runtime.
//! What is in the image's is known to the guest only, so each name gets a number that stands for "the image's
//! own", and the guest replaces it (`nacre_protocol::image_user`). The names are those of image configurations:
//! whoever made the image chose them.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use nacre_protocol::image_user::{IMAGE_GROUP, IMAGE_GROUPS, IMAGE_USER};
use serde::Deserialize;

/// Most bytes of an image configuration that is read. Docker's largest are below 100 KiB.
pub(crate) const LARGEST_CONFIGURATION: usize = 1 << 20;
/// Longest name of a user or group, in bytes.
const LONGEST_NAME: usize = 256;
/// The group that says where the image's other groups go. Not a name that an image gives to a user: the group
/// that is called like a user is not among those that list it.
const LISTED: &str = "nacre.image.groups";

/// Names of users and groups that images run as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Accounts {
    users: BTreeSet<String>,
    groups: BTreeSet<String>,
}

/// What is read of an image configuration.
#[derive(Deserialize)]
struct Configuration {
    config: Option<Process>,
}

#[derive(Deserialize)]
struct Process {
    #[serde(rename = "User")]
    user: Option<String>,
}

impl Accounts {
    /// Adds the user of an image. Numbers need no file, and a name that could be read as more than a name is
    /// left out: containerd says then that there is no such user.
    pub(crate) fn add(&mut self, configuration: &[u8]) -> Result<(), serde_json::Error> {
        let parsed: Configuration = serde_json::from_slice(configuration)?;
        let user = parsed.config.and_then(|process| process.user).unwrap_or_default();
        let (user, group) = match user.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (user.as_str(), None),
        };
        if is_name(user) {
            self.users.insert(user.to_owned());
        }
        if let Some(group) = group.filter(|group| is_name(group)) {
            self.groups.insert(group.to_owned());
        }
        Ok(())
    }

    /// Adds those of another containerd.
    pub(crate) fn extend(&mut self, others: Accounts) {
        self.users.extend(others.users);
        self.groups.extend(others.groups);
    }

    /// Whether there is no name at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty()
    }

    /// The text of `etc/passwd`.
    pub(crate) fn passwd(&self) -> String {
        self.users.iter().fold(String::new(), |mut text, user| {
            let _ = writeln!(text, "{user}:x:{IMAGE_USER}:{IMAGE_USER}:::");
            text
        })
    }

    /// The text of `etc/group`.
    pub(crate) fn group(&self) -> String {
        let mut text = String::new();
        for group in &self.groups {
            let _ = writeln!(text, "{group}:x:{IMAGE_GROUP}:");
        }
        let users: Vec<&str> = self.users.iter().map(String::as_str).collect();
        let _ = writeln!(text, "{LISTED}:x:{IMAGE_GROUPS}:{}", users.join(","));
        text
    }
}

/// Whether containerd would look it up, and find nothing else in a line with it.
fn is_name(text: &str) -> bool {
    let number = text.strip_prefix(['+', '-']).unwrap_or(text);
    let plain = |c: char| !c.is_control() && !c.is_whitespace() && !matches!(c, ':' | ',' | '#');
    !number.is_empty()
        && text.len() <= LONGEST_NAME
        && !number.bytes().all(|byte| byte.is_ascii_digit())
        && text.chars().all(plain)
        && text != LISTED
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(users: &[&str]) -> Accounts {
        let mut accounts = Accounts::default();
        for user in users {
            let configuration = serde_json::json!({ "config": { "User": user } });
            accounts.add(configuration.to_string().as_bytes()).unwrap();
        }
        accounts
    }

    #[test]
    fn a_name_has_the_number_that_stands_for_the_images_user() {
        let accounts = of(&["app"]);
        assert_eq!(accounts.passwd(), "app:x:2147438147:2147438147:::\n");
        assert_eq!(accounts.group(), "nacre.image.groups:x:2147438149:app\n");
        let accounts = of(&["1000:staff"]);
        assert_eq!(accounts.passwd(), "");
        assert_eq!(accounts.group(), "staff:x:2147438148:\nnacre.image.groups:x:2147438149:\n");
    }

    #[test]
    fn images_that_share_all_layers_have_all_their_names() {
        let accounts = of(&["web:www", "app", "0", "", "app"]);
        assert_eq!(
            accounts.passwd(),
            "app:x:2147438147:2147438147:::\nweb:x:2147438147:2147438147:::\n"
        );
        assert_eq!(
            accounts.group(),
            "www:x:2147438148:\nnacre.image.groups:x:2147438149:app,web\n"
        );
    }

    #[test]
    fn what_is_no_plain_name_gets_no_line() {
        let long = "x".repeat(LONGEST_NAME + 1);
        for user in [
            "",
            "0",
            "1000",
            "1000:1000",
            "+5",
            "-5",
            "-",
            "99999999999999999999999",
            ":",
            "root\nroot:x:0:0",
            "a\r",
            "a\0b",
            "a b",
            " a",
            "a,root",
            "#a",
            "a\u{85}b",
            LISTED,
            &long,
        ] {
            assert!(of(&[user]).is_empty(), "{user:?}");
        }
        // Of what has more than one colon, containerd takes nothing.
        let accounts = of(&["a:b:c", "b:root\nx:x:0:"]);
        assert_eq!(accounts.passwd().lines().count(), 2);
        assert_eq!(accounts.group().lines().count(), 1);
    }

    #[test]
    fn a_hostile_configuration_is_an_error_or_names_nobody() {
        let mut accounts = Accounts::default();
        for bytes in [
            &b""[..],
            b"{",
            b"\xff\xfe",
            b"[]",
            br#"{"config":{"User":5}}"#,
            br#"{"config":{"User":"a","User":"b"}}"#,
            br#"{"config":[]}"#,
        ] {
            assert!(accounts.add(bytes).is_err(), "{bytes:?}");
        }
        let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
        let deep = [&br#"{"config":{"User":"#[..], &deep, b"}}"].concat();
        assert!(accounts.add(&deep).is_err());
        for bytes in [&b"{}"[..], br#"{"config":null}"#, br#"{"config":{}}"#] {
            accounts.add(bytes).unwrap();
        }
        assert!(accounts.is_empty());
    }
}
