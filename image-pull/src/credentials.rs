//! Credentials of registries, in the form that `docker login` keeps them (`config.json`; the same as
//! podman's `auth.json` and Kubernetes' `kubernetes.io/dockerconfigjson`).
//!
//! Only what the document itself holds is used: a credential helper is a program of somebody else's
//! machine, so a document that names one is refused by that name. Nothing here prints a secret.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use zeroize::{Zeroize, Zeroizing};

use crate::PullError;

/// Largest document, in bytes.
const MAX_DOCUMENT: usize = 1 << 20;
/// Most registries or paths in one document.
const MAX_ENTRIES: usize = 1000;
/// Longest user name, password or token, in bytes.
const MAX_SECRET: usize = 64 << 10;

/// Docker Hub's name in `config.json`, where the first version of its API was.
const DOCKER_HUB: [&str; 3] = ["index.docker.io", "registry-1.docker.io", "docker.io"];

/// Credentials by `host[:port][/path]`.
#[derive(Clone, Default)]
pub struct Credentials {
    entries: BTreeMap<String, Credential>,
}

/// What one registry, or one path in it, wants to know.
#[derive(Clone)]
pub(crate) enum Credential {
    /// For basic authentication, or to get a token.
    Password { user: String, password: Zeroizing<String> },
    /// A refresh token (OAuth 2.0), to get a token.
    Identity(Zeroizing<String>),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.entries.keys()).finish()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<Zeroizing<String>>,
    username: Option<String>,
    password: Option<Zeroizing<String>>,
    identitytoken: Option<Zeroizing<String>>,
    registrytoken: Option<Zeroizing<String>>,
}

impl Credentials {
    /// Reads docker's `config.json`: `{"auths": {"host": {"auth": "<base64 of user:password>"}}}`, or
    /// with `username` and `password`, or `identitytoken`. Keys are `host[:port]` or a path beneath.
    ///
    /// # Errors
    /// [`PullError::Config`] without any of the document's secrets.
    pub fn parse_docker_config(document: &[u8]) -> Result<Self, PullError> {
        if document.len() > MAX_DOCUMENT {
            return Err(bad(format!("are larger than {MAX_DOCUMENT} bytes")));
        }
        // The parser's message may quote the value that it did not like.
        let document: Document = serde_json::from_slice(document).map_err(|e| {
            bad(format!(
                "are not a docker config.json with \"auths\" (line {}, column {})",
                e.line(),
                e.column()
            ))
        })?;
        if let Some(store) = document.creds_store.filter(|store| !store.is_empty()) {
            return Err(helper("credsStore", &store));
        }
        if let Some((host, helper_name)) = document.cred_helpers.first_key_value() {
            return Err(helper(&format!("credHelpers for {}", shown(host)), helper_name));
        }
        if document.auths.len() > MAX_ENTRIES {
            return Err(bad(format!("name more than {MAX_ENTRIES} registries")));
        }
        let mut entries = BTreeMap::new();
        for (key, entry) in document.auths {
            let place = place(&key).ok_or_else(|| {
                bad(format!("have the key {}, which is no registry", shown(&key)))
            })?;
            let Some(credential) =
                entry.read().map_err(|problem| bad(format!("for {}: {problem}", shown(&key))))?
            else {
                continue;
            };
            if entries.insert(place, credential).is_some() {
                return Err(bad(format!("name {} twice in different forms", shown(&key))));
            }
        }
        Ok(Self { entries })
    }

