//! containers-policy.json(5): transports, scopes, requirements.
//!
//! Read as strictly as the original reads it; the differences are told at [`crate::ImagePolicy`].

use std::collections::BTreeMap;

use nacre_trust::Digest;
use serde::Deserialize;
use serde_json::Value;

use super::material::Material;
use super::requirement::{NamePattern, Requirement, RootMaterial, Rule, Signer};
use super::{PolicyError, REQUIREMENTS_LIMIT, SCOPES_LIMIT, Selected};
use crate::Subject;
use crate::identity::Identity;
use crate::reference::{Reference, Version};

/// A `policy.json`.
#[derive(Debug)]
pub(crate) struct Containers {
    default: Rule,
    docker: BTreeMap<String, Rule>,
    lookaside: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    default: Vec<Value>,
    #[serde(default)]
    transports: BTreeMap<String, BTreeMap<String, Vec<Value>>>,
    #[serde(default)]
    lookaside: BTreeMap<String, String>,
}

impl Containers {
    pub(super) fn parse(document: Value) -> Result<Self, PolicyError> {
        let document: Document =
            serde_json::from_value(document).map_err(|e| PolicyError::Form(e.to_string()))?;
        let scopes: usize = document.transports.values().map(BTreeMap::len).sum();
        if scopes > SCOPES_LIMIT {
            return Err(PolicyError::TooMany("scopes", SCOPES_LIMIT));
        }
        let default = rule("the policy's default", document.default)?;
        let mut docker = BTreeMap::new();
        for (transport, scopes) in document.transports {
            for (scope, requirements) in scopes {
                let name = if scope.is_empty() {
                    format!("the default of transport {transport}")
                } else {
                    format!("scope {scope}")
                };
                let rule = rule(&name, requirements)?;
                if transport == "docker" {
                    check_scope(&scope)
                        .map_err(|problem| PolicyError::Rule { rule: name, problem })?;
                    docker.insert(scope, rule);
                }
            }
        }
        for (prefix, url) in &document.lookaside {
            super::check_url(url).map_err(|problem| PolicyError::Rule {
                rule: format!("lookaside {prefix}"),
                problem,
            })?;
        }
        Ok(Self { default, docker, lookaside: document.lookaside })
    }

    /// The rule of the most specific scope.
    pub(super) fn select(&self, subject: &Subject) -> Selected<'_> {
        let scopes = scopes_of(subject);
        let rule = scopes
            .iter()
            .find_map(|scope| self.docker.get(scope))
            .or_else(|| self.docker.get(""))
            .unwrap_or(&self.default);
        let lookaside =
            scopes.iter().map(String::as_str).chain([""]).find_map(|s| self.lookaside.get(s));
        Selected { rule, lookaside: lookaside.map(String::as_str) }
    }
}

/// Scopes that an image is in, the most specific first: itself, its repository, namespaces, host,
/// domains.
fn scopes_of(subject: &Subject) -> Vec<String> {
    let reference = Reference::of(subject);
    let mut scopes = vec![reference.to_string()];
    if reference.version == Version::Unnamed {
        scopes.clear();
    }
    let mut name = reference.repository.as_str();
    scopes.push(name.to_owned());
    while let Some((parent, _)) = name.rsplit_once('/') {
        scopes.push(parent.to_owned());
        name = parent;
    }
    let mut domain = name.split(':').next().unwrap_or_default();
    while let Some((_, parent)) = domain.split_once('.') {
        scopes.push(format!("*.{parent}"));
        domain = parent;
    }
    scopes
}

