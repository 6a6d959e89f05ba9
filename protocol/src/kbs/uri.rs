//! Names of resources.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::PREFIX;

/// Longest part of a resource's name, in bytes.
pub const SEGMENT_LIMIT: usize = 128;
/// Longest URI of a resource, in bytes.
pub const URI_LIMIT: usize = 1024;

/// Where a resource is: `kbs[+plugin]://[host]/repository/type/tag[?query]`. A host may be written and
/// is ignored: which broker is asked is the guest's own configuration.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceUri {
    plugin: Option<String>,
    repository: String,
    kind: String,
    tag: String,
    query: Option<String>,
}

/// Why a text names no resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// Too long.
    #[error("a resource's URI has more than {URI_LIMIT} bytes")]
    TooLong,
    /// Of another scheme.
    #[error("a resource's URI begins with \"kbs://\" or \"kbs+<plugin>://\"")]
    Scheme,
    /// Not three parts.
    #[error("a resource has three parts: kbs:///<repository>/<type>/<tag>")]
    Parts,
    /// A part is empty, too long, begins with a dot or has other characters.
    #[error(
        "a part of a resource's name has letters, digits, '-', '_' and '.', does not begin with '.' and \
         has 1 to {SEGMENT_LIMIT} characters"
    )]
    Part,
    /// The query has characters that no query has.
    #[error("the query of a resource's URI has characters other than printable ASCII, or a '#'")]
    Query,
}

impl ResourceUri {
    /// The plugin that serves plain resources.
    pub const RESOURCE: &str = "resource";

    /// A plain resource.
    ///
    /// # Errors
    /// If a part cannot be part of a name.
    pub fn new(repository: &str, kind: &str, tag: &str) -> Result<ResourceUri, UriError> {
        Ok(ResourceUri {
            plugin: None,
            repository: segment(repository)?,
            kind: segment(kind)?,
            tag: segment(tag)?,
            query: None,
        })
    }

    /// Three parts with slashes between them: `repository/type/tag`.
    ///
    /// # Errors
    /// If there are not three, or one cannot be part of a name.
    pub fn of_path(path: &str) -> Result<ResourceUri, UriError> {
        let parts: Vec<&str> = path.splitn(4, '/').collect();
        let [repository, kind, tag] = parts[..] else { return Err(UriError::Parts) };
        ResourceUri::new(repository, kind, tag)
    }

    /// Who serves it: `resource` where the URI names nobody.
    #[must_use]
    pub fn plugin(&self) -> &str {
        self.plugin.as_deref().unwrap_or(Self::RESOURCE)
    }

    /// First part.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Second part.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Third part.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// What follows a question mark.
    #[must_use]
    pub fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }

    /// The three parts with slashes between them.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}/{}/{}", self.repository, self.kind, self.tag)
    }

    /// Where a broker has it: path and query of the URL.
    #[must_use]
    pub fn url_path(&self) -> String {
        let query = self.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
        format!("{PREFIX}/{}/{}{query}", self.plugin(), self.path())
    }
}

fn segment(part: &str) -> Result<String, UriError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let length = (1..=SEGMENT_LIMIT).contains(&part.len());
    if length && !part.starts_with('.') && part.bytes().all(plain) {
        Ok(part.to_owned())
    } else {
        Err(UriError::Part)
    }
}

impl FromStr for ResourceUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<ResourceUri, UriError> {
        if text.len() > URI_LIMIT {
            return Err(UriError::TooLong);
        }
        let (scheme, rest) = text.split_once("://").ok_or(UriError::Scheme)?;
        let plugin = match scheme.strip_prefix("kbs").ok_or(UriError::Scheme)? {
            "" => None,
            plugin => Some(segment(plugin.strip_prefix('+').ok_or(UriError::Scheme)?)?),
        };
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) => (rest, Some(query)),
            None => (rest, None),
        };
        let printable = |b: u8| b.is_ascii_graphic() && b != b'#';
        if query.is_some_and(|query| query.is_empty() || !query.bytes().all(printable)) {
            return Err(UriError::Query);
        }
        let (_host, path) = rest.split_once('/').ok_or(UriError::Parts)?;
        let named = ResourceUri::of_path(path)?;
        // One way to write the plugin of plain resources.
        let plugin = plugin.filter(|plugin| plugin != Self::RESOURCE);
        Ok(ResourceUri { plugin, query: query.map(str::to_owned), ..named })
    }
}

impl fmt::Display for ResourceUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("kbs")?;
        if let Some(plugin) = &self.plugin {
            write!(f, "+{plugin}")?;
        }
        write!(f, ":///{}", self.path())?;
        self.query.as_ref().map_or(Ok(()), |query| write!(f, "?{query}"))
    }
}

impl Serialize for ResourceUri {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ResourceUri {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<ResourceUri, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris() {
        for (text, shown, path) in [
            ("kbs:///a/b/c", "kbs:///a/b/c", "/kbs/v0/resource/a/b/c"),
            ("kbs://broker:8080/a/b/c.d", "kbs:///a/b/c.d", "/kbs/v0/resource/a/b/c.d"),
            ("kbs+resource:///a/b/c", "kbs:///a/b/c", "/kbs/v0/resource/a/b/c"),
            (
                "kbs+nebula-ca:///a/b/c?x=1&y",
                "kbs+nebula-ca:///a/b/c?x=1&y",
                "/kbs/v0/nebula-ca/a/b/c?x=1&y",
            ),
        ] {
            let uri: ResourceUri = text.parse().unwrap();
            assert_eq!(uri.to_string(), shown);
            assert_eq!(uri.url_path(), path);
            assert_eq!(shown.parse(), Ok(uri));
        }
        let long = "a".repeat(SEGMENT_LIMIT + 1);
        for (text, expected) in [
            ("", UriError::Scheme),
            ("a/b/c", UriError::Scheme),
            ("http:///a/b/c", UriError::Scheme),
            ("kbsx:///a/b/c", UriError::Scheme),
            ("kbs+:///a/b/c", UriError::Part),
            ("kbs://a", UriError::Parts),
            ("kbs:///a/b", UriError::Parts),
            ("kbs:///a/b/c/d", UriError::Parts),
            ("kbs:///a//c", UriError::Part),
            ("kbs:///a/../c", UriError::Part),
            ("kbs:///a/b/c%2f", UriError::Part),
            ("kbs:///a/b/c d", UriError::Part),
            ("kbs:///a/b/c#d", UriError::Part),
            ("kbs:///a/b/c?", UriError::Query),
            ("kbs:///a/b/c?d#e", UriError::Query),
            ("kbs:///a/b/c?\u{e4}", UriError::Query),
            (&format!("kbs:///a/b/{long}"), UriError::Part),
            (&format!("kbs:///a/b/c?{}", "q".repeat(URI_LIMIT)), UriError::TooLong),
        ] {
            assert_eq!(text.parse::<ResourceUri>(), Err(expected), "{text}");
        }
    }
}
