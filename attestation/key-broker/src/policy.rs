//! The resource policy in Rego: rule `allow` of package `policy`, as Trustee has it. `input` holds the
//! claims of the token, `data` what is asked for.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nacre_protocol::kbs::ResourceUri;
use regorus::utils::limits::{ExecutionTimerConfig, PolicyLengthConfig};
use regorus::{Engine, Value};
use serde_json::json;

/// Largest policy, in bytes.
pub(crate) const POLICY_LIMIT: usize = 256 * 1024;
/// Most brackets within each other: the parser's time doubles with each.
const DEEPEST: usize = 16;
/// Longest evaluation.
const LONGEST: Duration = Duration::from_millis(500);
const RULE: &str = "data.policy.allow";
const PACKAGE: &str = "data.policy";

/// Why a text is no resource policy, or gives no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Empty or too large.
    #[error("a resource policy has 1 to {POLICY_LIMIT} bytes; this one has {0}")]
    Size(usize),
    /// Too deep.
    #[error("line {0} of the resource policy: more than {DEEPEST} brackets within each other")]
    Depth(usize),
    /// It is not Rego.
    #[error("the resource policy is not valid Rego: {0}")]
    Syntax(String),
    /// Of another package.
    #[error("the resource policy's package is {0:?}; it must be `policy`")]
    Package(String),
    /// It has no rule `allow`.
    #[error("the resource policy has no rule `allow`")]
    Rule,
    /// It failed for this request.
    #[error("the resource policy could not be evaluated: {0}")]
    Evaluation(String),
}

/// A compiled policy.
pub(crate) struct ResourcePolicy {
    text: String,
    engine: Mutex<Engine>,
}

impl ResourcePolicy {
    /// Compiles a policy. It is written for Rego 1, or for Rego 0 as older ones of Trustee. Who writes
    /// `if` writes Rego 1: as Rego 0 a mistake there could read as a rule that always holds.
    pub(crate) fn compile(text: &str) -> Result<ResourcePolicy, PolicyError> {
        if text.is_empty() || text.len() > POLICY_LIMIT {
            return Err(PolicyError::Size(text.len()));
        }
        check_depth(text)?;
        let mut engine = match read(text, false) {
            Err(PolicyError::Syntax(_)) if !has_word(text, "if") => read(text, true)?,
            read => read?,
        };
        engine.set_input(Value::new_object());
        match engine.eval_rule(RULE.to_owned()) {
            Ok(_) => {}
            Err(error) if error.to_string().contains("not a valid rule path") => {
                return Err(PolicyError::Rule);
            }
            // With nothing as input it may fail; with a request it is asked again.
            Err(_) => {}
        }
        Ok(ResourcePolicy { text: text.to_owned(), engine: Mutex::new(engine) })
    }

    /// The policy as it was set.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Whether the policy allows it: its rule is `true`, and nothing else. `claims` are JSON.
    pub(crate) fn allows(
        &self,
        claims: &str,
        resource: &ResourceUri,
        grants: &serde_json::Value,
    ) -> Result<bool, PolicyError> {
        let failed = |error: &dyn std::fmt::Display| PolicyError::Evaluation(short(error));
        let query: serde_json::Map<_, _> = resource
            .query()
            .into_iter()
            .flat_map(|query| query.split('&'))
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (name.to_owned(), value.into()))
            .collect();
        let data = json!({
            "plugin": resource.plugin(),
            "resource-path": [resource.repository(), resource.kind(), resource.tag()],
            "query": query,
            "grants": grants,
        });
        let data: Value = serde_json::from_value(data).map_err(|error| failed(&error))?;
        let input = Value::from_json_str(claims).map_err(|error| failed(&error))?;
        let mut engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        engine.clear_data();
        engine.add_data(data).map_err(|error| failed(&error))?;
        engine.set_input(input);
        let answer = engine.eval_rule(RULE.to_owned()).map_err(|error| failed(&error))?;
        Ok(answer == Value::from(true))
    }
}

fn read(text: &str, old: bool) -> Result<Engine, PolicyError> {
    let mut engine = Engine::new();
    engine.set_rego_v0(old);
    engine.set_strict_builtin_errors(false);
    engine.set_policy_length_config(PolicyLengthConfig {
        max_col: NonZeroU32::MAX,
        max_file_bytes: NonZeroUsize::MIN.saturating_add(POLICY_LIMIT),
        max_lines: NonZeroUsize::MIN.saturating_add(POLICY_LIMIT),
    });
    engine.set_execution_timer_config(ExecutionTimerConfig {
        limit: LONGEST,
        check_interval: NonZeroU32::MIN.saturating_add(255),
    });
    let package = engine.add_policy("policy.rego".to_owned(), text.to_owned());
    let package = package.map_err(|error| PolicyError::Syntax(short(&error)))?;
    if package != PACKAGE {
        return Err(PolicyError::Package(package.trim_start_matches("data.").to_owned()));
    }
    Ok(engine)
}

/// Whether a word stands outside of comments.
fn has_word(text: &str, word: &str) -> bool {
    let code = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let mut words = code.flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_'));
    words.any(|one| one == word)
}