/// A scope that cannot match anything is a mistake, and if it rejects, a dangerous one.
fn check_scope(scope: &str) -> Result<(), String> {
    let name = scope.strip_prefix("*.").unwrap_or(scope);
    let wildcard = name.len() != scope.len();
    if name.contains('*') || wildcard && (name.is_empty() || name.contains(['/', ':', '@'])) {
        return Err("a wildcard is '*.' in front of a whole domain, and nowhere else".into());
    }
    if scope.contains("://") || scope.starts_with('/') || scope.ends_with('/') {
        return Err("a scope is host[:port][/path][:tag or @digest], without a scheme".into());
    }
    if let Some((_, digest)) = scope.split_once('@') {
        digest.parse::<Digest>().map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn rule(name: &str, requirements: Vec<Value>) -> Result<Rule, PolicyError> {
    let problem = |problem: String| PolicyError::Rule { rule: name.to_owned(), problem };
    if requirements.is_empty() {
        return Err(problem("has no requirements; say reject or insecureAcceptAnything".into()));
    }
    if requirements.len() > REQUIREMENTS_LIMIT {
        return Err(PolicyError::TooMany("requirements of a rule", REQUIREMENTS_LIMIT));
    }
    let mut clauses = Vec::new();
    for one in requirements {
        clauses.push(vec![requirement(one).map_err(problem)?]);
    }
    Ok(Rule { name: name.to_owned(), clauses, lookaside: None })
}

fn requirement(value: Value) -> Result<Requirement, String> {
    let Value::Object(mut members) = value else {
        return Err("a requirement is an object".into());
    };
    let kind = members.remove("type");
    let kind = kind.as_ref().and_then(Value::as_str).ok_or("a requirement has a type")?;
    let rest = Value::Object(members);
    match kind {
        "insecureAcceptAnything" => fields::<Nothing>(rest).map(|_| Requirement::Anything),
        "reject" => fields::<Nothing>(rest).map(|_| Requirement::Nothing),
        "signedBy" => signed_by(fields(rest)?),
        "sigstoreSigned" => sigstore_signed(fields(rest)?),
        other => Err(format!("the requirement type {other:?} is not known")),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

fn fields<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct SignedBy {
    key_type: String,
    key_path: Option<String>,
    key_paths: Option<Vec<String>>,
    key_data: Option<String>,
    signed_identity: Option<Value>,
}

fn signed_by(fields: SignedBy) -> Result<Requirement, String> {
    if fields.key_type != "GPGKeys" {
        return Err(format!("the keyType {:?} is not known; it is GPGKeys", fields.key_type));
    }
    let identity = signed_identity(fields.signed_identity)?;
    let SignedBy { key_path: path, key_paths: paths, key_data: data, .. } = fields;
    let files = Files { path, paths, data, datas: None };
    let keyrings = files.one_of("key")?.ok_or("give one of keyPath, keyPaths, keyData")?;
    let by = Signer::Gpg { keyrings };
    by.check()?;
    Ok(Requirement::Signed { by, identity })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct SigstoreSigned {
    key_path: Option<String>,
    key_paths: Option<Vec<String>>,
    key_data: Option<String>,
    key_datas: Option<Vec<String>>,
    rekor_public_key_path: Option<String>,
    rekor_public_key_paths: Option<Vec<String>>,
    rekor_public_key_data: Option<String>,
    rekor_public_key_datas: Option<Vec<String>>,
    fulcio: Option<Fulcio>,
    pki: Option<Value>,
    signed_identity: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fulcio {
    #[serde(rename = "caPath")]
    ca_path: Option<String>,
    #[serde(rename = "caData")]
    ca_data: Option<String>,
    #[serde(rename = "oidcIssuer")]
    issuer: String,
    #[serde(rename = "subjectEmail")]
    email: String,
}

/// `pki` (certificates of one's own authority, checked at the present time) needs a clock that the
/// host cannot set; a guest has none. The log of `fulcio` brings its own time.
fn sigstore_signed(fields: SigstoreSigned) -> Result<Requirement, String> {
    let identity = signed_identity(fields.signed_identity)?;
    let logs = Files {
        path: fields.rekor_public_key_path,
        paths: fields.rekor_public_key_paths,
        data: fields.rekor_public_key_data,
        datas: fields.rekor_public_key_datas,
    };
    let keys = Files {
        path: fields.key_path,
        paths: fields.key_paths,
        data: fields.key_data,
        datas: fields.key_datas,
    };
    let logs = logs.one_of("rekorPublicKey")?.unwrap_or_default();
    let by = match (keys.one_of("key")?, fields.fulcio, fields.pki) {
        (Some(keys), None, None) => Signer::Keys { keys, logs },
        (None, Some(fulcio), None) => certified(fulcio, logs)?,
        (None, None, Some(_)) => {
            return Err("pki is not supported: it needs a clock that the host cannot set; use \
                        keys, or fulcio"
                .into());
        }
        _ => return Err("give one of keyPath, keyPaths, keyData, keyDatas, fulcio".into()),
    };
    by.check()?;
    Ok(Requirement::Signed { by, identity })
}

fn certified(fulcio: Fulcio, logs: Vec<Material>) -> Result<Signer, String> {
    if logs.is_empty() {
        return Err(
            "fulcio needs a rekorPublicKey: the log tells when the signature was made".into()
        );
    }
    if fulcio.issuer.is_empty() || fulcio.email.is_empty() {
        return Err("fulcio: oidcIssuer and subjectEmail must not be empty".into());
    }
    let certificates = match (fulcio.ca_path, fulcio.ca_data) {
        (Some(path), None) => Material::path(&path)?,
        (None, Some(data)) => Material::base64(&data)?,
        _ => return Err("fulcio: give one of caPath and caData".into()),
    };
    let root = RootMaterial::Authority { certificates, logs };
    Ok(Signer::Certified { root, issuer: fulcio.issuer, name: NamePattern::Email(fulcio.email) })
}

/// The four ways to name key files, of which one may be used.
struct Files {
    path: Option<String>,
    paths: Option<Vec<String>>,
    data: Option<String>,
    datas: Option<Vec<String>>,
}

impl Files {
    fn one_of(self, name: &str) -> Result<Option<Vec<Material>>, String> {
        let list: Vec<Material> = match (self.path, self.paths, self.data, self.datas) {
            (None, None, None, None) => return Ok(None),
            (Some(path), None, None, None) => vec![Material::path(&path)?],
            (None, Some(paths), None, None) => {
                paths.iter().map(|path| Material::path(path)).collect::<Result<_, _>>()?
            }
            (None, None, Some(data), None) => vec![Material::base64(&data)?],
            (None, None, None, Some(datas)) => {
                datas.iter().map(|data| Material::base64(data)).collect::<Result<_, _>>()?
            }
            _ => return Err(format!("of {name}Path, -Paths, -Data and -Datas use one")),
        };
        if list.is_empty() || list.len() > REQUIREMENTS_LIMIT {
            return Err(format!("{name}: a list has 1 to {REQUIREMENTS_LIMIT} elements"));
        }
        Ok(Some(list))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReferenceField {
    #[serde(rename = "dockerReference")]
    reference: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RepositoryField {
    #[serde(rename = "dockerRepository")]
    repository: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PrefixFields {
    prefix: String,
    signed_prefix: String,
}

fn signed_identity(value: Option<Value>) -> Result<Identity, String> {
    let Some(value) = value else { return Ok(Identity::RepositoryDigestOrExact) };
    let Value::Object(mut members) = value else {
        return Err("signedIdentity is an object".into());
    };
    let kind = members.remove("type");
    let kind = kind.as_ref().and_then(Value::as_str).ok_or("signedIdentity has a type")?;
    let rest = Value::Object(members);
    Ok(match kind {
        "matchExact" => fields::<Nothing>(rest).map(|_| Identity::Exact)?,
        "matchRepoDigestOrExact" => {
            fields::<Nothing>(rest).map(|_| Identity::RepositoryDigestOrExact)?
        }
        "matchRepository" => fields::<Nothing>(rest).map(|_| Identity::Repository)?,
        "exactReference" => {
            let reference = Reference::parse(&fields::<ReferenceField>(rest)?.reference)?;
            if reference.version == Version::Unnamed {
                return Err("exactReference: give a tag or a digest".into());
            }
            Identity::ExactReference(reference)
        }
        "exactRepository" => {
            let reference = Reference::parse(&fields::<RepositoryField>(rest)?.repository)?;
            if reference.version != Version::Unnamed {
                return Err("exactRepository: a repository has no tag and no digest".into());
            }
            Identity::ExactRepository(reference.repository)
        }
        "remapIdentity" => {
            let PrefixFields { prefix, signed_prefix } = fields(rest)?;
            check_prefix(&prefix)?;
            check_prefix(&signed_prefix)?;
            Identity::Remapped { prefix, signed_prefix }
        }
        other => return Err(format!("the signedIdentity type {other:?} is not known")),
    })
}

/// `host[:port]` or `host[:port]/path`.
fn check_prefix(prefix: &str) -> Result<(), String> {
    let as_name = if prefix.contains('/') { prefix.to_owned() } else { format!("{prefix}/x") };
    let reference = Reference::parse(&as_name)?;
    if reference.repository != as_name || reference.version != Version::Unnamed {
        return Err(format!("{prefix:?} is not host[:port][/path], written in full"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(host: &str, path: &str, tag: Option<&str>) -> Subject {
        Subject {
            host: host.into(),
            path: path.into(),
            tag: tag.map(str::to_owned),
            digest: None,
            manifests: Vec::new(),
        }
    }

    fn parse(text: &str) -> Result<Containers, PolicyError> {
        Containers::parse(serde_json::from_str(text).unwrap())
    }

    #[test]
    fn the_most_specific_scope_decides() {
        let reject = r#"[{"type":"reject"}]"#;
        let scopes = [
            "",
            "r.example.com:5000",
            "r.example.com:5000/a",
            "r.example.com:5000/a/b",
            "r.example.com:5000/a/b:v1",
            "*.example.com",
            "*.com",
        ];
        let scopes: Vec<String> = scopes.iter().map(|s| format!("{s:?}:{reject}")).collect();
        let policy = parse(&format!(
            r#"{{"default":{reject},"transports":{{"docker":{{{}}},"dir":{{"/":{reject}}}}}}}"#,
            scopes.join(",")
        ))
        .unwrap();
        for (host, path, tag, rule) in [
            ("r.example.com:5000", "a/b", Some("v1"), "scope r.example.com:5000/a/b:v1"),
            ("r.example.com:5000", "a/b", Some("v2"), "scope r.example.com:5000/a/b"),
            ("r.example.com:5000", "a/bc", Some("v1"), "scope r.example.com:5000/a"),
            ("r.example.com:5000", "ab", None, "scope r.example.com:5000"),
            ("r.example.com", "a/b", None, "scope *.example.com"),
            ("example.com", "a/b", None, "scope *.com"),
            ("example.org", "a/b", None, "the default of transport docker"),
        ] {
            assert_eq!(policy.select(&subject(host, path, tag)).rule.name, rule);
        }
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        let key = r#""keyPath":"kbs:///default/keys/a""#;
        for (requirement, problem) in [
            (String::new(), "no requirements"),
            (r#"{"type":"reject","more":1}"#.into(), "unknown field"),
            (r#"{"type":"accept"}"#.into(), "not known"),
            (r#"{"typ":"reject"}"#.into(), "has a type"),
            (r#"{"type":"sigstoreSigned"}"#.into(), "give one of"),
            (r#"{"type":"sigstoreSigned","keyPath":"/etc/key.pub"}"#.into(), "not in the guest"),
            (r#"{"type":"sigstoreSigned","keyPath":"kbs:///a/b"}"#.into(), "of the form kbs:///"),
            (
                r#"{"type":"sigstoreSigned","keyPath":"kbs:///a/../c"}"#.into(),
                "of the form kbs:///",
            ),
            (r#"{"type":"sigstoreSigned","keyData":"%"}"#.into(), "not base64"),
            (format!(r#"{{"type":"sigstoreSigned",{key},"keyData":""}}"#), "use one"),
            (r#"{"type":"sigstoreSigned","keyPaths":[]}"#.into(), "1 to"),
            (
                format!(r#"{{"type":"sigstoreSigned",{key},"signedIdentity":{{"type":"x"}}}}"#),
                "not known",
            ),
            (
                format!(
                    r#"{{"type":"sigstoreSigned",{key},"signedIdentity":{{"type":"exactReference","dockerReference":"a/b"}}}}"#
                ),
                "tag or a digest",
            ),
            (
                format!(
                    r#"{{"type":"sigstoreSigned",{key},"signedIdentity":{{"type":"remapIdentity","prefix":"busybox","signedPrefix":"r.example"}}}}"#
                ),
                "written in full",
            ),
        ] {
            let text = format!(r#"{{"default":[{requirement}]}}"#);
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains(problem), "{text}: {error}");
        }
        for scope in ["*", "a.*.com", "*.a.com/b", "https://a.com", "a.com/", "a.com/b@sha256:0"] {
            let text = format!(
                r#"{{"default":[{{"type":"reject"}}],"transports":{{"docker":{{{scope:?}:[{{"type":"reject"}}]}}}}}}"#
            );
            assert!(parse(&text).is_err(), "{scope}");
        }
    }
}
