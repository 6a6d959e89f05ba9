//! The TOML files within a document, as the parts of a guest read them.

use serde::de::DeserializeOwned;

/// Why a file of the document cannot be used. Never with its contents.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// It breaks TOML's rules, has an unknown key, or a value has another type.
    #[error("{file} in the pod's initdata, line {line}: {problem}")]
    Form {
        /// Which file.
        file: &'static str,
        /// Counted from 1.
        line: usize,
        /// What the parser says.
        problem: String,
    },
    /// A value cannot be used.
    #[error("{file} in the pod's initdata: {key} {problem}")]
    Value {
        /// Which file.
        file: &'static str,
        /// Such as `kbc.url`.
        key: String,
        /// What is wrong and what to do.
        problem: String,
    },
}

impl FileError {
    /// A value that cannot be used.
    pub fn value(file: &'static str, key: &str, problem: impl Into<String>) -> FileError {
        FileError::Value { file, key: key.to_owned(), problem: problem.into() }
    }
}

/// Reads the text of a file.
///
/// # Errors
/// [`FileError::Form`] with the line.
pub fn read_file<T: DeserializeOwned>(file: &'static str, text: &str) -> Result<T, FileError> {
    toml::from_str(text).map_err(|error| {
        let (line, problem) = place(text, &error);
        FileError::Form { file, line, problem }
    })
}

/// The line of a mistake, counted from 1, and the first line of what the parser says: no quotation of the
/// text.
pub(super) fn place(text: &str, error: &toml::de::Error) -> (usize, String) {
    let before = error.span().map_or(0, |span| span.start).min(text.len());
    let line = 1 + text.as_bytes()[..before].iter().filter(|byte| **byte == b'\n').count();
    let problem = error.message().lines().next().unwrap_or_default();
    (line, problem.chars().take(200).collect())
}
