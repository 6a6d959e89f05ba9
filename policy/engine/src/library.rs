//! The rules that documents written by `nacre policy generate` rely on, and what runtimes add to
//! specifications. Both are part of the guest image, and so measured.

use std::collections::BTreeSet;

use regorus::Value;
use serde_json::{Map, Value as Json};

/// Version of the rules: what `policy_data.version` must be.
pub const VERSION: u64 = 1;

/// The rules, as Rego text.
pub const RULES: &str = include_str!("../rules/v1.rego");

const RUNTIMES: &str = include_str!("../rules/runtimes.json");

/// A profile's name is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownRuntime {
    /// There is no such profile.
    #[error("{0:?} is not known: this release has {1}")]
    Name(String, String),
    /// The list is absent, empty or not one of names.
    #[error("must be a list of profile names: this release has {0}")]
    List(String),
}

/// What each known runtime adds to the requests of a pod, by the profile's name.
#[must_use]
pub fn runtimes() -> Map<String, Json> {
    // The text is ours and tested.
    serde_json::from_str(RUNTIMES).unwrap_or_default()
}

fn known() -> String {
    runtimes().keys().cloned().collect::<Vec<_>>().join(", ")
}

/// Reads `policy_data.runtimes`.
pub(crate) fn names(value: &Value) -> Result<Vec<String>, UnknownRuntime> {
    let list = value.as_array().map_err(|_| UnknownRuntime::List(known()))?;
    let names = list.iter().map(|name| name.as_string().map(ToString::to_string));
    let names: Vec<_> =
        names.collect::<Result<_, _>>().map_err(|_| UnknownRuntime::List(known()))?;
    if names.is_empty() {
        return Err(UnknownRuntime::List(known()));
    }
    Ok(names)
}

/// One profile that admits what any of the named ones adds, as JSON.
///
/// # Errors
/// [`UnknownRuntime`] for a name that is not among [`runtimes`].
pub fn merge_runtimes<S: AsRef<str>>(names: &[S]) -> Result<Json, UnknownRuntime> {
    let all = runtimes();
    let named = names.iter().map(|name| {
        let name = name.as_ref();
        let unknown = || UnknownRuntime::Name(name.chars().take(64).collect(), known());
        all.get(name).cloned().ok_or_else(unknown)
    });
    Ok(unite_profiles(named.collect::<Result<Vec<_>, _>>()?))
}

/// One profile that admits what any of `profiles` adds: as [`merge_runtimes`], for changed ones.
#[must_use]
pub fn unite_profiles(profiles: impl IntoIterator<Item = Json>) -> Json {
    profiles.into_iter().reduce(|left, right| union("", left, right)).unwrap_or_default()
}

/// Lists become longer and objects gain keys, except lists of what must be there at least
/// (`min_...`): of these only what all profiles have remains.
fn union(key: &str, left: Json, right: Json) -> Json {
    match (left, right) {
        (Json::Array(left), Json::Array(right)) if key.starts_with("min_") => {
            left.into_iter().filter(|entry| right.contains(entry)).collect()
        }
        (Json::Array(mut left), Json::Array(right)) => {
            let more: Vec<_> = right.into_iter().filter(|entry| !left.contains(entry)).collect();
            left.extend(more);
            Json::Array(left)
        }
        (Json::Object(mut left), Json::Object(mut right)) => {
            let keys: BTreeSet<String> = left.keys().chain(right.keys()).cloned().collect();
            let entries = keys.into_iter().map(|key| {
                let value = match (left.remove(&key), right.remove(&key)) {
                    (Some(left), Some(right)) => union(&key, left, right),
                    (left, right) => left.or(right).unwrap_or_default(),
                };
                (key, value)
            });
            Json::Object(entries.collect())
        }
        (left, _) => left,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_profiles_are_readable() {
        assert!(runtimes().contains_key("containerd-1.6"));
    }

    #[test]
    fn a_merged_profile_admits_what_any_of_them_adds() {
        let left = json!({"env": ["A=1"], "min_masked": ["/a", "/b"], "mounts": {"/x": ["one"]}});
        let right = json!({"env": ["A=1", "B=2"], "min_masked": ["/b"], "mounts": {"/x": ["two"], "/y": []}});
        let merged = json!({
            "env": ["A=1", "B=2"], "min_masked": ["/b"], "mounts": {"/x": ["one", "two"], "/y": []},
        });
        assert_eq!(union("", left, right), merged);
    }

    #[test]
    fn an_unknown_profile_is_named() {
        let error = merge_runtimes(&["containerd-0.1"]).unwrap_err().to_string();
        assert!(error.contains("containerd-0.1") && error.contains("containerd-1.6"), "{error}");
    }
}
