//! What a pod's initdata says about its key broker: the files `aa.toml` and `cdh.toml`, as guests of
//! Confidential Containers read them.
//!
//! Keys that this guest has no use for are left alone: the files are shared with other guests. What it
//! does use must be sound, or the guest does not start.

use std::collections::{BTreeMap, BTreeSet};

use nacre_protocol::initdata::{FileError, Initdata, read_file};
use nacre_protocol::kbs::ResourceUri;
use serde::Deserialize;
use toml::Value;

/// Name of the attestation agent's file.
const AA: &str = "aa.toml";
/// Name of the data hub's file.
const CDH: &str = "cdh.toml";
/// The only kind of client.
const KBC: &str = "cc_kbc";
/// Where credentials appear in containers.
pub(crate) const CREDENTIALS: &str = "/run/confidential-containers/";

/// Longest address, in bytes.
const LONGEST_URL: usize = 2048;
/// Longest certificates, in bytes of PEM.
const LONGEST_CERTIFICATE: usize = 64 * 1024;
/// Most credentials.
const MOST_CREDENTIALS: usize = 64;
/// Longest path of a credential, in bytes.
const LONGEST_PATH: usize = 512;

/// Why the files cannot be used. Never with their contents.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConfigError {
    /// One of them is not as it should be.
    #[error(transparent)]
    File(#[from] FileError),
    /// The files name two brokers.
    #[error(
        "aa.toml and cdh.toml in the pod's initdata name different {0}: this guest talks to one key broker"
    )]
    TwoBrokers(&'static str),
}

/// The broker that the owner names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BrokerConfig {
    /// Where it is.
    pub(crate) url: String,
    /// Its certificate or its authority's, in PEM.
    pub(crate) certificate: Option<String>,
}

/// A resource that containers find as a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credential {
    /// Where: beneath [`CREDENTIALS`].
    pub(crate) path: String,
    /// What.
    pub(crate) resource: ResourceUri,
}

/// What the files say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SecretsConfig {
    /// The broker, if one is named.
    pub(crate) broker: Option<BrokerConfig>,
    /// Files for containers.
    pub(crate) credentials: Vec<Credential>,
}

type Rest = BTreeMap<String, Value>;

#[derive(Default, Deserialize)]
struct Aa {
    token_configs: Option<TokenConfigs>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Deserialize)]
struct TokenConfigs {
    kbs: Option<TokenKbs>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Deserialize)]
struct TokenKbs {
    url: String,
    cert: Option<String>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Default, Deserialize)]
struct Cdh {
    kbc: Option<Kbc>,
    #[serde(default)]
    credentials: Vec<FileCredential>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Deserialize)]
struct Kbc {
    name: String,
    url: Option<String>,
    kbs_cert: Option<String>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Deserialize)]
struct FileCredential {
    path: String,
    resource_uri: String,
}

impl SecretsConfig {
    /// Reads the files of a pod's initdata; without them there is no broker.
    pub(crate) fn read(initdata: Option<&Initdata>) -> Result<Self, ConfigError> {
        let Some(initdata) = initdata else { return Ok(Self::default()) };
        let file = |name: &str| initdata.files().get(name).map(String::as_str);
        let aa: Aa = file(AA).map(|text| read_file(AA, text)).transpose()?.unwrap_or_default();
        let cdh: Cdh = file(CDH).map(|text| read_file(CDH, text)).transpose()?.unwrap_or_default();
        say_unused(AA, "", &aa.rest);
        say_unused(CDH, "", &cdh.rest);
        let of_aa = aa.token_configs.map(broker_of_aa).transpose()?.flatten();
        let of_cdh = cdh.kbc.map(broker_of_cdh).transpose()?;
        let broker = one_broker(of_aa, of_cdh)?;
        let credentials = credentials(cdh.credentials)?;
        if broker.is_none() && !credentials.is_empty() {
            let problem = "need a key broker: add [kbc] with name = \"cc_kbc\" and url";
            return Err(value(CDH, "credentials", problem));
        }
        Ok(Self { broker, credentials })
    }
}

/// These files belong to other programs, too: what they know beyond this guest is no mistake.
fn say_unused(file: &str, table: &str, rest: &Rest) {
    for key in rest.keys() {
        let key: String = key.chars().filter(|c| !c.is_control()).take(64).collect();
        tracing::info!("{file} of the pod's initdata: {table}{key} is not used by this guest");
    }
}