    /// Adds what `other` has; where both know a place, `other` counts.
    pub fn merge(&mut self, other: Self) {
        self.entries.extend(other.entries);
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// User and password for a repository, for tools that push to it.
    #[must_use]
    pub fn password(&self, host: &str, path: &str) -> Option<(&str, &str)> {
        match self.find(host, path)? {
            Credential::Password { user, password } => Some((user, password)),
            Credential::Identity(_) => None,
        }
    }

    /// Those for a repository: the entry with the longest path counts.
    pub(crate) fn find(&self, host: &str, path: &str) -> Option<&Credential> {
        let host = canonical_host(host);
        let mut place = format!("{host}/{path}");
        loop {
            if let Some(found) = self.entries.get(&place) {
                return Some(found);
            }
            // The host itself is the last; a prefix ends where a component does.
            place.truncate(place.rfind('/')?);
        }
    }
}

impl Entry {
    /// Docker leaves empty entries behind; they say nothing.
    fn read(self) -> Result<Option<Credential>, &'static str> {
        if self.registrytoken.is_some_and(|token| !token.is_empty()) {
            return Err("registrytoken is not supported; use auth or identitytoken");
        }
        if let Some(token) = self.identitytoken.filter(|token| !token.is_empty()) {
            return match bounded(&token) {
                true => Ok(Some(Credential::Identity(token))),
                false => Err("identitytoken is too long or holds control characters"),
            };
        }
        let (user, password) = match (self.auth, self.username, self.password) {
            (Some(auth), _, _) if !auth.is_empty() => decode(&auth)?,
            (_, Some(user), Some(password)) if !user.is_empty() => (user, password),
            _ => return Ok(None),
        };
        if user.contains(':') || !bounded(&user) || !bounded(&password) {
            return Err("the user name or password is too long or holds characters it may not");
        }
        Ok(Some(Credential::Password { user, password }))
    }
}

/// Some tools leave the padding out.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

fn decode(auth: &str) -> Result<(String, Zeroizing<String>), &'static str> {
    const FORM: &str = "auth is not the base64 form of user:password";
    let bytes = Zeroizing::new(LENIENT.decode(auth.trim()).map_err(|_| FORM)?);
    let text = std::str::from_utf8(&bytes).map_err(|_| FORM)?;
    let (user, password) = text.split_once(':').ok_or(FORM)?;
    // Docker's own client pads with NUL.
    let password = password.trim_end_matches('\0');
    Ok((user.to_owned(), Zeroizing::new(password.to_owned())))
}

fn bounded(secret: &str) -> bool {
    secret.len() <= MAX_SECRET && !secret.contains(|c: char| c.is_control())
}

/// `host[:port][/path]` of a key, which may be a URL.
fn place(key: &str) -> Option<String> {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    let (host, path) = key.split_once('/').map_or((key, ""), |(host, path)| (host, path));
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '@' | '?' | '#' | '\\');
    if host.is_empty() || key.len() > 512 || !key.chars().all(plain) {
        return None;
    }
    let host = canonical_host(host);
    // `https://index.docker.io/v1/` is how docker names its hub: the version is no repository.
    Some(match path {
        "" | "v1" | "v2" => host.to_owned(),
        path => format!("{host}/{path}"),
    })
}

fn canonical_host(host: &str) -> &str {
    if DOCKER_HUB.contains(&host) { "docker.io" } else { host }
}

fn shown(text: &str) -> String {
    let text: String = text.chars().take(100).collect();
    format!("{text:?}")
}

fn helper(field: &str, name: &str) -> PullError {
    bad(format!(
        "name the credential helper {} ({field}), a program that is not here; put the credentials \
         themselves into \"auths\"",
        shown(name)
    ))
}

fn bad(problem: String) -> PullError {
    PullError::Config { field: "credentials", problem }
}

