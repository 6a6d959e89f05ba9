//! What the pod's owner says about images: `image.toml` in the initdata, or the table `[image]` of
//! `cdh.toml` as guests of Confidential Containers read it.
//!
//! ```toml
//! # Which images may run: another file of this initdata, or a resource of the key broker. Without this
//! # key the file image-policy.toml or image-policy.json of the initdata is the policy, if there is one.
//! policy = "kbs:///default/image/policy"
//! # Credentials of registries, as `docker login` keeps them (config.json): a resource of the key broker, or
//! # a sealed secret (`nacre seal`), which only the owner's guests can open.
//! credentials = "kbs:///default/image/credentials"
//! # Private keys of layers that were encrypted to public keys.
//! layer_keys = ["kbs:///default/image/layer-key"]
//! # The node's cache of blobs: "share" (ask it, and offer it what anybody could have), "use" (ask only), "off".
//! node_cache = "share"
//! # Seconds after which a pull is given up.
//! timeout_seconds = 1200
//! # A proxy for all registries but some.
//! proxy = "http://proxy.example:3128"
//! no_proxy = ["registry.example", ".svc"]
//! # Further certificate authorities of registries, in PEM.
//! ca = ""
//! # Registries that may be asked over plain HTTP: whoever is on the way can then answer in their place.
//! danger_plain_http = ["registry.example:5000"]
//! # Asked before the registry itself, in this order.
//! [mirrors]
//! "docker.io" = ["mirror.example"]
//! ```
//!
//! The initdata is vouched for by the hardware, so the host cannot change a word of it.

use std::collections::BTreeMap;
use std::time::Duration;

use nacre_protocol::initdata::{FileError, read_file};
use nacre_protocol::kbs::ResourceUri;
use nacre_protocol::sealed;
use serde::Deserialize;
use toml::Value;

/// Name of the native file.
pub const IMAGE_TOML: &str = "image.toml";
/// Names under which a policy is found that nothing names.
pub const IMAGE_POLICIES: [&str; 2] = ["image-policy.toml", "image-policy.json"];
/// Name of the file of other guests.
const CDH_TOML: &str = "cdh.toml";

/// Most entries of a list.
const MOST_ENTRIES: usize = 64;
/// Longest text of an entry, in bytes; certificates may have more.
const LONGEST_ENTRY: usize = 2048;
/// Longest certificates, in bytes of PEM.
const LONGEST_CA: usize = 256 << 10;
/// Longest time for a pull.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// Why the files cannot be used. Never with their contents.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// One of them is not as it should be.
    #[error(transparent)]
    File(#[from] FileError),
    /// Both files speak.
    #[error(
        "the pod's initdata has an {IMAGE_TOML} and a table [image] in {CDH_TOML}, which may contradict \
         each other: keep one of them"
    )]
    Both,
    /// Two policies and no word which.
    #[error(
        "the pod's initdata has an image-policy.toml and an image-policy.json: say by the key policy of \
         {IMAGE_TOML} which one counts, or remove one"
    )]
    TwoPolicies,
}

/// Where a document is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Here it is.
    Text(String),
    /// The key broker has it.
    Resource(ResourceUri),
}

/// Where credentials are. Never as they are: whoever runs the host reads the initdata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// The key broker has them.
    Resource(ResourceUri),
    /// A sealed secret.
    Sealed(String),
}

/// What may pass between the guest and the node's cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeCache {
    /// It is asked, and offered blobs that are no secret from the host.
    #[default]
    Share,
    /// It is asked only.
    Use,
    /// It is left alone.
    Off,
}

