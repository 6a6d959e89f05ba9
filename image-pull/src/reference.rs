//! Image references as people write them, parsed as containerd does
//! (`github.com/distribution/reference`, grammar in its reference.go).
//!
//! Own parser: the one in `oci-spec` compiles a regular expression that costs 43 ms and 12 MB at its
//! first use.

use std::fmt;
use std::str::FromStr;

use nacre_trust::Digest;

use crate::PullError;

/// Longest reference that is looked at, in bytes: a 255 byte name, a 128 byte tag, a digest.
const MAX_LENGTH: usize = 1024;
const DEFAULT_HOST: &str = "docker.io";

/// `[host[:port]/]path[:tag][@digest]`, normalised: `busybox` is `docker.io/library/busybox:latest`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    host: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// `host[:port]` to speak to. Docker Hub answers under another name than its images carry.
    pub(crate) fn registry(&self) -> &str {
        if self.host == DEFAULT_HOST { "registry-1.docker.io" } else { &self.host }
    }

    /// Registry as images carry it.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Tag, `latest` if there is neither tag nor digest.
    pub(crate) fn tag(&self) -> Option<&str> {
        self.tag.as_deref().or(self.digest.is_none().then_some("latest"))
    }

    pub(crate) fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Repository path at the registry.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// `host/path`, normalised.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.host, self.path)
    }

    /// What to ask the registry for: the digest where there is one, so that a tag cannot override it.
    pub(crate) fn target(&self) -> Target<'_> {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => Target::Digest(*digest),
            (None, Some(tag)) => Target::Tag(tag),
            (None, None) => Target::Tag("latest"),
        }
    }
}

/// Name of a manifest in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target<'a> {
    Tag(&'a str),
    Digest(Digest),
}

impl fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)?;
        match (&self.tag, &self.digest) {
            (None, None) => f.write_str(":latest")?,
            (Some(tag), _) => write!(f, ":{tag}")?,
            (None, Some(_)) => {}
        }
        self.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
    }
}

impl FromStr for Reference {
    type Err = PullError;

    fn from_str(text: &str) -> Result<Self, PullError> {
        if text.is_empty() {
            return Err(bad(
                "name",
                "is empty; give an image such as docker.io/library/busybox:1.36",
            ));
        }
        if text.len() > MAX_LENGTH {
            return Err(bad("name", format!("is longer than {MAX_LENGTH} bytes")));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest =
                    digest.parse().map_err(|e| bad("digest", format!("is not valid: {e}")))?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            // A colon before the last slash belongs to the host's port.
            Some((name, tag)) if !tag.contains('/') => (name, Some(parse_tag(tag)?)),
            _ => (rest, None),
        };
        let (host, path) = split_host(name);
        if host.is_none() && name.len() == 64 && name.bytes().all(is_lower_hex) {
            return Err(bad("name", "is an image identifier; give a name, or name@sha256:digest"));
        }
        let host = match host {
            None | Some("index.docker.io") => DEFAULT_HOST.to_owned(),
            Some(host) => {
                check_host(host)?;
                host.to_owned()
            }
        };
        let path = if host == DEFAULT_HOST && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        check_path(&path)?;
        if host.len() + 1 + path.len() > 255 {
            return Err(bad("name", "is longer than 255 bytes"));
        }
        Ok(Self { host, path, tag, digest })
    }
}

/// The first component is a host if it cannot be part of a repository path on Docker Hub.
fn split_host(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((first, path))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (Some(first), path)
        }
        _ => (None, name),
    }
}

fn check_host(host: &str) -> Result<(), PullError> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest
                .split_once(']')
                .ok_or_else(|| bad("host", "opens an IPv6 address with [ and never closes it"))?;
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(bad("host", "is not an IPv6 address between [ and ]"));
            }
            if !port.is_empty() && !port.starts_with(':') {
                return Err(bad("host", "has something other than :port after the IPv6 address"));
            }
            (None, port.strip_prefix(':'))
        }
        None => match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), None),
        },
    };
    if let Some(port) = port {
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        if !digits || !matches!(port.parse::<u16>(), Ok(1..)) {
            return Err(bad("host", "has a port that is not a number from 1 to 65535"));
        }
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.is_some_and(|name| !name.split('.').all(label)) {
        return Err(bad("host", "is not a host name: letters, digits, '-' and '.' make one"));
    }
    Ok(())
}

fn check_path(path: &str) -> Result<(), PullError> {
    for component in path.split('/') {
        if !is_path_component(component.as_bytes()) {
            return Err(bad(
                "path",
                "has a component that is not lower-case letters and digits, separated by '.', '_', \
                 '__' or '-'",
            ));
        }
    }
    Ok(())
}

/// `[a-z0-9]+ (separator [a-z0-9]+)*` with separator `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &[u8]) -> bool {
    let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !component.first().is_some_and(plain) || !component.last().is_some_and(plain) {
        return false;
    }
    component
        .split(plain)
        .filter(|run| !run.is_empty())
        .all(|run| matches!(run, b"." | b"_" | b"__") || run.iter().all(|b| *b == b'-'))
}

