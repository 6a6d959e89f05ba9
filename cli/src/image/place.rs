//! Where an image is: in a registry, or in a directory.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// `HOST/PATH[:TAG][@DIGEST]`, or `oci:DIRECTORY[:TAG]`, as skopeo writes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A reference, not parsed yet.
    Registry(String),
    /// A directory in the OCI image layout, and the image's name in it.
    Layout { directory: PathBuf, tag: Option<String> },
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Place, String> {
        if let Some(reference) = text.strip_prefix("docker://") {
            return Ok(Place::Registry(reference.to_owned()));
        }
        let Some(rest) = text.strip_prefix("oci:") else {
            // skopeo has many more; a registry's host is not mistaken for one, because a port follows it.
            return match text.split_once(':') {
                Some((
                    scheme @ ("dir" | "docker-archive" | "docker-daemon" | "oci-archive"),
                    _,
                )) => Err(format!(
                    "{scheme}: is not read; copy the image to a directory first (skopeo copy {text} \
                         oci:DIRECTORY:TAG)"
                )),
                _ => Ok(Place::Registry(text.to_owned())),
            };
        };
        let (directory, tag) = match rest.split_once(':') {
            Some((directory, tag)) => (directory, Some(tag.to_owned())),
            None => (rest, None),
        };
        if directory.is_empty() || tag.as_ref().is_some_and(String::is_empty) {
            return Err("name a directory: oci:DIRECTORY or oci:DIRECTORY:TAG".to_owned());
        }
        Ok(Place::Layout { directory: directory.into(), tag })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Registry(reference) => f.write_str(reference),
            Place::Layout { directory, tag } => {
                write!(f, "oci:{}", directory.display())?;
                tag.iter().try_for_each(|tag| write!(f, ":{tag}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        for text in ["registry.example:5000/a/b:1", "busybox", "oci:dir", "oci:/some/dir:1.2"] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        let layout = Place::Layout { directory: "a/b".into(), tag: Some("c".into()) };
        assert_eq!("oci:a/b:c".parse(), Ok(layout));
        assert_eq!("docker://a/b".parse(), Ok(Place::Registry("a/b".into())));
        for text in ["oci:", "oci:a:", "oci::a", "docker-archive:x.tar"] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }
}