fn broker_of_aa(configs: TokenConfigs) -> Result<Option<BrokerConfig>, ConfigError> {
    say_unused(AA, "token_configs.", &configs.rest);
    let Some(kbs) = configs.kbs else { return Ok(None) };
    say_unused(AA, "token_configs.kbs.", &kbs.rest);
    broker(AA, "token_configs.kbs.url", kbs.url, "token_configs.kbs.cert", kbs.cert).map(Some)
}

fn broker_of_cdh(kbc: Kbc) -> Result<BrokerConfig, ConfigError> {
    say_unused(CDH, "kbc.", &kbc.rest);
    if kbc.name != KBC {
        let problem = format!("must be \"{KBC}\": this guest has no other kind of client");
        return Err(value(CDH, "kbc.name", problem));
    }
    let url = kbc.url.ok_or_else(|| value(CDH, "kbc.url", "is needed"))?;
    broker(CDH, "kbc.url", url, "kbc.kbs_cert", kbc.kbs_cert)
}

fn broker(
    file: &'static str,
    url_key: &str,
    url: String,
    certificate_key: &str,
    certificate: Option<String>,
) -> Result<BrokerConfig, ConfigError> {
    if url.is_empty() || url.len() > LONGEST_URL {
        return Err(value(file, url_key, format!("must have 1 to {LONGEST_URL} bytes")));
    }
    let certificate = certificate.filter(|pem| !pem.trim().is_empty());
    if certificate.as_ref().is_some_and(|pem| pem.len() > LONGEST_CERTIFICATE) {
        let problem = format!("has more than {LONGEST_CERTIFICATE} bytes");
        return Err(value(file, certificate_key, problem));
    }
    Ok(BrokerConfig { url, certificate })
}

/// Both files name it, for the two programs that other guests have. A certificate may stand in one only.
fn one_broker(
    left: Option<BrokerConfig>,
    right: Option<BrokerConfig>,
) -> Result<Option<BrokerConfig>, ConfigError> {
    let (left, right) = match (left, right) {
        (Some(left), Some(right)) => (left, right),
        (one, other) => return Ok(one.or(other)),
    };
    if left.url.trim_end_matches('/') != right.url.trim_end_matches('/') {
        return Err(ConfigError::TwoBrokers("addresses"));
    }
    let certificate = match (left.certificate, right.certificate) {
        (Some(left), Some(right)) if left.trim() != right.trim() => {
            return Err(ConfigError::TwoBrokers("certificates"));
        }
        (left, right) => left.or(right),
    };
    Ok(Some(BrokerConfig { url: left.url, certificate }))
}

fn credentials(listed: Vec<FileCredential>) -> Result<Vec<Credential>, ConfigError> {
    if listed.len() > MOST_CREDENTIALS {
        return Err(value(CDH, "credentials", format!("has more than {MOST_CREDENTIALS} entries")));
    }
    let mut seen = BTreeSet::new();
    let each = listed.into_iter().enumerate().map(|(index, credential)| {
        let key = |name: &str| format!("credentials[{index}].{name}");
        let FileCredential { path, resource_uri } = credential;
        if !is_credential_path(&path) || !seen.insert(path.clone()) {
            let problem = format!(
                "must be the path of one file beneath {CREDENTIALS}, without \"..\", and of no other \
                 credential"
            );
            return Err(value(CDH, &key("path"), problem));
        }
        let resource = resource_uri
            .parse::<ResourceUri>()
            .map_err(|error| value(CDH, &key("resource_uri"), error.to_string()))?;
        Ok(Credential { path, resource })
    });
    each.collect()
}

