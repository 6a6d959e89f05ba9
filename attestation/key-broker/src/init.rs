//! A broker's first configuration: its keys, a certificate, and a file that explains itself.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nacre_jose::{Ed25519Key, JoseError};
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::Zeroizing;

/// Name that tokens and the audit log have for an emulated processor's root.
const EMULATED: &str = "emulated";

/// What a broker is made for.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// Host names and addresses for the certificate; `localhost`, `127.0.0.1` and `::1` are always in it.
    pub names: Vec<String>,
    /// Address and port.
    pub listen: SocketAddr,
    /// Directory of an emulated processor's root (`ark.der`, `ask.der`), whose reports are believed.
    pub danger_emulated: Option<PathBuf>,
}

impl Default for InitOptions {
    fn default() -> InitOptions {
        InitOptions {
            names: Vec::new(),
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            danger_emulated: None,
        }
    }
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// The configuration.
    pub config: PathBuf,
    /// The administrator's private key.
    pub admin_key: PathBuf,
    /// The key of the store.
    pub store_key: PathBuf,
    /// The server's certificate, which clients check it against.
    pub certificate: PathBuf,
}

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// A file or directory.
    #[error("{path}: {error}", path = .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Something is there already.
    #[error(
        "{path} exists: nothing was changed; choose another directory, or move it away",
        path = .0.display()
    )]
    Exists(PathBuf),
    /// A name cannot stand in a certificate.
    #[error("{0:?} cannot stand in a certificate: give a host name or an address")]
    Name(String),
    /// A key.
    #[error("a key could not be made: {0}")]
    Key(#[from] JoseError),
    /// The certificate.
    #[error("the certificate could not be made: {0}")]
    Certificate(#[from] rcgen::Error),
}

/// Makes what a broker needs in `directory`: `config.toml`, `store.key`, `admin.key`, `admin.pub`,
/// `tls.crt` and `tls.key`. Nothing that is there is overwritten.
///
/// # Errors
/// [`InitError`].
pub fn init(directory: &Path, options: &InitOptions) -> Result<Made, InitError> {
    let at = |path: &Path, error| InitError::File { path: path.to_owned(), error };
    let files = ["config.toml", "store.key", "admin.key", "admin.pub", "tls.crt", "tls.key"];
    if let Some(there) = files.iter().map(|name| directory.join(name)).find(|path| path.exists()) {
        return Err(InitError::Exists(there));
    }
    let root = options.danger_emulated.as_ref().map(|root| {
        let absolute = fs::canonicalize(root).map_err(|error| at(root, error))?;
        for name in ["ark.der", "ask.der"] {
            let path = absolute.join(name);
            fs::metadata(&path).map_err(|error| at(&path, error))?;
        }
        Ok::<_, InitError>(absolute)
    });
    let root = root.transpose()?;
    let (certificate, key) = certificate(&options.names)?;

    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| at(directory, error))?;
    let write = |name: &str, mode: u32, content: &str| {
        let path = directory.join(name);
        let mut open = OpenOptions::new();
        let file = open.write(true).create_new(true).mode(mode).open(&path);
        file.and_then(|mut file| {
            file.write_all(content.as_bytes())?;
            file.sync_all()
        })
        .map_err(|error| at(&path, error))?;
        Ok::<_, InitError>(path)
    };
    let mut store_key = Zeroizing::new([0; 32]);
    SystemRandom::new().fill(store_key.as_mut_slice()).map_err(|_| JoseError::Library)?;
    let store_key = Zeroizing::new(format!("{}\n", hex::encode(store_key.as_slice())));
    let admin = Ed25519Key::generate()?;
    let made = Made {
        store_key: write("store.key", 0o600, &store_key)?,
        admin_key: write("admin.key", 0o600, &admin.to_pem())?,
        certificate: write("tls.crt", 0o644, &certificate)?,
        config: directory.join("config.toml"),
    };
    write("admin.pub", 0o644, &admin.public().to_pem())?;
    write("tls.key", 0o600, &key)?;
    write("config.toml", 0o644, &explained(options, root.as_deref()))?;
    Ok(made)
}

/// Certificate and key, both PEM.
fn certificate(names: &[String]) -> Result<(String, Zeroizing<String>), InitError> {
    let mut all = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    all.extend(names.iter().filter(|name| !all.contains(name)).cloned().collect::<Vec<_>>());
    let mut params = CertificateParams::default();
    for name in &all {
        let entry = match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => {
                let plain = |c: char| c.is_ascii_alphanumeric() || "-._*".contains(c);
                if name.is_empty() || name.len() > 253 || !name.chars().all(plain) {
                    return Err(InitError::Name(name.chars().take(80).collect()));
                }
                SanType::DnsName(name.as_str().try_into()?)
            }
        };
        params.subject_alt_names.push(entry);
    }
    params.distinguished_name.push(DnType::CommonName, "nacre-kbs");
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2099, 12, 31);
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), Zeroizing::new(key.serialize_pem())))
}

