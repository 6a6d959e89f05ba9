//! Image references as signatures and policies write them, normalised as
//! `github.com/distribution/reference` does it: `busybox` is `docker.io/library/busybox`.

use std::fmt;

use nacre_trust::Digest;

use crate::Subject;

/// Longest reference that is looked at, in bytes.
const LENGTH_LIMIT: usize = 1024;

/// A repository, and perhaps a tag or a digest in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    /// `host/path`.
    pub(crate) repository: String,
    pub(crate) version: Version,
}

/// Which image of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// None is named.
    Unnamed,
    Tag(String),
    Digest(Digest),
}

impl Reference {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > LENGTH_LIMIT {
            return Err(format!("an image reference has 1 to {LENGTH_LIMIT} bytes"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                (rest, Some(digest.parse::<Digest>().map_err(|error| error.to_string())?))
            }
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            // A colon before the last slash belongs to the host's port.
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        let repository = normalised(name)?;
        if let Some(tag) = tag {
            check_tag(tag)?;
        }
        let version = match (digest, tag) {
            (Some(digest), _) => Version::Digest(digest),
            (None, Some(tag)) => Version::Tag(tag.to_owned()),
            (None, None) => Version::Unnamed,
        };
        Ok(Self { repository, version })
    }

    /// What the pod asked for. Beside a digest a tag says nothing: nobody looks at it when the
    /// reference is resolved, so it must not choose a rule or match an identity.
    pub(crate) fn of(subject: &Subject) -> Self {
        let version = match (&subject.digest, &subject.tag) {
            (Some(digest), _) => Version::Digest(*digest),
            (None, Some(tag)) => Version::Tag(tag.clone()),
            (None, None) => Version::Tag("latest".to_owned()),
        };
        Self { repository: subject.repository(), version }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        match &self.version {
            Version::Unnamed => Ok(()),
            Version::Tag(tag) => write!(f, ":{tag}"),
            Version::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

fn normalised(name: &str) -> Result<String, String> {
    let (host, path) = match name.split_once('/') {
        Some((first, path))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, path)
        }
        _ => ("docker.io", name),
    };
    let host = if host == "index.docker.io" { "docker.io" } else { host };
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    if path.is_empty() || !path.split('/').all(|one| !one.is_empty() && one.bytes().all(plain)) {
        return Err("not an image name: lower-case letters, digits and ._- between slashes".into());
    }
    let host_byte = |b: u8| b.is_ascii_alphanumeric() || b".-:[]".contains(&b);
    if host.is_empty() || !host.bytes().all(host_byte) {
        return Err("not a registry host".into());
    }
    let library = if host == "docker.io" && !path.contains('/') { "library/" } else { "" };
    Ok(format!("{host}/{library}{path}"))
}

fn check_tag(tag: &str) -> Result<(), String> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let mut bytes = tag.bytes();
    let valid = bytes.next().is_some_and(word) && bytes.all(|b| word(b) || b == b'.' || b == b'-');
    if valid && tag.len() <= 128 {
        return Ok(());
    }
    Err("not a tag: 1 to 128 letters, digits, '_', '.' or '-'".into())
}

#[cfg(test)]
mod tests {
    use super::Reference;

    #[test]
    fn names_are_normalised() {
        for (text, expected) in [
            ("busybox", "docker.io/library/busybox"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("index.docker.io/a/b", "docker.io/a/b"),
            ("localhost/a", "localhost/a"),
            ("r.example:5000/a/b:c", "r.example:5000/a/b:c"),
            ("r.example:5000/a", "r.example:5000/a"),
        ] {
            assert_eq!(Reference::parse(text).unwrap().to_string(), expected);
        }
        for text in ["", "a//b", "r.example/", "a/B", "a:", "a:-x", "a@sha256:12", "a b", "é"] {
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
    }
}