/// What the owner says about images.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// The image security policy.
    pub policy: Option<Source>,
    /// Credentials of registries, in the form of docker's `config.json`.
    pub credentials: Option<Login>,
    /// Private keys of encrypted layers.
    pub layer_keys: Vec<ResourceUri>,
    /// Use of the node's cache.
    pub node_cache: NodeCache,
    /// Time for one pull.
    pub timeout: Option<Duration>,
    /// URL of a proxy, which may carry a name and a password.
    pub proxy: Option<String>,
    /// Hosts that are asked without it.
    pub no_proxy: Vec<String>,
    /// Further authorities, in PEM.
    pub ca: Vec<String>,
    /// Registries over plain HTTP.
    pub danger_plain_http: Vec<String>,
    /// Mirrors by registry.
    pub mirrors: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ImageToml {
    policy: Option<String>,
    credentials: Option<String>,
    #[serde(default)]
    layer_keys: Vec<String>,
    #[serde(default)]
    node_cache: NodeCache,
    timeout_seconds: Option<u64>,
    proxy: Option<String>,
    #[serde(default)]
    no_proxy: Vec<String>,
    ca: Option<String>,
    #[serde(default)]
    danger_plain_http: Vec<String>,
    #[serde(default)]
    mirrors: BTreeMap<String, Vec<String>>,
}

/// The file belongs to other programs, too.
#[derive(Deserialize)]
struct CdhToml {
    image: Option<CdhImage>,
}

