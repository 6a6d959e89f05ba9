//! Grants: which pods get which resources, where no resource policy of the owner's decides.
//!
//! A genuine guest proves only that it is genuine. What it does for whom stands in its initdata: the
//! policy first of all. A grant names initdata by their digests and the resources that pods with such
//! initdata get; without a grant no pod gets anything.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// Most digests of one grant.
const MOST_INITDATA: usize = 256;
/// Most patterns of one grant.
const MOST_RESOURCES: usize = 256;
/// Longest identifier, pattern and note, in bytes.
const LONGEST: usize = 512;

/// A grant as the administrator gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// Its name: 1 to 128 characters of `A-Z a-z 0-9 . _ -`.
    pub id: String,
    /// Digests of initdata, as `sha256:<hex>`, `sha384:<hex>` or `sha512:<hex>`.
    #[serde(default)]
    pub initdata: Vec<String>,
    /// Any initdata will do, none too: whoever starts a pod from the genuine guest image gets the
    /// resources, under whatever policy.
    #[serde(default)]
    pub danger_any_initdata: bool,
    /// Patterns of resources: `repository/type/tag`, each part a name or `*`.
    pub resources: Vec<String>,
    /// It holds until then.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub expires: Option<OffsetDateTime>,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// Why something is no grant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// The identifier.
    #[error("a grant's id has 1 to 128 characters of A-Z a-z 0-9 . _ -")]
    Id,
    /// A digest.
    #[error("{0:?} is no digest of initdata: `nacre initdata digest` prints one")]
    Digest(String),
    /// A pattern.
    #[error("{0:?} is no pattern of resources: it is repository/type/tag, each part a name or *")]
    Pattern(String),
    /// It would grant nothing, or to nobody.
    #[error("a grant names at least one {0}")]
    Empty(&'static str),
    /// Too much of something.
    #[error("a grant has at most {1} {0}")]
    TooMany(&'static str, usize),
}

impl Grant {
    /// Checks a grant that came from outside.
    ///
    /// # Errors
    /// The first thing in it that is not as it should be.
    pub fn check(&self) -> Result<(), GrantError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if self.id.is_empty() || self.id.len() > 128 || !self.id.bytes().all(plain) {
            return Err(GrantError::Id);
        }
        if self.initdata.is_empty() && !self.danger_any_initdata {
            return Err(GrantError::Empty("digest of initdata"));
        }
        if self.resources.is_empty() {
            return Err(GrantError::Empty("pattern of resources"));
        }
        if self.initdata.len() > MOST_INITDATA {
            return Err(GrantError::TooMany("digests", MOST_INITDATA));
        }
        if self.resources.len() > MOST_RESOURCES {
            return Err(GrantError::TooMany("patterns", MOST_RESOURCES));
        }
        if self.note.len() > LONGEST {
            return Err(GrantError::TooMany("bytes of note", LONGEST));
        }
        if let Some(bad) = self.initdata.iter().find(|text| digest(text).is_none()) {
            return Err(GrantError::Digest(bad.chars().take(80).collect()));
        }
        if let Some(bad) = self.resources.iter().find(|text| !is_pattern(text)) {
            return Err(GrantError::Pattern(bad.chars().take(80).collect()));
        }
        Ok(())
    }

    /// Whether a guest whose hardware reports `field` (`HOST_DATA`, 32 bytes, or `MRCONFIGID`, 48 bytes)
    /// may have the resource now.
    #[must_use]
    pub fn covers(&self, field: &[u8], resource: [&str; 3], now: OffsetDateTime) -> bool {
        self.is_for(field) && self.gives(resource) && self.expires.is_none_or(|end| now < end)
    }

    /// Whether it is for guests whose hardware reports `field`.
    #[must_use]
    pub fn is_for(&self, field: &[u8]) -> bool {
        self.danger_any_initdata
            || self.initdata.iter().filter_map(|text| digest(text)).any(|mut digest| {
                // As the hardware's field is filled: cut, or followed by zero bytes.
                digest.resize(field.len(), 0);
                digest == field
            })
    }

    /// Whether one of its patterns fits.
    #[must_use]
    pub fn gives(&self, resource: [&str; 3]) -> bool {
        self.resources.iter().any(|pattern| {
            let parts = pattern.split('/').zip(resource);
            parts.into_iter().all(|(part, name)| part == "*" || part == name)
        })
    }
}

fn digest(text: &str) -> Option<Vec<u8>> {
    let (algorithm, digits) = text.split_once(':')?;
    let bytes = hex::decode(digits).ok()?;
    let length = match algorithm {
        "sha256" => 32,
        "sha384" => 48,
        "sha512" => 64,
        _ => return None,
    };
    (bytes.len() == length).then_some(bytes)
}

fn is_pattern(text: &str) -> bool {
    let name = |part: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        part == "*" || (!part.is_empty() && !part.starts_with('.') && part.bytes().all(plain))
    };
    text.len() <= LONGEST && text.split('/').count() == 3 && text.split('/').all(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn grant(initdata: &[String], resources: &[&str]) -> Grant {
        Grant {
            id: "web".to_owned(),
            initdata: initdata.to_vec(),
            danger_any_initdata: false,
            resources: resources.iter().map(|text| (*text).to_owned()).collect(),
            expires: None,
            note: String::new(),
        }
    }

    #[test]
    fn a_grant_is_for_its_initdata_its_resources_and_its_time() {
        let long = format!("sha384:{}", "ab".repeat(48));
        let mut web = grant(&[format!("sha256:{}", "01".repeat(32)), long], &["default/web/*"]);
        web.check().unwrap();
        let key = ["default", "web", "key"];
        assert!(web.covers(&[1; 32], key, NOW));
        assert!(web.covers(&[0xab; 32], key, NOW), "a longer digest is cut");
        let padded = [[1; 32].as_slice(), &[0; 16]].concat();
        assert!(web.covers(&padded, key, NOW), "a shorter one is followed by zero bytes");
        assert!(!web.covers(&[2; 32], key, NOW));
        assert!(!web.covers(&[0; 32], key, NOW), "no initdata");
        assert!(!web.covers(&[1; 32], ["default", "db", "key"], NOW));
        web.expires = Some(NOW);
        assert!(!web.covers(&[1; 32], key, NOW));
        web.expires = Some(NOW + time::Duration::SECOND);
        assert!(web.covers(&[1; 32], key, NOW));
        web.danger_any_initdata = true;
        assert!(web.covers(&[0; 32], key, NOW));
    }

    #[test]
    fn what_is_no_grant_is_refused() {
        let good = || grant(&[format!("sha256:{}", "01".repeat(32))], &["a/b/c"]);
        let bad = |change: fn(&mut Grant)| {
            let mut grant = good();
            change(&mut grant);
            grant.check().unwrap_err().to_string()
        };
        good().check().unwrap();
        assert!(bad(|g| g.id = "a/b".into()).contains("id"));
        assert!(bad(|g| g.initdata.clear()).contains("initdata"));
        assert!(bad(|g| g.resources.clear()).contains("pattern"));
        assert!(bad(|g| g.initdata = vec!["sha256:00".into()]).contains("nacre initdata digest"));
        assert!(bad(|g| g.initdata = vec!["md5:00".into()]).contains("md5"));
        for pattern in ["a/b", "a/b/c/d", "a//c", "a/b/c*", "../b/c", ""] {
            let mut grant = good();
            grant.resources = vec![pattern.into()];
            assert_eq!(grant.check(), Err(GrantError::Pattern(pattern.into())));
        }
        assert!(bad(|g| g.resources = vec!["a/b/c".into(); 257]).contains("256"));
    }
}
