//! What may be wrong with the owner's YAML, with the place at which it is wrong.

use std::rc::Rc;

/// A mistake in a file, with its place and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {path}{}{problem}", if path.is_empty() { "" } else { ": " })]
pub struct ReadError {
    /// The file.
    pub file: String,
    /// Line, counted from 1.
    pub line: u32,
    /// Path within the YAML document, such as `spec.containers[0].image`; empty for the document itself.
    pub path: String,
    /// What is wrong.
    pub problem: Problem,
}

/// What is wrong with a field or a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The text is no YAML.
    #[error("not valid YAML: {0}")]
    Syntax(String),
    /// More than any honest file needs.
    #[error("{what} exceeds the limit of {limit}: {fix}")]
    Limit {
        /// What is too large.
        what: &'static str,
        /// How large it may be.
        limit: usize,
        /// What to do.
        fix: &'static str,
    },
    /// A field that Kubernetes does not have here.
    #[error("unknown field{}", suggest(.0.as_deref()))]
    UnknownField(Option<String>),
    /// The same key twice in one mapping.
    #[error("stands twice in the same mapping, first at line {0}: remove one")]
    DuplicateKey(u32),
    /// A required field is absent.
    #[error("is missing")]
    Missing,
    /// Another type of value was expected.
    #[error("must be {expected}, but is {found}{fix}")]
    WrongType {
        /// The type that Kubernetes expects.
        expected: &'static str,
        /// The type that is there.
        found: &'static str,
        /// What to do: empty, or begins with a separator.
        fix: &'static str,
    },
    /// A value that Kubernetes itself would refuse, or that cannot be resolved.
    #[error("{0}")]
    Invalid(String),
    /// A valid request for something that a confidential pod must not or cannot have.
    #[error("{what} is refused: {why}")]
    Refused {
        /// The setting.
        what: String,
        /// Why, and what to do.
        why: &'static str,
    },
}

fn suggest(name: Option<&str>) -> String {
    name.map_or_else(
        || ": remove it, or correct its name".to_owned(),
        |name| format!("; did you mean {name}?"),
    )
}

/// A key for messages: nobody reads a long one.
pub(super) fn shortened(key: &str) -> String {
    const LONGEST: usize = 100;
    match key.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &key[..end]),
        None => key.to_owned(),
    }
}

/// Where something stands.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) file: Rc<str>,
    pub(super) path: String,
    pub(super) line: u32,
}

impl Place {
    pub(super) fn error(&self, problem: Problem) -> ReadError {
        ReadError { file: self.file.to_string(), line: self.line, path: self.path.clone(), problem }
    }

    pub(super) fn invalid(&self, text: impl Into<String>) -> ReadError {
        self.error(Problem::Invalid(text.into()))
    }

    pub(super) fn refused(&self, what: impl Into<String>, why: &'static str) -> ReadError {
        self.error(Problem::Refused { what: what.into(), why })
    }
}
