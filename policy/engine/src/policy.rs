//! A policy document, read and ready to judge.

use std::collections::BTreeSet;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use nacre_trust::{Algorithm, Digest};
use regorus::utils::limits::{ExecutionTimerConfig, PolicyLengthConfig};
use regorus::{Engine, Value};

use crate::library;
use crate::state::object;

/// Package that holds the rules.
pub(crate) const PACKAGE: &str = "data.agent_policy";

/// Largest document, in bytes. Kata's are 80 to 290 KB.
pub const LARGEST_DOCUMENT: usize = 2 * 1024 * 1024;

/// Most brackets (`{` and `[`) within each other. The parser tries each as a comprehension first, so its
/// time doubles with every one of them. Documents need less than ten.
const DEEPEST: usize = 16;

/// Longest evaluation of one request. A document that needs more denies.
///
/// It is there against rules without an end. The clock is the guest's, which runs on while the host gives its
/// processors to others: of the milliseconds that rules take, an overloaded host makes seconds.
const LONGEST_EVALUATION: Duration = Duration::from_secs(30);

/// Why a document cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// It is empty or too large.
    #[error("a policy document has 1 to {LARGEST_DOCUMENT} bytes, but this one {0}")]
    Size(usize),
    /// Brackets within brackets: reading takes twice as long with each.
    #[error("line {0} of the policy document: more than {DEEPEST} brackets within each other")]
    Depth(usize),
    /// It is not Rego.
    #[error("the policy document is not valid Rego: {0}")]
    Syntax(String),
    /// It has other packages, or none of the right name.
    #[error("the policy document's package is {0:?}: it must be agent_policy")]
    Package(String),
    /// Its data is for other rules than those of this guest image.
    #[error(
        "the policy document is for version {0} of the rules, and this guest has version {known}: \
         generate it with the `nacre` of the guest's release, or with --standalone",
        known = library::VERSION
    )]
    Version(String),
    /// Its data names a profile that this guest does not know.
    #[error("policy_data.runtimes: {0}")]
    Runtimes(#[from] library::UnknownRuntime),
    /// Its data lacks something that the rules need.
    #[error("policy_data.{0}")]
    Data(&'static str),
}

/// A document with its rules, compiled.
#[derive(Clone)]
pub struct Policy {
    engine: Engine,
    digest: String,
    data: Value,
    reads_requests: bool,
}

impl std::fmt::Debug for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Policy").field("sha256", &self.digest).finish_non_exhaustive()
    }
}

impl Policy {
    /// Reads a document and adds the guest's rules library if it asks for one.
    ///
    /// # Errors
    /// [`PolicyError`]; nothing is judged by half a policy.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        Self::parse_within(text, LONGEST_EVALUATION)
    }

    /// [`Policy::parse`]; `longest` is how long any evaluation may take.
    fn parse_within(text: &str, longest: Duration) -> Result<Self, PolicyError> {
        if text.is_empty() || text.len() > LARGEST_DOCUMENT {
            return Err(PolicyError::Size(text.len()));
        }
        check_depth(text)?;
        let mut engine = compile(text, longest)?;
        let data = constant(&mut engine, "policy_data")?;
        match version(&data) {
            None => {}
            Some(version) if *version != Value::from(library::VERSION) => {
                let version = version.to_json_str().unwrap_or_default();
                return Err(PolicyError::Version(version.chars().take(20).collect()));
            }
            Some(_) => add_library(&mut engine, &data)?,
        }
        // Finds what is wrong between rules now rather than at the first request.
        evaluate(&mut engine, "CreateSandboxRequest").map_err(PolicyError::Syntax)?;
        let digest = Digest::of(Algorithm::Sha256, text.as_bytes()).hex();
        let reads_requests = version(&data).is_none() || text.contains("input");
        Ok(Self { engine, digest, data, reads_requests })
    }

    /// SHA-256 of the document's text, in hexadecimal.
    #[must_use]
    pub fn sha256(&self) -> &str {
        &self.digest
    }

    /// Whether the document has rules of its own that may look at requests.
    pub(crate) fn reads_requests_itself(&self) -> bool {
        self.reads_requests
    }

    /// The document's `policy_data`; undefined if it has none.
    pub(crate) fn data(&self) -> &Value {
        &self.data
    }

    /// Evaluates a rule. `None`: there is no such rule, or it is undefined for this input.
    pub(crate) fn evaluate(&mut self, rule: &str, input: Value) -> Result<Option<Value>, String> {
        self.engine.set_input(input);
        evaluate(&mut self.engine, rule)
    }

    /// All that rules see beneath `data`, without the rules.
    pub(crate) fn base_data(&self) -> Value {
        self.engine.get_data()
    }

    /// Replaces [`Policy::base_data`].
    pub(crate) fn set_base_data(&mut self, data: Value) -> Result<(), String> {
        self.engine.clear_data();
        self.engine.add_data(data).map_err(|e| e.to_string())
    }
}

