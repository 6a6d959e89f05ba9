//! Why a request was denied, in words that fit a Kubernetes event.

use std::fmt;

use regorus::Value;

use crate::state::text;

/// Longest text of a denial, in bytes: an event's message holds 1024.
pub const LONGEST_DENIAL: usize = 1024;

/// Longest text of one value within it, in characters.
const LONGEST_VALUE: usize = 160;

/// Stands for a value that must not be shown.
const ELIDED: &str = "(secret)";

/// One reason for a denial.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problem {
    /// The field, as in the request: `OCI.Process.Args`.
    pub field: String,
    /// What the policy expects, as text; empty if `fix` says it all.
    pub expected: String,
    /// What came, as text.
    pub got: String,
    /// What the owner changes if the request is legitimate: the line in the YAML, or a setting.
    pub fix: String,
}

/// A denied request. Its text is the same in the agent's answer, the pod's event and
/// `nacre policy explain`, and at most [`LONGEST_DENIAL`] bytes long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// Name of the request's message, such as `CreateContainerRequest`.
    pub request: String,
    /// The container, by the name that the policy's author knows it by.
    pub container: Option<String>,
    /// All reasons that the policy gives, the ones that the container's author can act on first.
    pub problems: Vec<Problem>,
}

impl Denial {
    /// A denial for one reason that is not about a field.
    pub(crate) fn because(
        request: &str,
        container: Option<String>,
        why: impl Into<String>,
    ) -> Self {
        let problem = Problem { fix: why.into(), ..Problem::default() };
        Self { request: request.to_owned(), container, problems: vec![problem] }
    }
}

impl std::error::Error for Denial {}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let method = self.request.strip_suffix("Request").unwrap_or(&self.request);
        let mut text = format!("policy denies {method}");
        if let Some(container) = &self.container {
            text.push_str(&format!(" of container {:?}", cut(container, 64)));
        }
        // Room for the line that says what was left out.
        let room = LONGEST_DENIAL - 40;
        for (index, problem) in self.problems.iter().enumerate() {
            let next = problem.to_string();
            let separator = if index == 0 { ": " } else { "; " };
            if text.len() + separator.len() + next.len() > room {
                let left = self.problems.len() - index;
                let more = if index == 0 { "" } else { " more" };
                text.push_str(&format!("{separator}and {left}{more} problems"));
                break;
            }
            text.push_str(separator);
            text.push_str(&next);
        }
        f.write_str(&text)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.expected.is_empty() {
            parts.push(format!("expected {}", self.expected));
        }
        if !self.got.is_empty() {
            parts.push(format!("got {}", self.got));
        }
        let mut text = parts.join(", ");
        if !self.fix.is_empty() {
            let separator = if text.is_empty() { "" } else { " (" };
            let end = if text.is_empty() { "" } else { ")" };
            text = format!("{text}{separator}{}{end}", self.fix);
        }
        if self.field.is_empty() {
            return f.write_str(&text);
        }
        write!(f, "{}: {text}", self.field)
    }
}

/// Reads the set of problems that a rule gives: objects with `field` and any of `expected`, `got`,
/// `missing`, `unexpected`, `fix`, `key` (of the container's `lines`).
pub(crate) fn read(problems: &Value, source: &Source<'_>) -> Vec<Problem> {
    let list: Vec<&Value> = match problems {
        Value::Set(set) => set.iter().collect(),
        Value::Array(array) => array.iter().collect(),
        _ => Vec::new(),
    };
    list.into_iter().map(|problem| source.problem(problem)).collect()
}

/// Where the policy of a container came from, for explanations.
pub(crate) struct Source<'a> {
    /// `policy_data`.
    pub(crate) data: &'a Value,
    /// Name of the container.
    pub(crate) container: Option<&'a str>,
}