fn is_credential_path(path: &str) -> bool {
    let Some(beneath) = path.strip_prefix(CREDENTIALS) else { return false };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    path.len() <= LONGEST_PATH
        && beneath.chars().all(plain)
        && beneath.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

fn value(file: &'static str, key: &str, problem: impl Into<String>) -> ConfigError {
    FileError::value(file, key, problem).into()
}

#[cfg(test)]
mod tests {
    use nacre_protocol::initdata::Algorithm;

    use super::*;

    fn read(files: &[(&str, &str)]) -> Result<SecretsConfig, String> {
        let files = files.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect();
        let initdata = Initdata::new(Algorithm::Sha256, files).unwrap();
        SecretsConfig::read(Some(&initdata)).map_err(|error| error.to_string())
    }

    const AA_TOML: &str =
        "[token_configs]\n[token_configs.kbs]\nurl = \"https://b:8080\"\ncert = '''\nPEM\n'''\n";

    /// As other guests' examples have it.
    const CDH_TOML: &str = r#"
        socket = "unix:///run/confidential-containers/cdh.sock"
        [kbc]
        name = "cc_kbc"
        url = "https://b:8080/"
        kbs_cert = """
PEM
"""
        [[credentials]]
        path = "/run/confidential-containers/cdh/kbs/test/file"
        resource_uri = "kbs:///default/test/file"
        [image]
        max_concurrent_layer_downloads_per_image = 3
        [log]
        level = "info"
    "#;

    #[test]
    fn the_files_of_other_guests_are_read() {
        let config = read(&[("aa.toml", AA_TOML), ("cdh.toml", CDH_TOML)]).unwrap();
        let broker = config.broker.unwrap();
        assert_eq!(broker.url, "https://b:8080");
        assert_eq!(broker.certificate.as_deref().map(str::trim), Some("PEM"));
        let path = "/run/confidential-containers/cdh/kbs/test/file".into();
        let resource = "kbs:///default/test/file".parse().unwrap();
        assert_eq!(config.credentials, [Credential { path, resource }]);
        for files in [&[("aa.toml", AA_TOML)], &[("cdh.toml", CDH_TOML)]] {
            assert!(read(files).unwrap().broker.unwrap().certificate.is_some());
        }
        assert_eq!(read(&[]).unwrap(), SecretsConfig::default());
        assert_eq!(SecretsConfig::read(None).unwrap(), SecretsConfig::default());
        assert_eq!(read(&[("aa.toml", "[log]\nlevel = \"info\"")]).unwrap().broker, None);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let kbc = |rest: &str| format!("[kbc]\nname = \"cc_kbc\"\nurl = \"http://b\"\n{rest}");
        let credential = |path: &str, uri: &str| {
            kbc(&format!("[[credentials]]\npath = \"{path}\"\nresource_uri = \"{uri}\""))
        };
        let uri = "kbs:///a/b/c";
        let place = "/run/confidential-containers/cdh/kbs";
        let twice = format!(
            "{}\n[[credentials]]\npath = \"{place}/x\"\nresource_uri = \"{uri}\"",
            credential(&format!("{place}/x"), uri)
        );
        for (cdh, word) in [
            ("[kbc", "line 1"),
            ("[kbc]\nname = 7", "line 2"),
            ("[kbc]\nname = \"offline_fs_kbc\"", "kbc.name must be \"cc_kbc\""),
            ("[kbc]\nname = \"cc_kbc\"", "kbc.url is needed"),
            ("[kbc]\nname = \"cc_kbc\"\nurl = \"\"", "kbc.url must have"),
            (
                "[[credentials]]\npath = \"/run/confidential-containers/x\"\nresource_uri = \"kbs:///a/b/c\"",
                "need a key broker",
            ),
            (&credential("/etc/passwd", uri), "credentials[0].path"),
            (&credential(&format!("{place}/../../../etc/x"), uri), "credentials[0].path"),
            (&credential(&format!("{place}/"), uri), "credentials[0].path"),
            (&credential(place, "a/b/c"), "credentials[0].resource_uri"),
            (&twice, "credentials[1].path"),
            (
                &kbc(&format!("kbs_cert = \"{}\"", "x".repeat(LONGEST_CERTIFICATE + 1))),
                "kbs_cert has more",
            ),
        ] {
            let error = read(&[("cdh.toml", cdh)]).unwrap_err();
            assert!(error.starts_with("cdh.toml") && error.contains(word), "{word}: {error}");
        }
        let other = AA_TOML.replace("b:8080", "c:8080");
        let error = read(&[("aa.toml", &other), ("cdh.toml", CDH_TOML)]).unwrap_err();
        assert!(error.contains("different addresses"), "{error}");
        let other = AA_TOML.replace("PEM", "MEP");
        let error = read(&[("aa.toml", &other), ("cdh.toml", CDH_TOML)]).unwrap_err();
        assert!(error.contains("different certificates"), "{error}");
    }
}
