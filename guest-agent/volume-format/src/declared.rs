//! What the pod's owner says about volumes: the file `volumes.toml` of the initdata.
//!
//! The host attaches disks and says where containers are to see them. What such a disk is, whether it is
//! encrypted and under which key, is never the host's word: it stands here, or the volume is refused.

use std::fmt;

use nacre_protocol::initdata::{FileError, Initdata, read_file};
use nacre_protocol::kbs::ResourceUri;
use serde::Deserialize;

/// Name of the file.
pub const FILE: &str = "volumes.toml";
/// Most volumes of a pod.
const MOST_VOLUMES: usize = 64;
/// Most places where a volume appears.
const MOST_MOUNTS: usize = 128;
/// Longest name, in bytes; Kubernetes has 253.
const LONGEST_NAME: usize = 253;
/// Longest path in a container, in bytes.
const LONGEST_PATH: usize = 1024;

/// All volumes that a pod's owner declares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeclaredVolumes(Vec<DeclaredVolume>);

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredVolume {
    /// The owner's name for it. An encrypted volume is bound to it.
    pub name: String,
    /// Who can read it.
    pub protection: Protection,
    /// What to do with a blank disk.
    pub format: Format,
    /// Whether containers cannot write to it.
    pub read_only: bool,
    /// What beside its name an encrypted volume is bound to.
    pub bind: Bind,
    mounts: Vec<Place>,
}

/// Who can read and change a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protection {
    /// Nobody but guests that get this resource of the key broker.
    Encrypted(ResourceUri),
    /// The host, as it likes.
    DangerPlaintext,
}

/// What becomes of a disk with nothing but zeros where a volume begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// It is refused: a volume that was in use cannot be exchanged for an empty one.
    #[default]
    Never,
    /// It becomes an empty volume.
    Blank,
}

/// What an encrypted volume is bound to, beside its key and its name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bind {
    /// Nothing: all pods with the same declaration and key can open it.
    #[default]
    Name,
    /// The pod's name: replicas cannot be given each other's.
    Pod,
}

/// Where containers see a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    /// None for every container.
    container: Option<String>,
    path: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    volume: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    mounts: Vec<String>,
    key: Option<String>,
    #[serde(default)]
    danger_plaintext: bool,
    #[serde(default)]
    format: Format,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    bind: Bind,
}

impl DeclaredVolumes {
    /// Reads the file of a pod's initdata; without it the pod has no volumes.
    ///
    /// # Errors
    /// As [`DeclaredVolumes::parse`].
    pub fn read(initdata: Option<&Initdata>) -> Result<Self, FileError> {
        let text = initdata.and_then(|initdata| initdata.files().get(FILE));
        text.map_or_else(|| Ok(Self::default()), |text| Self::parse(text))
    }

    /// Reads the file's text.
    ///
    /// # Errors
    /// If it is not the file, or says something that cannot be: with the key.
    pub fn parse(text: &str) -> Result<Self, FileError> {
        let File { volume } = read_file(FILE, text)?;
        if volume.len() > MOST_VOLUMES {
            return Err(value("volume", format!("has more than {MOST_VOLUMES} entries")));
        }
        let mut volumes: Vec<DeclaredVolume> = Vec::with_capacity(volume.len());
        for (index, entry) in volume.into_iter().enumerate() {
            let declared = DeclaredVolume::of(index, entry)?;
            if volumes.iter().any(|other| other.name == declared.name) {
                let problem = format!("{:?} is another volume's", declared.name);
                return Err(value(&format!("volume[{index}].name"), problem));
            }
            let taken = |place: &&Place| {
                volumes.iter().flat_map(|other| &other.mounts).any(|other| other.meets(place))
            };
            if let Some(place) = declared.mounts.iter().find(taken) {
                let problem = format!("{place} is another volume's");
                return Err(value(&format!("volume[{index}].mounts"), problem));
            }
            volumes.push(declared);
        }
        Ok(Self(volumes))
    }

    /// The volumes, in the owner's order.
    #[must_use]
    pub fn volumes(&self) -> &[DeclaredVolume] {
        &self.0
    }

    /// The volume that a container is to see at `path`.
    #[must_use]
    pub fn at(&self, container: &str, path: &str) -> Option<&DeclaredVolume> {
        self.0.iter().find(|volume| volume.mounts.iter().any(|place| place.is(container, path)))
    }

    /// Paths at which this container is to see volumes, with their names.
    pub fn expected(&self, container: &str) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().flat_map(move |volume| {
            let here = volume.mounts.iter().filter(move |place| {
                place.container.as_deref().is_some_and(|named| named == container)
            });
            here.map(|place| (&*volume.name, &*place.path))
        })
    }

    /// Whether one is encrypted.
    #[must_use]
    pub fn needs_encryption(&self) -> bool {
        self.0.iter().any(|volume| matches!(volume.protection, Protection::Encrypted(_)))
    }
}

impl DeclaredVolume {
    /// Where containers see it: the container, none for every one, and the path.
    pub fn places(&self) -> impl Iterator<Item = (Option<&str>, &str)> {
        self.mounts.iter().map(|place| (place.container.as_deref(), place.path.as_str()))
    }

