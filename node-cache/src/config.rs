//! The daemon's configuration: one TOML file in which every key is known.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use nacre_protocol::blob_cache::is_namespace;
use serde::Deserialize;

/// Where the configuration is unless the command line names another file.
pub const DEFAULT_PATH: &str = "/etc/nacre/cache.toml";

/// A configuration beyond this size is a mistake.
const MOST_BYTES: u64 = 256 * 1024;
/// `sockaddr_un.sun_path` has 108 bytes with its end (unix(7)).
const SOCKET_PATH_MAX: usize = 107;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {cause}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system answered.
        cause: io::Error,
    },
    /// It is no TOML, or has other keys.
    #[error("{origin} is not a valid configuration: {cause}")]
    Parse {
        /// Where the text is from.
        origin: String,
        /// What the parser says.
        cause: String,
    },
    /// A value cannot be used.
    #[error("{origin}: {key} {problem}")]
    Value {
        /// Where the text is from.
        origin: String,
        /// Section and key.
        key: &'static str,
        /// What is wrong and what to give instead.
        problem: String,
    },
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where shims find the daemon.
    pub socket: PathBuf,
    /// Where its own blobs are.
    pub directory: PathBuf,
    /// Most bytes that each namespace's own blobs take; of all, if they are shared.
    pub max_bytes: u64,
    /// containerd's content stores, for reading.
    pub containerd_content: Vec<PathBuf>,
    /// Most guests at once.
    pub max_guests: u32,
    /// Most bytes that one guest may put in its life.
    pub max_put_bytes: u64,
    /// Time between two lines with the counters in the log, in seconds.
    pub report_seconds: u32,
    /// Filter of the log.
    pub log: String,
    /// `[namespaces]`: whose pods get what.
    pub namespaces: Namespaces,
}

/// `[namespaces]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Namespaces {
    /// containerd namespaces whose pods are served.
    pub allow: BTreeSet<String>,
    /// Those of them that are served from containerd's content stores.
    pub containerd: BTreeSet<String>,
    /// Whether what pods of one namespace put is visible to those of the others.
    pub shared: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            socket: "/run/nacre/cache.sock".into(),
            directory: "/var/lib/nacre/cache".into(),
            max_bytes: 20 * 1024 * 1024 * 1024,
            containerd_content: vec!["/var/lib/containerd/io.containerd.content.v1.content".into()],
            max_guests: 512,
            max_put_bytes: 10 * 1024 * 1024 * 1024,
            report_seconds: 600,
            log: "info".to_owned(),
            namespaces: Namespaces::default(),
        }
    }
}

impl Default for Namespaces {
    fn default() -> Self {
        let kubernetes = || ["k8s.io".to_owned()].into();
        Namespaces { allow: kubernetes(), containerd: kubernetes(), shared: false }
    }
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, or something in it is not as it should be.
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let failed = |cause| ConfigError::Read { path: path.to_owned(), cause };
        let mut text = String::new();
        let read = File::open(path)
            .and_then(|file| file.take(MOST_BYTES + 1).read_to_string(&mut text))
            .map_err(failed)?;
        if read as u64 > MOST_BYTES {
            return Err(failed(io::Error::other(format!("larger than {MOST_BYTES} bytes"))));
        }
        Config::parse(&text, &path.display().to_string())
    }

    /// Reads a text; `origin` says in errors where it is from.
    ///
    /// # Errors
    /// If something in it is not as it should be.
    pub fn parse(text: &str, origin: &str) -> Result<Config, ConfigError> {
        let config: Config = toml::from_str(text).map_err(|cause| ConfigError::Parse {
            origin: origin.to_owned(),
            cause: cause.to_string().trim().to_owned(),
        })?;
        config.check(origin)?;
        Ok(config)
    }

    fn check(&self, origin: &str) -> Result<(), ConfigError> {
        let wrong = |key, problem: String| {
            Err(ConfigError::Value { origin: origin.to_owned(), key, problem })
        };
        for (key, path) in [("socket", &self.socket), ("directory", &self.directory)]
            .into_iter()
            .chain(self.containerd_content.iter().map(|path| ("containerd_content", path)))
        {
            if !path.is_absolute() || path.parent().is_none() {
                return wrong(key, format!("is {path:?}: give an absolute path"));
            }
        }
        if self.socket.as_os_str().len() > SOCKET_PATH_MAX {
            return wrong("socket", format!("is longer than {SOCKET_PATH_MAX} bytes"));
        }
        for (key, value, least, most) in [
            ("max_bytes", self.max_bytes, 1024 * 1024, 1 << 50),
            ("max_put_bytes", self.max_put_bytes, 0, 1 << 50),
            ("max_guests", self.max_guests.into(), 1, 16384),
            ("report_seconds", self.report_seconds.into(), 1, 7 * 24 * 3600),
        ] {
            if !(least..=most).contains(&value) {
                return wrong(key, format!("is {value}: give a number from {least} to {most}"));
            }
        }
        let Namespaces { allow, containerd, .. } = &self.namespaces;
        if let Some(name) = allow.iter().find(|name| !is_namespace(name)) {
            return wrong("namespaces.allow", format!("has {name:?}: no namespace is called that"));
        }
        if let Some(name) = containerd.difference(allow).next()
            && self.namespaces.containerd != Namespaces::default().containerd
        {
            let problem = format!("has {name:?}, which namespaces.allow does not have");
            return wrong("namespaces.containerd", problem);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_file_says_the_defaults_and_names_every_key() {
        let text = include_str!("../cache.toml");
        assert_eq!(Config::parse(text, "cache.toml").unwrap(), Config::default());
        let keys = text.lines().filter(|l| !l.starts_with('#') && l.contains(" = ")).count();
        assert_eq!(keys, 11);
        Config::default().check("defaults").unwrap();
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("sockets = 1", "sockets"),
            ("socket = \"cache.sock\"", "socket is \"cache.sock\": give an absolute path"),
            ("directory = \"/\"", "directory is \"/\""),
            ("containerd_content = [\"x\"]", "containerd_content is \"x\""),
            ("max_bytes = 1000", "max_bytes is 1000: give a number from 1048576 to"),
            ("max_bytes = -1", "max_bytes"),
            ("max_guests = 0", "max_guests is 0"),
            ("report_seconds = 0", "report_seconds is 0"),
            ("[namespaces]\nallow = [\"../x\"]", "namespaces.allow has \"../x\""),
            ("[namespaces]\ncontainerd = [\"moby\"]", "which namespaces.allow does not have"),
            ("[namespaces]\nshare = true", "share"),
        ] {
            let error = Config::parse(text, "t").unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
        let long = format!("socket = \"/{}\"", "a".repeat(107));
        assert!(Config::parse(&long, "t").unwrap_err().to_string().contains("longer than 107"));
    }

    #[test]
    fn other_namespaces_may_do_without_containerds_store() {
        let config = Config::parse("[namespaces]\nallow = [\"default\"]", "t").unwrap();
        assert!(!config.namespaces.containerd.contains("default"));
    }
}
