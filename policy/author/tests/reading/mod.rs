//! Reading YAML in tests.
#![allow(dead_code, reason = "each test file uses its part")]

use nacre_policy_author::kubernetes::{SourceFile, read};
use nacre_policy_author::workload::{EnvValue, Reading};

pub(crate) fn file(text: &str) -> SourceFile {
    SourceFile { name: "web.yaml".to_owned(), content: text.as_bytes().to_vec() }
}

pub(crate) fn reading(text: &str) -> Reading {
    read(&[file(text)]).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

pub(crate) fn mistake(text: &str) -> String {
    match read(&[file(text)]) {
        Ok(reading) => panic!("accepted, with notes {:?}:\n{text}", reading.notes),
        Err(error) => error.to_string(),
    }
}

/// A value in a form that is easy to compare.
pub(crate) fn shown(value: &EnvValue) -> String {
    match value {
        EnvValue::Literal(text) => text.clone(),
        EnvValue::Secret(text) => format!("secret {}", text.reveal()),
        EnvValue::FromPod(fact) => format!("from pod {}", fact.name()),
        EnvValue::Pattern { regex, secret } => {
            format!("pattern {} {secret}", regex.reveal())
        }
    }
}

/// A pod with one container, into which more fields are put.
pub(crate) fn pod(spec: &str, container: &str) -> String {
    let mut text = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n".to_owned();
    for line in spec.lines() {
        text += &format!("  {line}\n");
    }
    text += "  containers:\n  - name: web\n    image: nginx:1\n";
    for line in container.lines() {
        text += &format!("    {line}\n");
    }
    text
}