fn parse_tag(tag: &str) -> Result<String, PullError> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let mut bytes = tag.bytes();
    let valid = bytes.next().is_some_and(word) && bytes.all(|b| word(b) || b == b'.' || b == b'-');
    if !valid || tag.len() > 128 {
        return Err(bad("tag", "is not 1 to 128 letters, digits, '_', '.' or '-'"));
    }
    Ok(tag.to_owned())
}

fn is_lower_hex(b: u8) -> bool {
    b.is_ascii_digit() || matches!(b, b'a'..=b'f')
}

fn bad(field: &'static str, problem: impl Into<String>) -> PullError {
    PullError::Reference { field, problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn references_are_normalised_as_containerd_does() {
        let digest = format!("sha256:{HEX}");
        for (text, registry, path, whole) in [
            (
                "busybox",
                "registry-1.docker.io",
                "library/busybox",
                "docker.io/library/busybox:latest".into(),
            ),
            (
                "busybox:1.36",
                "registry-1.docker.io",
                "library/busybox",
                "docker.io/library/busybox:1.36".into(),
            ),
            ("a/b", "registry-1.docker.io", "a/b", "docker.io/a/b:latest".into()),
            (
                "index.docker.io/a",
                "registry-1.docker.io",
                "library/a",
                "docker.io/library/a:latest".into(),
            ),
            (
                "docker.io/a",
                "registry-1.docker.io",
                "library/a",
                "docker.io/library/a:latest".into(),
            ),
            ("localhost/a", "localhost", "a", "localhost/a:latest".into()),
            ("10.88.0.1:5000/a:b", "10.88.0.1:5000", "a", "10.88.0.1:5000/a:b".into()),
            ("[fd00:88::1]:5000/a", "[fd00:88::1]:5000", "a", "[fd00:88::1]:5000/a:latest".into()),
            ("r.io/a__b/c-d.e--f:T_1", "r.io", "a__b/c-d.e--f", "r.io/a__b/c-d.e--f:T_1".into()),
            (&format!("r.io/a:t@{digest}"), "r.io", "a", format!("r.io/a:t@{digest}")),
            (&format!("r.io/a@{digest}"), "r.io", "a", format!("r.io/a@{digest}")),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.registry(), registry, "{text}");
            assert_eq!(reference.path(), path, "{text}");
            assert_eq!(reference.to_string(), whole, "{text}");
        }
    }

    #[test]
    fn a_digest_wins_over_a_tag() {
        let reference: Reference = format!("r.io/a:t@sha256:{HEX}").parse().unwrap();
        assert!(matches!(reference.target(), Target::Digest(_)));
    }

    #[test]
    fn hostile_references_are_refused_by_field() {
        for (text, field) in [
            ("", "name"),
            (HEX, "name"),
            (&"a".repeat(2000), "name"),
            (&format!("r.io/{}", "a".repeat(254)), "name"),
            ("a:", "tag"),
            ("a:-x", "tag"),
            ("a:x y", "tag"),
            (&format!("a:{}", "t".repeat(129)), "tag"),
            ("a@", "digest"),
            ("a@sha256:../../etc", "digest"),
            ("a@md5:d41d8cd98f00b204e9800998ecf8427e", "digest"),
            (&format!("a@sha256:{HEX}@sha256:{HEX}"), "digest"),
            ("Upper", "path"),
            ("r.io/../etc", "path"),
            ("r.io//a", "path"),
            ("r.io/a/", "path"),
            ("r.io/a?x=1", "path"),
            ("r.io/a#x", "path"),
            ("r.io/a%2fb", "path"),
            ("r.io/a\0b", "path"),
            ("r.io/a___b", "path"),
            ("r.io/a..b", "path"),
            ("/a", "path"),
            ("user:pass@r.io/a", "digest"),
            ("r.io:0/a", "host"),
            ("r.io:65536/a", "host"),
            ("r.io:/a", "host"),
            ("r.io:+80/a", "host"),
            ("r..io/a", "host"),
            ("-r.io/a", "host"),
            ("[::1/a", "host"),
            ("[::1]x/a", "host"),
            ("[r.io]:80/a", "host"),
            ("http://r.io/a", "host"),
        ] {
            match text.parse::<Reference>() {
                Err(PullError::Reference { field: named, .. }) => {
                    assert_eq!(named, field, "{text}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_to_a_fixed_point_or_is_refused(text in "\\PC{0,80}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let again: Reference = reference.to_string().parse().unwrap();
                prop_assert_eq!(again.to_string(), reference.to_string());
            }
        }

        #[test]
        fn what_looks_like_a_reference_never_smuggles_url_syntax(
            text in "[a-zA-Z0-9.:/@_\\-\\[\\]?#% ]{1,60}"
        ) {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert!(!reference.path().contains(['?', '#', '%', ' ', '@', ':']));
                prop_assert!(!reference.path().split('/').any(|c| c == ".." || c.is_empty()));
                prop_assert!(!reference.registry().contains(['?', '#', '%', ' ', '@', '/']));
            }
        }
    }
}