impl Credential {
    /// The value of a basic `Authorization` header.
    pub(crate) fn basic(&self) -> Option<Zeroizing<String>> {
        let Self::Password { user, password } = self else { return None };
        let mut pair = Zeroizing::new(String::with_capacity(user.len() + password.len() + 1));
        pair.push_str(user);
        pair.push(':');
        pair.push_str(password);
        let mut encoded = STANDARD.encode(pair.as_bytes());
        let header = Zeroizing::new(format!("Basic {encoded}"));
        encoded.zeroize();
        Some(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn user(credentials: &Credentials, host: &str, path: &str) -> String {
        match credentials.find(host, path) {
            Some(Credential::Password { user, password }) => format!("{user}:{}", **password),
            Some(Credential::Identity(token)) => format!("token {}", **token),
            None => "none".into(),
        }
    }

    fn problem(document: &str) -> String {
        Credentials::parse_docker_config(document.as_bytes()).expect_err(document).to_string()
    }

    #[test]
    fn the_longest_path_counts() {
        // YTpi is a:b; Yzpk is c:d; docker pads with NUL.
        let document = br#"{"auths":{
            "https://index.docker.io/v1/":{"auth":"YTpi"},
            "r.example":{"auth":"Yzpk"},
            "r.example/team":{"username":"team","password":"p:q"},
            "r.example/team/app":{"identitytoken":"xyz","auth":"PHRva2VuPjo="},
            "r.example:5000":{"auth":"YTpiAAA"},
            "empty.example":{}
        },"HttpHeaders":{}}"#;
        let credentials = Credentials::parse_docker_config(document).unwrap();
        for (host, path, is) in [
            ("docker.io", "library/busybox", "a:b"),
            ("registry-1.docker.io", "library/busybox", "a:b"),
            ("r.example", "other", "c:d"),
            ("r.example", "teams/app", "c:d"),
            ("r.example", "team", "team:p:q"),
            ("r.example", "team/other", "team:p:q"),
            ("r.example", "team/app", "token xyz"),
            ("r.example", "team/app/sub", "token xyz"),
            ("r.example", "team/apple", "team:p:q"),
            ("r.example:5000", "x", "a:b"),
            ("r.example:5001", "x", "none"),
            ("example", "x", "none"),
            ("empty.example", "x", "none"),
        ] {
            assert_eq!(user(&credentials, host, path), is, "{host}/{path}");
        }
        let mut merged = credentials.clone();
        merged.merge(
            Credentials::parse_docker_config(br#"{"auths":{"r.example":{"auth":"eDp5"}}}"#)
                .unwrap(),
        );
        assert_eq!(user(&merged, "r.example", "other"), "x:y");
        assert_eq!(user(&merged, "docker.io", "x"), "a:b");
        let header = merged.find("r.example", "x").and_then(Credential::basic).unwrap();
        assert_eq!(*header, "Basic eDp5");
    }

    #[test]
    fn nothing_prints_a_secret() {
        let credentials =
            Credentials::parse_docker_config(br#"{"auths":{"r.example":{"auth":"YTpi"}}}"#)
                .unwrap();
        assert_eq!(format!("{credentials:?}"), r#"{"r.example"}"#);
        for document in [
            r#"{"auths":{"r.example":{"auth":"sesame"}}}"#,
            r#"{"auths":{"r.example":{"auth":{"sesame":1}}}}"#,
            r#"{"auths":{"r.example":{"username":"a:b","password":"sesame"}}}"#,
            r#"{"auths":{"r.example":{"username":"a","password":"sesame\n"}}}"#,
            r#"{"auths":{"r.example":{"identitytoken":"sesame\n"}}}"#,
            r#"{"auths":{"r.example":"sesame"}}"#,
        ] {
            assert!(!problem(document).contains("sesame"), "{document}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (document, says) in [
            ("[]", "config.json"),
            (r#"{"credsStore":"desktop"}"#, "\"desktop\""),
            (r#"{"credHelpers":{"r.example":"ecr-login"}}"#, "\"ecr-login\""),
            (r#"{"auths":{"":{"auth":"YTpi"}}}"#, "no registry"),
            (r#"{"auths":{"a@b":{"auth":"YTpi"}}}"#, "no registry"),
            (r#"{"auths":{"a":{"auth":"YTpi"},"https://a/":{"auth":"YTpi"}}}"#, "twice"),
            (r#"{"auths":{"a":{"registrytoken":"x"}}}"#, "registrytoken"),
            (r#"{"auths":{"a":{"auth":"YQ=="}}}"#, "base64"),
        ] {
            let error = problem(document);
            assert!(error.contains("credentials") && error.contains(says), "{error}");
        }
        assert!(problem(&" ".repeat(MAX_DOCUMENT + 1)).contains("larger"));
        assert!(Credentials::parse_docker_config(b"{}").unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,200}", key in "\\PC{0,40}") {
            let _ = Credentials::parse_docker_config(text.as_bytes());
            let document = serde_json::json!({"auths": {key: {"auth": text}}}).to_string();
            if let Ok(credentials) = Credentials::parse_docker_config(document.as_bytes()) {
                let _ = credentials.find("host", "a/b");
            }
        }
    }
}