fn explained(options: &InitOptions, emulated: Option<&Path>) -> String {
    let listen = options.listen;
    let mut text = format!(
        r#"# nacre-kbs: a key broker. Paths begin at this file's directory. Unknown keys are errors.

# Address and port.
listen = "{listen}"
# Serve without TLS on an address other than loopback. Whoever sits on the way sees the secrets that administrators set.
# danger_allow_http = true

# Public keys (PEM, Ed25519) of administrators. admin.key belongs to the first: give it to whoever administers, and take it
# away from here.
admin_public_keys = ["admin.pub"]
"#
    );
    if let Some(root) = emulated {
        let [ark, ask] = ["ark.der", "ask.der"]
            .map(|name| toml::Value::from(root.join(name).display().to_string()));
        text.push_str(&format!(
            r#"
# Roots besides AMD's whose reports are believed. This one is of an emulated processor, for development: whoever runs the
# host can make any report. Tokens and the audit log say "emulated".
danger_extra_snp_roots = [{{ name = "{EMULATED}", ark = {ark}, ask = {ask} }}]
"#
        ));
    } else {
        text.push_str(
            r#"
# Roots besides AMD's whose reports are believed, as of an emulated processor: whoever has their keys can make any report.
# danger_extra_snp_roots = [{ name = "emulated", ark = "/var/lib/nacre/emulated/ark.der", ask = "/var/lib/nacre/emulated/ask.der" }]
"#,
        );
    }
    text.push_str(
        r#"
# Certificate chain and private key (PEM). This certificate is self-signed: clients get it as their CA.
[tls]
certificate = "tls.crt"
key = "tls.key"

# Secrets, encrypted under the key in key_file (64 hexadecimal digits). Keep that file apart from backups of the store.
[store]
directory = "store"
key_file = "store.key"

# Who got what, and why not. A new file begins when one has rotate_bytes.
[audit]
directory = "audit"
# rotate_bytes = 67108864
# Begin a new log although the store knows that there was one.
# danger_begin_anew = true

# Certificates of AMD's processors that evidence does not bring along are taken from `cache`; what is not there is asked for at
# `mirror`, which has the paths of https://kdsintf.amd.com. `mirror_ca` is the certificate that an https mirror is checked against.
# snp_crls are AMD's revocation lists (DER); with snp_crl_required, nothing is believed without a current one. Intel's collateral is
# read from `cache`, as tdx-FMSPC.json.
[collateral]
cache = "collateral"
# mirror = "http://kds-mirror.internal"
# mirror_ca = "mirror.crt"
# snp_crls = ["milan.crl", "genoa.crl", "turin.crl"]
# snp_crl_required = false

# Attestation tokens.
[token]
# lifetime_seconds = 300
# issuer = "nacre-kbs"

[limits]
# connections = 2048
# sessions = 20000
# session_seconds = 300
# Of one client: an IPv4 address, or 64 bits of an IPv6 address. Loopback is not counted.
# client_requests_per_second = 200
# client_burst = 2000
# attestation_bytes = 2097152
# For a request's headers, its body, and a TLS handshake.
# request_seconds = 15
"#,
    );
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::config::{Config, Limits};

    #[test]
    fn what_is_made_can_be_used_and_is_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kbs");
        let options = InitOptions {
            names: vec!["kbs.example".into(), "10.0.0.1".into()],
            ..InitOptions::default()
        };
        let made = init(&path, &options).unwrap();
        let config = Config::read(&made.config).unwrap();
        assert_eq!(config.listen, options.listen);
        assert_eq!(config.limits, Limits::default());
        assert_eq!(config.danger_extra_snp_roots, []);
        for secret in ["store.key", "admin.key", "tls.key"] {
            let mode = fs::metadata(path.join(secret)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{secret}");
        }
        let key = fs::read(path.join("store.key")).unwrap();
        assert!(matches!(init(&path, &options), Err(InitError::Exists(_))));
        assert_eq!(fs::read(path.join("store.key")).unwrap(), key);
    }

    /// The commented settings are real ones with their defaults.
    #[test]
    fn the_explained_settings_exist() {
        let text = explained(&InitOptions::default(), None);
        let uncommented: String = text
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(setting)
                    if setting.split_once(" = ").is_some_and(|(key, _)| {
                        key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
                    }) =>
                {
                    format!("{setting}\n")
                }
                _ => format!("{line}\n"),
            })
            .collect();
        let config: Config = toml::from_str(&uncommented).unwrap();
        assert!(config.danger_allow_http && config.collateral.mirror.is_some());
        assert_eq!(config.danger_extra_snp_roots.len(), 1);
        assert_eq!(config.limits, Limits::default());
        assert_eq!(config.token, crate::config::Token::default());
    }

    #[test]
    fn an_emulated_root_is_named_as_dangerous() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root \"x\"");
        fs::create_dir(&root).unwrap();
        let options = InitOptions { danger_emulated: Some(root.clone()), ..InitOptions::default() };
        let path = directory.path().join("kbs");
        assert!(matches!(init(&path, &options), Err(InitError::File { .. })));
        for name in ["ark.der", "ask.der"] {
            fs::write(root.join(name), "x").unwrap();
        }
        let made = init(&path, &options).unwrap();
        let config = Config::read(&made.config).unwrap();
        assert_eq!(config.danger_extra_snp_roots[0].name, EMULATED);
        assert!(config.danger_extra_snp_roots[0].ark.ends_with("root \"x\"/ark.der"));
    }

    #[test]
    fn names_that_are_none_are_refused() {
        for bad in ["", "a b", "a\nb", &"a".repeat(300)] {
            assert!(matches!(certificate(&[bad.to_owned()]), Err(InitError::Name(_))), "{bad:?}");
        }
    }
}