#[derive(Deserialize)]
struct CdhImage {
    image_security_policy: Option<String>,
    image_security_policy_uri: Option<String>,
    authenticated_registry_credentials_uri: Option<String>,
    image_pull_proxy: Option<CdhProxy>,
    #[serde(default)]
    extra_root_certificates: Vec<String>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct CdhProxy {
    https_proxy: Option<String>,
    http_proxy: Option<String>,
    no_proxy: Option<String>,
}

/// What `[image]` may hold that decides which images run, and this guest does not read: leaving it out
/// silently would be another decision than the owner's.
const CDH_NOT_READ: [&str; 4] =
    ["sigstore_config", "sigstore_config_uri", "registry_config", "registry_configuration_uri"];

impl Settings {
    /// Reads the files of an initdata document. Without any, images come from public registries over https
    /// and no policy judges them.
    ///
    /// # Errors
    /// The first thing that cannot be used.
    pub fn read(files: &BTreeMap<String, String>) -> Result<Self, SettingsError> {
        let cdh =
            files.get(CDH_TOML).map(|text| read_file::<CdhToml>(CDH_TOML, text)).transpose()?;
        let mut settings = match (files.get(IMAGE_TOML), cdh.and_then(|cdh| cdh.image)) {
            (Some(_), Some(_)) => return Err(SettingsError::Both),
            (Some(text), None) => read_file::<ImageToml>(IMAGE_TOML, text)?.check(files)?,
            (None, Some(image)) => image.check()?,
            (None, None) => Self::default(),
        };
        if settings.policy.is_none() {
            let mut found = IMAGE_POLICIES.iter().filter_map(|name| files.get(*name));
            settings.policy = found.next().cloned().map(Source::Text);
            if found.next().is_some() {
                return Err(SettingsError::TwoPolicies);
            }
        }
        Ok(settings)
    }
}

impl ImageToml {
    fn check(self, files: &BTreeMap<String, String>) -> Result<Settings, SettingsError> {
        let policy = self.policy.map(|policy| match files.get(&policy) {
            Some(text) => Ok(Source::Text(text.clone())),
            None if policy.starts_with("kbs") => uri("policy", &policy).map(Source::Resource),
            None => {
                Err(value("policy", "must be kbs:///... or the name of a file of the initdata"))
            }
        });
        let timeout = self.timeout_seconds.map(Duration::from_secs);
        if timeout.is_some_and(|timeout| timeout.is_zero() || timeout > LONGEST_TIMEOUT) {
            return Err(value("timeout_seconds", "must be 1 second to 24 hours"));
        }
        let layer_keys = self.layer_keys.iter().map(|key| uri("layer_keys", key));
        let settings = Settings {
            policy: policy.transpose()?,
            credentials: self.credentials.map(login).transpose()?,
            layer_keys: layer_keys.collect::<Result<_, _>>()?,
            node_cache: self.node_cache,
            timeout,
            proxy: self.proxy,
            no_proxy: self.no_proxy,
            ca: self.ca.into_iter().filter(|ca| !ca.is_empty()).collect(),
            danger_plain_http: self.danger_plain_http,
            mirrors: self.mirrors,
        };
        settings.bounded(IMAGE_TOML)
    }
}

impl CdhImage {
    fn check(self) -> Result<Settings, SettingsError> {
        let value = |key: &str, problem: &str| {
            SettingsError::from(FileError::value(CDH_TOML, &format!("image.{key}"), problem))
        };
        let resource = |key: &str, text: &str| {
            text.parse::<ResourceUri>().map_err(|error| value(key, &error.to_string()))
        };
        for key in CDH_NOT_READ {
            if self.rest.contains_key(key) {
                let problem = format!("is not read by this guest: use {IMAGE_TOML} instead");
                return Err(value(key, &problem));
            }
        }
        let key = "image_security_policy_uri";
        let policy = match (self.image_security_policy, self.image_security_policy_uri) {
            (Some(_), Some(_)) => return Err(value(key, "and image_security_policy: keep one")),
            (Some(text), None) => Some(Source::Text(text)),
            (None, uri) => {
                let uri = uri.filter(|uri| !uri.is_empty());
                uri.map(|uri| resource(key, &uri)).transpose()?.map(Source::Resource)
            }
        };
        let key = "authenticated_registry_credentials_uri";
        let credentials = self.authenticated_registry_credentials_uri;
        let credentials = credentials.filter(|uri| !uri.is_empty());
        let proxy = self.image_pull_proxy;
        let no_proxy = proxy.as_ref().and_then(|proxy| proxy.no_proxy.clone()).unwrap_or_default();
        let no_proxy = no_proxy.split(',').map(str::trim).filter(|host| !host.is_empty());
        let settings = Settings {
            policy,
            credentials: credentials
                .map(|uri| resource(key, &uri))
                .transpose()?
                .map(Login::Resource),
            no_proxy: no_proxy.map(str::to_owned).collect(),
            proxy: proxy.and_then(|proxy| proxy.https_proxy.or(proxy.http_proxy)),
            ca: self.extra_root_certificates,
            ..Settings::default()
        };
        settings.bounded(CDH_TOML)
    }
}

impl Settings {
    fn bounded(self, file: &'static str) -> Result<Self, SettingsError> {
        let too_much =
            |key: &str, problem: String| Err(FileError::value(file, key, problem).into());
        let mirrors: Vec<&String> = self.mirrors.values().flatten().collect();
        for (key, count) in [
            ("layer_keys", self.layer_keys.len()),
            ("no_proxy", self.no_proxy.len()),
            ("danger_plain_http", self.danger_plain_http.len()),
            ("mirrors", mirrors.len().max(self.mirrors.len())),
            ("ca", self.ca.len()),
        ] {
            if count > MOST_ENTRIES {
                return too_much(key, format!("has more than {MOST_ENTRIES} entries"));
            }
        }
        let texts = (self.no_proxy.iter().map(|text| ("no_proxy", text)))
            .chain(self.proxy.iter().map(|text| ("proxy", text)))
            .chain(self.danger_plain_http.iter().map(|text| ("danger_plain_http", text)))
            .chain(self.mirrors.keys().map(|text| ("mirrors", text)))
            .chain(mirrors.into_iter().map(|text| ("mirrors", text)));
        for (key, text) in texts {
            if text.is_empty() || text.len() > LONGEST_ENTRY {
                return too_much(
                    key,
                    format!("has an entry of 0 or more than {LONGEST_ENTRY} bytes"),
                );
            }
        }
        if self.ca.iter().map(String::len).sum::<usize>() > LONGEST_CA {
            return too_much("ca", format!("has more than {LONGEST_CA} bytes"));
        }
        Ok(self)
    }
}

fn login(text: String) -> Result<Login, SettingsError> {
    if text.starts_with(sealed::PREFIX) {
        return Ok(Login::Sealed(text));
    }
    uri("credentials", &text).map(Login::Resource)
}

fn uri(key: &str, text: &str) -> Result<ResourceUri, SettingsError> {
    text.parse().map_err(|error: nacre_protocol::kbs::UriError| value(key, error.to_string()))
}

fn value(key: &str, problem: impl Into<String>) -> SettingsError {
    FileError::value(IMAGE_TOML, key, problem).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &[(&str, &str)]) -> Result<Settings, String> {
        let files = files.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect();
        Settings::read(&files).map_err(|error| error.to_string())
    }