    fn of(index: usize, entry: Entry) -> Result<Self, FileError> {
        let key = |name: &str| format!("volume[{index}].{name}");
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if entry.name.is_empty()
            || entry.name.len() > LONGEST_NAME
            || !entry.name.chars().all(plain)
        {
            let problem = format!("must be 1 to {LONGEST_NAME} of A-Z a-z 0-9 . _ -");
            return Err(value(&key("name"), problem));
        }
        let protection = match (entry.key, entry.danger_plaintext) {
            (Some(uri), false) => {
                let uri = uri.parse().map_err(|e| value(&key("key"), format!("{e}")))?;
                Protection::Encrypted(uri)
            }
            (None, true) => Protection::DangerPlaintext,
            (None, false) => {
                let problem = "is needed: a resource of the key broker (kbs:///...) with the volume's key; \
                               a volume that the host may read and change has danger_plaintext = true";
                return Err(value(&key("key"), problem.into()));
            }
            (Some(_), true) => {
                let problem = "contradicts key: a volume is encrypted or it is not";
                return Err(value(&key("danger_plaintext"), problem.into()));
            }
        };
        if entry.read_only && entry.format == Format::Blank {
            let problem = "contradicts read_only: what is only read cannot be made".to_owned();
            return Err(value(&key("format"), problem));
        }
        if entry.bind == Bind::Pod && protection == Protection::DangerPlaintext {
            let problem = "contradicts danger_plaintext: only a key binds a volume".to_owned();
            return Err(value(&key("bind"), problem));
        }
        let mounts = entry.mounts.iter().enumerate();
        let mounts = mounts.map(|(at, text)| {
            Place::parse(text).ok_or_else(|| {
                let problem = "must be \"CONTAINER:/PATH\" or \"/PATH\", without . and ..";
                value(&key(&format!("mounts[{at}]")), problem.into())
            })
        });
        let mounts = mounts.collect::<Result<Vec<_>, _>>()?;
        if mounts.is_empty() || mounts.len() > MOST_MOUNTS {
            return Err(value(&key("mounts"), format!("must have 1 to {MOST_MOUNTS} entries")));
        }
        let Entry { name, format, read_only, bind, .. } = entry;
        Ok(Self { name, protection, format, read_only, bind, mounts })
    }
}

impl Place {
    fn parse(text: &str) -> Option<Self> {
        let (container, path) = match text.split_once(':') {
            Some((container, path)) => (Some(container), path),
            None => (None, text),
        };
        let parts = path.strip_prefix('/')?;
        let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
        let good = path.len() <= LONGEST_PATH && parts.split('/').all(plain);
        let named = container.is_none_or(|name| !name.is_empty() && name.len() <= LONGEST_NAME);
        (good && named)
            .then(|| Self { container: container.map(str::to_owned), path: path.to_owned() })
    }

    fn is(&self, container: &str, path: &str) -> bool {
        self.path == path && self.container.as_deref().is_none_or(|named| named == container)
    }

    /// Whether a container could see both.
    fn meets(&self, other: &Self) -> bool {
        let same = match (&self.container, &other.container) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        };
        same && self.path == other.path
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.container {
            Some(container) => write!(f, "{container}:{}", self.path),
            None => f.write_str(&self.path),
        }
    }
}

fn value(key: &str, problem: String) -> FileError {
    FileError::Value { file: FILE, key: key.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: &str = "[[volume]]\nname = \"data\"\nmounts = [\"app:/data\", \"/shared\"]\n\
                        key = \"kbs:///default/volumes/data\"\nformat = \"blank\"\n";

    #[test]
    fn a_volume_is_found_by_where_it_is_seen() {
        let declared = DeclaredVolumes::parse(DATA).unwrap();
        let volume = declared.at("app", "/data").unwrap();
        assert_eq!((volume.name.as_str(), volume.format), ("data", Format::Blank));
        assert!(matches!(volume.protection, Protection::Encrypted(_)) && !volume.read_only);
        assert!(declared.at("other", "/data").is_none() && declared.at("app", "/data/x").is_none());
        assert!(declared.at("other", "/shared").is_some() && declared.needs_encryption());
        assert_eq!(declared.expected("app").collect::<Vec<_>>(), [("data", "/data")]);
        assert_eq!(declared.expected("other").count(), 0);
        assert_eq!(volume.bind, Bind::Name);
        let bound = DeclaredVolumes::parse(&format!("{DATA}bind = \"pod\"\n")).unwrap();
        assert_eq!(bound.at("app", "/data").unwrap().bind, Bind::Pod);
        assert!(DeclaredVolumes::read(None).unwrap().at("app", "/data").is_none());
    }

    #[test]
    fn mistakes_are_named() {
        let entry = |more: &str| format!("[[volume]]\nname = \"a\"\nmounts = [\"/a\"]\n{more}\n");
        for (text, expected) in [
            (entry(""), "volume[0].key"),
            (entry("key = \"file:///x\""), "volume[0].key"),
            (
                entry("key = \"kbs:///a/b/c\"\ndanger_plaintext = true"),
                "volume[0].danger_plaintext",
            ),
            (entry("danger_plaintext = true\nformat = \"always\""), "volumes.toml"),
            (entry("danger_plaintext = true\nencryptd = true"), "encryptd"),
            (entry("danger_plaintext = true\nread_only = true\nformat = \"blank\""), "format"),
            (entry("danger_plaintext = true\nbind = \"pod\""), "volume[0].bind"),
            (entry("key = \"kbs:///a/b/c\"\nbind = \"node\""), "volumes.toml"),
            (DATA.replace("app:/data", "app:data"), "volume[0].mounts[0]"),
            (DATA.replace("app:/data", "app:/data/../x"), "volume[0].mounts[0]"),
            (DATA.replace("app:/data", ":/data"), "volume[0].mounts[0]"),
            (DATA.replace("\"data\"", "\"a/b\""), "volume[0].name"),
            (DATA.repeat(2), "volume[1].name"),
            (
                format!("{DATA}{}", DATA.replace("name = \"data\"", "name = \"b\"")),
                "volume[1].mounts",
            ),
        ] {
            let error = DeclaredVolumes::parse(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
