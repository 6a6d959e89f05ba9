//! The broker's configuration: one TOML file. Unknown keys are errors; relative paths begin at the
//! file's own directory.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nacre_protocol::kbs;
use serde::{Deserialize, Serialize};

/// Largest configuration file, in bytes.
const FILE_LIMIT: u64 = 256 * 1024;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file, or one that it names, cannot be read.
    #[error("cannot read {path}: {error}", path = .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It is no TOML of the right shape.
    #[error("{path}: {problem}", path = .path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// What the parser says.
        problem: String,
    },
    /// A value makes no sense.
    #[error("{path}: {key}: {problem}", path = .path.display())]
    Value {
        /// Which file.
        path: PathBuf,
        /// Which key.
        key: &'static str,
        /// What is wrong, and what to do.
        problem: String,
    },
}

/// The configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address and port.
    pub listen: SocketAddr,
    /// Serve without TLS on an address other than loopback: whoever sits on the way sees who asks for
    /// what, and an administrator's requests with all secrets that they set.
    #[serde(default)]
    pub danger_allow_http: bool,
    /// Certificate and key; without them the broker serves plain HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Where secrets are.
    pub store: Store,
    /// Where the audit log is.
    pub audit: Audit,
    /// Public keys (PEM, Ed25519) of administrators.
    pub admin_public_keys: Vec<PathBuf>,
    /// Roots besides AMD's whose reports are believed: whoever holds their keys can make any report.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub danger_extra_snp_roots: Vec<ExtraRoot>,
    /// Certificates that evidence does not bring along.
    #[serde(default)]
    pub collateral: Collateral,
    /// Attestation tokens.
    #[serde(default)]
    pub token: Token,
    /// Bounds.
    #[serde(default)]
    pub limits: Limits,
}

/// Files of the server's TLS identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Certificate chain in PEM.
    pub certificate: PathBuf,
    /// Private key in PEM.
    pub key: PathBuf,
}

/// The store of secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// Its directory.
    pub directory: PathBuf,
    /// File with the key that everything in it is encrypted under: 64 hexadecimal digits. Best kept
    /// away from the store.
    pub key_file: PathBuf,
}

/// The audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// Its directory.
    pub directory: PathBuf,
    /// A new file begins when one has this many bytes.
    #[serde(default = "rotate_bytes")]
    pub rotate_bytes: u64,
    /// Begin a new log although the store knows that there was one: what stood in that is gone.
    #[serde(default)]
    pub danger_begin_anew: bool,
}

const fn rotate_bytes() -> u64 {
    64 * 1024 * 1024
}

/// A root that is believed besides the vendor's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtraRoot {
    /// What tokens and the audit log call it.
    pub name: String,
    /// Root certificate (DER).
    pub ark: PathBuf,
    /// Intermediate certificate (DER).
    pub ask: PathBuf,
}

/// Certificates and revocation lists.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Collateral {
    /// Directory of what was fetched or put there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
    /// Where what is missing is asked for: AMD's service (`https://kdsintf.amd.com`) or a mirror with
    /// the same paths. Without it the broker asks nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<String>,
    /// Certificate (PEM) that an https mirror's own is checked against; without it, those of public
    /// authorities are not known and only http mirrors work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror_ca: Option<PathBuf>,
    /// AMD's revocation lists (DER), one for each product.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snp_crls: Vec<PathBuf>,
    /// Believe no report without a current revocation list for its root.
    #[serde(default)]
    pub snp_crl_required: bool,
}

/// Attestation tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// How long one is valid, in seconds.
    #[serde(default = "token_seconds")]
    pub lifetime_seconds: u32,
    /// Who issues it.
    #[serde(default = "issuer")]
    pub issuer: String,
}

const fn token_seconds() -> u32 {
    300
}

fn issuer() -> String {
    "nacre-kbs".to_owned()
}

impl Default for Token {
    fn default() -> Token {
        Token { lifetime_seconds: token_seconds(), issuer: issuer() }
    }
}

/// Bounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Sessions at once.
    pub sessions: usize,
    /// How long a session lasts, in seconds.
    pub session_seconds: u32,
    /// Requests of one client (an IPv4 address, or 64 bits of an IPv6 address) a second. Clients on
    /// loopback are not counted.
    pub client_requests_per_second: u32,
    /// Requests of one client at once.
    pub client_burst: u32,
    /// Largest attestation, in bytes.
    pub attestation_bytes: usize,
    /// Time for a request's headers, for its body and for a TLS handshake, in seconds each.
    pub request_seconds: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 2048,
            sessions: 20_000,
            session_seconds: 300,
            client_requests_per_second: 200,
            client_burst: 2000,
            attestation_bytes: kbs::ATTESTATION_LIMIT,
            request_seconds: 15,
        }
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let text = read_text(path)?;
        let mut config: Config = toml::from_str(&text).map_err(|error| ConfigError::Parse {
            path: path.to_owned(),
            problem: error.to_string().trim_end().to_owned(),
        })?;
        config.resolve(path.parent().unwrap_or(Path::new("")));
        config.check(path)?;
        Ok(config)
    }

    /// The configuration as a file.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("strings, numbers and tables")
    }

    /// How long a session lasts.
    #[must_use]
    pub fn session_life(&self) -> Duration {
        Duration::from_secs(self.limits.session_seconds.into())
    }

    /// Time for one step of a request.
    #[must_use]
    pub fn request_time(&self) -> Duration {
        Duration::from_secs(self.limits.request_seconds.into())
    }

    fn resolve(&mut self, base: &Path) {
        let tls = self.tls.iter_mut().flat_map(|tls| [&mut tls.certificate, &mut tls.key]);
        let roots = self.danger_extra_snp_roots.iter_mut();
        let paths =
            [&mut self.store.directory, &mut self.store.key_file, &mut self.audit.directory]
                .into_iter()
                .chain(tls)
                .chain(&mut self.admin_public_keys)
                .chain(roots.flat_map(|root| [&mut root.ark, &mut root.ask]))
                .chain(&mut self.collateral.cache)
                .chain(&mut self.collateral.mirror_ca)
                .chain(&mut self.collateral.snp_crls);
        for path in paths {
            *path = base.join(&path);
        }
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let wrong = |key, problem: &str| {
            Err(ConfigError::Value { path: path.to_owned(), key, problem: problem.to_owned() })
        };
        if self.tls.is_none() && !self.listen.ip().is_loopback() && !self.danger_allow_http {
            return wrong(
                "listen",
                "without [tls] the broker listens on loopback only; give it a certificate, or set \
                 danger_allow_http = true",
            );
        }
        if self.admin_public_keys.is_empty() {
            return wrong("admin_public_keys", "name at least one: `nacre kbs init` makes one");
        }
        if !(1..=3600).contains(&self.token.lifetime_seconds) {
            return wrong("token.lifetime_seconds", "from 1 to 3600");
        }
        if self.audit.rotate_bytes < 64 * 1024 {
            return wrong("audit.rotate_bytes", "at least 65536");
        }
        let limits = &self.limits;
        if !(1..=100_000).contains(&limits.connections) {
            return wrong("limits.connections", "from 1 to 100000");
        }
        if !(1..=1_000_000).contains(&limits.sessions) {
            return wrong("limits.sessions", "from 1 to 1000000");
        }
        if !(1..=3600).contains(&limits.session_seconds) {
            return wrong("limits.session_seconds", "from 1 to 3600");
        }
        if limits.client_requests_per_second == 0 || limits.client_burst == 0 {
            return wrong("limits.client_requests_per_second", "and client_burst are at least 1");
        }
        if !(4096..=kbs::ATTESTATION_LIMIT).contains(&limits.attestation_bytes) {
            return wrong("limits.attestation_bytes", "from 4096 to 2097152");
        }
        if !(1..=120).contains(&limits.request_seconds) {
            return wrong("limits.request_seconds", "from 1 to 120");
        }
        let mut names: Vec<_> = self.danger_extra_snp_roots.iter().map(|root| &root.name).collect();
        names.sort();
        names.dedup();
        let plain = |name: &str| {
            (1..=64).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        if names.len() < self.danger_extra_snp_roots.len() || !names.iter().all(|name| plain(name))
        {
            return wrong(
                "danger_extra_snp_roots",
                "each has a name of its own, of 1 to 64 letters, digits, '-', '_' and '.'",
            );
        }
        Ok(())
    }
}

/// A small text file.
pub(crate) fn read_text(path: &Path) -> Result<String, ConfigError> {
    let bytes = read_file(path)?;
    String::from_utf8(bytes).map_err(|_| ConfigError::Parse {
        path: path.to_owned(),
        problem: "it is not UTF-8 text".to_owned(),
    })
}

/// A small file.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>, ConfigError> {
    use std::io::Read as _;
    let read = || {
        let mut bytes = Vec::new();
        fs::File::open(path)?.take(FILE_LIMIT + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_LIMIT {
            return Err(std::io::Error::other("it has more than 256 KiB"));
        }
        Ok(bytes)
    };
    read().map_err(|error| ConfigError::Read { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
        listen = "127.0.0.1:8080"
        admin_public_keys = ["admin.pub"]
        [store]
        directory = "store"
        key_file = "/etc/store.key"
        [audit]
        directory = "audit"
    "#;

    fn read(text: &str) -> Result<Config, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        fs::write(&path, text).unwrap();
        Config::read(&path).map_err(|error| error.to_string()).map(|mut config| {
            let base = directory.path();
            assert_eq!(config.store.directory, base.join("store"));
            assert_eq!(config.store.key_file, Path::new("/etc/store.key"));
            config.store.directory = "store".into();
            config
        })
    }

    #[test]
    fn defaults_are_sane_and_the_file_can_be_written() {
        let config = read(SMALL).unwrap();
        assert_eq!(config.limits, Limits::default());
        assert_eq!(config.token.lifetime_seconds, 300);
        let again: Config = toml::from_str(&config.to_toml()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let with = |more: &str| read(&format!("{more}\n{SMALL}")).unwrap_err();
        let after = |more: &str| read(&format!("{SMALL}\n{more}")).unwrap_err();
        assert!(with("other = 1").contains("unknown field `other`"));
        assert!(after("[limits]\nfoo = 1").contains("unknown field `foo`"));
        let open = SMALL.replace("127.0.0.1", "0.0.0.0");
        assert!(read(&open).unwrap_err().contains("danger_allow_http"));
        read(&format!("danger_allow_http = true\n{open}")).unwrap();
        assert!(
            read(&SMALL.replace("[\"admin.pub\"]", "[]"))
                .unwrap_err()
                .contains("admin_public_keys")
        );
        assert!(after("[token]\nlifetime_seconds = 0").contains("from 1"));
        assert!(after("[limits]\nsessions = 0").contains("limits.sessions"));
        assert!(after("[limits]\nattestation_bytes = 100000000").contains("attestation_bytes"));
        let root = "[[danger_extra_snp_roots]]\nname = \"a\"\nark = \"a\"\nask = \"b\"\n";
        read(&format!("{SMALL}\n{root}")).unwrap();
        assert!(after(&format!("{root}{root}")).contains("name of its own"));
        assert!(after(&root.replace("\"a\"\nark", "\"a b\"\nark")).contains("name of its own"));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Config::read(Path::new("/nonexistent/config.toml")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/config.toml"), "{error}");
    }
}
