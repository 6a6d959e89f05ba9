//! The native form: described, with an example, at [`crate::ImagePolicy`].

use nacre_trust::Digest;
use serde::Deserialize;

use super::material::Material;
use super::requirement::{NamePattern, Requirement, RootMaterial, Rule, Signer};
use super::{PolicyError, REQUIREMENTS_LIMIT, SCOPES_LIMIT, Selected, check_url};
use crate::Subject;
use crate::glob;
use crate::identity::Identity;
use crate::reference::{Reference, Version};

/// A policy in the native form.
#[derive(Debug)]
pub(crate) struct Native {
    default: Rule,
    images: Vec<(Pattern, Rule)>,
}

#[derive(Debug)]
struct Pattern {
    repository: String,
    tag: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    default: Default,
    #[serde(default)]
    image: Vec<ImageTable>,
}

#[derive(Clone, Copy, std::default::Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Default {
    #[default]
    Reject,
    DangerAccept,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ImageTable {
    #[serde(rename = "match")]
    pattern: String,
    require: Option<Vec<Demand>>,
    accept: Option<Accept>,
    reject: Option<bool>,
    identity: Option<IdentityWord>,
    signed_as: Option<String>,
    lookaside: Option<String>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Accept {
    DangerAny,
    Pinned,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum IdentityWord {
    Repository,
    Exact,
    DangerAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Demand {
    cosign_key: Option<String>,
    rekor_key: Option<String>,
    keyless: Option<Keyless>,
    gpg_key: Option<String>,
    digests: Option<Vec<String>>,
    any: Option<Vec<Demand>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Keyless {
    trust_root: String,
    issuer: String,
    identity: String,
}

impl Native {
    pub(super) fn parse(document: &[u8]) -> Result<Self, PolicyError> {
        let form = |problem: String| PolicyError::Form(problem);
        let text = std::str::from_utf8(document)
            .map_err(|_| form("neither JSON nor TOML: not UTF-8".into()))?;
        let document: Document = toml::from_str(text).map_err(|error| form(error.to_string()))?;
        if document.image.len() > SCOPES_LIMIT {
            return Err(PolicyError::TooMany("rules", SCOPES_LIMIT));
        }
        let default = match document.default {
            Default::Reject => Requirement::Nothing,
            Default::DangerAccept => Requirement::Anything,
        };
        let mut images = Vec::new();
        for table in document.image {
            let name = format!("the rule for {}", table.pattern);
            let parsed = image(table, &name);
            images.push(parsed.map_err(|problem| PolicyError::Rule { rule: name, problem })?);
        }
        Ok(Self { default: Rule::only("the policy's default", default), images })
    }

    /// The first rule that matches.
    pub(super) fn select(&self, subject: &Subject) -> Selected<'_> {
        let reference = Reference::of(subject);
        let rule = self.images.iter().find(|(pattern, _)| pattern.matches(&reference));
        let rule = rule.map_or(&self.default, |(_, rule)| rule);
        Selected { rule, lookaside: rule.lookaside.as_deref() }
    }
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > glob::PATTERN_LIMIT {
            return Err(format!("match: a pattern has 1 to {} bytes", glob::PATTERN_LIMIT));
        }
        if text.contains('@') || text.contains("://") || !text.bytes().all(|b| b.is_ascii_graphic())
        {
            return Err(
                "match: a pattern is host/path[:tag]; for digests use digests = [..]".into()
            );
        }
        let (repository, tag) = match text.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') && repository.contains('/') => {
                (repository, Some(tag.to_owned()))
            }
            _ => (text, None),
        };
        if !repository.contains('/') && !repository.contains("**") {
            return Err(format!(
                "match: {repository:?} matches nothing; write host/path in full, such as \
                 docker.io/library/busybox, or {repository}/**"
            ));
        }
        Ok(Self { repository: repository.to_owned(), tag })
    }

    fn matches(&self, reference: &Reference) -> bool {
        let tag = match (&self.tag, &reference.version) {
            (None, _) => true,
            (Some(pattern), Version::Tag(tag)) => glob::matches(pattern, tag),
            (Some(_), _) => false,
        };
        tag && glob::matches(&self.repository, &reference.repository)
    }
}