/// Counts brackets outside of strings and comments.
fn check_depth(text: &str) -> Result<(), PolicyError> {
    let (mut depth, mut line) = (0_usize, 1);
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            '\n' => line += 1,
            '{' | '[' => depth += 1,
            '}' | ']' => depth = depth.saturating_sub(1),
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

/// Documents are written for Rego 1; those that are not, as older ones of Kata, are read as Rego 0.
fn compile(text: &str, longest: Duration) -> Result<Engine, PolicyError> {
    let read = |old: bool| {
        let mut engine = Engine::new();
        engine.set_rego_v0(old);
        engine.set_strict_builtin_errors(false);
        engine.set_policy_length_config(PolicyLengthConfig {
            max_col: NonZeroU32::MAX,
            max_file_bytes: NonZeroUsize::MIN.saturating_add(LARGEST_DOCUMENT),
            max_lines: NonZeroUsize::MIN.saturating_add(LARGEST_DOCUMENT),
        });
        engine.set_execution_timer_config(ExecutionTimerConfig {
            limit: longest,
            check_interval: NonZeroU32::MIN.saturating_add(255),
        });
        let package = engine.add_policy("policy.rego".into(), text.to_owned());
        package.map(|package| (engine, package)).map_err(|e| short(&e.to_string()))
    };
    let (mut engine, package) = match read(false) {
        Ok(read) => read,
        Err(error) => read(true).map_err(|_| PolicyError::Syntax(error))?,
    };
    if package != PACKAGE {
        return Err(PolicyError::Package(package.trim_start_matches("data.").to_owned()));
    }
    // State of documents that keep their own, as Kata's do.
    engine
        .add_data(object([("pstate", Value::new_object())]))
        .map_err(|e| PolicyError::Syntax(short(&e.to_string())))?;
    Ok(engine)
}

/// The value of a rule that needs no input.
fn constant(engine: &mut Engine, rule: &str) -> Result<Value, PolicyError> {
    engine.set_input(Value::new_object());
    let value = evaluate(engine, rule).map_err(PolicyError::Syntax)?;
    Ok(value.unwrap_or(Value::Undefined))
}

fn version(data: &Value) -> Option<&Value> {
    data.as_object().ok().map(|_| &data["version"]).filter(|version| **version != Value::Undefined)
}

/// The rules read the document's data where it is evaluated once, not at each request.
fn add_library(engine: &mut Engine, data: &Value) -> Result<(), PolicyError> {
    let standalone = data["standalone"] == Value::Bool(true);
    let runtime = match (&data["runtime"], &data["runtimes"]) {
        (Value::Undefined, names) => library::merge_runtimes(&library::names(names)?)?.into(),
        (runtime, _) if runtime.as_object().is_ok() => runtime.clone(),
        _ => return Err(PolicyError::Data("runtime must be an object")),
    };
    if data["containers"].as_object().is_err() || data["pod"].as_object().is_err() {
        return Err(PolicyError::Data("containers and policy_data.pod must be objects"));
    }
    let failed = |e: String| PolicyError::Syntax(short(&e));
    let containers = data["containers"].as_object().map(|all| all.iter().collect::<Vec<_>>());
    let first = containers.unwrap_or_default().into_iter();
    let first = first.filter(|(_, container)| {
        [&container["init"], &container["sidecar"]].contains(&&Value::Bool(true))
    });
    let init: Vec<Value> = first.map(|(name, _)| name.clone()).collect();
    let base = object([
        ("usual_mounts", usual_mounts(&runtime)),
        ("usual_copies", usual_copies(&runtime)),
        ("policy", data.clone()),
        ("runtime", runtime),
        ("init", init.into()),
    ]);
    engine.add_data(object([("nacre", base)])).map_err(|e| failed(e.to_string()))?;
    if !standalone {
        engine.set_rego_v0(false);
        engine
            .add_policy("rules.rego".into(), library::RULES.into())
            .map_err(|e| failed(e.to_string()))?;
    }
    Ok(())
}

/// The mounts that a runtime makes in the same way for every container, as a set of
/// `[destination, type, source, options]`.
fn usual_mounts(runtime: &Value) -> Value {
    let mounts = entries(&runtime["mounts"]).flat_map(|(destination, mount)| {
        let form = |form: &Value| {
            let parts = [destination, &form[0_u64], &form[1_u64], &form[2_u64]];
            Value::from(parts.map(Value::clone).to_vec())
        };
        items(&mount["forms"]).map(form).collect::<Vec<_>>()
    });
    mounts.collect::<BTreeSet<_>>().into()
}

/// Those of files that the host copies under a fixed name, as a set of
/// `[destination, type, name, options]`.
fn usual_copies(runtime: &Value) -> Value {
    let mounts = entries(&runtime["mounts"]).flat_map(|(destination, mount)| {
        let name = mount["copy"].as_string().ok().and_then(|pattern| literal(pattern));
        let form = |name: &str, form: &Value| {
            let parts = [destination, &form[0_u64], &name.into(), &form[1_u64]];
            Value::from(parts.map(Value::clone).to_vec())
        };
        let forms = items(&mount["copied"]);
        name.map(|name| forms.map(|f| form(&name, f)).collect::<Vec<_>>()).unwrap_or_default()
    });
    mounts.collect::<BTreeSet<_>>().into()
}

/// The only text that a pattern matches, if it is as simple as that.
fn literal(pattern: &str) -> Option<String> {
    let text = pattern.replace(r"\.", ".");
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    pattern.replace(r"\.", "").chars().all(plain).then_some(text)
}

fn entries(object: &Value) -> impl Iterator<Item = (&Value, &Value)> {
    object.as_object().into_iter().flat_map(regorus::value::Object::iter)
}

fn items(array: &Value) -> impl Iterator<Item = &Value> {
    array.as_array().into_iter().flat_map(|array| array.iter())
}

fn evaluate(engine: &mut Engine, rule: &str) -> Result<Option<Value>, String> {
    match engine.eval_rule(format!("{PACKAGE}.{rule}")) {
        Ok(Value::Undefined) => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            let text = error.to_string();
            let absent = text.contains("not a valid rule path");
            if absent { Ok(None) } else { Err(short(&text)) }
        }
    }
}

/// Rego's errors quote the source with a caret; the first lines say where and what.
fn short(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines.collect::<Vec<_>>().join(" ");
    let mut line: String = line.chars().filter(|c| !c.is_control()).take(300).collect();
    if line.len() < text.len() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_evaluation_without_an_end_is_ended() {
        let endless = "package agent_policy\nimport rego.v1\nStartContainerRequest if {\n\
                       some a in numbers.range(1, 1000000)\nsome b in numbers.range(1, 1000000)\na == 0 - b }\n";
        let mut policy = Policy::parse_within(endless, Duration::from_millis(100)).unwrap();
        let error = policy.evaluate("StartContainerRequest", Value::new_object()).unwrap_err();
        assert!(error.contains("exceeded time limit"), "{error}");
        let other = policy.evaluate("CreateContainerRequest", Value::new_object());
        assert_eq!(other, Ok(None), "each evaluation has its own time");
    }
}