impl Source<'_> {
    fn problem(&self, problem: &Value) -> Problem {
        let field = text(&problem["field"]);
        let secret = field.ends_with("Env");
        let hidden = field.ends_with("Args") && self.hides_arguments();
        let show = |name: &str| match &problem[name] {
            Value::Undefined => String::new(),
            _ if hidden => ELIDED.to_owned(),
            value if secret => self.show(&self.elide(value)),
            value => self.show(value),
        };
        let (missing, unexpected) = (show("missing"), show("unexpected"));
        let expected = match show("expected") {
            expected if expected.is_empty() && !missing.is_empty() => format!("also {missing}"),
            expected => expected,
        };
        let got = match show("got") {
            got if got.is_empty() && !unexpected.is_empty() => format!("{unexpected} in addition"),
            got => got,
        };
        let mut fix = text(&problem["fix"]);
        if let Some(place) = self.place(&text(&problem["key"])) {
            fix = if fix.is_empty() { place } else { format!("{place}; {fix}") };
        }
        Problem { field, expected, got, fix }
    }

    fn show(&self, value: &Value) -> String {
        let json = serde_json::to_string(value).unwrap_or_default();
        cut(&json, LONGEST_VALUE)
    }

    /// `web.yaml:12 (args)`.
    fn place(&self, key: &str) -> Option<String> {
        if key.is_empty() {
            return None;
        }
        let part = match self.container {
            Some(name) => &self.data["containers"][name],
            None => &self.data["pod"],
        };
        let file = text(&self.data["source"]);
        let file = if file.is_empty() { "the policy's source" } else { &file };
        match part["lines"][key].as_u64() {
            Ok(line) => Some(format!("{file}:{line}, {key}")),
            Err(_) => Some(format!("{file}, {key}")),
        }
    }

    /// Values of variables that come from a Secret or look like it.
    fn elide(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => match text.split_once('=') {
                Some((name, _)) if self.is_secret(name) => format!("{name}={ELIDED}").into(),
                _ => value.clone(),
            },
            Value::Array(list) => list.iter().map(|v| self.elide(v)).collect::<Vec<_>>().into(),
            Value::Set(set) => set.iter().map(|v| self.elide(v)).collect::<Vec<_>>().into(),
            other => other.clone(),
        }
    }

    fn hides_arguments(&self) -> bool {
        self.container.is_some_and(|container| {
            self.data["containers"][container]["secret_args"] == Value::Bool(true)
        })
    }

    fn is_secret(&self, name: &str) -> bool {
        let upper = name.to_uppercase();
        let words = ["PASS", "SECRET", "TOKEN", "KEY", "CREDENTIAL", "AUTH"];
        let listed = self.container.is_some_and(|container| {
            let names = &self.data["containers"][container]["secret_env"];
            names.as_array().is_ok_and(|names| names.iter().any(|n| *n == Value::from(name)))
        });
        listed || words.iter().any(|word| upper.contains(word))
    }
}

/// Cuts at a character's boundary and says so; control characters do not get through.
fn cut(text: &str, longest: usize) -> String {
    let clean = text.chars().map(|c| if c.is_control() { '?' } else { c });
    let mut short: String = clean.clone().take(longest).collect();
    if clean.count() > longest {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn denial(problems: &serde_json::Value, data: serde_json::Value) -> Denial {
        let data = Value::from(data);
        let source = Source { data: &data, container: Some("app") };
        Denial {
            request: "CreateContainerRequest".into(),
            container: Some("app".into()),
            problems: read(&Value::from(problems.clone()), &source),
        }
    }

    #[test]
    fn it_names_container_field_values_and_line() {
        let problems =
            json!([{"field": "OCI.Process.Args", "expected": ["a"], "got": ["b"], "key": "args"}]);
        let data = json!({"source": "web.yaml", "containers": {"app": {"lines": {"args": 12}}}});
        assert_eq!(
            denial(&problems, data).to_string(),
            "policy denies CreateContainer of container \"app\": OCI.Process.Args: expected [\"a\"], \
             got [\"b\"] (web.yaml:12, args)"
        );
    }

    #[test]
    fn secrets_are_not_shown() {
        let problems = json!([{"field": "OCI.Process.Env",
            "missing": ["PASSWORD=one", "DB=two"], "unexpected": ["DB=three", "PLAIN=four"]}]);
        let data = json!({"containers": {"app": {"secret_env": ["DB"]}}});
        let text = denial(&problems, data).to_string();
        for hidden in ["one", "two", "three"] {
            assert!(!text.contains(hidden), "{text}");
        }
        assert!(text.contains("PLAIN=four") && text.contains("PASSWORD=(secret)"), "{text}");
    }

    #[test]
    fn it_fits_an_event_whatever_comes() {
        let long = "ä\n".repeat(5000);
        let many: Vec<_> = (0..100)
            .map(|n| json!({"field": format!("field{n}"), "got": long, "expected": [long]}))
            .collect();
        let text = denial(&json!(many), json!({})).to_string();
        assert!(text.len() <= LONGEST_DENIAL, "{}", text.len());
        assert!(text.contains("field0") && text.contains("more problems"), "{text}");
        assert!(!text.contains('\n'));
        let one = json!([{"field": "f".repeat(2000), "got": long}]);
        assert!(denial(&one, json!({})).to_string().len() <= LONGEST_DENIAL);
    }
}