fn image(table: ImageTable, name: &str) -> Result<(Pattern, Rule), String> {
    let pattern = Pattern::parse(&table.pattern)?;
    let identity = identity(table.identity, table.signed_as.as_deref())?;
    let one = |requirement| vec![vec![requirement]];
    let clauses = match (table.require, table.accept, table.reject) {
        (Some(demands), None, None) => clauses(demands, &identity)?,
        (None, Some(Accept::DangerAny), None) => one(Requirement::Anything),
        (None, Some(Accept::Pinned), None) => one(Requirement::Pinned),
        (None, None, Some(true)) => one(Requirement::Nothing),
        _ => {
            return Err(
                "say one of require = [..], accept = \"danger-any\" or \"pinned\", reject = true"
                    .into(),
            );
        }
    };
    if let Some(url) = &table.lookaside {
        check_url(url)?;
    } else if clauses.iter().flatten().any(Requirement::is_gpg) {
        return Err("gpg-key needs lookaside = \"https://..\": the store of its signatures".into());
    }
    Ok((pattern, Rule { name: name.to_owned(), clauses, lookaside: table.lookaside }))
}

fn identity(word: Option<IdentityWord>, signed_as: Option<&str>) -> Result<Identity, String> {
    match (word, signed_as) {
        (Some(_), Some(_)) => Err("say one of identity and signed-as".into()),
        (None, Some(name)) => {
            let reference = Reference::parse(name).map_err(|e| format!("signed-as: {e}"))?;
            Ok(match reference.version {
                Version::Unnamed => Identity::ExactRepository(reference.repository),
                Version::Tag(_) | Version::Digest(_) => Identity::ExactReference(reference),
            })
        }
        (None | Some(IdentityWord::Repository), None) => Ok(Identity::Repository),
        (Some(IdentityWord::Exact), None) => Ok(Identity::RepositoryDigestOrExact),
        (Some(IdentityWord::DangerAny), None) => Ok(Identity::Any),
    }
}

fn clauses(demands: Vec<Demand>, identity: &Identity) -> Result<Vec<Vec<Requirement>>, String> {
    check_count("require", demands.len())?;
    let mut clauses = Vec::new();
    for mut demand in demands {
        let clause = match demand.any.take() {
            None => vec![requirement(demand, identity)?],
            Some(_) if !demand.is_empty() => return Err("any stands by itself".into()),
            Some(alternatives) => {
                check_count("any", alternatives.len())?;
                let alternatives = alternatives.into_iter();
                alternatives.map(|one| requirement(one, identity)).collect::<Result<_, _>>()?
            }
        };
        clauses.push(clause);
    }
    Ok(clauses)
}

impl Demand {
    fn is_empty(&self) -> bool {
        let Self { cosign_key, rekor_key, keyless, gpg_key, digests, any } = self;
        cosign_key.is_none()
            && rekor_key.is_none()
            && keyless.is_none()
            && gpg_key.is_none()
            && digests.is_none()
            && any.is_none()
    }
}

fn requirement(mut demand: Demand, identity: &Identity) -> Result<Requirement, String> {
    let requirement = if let Some(key) = demand.cosign_key.take() {
        let rekor_key = demand.rekor_key.take();
        let logs = rekor_key.iter().map(|key| Material::text(key)).collect::<Result<_, _>>()?;
        signed(Signer::Keys { keys: vec![Material::text(&key)?], logs }, identity)?
    } else if let Some(keyless) = demand.keyless.take() {
        signed(certified(keyless)?, identity)?
    } else if let Some(key) = demand.gpg_key.take() {
        signed(Signer::Gpg { keyrings: vec![Material::text(&key)?] }, identity)?
    } else if let Some(digests) = demand.digests.take() {
        check_count("digests", digests.len())?;
        let digests = digests.iter().map(|digest| digest.parse::<Digest>());
        Requirement::Digests(digests.collect::<Result<_, _>>().map_err(|e| e.to_string())?)
    } else {
        return Err(ONE_OF.into());
    };
    if demand.is_empty() { Ok(requirement) } else { Err(ONE_OF.into()) }
}

const ONE_OF: &str = "a requirement is one of { cosign-key = .. } (with rekor-key = .. if it must \
    be in that log), { keyless = { trust-root = .., issuer = .., identity = .. } }, \
    { gpg-key = .. }, { digests = [..] }, { any = [..] }";

fn signed(by: Signer, identity: &Identity) -> Result<Requirement, String> {
    by.check()?;
    Ok(Requirement::Signed { by, identity: identity.clone() })
}

fn certified(keyless: Keyless) -> Result<Signer, String> {
    let Keyless { trust_root, issuer, identity } = keyless;
    if issuer.is_empty() || identity.is_empty() || identity.len() > glob::PATTERN_LIMIT {
        return Err(format!(
            "keyless: give the issuer, and an identity of 1 to {} bytes",
            glob::PATTERN_LIMIT
        ));
    }
    let root = RootMaterial::Document(Material::text(&trust_root)?);
    Ok(Signer::Certified { root, issuer, name: NamePattern::Pattern(identity) })
}