    #[test]
    fn the_example_is_read() {
        let source = include_str!("settings.rs");
        let example =
            source.split("//! ```toml\n").nth(1).unwrap().split("//! ```\n").next().unwrap();
        let example: String = example
            .lines()
            .map(|line| format!("{}\n", line.trim_start_matches("//!").trim()))
            .collect();
        let settings = read(&[(IMAGE_TOML, &example)]).unwrap();
        let policy = "kbs:///default/image/policy".parse().unwrap();
        assert_eq!(settings.policy, Some(Source::Resource(policy)));
        assert_eq!(settings.mirrors["docker.io"], ["mirror.example"]);
        assert_eq!(settings.timeout, Some(Duration::from_secs(1200)));
        assert_eq!((settings.node_cache, settings.ca.len()), (NodeCache::Share, 0));
    }

    #[test]
    fn a_policy_is_found_where_it_is_named_or_by_its_own_name() {
        let text = |text: &str| Some(Source::Text(text.to_owned()));
        assert_eq!(read(&[]).unwrap(), Settings::default());
        assert_eq!(read(&[("image-policy.json", "J")]).unwrap().policy, text("J"));
        let files = [(IMAGE_TOML, "policy = \"mine\""), ("mine", "M"), ("image-policy.json", "J")];
        assert_eq!(read(&files).unwrap().policy, text("M"));
        let sealed = read(&[(IMAGE_TOML, "credentials = \"sealed.a.b.c\"")]).unwrap().credentials;
        assert_eq!(sealed, Some(Login::Sealed("sealed.a.b.c".into())));
        let two = [("image-policy.json", "J"), ("image-policy.toml", "T")];
        assert!(read(&two).unwrap_err().contains("which one counts"));
    }

    #[test]
    fn the_file_of_other_guests_is_read() {
        let cdh = r#"
            socket = "unix:///x"
            [image]
            max_concurrent_layer_downloads_per_image = 3
            image_security_policy_uri = "kbs:///default/security-policy/test"
            authenticated_registry_credentials_uri = "kbs:///default/credential/test"
            extra_root_certificates = ["PEM"]
            image_pull_proxy = { https_proxy = "http://p:1", no_proxy = "a, .b" }
        "#;
        let settings = read(&[("cdh.toml", cdh)]).unwrap();
        let policy = "kbs:///default/security-policy/test".parse().unwrap();
        assert_eq!(settings.policy, Some(Source::Resource(policy)));
        let login = Login::Resource("kbs:///default/credential/test".parse().unwrap());
        assert_eq!(settings.credentials, Some(login));
        assert_eq!(settings.proxy.as_deref(), Some("http://p:1"));
        assert_eq!(
            (settings.no_proxy, settings.ca),
            (vec!["a".into(), ".b".into()], vec!["PEM".into()])
        );
        assert_eq!(read(&[("cdh.toml", "[kbc]\nname = \"x\"")]).unwrap(), Settings::default());
        assert!(read(&[("cdh.toml", cdh), (IMAGE_TOML, "")]).unwrap_err().contains("contradict"));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let many = format!("no_proxy = [{}]", "\"a\",".repeat(MOST_ENTRIES + 1));
        for (text, word) in [
            ("polcy = \"x\"", "line 1: unknown field `polcy`"),
            ("\npolicy = 7", "line 2"),
            ("policy = \"absent.toml\"", "policy must be kbs:///"),
            ("credentials = \"/etc/x\"", "credentials a resource's URI begins"),
            ("layer_keys = [\"kbs:///a\"]", "layer_keys"),
            ("timeout_seconds = 0", "timeout_seconds"),
            ("node_cache = \"maybe\"", "line 1"),
            ("mirrors.\"a\" = [\"\"]", "mirrors"),
            (&many, "no_proxy has more"),
            (&format!("ca = \"{}\"", "x".repeat(LONGEST_CA + 1)), "ca has more"),
        ] {
            let error = read(&[(IMAGE_TOML, text)]).unwrap_err();
            assert!(error.starts_with(IMAGE_TOML) && error.contains(word), "{word}: {error}");
        }
        for key in CDH_NOT_READ {
            let error = read(&[("cdh.toml", &format!("[image]\n{key} = \"x\""))]).unwrap_err();
            assert!(error.contains(key) && error.contains(IMAGE_TOML), "{error}");
        }
    }
}