fn short(error: &dyn std::fmt::Display) -> String {
    error.to_string().trim().chars().take(400).collect()
}

/// Counts brackets outside of strings and comments.
fn check_depth(text: &str) -> Result<(), PolicyError> {
    let (mut depth, mut line) = (0_usize, 1);
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            '\n' => line += 1,
            '{' | '[' | '(' => depth += 1,
            '}' | ']' | ')' => depth = depth.saturating_sub(1),
            '#' => {
                rest.find(|c| *c == '\n');
                line += 1;
            }
            '"' => {
                while let Some(c) = rest.next().filter(|c| !matches!(c, '"' | '\n')) {
                    if c == '\\' {
                        rest.next();
                    }
                }
            }
            '`' => line += rest.by_ref().take_while(|c| *c != '`').filter(|c| *c == '\n').count(),
            _ => {}
        }
        if depth > DEEPEST {
            return Err(PolicyError::Depth(line));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::Attested;

    fn allows(policy: &str, uri: &str) -> bool {
        let policy = ResourcePolicy::compile(policy).unwrap();
        let claims = Attested::for_tests().claims;
        policy.allows(&claims, &uri.parse().unwrap(), &json!([])).unwrap()
    }

    /// In the style of those that owners have: by status, by kind of hardware, by path.
    #[test]
    fn policies_written_for_trustee_decide() {
        let status = "package policy\nimport rego.v1\ndefault allow := false\n\
            allow if {\n  input[\"submods\"][\"cpu0\"][\"ear.status\"] == \"affirming\"\n\
            \x20 data.plugin == \"resource\"\n}\n";
        assert!(allows(status, "kbs:///a/b/c"));
        assert!(!allows(status, "kbs+other:///a/b/c"));
        let path = "package policy\nimport rego.v1\ndefault allow := false\n\
            allow if {\n  data[\"resource-path\"][0] == \"myrepo\"\n\
            \x20 input[\"submods\"][\"cpu0\"][\"ear.veraison.annotated-evidence\"][\"snp\"]\n}\n";
        assert!(allows(path, "kbs:///myrepo/b/c"));
        assert!(!allows(path, "kbs:///other/b/c"));
        let old = "package policy\ndefault allow = false\nallow {\n  count(data[\"resource-path\"]) == 3\n}\n";
        assert!(allows(old, "kbs:///a/b/c"));
        let commented = format!("# allows if there are three parts\n{old}");
        assert!(allows(&commented, "kbs:///a/b/c"));
        let query = "package policy\nimport rego.v1\nallow if data.query.x == \"1\"\n";
        assert!(allows(query, "kbs:///a/b/c?x=1&y"));
        assert!(!allows(query, "kbs:///a/b/c?x=2"));
        assert!(!allows(query, "kbs:///a/b/c"), "undefined is no");
    }

    #[test]
    fn only_true_is_yes() {
        for answer in ["1", "\"true\"", "{}", "[true]", "false"] {
            assert!(!allows(
                &format!("package policy\nimport rego.v1\nallow := {answer}\n"),
                "kbs:///a/b/c"
            ));
        }
        assert!(allows("package policy\nimport rego.v1\nallow := true\n", "kbs:///a/b/c"));
    }

    #[test]
    fn one_request_leaves_nothing_to_the_next() {
        let policy = ResourcePolicy::compile(
            "package policy\nimport rego.v1\nallow if data[\"resource-path\"][2] == \"c\"\n",
        )
        .unwrap();
        let claims = "{}";
        for (uri, expected) in
            [("kbs:///a/b/c", true), ("kbs:///a/b/d", false), ("kbs:///a/b/c", true)]
        {
            assert_eq!(policy.allows(claims, &uri.parse().unwrap(), &json!([])), Ok(expected));
        }
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        let refused = |text: &str| ResourcePolicy::compile(text).err().unwrap();
        assert_eq!(refused(""), PolicyError::Size(0));
        assert_eq!(refused(&"#".repeat(POLICY_LIMIT + 1)), PolicyError::Size(POLICY_LIMIT + 1));
        assert!(matches!(refused("package policy\nallow if"), PolicyError::Syntax(_)));
        assert!(matches!(
            refused("package other\nimport rego.v1\nallow := true"),
            PolicyError::Package(_)
        ));
        assert_eq!(refused("package policy\nimport rego.v1\nother := true"), PolicyError::Rule);
        assert_eq!(
            refused(&format!("package policy\na := {}", "[".repeat(40))),
            PolicyError::Depth(2)
        );
    }

    #[test]
    fn an_endless_policy_is_stopped() {
        let text = "package policy\nimport rego.v1\nallow if {\n  some a in numbers.range(1, 3000)\n\
            \x20 some b in numbers.range(1, 3000)\n  some c in numbers.range(1, 3000)\n  a * b * c == 0\n}\n";
        let policy = ResourcePolicy::compile(text).unwrap();
        let answer = policy.allows("{}", &"kbs:///a/b/c".parse().unwrap(), &json!([]));
        assert!(matches!(answer, Err(PolicyError::Evaluation(_))), "{answer:?}");
    }
}