fn check_count(what: &str, count: usize) -> Result<(), String> {
    if (1..=REQUIREMENTS_LIMIT).contains(&count) {
        return Ok(());
    }
    Err(format!("{what}: a list has 1 to {REQUIREMENTS_LIMIT} elements"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(policy: &str, image: &str) -> String {
        let reference = Reference::parse(image).unwrap();
        let (host, path) = reference.repository.split_once('/').unwrap();
        let (tag, digest) = match reference.version {
            Version::Unnamed => (None, None),
            Version::Tag(tag) => (Some(tag), None),
            Version::Digest(digest) => (None, Some(digest)),
        };
        let (host, path) = (host.to_owned(), path.to_owned());
        let subject = Subject { host, path, tag, digest, manifests: Vec::new() };
        Native::parse(policy.as_bytes()).unwrap().select(&subject).rule.name.clone()
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let policy = r#"
            [[image]]
            match = "r.example:5000/a/*:v*"
            accept = "danger-any"
            [[image]]
            match = "r.example:5000/a/**"
            accept = "pinned"
            [[image]]
            match = "docker.io/library/busybox"
            reject = true
        "#;
        let digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for (image, expected) in [
            ("r.example:5000/a/b:v1", "the rule for r.example:5000/a/*:v*"),
            ("r.example:5000/a/b:w1", "the rule for r.example:5000/a/**"),
            ("r.example:5000/a/b/c:v1", "the rule for r.example:5000/a/**"),
            (&format!("r.example:5000/a/b:v1@sha256:{digest}"), "the rule for r.example:5000/a/**"),
            ("busybox", "the rule for docker.io/library/busybox"),
            ("busybox2", "the policy's default"),
        ] {
            assert_eq!(rule(policy, image), expected);
        }
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for (policy, problem) in [
            ("defautl = \"reject\"", "unknown field"),
            ("default = \"maybe\"", "unknown variant"),
            ("[[image]]\nmatch = \"a.example/b\"", "say one of"),
            ("[[image]]\nmatch = \"a.example/b\"\nreject = false", "say one of"),
            (
                "[[image]]\nmatch = \"a.example/b\"\nreject = true\naccept = \"pinned\"",
                "say one of",
            ),
            ("[[image]]\nmatch = \"busybox\"\nreject = true", "matches nothing"),
            ("[[image]]\nmatch = \"a.example/b@sha256:00\"\nreject = true", "digests"),
            ("[[image]]\nmatch = \"a.example/b\"\nrequire = []", "1 to"),
            ("[[image]]\nmatch = \"a.example/b\"\nrequire = [{}]", "a requirement is one of"),
            ("[[image]]\nmatch = \"a.example/b\"\nrequire = [{any=[{any=[]}]}]", "is one of"),
            (
                "[[image]]\nmatch = \"a.example/b\"\nrequire = [{cosign-key=\"/k.pub\"}]",
                "not in the guest",
            ),
            (
                "[[image]]\nmatch = \"a.example/b\"\nrequire = [{cosign-key=\"a\"}]",
                "not a public key",
            ),
            (
                "[[image]]\nmatch = \"a.example/b\"\nrequire = [{cosign-key=\"kbs:///a/b/c\", digests=[]}]",
                "is one of",
            ),
            ("[[image]]\nmatch = \"a.example/b\"\nrequire = [{digests=[\"md5:0\"]}]", "digest"),
            ("\u{0}", "image policy"),
        ] {
            let error = Native::parse(policy.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(problem), "{policy}: {error}");
        }
        assert!(Native::parse(b"\xff").is_err());
    }

    #[test]
    fn the_documented_example_is_a_policy() {
        let policy = include_str!("example.toml");
        for (image, expected) in [
            ("registry.example/team/a/b:v1", "the rule for registry.example/team/**"),
            ("git.example/a", "the rule for git.example/**"),
            ("vendor.example/a", "the rule for vendor.example/**"),
            ("busybox", "the rule for docker.io/library/*"),
            ("registry.example/other", "the rule for registry.example/**"),
            ("other.example/a", "the policy's default"),
        ] {
            assert_eq!(rule(policy, image), expected);
        }
    }

    #[test]
    fn an_empty_policy_rejects() {
        assert_eq!(Native::parse(b"").unwrap().default.clauses, [[Requirement::Nothing]]);
    }
}
